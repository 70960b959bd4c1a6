"""An lm-eval model over a LitGPT module that is already in memory: no conversion, no file, no second load.

Only the forward pass differs from lm-eval's own `HFLM`; tokens, windows and scores are the same, so the log-likelihoods
are those of the converted checkpoint, and so are the generated texts. What is saved changes no result: what requests
begin with in common is computed once (`prefixes`), the language-model head (a fifth of the arithmetic of a 1B Llama)
runs on scored positions only, and a batch is read from the device once (`forward`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora.forward import in_batches, score_rows, takes_masks, tokens_that_fit
from hpo_cluster.objectives.lora.generation import MAX_GEN_TOKS, Decoding, generate
from hpo_cluster.objectives.lora.prefixes import Row, Scored, rows_of
from hpo_cluster.trial import ErrorKind

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)

#: What lm-eval asks for: the strings (key of its cache), the tokens of the context, the tokens of the continuation.
TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


class LitLM(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """Scores continuations, and generates them, with a `litgpt.model.GPT` or `litgpt.lora.GPT` module.

    Args:
        model: the module, on its device; put in evaluation mode, and given its whole context window, since training
            leaves it with the length of the longest training example.
        tokenizer: the Hugging Face tokenizer of the checkpoint, as `HFLM` uses. LitGPT's own decides about the first
            token from the name of the folder.
        tokens_at_once: tokens in one forward pass, padding included; what fits the memory if None.
        precision: makes the context of each forward pass (autocast, for instance).
        on_batch: called after each forward pass with (requests answered, requests in all).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tokens_at_once: int | None = None,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on_batch: Callable[[int, int], None] | None = None,
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
        self._prefix = tokenizer.decode(self.prefix_token_id)
        self._encoded: dict[str, list[int]] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
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
        """Token that stands for an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    # --- tokens ------------------------------------------------------------------------------------------------------

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; a first token that the text spells out already is not added again."""
        if add_special_tokens is None:
            if string in self._encoded:
                return self._encoded[string]
            if has_bos_prefix(string, self._prefix):
                add_special_tokens = False
        flags = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **flags))

    def _encode_all(self, texts: Iterable[str]) -> None:
        """Let `tok_encode` know texts that it will be asked for: many at once take a third of the time."""
        plain = [text for text in dict.fromkeys(texts) if not has_bos_prefix(text, self._prefix)]
        self._encoded = dict(zip(plain, self.tokenizer(plain)["input_ids"], strict=True)) if plain else {}

    # --- scores ------------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-likelihood (nats) of each continuation, and whether it is greedy; no progress bar in a job's log."""
        pairs = [request.args for request in requests if request.args[0]]
        contexts = (context.rstrip() or context for context, _ in pairs)
        self._encode_all(text for texts in (contexts, (a + b for a, b in pairs)) for text in texts)
        answers = list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))
        self._encoded = {}
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood (nats) of each whole text, in windows that do not overlap."""
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

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood (nats) of each continuation, and whether it is the model's most likely one.

        Raises:
            ValueError: a continuation that is empty or longer than the context window.
            AttemptError: of kind ``diverged``, for a log-likelihood that is NaN or infinite.
        """
        for _strings, _context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens cannot be scored: 1 to {self.max_length} can"
                )
        sequences = [
            Scored([*context, *continuation][-(self.max_length + 1) :][:-1], len(continuation))
            for _, context, continuation in requests
        ]
        answers: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
        done = 0
        rows = rows_of(sequences, self._pairs)
        for scored, fitting in in_batches(rows, len, self.tokens_at_once, self._score(requests)):
            self.tokens_at_once = fitting
            for number, log_probs, greedy in scored:
                answers[number] = (_total(log_probs), greedy)
                if (key := requests[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", key, answers[number])
            done += len(scored)
            self._tell(done, len(requests))
        return answers

    @property
    def _pairs(self) -> float:
        """How many pairs of tokens in attention cost as much as one token in the rest of the model; see `Row.saves`.

        By count of multiplications it is six times the width, but attention with a mask is slower than a product of
        matrices.
        """
        return 2.0 * self.model.config.n_embd if takes_masks(self.model.config) else 0.0

    def _score(
        self, requests: Sequence[TokenRequest]
    ) -> Callable[[Sequence[Row]], list[tuple[int, list[float], bool]]]:
        def score(rows: Sequence[Row]) -> list[tuple[int, list[float], bool]]:
            with self._precision():
                return score_rows(self.model, rows, lambda number: requests[number][2])

        return score

    def _tell(self, done: int, total: int) -> None:
        if self._on_batch is not None:
            self._on_batch(done, total)

    # --- texts -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a text for each request, the likeliest token each time, as long as its task says.

        Raises:
            ValueError: for a request that samples, or that leaves no room for a context.
        """
        texts = [""] * len(requests)
        done = 0
        kinds: dict[Decoding, list[tuple[int, list[int]]]] = {}
        for number, request in enumerate(requests):
            context, options = request.args
            decoding = Decoding.of(options)
            room = self.max_length - decoding.max_gen_toks
            if room < 1:
                raise ValueError(f"max_gen_toks={decoding.max_gen_toks} leaves no room in {self.max_length} tokens")
            tokens = self.tok_encode(context)[-room:] or [self.prefix_token_id]
            kinds.setdefault(decoding, []).append((number, tokens))
        for decoding, members in kinds.items():
            more = decoding.max_gen_toks

            def answer(batch: Sequence[tuple[int, list[int]]], decoding: Decoding = decoding) -> list[tuple[int, str]]:
                with self._precision():
                    contexts = [tokens for _, tokens in batch]
                    made = generate(self.model, self.tokenizer, contexts, decoding, self.eot_token_id)
                return [(number, text) for (number, _), text in zip(batch, made, strict=True)]

            def length(member: tuple[int, list[int]], more: int = more) -> int:
                return len(member[1]) + more

            members.sort(key=length, reverse=True)
            for made, fitting in in_batches(members, length, self.tokens_at_once, answer):
                self.tokens_at_once = fitting
                for number, text in made:
                    texts[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
                done += len(made)
                self._tell(done, len(requests))
        return texts

    @property
    def max_gen_toks(self) -> int:
        """Tokens that are generated for a task that names no number."""
        return MAX_GEN_TOKS


def _total(log_probs: Sequence[float]) -> float:
    """Return the sum of log-probabilities.

    Raises:
        AttemptError: of kind ``diverged``, for a sum that is no finite number.
    """
    total = math.fsum(log_probs) if all(map(math.isfinite, log_probs)) else sum(log_probs)
    if not math.isfinite(total):
        raise AttemptError(ErrorKind.DIVERGED, f"a log-likelihood is {total}: the weights are no longer finite numbers")
    return total
