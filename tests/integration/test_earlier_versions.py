"""Campaigns that earlier versions made: each kind of journal and identity is kept, is read, and goes on.

``tests/support/earlier`` holds `campaign.yaml` and `events.jsonl` of one campaign each: as the first version wrote them
(`without_epochs`), with the epochs that fence a driver that has lost its campaign, with rungs, with a warm start, with
a confirmation, and with evaluations that were made elsewhere. A change of the format adds a folder, and changes none.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.record.attempt_files import SCHEMA
from hpo_cluster.record.status import campaign_status

EARLIER = Path(__file__).resolve().parents[1] / "support" / "earlier"
#: By campaign: trials by state, the best value, and what only this kind has.
KEPT: dict[str, tuple[dict[str, int], float, str]] = {
    "without_epochs": ({"completed": 4}, 10.987654320987652, ""),
    "with_epochs": ({"completed": 4}, 10.987654320987652, ""),
    "with_rungs": ({"completed": 1, "paused": 5}, 0.8263834831518099, "fidelity"),
    "with_warm_start": ({"completed": 2}, 34.56575560425442, "imported"),
    "with_confirmations": ({"completed": 2}, 9.321989584924998, "confirmation"),
    "made_elsewhere": ({"completed": 2}, 9.321989584924998, ""),
}


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=sorted(KEPT))
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a campaign, in the working directory; its jobs find the program that they call."""
    monkeypatch.chdir(tmp_path)
    Path("score.sh").write_text('echo "{\\"value\\": $1}"\n')
    shutil.copytree(EARLIER / request.param, request.param)
    return Path(request.param)


def test_every_version_of_the_format_is_kept() -> None:
    folders = {folder.name: events(folder) for folder in EARLIER.iterdir()}
    assert set(folders) == set(KEPT)
    assert {lines[0]["schema"] for lines in folders.values()} == set(range(1, SCHEMA + 1))
    assert not any("epoch" in line for line in folders["without_epochs"])
    assert all("epoch" in line for name, lines in folders.items() if name != "without_epochs" for line in lines)


def test_a_campaign_of_an_earlier_version_is_read(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    counts, best, own = KEPT[kept.name]
    status = campaign_status(kept)
    assert status["state"] == "finished"
    assert status["counts"] == counts
    assert status["best"]["value"] == pytest.approx(best)
    assert not own or status[own]
    assert len(load_history(kept)) >= sum(counts.values())
    for words in (
        ["status", str(kept)],
        ["watch", str(kept)],
        ["why", str(kept), "0"],
        ["describe", str(kept)],
        ["ls"],
    ):
        assert main(words[:1] + (words[1:] or ["."])) == 0, words
    assert "cannot be read" not in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_a_campaign_of_an_earlier_version_goes_on(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = campaign_status(kept)
    budget, moved = status["budget"] + 1, ["objective.cwd=."] if kept.name == "with_rungs" else []
    assert main(["resume", str(kept), f"budget={budget}", "poll_s=0.05", "grace_s=0.2", "workers=1", *moved]) == 0
    after = campaign_status(kept)
    assert after["state"] == "finished"
    assert after["done"] >= status["done"] + 0.9
    assert after["counts"]["completed"] > status["counts"]["completed"]
    assert "Traceback" not in capsys.readouterr().err
