"""What an attempt reads before it trains: the base model's folder, the tasks and the examples, each checked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora import kept
from hpo_cluster.objectives.lora.hugging_face import missing_files
from hpo_cluster.objectives.lora.metrics import OF_TRAINING
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.settings import TrainSettings
from hpo_cluster.objectives.lora.tokenizers import Tokenizers
from hpo_cluster.trial import ErrorKind

log = logging.getLogger("lora")

LITGPT_SPLIT = 0.05  # share of a single file that LitGPT keeps for validation by default


def check_measurable(objective: LoraObjective, counts_energy: bool, *, baseline: bool) -> None:
    """Raise AttemptError, of kind ``bad_config``, if this attempt cannot measure the optimised metric."""
    for wanted in objective.wanted:
        if baseline and wanted.name in OF_TRAINING:
            message = f"{wanted.key}: a model before fine-tuning does not have this metric; give baseline=false"
            raise AttemptError(ErrorKind.BAD_CONFIG, message)
        if wanted.name == "energy_wh" and not counts_energy:
            how = "this takes a whole NVIDIA GPU (not a MIG slice) and pynvml; optimise train_s instead"
            raise AttemptError(ErrorKind.BAD_CONFIG, f"{wanted.key}: this machine cannot measure energy: {how}")


def checked_checkpoint(objective: LoraObjective) -> Path:
    """Return the base model's folder. Raise AttemptError, of kind ``missing_model``, if a file is missing."""
    folder = Path(objective.model.checkpoint_dir)
    if missing := missing_files(folder):
        hint = f"hpo-cluster prepare model={objective.model.name}"
        raise AttemptError(ErrorKind.MISSING_MODEL, f"{folder} lacks {', '.join(missing)}; run: {hint}")
    return folder


def checked_tasks(objective: LoraObjective, tokenizers: Tokenizers, scratch_dir: Path) -> dict[str, Any]:
    """Return the loaded tasks. Raise AttemptError with all faults of tasks, data, prompts and tokenizers."""
    from hpo_cluster.objectives.lora import checks

    tasks = kept.tasks(objective, scratch_dir)
    checks.raise_all(
        [
            *checks.task_faults(objective, tasks),
            *checks.split_faults(objective),
            *checks.prompt_faults(objective),
            *checks.tokenizer_faults(tokenizers),
        ]
    )
    return tasks


def load_examples(
    objective: LoraObjective, train: TrainSettings, tokenizers: Tokenizers, cache_dir: Path | None = None
) -> tuple[Any, Any]:
    """Return the training and the validation examples, of which the latter may be empty.

    A single file is split as LitGPT's `JSON` does it.

    Args:
        objective: the settings.
        train: those of this attempt.
        tokenizers: of the base model.
        cache_dir: where tokenized data are kept for other jobs.

    Raises:
        AttemptError: of kind ``bad_data``, if the data cannot be read or split.
    """
    import torch
    from litgpt.config import Config
    from torch.utils.data import random_split

    from hpo_cluster.objectives.lora.tokenized_data import Examples

    block_size = Config.from_file(tokenizers.checkpoint_dir / "model_config.yaml").block_size
    settings = objective.data
    length = min(train.max_seq_length or block_size, block_size)
    made = [
        None if rows is None else Examples(rows, length, mask_prompt=settings.mask_prompt)
        for rows in kept.tokenized_data(settings, tokenizers, cache_dir)
    ]
    train_examples: Any = made[0]
    val_examples: Any = made[1]
    if val_examples is None and settings.val_split_fraction != 0:
        share = LITGPT_SPLIT if settings.val_split_fraction is None else settings.val_split_fraction
        generator = torch.Generator().manual_seed(settings.split_seed)
        train_examples, val_examples = random_split(train_examples, [1.0 - share, share], generator=generator)
        if not len(val_examples) or not len(train_examples):
            what = f"data.val_split_fraction={share} of {len(train_examples) + len(val_examples)} rows"
            message = f"data.path={settings.path}: {what} leaves a part empty; 0 trains on all, unvalidated"
            raise AttemptError(ErrorKind.BAD_DATA, message)
    return train_examples, val_examples or []


def count_without_labels(objective: LoraObjective, examples: Any) -> int:
    """Count the training examples without labels: every token after the first is masked or was cut off.

    Without ``data.mask_prompt`` every example of two tokens or more has labels, so the count stops at the first one.

    Raises:
        AttemptError: of kind ``bad_data``, if no example has a label.
    """
    from hpo_cluster.objectives.lora.packing import IGNORED

    count, total = 0, len(examples)
    for number in range(total):
        if (examples[number]["labels"][1:] == IGNORED).all():
            count += 1
        elif not objective.data.mask_prompt:
            break
    if count == total:
        hint = "every prompt is longer than the context" if objective.data.mask_prompt else "every row is empty"
        message = f"data.path={objective.data.path}: none of the {total} training examples has a token to learn ({hint}"
        raise AttemptError(ErrorKind.BAD_DATA, f"{message}; see data.mask_prompt and train.max_seq_length)")
    if count:
        log.warning("%d of %d training examples have no token to learn: their prompts fill the context", count, total)
    return count
