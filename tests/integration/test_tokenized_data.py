"""The cache of tokenized data: what LitGPT would make of the data, once for all jobs, and never trusted blindly."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from litgpt.data.base import SFTDataset
from lora_bench import BUNDLE, village_checkpoint

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora import tokenized_data as module
from hpo_cluster.objectives.lora.settings import DataSettings
from hpo_cluster.objectives.lora.tokenized_data import Examples, tokenized_data
from hpo_cluster.objectives.lora.tokenizers import Tokenizers

ROWS = json.loads((BUNDLE / "data" / "train.json").read_text())[:40]


@pytest.fixture(autouse=True)
def small_data_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_FROM_BYTES", 0)


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.json").write_text(json.dumps(ROWS[:30]))
    (tmp_path / "data" / "val.json").write_text(json.dumps(ROWS[30:]))
    return DataSettings(name="own", path=str(tmp_path / "data"))


def tokenizers() -> Tokenizers:
    return Tokenizers(BUNDLE / "checkpoint")


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("mask_prompt", [False, True])
@pytest.mark.parametrize("length", [5, 12, 128])
def test_examples_are_those_of_litgpt(data: DataSettings, tmp_path: Path, length: int, mask_prompt: bool) -> None:
    theirs = SFTDataset(ROWS[:30], tokenizers().litgpt, "alpaca", length, mask_prompt, -100)
    for _ in ("made", "read"):
        train, val = tokenized_data(data, tokenizers(), tmp_path / "cache")
        ours = Examples(train, length, mask_prompt=mask_prompt)
        assert val is not None
        assert (len(ours), len(val.ends)) == (30, 10)
        for mine, other in zip(ours, theirs, strict=True):
            for name in ("input_ids", "labels"):
                assert torch.equal(mine[name], other[name])
                assert mine[name].dtype == other[name].dtype
    assert len(entries(tmp_path / "cache")) == 1


def test_an_entry_is_used(data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = tokenized_data(data, tokenizers(), tmp_path / "cache")
    monkeypatch.setattr(module, "_tokenize", lambda *_: pytest.fail("tokenized again"))
    read, _ = tokenized_data(data, tokenizers(), tmp_path / "cache")
    assert np.array_equal(made.tokens, read.tokens)


def test_each_thing_that_the_tokens_depend_on_makes_another_entry(data: DataSettings, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tokenized_data(data, tokenizers(), cache)
    tokenized_data(data.model_copy(update={"prompt_style": "llama3"}), tokenizers(), cache)
    tokenized_data(data.model_copy(update={"fields": {"input": "output"}}), tokenizers(), cache)
    tokenized_data(data, Tokenizers(village_checkpoint(tmp_path / "other", "{bos} $A")), cache)
    (Path(data.path) / "val.json").write_text(json.dumps(ROWS[31:]))
    tokenized_data(data, tokenizers(), cache)
    assert len(entries(cache)) == 5
    tokenized_data(data, Tokenizers(village_checkpoint(tmp_path / "Llama-3-village")), cache)  # LitGPT adds a token
    unlike = data.model_copy(update={"mask_prompt": True, "val_split_fraction": 0.5, "split_seed": 1, "name": "x"})
    tokenized_data(unlike, tokenizers(), cache)  # of which the tokens do not depend
    assert len(entries(cache)) == 5


def damage(entry: Path, how: str) -> None:
    whole = bytearray(entry.read_bytes())
    if how == "flipped":
        whole[len(whole) // 3] ^= 0xFF
    entry.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a zip file", "flipped": whole}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "text", "flipped"])
def test_a_damaged_entry_is_made_again(data: DataSettings, tmp_path: Path, how: str, caplog: Any) -> None:
    made, _ = tokenized_data(data, tokenizers(), tmp_path / "cache")
    (entry,) = entries(tmp_path / "cache")
    whole = entry.read_bytes()
    damage(entry, how)
    again, _ = tokenized_data(data, tokenizers(), tmp_path / "cache")
    assert np.array_equal(made.tokens, again.tokens)
    assert "cannot be read" in caplog.text
    assert entries(tmp_path / "cache") == [entry]
    assert np.array_equal(module._read(entry)[0].tokens, made.tokens)
    assert entry.stat().st_size == len(whole)


def test_a_full_disk_costs_only_the_cache(data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    train, _ = tokenized_data(data, tokenizers(), tmp_path / "cache")
    assert len(train.ends) == 30
    assert entries(tmp_path / "cache") == []  # nothing half written


def test_a_cache_that_cannot_be_made_is_done_without(data: DataSettings, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("")
    train, _ = tokenized_data(data, tokenizers(), tmp_path / "file" / "cache")
    assert len(train.ends) == 30
    assert "are not kept" in caplog.text


def test_small_data_and_their_size_are_told(
    data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with caplog.at_level(logging.INFO):
        tokenized_data(data, tokenizers(), tmp_path / "cache")
    assert "30 rows" in caplog.text
    assert " MB in " in caplog.text
    monkeypatch.setattr(module, "CACHED_FROM_BYTES", 10**6)
    tokenized_data(data, tokenizers(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_bad_data_leave_no_entry(data: DataSettings, tmp_path: Path) -> None:
    (Path(data.path) / "train.json").write_text("[]")
    with pytest.raises(AttemptError, match="is empty"):
        tokenized_data(data, tokenizers(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
