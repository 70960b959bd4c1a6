"""Evaluate one attempt of a LoRA campaign: fine-tune with LitGPT's parts, merge in memory and score with lm-eval.

    python jobs/lora.py campaigns/first/trials/t0007/a0

The recipe follows LitGPT's ``finetune_lora`` step by step; a test compares the order of examples, the learning rates,
the losses and the weights. It adds what LitGPT's loop cannot do: send the examples of a step through the device
together without padding, in as many passes as the memory requires; stop at a loss that is not finite; and end on a
signal with a checkpoint from which the next attempt continues.

On several GPUs the same program runs once for each of them. These ranks share the examples of each step and the
requests of the scoring, and the result is the same as on one GPU (`hpo_cluster/objectives/lora/ranks.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import contextlib
import itertools
import logging
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.goals import GPU_SECONDS
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora import kept, rank_processes
from hpo_cluster.objectives.lora.hugging_face import missing_files
from hpo_cluster.objectives.lora.ranks import Ranks
from hpo_cluster.objectives.lora.settings import (
    OF_TRAINING,
    LoraObjective,
    TrainSettings,
    effective_train,
)
from hpo_cluster.objectives.lora.tokenizers import Tokenizers
from hpo_cluster.objectives.worker import Attempt
from hpo_cluster.trial import ErrorKind

if TYPE_CHECKING:  # torch, litgpt and lm-eval are imported once the environment is set
    import torch

    from hpo_cluster.objectives.lora.adamw import AdamW
    from hpo_cluster.objectives.lora.dropout import Masks
    from hpo_cluster.objectives.lora.meter import Meter
    from hpo_cluster.objectives.lora.packed_forward import PackedModel, Precision
    from hpo_cluster.objectives.lora.packing import Example

log = logging.getLogger("lora")

LITGPT_SPLIT = 0.05  # share of a single file that LitGPT keeps for validation by default


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """Evaluate an attempt on all its GPUs; see `fine_tune_and_score`."""
    gpus = int(attempt.params.get("gpus") or 0)
    if gpus > 1:
        return rank_processes.evaluate(attempt, gpus, Path(__file__))
    return fine_tune_and_score(attempt, Ranks())


def fine_tune_and_score(attempt: Attempt, ranks: Ranks) -> dict[str, Any]:
    """Fine-tune, merge and score the model with this attempt's configuration; return its metrics and what was done.

    With several ranks, only what the first one returns has the scores.
    """
    storage_dir = Path(attempt.settings["storage_dir"])
    objective = LoraObjective.model_validate({k: v for k, v in attempt.settings.items() if k != "storage_dir"})
    train = effective_train(objective.train, attempt.parameters)
    seed = attempt.seed if train.seed is None else train.seed
    with (
        kept.keeping(int(attempt.params.get("trials_per_job") or 1) > 1),
        tempfile.TemporaryDirectory(prefix="hpo-cluster-", ignore_cleanup_errors=True) as scratch,
    ):
        attempt.phase("import")
        device = prepare_process(storage_dir, int(attempt.params.get("gpus") or 0), ranks)
        from hpo_cluster.objectives.lora.adapter import converted_lm, save_adapter
        from hpo_cluster.objectives.lora.checkpoint import fingerprint
        from hpo_cluster.objectives.lora.learning_curve import final_loss, learning_curve
        from hpo_cluster.objectives.lora.meter import Meter, Weights
        from hpo_cluster.objectives.lora.model_config import unlike_litgpt
        from hpo_cluster.objectives.lora.tasks import score

        in_float32 = ("score",) if objective.score_precision == "float32" else ()
        meter = Meter(device, bfloat16=train.precision != "32-true", in_float32=in_float32, ranks=ranks)
        attempt.used = meter.energy

        def begin(phase: str) -> None:
            attempt.phase(phase)
            meter.begin(phase)

        begin("load")
        check_measurable(objective, meter.counts_energy, baseline=attempt.baseline)
        checkpoint_dir = checked_checkpoint(objective)
        tokenizers = kept.tokenizers(checkpoint_dir)
        tasks = checked_tasks(objective, tokenizers, Path(scratch)) if ranks.first else {}
        unlike = unlike_litgpt(tokenizers)
        if unlike and ranks.first:
            log.warning("unlike LitGPT, as transformers: %s", ", ".join(f"{k}={v}" for k, v in unlike.items()))
        train_examples, val_examples = load_examples(objective, train, tokenizers, storage_dir / "tokenized")
        without_labels = 0 if attempt.baseline else count_without_labels(objective, train_examples)
        seed_everything(seed)  # before the model is made: its adapter is random
        model = load_model(checkpoint_dir, train, device, baseline=attempt.baseline)
        run = Run(model, train, device, seed, ranks)
        state = State()
        keep = Keeper(attempt, run, state, sample=meter.sample)
        attempt.looks = True  # from here on there is something to save in a checkpoint

        if not attempt.baseline:
            begin("train")
            state.optimizer = make_optimizer(model, train)
            keep.mark = fingerprint(objective, train, seed, unlike)
            resume(keep)
            attempt.earlier_s = state.train_s
            keep()
            before = state.tokens
            fine_tune(run, state, train_examples, objective.data.split_seed, attempt, keep)
            tokens = state.tokens - before
            meter.add(tokens=tokens, flops=Weights.of(model).training_flops(tokens))

        metrics: dict[str, float] = {}
        curve: list[dict[str, Any]] = []
        if not attempt.baseline:
            plan = make_plan(train, len(train_examples))
            metrics["train_loss"] = final_loss(state.losses)
            curve = learning_curve(state.losses, state.step, lambda step: learning_rate(train, plan, step))
        if train.validation_batches and len(val_examples):
            begin("validate")
            metrics |= losses_of_validation(objective, validate(run, val_examples))

        begin("merge")
        keep()
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if objective.keep_adapter and not attempt.baseline and ranks.first:
            save_adapter(model, objective, train, attempt.files.adapter_dir)
        if objective.evaluation == "litgpt_cli":
            model.cpu()  # LitGPT's own route puts a second copy of the model on the device
            with tempfile.TemporaryDirectory(prefix=".litgpt-", dir=attempt.files.dir) as folder:
                keep.save()
                attempt.looks = False  # lm-eval's own model cannot look for signals between its batches
                lm = converted_lm(None if attempt.baseline else model, objective, train, device, Path(folder))
                begin("score")
                scores, sems = score(lm, tasks, objective.tasks.limit)
        else:
            lost, precision = merge_adapter(run, objective, checkpoint_dir)
            if lost is not None and math.isfinite(lost):  # weights that are not finite are found by scoring
                metrics["merge_loss"] = lost
            lm = merged_lm(run, objective, tokenizers, attempt, keep, meter, precision)
            begin("score")
            with meter.scoring(model):
                if ranks.first:
                    scores, sems = score(lm, tasks, objective.tasks.limit)
                    lm.dismiss()
                else:
                    lm.help()
                    scores, sems = {}, {}
    used = meter.report()
    metrics["peak_memory_gb"] = used["peak_memory_gb"]
    if used["energy_wh"] is not None:
        metrics["energy_wh"] = used["energy_wh"]
    for phase, name in (("train", "train_mfu"), ("score", "score_mfu")):
        if (mfu := used["phases"].get(phase, {}).get("mfu")) is not None:
            metrics[name] = mfu
    if not attempt.baseline:
        metrics["trainable_parameters"] = trainable
    if state.train_s > 0:
        metrics |= {"train_s": round(state.train_s, 6), "tokens_per_s": round(state.tokens / state.train_s, 3)}
    metrics[GPU_SECONDS] = attempt.gpu_seconds()
    return {
        "metrics": {**scores, **metrics},
        "sems": sems,
        "steps": state.step,
        "examples": state.examples,
        "examples_without_labels": without_labels,
        "tokens": state.tokens,
        "attempts": len(state.resumed_at) + 1,
        "resumed_at": state.resumed_at,
        "curve": curve,
        "trainable_parameters": trainable,
        "seeds": {"train": seed, "split": objective.data.split_seed},
        "train": train.model_dump(mode="json"),
        "baseline": attempt.baseline,
        "evaluation": objective.evaluation,
        "score_precision": objective.score_precision,
        "adds_bos": tokenizers.adds_bos,
        "norm_eps": model.config.norm_eps,
        "unlike_litgpt": unlike,
        **used,
    }


def prepare_process(storage_dir: Path, gpus: int = 0, ranks: Ranks = Ranks()) -> torch.device:  # noqa: B008
    """Set the environment, import the heavy packages, join the other ranks and return the device.

    Nothing here may use the network.

    Args:
        storage_dir: shared folder of models and data.
        gpus: number of GPUs that the job asked for.
        ranks: this rank and the others; rank k computes on the k-th GPU that torch sees.

    Raises:
        AttemptError: if torch sees fewer GPUs than the job asked for; without any it would train on the host's cores,
            for days.
    """
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if (storage_dir / "hf").is_dir():
        os.environ["HF_HOME"] = str(storage_dir / "hf")
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads slow down small models, and other jobs here
    from hpo_cluster.objectives.lora.imports import import_packages

    import_packages()
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < gpus:
        if not seen and torch.version.cuda is None and torch.version.hip is None:
            what = f"torch {torch.__version__} is built without CUDA: install the CUDA build for the jobs' Python"
            raise AttemptError(ErrorKind.CODE, f"launcher.gpus_per_trial={gpus}, and {what}")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "(not set)")
        what = f"torch sees {seen or 'no'} GPU{'s' * (seen > 1)} here (CUDA_VISIBLE_DEVICES={visible})"
        raise AttemptError(ErrorKind.NODE, f"launcher.gpus_per_trial={gpus}, and {what}")
    device = torch.device("cuda", ranks.rank) if seen else torch.device("cpu")
    if seen:
        torch.cuda.set_device(device)
    ranks.join(device)
    return device


# --- inputs ----------------------------------------------------------------------------------------------------------


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


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, on every device."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def load_model(checkpoint_dir: Path, train: TrainSettings, device: torch.device, *, baseline: bool) -> Any:
    """Return the base model, frozen, with untrained LoRA layers (B is zero); for the baseline without LoRA layers.

    All weights are first drawn from the global generator, in LitGPT's order and on the device, so that the adapter is
    the same as LitGPT's. The base weights are then read from the checkpoint.
    """
    import torch
    from litgpt.lora import GPT, mark_only_lora_as_trainable

    from hpo_cluster.objectives.lora.adapter import lora_settings, weights_dtype
    from hpo_cluster.objectives.lora.model_config import read_config

    config = read_config(checkpoint_dir, **({} if baseline else lora_settings(train)))
    try:
        with torch.device(device), default_dtype(weights_dtype(train)):
            model = GPT(config)
    except torch.OutOfMemoryError as error:
        hint = "each GPU of a trial holds the whole model: use GPUs with more memory, train.precision=bf16-true or a "
        message = f"the base model does not fit into the GPU; {hint}smaller model ({error})"
        raise AttemptError(ErrorKind.OUT_OF_MEMORY, message) from error
    mark_only_lora_as_trainable(model)
    read_base(model, checkpoint_dir)
    return model


def read_base(model: Any, checkpoint_dir: Path) -> None:
    """Read the base weights of a model from its checkpoint, in the dtype of the model."""
    from litgpt.lora import lora_filter

    try:
        weights = kept.base_weights(checkpoint_dir / "lit_model.pth")
        loaded = model.load_state_dict(weights.get("model", weights), strict=False)
    except Exception as error:
        if worker.classify(error) != ErrorKind.CODE:
            raise
        message = f"{checkpoint_dir}/lit_model.pth is not a checkpoint of the model in model_config.yaml: {error}"
        raise AttemptError(ErrorKind.MISSING_MODEL, message) from error
    missing = [name for name in loaded.missing_keys if not lora_filter(name, None)]
    if missing or loaded.unexpected_keys:
        message = f"{checkpoint_dir}/lit_model.pth: missing {missing[:5]}, unexpected {loaded.unexpected_keys[:5]}"
        raise AttemptError(ErrorKind.MISSING_MODEL, message)


# --- precision -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` the default of new tensors while the context lasts."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- training --------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Parts of a run that stay the same while a model is trained and validated, except for `tokens_at_once`.

    Attributes:
        seed: seed of the dropout masks.
        ranks: this rank and the others.
        packed: the model with the forward pass of packed rows.
        masks: source of the dropout masks; None without dropout.
        tokens_at_once: largest number of tokens in a pass; halved when memory runs out.
        whole_micro_batches: whether each micro-batch must be a pass of its own.
    """

    model: Any
    train: TrainSettings
    device: torch.device
    seed: int
    ranks: Ranks = field(default_factory=Ranks)
    packed: PackedModel = field(init=False)
    masks: Masks | None = field(init=False, default=None)
    tokens_at_once: int = field(init=False)
    whole_micro_batches: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        from hpo_cluster.objectives.lora import dropout, memory
        from hpo_cluster.objectives.lora.packed_forward import PackedModel

        self.packed = PackedModel(self.model, self.precision, half=self.train.precision != "32-true")
        p = self.train.lora_dropout if self.model.config.lora_r > 0 else 0.0
        if p > 0:
            dropouts = dropout.replace_dropouts(self.model, p)
            self.whole_micro_batches = not dropout.divisible(self.model, p)
            if self.train.dropout_draws == "litgpt":
                self.masks = dropout.LitgptMasks(self.model, dropouts, self.precision)
            else:
                self.masks = dropout.StepMasks(dropouts, self.seed, self.device)
        self.tokens_at_once = self.train.tokens_at_once or memory.tokens_that_fit(self.packed, self.device)

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which a forward pass runs."""
        import torch

        if self.train.precision == "bf16-mixed":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext() if self.train.precision == "32-true" else default_dtype(torch.bfloat16)


@dataclass(frozen=True)
class Unread:
    """The loss of a step that the device may still be computing."""

    step: int
    total: int
    learning_rate: float
    loss: torch.Tensor


@dataclass
class State:
    """Progress of the training. Together with the adapter and the global generators, all that a resumed run needs.

    Attributes:
        train_s: seconds that the steps took, without checkpoints and without steps whose results were lost.
        losses: of the steps whose losses have been read; after a checkpoint of an earlier version, from its last on.
        resumed_at: steps after which an attempt ended and the next one continued.
        unread: the step whose loss has not been read yet.
    """

    optimizer: Any = None
    step: int = 0
    examples: int = 0
    tokens: int = 0
    train_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)
    unread: Unread | None = None

    COUNTERS = ("step", "examples", "tokens", "train_s", "losses", "resumed_at")

    def read(self, attempt: Attempt) -> None:
        """Wait for the loss of the last step and report it; raise `AttemptError` (diverged) if it is not finite."""
        unread, self.unread = self.unread, None
        if unread is None:
            return
        loss = unread.loss.item()
        if not math.isfinite(loss):
            where = f"step {unread.step} of {unread.total}, learning rate {unread.learning_rate:.3g}"
            raise AttemptError(ErrorKind.DIVERGED, f"the training loss is {loss} at {where}")
        self.losses.append(loss)
        attempt.progress(step=unread.step, total=unread.total, loss=loss, learning_rate=unread.learning_rate)


@dataclass
class Keeper:
    """Saver of checkpoints: every ``checkpoint_interval_s``, and when a signal asks the program to end.

    Attributes:
        mark: `fingerprint` of the training, by which a later attempt recognises its checkpoints.
        kept_at: time of the last checkpoint, on the monotonic clock.
    """

    attempt: Attempt
    run: Run
    state: State
    mark: Mapping[str, Any] = field(default_factory=dict)
    kept_at: float = field(default_factory=time.monotonic)
    sample: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        """Save a checkpoint if one is due, and end the attempt if a signal asked for that.

        This is called between two steps of training and between two batches of scoring.
        """
        self.sample()
        period = self.run.train.checkpoint_interval_s
        due = period > 0 and time.monotonic() - self.kept_at >= period
        if due or self.attempt.interrupted:
            self.save()
        if self.attempt.interrupted:
            raise self.attempt.interruption()

    def save(self) -> None:
        """Save a checkpoint, if the training has begun and has not diverged."""
        self.state.read(self.attempt)
        if self.state.step > 0:
            self.attempt.save_checkpoint(self.state.step, self._write)
        self.kept_at = time.monotonic()

    def _write(self, folder: Path) -> None:
        from hpo_cluster.objectives.lora.checkpoint import write_checkpoint

        counters = {name: getattr(self.state, name) for name in State.COUNTERS}
        write_checkpoint(folder, self.run.model, self.state.optimizer, counters, self.mark)


def resume(keep: Keeper) -> None:
    """Restore the newest checkpoint of an earlier attempt that belongs to this training; without one, do nothing."""
    from hpo_cluster.objectives.lora.checkpoint import restore

    ranks = keep.run.ranks
    kept = ranks.from_first(lambda: restored(keep))
    if kept is None:
        return
    if not ranks.first:
        restore(kept, keep.run.model, keep.state.optimizer)
    for name in State.COUNTERS:
        setattr(keep.state, name, kept["counters"][name])
    keep.state.resumed_at.append(keep.state.step)


def restored(keep: Keeper) -> dict[str, Any] | None:
    """Restore the model and the optimizer of this rank from the newest checkpoint that fits, and return it."""
    from hpo_cluster.objectives.lora.checkpoint import differences, read_checkpoint, restore

    for folder in keep.attempt.checkpoints:
        try:
            kept = read_checkpoint(folder)
            if others := differences(kept["mark"], keep.mark):
                log.warning("%s is of another configuration (%s): not used", folder, ", ".join(others))
                continue
            # earlier versions did not count the seconds, and kept the last loss alone
            kept["counters"] = {"train_s": math.nan, "losses": [kept["counters"].get("loss")], **kept["counters"]}
            if missing := [name for name in State.COUNTERS if name not in kept["counters"]]:
                raise KeyError(*missing)
            restore(kept, keep.run.model, keep.state.optimizer)
        except Exception as error:  # whatever is wrong with a checkpoint, training from the beginning is right
            log.warning("%s cannot be used: %s: %s", folder, type(error).__name__, error)
            continue
        log.info("continuing after step %d, from %s", kept["counters"]["step"], folder)
        return kept
    if keep.attempt.previous:
        log.info("training from the beginning: no usable checkpoint of %d earlier attempts", len(keep.attempt.previous))
    return None


@dataclass(frozen=True)
class Plan:
    """Numbers of micro-batches in a step, of steps in the run and of steps in the schedule, by LitGPT's rules.

    A last accumulation that is not full is dropped. Over several epochs the remainders of the epochs are joined, so
    `steps` can exceed `schedule`, and a cosine schedule then rises again.
    """

    accumulation: int
    steps: int
    schedule: int


def make_plan(train: TrainSettings, examples: int) -> Plan:
    """Return the plan for `examples` training examples."""
    accumulation = train.global_batch_size // train.micro_batch_size
    micro_batches = math.ceil(examples / train.micro_batch_size)
    limit = train.max_steps or sys.maxsize
    plan = Plan(
        accumulation,
        steps=min(train.epochs * micro_batches // accumulation, limit),
        schedule=min(train.epochs * (micro_batches // accumulation), limit),
    )
    if plan.schedule < 1:
        message = f"{examples} training examples do not fill one step of global_batch_size={train.global_batch_size}"
        raise AttemptError(ErrorKind.BAD_DATA, message)
    return plan


def learning_rate(train: TrainSettings, plan: Plan, step: int) -> float:
    """Return the learning rate of a step (from 0): linear from zero over the warm-up, then the configured schedule."""
    warmup = train.warmup_steps(plan.schedule)
    if step < warmup:
        return train.learning_rate * step / warmup
    if train.lr_schedule == "constant":
        return train.learning_rate
    period = max(1, plan.schedule - warmup)
    if train.lr_schedule == "linear":
        return train.learning_rate * max(0.0, 1 - (step - warmup) / period)
    return train.learning_rate * (1 + math.cos(math.pi * (step - warmup) / period)) / 2


def micro_batch_order(examples: int, micro_batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of the examples of each micro-batch, in LitGPT's order, epoch after epoch without end.

    The order depends on the arguments alone, not on the global generator, so a resumed run can skip the micro-batches
    that it has already trained on.
    """
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(seed)
    numbers: Any = range(examples)
    loader: DataLoader[int] = DataLoader(
        numbers, batch_size=micro_batch_size, shuffle=True, generator=generator, collate_fn=list
    )
    while True:
        yield from loader


def make_optimizer(model: Any, train: TrainSettings) -> AdamW:
    """Return AdamW over the adapter's weights, which it updates in one kernel."""
    from hpo_cluster.objectives.lora.adamw import AdamW, Decay

    adapter = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return AdamW(adapter, Decay(train.beta1, train.beta2, train.epsilon, train.weight_decay))


def fine_tune(
    run: Run, state: State, examples: Any, split_seed: int, attempt: Attempt, keep: Callable[[], None] = lambda: None
) -> None:
    """Train from `state` to the end of the plan.

    The program runs ahead of the device: while the device computes one step, the program prepares the tokens of the
    next step and queues its work. Therefore the loss of a step is read after the next step has been queued.

    Args:
        run: the model and how it is trained.
        state: progress of the training, changed in place.
        examples: the training examples.
        split_seed: seed of the order of the examples.
        attempt: receives the progress of each step.
        keep: called after each step.

    Raises:
        AttemptError: of kind ``diverged``, if a loss is not finite.
    """
    train = run.train
    plan = make_plan(train, len(examples))
    order = micro_batch_order(len(examples), train.micro_batch_size, split_seed)
    order = itertools.islice(order, state.step * plan.accumulation, None)
    adapter = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    run.ranks.copy(adapter)  # GPUs of different kinds draw different numbers from one seed
    run.model.train()
    while state.step < plan.steps:
        began = time.monotonic()
        micro_batches = [[examples[number] for number in next(order)] for _ in range(plan.accumulation)]
        lr = learning_rate(train, plan, state.step)
        loss = summed_loss(run, micro_batches, weight=1 / plan.accumulation, step=state.step)
        loss = run.ranks.add_up(loss, adapter)
        state.read(attempt)  # the only point of a step where the program waits for the device
        state.optimizer.step(lr)
        state.optimizer.zero_grad()
        state.step += 1
        state.unread = Unread(state.step, plan.steps, lr, loss)
        state.examples += sum(map(len, micro_batches))
        state.tokens += sum(len(example["input_ids"]) for batch in micro_batches for example in batch)
        if state.step == plan.steps:
            state.read(attempt)
        state.train_s += time.monotonic() - began
        keep()


def losses_of_validation(objective: LoraObjective, loss: float) -> dict[str, float]:
    """Return the validation loss and its perplexity; without the perplexity if that overflows."""
    try:
        return {"val_loss": loss, "val_perplexity": math.exp(loss)}
    except OverflowError:
        if any(wanted.name == "val_perplexity" for wanted in objective.wanted):
            raise AttemptError(ErrorKind.DIVERGED, f"the validation loss is {loss:.6g} after training") from None
        return {"val_loss": loss}


def validate(run: Run, examples: Any) -> float:
    """Return the mean over micro-batches of the mean loss per token (nats)."""
    import torch

    size = run.train.micro_batch_size
    batches = math.ceil(len(examples) / size)
    batches = min(batches, run.train.validation_batches)
    micro_batches = [
        [examples[number] for number in range(begin, min(begin + size, len(examples)))]
        for begin in range(0, batches * size, size)
    ]
    run.model.eval()
    with torch.no_grad():
        loss = run.ranks.add_up(summed_loss(run, micro_batches, weight=1 / batches, step=None)).item()
    if not math.isfinite(loss):
        raise AttemptError(ErrorKind.DIVERGED, f"the validation loss is {loss} after training")
    return loss


def summed_loss(
    run: Run, micro_batches: Sequence[Sequence[Example]], weight: float, *, step: int | None
) -> torch.Tensor:
    """Return the sum over micro-batches of `weight` times the mean loss of their tokens, still on the device.

    With several ranks, it is the part of the sum that the examples of this rank contribute.

    The examples go through the model in as few passes as the memory allows; each token keeps the weight that its
    micro-batch gives it. If memory runs out, the computation starts again with half the tokens in a pass.

    Args:
        run: the run.
        micro_batches: the examples of each micro-batch.
        weight: weight of each micro-batch.
        step: number of the optimizer step, whose gradient is added to the adapter; None: compute the loss only.
    """
    import torch

    from hpo_cluster.objectives.lora.packing import passes

    if run.masks is not None and step is not None:
        run.masks.step(step, micro_batches)
    whole = run.whole_micro_batches
    while True:
        parts = passes(micro_batches, weight, run.tokens_at_once, whole_micro_batches=whole, ranks=run.ranks)
        try:
            total = torch.zeros((), device=run.device)
            for part in (part.to(run.device) for part in parts):
                if run.masks is not None and step is not None:
                    run.masks.give(part)
                total = total + run.packed.loss(part, backward=step is not None)
            return total
        except (RuntimeError, MemoryError) as error:
            divisible = [len(part.tokens) for part in parts if len(part.lengths) > 1 and not whole]
            if worker.classify(error) != ErrorKind.OUT_OF_MEMORY or not divisible:
                raise
        run.tokens_at_once = max(divisible) // 2
        log.warning("out of memory: continuing with at most %d tokens at once", run.tokens_at_once)
        run.model.zero_grad()
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


# --- after training --------------------------------------------------------------------------------------------------


def merge_adapter(run: Run, objective: LoraObjective, checkpoint_dir: Path) -> tuple[float | None, Precision]:
    """Merge the adapter into the model in place, for scoring in ``objective.score_precision``.

    Returns:
        How much of the update is lost in rounding (`merging`; None without an adapter), and what returns the context in
        which a forward pass of the merged model runs.
    """
    import torch

    from hpo_cluster.objectives.lora.merging import merge, merge_in

    precision = run.train.precision
    wanted = objective.score_precision
    with torch.no_grad():
        if wanted is None or wanted == {"32-true": "float32", "bf16-true": "bfloat16"}.get(precision):
            return merge(run.model, torch.float32 if precision == "32-true" else torch.bfloat16), run.precision
        if precision == "bf16-true":  # the checkpoint may have more digits
            for name, value in run.model.named_parameters():
                if "lora_" not in name:
                    value.data = value.data.float()
            read_base(run.model, checkpoint_dir)
        dtype = torch.float32 if wanted == "float32" else torch.bfloat16
        return merge_in(run.model, dtype), lambda: default_dtype(dtype)


def merged_lm(
    run: Run,
    objective: LoraObjective,
    tokenizers: Tokenizers,
    attempt: Attempt,
    keep: Callable[[], None],
    meter: Meter,
    precision: Precision,
) -> Any:
    """Return a merged model as an lm-eval model."""
    from hpo_cluster.objectives.lora.language_model import LitLM

    def on_batch(done: int, total: int) -> None:
        attempt.progress(step=done, total=total)
        if done == total:
            meter.add(requests=total)
        keep()

    tokenizer, tokens = tokenizers.hugging_face, objective.tasks.tokens_at_once
    return LitLM(run.model, tokenizer, tokens, precision=precision, on_batch=on_batch, ranks=run.ranks)


if __name__ == "__main__":
    sys.exit(rank_processes.main(fine_tune_and_score) if rank_processes.is_rank() else worker.main(evaluate))
