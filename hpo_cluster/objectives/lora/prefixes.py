"""Token sequences that share beginnings, laid out so that each shared beginning is computed once.

A row is a tree of sequences, written one branch after the other: the context, the first continuation, the second one,
and so on. A token sees the tokens before it on its own path from the root and no others; its position is its depth. So
the model computes for each sequence what it would compute for that sequence alone, while the context of a
multiple-choice question, or the examples that all questions of a subject begin with, pass through the model once.

In depth-first order, the subtree of a token is a range that begins with it. One number a token is therefore all that a
mask is made of: token i sees token j if ``j <= i < ends[j]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

#: Longest row that is made for the sake of sharing alone: attention costs the square of it.
LONGEST = 2048


@dataclass(frozen=True)
class Scored:
    """A sequence of tokens whose last `tail` positions are scored."""

    tokens: list[int]
    tail: int


@dataclass
class Row:
    """Sequences that pass through the model together.

    Attributes:
        tokens: of all sequences, in depth-first order; a shared beginning once.
        depths: position of each token in its own sequence.
        ends: where the subtree of each token ends (exclusive).
        members: for each sequence its number and where its scored positions are.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    members: list[tuple[int, list[int]]] = field(default_factory=list)
    _path: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> bool:
        """Whether a token must not see all tokens before it."""
        return self.depths[-1] != len(self.depths) - 1

    def saves(self, shared: int, length: int, pairs: float) -> bool:
        """Return whether a sequence of `length` tokens is cheaper in this row than in a row of its own.

        Args:
            shared: tokens that it shares with the last sequence of this row.
            length: tokens of the sequence.
            pairs: pairs of tokens in attention that cost as much as one token in the rest of the model.
        """
        new = length - shared
        if new == 0 or shared == len(self):  # nothing to add, or a longer version of the only sequence
            return True
        if not pairs:
            return False
        row = len(self) + new
        return row <= max(LONGEST, 2 * length) and shared * pairs > row**2 - len(self) ** 2 - length**2

    def add(self, number: int, sequence: Scored, shared: int) -> None:
        """Add a sequence, the first `shared` tokens of which are those of the sequence added last."""
        begin = len(self)
        self._end(shared)
        self._path += range(begin, begin + len(sequence.tokens) - shared)
        self.tokens += sequence.tokens[shared:]
        self.depths += range(shared, len(sequence.tokens))
        self.ends += [0] * (len(self.tokens) - begin)
        self.members.append((number, self._path[len(self._path) - sequence.tail :]))

    def close(self) -> None:
        """Set the ends that are still open; to be called after the last `add`."""
        self._end(0)

    def _end(self, shared: int) -> None:
        for at in self._path[shared:]:
            self.ends[at] = len(self)
        del self._path[shared:]


def rows_of(sequences: Sequence[Scored], pairs: float) -> list[Row]:
    """Lay sequences out in rows, the longest row first.

    Args:
        sequences: in any order; equal ones share everything.
        pairs: see `Row.saves`; 0 for a model whose attention takes no mask: rows then have no branches.
    """
    rows: list[Row] = []
    before: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda number: sequences[number].tokens):
        tokens = sequences[number].tokens
        shared = shared_length(before, tokens)
        if not rows or not rows[-1].saves(shared, len(tokens), pairs):
            shared = 0
            rows.append(Row())
        rows[-1].add(number, sequences[number], shared)
        before = tokens
    for row in rows:
        row.close()
    return sorted(rows, key=len, reverse=True)


def shared_length(one: list[int], other: list[int]) -> int:
    """Return how many first tokens two sequences have in common."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(at for at in range(length) if one[at] != other[at])
