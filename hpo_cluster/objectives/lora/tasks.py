"""Find and load lm-eval's tasks, score a model on them, and name the metrics.

Both ways of scoring use this module, so that only the model differs.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.error_kinds import classify
from hpo_cluster.text import did_you_mean
from hpo_cluster.trial import ErrorKind

#: Loaders of the `datasets` package that read local files and, by default, copy them to a shared cache.
LOCAL_FORMATS = ("json", "csv", "parquet", "text", "arrow")

#: Seed of few-shot examples and of NumPy, as in `litgpt evaluate`.
SEED = 1234

#: Bootstrap samples for standard errors without a formula; accuracies have one.
BOOTSTRAP_DRAWS = 100


def load_tasks(
    names: Sequence[str], include_path: Path | None, num_fewshot: int | None, cache_dir: Path
) -> dict[str, Any]:
    """Load tasks and groups by name, from the user's folder and from lm-eval's collection.

    Args:
        names: tasks, groups or tags.
        include_path: folder of YAML files; paths under ``data_files`` are relative to the YAML file.
        num_fewshot: examples in the prompt; None: the task's own number, or zero if it has none.
        cache_dir: where local data files are converted; private to the job, since two jobs that convert the same file
            in one cache can disturb each other.

    Returns:
        The ``task_dict`` for `lm_eval.evaluate`, and in addition ``tags``: the tasks of each name that is a tag.

    Raises:
        AttemptError: of kind ``missing_task``, for an unknown name or a data set that is not on this machine;
            of kind ``bad_config``, for a task that cannot be built from its YAML file and its documents.
    """
    import numpy as np

    _compile_templates_once()
    random.seed(SEED)  # a task may draw examples while it is loaded
    np.random.seed(SEED)  # noqa: NPY002  # lm-eval's tasks use the global generator
    if include_path is not None and not include_path.is_dir():
        raise AttemptError(ErrorKind.MISSING_TASK, f"tasks.include_path={include_path} is not a directory")
    manager = _find(names, include_path)
    if missing := [name for name in names if name not in manager.task_index]:
        where = "lm-eval's own tasks" if include_path is None else f"{include_path} and lm-eval's own tasks"
        close = did_you_mean(missing[0], manager.task_index).strip()
        hint = f"; {close}" if close else ""
        raise AttemptError(ErrorKind.MISSING_TASK, f"no lm-eval task {', '.join(missing)} in {where}{hint}")
    if include_path is not None:
        _localise(manager.task_index, include_path.resolve(), cache_dir)
    try:
        loaded: dict[str, Any] = manager.load(list(names))
    except (OSError, ValueError) as error:  # `datasets` raises these if network, file or split is missing
        if classify(error) != ErrorKind.CODE:
            raise
        if "Duplicate task" in str(error):  # named itself and in a named group
            raise AttemptError(ErrorKind.BAD_CONFIG, f"tasks.validation, tasks.test: {error}; name it once") from error
        message = f"a data set of {', '.join(names)} cannot be read here ({error}); run: hpo-cluster prepare"
        raise AttemptError(ErrorKind.MISSING_TASK, message) from error
    except Exception as error:  # a task is a program in YAML: templates may not fit the documents
        if classify(error) != ErrorKind.CODE:
            raise
        message = f"a task of {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}"
        raise AttemptError(ErrorKind.BAD_CONFIG, message) from error
    known = {**loaded["tasks"], **loaded["groups"]}
    loaded["tags"] = {name: sorted(manager.task_index[name].tags) for name in names if name not in known}
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (own != 0 and num_fewshot is not None):  # lm-eval's rule: do not override a task's zero
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def _compile_templates_once() -> None:
    """Cache lm-eval's compiled prompt templates, which it would compile again for each document (0.3 ms each)."""
    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        utils.env.from_string = functools.lru_cache(maxsize=256)(utils.env.from_string)


def _find(names: Sequence[str], include_path: Path | None) -> Any:
    """Return an lm-eval ``TaskManager`` that knows tasks and groups, and has read as few files as that takes.

    lm-eval keeps most of its tasks in folders of their names: ``mmlu_anatomy`` in ``mmlu``. What is not found in them
    and in `include_path` is looked for in all of its 13 000 files, which takes 6 s, and 25 s from a slow disk.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    own = [] if include_path is None else [include_path]
    folders: dict[str, Path | None] = {}
    while None not in folders.values():
        manager = TaskManager(include_path=[*dict.fromkeys(folders.values()), *own], include_defaults=False)
        index = manager.task_index
        if any(name in index and index[name].kind is Kind.TAG for name in folders):
            break  # tasks in other folders may have the tag
        missing = [absent for name in names for absent in _missing(name, index)]
        if not missing:
            return manager
        folders |= {name: None if name in folders else _folder_of(name) for name in missing}
    return TaskManager(include_path=own, include_defaults=True)


def _folder_of(name: str) -> Path | None:
    """Return the folder of lm-eval's collection that is named as a task or as the first words of its name."""
    import lm_eval.tasks

    words = name.split("_")
    folders = (Path(lm_eval.tasks.__file__).parent / "_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((folder for folder in folders if name and folder.is_dir()), None)


def _missing(name: str, index: Mapping[str, Any]) -> list[str]:
    """Return the names that an index of tasks lacks for a task, or for a group with all that it names.

    The name of a member that is given as a mapping may be empty.
    """
    entry = index.get(name)
    if entry is None:
        return [name]
    children = (entry.cfg or {}).get("task")
    if not isinstance(children, list):
        return []
    named = [child if isinstance(child, str) else child.get("group") or child.get("task") for child in children]
    return [absent for child in named for absent in (_missing(child, index) if isinstance(child, str) else [""])]


def _localise(index: dict[str, Any], include_path: Path, cache_dir: Path) -> None:
    """Make data file paths of the user's tasks absolute and their cache private, in the index of tasks."""
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
        entry.yaml_path = None  # otherwise lm-eval reads the file again


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, str):
        return files if "://" in files else str(folder / files)
    if isinstance(files, Mapping):
        return {split: _absolute(paths, folder) for split, paths in files.items()}
    if isinstance(files, Sequence):
        return [_absolute(path, folder) for path in files]
    return files


def validation_only(tasks: Mapping[str, Any], validation: str) -> dict[str, Any]:
    """Return a copy of the validation task, or of the group with all its members, that can be scored once.

    Args:
        tasks: result of `load_tasks`, not used yet.
        validation: the name.
    """
    inside = names_in([validation], tasks)
    parts = {key: {name: tasks[key][name] for name in inside if name in tasks[key]} for key in ("tasks", "groups")}
    return {**tasks, **copy.deepcopy(parts)}  # in one go, since groups hold their tasks


def some_items(tasks: Mapping[str, Any], share: float, limit: int | None) -> dict[str, list[int]]:
    """Return the numbers of a share of each task's documents, at least one; smaller shares are parts of larger ones.

    Args:
        tasks: result of `load_tasks`.
        share: of the documents that are scored in the end.
        limit: largest number of documents per task; None: all.
    """
    import numpy as np

    chosen = {}
    for name, task in tasks["tasks"].items():
        count = min(len(task.eval_docs), limit or len(task.eval_docs))
        order = np.random.default_rng(SEED).permutation(count)
        chosen[name] = sorted(int(number) for number in order[: math.ceil(share * count)])
    return chosen


def names_in(names: Iterable[str], loaded: Mapping[str, Any]) -> list[str]:
    """Return the names of all tasks and groups that names of tasks, groups and tags stand for, groups with members."""
    found: list[str] = []
    for name in names:
        if name in loaded["groups"]:
            group = loaded["groups"][name]
            found += [name, *(each.name for each in group.get_all_groups())]
            found += [task.task_name for task in group.get_all_tasks()]
        elif name in loaded["tasks"]:
            found.append(name)
        else:
            found += loaded["tags"][name]
    return found


def score(
    lm: Any, tasks: dict[str, Any], limit: int | None, items: Mapping[str, list[int]] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Score a model on loaded tasks.

    Args:
        lm: an lm-eval model.
        tasks: result of `load_tasks`; can be used only once.
        limit: largest number of documents per task; None: all.
        items: numbers of the documents of each task, in place of `limit`.

    Returns:
        Metrics and their standard errors, both named ``<task or group>/<metric>``; with a filter other than lm-eval's
        ``none``, the name is ``<task>/<metric>,<filter>``. Standard errors that lm-eval does not compute are left out.
    """
    from lm_eval.evaluator import evaluate

    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's switch: bootstrap in this process, do not fork
    which: dict[str, Any] = {"limit": limit} if items is None else {"samples": dict(items)}
    results = evaluate(lm, tasks, **which, bootstrap_iters=BOOTSTRAP_DRAWS, log_samples=False)
    metrics: dict[str, float] = {}
    sems: dict[str, float] = {}
    for name, row in {**results["results"], **results.get("groups", {})}.items():
        for key, value in row.items():
            metric, _, filter_name = key.partition(",")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not filter_name:
                continue  # not a metric: the alias, the number of documents, "N/A"
            label = f"{name}/{metric}" if filter_name == "none" else f"{name}/{metric},{filter_name}"
            if "_stderr" not in metric:
                metrics[label] = float(value)
            elif math.isfinite(value):
                sems[label.replace("_stderr", "", 1)] = float(value)
    return metrics, sems
