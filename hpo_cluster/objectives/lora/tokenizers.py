"""The two tokenizers of a checkpoint: LitGPT's prepares the training data, that of transformers the scored texts.

LitGPT decides by the folder's name whether a text begins with the BOS token: a Llama 3 tokenizer gets one in
``Llama-3.2-1B`` and none in ``my-llama``. Here the tokenizer of transformers decides, in training as in scoring.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

#: Texts that training and scoring must split into the same tokens.
SAMPLES = ("a", "The quick brown fox, 12 times.", " leading space\nand a new line", "naïve – 東京 🙂")


class Tokenizers:
    """Loads each of the two when it is first used, and keeps it: a vocabulary of 128 000 takes a second."""

    def __init__(self, checkpoint_dir: Path) -> None:
        self.checkpoint_dir = checkpoint_dir

    @functools.cached_property
    def hugging_face(self) -> Any:
        """The tokenizer of transformers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.checkpoint_dir)

    @functools.cached_property
    def litgpt(self) -> Any:
        """The tokenizer of LitGPT, with the first and the last token that transformers uses."""
        from litgpt.tokenizer import Tokenizer

        tokenizer = Tokenizer(self.checkpoint_dir)
        tokenizer.use_bos = self.adds_bos
        tokenizer.bos_id, tokenizer.eos_id = self.hugging_face.bos_token_id, self.hugging_face.eos_token_id
        return tokenizer

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer of transformers begins a text with its BOS token."""
        return adds_bos(self.hugging_face)

    @functools.cached_property
    def litgpt_adds_bos(self) -> bool:
        """Whether LitGPT by its own rule would begin a text with the BOS token."""
        from litgpt.tokenizer import Tokenizer

        return bool(Tokenizer.check_if_bos_token_used(self.litgpt, self.checkpoint_dir))

    def difference(self) -> str | None:
        """Return how training and scoring would split a text into different tokens; None if they agree.

        A prompt is encoded as transformers encodes a text; an answer has no special token but EOS at its end.
        """
        eos = [self.hugging_face.eos_token_id]
        for text in SAMPLES:
            prompt, answer = self.litgpt.encode(text), self.litgpt.encode(text, bos=False, eos=True)
            for what, seen, wanted in (
                ("", prompt, self.hugging_face.encode(text)),
                (" without special tokens", answer, self.hugging_face.encode(text, add_special_tokens=False) + eos),
            ):
                if seen.tolist() != wanted:
                    return f"LitGPT reads {text!r}{what} as {seen.tolist()}, not as {wanted}"
        return None


def adds_bos(tokenizer: Any) -> bool:
    """Return whether a tokenizer of transformers begins a text with its BOS token."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode(SAMPLES[0])[:1] == [bos]
