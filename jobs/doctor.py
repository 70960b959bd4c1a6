"""Report what a job finds on its node; the small job of ``hpo-cluster doctor``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.objectives import worker


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Return the time on this node, the Python that runs, the GPUs, and the paths that cannot be read."""
    missing = [path for path in attempt.settings["paths"] if not os.access(path, os.R_OK)]
    return {
        "metrics": {"time_s": time.time(), "gpus": len(gpus())},
        "python": sys.executable,
        "gpu_names": gpus(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "unreadable": missing,
    }


def gpus() -> list[str]:
    """Return the names of the GPUs that nvidia-smi lists; empty if there is no NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
