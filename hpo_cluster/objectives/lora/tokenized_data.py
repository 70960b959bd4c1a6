"""Tokenize the training data once for all jobs of a campaign, and keep the tokens on shared storage.

An entry is one file, named by a digest of all that its contents depend on: the data files, the tokenizer's files, the
prompt style, the column names, and the versions of the packages that tokenize. Rows are kept whole and in their order,
with the length of their prompts, so that one entry serves every maximal length, every split and `mask_prompt` or not.

An entry is published whole or not at all. Jobs that begin together may each make it; the last one replaces the others'
with the same. An entry that cannot be read is made again. Entries may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpo_cluster.objectives.lora.instruction_data import files_of, read_data
from hpo_cluster.objectives.lora.settings import DataSettings
from hpo_cluster.objectives.lora.tokenizers import Tokenizers
from hpo_cluster.record.files import replace

log = logging.getLogger(__name__)

#: Changes when entries are written in another way.
FORMAT = 1

#: Label of a token that is not learned.
IGNORED = -100

#: Data files smaller than this in all are tokenized by each job: it takes a second.
CACHED_FROM_BYTES = 1_000_000

#: Files that the tokenizer of LitGPT reads.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Rows:
    """Tokenized rows, one after another.

    Attributes:
        tokens: (tokens, int32) of all rows, prompt and response.
        ends: (rows, int64) where each row ends.
        prompts: (rows, int64) how many tokens of each are its prompt.
    """

    tokens: np.ndarray
    ends: np.ndarray
    prompts: np.ndarray

    def check(self) -> Rows:
        """Return the rows, or raise ValueError if the three arrays do not fit together."""
        if len(self.ends) != len(self.prompts) or len(self.tokens) != (self.ends[-1] if len(self.ends) else 0):
            raise ValueError("its arrays do not fit together")
        return self


class Examples(Sequence[Mapping[str, torch.Tensor]]):
    """Rows as training examples: ``input_ids`` and ``labels``, cut to a length."""

    def __init__(self, rows: Rows, max_length: int, *, mask_prompt: bool) -> None:
        self._rows = rows
        self._max_length = max_length
        self._mask_prompt = mask_prompt

    def __len__(self) -> int:
        return len(self._rows.ends)

    def __getitem__(self, index: Any) -> Any:
        number = range(len(self))[index]
        begin = int(self._rows.ends[number - 1]) if number else 0
        end = min(int(self._rows.ends[number]), begin + self._max_length)
        tokens = torch.from_numpy(self._rows.tokens[begin:end].astype(np.int64))
        labels = tokens.clone()
        if self._mask_prompt:
            labels[: int(self._rows.prompts[number])] = IGNORED
        return {"input_ids": tokens, "labels": labels}


def tokenized_data(
    data: DataSettings, tokenizers: Tokenizers, cache_dir: Path | None = None
) -> tuple[Rows, Rows | None]:
    """Return the training rows, and the validation rows if they have a file of their own.

    Args:
        data: which data, and how prompts are made of it.
        tokenizers: of the base model.
        cache_dir: where entries are kept; without it, or if nothing can be written there, nothing is kept.

    Raises:
        AttemptError: of kind ``bad_data``, for data that cannot be read.
    """
    files = [path for path in files_of(Path(data.path)) if path is not None]
    if cache_dir is None or sum(path.stat().st_size for path in files) < CACHED_FROM_BYTES:
        return _tokenize(data, tokenizers)
    entry = cache_dir / f"{_key(data, files, tokenizers)}.npz"
    try:
        return _read(entry)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s): it is made again", entry, error)
    train, val = _tokenize(data, tokenizers)
    try:
        _write(entry, train, val)
    except OSError as error:
        log.warning("the tokenized data are not kept in %s: %s", cache_dir, error)
    else:
        size = entry.stat().st_size / 1e6
        log.info("tokenized data: %d rows, %d tokens, %.1f MB in %s", len(train.ends), len(train.tokens), size, entry)
    return train, val


def _key(data: DataSettings, files: Sequence[Path], tokenizers: Tokenizers) -> str:
    """Return a digest of all that the tokens depend on."""
    packages = ("litgpt", "tokenizers", "sentencepiece")
    checkpoint_dir, special = tokenizers.checkpoint_dir, tokenizers.hugging_face
    parts = {
        "format": FORMAT,
        "data": [_digest(path) for path in files],
        "tokenizer": {
            name: _digest(checkpoint_dir / name) for name in TOKENIZER_FILES if (checkpoint_dir / name).is_file()
        },
        "special": [special.bos_token_id if tokenizers.adds_bos else None, special.eos_token_id],
        "style": data.prompt_style,
        "fields": dict(data.fields),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tokenize(data: DataSettings, tokenizers: Tokenizers) -> tuple[Rows, Rows | None]:
    """Read and tokenize the data as LitGPT does."""
    train, val = read_data(Path(data.path), data.fields)
    rows = _tokenize_rows(train, tokenizers.litgpt, data.prompt_style)
    return rows, None if val is None else _tokenize_rows(val, tokenizers.litgpt, data.prompt_style)


def _tokenize_rows(rows: Sequence[Any], tokenizer: Any, prompt_style: str) -> Rows:
    from litgpt.data.base import SFTDataset

    examples = SFTDataset(rows, tokenizer, prompt_style, max_seq_length=-1, mask_prompt=True, ignore_index=IGNORED)
    tokens, prompts = [], []
    for number in range(len(rows)):
        example = examples[number]
        tokens.append(example["input_ids"].numpy().astype(np.int32))
        prompts.append(int((example["labels"] == IGNORED).sum()))
    return Rows(np.concatenate(tokens), np.cumsum([len(row) for row in tokens]), np.array(prompts, dtype=np.int64))


def _read(entry: Path) -> tuple[Rows, Rows | None]:
    """Return what an entry holds; its checksums are those of a ZIP file."""
    with np.load(entry, allow_pickle=False) as arrays:
        names = ("tokens", "ends", "prompts")
        train = Rows(*(arrays[f"train_{name}"] for name in names)).check()
        val = Rows(*(arrays[f"val_{name}"] for name in names)).check() if "val_ends" in arrays else None
    return train, val


def _write(entry: Path, train: Rows, val: Rows | None) -> None:
    """Publish an entry, whole or not at all."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{part}_{name}": getattr(rows, name)
        for part, rows in (("train", train), ("val", val))
        if rows is not None
        for name in ("tokens", "ends", "prompts")
    }
    replace(entry, lambda stream: np.savez(stream, **arrays))
