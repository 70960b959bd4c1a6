"""Greedy decoding with a LitGPT module; the texts equal those of lm-eval's `HFLM` on the converted checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hpo_cluster.objectives.lora.forward import head, takes_masks, trunk

#: Largest number of tokens to generate if a task does not set one; lm-eval's default.
MAX_GEN_TOKS = 256

#: Options in a task's ``generation_kwargs`` that do not affect greedy decoding.
WITHOUT_EFFECT = ("do_sample", "temperature", "top_p", "top_k", "use_cache")


@dataclass(frozen=True)
class Decoding:
    """Settings of greedy decoding.

    Attributes:
        until: a text ends before the first of these.
        max_gen_toks: largest number of tokens to generate.
    """

    until: tuple[str, ...]
    max_gen_toks: int

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Decoding:
        """Read the ``generation_kwargs`` of a task.

        Raises:
            ValueError: if options ask for something other than greedy decoding; names them.
        """
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        known = dict(normalize_gen_kwargs(dict(options), MAX_GEN_TOKS))
        until = handle_stop_sequences(known.pop("until"), None)
        max_gen_toks = known.pop("max_gen_toks")
        others = [f"{name}={value}" for name, value in known.items() if name not in WITHOUT_EFFECT]
        if known["do_sample"]:
            others = [f"{name}={options[name]}" for name in ("do_sample", "temperature") if name in options] + others
        if others:
            raise ValueError(f"generation_kwargs {', '.join(others)}")
        return cls(tuple(stop for stop in until if stop), max_gen_toks)

    def cut(self, text: str) -> str:
        """Return a text up to the first of the strings that end it."""
        for stop in self.until:
            text = text.partition(stop)[0]
        return text


def generate(
    model: Any, tokenizer: Any, contexts: Sequence[Sequence[int]], decoding: Decoding, eot_token_id: int
) -> list[str]:
    """Generate a text for each context, in one batch.

    Args:
        model: a `litgpt.model.GPT`.
        tokenizer: of Hugging Face.
        contexts: tokens; each leaves room for `decoding.max_gen_toks` more in the context window.
        decoding: when to stop.
        eot_token_id: a text ends before this token.
    """

    made: list[list[int]] = [[] for _ in contexts]
    going = set(range(len(contexts)))
    steps = _cached if takes_masks(model.config) else _uncached
    with steps(model, contexts, decoding.max_gen_toks) as step:
        tokens: torch.Tensor | None = None
        for _ in range(decoding.max_gen_toks):
            tokens = step(tokens)
            for row, token in enumerate(tokens.tolist()):  # the one transfer of a step
                if row in going:
                    made[row].append(token)
                    if token == eot_token_id or _stopped(tokenizer, made[row], decoding.until):
                        going.remove(row)
            if not going:
                break
    return [decoding.cut(_text(tokenizer, tokens, eot_token_id)) for tokens in made]


def _text(tokenizer: Any, tokens: list[int], eot_token_id: int) -> str:
    end = tokens.index(eot_token_id) if eot_token_id in tokens else len(tokens)
    return str(tokenizer.decode(tokens[:end], skip_special_tokens=True))


def _stopped(tokenizer: Any, tokens: list[int], until: Sequence[str]) -> bool:
    """Return whether a text contains a stop string; decodes the last tokens first, and all of them only on a match."""
    if not until:
        return False
    longest = max(len(stop.encode()) for stop in until)
    for part in (tokens[-longest - 1 :], tokens):
        text = tokenizer.decode(part, skip_special_tokens=True)
        if not any(stop in text for stop in until):
            return False
    return True


@contextmanager
def _cached(model: Any, contexts: Sequence[Sequence[int]], more: int) -> Iterator[Any]:
    """Yield a function that returns the next tokens for the last ones, with a key-value cache.

    Contexts are padded on the left, so that all of them write the same slots of the cache. A mask hides the padding,
    and positions begin after it.
    """
    device = model.cos.device
    width = max(map(len, contexts))
    length = width + more
    for block in model.transformer.h:
        block.attn.kv_cache = block.attn.build_kv_cache(
            len(contexts), length, model.rope_cache_length(), device, model.transformer.wte.weight.dtype
        )
    begins = torch.tensor([width - len(context) for context in contexts]).to(device)[:, None]
    every = torch.arange(length, device=device)
    done = 0

    def step(last: torch.Tensor | None) -> torch.Tensor:
        nonlocal done
        if last is None:
            tokens = torch.tensor([[0] * (width - len(context)) + list(context) for context in contexts]).to(device)
        else:
            tokens = last[:, None]
        slots = torch.arange(done, done + tokens.shape[1], device=device)
        done += tokens.shape[1]
        positions = (slots - begins).clamp(min=0)
        seen = (every <= slots[:, None]) & ((every >= begins[:, :, None]) | (every == slots[:, None]))
        hidden = trunk(model, tokens, positions, seen[:, None], slots)
        return head(model, hidden[:, -1]).argmax(-1)

    try:
        yield step
    finally:
        model.clear_kv_cache()


@contextmanager
def _uncached(model: Any, contexts: Sequence[Sequence[int]], _more: int) -> Iterator[Any]:
    """Yield a function that returns the next tokens for the last ones, without a cache."""
    device = model.cos.device
    texts = [list(context) for context in contexts]

    def step(last: torch.Tensor | None) -> torch.Tensor:
        if last is not None:
            for text, token in zip(texts, last.tolist(), strict=True):
                text.append(token)
        width = max(map(len, texts))
        tokens = torch.tensor([text + [0] * (width - len(text)) for text in texts]).to(device)
        ends = torch.tensor([len(text) - 1 for text in texts]).to(device)
        hidden = trunk(model, tokens)
        return head(model, hidden[torch.arange(len(texts), device=device), ends]).argmax(-1)

    yield step
