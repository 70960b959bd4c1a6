"""Fine-tune a causal language model with LitGPT's LoRA and score it with lm-eval.

The program is ``jobs/lora.py``; it reads no other settings than these. A parameter of the search space tunes the
training setting of the same name, so any field of `TrainSettings` can be tuned or fixed, except `FIXED_SETTINGS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from hpo_cluster.fidelity import Ladder
from hpo_cluster.goals import GPU_SECONDS, Direction
from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.objectives.lora.hugging_face import conversion_fault, litgpt_dir, missing_files
from hpo_cluster.objectives.lora.instruction_data import Field as Column
from hpo_cluster.objectives.lora.instruction_data import files_of
from hpo_cluster.settings import Settings
from hpo_cluster.space import Categorical, Parameter, Space, Value
from hpo_cluster.text import instead_of

#: Matrices that LoRA can adapt; each has a setting ``lora_<name>``.
LORA_MATRICES = ("query", "key", "value", "projection", "mlp", "head")

#: Training settings that cannot be tuned.
FIXED_SETTINGS = ("seed", "tokens_at_once", "dropout_draws", "checkpoint_interval_s")

#: Training settings that earlier versions do not have, with the values that stand for what those did.
ADDED: dict[str, Any] = {"tokens_at_once": None, "dropout_draws": "step", "lr_decay_share": 0.15}

#: Number of random configurations that are checked against rules about several settings.
PROBES = 1000

#: Metrics that the job measures in addition to those of the tasks, and whether less is better. All can be optimised.
MEASURES = {
    "val_loss": True,
    "train_loss": True,
    "val_perplexity": True,
    "train_s": True,
    GPU_SECONDS: True,
    "tokens_per_s": False,
    "peak_memory_gb": True,
    "energy_wh": True,
    "trainable_parameters": True,
}

#: Measures that need validation rows, and measures that do not exist before fine-tuning.
OF_VALIDATION = ("val_loss", "val_perplexity")
OF_TRAINING = ("train_loss", "train_s", "tokens_per_s", "trainable_parameters")

#: Well-known metrics of lm-eval, by direction.
_LESS_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter", "brier_score")
_MORE_IS_BETTER = ("acc", "acc_norm", "acc_mutual_info", "acc_all", "exact_match", "f1", "mcc", "bleu", "chrf", "em")


class ModelSettings(Settings):
    """The base model: a LitGPT checkpoint directory, or a Hugging Face folder that `prepare` has converted."""

    name: str = Field(description="short name, used in messages and reports")
    checkpoint_dir: str = Field(
        description="LitGPT checkpoint directory or Hugging Face folder; may begin with `storage:` or `bundle:`"
    )
    repo_id: str | None = Field(
        None, description="repository on the Hugging Face hub from which `prepare` downloads the weights"
    )
    gated: bool = Field(
        False, description="whether the hub requires a token of an account that has accepted the licence"
    )


class DataSettings(Settings):
    """The training data in Alpaca format: rows with instruction, input and output."""

    name: str = Field(description="short name, used in messages and reports")
    path: str = Field(description="a JSON or JSONL file, or a directory with train.json(l) and, if any, val.json(l)")
    url: str | None = Field(None, description="URL from which `prepare` downloads the file")
    fields: dict[Column, str] = Field(
        default_factory=dict,
        description="names of columns that are called otherwise in the file: {instruction: prompt}",
    )
    val_split_fraction: float | None = Field(
        None, ge=0, lt=1, description="share of a single file used for the validation loss (null: 0.05; 0: none)"
    )
    split_seed: int = Field(42, description="seed of this split and of the order of the examples")
    prompt_style: str = Field("alpaca", description="LitGPT prompt style")
    mask_prompt: bool = Field(False, description="whether the loss ignores the tokens of the prompt")


class TasksSettings(Settings):
    """The lm-eval tasks: the validation task is optimised, the test tasks are only recorded."""

    name: str = Field(description="short name, used in messages and reports")
    validation: str = Field(description="lm-eval task that is optimised")
    test: tuple[str, ...] = Field((), description="lm-eval tasks that are only recorded")
    metric: str = Field(
        "acc",
        min_length=1,
        description="metric of the validation task that is optimised; or TASK/METRIC of a task in it, or one of "
        f"{', '.join(MEASURES)}",
    )
    include_path: str | None = Field(None, description="directory of task YAML files of your own")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; null leaves it to the task (zero)")
    limit: int | None = Field(None, ge=1, description="largest number of documents to score per task; null: all")
    tokens_at_once: int | None = Field(
        None, ge=1, description="tokens scored at once; null: what fits into memory; halved if that is too many"
    )
    batch_size: int = Field(64, ge=1, description="sequences scored at once by objective.evaluation=litgpt_cli")
    datasets: tuple[str, ...] = Field((), description="hub data sets that the tasks read; `prepare` downloads them")


class TrainSettings(Settings):
    """The settings of one fine-tuning run. A parameter of the same name tunes a field; see `FIXED_SETTINGS`."""

    learning_rate: float = Field(3e-4, ge=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay of AdamW")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay rate of the running mean of the gradient")
    beta2: float = Field(
        0.999, ge=0, lt=1, description="AdamW's decay rate of the running mean of the squared gradient"
    )
    epsilon: float = Field(1e-8, gt=0, description="AdamW's term added to the root of the mean squared gradient")
    lora_rank: int = Field(8, ge=1, description="rank of the LoRA matrices")
    lora_alpha: float = Field(16, gt=0, description="LoRA scale: the update is multiplied by alpha / rank")
    lora_alpha_rule: Literal["free", "rank", "root"] = Field(
        "free",
        description="free: lora_alpha; rank or root: lora_alpha_factor times the rank or its square root",
    )
    lora_alpha_factor: float = Field(
        2.0, gt=0, description="alpha divided by the rank or its root, if lora_alpha_rule is rank or root"
    )
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout before the LoRA matrices")
    dropout_draws: Literal["step", "litgpt"] = Field(
        "step", description="step: each mask is drawn once a step; litgpt: the draws of LitGPT's loop, slower"
    )
    lora_query: bool = Field(True, description="LoRA on the query projection")
    lora_key: bool = Field(True, description="LoRA on the key projection")
    lora_value: bool = Field(True, description="LoRA on the value projection")
    lora_projection: bool = Field(False, description="LoRA on the attention's output projection")
    lora_mlp: bool = Field(False, description="LoRA on the MLP")
    lora_head: bool = Field(True, description="LoRA on the language-model head")
    epochs: int = Field(1, ge=1, description="passes over the training data")
    max_steps: int | None = Field(
        None, ge=1, description="largest number of optimizer steps; shortens the schedule too"
    )
    global_batch_size: int = Field(16, ge=1, description="sequences in one optimizer step")
    micro_batch_size: int = Field(
        1, ge=1, description="sequences whose token losses are averaged together; affects the weights of the loss"
    )
    tokens_at_once: int | None = Field(
        None,
        ge=1,
        description="largest number of tokens on the device at once; halved when memory runs out; does not affect "
        "results; null: as many as fit into a GPU's free memory, 1024 on a CPU",
    )
    lr_warmup_steps: int = Field(100, ge=0, description="optimizer steps of linear warm-up before the schedule")
    lr_warmup_share: float | None = Field(
        None, ge=0, le=1, description="warm-up as a share of the schedule's steps; null: lr_warmup_steps"
    )
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine",
        description="learning rate after the warm-up: a cosine or a line to zero, constant, or constant with a line to "
        "zero at the end (wsd: warm-up, stable, decay), so that the model scored at a rung of fidelity=steps is a "
        "finished copy",
    )
    lr_decay_share: float = Field(
        ADDED["lr_decay_share"],
        gt=0,
        le=1,
        description="share of the steps, the last ones, in which lr_schedule=wsd falls to zero; at a rung, a copy is "
        "trained for this share of the steps done so far",
    )
    max_seq_length: int | None = Field(
        None, ge=1, description="longer examples are truncated; null: the block size of the model"
    )
    precision: Literal["bf16-true", "bf16-mixed", "32-true"] = Field("bf16-true", description="LitGPT precision")
    validation_batches: int = Field(
        100, ge=0, description="largest number of micro-batches for the final validation loss"
    )
    checkpoint_interval_s: float = Field(
        300, ge=0, description="seconds between two checkpoints; does not affect results; 0: only on a signal"
    )
    seed: int | None = Field(
        None, ge=0, description="seed of training; null: derived from the campaign seed and the trial"
    )

    @property
    def alpha(self) -> float:
        """LoRA's alpha by `lora_alpha_rule`; ``root`` is rank-stabilised LoRA: scale = factor / sqrt(rank).

        Reference: D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023
        (arXiv:2312.03732).
        """
        if self.lora_alpha_rule == "free":
            return self.lora_alpha
        return self.lora_alpha_factor * (self.lora_rank if self.lora_alpha_rule == "rank" else self.lora_rank**0.5)

    def warmup_steps(self, schedule: int) -> int:
        """Return the number of warm-up steps in a schedule of `schedule` optimizer steps."""
        return self.lr_warmup_steps if self.lr_warmup_share is None else round(self.lr_warmup_share * schedule)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.global_batch_size % self.micro_batch_size:
            sizes = f"{self.global_batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}"
            raise ValueError(f"global_batch_size={sizes}")
        if not any(getattr(self, f"lora_{matrix}") for matrix in LORA_MATRICES):
            raise ValueError(
                f"LoRA needs at least one matrix; accepted: {', '.join(f'lora_{m}' for m in LORA_MATRICES)}"
            )
        return self


def lower_is_better(metric: str) -> bool | None:
    """Return whether less of a metric is better; None if its name is not well known."""
    if metric in MEASURES:
        return MEASURES[metric]
    name = metric.rpartition("/")[2].partition(",")[0]  # without task and filter
    return True if name in _LESS_IS_BETTER else False if name in _MORE_IS_BETTER else None


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
    FIDELITIES = ("steps", "data", "items")
    KNOWN = (*MEASURES, *_MORE_IS_BETTER, *_LESS_IS_BETTER)
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


def effective_train(train: TrainSettings, parameters: Mapping[str, Any]) -> TrainSettings:
    """Return the training settings of one configuration: parameters replace the settings of the same names."""
    return TrainSettings.model_validate({**train.model_dump(), **parameters})
