"""The two routes from a configuration to its scores, each in fresh processes as a user runs it, and what they take."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.job.cases import Case
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.settings import LORA_MATRICES
from hpo_cluster.record.layout import AttemptLayout, resources_dir
from hpo_cluster.record.next_attempt import Next, publish_next

#: Of the fine-tuning, in both routes.
SEED = 1337


@dataclass(frozen=True)
class Measurement:
    """What one route took.

    Attributes:
        route: ``ours`` or ``theirs``.
        cpu_s: CPU seconds of all its processes.
        wall_s: from their start to their end.
        memory_gb: 1e9 bytes of resident memory of the largest process at its peak.
        phases: wall seconds of its parts; of several trials, those of the last.
        scores: metrics by ``task/metric``; of several trials, those of the first.
        result: ours: the whole result of the last trial.
    """

    route: str
    cpu_s: float
    wall_s: float
    memory_gb: float
    phases: dict[str, float]
    scores: dict[str, float]
    result: dict[str, Any] = field(default_factory=dict)


def objective_of(case: Case) -> LoraObjective:
    """Return the settings of our job for a case."""
    return LoraObjective.model_validate(
        {
            "model": {"name": case.name, "checkpoint_dir": str(case.checkpoint_dir)},
            "data": {"name": case.name, "path": str(case.data_dir)},
            "tasks": {
                "name": case.name,
                "validation": case.tasks[0],
                "test": [case.tasks[1]],
                "include_path": str(case.tasks_dir),
                "batch_size": case.batch_size,
            },
            "train": case.train,
        }
    )


def write_attempt(case: Case, folder: Path, storage_dir: Path, number: int = 0, trials: int = 1) -> Path:
    """Write an attempt directory as the driver does; the first has the same seed as the other route."""
    folder.mkdir(parents=True)
    settings = objective_of(case).job_settings(lambda path: storage_dir if path == "storage:" else Path(path))
    job = {"token": folder.name, "turn": number + 1, "trials_per_job": trials, "linger_s": 60.0}
    document = {"schema": 1, "parameters": {}, "settings": settings, "seed": SEED + number, **job}
    (folder / "params.json").write_text(json.dumps(document))
    return folder


def ours(case: Case, folder: Path, trials: int = 1) -> Measurement:
    """Run our job: one process evaluates so many new attempts, as with ``launcher.trials_per_job``."""
    storage = folder.parent / "storage"
    attempts = [write_attempt(case, folder / f"a{number}", storage, number, trials) for number in range(trials)]
    for before, after in itertools.pairwise(attempts):  # as a driver does that has the next proposal at once
        publish_next(AttemptLayout(before), Next(after, after.name))
    took = _run([sys.executable, str(resources_dir() / "jobs" / "lora.py"), str(attempts[0])], folder / "log")
    first, last = (json.loads((attempts[number] / "result.json").read_text()) for number in (0, -1))
    scores = {name: value for name, value in first["metrics"].items() if "/" in name}
    return Measurement("ours", *took, phases=last["seconds"], scores=scores, result=last)


def theirs(case: Case, folder: Path) -> Measurement:
    """Run ``litgpt finetune_lora`` and ``litgpt evaluate``."""
    folder.mkdir(parents=True)
    out, config = folder / "out", folder / "finetune.yaml"
    config.write_text(yaml.safe_dump(_litgpt_settings(case, out)))
    litgpt = [sys.executable, "-m", "litgpt"]
    trained = _run([*litgpt, "finetune_lora", "--config", str(config)], folder / "finetune.log")
    tasks = [_absolute_task(case, name, folder) for name in case.tasks]
    names = ["--tasks", ",".join(map(str, tasks)), "--batch_size", str(case.batch_size)]
    scored = _run(
        [*litgpt, "evaluate", str(out / "final"), *names, "--out_dir", str(folder / "eval")], folder / "evaluate.log"
    )
    results = json.loads((folder / "eval" / "results.json").read_text())["results"]
    scores = {
        f"{task}/{key.partition(',')[0]}": float(value)
        for task in case.tasks
        for key, value in results[task].items()
        if key.endswith(",none") and "_stderr" not in key
    }
    shutil.rmtree(out)
    shutil.rmtree(folder / "eval")
    return Measurement(
        "theirs",
        cpu_s=trained[0] + scored[0],
        wall_s=trained[1] + scored[1],
        memory_gb=max(trained[2], scored[2]),
        phases={"finetune_lora": trained[1], "evaluate": scored[1]},
        scores=scores,
    )


def _litgpt_settings(case: Case, out: Path) -> dict[str, Any]:
    """Return what ``litgpt finetune_lora --config`` reads for the same training."""
    train = objective_of(case).train
    return {
        "checkpoint_dir": str(case.checkpoint_dir),
        "out_dir": str(out),
        "precision": train.precision,
        "devices": 1,
        "lora_r": train.lora_rank,
        "lora_alpha": round(train.alpha),
        "lora_dropout": train.lora_dropout,
        **{f"lora_{name}": getattr(train, f"lora_{name}") for name in LORA_MATRICES},
        "data": {
            "class_path": "litgpt.data.JSON",
            "init_args": {"json_path": str(case.data_dir), "prompt_style": "alpaca", "num_workers": 0},
        },
        "train": {
            "save_interval": None,
            "log_interval": 1,
            "global_batch_size": train.global_batch_size,
            "micro_batch_size": train.micro_batch_size,
            "lr_warmup_steps": train.lr_warmup_steps,
            "epochs": train.epochs,
            "max_steps": train.max_steps,
        },
        # without the example that LitGPT would generate
        "eval": {"interval": 1000, "max_new_tokens": 10**6, "max_iters": train.validation_batches},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "lr": train.learning_rate,
                "weight_decay": train.weight_decay,
                "betas": [train.beta1, train.beta2],
                "eps": train.epsilon,
            },
        },
        "logger_name": "csv",
        "seed": SEED,
    }


def _absolute_task(case: Case, name: str, folder: Path) -> Path:
    """Write a task with absolute paths of its data: ``litgpt evaluate`` looks for them in the working directory."""
    task = yaml.safe_load((case.tasks_dir / f"{name}.yaml").read_text())
    files = task["dataset_kwargs"]["data_files"]
    task["dataset_kwargs"]["data_files"] = {split: str(case.tasks_dir / file) for split, file in files.items()}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task))
    return path


def _run(command: list[str], log: Path) -> tuple[float, float, float]:
    """Run a process; return its CPU seconds, wall seconds and peak memory (1e9 bytes).

    Raises:
        SystemExit: with the end of its log, if it fails.
    """
    environment = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(log.parent / "datasets"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
    }
    began = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}:\n{end}")
    return used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024 / 1e9
