"""Count the kernels of one optimizer step: what a GPU with a small model waits for."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.job.cases import Case
from benchmarks.job.routes import write_attempt
from hpo_cluster.objectives import worker
from hpo_cluster.record.layout import resources_dir

#: Tokens in a pass: a whole step of the benchmark's, as on a GPU.
TOKENS_AT_ONCE = 2**14

#: Operators that launch nothing: views, and memory without values.
VIEWS = """
    view _unsafe_view t transpose expand slice select split split_with_sizes unsqueeze squeeze permute detach alias
    as_strided chunk unbind empty empty_like empty_strided reshape new_empty unsafe_split _reshape_alias unfold
    new_empty_strided resize_ set_ is_pinned _local_scalar_dense lift_fresh narrow
"""
NO_KERNEL = frozenset(VIEWS.split())


class _CountOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that would launch a kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name.split("::")[1] not in NO_KERNEL
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted(counts: list[int]) -> Iterator[None]:
    """Append the number of kernels that are launched inside (on a CPU: of operators that would launch one)."""
    if torch.cuda.is_available():
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            yield
            torch.cuda.synchronize()
        events = profiler.events() or []
        counts.append(sum(1 for event in events if "mem" not in event.name.lower()))
    else:
        with _CountOperators() as mode:
            yield
        counts.append(mode.count)


def load_job() -> Any:
    """Return the program of our job as a module."""
    spec = importlib.util.spec_from_file_location("lora_job", resources_dir() / "jobs" / "lora.py")
    assert spec is not None
    assert spec.loader is not None
    job = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return job


def kernels_a_step(case: Case, folder: Path) -> float:
    """Run our job in this process with few steps and with more; return the kernels that a further step launches.

    Args:
        case: what is trained; the data has to fill four steps.
        folder: a new folder.
    """
    job = load_job()
    fewer, more = 1, 3
    counts: list[int] = []
    logging.getLogger("lora").setLevel(logging.WARNING)
    for steps in (fewer, more):
        train = {**case.train, "max_steps": steps, "validation_batches": 0, "tokens_at_once": TOKENS_AT_ONCE}
        objective = dataclasses.replace(case, train=train)
        attempt = worker.Attempt(write_attempt(objective, folder / str(steps), folder / "storage"))
        attempt.settings["tasks"]["limit"] = 1
        with counted(counts):
            job.evaluate(attempt)
    return (counts[1] - counts[0]) / (more - fewer)
