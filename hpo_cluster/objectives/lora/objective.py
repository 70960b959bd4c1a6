"""Fine-tune a causal language model with LitGPT's LoRA and score it with lm-eval.

Here is what it optimises, what identifies it, and what is checked before a campaign begins. The program is
``jobs/lora.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from hpo_cluster.fidelity import Ladder
from hpo_cluster.goals import Direction
from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.objectives.lora.hugging_face import conversion_fault, litgpt_dir, missing_files
from hpo_cluster.objectives.lora.instruction_data import files_of
from hpo_cluster.objectives.lora.metrics import (
    LESS_IS_BETTER,
    MEASURES,
    MORE_IS_BETTER,
    OF_TRAINING,
    OF_VALIDATION,
    lower_is_better,
)
from hpo_cluster.objectives.lora.settings import (
    ADDED,
    FIXED_SETTINGS,
    DataSettings,
    ModelSettings,
    TasksSettings,
    TrainSettings,
    effective_train,
)
from hpo_cluster.space import Categorical, Parameter, Space, Value
from hpo_cluster.text import instead_of

#: Number of random configurations that are checked against rules about several settings.
PROBES = 1000


class Wanted(NamedTuple):
    """A metric that a campaign needs: its name in the settings and in results, its direction and where it is typed.

    The direction of a metric that only a constraint needs is None.
    """

    typed: str
    name: str
    direction: Direction | None
    key: str


def refused_test(key: str, task: str) -> str:
    """Return a message that says why the metric of a test task cannot be optimised."""
    return (
        f"{key}: {task} is a test task: it is only recorded, to judge the result independently; "
        f"to optimise it, give tasks.validation={task} and take it out of tasks.test"
    )


class LoraObjective(Objective):
    """LoRA fine-tuning followed by scoring. If the direction is not given, it follows from the metric."""

    OPERATIONAL = ("train.tokens_at_once", "train.checkpoint_interval_s", "tasks.tokens_at_once", "keep_adapter")
    FORMER = ("train.physical_batch_size",)
    EXACT = ("trainable_parameters",)
    METRIC_KEY = "tasks.metric"
    FIDELITIES = ("steps", "data", "items")
    KNOWN = (*MEASURES, *MORE_IS_BETTER, *LESS_IS_BETTER)
    PLACES = ("model.checkpoint_dir", "data.path", "tasks.include_path")

    kind: Literal["lora"] = "lora"
    model: ModelSettings
    data: DataSettings
    tasks: TasksSettings
    train: TrainSettings
    evaluation: Literal["in_memory", "litgpt_cli"] = Field(
        "in_memory",
        description="in_memory: score the merged model in memory; litgpt_cli: convert and `litgpt evaluate`",
    )
    score_precision: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="precision in which the adapter is merged and the model scored by evaluation=in_memory; null: that "
        "of training",
    )
    keep_adapter: bool = Field(True, description="whether each attempt saves its LoRA weights")

    @model_validator(mode="before")
    @classmethod
    def _direction_of_metric(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("direction") is not None:
            return data
        tasks = data.get("tasks")
        metric = tasks.get("metric") if isinstance(tasks, dict) else getattr(tasks, "metric", None)
        less = isinstance(metric, str) and lower_is_better(metric)
        return {**data, "direction": "minimize" if less else "maximize"}

    @classmethod
    def full_name(cls, name: str, data: Mapping[str, Any]) -> str:
        """Return the name of a metric in results: ``TASK/METRIC`` for one of the validation task."""
        tasks = data.get("tasks")
        validation = tasks.get("validation") if isinstance(tasks, dict) else getattr(tasks, "validation", None)
        return name if name in MEASURES or "/" in name else f"{validation}/{name}"

    @classmethod
    def known_direction(cls, name: str) -> Direction | None:
        """Return which values of a metric are better; None if its name is not well known."""
        less = lower_is_better(name)
        return None if less is None else "minimize" if less else "maximize"

    @model_validator(mode="after")
    def _metric_can_be_optimised(self) -> Self:
        metric, less = self.tasks.metric, lower_is_better(self.tasks.metric)
        if not self.metrics and less is not None and less == (self.direction == "maximize"):
            better, wanted = ("less", "minimize") if less else ("more", "maximize")
            raise ValueError(
                f"objective.direction={self.direction}: {better} {metric} is better; give {wanted}, or null"
            )
        if self.score_precision is not None and self.evaluation == "litgpt_cli":
            raise ValueError(
                f"objective.score_precision={self.score_precision}: objective.evaluation=litgpt_cli merges and scores "
                "in the precision of training; give objective.score_precision=null, or objective.evaluation=in_memory"
            )
        for name, full, _, key in self.wanted:
            if name in OF_VALIDATION and not self.train.validation_batches:
                raise ValueError(f"{key}: train.validation_batches=0 does not measure it; give 1 or more")
            task, of_a_task, _ = full.rpartition("/")
            if of_a_task and task in self.tasks.test:
                raise ValueError(refused_test(key, task))
        return self

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The metrics that each result must hold."""
        typed = self.tasks.metric
        goals = [Wanted(g.name, g.name, g.direction, f"objective.metrics: {g.name}") for g in self.metrics]
        if not goals or [goal.name for goal in goals] == [self.full_name(typed, {"tasks": self.tasks})]:
            goals = [Wanted(typed, self.metric, self.direction, f"tasks.metric={typed}")]
        bounds = [Wanted(b.name, b.name, None, f"objective.constraints: {b.name}") for b in self.constraints]
        return (*goals, *bounds)

    def identity(self) -> dict[str, Any]:
        """Return the settings that must not change; without defaults that old campaigns do not have."""
        identity = super().identity()
        if not self.data.fields:
            del identity["data"]["fields"]
        for name in ("dropout_draws", "lr_decay_share"):
            if identity["train"][name] == ADDED[name]:
                del identity["train"][name]
        if self.score_precision is None:
            del identity["score_precision"]
        return identity

    @property
    def label(self) -> str:
        """Short name, used in the default name of a campaign."""
        return "lora"

    @property
    def program(self) -> str:
        """File name of the program in ``jobs/``."""
        return "lora.py"

    @property
    def metric(self) -> str:
        """Name of the metric that is optimised; the first one of several."""
        if self.metrics:
            return self.metrics[0].name
        metric = self.tasks.metric
        return metric if metric in MEASURES or "/" in metric else f"{self.tasks.validation}/{metric}"

    @property
    def has_baseline(self) -> bool:
        """Whether the objective can be evaluated before any tuning: the base model can be scored."""
        return True

    @property
    def not_of_baseline(self) -> tuple[str, ...]:
        """Names of the needed metrics that a model before fine-tuning does not have."""
        return tuple(wanted.name for wanted in self.wanted if wanted.name in OF_TRAINING)

    @property
    def test_tasks(self) -> tuple[str, ...]:
        """Names of the tasks whose metrics are only recorded."""
        return self.tasks.test

    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """Return the ``settings`` of ``params.json``: plain JSON, all paths absolute."""
        settings = self.model_dump(mode="json")
        for name, default in ADDED.items():  # a campaign runs its own copy of the code, which may not know them
            if settings["train"][name] == default:
                del settings["train"][name]
        if self.score_precision is None:
            del settings["score_precision"]
        settings["model"]["checkpoint_dir"] = str(litgpt_dir(resolve(self.model.checkpoint_dir), resolve))
        settings["data"]["path"] = str(resolve(self.data.path))
        settings["storage_dir"] = str(resolve("storage:"))
        if self.tasks.include_path is not None:
            settings["tasks"]["include_path"] = str(resolve(self.tasks.include_path))
        return settings

    def prepare(self, resolve: PathResolver, say: Callable[[str], object]) -> None:
        """Fetch or convert the model, the data and the tasks. Raises ConfigError with all that is missing."""
        from hpo_cluster.objectives.lora.prepare import prepare

        prepare(self, resolve, say)

    def gpu_faults(self, gpus: int) -> list[str]:
        """Return the fault if the model is scored by lm-eval's own class, which uses one GPU."""
        if gpus <= 1 or self.evaluation != "litgpt_cli":
            return []
        return [
            f"launcher.gpus_per_trial={gpus}: objective.evaluation=litgpt_cli scores on one GPU; give "
            "objective.evaluation=in_memory or launcher.gpus_per_trial=1"
        ]

    def fidelity_faults(self, ladder: Ladder, space: Space | None = None) -> list[str]:
        """Return the fault if the model cannot be scored early, or if the metric does not depend on items."""
        faults = super().fidelity_faults(ladder, space)
        if not faults and self.evaluation == "litgpt_cli":
            how = "give objective.evaluation=in_memory"
            faults.append(f"fidelity={ladder.kind}: objective.evaluation=litgpt_cli scores only whole trainings; {how}")
        if ladder.kind == "items" and not any("/" in wanted.name for wanted in self.wanted):
            names = ", ".join(wanted.name for wanted in self.wanted)
            faults.append(f"fidelity=items: {names} does not depend on items of a task; use fidelity=steps")
        return faults

    def space_faults(self, space: Space) -> list[str]:
        """Return parameters without a training setting of their name, and values that settings do not accept."""
        faults = []
        fields = [name for name in TrainSettings.model_fields if name not in FIXED_SETTINGS]
        for name, parameter in space.parameters.items():
            if name not in fields:
                hint = instead_of(name, fields)
                faults.append(f"space.{name}: objective=lora has no training setting of that name; {hint}")
                continue
            for value in ends(parameter):
                try:
                    effective_train(self.train, {name: value})
                except ValidationError as error:
                    if any(entry["loc"] == (name,) for entry in error.errors()):
                        faults.append(f"space.{name}: the training setting does not accept {value!r}")
        faults += self._without_effect(space)
        return faults or self._joint_faults(space)

    def _without_effect(self, space: Space) -> list[str]:
        """Return the parameters that have no effect because of other settings."""
        idle = {}
        if "lora_alpha_rule" not in space.parameters:
            rule = self.train.lora_alpha_rule
            idle["lora_alpha_factor" if rule == "free" else "lora_alpha"] = f"train.lora_alpha_rule={rule}"
        if "lr_warmup_share" in space.parameters:
            idle["lr_warmup_steps"] = "space.lr_warmup_share"
        elif self.train.lr_warmup_share is not None:
            idle["lr_warmup_steps"] = f"train.lr_warmup_share={self.train.lr_warmup_share:g}"
        schedules = space.parameters.get("lr_schedule")
        if schedules is None and self.train.lr_schedule != "wsd":
            idle["lr_decay_share"] = f"train.lr_schedule={self.train.lr_schedule}"
        elif schedules is not None and "wsd" not in ends(schedules):
            choices = ", ".join(map(str, ends(schedules)))
            idle["lr_decay_share"] = f"space.lr_schedule={{choices: [{choices}]}}"
        found = [(name, why) for name, why in idle.items() if name in space.parameters]
        return [f"space.{name}: has no effect with {why}; change that, or remove the parameter" for name, why in found]

    def _joint_faults(self, space: Space) -> list[str]:
        """Return the rules about several settings that some allowed configurations break, found by random sampling."""
        found: dict[str, str] = {}
        rng = np.random.default_rng(0)
        for configuration in filter(space.allows, map(space.decode, rng.random((PROBES, space.dim)))):
            try:
                effective_train(self.train, configuration)
            except ValidationError as error:
                for entry in error.errors():
                    reason = entry["msg"].removeprefix("Value error, ")
                    rule = reason.partition("=")[0].partition(";")[0]
                    seen = {n: v for n, v in configuration.items() if n in reason} or configuration
                    found.setdefault(rule, f"{reason}, at {json.dumps(seen)}")
        hint = "exclude it with a constraint: space.constraints"
        return [f"space: a configuration is not accepted: {fault}; {hint}" for fault in found.values()]

    def reading_faults(self, resolve: PathResolver) -> list[str]:
        """Return the faults found by reading tasks, tokenizer and data as a job does; takes some seconds."""
        from hpo_cluster.objectives.lora.checks import check_before_start

        return check_before_start(self.job_settings(resolve))

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Return which files the jobs need and lack, each with what to do about it."""
        faults = []
        prepare = f"hpo-cluster prepare model={self.model.name} data={self.data.name} tasks={self.tasks.name}"
        configured_dir = resolve(self.model.checkpoint_dir)
        checkpoint_dir = litgpt_dir(configured_dir, resolve)
        if fault := conversion_fault(configured_dir, resolve):
            faults.append(f"model.checkpoint_dir: {fault}")
        elif missing := missing_files(checkpoint_dir):
            how = (
                f"run: {prepare}"
                if self.model.repo_id
                else "give a LitGPT checkpoint directory or a Hugging Face folder"
            )
            faults.append(f"model.checkpoint_dir: {checkpoint_dir} lacks {', '.join(missing)}; {how}")
        data_path = resolve(self.data.path)
        if files_of(data_path)[0] is None:
            how = f"run: {prepare}" if self.data.url else "give a .json or .jsonl file, or a folder with train.json"
            faults.append(f"data.path: {data_path} is not Alpaca-format data; {how}")
        if self.tasks.include_path is not None and not resolve(self.tasks.include_path).is_dir():
            faults.append(f"tasks.include_path: {resolve(self.tasks.include_path)} is not a directory")
        return faults


def ends(parameter: Parameter) -> tuple[Value, ...]:
    """Return the values of a parameter that a setting must accept in order to accept all: the choices or both ends."""
    if isinstance(parameter, Categorical):
        return parameter.choices
    return parameter.decode(0.0), parameter.decode(1.0)
