"""Checks before training: do the tasks, the metric, the tokenizer, the prompts and the data fit together?

A job makes these checks at its start, before it loads the model. `run` and `doctor` make them before anything else, in
a separate process that reads the settings of a job (JSON) from standard input and prints the faults::

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
from hpo_cluster.objectives.lora.imports import import_packages
from hpo_cluster.objectives.lora.instruction_data import files_of, read_data
from hpo_cluster.objectives.lora.metrics import MEASURES, OF_VALIDATION, lower_is_better
from hpo_cluster.objectives.lora.objective import LoraObjective, Wanted, refused_test
from hpo_cluster.objectives.lora.tasks import names_in
from hpo_cluster.objectives.lora.tokenizers import Tokenizers
from hpo_cluster.text import did_you_mean, first_line, instead_of
from hpo_cluster.trial import ErrorKind

CHECK_TIMEOUT_S = 300.0
#: Largest number of metrics of a group's tasks that a message lists.
SHOWN_METRICS = 12


def check_before_start(settings: Mapping[str, Any]) -> list[str]:
    """Return the faults that a job would end with before it trains, found in a separate process.

    Args:
        settings: settings of a job, from `LoraObjective.job_settings`.

    Returns:
        One sentence per fault; empty if this Python cannot import the packages of the jobs.
    """
    command = [sys.executable, "-m", "hpo_cluster.objectives.lora.checks"]
    try:
        done = subprocess.run(
            command, input=json.dumps(settings), capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return []  # the job checks again
    return [str(fault) for fault in answer]


def faults_of_settings(settings: Mapping[str, Any]) -> list[AttemptError]:
    """Read tasks, tokenizer and data as a job does, and return all faults found."""
    objective = LoraObjective.model_validate({k: v for k, v in settings.items() if k != "storage_dir"})
    checkpoint_dir = Path(objective.model.checkpoint_dir)
    faults = [
        *data_faults(objective),
        *prompt_faults(objective),
        *tokenizer_faults(Tokenizers(checkpoint_dir)),
        *dropout_faults(objective, checkpoint_dir),
    ]
    with tempfile.TemporaryDirectory(prefix="hpo-cluster-", ignore_cleanup_errors=True) as scratch:
        try:
            faults += task_faults(objective, load_tasks_of(objective, Path(scratch)))
        except AttemptError as error:
            faults.append(error)
    return faults


def load_tasks_of(objective: LoraObjective, cache_dir: Path) -> dict[str, Any]:
    """Load the validation and the test tasks. Raise AttemptError of kind ``missing_task`` or ``bad_config``."""
    from hpo_cluster.objectives.lora.tasks import load_tasks

    tasks = objective.tasks
    include_path = None if tasks.include_path is None else Path(tasks.include_path)
    return load_tasks((tasks.validation, *tasks.test), include_path, tasks.num_fewshot, cache_dir)


def raise_all(faults: Sequence[AttemptError]) -> None:
    """Raise one error that lists all faults, if any; its kind is that of the first."""
    if faults:
        raise AttemptError(faults[0].kind, "; ".join(map(str, faults)))


def task_faults(objective: LoraObjective, loaded: Mapping[str, Any]) -> list[AttemptError]:
    """Return why loaded tasks cannot be scored, or lack the metric that is optimised; empty if all is well.

    Args:
        objective: the settings.
        loaded: result of `load_tasks`.
    """
    return [
        *_metric_faults(objective, loaded),
        *(fault for name, task in loaded["tasks"].items() for fault in _scoring_faults(objective, name, task)),
    ]


def _scoring_faults(objective: LoraObjective, name: str, task: Any) -> Iterable[AttemptError]:
    if objective.evaluation == "in_memory" and task.OUTPUT_TYPE == "generate_until":
        yield from _generation_faults(objective, name, dict(task.get_config("generation_kwargs") or {}))
    wanted = int(task.get_config("num_fewshot") or 0)
    if wanted:
        with contextlib.suppress(Exception):  # a task may draw its examples in its own way
            there = len(list(task.fewshot_docs()))
            config = task.config
            drawn_from = config.fewshot_split or config.training_split or config.validation_split
            own = int(drawn_from == (config.test_split or config.validation_split))  # not an example of itself
            if wanted > there - own:
                yield AttemptError(
                    ErrorKind.BAD_CONFIG,
                    f"tasks.num_fewshot={wanted}: task {name} has only {there - own} documents to take examples from",
                )


def _generation_faults(objective: LoraObjective, name: str, options: Mapping[str, Any]) -> Iterable[AttemptError]:
    """Find out whether the model in memory can generate what a task asks for."""
    from litgpt.config import Config

    from hpo_cluster.objectives.lora.generation import Decoding

    try:
        more = Decoding.of(options).max_gen_toks
    except ValueError as error:
        message = (
            f"task {name} has {error}: evaluation=in_memory decodes greedily; take that out of "
            "the task, leave the task out of tasks.validation and tasks.test, or use objective.evaluation=litgpt_cli"
        )
        yield AttemptError(ErrorKind.BAD_CONFIG, message)
        return
    with contextlib.suppress(Exception):  # `dropout_faults` and the job say what is wrong with the model's files
        window = Config.from_file(Path(objective.model.checkpoint_dir) / "model_config.yaml").block_size
        if more >= window:
            message = (
                f"task {name} generates up to {more} tokens, which leaves no room for a prompt in the model's context "
                f"window of {window}; give the task generation_kwargs.max_gen_toks (lm-eval's is 256)"
            )
            yield AttemptError(ErrorKind.BAD_CONFIG, message)


def _metric_faults(objective: LoraObjective, loaded: Mapping[str, Any]) -> list[AttemptError]:
    """Return a fault for each metric that is missing, may not be optimised, or is better in the other direction."""
    found = [_metric_fault(objective, wanted, loaded) for wanted in objective.wanted if wanted.name not in MEASURES]
    return [AttemptError(ErrorKind.BAD_CONFIG, fault) for fault in found if fault]


def _metric_fault(objective: LoraObjective, wanted: Wanted, loaded: Mapping[str, Any]) -> str:
    """Return what is wrong with a metric of a task; empty if nothing is."""
    task, _, name = wanted.name.rpartition("/")
    inside = names_in([objective.tasks.validation], loaded)
    if task in names_in(objective.tasks.test, loaded):
        return refused_test(wanted.key, task)
    directions = _directions(task, loaded) if task in inside else {}
    if name not in directions:
        return _no_metric(objective, wanted, inside, loaded)
    right = "maximize" if directions[name] else "minimize"
    if wanted.direction in (None, right) or lower_is_better(wanted.typed) is not None:
        return ""  # the settings check well-known metrics
    better = "more" if directions[name] else "less"
    key = "objective.direction" if not objective.metrics else f"{wanted.key}, direction"
    return (
        f"{key}={wanted.direction}: task {task} declares that {better} {name} is better; "
        f"give {key}={right}, or correct higher_is_better in the task"
    )


def _directions(name: str, loaded: Mapping[str, Any]) -> dict[str, bool]:
    """Return for each metric of a task or a group whether more of it is better."""
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


def _no_metric(objective: LoraObjective, wanted: Wanted, inside: Sequence[str], loaded: Mapping[str, Any]) -> str:
    """Return a message that the metric cannot be optimised, with the metrics that can."""
    validation, metric = objective.tasks.validation, wanted.typed
    own = _directions(validation, loaded)
    full = {f"{name}/{key}": None for name in inside if name != validation for key in _directions(name, loaded)}
    others = [*full][:SHOWN_METRICS]
    more = len(full) - len(others)
    accepted = ", ".join([*own, *MEASURES, *others, *([f"{more} more TASK/METRIC"] if more else [])])
    if "/" in metric:
        meant = did_you_mean(metric, [*(f"{validation}/{key}" for key in own), *full])
        return f"{wanted.key}: no task of tasks.validation={validation} has it; {meant}accepted: {accepted}"
    if own:
        meant = did_you_mean(metric, [*own, *MEASURES])
        return f"{wanted.key}: {validation} has no such metric; {meant}accepted: {accepted}"
    if validation in loaded["groups"]:
        what = f"a group of {', '.join(loaded['group_map'][validation])} without an aggregate_metric_list, so it has"
        how = "use one of its tasks, or give the group an aggregate_metric_list"
    else:
        what, how = f"a tag for {', '.join(inside)}, and has", "use one of them"
    return f"tasks.validation={validation}: is {what} no value of its own; {how}. tasks.metric accepts: {accepted}"


def data_faults(objective: LoraObjective) -> list[AttemptError]:
    """Read all rows, and return what is wrong with them or with the split."""
    try:
        read_data(Path(objective.data.path), objective.data.fields)
    except AttemptError as error:
        return [error]
    return split_faults(objective)


def split_faults(objective: LoraObjective) -> list[AttemptError]:
    """Return a fault if validation rows are missing or defined twice; no row is read."""
    data = objective.data
    _, validation = files_of(Path(data.path))
    if validation is not None and data.val_split_fraction:
        message = (
            f"data.val_split_fraction={data.val_split_fraction}: {data.path} has its own validation rows; leave it "
            "null, or give only the training file"
        )
        return [AttemptError(ErrorKind.BAD_CONFIG, message)]
    if validation is not None or data.val_split_fraction != 0:
        return []
    unmeasured = [wanted.key for wanted in objective.wanted if wanted.name in OF_VALIDATION]
    hint = "there are no validation rows; give data.val_split_fraction, or a val.json"
    return [AttemptError(ErrorKind.BAD_CONFIG, f"{key}: {hint}") for key in unmeasured]


def prompt_faults(objective: LoraObjective) -> list[AttemptError]:
    """Return a fault if LitGPT does not have the prompt style."""
    from litgpt.prompts import prompt_styles

    style = objective.data.prompt_style
    if style in prompt_styles:
        return []
    message = f"data.prompt_style={style}: LitGPT has no such style; {instead_of(style, prompt_styles)}"
    return [AttemptError(ErrorKind.BAD_CONFIG, message)]


def tokenizer_faults(tokenizers: Tokenizers) -> list[AttemptError]:
    """Load the tokenizer with transformers, which scores, and with LitGPT, which trains; return a fault, if any.

    It is a fault too if the two split a text into different tokens.
    """
    checkpoint_dir = tokenizers.checkpoint_dir

    def fault(what: str) -> list[AttemptError]:
        return [AttemptError(ErrorKind.MISSING_MODEL, f"the tokenizer in {checkpoint_dir} {what}")]

    try:
        eos = tokenizers.hugging_face.eos_token_id
    except Exception as error:  # files of other versions raise many kinds of errors
        hint = "a newer version of transformers may have written it: use the tokenizer files of an older revision"
        return fault(f"cannot be read by transformers ({_short(error)}); {hint}")
    if eos is None:
        return fault('has no eos token: add "eos_token" to its tokenizer_config.json')
    try:
        difference = tokenizers.difference()
    except Exception as error:
        return fault(f"cannot be read by LitGPT ({_short(error)})")
    if difference is None:
        return []
    hint = "see add_bos_token and add_eos_token in its tokenizer_config.json, and post_processor in tokenizer.json"
    return fault(f"gives training other tokens than scoring: {difference}; {hint}")


def dropout_faults(objective: LoraObjective, checkpoint_dir: Path) -> list[AttemptError]:
    """Return a fault if train.dropout_draws is one that the model does not support."""
    from litgpt.config import Config

    train = objective.train
    try:
        experts = Config.from_file(checkpoint_dir / "model_config.yaml").n_expert
    except Exception as error:
        message = f"{checkpoint_dir / 'model_config.yaml'} cannot be read by LitGPT ({_short(error)})"
        return [AttemptError(ErrorKind.MISSING_MODEL, message)]
    if experts and train.lora_mlp and train.lora_dropout > 0 and train.dropout_draws == "litgpt":
        message = (
            "train.dropout_draws=litgpt: not for a mixture of experts with train.lora_mlp and train.lora_dropout; "
            "accepted: step"
        )
        return [AttemptError(ErrorKind.BAD_CONFIG, message)]
    return []


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(str(error))[:200]}"


def main() -> int:
    """Read the settings and print the faults as a JSON list, on the last line of the output."""
    settings = json.loads(sys.stdin.read())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import_packages()
            faults = [f"{fault}" for fault in faults_of_settings(settings)]
        except ImportError:
            faults = []
    sys.stdout.write(json.dumps(faults) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
