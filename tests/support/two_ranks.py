"""``jobs/lora.py`` on two ranks without a GPU, with a fault in one of them if `params.json` asks for it.

A fault is ``{"rank": 1, "step": 3, "what": …}``: what the rank does when it is about to compute that step (from 0).
The rank that has no fault sleeps for an hour in that step if ``others_hang`` is set, as NCCL would wait.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

import torch
from lora_bench import load_program

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora import rank_processes
from hpo_cluster.objectives.lora.ranks import Ranks
from hpo_cluster.objectives.worker import Attempt


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """In the process of the job: evaluate on two ranks."""
    return rank_processes.evaluate(attempt, 2, Path(__file__))


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def signalled() -> None:
    """Let the scheduler's signal reach the process of the job."""
    os.kill(os.getppid(), signal.SIGUSR2)
    time.sleep(0.5)


FAULTS: dict[str, Callable[[], None]] = {
    "killed": killed,
    "signalled": signalled,
}


def rank_evaluate(attempt: Attempt, ranks: Ranks) -> dict[str, Any]:
    """In the process of a rank: evaluate with the fault."""
    from hpo_cluster.objectives.lora.packed_forward import PackedModel

    job, fault = load_program(), attempt.params.get("fault")
    mine = fault is not None and fault["rank"] == ranks.rank
    summed_loss, loss = job.summed_loss, PackedModel.loss

    def faulty(*arguments: Any, step: int | None, **options: Any) -> Any:
        at_it = fault is not None and step == fault["step"]
        if at_it and not mine and fault.get("others_hang"):
            time.sleep(3600)
        if at_it and mine and fault["what"] in FAULTS:
            FAULTS[fault["what"]]()
        total = summed_loss(*arguments, step=step, **options)
        return total * float("nan") if at_it and mine and fault["what"] == "nan" else total

    def limited(self: Any, part: Any, *, backward: bool) -> torch.Tensor:
        result: torch.Tensor = loss(self, part, backward=backward)
        if len(part.tokens) > 30:  # gradients are there already
            out_of_memory()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "summed_loss", faulty)
        if mine and fault["what"] == "little_memory":
            patch.setattr(PackedModel, "loss", limited)
        result: dict[str, Any] = job.fine_tune_and_score(attempt, ranks)
    return result


if __name__ == "__main__":
    sys.exit(rank_processes.main(rank_evaluate) if rank_processes.is_rank() else worker.main(evaluate))
