"""Packing: the examples of one optimizer step one after another in a row of tokens, without padding.

A row that is too long for the memory is split into passes. The split does not affect which tokens are learned and with
which weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpo_cluster.objectives.lora.ranks import Ranks

#: Label of a token that is not learned.
IGNORED = -100

#: A tokenized row of the data: ``input_ids`` and ``labels`` (length).
Example = Mapping[str, Any]

#: Rows of a tensor: a slice where they are consecutive (no copy), else their indices.
Places = slice | torch.Tensor


@dataclass(frozen=True)
class Draw:
    """The tokens for which dropout masks are drawn together: those of a step, or of a micro-batch.

    Attributes:
        number: number of the micro-batch; 0 for a whole step.
        tokens: number of tokens.
        learned: number of tokens that predict a learned token.
    """

    number: int
    tokens: int
    learned: int


@dataclass(frozen=True)
class Pass:
    """Examples that go through the model together.

    The last token of each example is left out: it predicts no known token, and no other token attends to it.

    Attributes:
        tokens: token ids, of shape (tokens).
        positions: position of each token in its example, of shape (tokens).
        lengths: number of tokens of each example.
        learned: indices of the tokens that predict a learned token, of shape (learned).
        targets: the tokens that these should predict, of shape (learned).
        weights: weights of their losses in the loss of the step, float32, of shape (learned).
        members: micro-batch of each example, and row in the micro-batch.
        draw: the tokens for which the dropout masks are drawn.
        places: where the tokens of the pass are among those of `draw`: indices, or a slice if they are consecutive.
        learned_places: where its learned tokens are among the learned tokens of `draw`.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    learned: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    members: tuple[tuple[int, int], ...]
    draw: Draw
    places: Places
    learned_places: Places

    def to(self, device: torch.device) -> Pass:
        """Return the pass on a device. Copies to a GPU run while the program continues."""
        if device.type == self.tokens.device.type:
            return self
        tensors = {name: value for name, value in self.__dict__.items() if isinstance(value, torch.Tensor)}
        moved = {name: value.pin_memory().to(device, non_blocking=True) for name, value in tensors.items()}
        return Pass(**{**self.__dict__, **moved})


@dataclass
class _Row:
    """One example of two tokens or more."""

    member: tuple[int, int]
    tokens: torch.Tensor
    targets: torch.Tensor  # IGNORED where nothing is learned
    learned: int
    weight: float  # of each of its learned tokens
    token: int = 0  # index of its first token in the draw
    first: int = 0  # index of its first learned token among those of the draw


def passes(
    micro_batches: Sequence[Sequence[Example]],
    weight: float,
    budget: int,
    *,
    whole_micro_batches: bool = False,
    ranks: Ranks = Ranks(),  # noqa: B008  # it is immutable
) -> list[Pass]:
    """Return the passes of a step that this rank makes, in the order of the step's examples.

    Args:
        micro_batches: the step's examples.
        weight: weight of the mean loss of each micro-batch in the loss of the step.
        budget: largest number of tokens in a pass of several examples.
        whole_micro_batches: whether each micro-batch is one pass, without regard to `budget`.
        ranks: the ranks that share the examples of the step, or its micro-batches if these are passes.
    """
    groups = [_rows(number, batch, weight) for number, batch in enumerate(micro_batches)]
    if whole_micro_batches:
        drawn = [(group, _draw(group, number)) for number, group in enumerate(groups) if group]
        return [_pass(*drawn[number]) for number in ranks.mine([draw.tokens for _, draw in drawn])]
    rows = [row for group in groups for row in group]
    draw = _draw(rows, 0)
    mine = [rows[number] for number in ranks.mine([len(row.tokens) for row in rows])]
    return [_pass(group, draw) for group in _cut(mine, budget)]


def _rows(number: int, batch: Sequence[Example], weight: float) -> list[_Row]:
    """Return the examples of a micro-batch that have two tokens or more."""
    targets = [example["labels"][1:] for example in batch]
    learned = [int(torch.count_nonzero(labels != IGNORED)) for labels in targets]
    each = weight / max(1, sum(learned))
    return [
        _Row((number, row), example["input_ids"][:-1], targets[row], learned[row], each)
        for row, example in enumerate(batch)
        if len(example["input_ids"]) > 1
    ]


def _cut(rows: Iterable[_Row], budget: int) -> list[list[_Row]]:
    """Return groups of consecutive rows within the budget."""
    groups, size = list[list[_Row]](), 0
    for row in rows:
        if not groups or size + len(row.tokens) > budget:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += len(row.tokens)
    return groups


def _draw(rows: Sequence[_Row], number: int) -> Draw:
    """Return the draw for all tokens of these rows, and note in each row where it begins in the draw."""
    token = first = 0
    for row in rows:
        row.token, row.first = token, first
        token += len(row.tokens)
        first += row.learned
    return Draw(number, token, first)


def _pass(rows: Sequence[_Row], draw: Draw) -> Pass:
    targets = torch.cat([row.targets for row in rows])
    learned = (targets != IGNORED).nonzero().squeeze(1)
    lengths = torch.tensor([len(row.tokens) for row in rows])
    begins = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    weights = torch.tensor([row.weight for row in rows], dtype=torch.float32)
    return Pass(
        tokens=torch.cat([row.tokens for row in rows]),
        positions=torch.arange(len(targets)) - begins,
        lengths=tuple(lengths.tolist()),
        learned=learned,
        targets=targets[learned],
        weights=weights.repeat_interleave(torch.tensor([row.learned for row in rows])),
        members=tuple(row.member for row in rows),
        draw=draw,
        places=_places([(row.token, len(row.tokens)) for row in rows]),
        learned_places=_places([(row.first, row.learned) for row in rows]),
    )


def _places(ranges: Sequence[tuple[int, int]]) -> Places:
    """Return the indices of some ranges, each given as begin and length."""
    ends = [begin + length for begin, length in ranges]
    if all(end == begin for end, (begin, _) in zip(ends, ranges[1:], strict=False)):
        return slice(ranges[0][0], ends[-1])
    return torch.cat([torch.arange(begin, end) for (begin, _), end in zip(ranges, ends, strict=True)])
