"""A job that climbs rungs by the files alone: it reports each, waits for the word, and keeps a checkpoint.

    python climbing_job.py ATTEMPT_DIR

Its value at a rung is ``x + rung``. Settings say what else happens: ``die_at`` (a file: die once after the report of
that rung, before any word), ``log`` (a line for each start and each rung).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hpo_cluster.record.attempt_files import CHECKPOINT_LIST, checkpoints_of, job_identity
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.files import dumps, publish_once, read_json, replace_text
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.rung_files import publish_rung, publish_word, read_word


def main() -> int:
    files = AttemptLayout(Path(sys.argv[1]))
    params: dict[str, Any] = read_json(files.params) or {}
    settings, rungs, number = params["settings"], params["rungs"], params["trial"]
    common = {"token": params["token"], **job_identity(), "started_at": utc_now()}
    if not publish_once(files.claim, dumps(common)):
        return 3
    before = [step for folder in params["previous"] for step, _ in checkpoints_of(AttemptLayout(Path(folder)))]
    note(settings, f"start {number} goal {rungs['goal']} from {max(before, default=0)}")
    top = len(rungs["shares"]) - 1
    result: dict[str, Any] = {}
    for rung in range(max(rungs["goal"], rungs["first"]), top + 1):
        time.sleep(settings.get("sleep_s", 0.02))
        value = params["parameters"]["x"] + rung
        result = {**common, "metrics": {"value": value, "energy_wh": 1.0}, "sems": {"value": 0.1}}
        if rung == top:
            break
        save_checkpoint(files, rung + 1)
        publish_rung(files, rung, {**result, "step": rung + 1, "seconds": {"train": 0.5, "score": 0.25}})
        note(settings, f"rung {number} {rung}")
        if settings.get("die_at") == rung and publish_once(Path(settings["log"]).with_suffix(f".died{number}"), "x"):
            os.kill(os.getpid(), signal.SIGKILL)
        if not word(files, rung, rungs["linger_s"]):
            result["rung"] = rung
            break
    replace_text(files.result, dumps({**result, "ended_at": utc_now()}))
    return 0


def word(files: AttemptLayout, rung: int, linger_s: float) -> bool:
    end = time.monotonic() + linger_s
    while time.monotonic() < end:
        if (said := read_word(files, rung)) is not None:
            return said
        time.sleep(0.02)
    return not publish_word(files, rung, go_on=False) and bool(read_word(files, rung))


def save_checkpoint(files: AttemptLayout, step: int) -> None:
    folder = files.checkpoint_dir / str(step)
    folder.mkdir(parents=True)
    (folder / "state").write_text("state")
    replace_text(folder / CHECKPOINT_LIST, dumps({"step": step, "files": {"state": 5}}))


def note(settings: dict[str, Any], line: str) -> None:
    with Path(settings["log"]).open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
