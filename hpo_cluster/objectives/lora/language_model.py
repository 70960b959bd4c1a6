"""An lm-eval model that wraps a LitGPT module in memory: no conversion, no files, no second copy.

Only the forward pass differs from lm-eval's `HFLM`. Tokens, windows and scores are the same, so log-likelihoods and
generated texts equal those of the converted checkpoint. Three optimisations do not affect results: shared beginnings of
requests are computed once (`prefixes`), the language-model head (a fifth of the arithmetic of a 1B Llama) runs on
scored positions only, and each batch is read from the device in one transfer (`forward`).

With several ranks, lm-eval runs on the first one only. It deals rows and texts to all ranks, the others answer theirs
(`help`), and the answers come back together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora.forward import Item, in_batches, score_rows, takes_masks, tokens_that_fit
from hpo_cluster.objectives.lora.generation import MAX_GEN_TOKS, Decoding, generate
from hpo_cluster.objectives.lora.prefixes import Row, Scored, rows_of
from hpo_cluster.objectives.lora.ranks import Ranks, deal
from hpo_cluster.trial import ErrorKind

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)

#: A request of lm-eval: the strings (key of its cache), the tokens of the context, the tokens of the continuation.
TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]

#: A row to score: with the row, the continuation of each of its sequences, by number.
Question = tuple[Row, dict[int, list[int]]]

#: A context to go on from: its number and its tokens.
Context = tuple[int, list[int]]


@dataclass(frozen=True)
class Part:
    """What one rank has to answer.

    Attributes:
        items: rows to score (`Question`), or contexts to go on from (`Context`); the longest first.
        decoding: how to go on from contexts; None for rows.
        done: requests that all ranks have answered before.
        asked: requests that are dealt to all ranks with this part.
        total: number of all requests.
    """

    items: Sequence[Any]
    decoding: Decoding | None
    done: int
    asked: int
    total: int


class LitLM(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """An lm-eval model that scores continuations, and generates them, with a `litgpt.model.GPT` or `litgpt.lora.GPT`.

    Args:
        model: the module, on its device. It is put in evaluation mode and set to its full context window, because
            training sets it to the length of the longest training example.
        tokenizer: the Hugging Face tokenizer of the checkpoint, as in `HFLM`. LitGPT's tokenizer would decide about
            the first token by the name of the folder.
        tokens_at_once: tokens in one forward pass, including padding; None: as many as fit into memory.
        precision: returns the context manager of a forward pass (autocast, for instance).
        on_batch: called after each forward pass with (requests answered, total requests).
        ranks: the ranks that share the requests. All of them make this object; the first one is given to lm-eval, and
            calls `dismiss` at the end, while the others `help`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tokens_at_once: int | None = None,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on_batch: Callable[[int, int], None] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.model.max_seq_length = model.config.block_size
        self.tokenizer = tokenizer
        self.tokens_at_once = tokens_at_once or tokens_that_fit(model)
        self.max_length: int = model.config.block_size
        self._device: torch.device = next(model.parameters()).device
        self._precision = precision
        self._on_batch = on_batch
        self._ranks = ranks or Ranks()
        self._prefix = tokenizer.decode(self.prefix_token_id)
        self._encoded: dict[str, list[int]] = {}

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._device

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval caches requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token used in place of an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    # --- tokens ------------------------------------------------------------------------------------------------------

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text, without a second BOS token if the text begins with one."""
        if add_special_tokens is None:
            if string in self._encoded:
                return self._encoded[string]
            if has_bos_prefix(string, self._prefix):
                add_special_tokens = False
        flags = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **flags))

    def _encode_all(self, texts: Iterable[str]) -> None:
        """Tokenize texts in one call, which takes half the time, and keep the tokens for `tok_encode`."""
        plain = [text for text in dict.fromkeys(texts) if not has_bos_prefix(text, self._prefix)]
        self._encoded = dict(zip(plain, self.tokenizer(plain)["input_ids"], strict=True)) if plain else {}

    # --- scores ------------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood (nats) of each continuation and whether it is greedy, without a progress bar."""
        pairs = [request.args for request in requests if request.args[0]]
        contexts = (context.rstrip() or context for context, _ in pairs)
        self._encode_all(text for texts in (contexts, (a + b for a, b in pairs)) for text in texts)
        answers = list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))
        self._encoded = {}
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood (nats) of each whole text, in disjoint windows."""
        parts: list[TokenRequest] = []
        ends = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts += [(None, *make_disjoint_window(window)) for window in windows]
            ends.append(len(parts))
        scores = [score for score, _ in self._loglikelihood_tokens(parts)]
        return [math.fsum(scores[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood (nats) of each continuation, and whether it is the most likely one.

        Raises:
            ValueError: if a continuation is empty or longer than the context window.
            AttemptError: of kind ``diverged``, if a log-likelihood is NaN or infinite.
        """
        for _strings, _context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens cannot be scored; accepted: 1 to {self.max_length}"
                )
        sequences = [
            Scored([*context, *continuation][-(self.max_length + 1) :][:-1], len(continuation))
            for _, context, continuation in requests
        ]
        rows = rows_of(sequences, self._pairs)
        parts = [
            Part([(row, _wanted(row, requests)) for row in share], None, 0, len(requests), len(requests))
            for share in self._dealt(rows, len)
        ]
        answers: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
        for number, score, greedy in self._on_all_ranks(parts):
            answers[number] = (score, greedy)
            if (key := requests[number][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", key, answers[number])
        return answers

    @property
    def _pairs(self) -> float:
        """Number of query-key pairs that cost as much as one token in the rest of the model; see `Row.saves`.

        By arithmetic it is six times the width, but attention with a mask is slower than a matrix product.
        """
        return 2.0 * self.model.config.n_embd if takes_masks(self.model.config) else 0.0

    def _score(self, questions: Sequence[Question]) -> list[tuple[int, float, bool]]:
        """Return number, log-likelihood and whether it is the most likely one of each sequence in some rows."""
        rows = [row for row, _ in questions]
        wanted = {number: tokens for _, of_row in questions for number, tokens in of_row.items()}
        with torch.inference_mode(), self._precision():
            scored = score_rows(self.model, rows, wanted.__getitem__)
        return [(number, _total(log_probs), greedy) for number, log_probs, greedy in scored]

    # --- texts -------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a text for each request by greedy decoding.

        Raises:
            ValueError: if a request asks for sampling, or leaves no room for a context.
        """
        texts = [""] * len(requests)
        done = 0
        kinds: dict[Decoding, list[Context]] = {}
        for number, request in enumerate(requests):
            context, options = request.args
            decoding = Decoding.of(options)
            room = self.max_length - decoding.max_gen_toks
            if room < 1:
                raise ValueError(f"max_gen_toks={decoding.max_gen_toks} leaves no room in {self.max_length} tokens")
            tokens = self.tok_encode(context)[-room:] or [self.prefix_token_id]
            kinds.setdefault(decoding, []).append((number, tokens))
        for decoding, members in kinds.items():
            members.sort(key=lambda member: len(member[1]), reverse=True)
            parts = [
                Part(share, decoding, done, len(members), len(requests))
                for share in self._dealt(members, partial(_length, decoding))
            ]
            for number, text in self._on_all_ranks(parts):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
            done += len(members)
        return texts

    def _generate(self, decoding: Decoding, members: Sequence[Context]) -> list[tuple[int, str]]:
        """Return number and text of each context."""
        with torch.inference_mode(), self._precision():
            contexts = [tokens for _, tokens in members]
            made = generate(self.model, self.tokenizer, contexts, decoding, self.eot_token_id)
        return [(number, text) for (number, _), text in zip(members, made, strict=True)]

    @property
    def max_gen_toks(self) -> int:
        """Largest number of tokens to generate if a task does not set one."""
        return MAX_GEN_TOKS

    # --- ranks -------------------------------------------------------------------------------------------------------

    def help(self) -> None:
        """Answer what the first rank deals to this one, until it calls `dismiss`."""
        while part := self._received():
            self._ranks.gather(self._answer(part))

    def dismiss(self) -> None:
        """Let the other ranks return from `help`."""
        self._ranks.scatter([None] * self._ranks.count)

    def _received(self) -> Part | None:
        return self._ranks.scatter(None)

    def _dealt(self, items: Sequence[Item], length: Callable[[Item], int]) -> list[list[Item]]:
        """Return the items of each rank, in their order."""
        shares = deal([length(item) for item in items], self._ranks.count)
        return [[items[number] for number in share] for share in shares]

    def _on_all_ranks(self, parts: Sequence[Part]) -> list[Any]:
        """Let each rank answer its part; return the answers to all of them."""
        answers = self._ranks.gather(self._answer(self._ranks.scatter(parts)))
        return [answer for of_rank in answers for answer in of_rank]

    def _answer(self, part: Part) -> list[Any]:
        """Answer one part in batches."""
        length: Callable[[Any], int]
        answer: Callable[[Sequence[Any]], list[Any]]
        if part.decoding is None:
            length, answer = _row_length, self._score
            mine = sum(len(row.members) for row, _ in part.items)
        else:
            length, answer = partial(_length, part.decoding), partial(self._generate, part.decoding)
            mine = len(part.items)
        answers: list[Any] = []
        batches: Iterator[tuple[list[Any], int]] = in_batches(part.items, length, self.tokens_at_once, answer)
        for made, fitting in batches:
            self.tokens_at_once = fitting
            answers += made
            if self._on_batch is not None:
                self._on_batch(part.done + part.asked * len(answers) // mine, part.total)
        return answers


def _row_length(question: Question) -> int:
    return len(question[0])


def _length(decoding: Decoding, context: Context) -> int:
    return len(context[1]) + decoding.max_gen_toks


def _wanted(row: Row, requests: Sequence[TokenRequest]) -> dict[int, list[int]]:
    """Return the tokens to score in a row, by the number of their request."""
    return {number: requests[number][2] for number, _ in row.members}


def _total(log_probs: Sequence[float]) -> float:
    """Return the sum of log-probabilities.

    Raises:
        AttemptError: of kind ``diverged``, if the sum is not finite.
    """
    total = math.fsum(log_probs) if all(map(math.isfinite, log_probs)) else sum(log_probs)
    if not math.isfinite(total):
        raise AttemptError(ErrorKind.DIVERGED, f"a log-likelihood is {total}: the weights are no longer finite")
    return total
