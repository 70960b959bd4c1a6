"""Ranks without torch: each does what ``params.json`` asks of it, for tests of the processes alone.

``"ranks": [["say", "text"], ["sleep"], …]`` has one entry for each rank: a word and its arguments.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora import rank_processes
from hpo_cluster.objectives.lora.ranks import RankLostError, Ranks
from hpo_cluster.objectives.worker import Attempt


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """In the process of the job: evaluate on as many ranks as ``ranks`` has entries."""
    return rank_processes.evaluate(attempt, len(attempt.params["ranks"]), Path(__file__))


def rank_evaluate(attempt: Attempt, ranks: Ranks) -> dict[str, Any]:
    """In the process of a rank."""
    attempt.used = lambda: {"energy_wh": 0.5}
    attempt.phase("import")
    attempt.phase("train")
    word, *arguments = attempt.params["ranks"][ranks.rank]
    if word == "kill":
        os.kill(os.getpid(), getattr(signal, arguments[0]))
    elif word == "exit":
        os._exit(arguments[0])
    elif word == "raise":
        raise AttemptError(*arguments)
    elif word == "lose":
        time.sleep(arguments[0] if arguments else 0)
        raise RankLostError("node", "the exchange failed")
    elif word == "wrong":
        raise KeyError("a fault")
    elif word == "say":
        os.write(2, f"{arguments[0]}\n".encode())
    elif word == "ignore":
        attempt.looks = True
        time.sleep(3600)
    elif word == "look":
        attempt.looks = True
        while attempt.interrupted is None:
            time.sleep(0.01)
        attempt.save_checkpoint(3, lambda folder: (folder / "state").write_text(str(ranks.rank)) and None)
        raise attempt.interruption()
    elif word == "signal":
        time.sleep(0.3)
        while (worker.read_json(attempt.files.progress) or {}).get("phase") != "train":
            time.sleep(0.01)
        os.kill(os.getppid(), arguments[0])
        time.sleep(3600)
    elif word == "sleep":
        time.sleep(3600)
    return {"metrics": {"rank": float(ranks.rank)}, "pid": os.getpid(), "parent": os.getppid()}


def living(parent: int) -> list[int]:
    """The ranks of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue
            if rank_processes.RANK_OPTION in words and words[6] == str(parent) and not ended:
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(rank_processes.main(rank_evaluate) if rank_processes.is_rank() else worker.main(evaluate))
