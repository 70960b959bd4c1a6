"""What can be known before training: do the tasks, the metric, the tokenizer, the prompts and the data fit together?

A job checks at its start, before the model is loaded. `run` and `doctor` check first of all, in a process of its own
that reads the settings of a job (JSON) from standard input and prints the faults found::

    python -m hpo_cluster.objectives.lora.checks < settings.json
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora.instruction_data import files_of, read_data
from hpo_cluster.objectives.lora.settings import MEASURES, OF_VALIDATION, LoraObjective, lower_is_better, refused_test
from hpo_cluster.text import did_you_mean
from hpo_cluster.trial import ErrorKind

#: What the model in memory can be asked for; LitGPT's classic route generates too.
SCORED = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")
CHECK_TIMEOUT_S = 300.0
#: Metrics of a group's tasks that a message lists.
SHOWN_METRICS = 12


def check_before_start(settings: Mapping[str, Any]) -> list[str]:
    """Find the faults that a job would end with before it trains, in a process of its own.

    Args:
        settings: of a job, as `LoraObjective.job_settings` gives them.

    Returns:
        One sentence for each fault. None are found if the packages of the jobs cannot be imported here.
    """
    command = [sys.executable, "-m", "hpo_cluster.objectives.lora.checks"]
    try:
        done = subprocess.run(
            command, input=json.dumps(settings), capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return []  # the job's own check will say
    return [str(fault) for fault in answer]


def faults_of_settings(settings: Mapping[str, Any]) -> list[AttemptError]:
    """Read tasks, tokenizer and data as a job does, and return all faults."""
    objective = LoraObjective.model_validate({k: v for k, v in settings.items() if k != "storage_dir"})
    checkpoint_dir = Path(objective.model.checkpoint_dir)
    faults = [
        *data_faults(objective),
        *prompt_faults(objective),
        *tokenizer_faults(checkpoint_dir),
        *batch_faults(objective, checkpoint_dir),
    ]
    with tempfile.TemporaryDirectory(prefix="hpo-cluster-", ignore_cleanup_errors=True) as scratch:
        try:
            faults += task_faults(objective, load_tasks_of(objective, Path(scratch)))
        except AttemptError as error:
            faults.append(error)
    return faults


def load_tasks_of(objective: LoraObjective, cache_dir: Path) -> dict[str, Any]:
    """Load the validation and the test tasks. Faults are of kinds ``missing_task`` and ``bad_config``."""
    from hpo_cluster.objectives.lora.tasks import load_tasks

    tasks = objective.tasks
    include_path = None if tasks.include_path is None else Path(tasks.include_path)
    return load_tasks((tasks.validation, *tasks.test), include_path, tasks.num_fewshot, cache_dir)


def raise_all(faults: Sequence[AttemptError]) -> None:
    """Raise one error that tells all faults, of the kind of the first."""
    if faults:
        raise AttemptError(faults[0].kind, "; ".join(map(str, faults)))


def task_faults(objective: LoraObjective, loaded: Mapping[str, Any]) -> list[AttemptError]:
    """Find out whether loaded tasks can be scored and have the metric that is optimised.

    Args:
        objective: the settings.
        loaded: from `load_tasks`.
    """
    return [
        *_metric_faults(objective, loaded),
        *(fault for name, task in loaded["tasks"].items() for fault in _scoring_faults(objective, name, task)),
    ]


def _scoring_faults(objective: LoraObjective, name: str, task: Any) -> Iterable[AttemptError]:
    if objective.evaluation == "in_memory" and task.OUTPUT_TYPE not in SCORED:
        yield AttemptError(
            ErrorKind.BAD_CONFIG,
            f"task {name} has output_type {task.OUTPUT_TYPE}: the model in memory generates no text; accepted: "
            f"{', '.join(SCORED)}. Leave the task out of tasks.validation and tasks.test, or use "
            "objective.evaluation=litgpt_cli",
        )
    wanted = int(task.get_config("num_fewshot") or 0)
    if wanted:
        with contextlib.suppress(Exception):  # a task that draws its examples in a way of its own
            there = len(list(task.fewshot_docs()))
            config = task.config
            drawn_from = config.fewshot_split or config.training_split or config.validation_split
            own = int(drawn_from == (config.test_split or config.validation_split))  # a document is not its own example
            if wanted > there - own:
                yield AttemptError(
                    ErrorKind.BAD_CONFIG,
                    f"tasks.num_fewshot={wanted}: task {name} has {there - own} documents to take examples from",
                )


def _metric_faults(objective: LoraObjective, loaded: Mapping[str, Any]) -> list[AttemptError]:
    """Find out whether there is such a metric, whether it may be optimised, and whether more of it is better."""
    validation, metric = objective.tasks.validation, objective.tasks.metric
    if metric in MEASURES:
        return []
    task, _, name = objective.metric.rpartition("/")
    inside = _names_in([validation], loaded)
    if task in _names_in(objective.tasks.test, loaded):
        return [AttemptError(ErrorKind.BAD_CONFIG, refused_test(metric, task))]
    directions = _directions(task, loaded) if task in inside else {}
    if name not in directions:
        return [AttemptError(ErrorKind.BAD_CONFIG, _no_metric(objective, inside, loaded))]
    wanted = "maximize" if directions[name] else "minimize"
    if objective.direction != wanted and lower_is_better(metric) is None:  # known metrics were checked by their names
        better = "more" if directions[name] else "less"
        message = (
            f"objective.direction={objective.direction}: task {task} says that {better} {name} is better; "
            f"give objective.direction={wanted}, or correct higher_is_better in the task"
        )
        return [AttemptError(ErrorKind.BAD_CONFIG, message)]
    return []


def _names_in(names: Iterable[str], loaded: Mapping[str, Any]) -> list[str]:
    """Return the tasks and groups that have values of their own, of tasks, groups and tags by name."""
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


def _directions(name: str, loaded: Mapping[str, Any]) -> dict[str, bool]:
    """Return the metrics of a task or a group, by whether more of each is better."""
    if name in loaded["tasks"]:
        task = loaded["tasks"][name]
        filters = [each.name for each in task._filters] or ["none"]
        return {
            key if each == "none" else f"{key},{each}": bool(better)
            for each in filters
            for key, better in task.higher_is_better().items()
        }
    group = loaded["groups"].get(name)
    members = [] if group is None else group.get_all_tasks()
    return {
        entry.metric: all(bool(task.higher_is_better().get(entry.metric, True)) for task in members)
        for entry in (getattr(group, "aggregate_metric_list", None) or ())
    }


def _no_metric(objective: LoraObjective, inside: Sequence[str], loaded: Mapping[str, Any]) -> str:
    """Say that the metric is none that can be optimised, with those that can."""
    validation, metric = objective.tasks.validation, objective.tasks.metric
    own = _directions(validation, loaded)
    full = {f"{name}/{key}": None for name in inside if name != validation for key in _directions(name, loaded)}
    others = [*full][:SHOWN_METRICS]
    more = len(full) - len(others)
    accepted = ", ".join([*own, *MEASURES, *others, *([f"{more} more TASK/METRIC"] if more else [])])
    if "/" in metric:
        meant = did_you_mean(metric, [*(f"{validation}/{key}" for key in own), *full])
        return f"tasks.metric={metric}: no task of tasks.validation={validation} has it; {meant}accepted: {accepted}"
    if own:
        meant = did_you_mean(metric, [*own, *MEASURES])
        return f"tasks.metric={metric}: {validation} has no such metric; {meant}accepted: {accepted}"
    if validation in loaded["groups"]:
        what = f"a group of {', '.join(loaded['group_map'][validation])} without an aggregate_metric_list, so it has"
        how = "take one of its tasks, or give it one"
    else:
        what, how = f"a tag for {', '.join(inside)}, and has", "take one of them"
    return f"tasks.validation={validation}: is {what} no value of its own; {how}. tasks.metric accepts: {accepted}"


def data_faults(objective: LoraObjective) -> list[AttemptError]:
    """Read all rows, and find out whether they are divided as the settings say."""
    try:
        read_data(Path(objective.data.path), objective.data.fields)
    except AttemptError as error:
        return [error]
    return split_faults(objective)


def split_faults(objective: LoraObjective) -> list[AttemptError]:
    """Find out whether there are rows to validate with, and one rule for which they are; reads no row."""
    data = objective.data
    _, validation = files_of(Path(data.path))
    if validation is not None and data.val_split_fraction:
        message = (
            f"data.val_split_fraction={data.val_split_fraction}: {data.path} has validation rows of its own; leave it "
            "null, or give the training file alone"
        )
        return [AttemptError(ErrorKind.BAD_CONFIG, message)]
    metric = objective.tasks.metric
    if metric in OF_VALIDATION and validation is None and data.val_split_fraction == 0:
        message = f"tasks.metric={metric}: there are no validation rows; give data.val_split_fraction, or a val.json"
        return [AttemptError(ErrorKind.BAD_CONFIG, message)]
    return []


def prompt_faults(objective: LoraObjective) -> list[AttemptError]:
    """Find out whether LitGPT has the prompt style."""
    from litgpt.prompts import prompt_styles

    style = objective.data.prompt_style
    if style in prompt_styles:
        return []
    meant = did_you_mean(style, prompt_styles)
    message = f"data.prompt_style={style}: LitGPT has no such style; {meant}accepted: {', '.join(prompt_styles)}"
    return [AttemptError(ErrorKind.BAD_CONFIG, message)]


def tokenizer_faults(checkpoint_dir: Path) -> list[AttemptError]:
    """Load the tokenizer that scores, and the one that LitGPT trains with."""
    from litgpt.tokenizer import Tokenizer
    from transformers import AutoTokenizer

    faults = []
    try:
        if AutoTokenizer.from_pretrained(checkpoint_dir).eos_token_id is None:
            what = 'has no eos token: add "eos_token" to its tokenizer_config.json'
            faults.append(AttemptError(ErrorKind.MISSING_MODEL, f"the tokenizer in {checkpoint_dir} {what}"))
    except Exception as error:  # whatever a file of another version makes of it
        hint = "it may be written by a newer version of transformers: take the tokenizer's files of an older revision"
        message = f"the tokenizer in {checkpoint_dir} cannot be read by transformers ({_short(error)}); {hint}"
        faults.append(AttemptError(ErrorKind.MISSING_MODEL, message))
    try:
        Tokenizer(checkpoint_dir)
    except Exception as error:
        message = f"the tokenizer in {checkpoint_dir} cannot be read by LitGPT ({_short(error)})"
        faults.append(AttemptError(ErrorKind.MISSING_MODEL, message))
    return faults


def batch_faults(objective: LoraObjective, checkpoint_dir: Path) -> list[AttemptError]:
    """Find out whether the physical batch can differ from the micro-batch in this model."""
    from litgpt.config import Config

    train = objective.train
    physical = train.physical_batch_size or train.micro_batch_size
    try:
        experts = Config.from_file(checkpoint_dir / "model_config.yaml").n_expert
    except Exception as error:
        message = f"{checkpoint_dir / 'model_config.yaml'} cannot be read by LitGPT ({_short(error)})"
        return [AttemptError(ErrorKind.MISSING_MODEL, message)]
    if experts and train.lora_mlp and train.lora_dropout > 0 and physical != train.micro_batch_size:
        message = (
            f"train.physical_batch_size={physical}: must equal train.micro_batch_size={train.micro_batch_size} for a "
            "mixture of experts with train.lora_mlp and train.lora_dropout"
        )
        return [AttemptError(ErrorKind.BAD_CONFIG, message)]
    return []


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def main() -> int:
    """Read settings, print the faults as a JSON list on the last line."""
    settings = json.loads(sys.stdin.read())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            faults = [f"{fault}" for fault in faults_of_settings(settings)]
        except ImportError:
            faults = []
    sys.stdout.write(json.dumps(faults) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
