"""The settings of fine-tunings: model, data, tasks and training.

A parameter of the search space tunes the training setting of the same name, so any field of `TrainSettings` can be
tuned or fixed, except `FIXED_SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hpo_cluster.objectives.lora.instruction_data import Field as Column
from hpo_cluster.objectives.lora.metrics import MEASURES
from hpo_cluster.settings import Settings

#: Matrices that LoRA can adapt; each has a setting ``lora_<name>``.
LORA_MATRICES = ("query", "key", "value", "projection", "mlp", "head")

#: Training settings that cannot be tuned.
FIXED_SETTINGS = ("seed", "tokens_at_once", "dropout_draws", "checkpoint_interval_s")

#: Training settings that earlier versions do not have, with the values that stand for what those did.
ADDED: dict[str, Any] = {"tokens_at_once": None, "dropout_draws": "step", "lr_decay_share": 0.15}


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


def effective_train(train: TrainSettings, parameters: Mapping[str, Any]) -> TrainSettings:
    """Return the training settings of one configuration: parameters replace the settings of the same names."""
    return TrainSettings.model_validate({**train.model_dump(), **parameters})
