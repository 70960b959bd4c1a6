"""Files on a shared file system: late, lost answers, stale handles."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from hpo_cluster.record import attempt_files, files
from hpo_cluster.record.layout import AttemptLayout


def test_the_first_to_publish_wins(tmp_path: Path) -> None:
    assert files.publish_once(tmp_path / "claim", "first")
    assert not files.publish_once(tmp_path / "claim", "second")
    assert (tmp_path / "claim").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def made_and_asked_again(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", made_and_asked_again)
    assert files.publish_once(tmp_path / "claim", "ours")
    assert (tmp_path / "claim").read_text() == "ours"


def test_a_stale_handle_is_no_result_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = AttemptLayout(tmp_path)
    attempt.result.write_text(files.dumps({"token": "t", "metrics": {"value": 1.0}}))
    read = os.pread

    def stale(*args: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "pread", stale)
    assert attempt_files.valid_result(attempt, "t") is None
    assert files.refresh(tmp_path / "gone") == []  # no error where the directory is not to be had
    monkeypatch.setattr(os, "pread", read)
    assert files.refresh(tmp_path) == ["result.json"]
    assert attempt_files.valid_result(attempt, "t") is not None


def test_a_file_is_read_again_only_when_it_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "progress.json", list[Path]()
    read_json = files.read_json

    def counted(path: Path) -> dict[str, object] | None:
        reads.append(path)
        return read_json(path)

    monkeypatch.setattr(files, "read_json", counted)
    reread = files.Reread()
    assert reread(path) is None
    for step in (1, 2):
        files.replace_text(path, files.dumps({"step": step}))
        assert [reread(path) for _ in range(3)] == [{"step": step}] * 3
    assert len(reads) == 2
    path.unlink()
    assert reread(path) is None


def test_a_folder_is_removed_and_a_pipe_in_its_place_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    files.remove_folder(tmp_path / "folder")
    files.remove_folder(tmp_path / "folder")  # nothing there
    assert not (tmp_path / "folder").exists()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: pytest.fail("it would wait at the pipe"))
    files.remove_folder(tmp_path / "pipe")
    assert (tmp_path / "pipe").exists()
