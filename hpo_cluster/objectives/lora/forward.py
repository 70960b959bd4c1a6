"""LitGPT's forward pass with what `GPT.forward` does not offer: masks, positions, and a head in chunks.

`trunk` is `GPT.forward` without the language-model head, and `head` is its end. A test compares both with
`GPT.forward`, and with transformers for each family that is supported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from hpo_cluster.objectives.error_kinds import classify
from hpo_cluster.objectives.lora.memory import free_bytes
from hpo_cluster.objectives.lora.prefixes import Row
from hpo_cluster.trial import ErrorKind

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: Tokens at once on a CPU; more are not faster (measured, see docs/design/evaluation.md).
ON_CPU = 2048
#: Largest number of tokens at once on a GPU.
ON_GPU = 32768
#: Largest number of logits (float32) in memory at once.
LOGITS = 2**25


def takes_masks(config: Any) -> bool:
    """Return whether the attention of a model works with a mask and a key-value cache of our own.

    Sliding windows replace the mask, a cap on the attention's scores adds it as a number, and latent attention keeps
    keys and values of another form.
    """
    return (
        config.sliding_window_size is None
        and config.attention_logit_softcapping is None
        and not config.latent_attention
        and config.rope_indices is None
    )


def trunk(
    model: Any,
    tokens: torch.Tensor,
    positions: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the hidden states (B x T x width) that the language-model head is given.

    Args:
        model: a `litgpt.model.GPT`.
        tokens: B x T.
        positions: of each token in its text, B x T; 0, 1, 2… if None.
        mask: True where a token (third axis) sees a key (fourth axis), B x 1 x T x keys; causal if None.
        slots: where the keys and values of the tokens are kept in the cache of each layer, T; no cache if None.
    """
    if positions is None:
        cos, sin = model.cos[None, : tokens.shape[1]], model.sin[None, : tokens.shape[1]]
    else:
        cos, sin = model.cos[positions], model.sin[positions]
    x = model.transformer.wte(tokens)
    if model.config.scale_embeddings:
        x = x * torch.tensor(model.config.n_embd**0.5, dtype=x.dtype)
    kinds = model.config.rope_indices
    for index, block in enumerate(model.transformer.h):
        turn = (cos, sin) if kinds is None else (cos[..., kinds[index]], sin[..., kinds[index]])
        x = block(x, *turn, mask, slots, None)
    hidden: torch.Tensor = model.transformer.ln_f(x)
    return hidden


def head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return the logits (float32) of hidden states."""
    from litgpt.model import do_softcapping

    logits = model.lm_head(hidden)
    cap = model.config.final_logit_softcapping
    capped: torch.Tensor = logits if cap is None else do_softcapping(logits, cap)
    return capped.float()


def score_rows(
    model: Any, rows: Sequence[Row], continuations: Callable[[int], Sequence[int]]
) -> list[tuple[int, list[float], bool]]:
    """Score the sequences of some rows in one pass; there is one transfer from the device.

    Args:
        model: a `litgpt.model.GPT`.
        rows: of any lengths; padded on the right with tokens that nothing sees.
        continuations: gives the tokens that are scored of a sequence, by its number.

    Returns:
        For each sequence its number, the log-probabilities (nats) of its tokens, and whether each is the likeliest.
    """
    device = model.cos.device
    branches = any(row.branches for row in rows)
    width = max(map(len, rows))
    width += -width % 8 if branches else 0  # GPUs want masks aligned
    tokens = torch.tensor([row.tokens + [0] * (width - len(row)) for row in rows]).to(device)
    positions, mask = None, None
    if branches:
        positions = torch.tensor([row.depths + [0] * (width - len(row)) for row in rows]).to(device)
        ends = torch.tensor([row.ends + list(range(len(row) + 1, width + 1)) for row in rows]).to(device)
        at = torch.arange(width, device=device)
        mask = ((at <= at[:, None]) & (at[:, None] < ends[:, None, :]))[:, None]
    places = [(row, number, where) for row, of_row in enumerate(rows) for number, where in of_row.members]
    index = [row * width + at for row, _, where in places for at in where]
    wanted = [token for _, number, _ in places for token in continuations(number)]
    hidden = trunk(model, tokens, positions, mask).flatten(0, 1)[torch.tensor(index).to(device)]
    log_probs, likeliest = log_probabilities(model, hidden, torch.tensor(wanted).to(device))
    answers, begin = [], 0
    for _, number, where in places:
        part = slice(begin, begin + len(where))
        answers.append((number, log_probs[part], all(likeliest[part])))
        begin += len(where)
    return answers


def log_probabilities(model: Any, hidden: torch.Tensor, wanted: torch.Tensor) -> tuple[list[float], list[bool]]:
    """Return the log-probability of a token at each position (nats), and whether it is the likeliest one.

    Args:
        model: a `litgpt.model.GPT`.
        hidden: positions x width; their logits are made in pieces, so that the memory stays bounded.
        wanted: a token for each position.
    """
    size = max(1, LOGITS // model.config.padded_vocab_size)
    found = []
    for begin in range(0, len(wanted), size):
        tokens = wanted[begin : begin + size]
        logits = head(model, hidden[begin : begin + size])
        likeliest = logits.argmax(-1) == tokens
        log_probs = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]
        found.append(torch.stack([log_probs, likeliest.float()]))
    log_probs, likeliest = torch.cat(found, dim=1).cpu()
    return log_probs.tolist(), likeliest.bool().tolist()


def tokens_that_fit(model: Any) -> int:
    """Return how many tokens may pass through a model at once: a power of two, so that equal devices agree.

    On a GPU, half of the memory that is free is given to the tensors of one layer and of the keys and values.
    """
    device = model.cos.device
    if device.type != "cuda":
        return ON_CPU
    config = model.config
    of_layer = 10 * config.n_embd + 3 * (config.n_head + 2 * config.n_query_groups) * config.head_size
    of_layer += 3 * (config.intermediate_size or 4 * config.n_embd)
    kept = 2 * config.n_layer * config.n_query_groups * config.head_size
    size: int = model.transformer.wte.weight.element_size()  # an adapter may have another dtype
    fitting = int((free_bytes(device) / 2 - 3 * 4 * LOGITS) / (size * (of_layer + kept)))
    return min(ON_GPU, 1 << max(256, fitting).bit_length() - 1)


def in_batches(
    items: Sequence[Item],
    length: Callable[[Item], int],
    tokens: int,
    answer: Callable[[Sequence[Item]], Answer],
) -> Iterator[tuple[Answer, int]]:
    """Process items in batches of a number of tokens; halve it permanently if a batch does not fit into memory.

    Args:
        items: the longest first, so that if memory runs out, it does so in the first batch.
        length: tokens of an item.
        tokens: size of a batch, including padding; a longer item is a batch of its own.
        answer: processes one batch.

    Yields:
        The result of each batch, and the current number of tokens.
    """
    begin = 0
    while begin < len(items):
        count = max(1, tokens // max(1, length(items[begin])))
        batch = items[begin : begin + count]
        try:
            answered = answer(batch)
        except (RuntimeError, MemoryError) as error:
            if classify(error) != ErrorKind.OUT_OF_MEMORY or len(batch) == 1:
                raise
            tokens = len(batch) * length(batch[0]) // 2
        else:
            begin += len(batch)
            yield answered, tokens
            continue
        log.warning("out of memory while scoring; continuing with %d tokens at once", tokens)
        if torch.cuda.is_available():  # not in the except block: there the error still holds tensors
            torch.cuda.empty_cache()
