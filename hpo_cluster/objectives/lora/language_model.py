"""An lm-eval model that wraps a LitGPT module in memory: no conversion, no files, no second copy.

Only the forward pass differs from lm-eval's `HFLM`. Tokens, windows, grouping and scores are the same, so the
log-likelihoods equal those of the converted checkpoint. Two optimisations do not affect results: the language-model
head (a fifth of the arithmetic of a 1B Llama) runs on scored positions only, and requests that differ only in their
last token (the letters of a multiple-choice question) share one forward pass.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import Collator, has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker
from hpo_cluster.trial import ErrorKind

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)

#: A request of lm-eval: the strings (key of its cache), the tokens of the context, the tokens of the continuation.
TokenRequest = tuple[tuple[str, str], list[int], list[int]]


class LitLM(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """An lm-eval model that scores continuations with a `litgpt.model.GPT` or `litgpt.lora.GPT`.

    Args:
        model: the module, on its device. It is put in evaluation mode and set to its full context window, because
            training sets it to the length of the longest training example.
        tokenizer: the Hugging Face tokenizer of the checkpoint, as in `HFLM`. LitGPT's tokenizer would decide about
            the first token by the name of the folder.
        batch_size: sequences in one forward pass.
        precision: returns the context manager of a forward pass (autocast, for instance).
        on_batch: called after each forward pass with (requests answered, total requests).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int = 64,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.model.max_seq_length = model.config.block_size
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length: int = model.config.block_size
        self._device: torch.device = next(model.parameters()).device
        self._precision = precision
        self._on_batch = on_batch
        self._prefix = tokenizer.decode(self.prefix_token_id)
        self._encode = functools.lru_cache(maxsize=64)(self._encode_once)  # choices of a question share its text

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

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text, without a second BOS token if the text begins with one."""
        return list(self._encode(string, add_special_tokens))

    def _encode_once(self, string: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        if add_special_tokens is None and has_bos_prefix(string, self._prefix):
            add_special_tokens = False
        flags = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return tuple(self.tokenizer.encode(string, **flags))

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood (nats) of each continuation and whether it is greedy, without a progress bar."""
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

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
        # Longest first: if memory runs out, it does so in the first batch. Groups differ in their last token only.
        collator = Collator(
            requests,
            sort_fn=lambda request: (-len(request[1] + request[2]), tuple(request[1] + request[2])),
            group_by="contexts",
            group_fn=lambda request: request[1] + request[2][:-1],
        )
        answers: list[tuple[float, bool]] = []
        for batch in collator.get_batched(n=self.batch_size):
            rows = [(context + continuation)[-(self.max_length + 1) :][:-1] for _, context, continuation in batch]
            log_probs = self._fitting_log_probs(rows, [len(continuation) for _, _, continuation in batch])
            for (strings, context, continuation), scores in zip(batch, log_probs, strict=True):
                for key, tokens, _ in collator.get_cache(
                    req_str=strings, cxt_toks=context, cont_toks=continuation, logits=scores.unsqueeze(0)
                ):
                    # Members of a group may split context and continuation at different points, so tails differ.
                    answer = _score(scores[-len(tokens) :], tokens)
                    answers.append(answer)
                    if key is not None:
                        self.cache_hook.add_partial("loglikelihood", key, answer)
            if self._on_batch is not None:
                self._on_batch(len(answers), len(requests))
        return list(collator.get_original(answers))

    def _fitting_log_probs(self, rows: Sequence[Sequence[int]], tails: Sequence[int]) -> list[torch.Tensor]:
        """Call `_tail_log_probs` on batches that fit into memory; halve `batch_size` permanently if one does not."""
        done: list[torch.Tensor] = []
        while len(done) < len(rows):
            part = slice(len(done), len(done) + self.batch_size)
            try:
                done += self._tail_log_probs(rows[part], tails[part])
            except (RuntimeError, MemoryError) as error:
                if worker.classify(error) != ErrorKind.OUT_OF_MEMORY or len(rows[part]) == 1:
                    raise
                self.batch_size = len(rows[part]) // 2
            else:
                continue
            log.warning("out of memory while scoring; continuing with batches of %d", self.batch_size)
            if self._device.type == "cuda":  # not in the except block: there the error still holds tensors
                torch.cuda.empty_cache()
        return done

    @torch.inference_mode()
    def _tail_log_probs(self, rows: Sequence[Sequence[int]], tails: Sequence[int]) -> list[torch.Tensor]:
        """Return the log-probabilities at the last positions of each row.

        Args:
            rows: token rows of any lengths; padded on the right, which does not affect a causal model.
            tails: number of positions to score at the end of each row.

        Returns:
            For each row a float32 tensor (tail, padded vocabulary).
        """
        width = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        positions = [
            index * width + position
            for index, (row, tail) in enumerate(zip(rows, tails, strict=True))
            for position in range(len(row) - tail, len(row))
        ]
        index = torch.tensor(positions).to(self._device)

        def keep_scored(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            return (inputs[0].flatten(0, 1)[index].unsqueeze(0),)

        hook = self.model.lm_head.register_forward_pre_hook(keep_scored)
        try:
            with self._precision():
                logits = self.model(tokens.to(self._device))
        finally:
            hook.remove()
        return list(torch.split(torch.log_softmax(logits[0].float(), dim=-1), list(tails)))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood (nats) of each whole text, in disjoint windows."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(("", text), *make_disjoint_window(window)) for window in windows]
            totals.append(math.fsum(score for score, _ in self._loglikelihood_tokens(parts)))
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Raise an error: this model scores log-likelihoods only.

        Raises:
            NotImplementedError: always; it says which setting to use instead.
        """
        task = requests[0].task_name if requests else "?"
        raise NotImplementedError(
            f"task {task} asks the model to generate text, but evaluation=in_memory scores log-likelihoods only; "
            "set objective.evaluation=litgpt_cli"
        )


def _score(log_probs: torch.Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    """Return the sum of the log-probabilities of `tokens`, and whether each is the largest of its row."""
    wanted = torch.tensor(tokens, device=log_probs.device)
    total = float(log_probs.gather(1, wanted[:, None]).sum())
    if not math.isfinite(total):
        raise AttemptError(ErrorKind.DIVERGED, f"a log-likelihood is {total}: the weights are no longer finite")
    return total, bool((log_probs.argmax(-1) == wanted).all())
