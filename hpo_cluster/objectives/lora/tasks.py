"""lm-eval's tasks for the fine-tuning job: find and load them, score a model on them, name the metrics.

Used by both ways of scoring, so that they differ in the model alone.
"""

from __future__ import annotations

import functools
import math
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker
from hpo_cluster.text import did_you_mean
from hpo_cluster.trial import ErrorKind

#: Loaders of the `datasets` package that read local files and would write a copy of them to a shared cache.
LOCAL_FORMATS = ("json", "csv", "parquet", "text", "arrow")

#: lm-eval's seed of few-shot examples and of NumPy, as `litgpt evaluate` sets it.
SEED = 1234

#: Draws for the standard errors that have no formula; accuracies have one.
BOOTSTRAP_DRAWS = 100


def load_tasks(
    names: Sequence[str], include_path: Path | None, num_fewshot: int | None, cache_dir: Path
) -> dict[str, Any]:
    """Load tasks and groups by name, from a folder of your own and from lm-eval's collection.

    Args:
        names: tasks, groups or tags.
        include_path: folder of YAML files; a file named under ``data_files`` is looked for beside its YAML.
        num_fewshot: examples in the prompt; None leaves it to the task, and to zero where the task has none.
        cache_dir: where local data files are converted to; private to the job, since two jobs that convert the same
            file into one cache can trip over each other.

    Returns:
        What `lm_eval.evaluate` takes as ``task_dict``; and as ``tags``, the tasks of each name that is a tag.

    Raises:
        AttemptError: of kind ``missing_task``, for a name that is nowhere or a data set that is not on this machine;
            of kind ``bad_config``, for a task that cannot be made of its YAML file and its documents.
    """
    import numpy as np
    from lm_eval.tasks import TaskManager

    _compile_templates_once()
    random.seed(SEED)  # a task may draw its examples while it is loaded
    np.random.seed(SEED)  # noqa: NPY002  # the generator that lm-eval's tasks use
    if include_path is not None and not include_path.is_dir():
        raise AttemptError(ErrorKind.MISSING_TASK, f"tasks.include_path={include_path} is no directory")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not all(_complete(name, manager.task_index) for name in names):
        manager = TaskManager(include_path=include_path, include_defaults=True)  # reads 13 000 files: 5 s
    if missing := [name for name in names if name not in manager.task_index]:
        where = "lm-eval's own tasks" if include_path is None else f"{include_path} and lm-eval's own tasks"
        close = did_you_mean(missing[0], manager.task_index).strip()
        hint = f"; {close}" if close else ""
        raise AttemptError(ErrorKind.MISSING_TASK, f"no lm-eval task {', '.join(missing)} in {where}{hint}")
    if include_path is not None:
        _localise(manager.task_index, include_path.resolve(), cache_dir)
    try:
        loaded: dict[str, Any] = manager.load(list(names))
    except (OSError, ValueError) as error:  # what `datasets` raises without network, without file, without split
        if worker.classify(error) != ErrorKind.CODE:
            raise
        if "Duplicate task" in str(error):  # named, and a member of a group that is named
            raise AttemptError(ErrorKind.BAD_CONFIG, f"tasks.validation, tasks.test: {error}; name it once") from error
        message = f"a data set of {', '.join(names)} cannot be read here ({error}); run: hpo-cluster prepare"
        raise AttemptError(ErrorKind.MISSING_TASK, message) from error
    except Exception as error:  # a task is a program in YAML: its templates and its documents may not fit
        if worker.classify(error) != ErrorKind.CODE:
            raise
        message = f"a task of {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}"
        raise AttemptError(ErrorKind.BAD_CONFIG, message) from error
    known = {**loaded["tasks"], **loaded["groups"]}
    loaded["tags"] = {name: sorted(manager.task_index[name].tags) for name in names if name not in known}
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (own != 0 and num_fewshot is not None):  # lm-eval's rule: a task's own zero stands
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def _compile_templates_once() -> None:
    """Keep lm-eval's compiled prompt templates, which it would compile anew for each document (0.3 ms a time)."""
    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        utils.env.from_string = functools.lru_cache(maxsize=256)(utils.env.from_string)


def _complete(name: str, index: Mapping[str, Any]) -> bool:
    """Whether a task, or a group with all that it names, is in an index of tasks."""
    entry = index.get(name)
    if entry is None:
        return False
    children = (entry.cfg or {}).get("task")
    if not isinstance(children, list):
        return True
    named = [child if isinstance(child, str) else child.get("group") or child.get("task") for child in children]
    return all(isinstance(child, str) and _complete(child, index) for child in named)


def _localise(index: dict[str, Any], include_path: Path, cache_dir: Path) -> None:
    """Make the data files of own tasks absolute and their cache private, in the index that tasks are made from."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for entry in index.values():
        if entry.yaml_path is None or not entry.yaml_path.resolve().is_relative_to(include_path):
            continue
        config = load_yaml(entry.yaml_path)
        if config.get("dataset_path") not in LOCAL_FORMATS:
            continue
        options = dict(config.get("dataset_kwargs") or {})
        options["data_files"] = _absolute(options.get("data_files"), entry.yaml_path.resolve().parent)
        options["cache_dir"] = str(cache_dir)
        entry.cfg = {**config, "dataset_kwargs": options}
        entry.yaml_path = None  # lm-eval reads the file again where there is one


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, str):
        return files if "://" in files else str(folder / files)
    if isinstance(files, Mapping):
        return {split: _absolute(paths, folder) for split, paths in files.items()}
    if isinstance(files, Sequence):
        return [_absolute(path, folder) for path in files]
    return files


def score(lm: Any, tasks: dict[str, Any], limit: int | None) -> tuple[dict[str, float], dict[str, float]]:
    """Evaluate a model on loaded tasks.

    Args:
        lm: an lm-eval model.
        tasks: from `load_tasks`; used up by one evaluation.
        limit: documents of each task, at most.

    Returns:
        Metrics and their standard errors, both named ``<task or group>/<metric>``; a metric of a filter other than
        lm-eval's ``none`` is ``<task>/<metric>,<filter>``. Standard errors that lm-eval does not know are left out.
    """
    from lm_eval.evaluator import evaluate

    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's own switch: bootstrapped errors here, not in forked processes
    results = evaluate(lm, tasks, limit=limit, bootstrap_iters=BOOTSTRAP_DRAWS, log_samples=False)
    metrics: dict[str, float] = {}
    sems: dict[str, float] = {}
    for name, row in {**results["results"], **results.get("groups", {})}.items():
        for key, value in row.items():
            metric, _, filter_name = key.partition(",")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not filter_name:
                continue  # the row's alias, its number of documents, "N/A"
            label = f"{name}/{metric}" if filter_name == "none" else f"{name}/{metric},{filter_name}"
            if "_stderr" not in metric:
                metrics[label] = float(value)
            elif math.isfinite(value):
                sems[label.replace("_stderr", "", 1)] = float(value)
    return metrics, sems
