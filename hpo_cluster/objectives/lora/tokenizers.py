"""The two tokenizers of a checkpoint: LitGPT's prepares the training data, that of transformers the scored texts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any


class Tokenizers:
    """Loads each of the two when it is first used, and keeps it: a vocabulary of 128 000 takes a second.

    They are two, since they disagree about the first token: LitGPT decides on it by the folder's name.
    """

    def __init__(self, checkpoint_dir: Path) -> None:
        self.checkpoint_dir = checkpoint_dir

    @functools.cached_property
    def hugging_face(self) -> Any:
        """The tokenizer of transformers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.checkpoint_dir)

    @functools.cached_property
    def litgpt(self) -> Any:
        """The tokenizer of LitGPT."""
        from litgpt.tokenizer import Tokenizer

        return Tokenizer(self.checkpoint_dir)
