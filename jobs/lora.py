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
import gc
import itertools
import logging
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.goals import GPU_SECONDS
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.climbing import WAIT
from hpo_cluster.objectives.error_kinds import classify
from hpo_cluster.objectives.lora import kept, rank_processes
from hpo_cluster.objectives.lora.inputs import (
    check_measurable,
    checked_checkpoint,
    checked_tasks,
    count_without_labels,
    load_examples,
)
from hpo_cluster.objectives.lora.metrics import OF_VALIDATION
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.ranks import Ranks
from hpo_cluster.objectives.lora.rungs import branched, some_rows, stops, undisturbed
from hpo_cluster.objectives.lora.schedule import branch_end, learning_rate, make_plan, micro_batch_order
from hpo_cluster.objectives.lora.settings import TrainSettings, effective_train
from hpo_cluster.objectives.lora.tokenizers import Tokenizers
from hpo_cluster.objectives.worker import Attempt
from hpo_cluster.trial import ErrorKind

if TYPE_CHECKING:  # torch, litgpt and lm-eval are imported once the environment is set
    import torch

    from hpo_cluster.objectives.lora.adamw import AdamW
    from hpo_cluster.objectives.lora.meter import Meter
    from hpo_cluster.objectives.lora.packed_forward import Precision
    from hpo_cluster.objectives.lora.packing import Example
    from hpo_cluster.objectives.lora.progress import Keeper, State
    from hpo_cluster.objectives.lora.run import Run

log = logging.getLogger("lora")


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """Evaluate an attempt on all its GPUs; see `fine_tune_and_score`."""
    gpus = int(attempt.params.get("gpus") or 0)
    if gpus > 1:
        return rank_processes.evaluate(attempt, gpus, Path(__file__))
    return fine_tune_and_score(attempt, Ranks())


@dataclass
class Job:
    """What the trainings of an attempt have in common; with ``fidelity=data`` each rung is one of its own.

    Attributes:
        train: training settings of this attempt's configuration.
        tasks: the loaded tasks, on the first rank only; can be scored once.
    """

    attempt: Attempt
    ranks: Ranks
    objective: LoraObjective
    train: TrainSettings
    seed: int
    device: torch.device
    checkpoint_dir: Path
    tokenizers: Tokenizers
    tasks: dict[str, Any]
    train_examples: Any
    val_examples: Any
    without_labels: int
    meter: Meter

    def begin(self, phase: str) -> None:
        """Start a phase of the work, and of what is measured."""
        self.attempt.phase(phase)
        self.meter.begin(phase)


def fine_tune_and_score(attempt: Attempt, ranks: Ranks) -> dict[str, Any]:
    """Fine-tune, merge and score the model with this attempt's configuration; return its metrics and what was done.

    With rungs it ends at one of them unless the word is to go on. With several ranks, only what the first one returns
    has the scores.
    """
    with (
        kept.keeping(int(attempt.params.get("trials_per_job") or 1) > 1),
        tempfile.TemporaryDirectory(prefix="hpo-cluster-", ignore_cleanup_errors=True) as scratch,
    ):
        job = load(attempt, ranks, Path(scratch))
        climb = attempt.climb
        if climb is None or climb.ladder.kind != "data":
            return train_and_score(job, job.train_examples)
        result: dict[str, Any] = {}
        for rung in climb.rungs:
            rows = some_rows(job.train_examples, climb.share(rung), job.objective.data.split_seed)
            result = train_and_score(job, rows, rung)
            if "rung" in result:
                break
            gc.collect()  # models are parts of cycles
        return result


def load(attempt: Attempt, ranks: Ranks, scratch: Path) -> Job:
    """Import the packages, and read what all trainings of the attempt need, each part checked."""
    storage_dir = Path(attempt.settings["storage_dir"])
    objective = LoraObjective.model_validate({k: v for k, v in attempt.settings.items() if k != "storage_dir"})
    train = effective_train(objective.train, attempt.parameters)
    attempt.phase("import")
    device = prepare_process(storage_dir, int(attempt.params.get("gpus") or 0), ranks)
    from hpo_cluster.objectives.lora.meter import Meter

    in_float32 = ("score",) if objective.score_precision == "float32" else ()
    meter = Meter(device, bfloat16=train.precision != "32-true", in_float32=in_float32, ranks=ranks)
    attempt.used = meter.energy
    attempt.phase("load")
    meter.begin("load")
    check_measurable(objective, meter.counts_energy, baseline=attempt.baseline)
    checkpoint_dir = checked_checkpoint(objective)
    tokenizers = kept.tokenizers(checkpoint_dir)
    tasks = checked_tasks(objective, tokenizers, scratch) if ranks.first else {}
    train_examples, val_examples = load_examples(objective, train, tokenizers, storage_dir / "tokenized")
    return Job(
        attempt=attempt,
        ranks=ranks,
        objective=objective,
        train=train,
        seed=attempt.seed if train.seed is None else train.seed,
        device=device,
        checkpoint_dir=checkpoint_dir,
        tokenizers=tokenizers,
        tasks=tasks,
        train_examples=train_examples,
        val_examples=val_examples,
        without_labels=0 if attempt.baseline else count_without_labels(objective, train_examples),
        meter=meter,
    )


def train_and_score(job: Job, examples: Any, only: int | None = None) -> dict[str, Any]:
    """Fine-tune a model on some examples, look at it at rungs, and score it at the end.

    Args:
        job: what it is trained and scored with.
        examples: the training examples.
        only: the rung that this training is for, if each rung has one of its own.

    Returns:
        The result: at the top, at the rung at which it ended (``rung``), or at the one after which the next training
        begins.
    """
    from hpo_cluster.objectives.lora.adapter import converted_lm, save_adapter
    from hpo_cluster.objectives.lora.base_model import load_model
    from hpo_cluster.objectives.lora.checkpoint import fingerprint
    from hpo_cluster.objectives.lora.item_scores import keep_items, watched
    from hpo_cluster.objectives.lora.learning_curve import final_loss, learning_curve
    from hpo_cluster.objectives.lora.meter import Weights
    from hpo_cluster.objectives.lora.model_config import unlike_litgpt
    from hpo_cluster.objectives.lora.progress import Keeper, State, resume
    from hpo_cluster.objectives.lora.run import Run
    from hpo_cluster.objectives.lora.tasks import score

    attempt, ranks, objective, train, meter = job.attempt, job.ranks, job.objective, job.train, job.meter
    job.begin("load")
    seed_everything(job.seed)  # before the model is made: its adapter is random
    model = load_model(job.checkpoint_dir, train, job.device, baseline=attempt.baseline)
    unlike = unlike_litgpt(job.tokenizers, model.config)
    if unlike and ranks.first:
        log.warning("unlike LitGPT, as transformers: %s", ", ".join(f"{k}={v}" for k, v in unlike.items()))
    run = Run(model, train, job.device, job.seed, ranks)
    state = State()
    keep = Keeper(attempt, run, state, sample=meter.sample)
    attempt.looks = True  # from here on there is something to save in a checkpoint
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    metrics: dict[str, float] = {}
    curve: list[dict[str, Any]] = []

    def result(scores: Mapping[str, float], sems: Mapping[str, float]) -> dict[str, Any]:
        """Return what the attempt has found and done until now."""
        used = meter.report()
        measured = {**scores, **metrics, **measures(used, state)}
        if not attempt.baseline:
            measured["trainable_parameters"] = trainable
        measured[GPU_SECONDS] = attempt.gpu_seconds()
        return {
            "metrics": measured,
            "sems": dict(sems),
            "steps": state.step,
            "examples": state.examples,
            "examples_without_labels": job.without_labels,
            "tokens": state.tokens,
            "attempts": len(state.resumed_at) + 1,
            "resumed_at": state.resumed_at,
            "curve": curve,
            "trainable_parameters": trainable,
            "seeds": {"train": job.seed, "split": objective.data.split_seed},
            "train": train.model_dump(mode="json"),
            "baseline": attempt.baseline,
            "evaluation": objective.evaluation,
            "score_precision": objective.score_precision,
            "adds_bos": job.tokenizers.adds_bos,
            "norm_eps": model.config.norm_eps,
            "unlike_litgpt": unlike,
            **used,
        }

    if not attempt.baseline:
        plan, climb = make_plan(train, len(examples)), attempt.climb
        job.begin("train")
        state.optimizer = make_optimizer(model, train)
        keep.mark = fingerprint(objective, train, job.seed, unlike)
        if len(examples) < len(job.train_examples):
            keep.mark = {**keep.mark, "examples": len(examples)}
        resume(keep)
        attempt.earlier_s = state.train_s
        if climb is not None:
            attempt.earlier_s += climb.seconds_of("rung") if only is None else climb.earlier_s()
        keep()
        for rung, until in [(0, plan.steps)] if climb is None else stops(climb.ladder, plan.steps, only):
            job.begin("train")
            before = state.tokens
            fine_tune(run, state, examples, objective.data.split_seed, attempt, keep, until)
            tokens = state.tokens - before
            meter.add(tokens=tokens, flops=Weights.of(model).training_flops(tokens))
            metrics["train_loss"] = final_loss(state.losses)
            curve = learning_curve(state.losses, state.step, lambda step: learning_rate(train, plan, step))
            if climb is None or not climb.start <= rung < climb.top:
                continue
            keep.save()
            job.begin("rung")
            with finished(job, run, state, examples, keep) as losses:
                metrics["train_loss"] = final_loss(losses)
                found = result(*look(job, run, keep, climb.share(rung) if climb.ladder.kind == "items" else 1.0))
            go_on = report(job, rung, found)
            if only is not None and ranks.first:
                attempt.remove_checkpoints()  # the next rung is another training
            if not go_on:
                return {**found, **climb.part_of_result(), "rung": rung}
            if only is not None:
                return found

    if train.validation_batches and len(job.val_examples):
        job.begin("validate")
        metrics |= losses_of_validation(objective, validate(run, job.val_examples))

    job.begin("merge")
    keep()
    if objective.keep_adapter and not attempt.baseline and ranks.first:
        save_adapter(model, objective, train, attempt.files.adapter_dir)
    if objective.evaluation == "litgpt_cli":
        model.cpu()  # LitGPT's own route puts a second copy of the model on the device
        with tempfile.TemporaryDirectory(prefix=".litgpt-", dir=attempt.files.dir) as folder:
            keep.save()
            attempt.looks = False  # lm-eval's own model cannot look for signals between its batches
            lm = converted_lm(None if attempt.baseline else model, objective, train, job.device, Path(folder))
            job.begin("score")
            with watched(job.tasks) as seen:
                scores, sems = score(lm, job.tasks, objective.tasks.limit)
    else:
        lost, lm = merged(job, run, keep)
        metrics |= lost
        job.begin("score")
        with watched(job.tasks) as seen:
            scores, sems = score_on_all_ranks(job, run, lm, job.tasks)
    if ranks.first:
        keep_items(attempt, objective, job.tasks, seen, scores)
    return result(scores, sems)


def report(job: Job, rung: int, found: Mapping[str, Any]) -> bool:
    """Report what was found at a rung; return whether the training goes on, as the first rank is told."""
    climb = job.attempt.climb
    assert climb is not None
    job.begin(WAIT)
    return job.ranks.from_first(lambda: climb.report(rung, found["metrics"], found["sems"], found["steps"]))


@contextlib.contextmanager
def finished(job: Job, run: Run, state: State, examples: Any, keep: Keeper) -> Iterator[list[float]]:
    """Within the context, the model is a finished one, if its schedule can be ended anywhere (``lr_schedule=wsd``).

    The training goes on with a falling learning rate, and is afterwards where it was. Under other schedules the model
    is the unfinished one.

    Args:
        job: what it is trained with.
        run: the model.
        state: the progress of its training.
        examples: the training examples.
        keep: of this training; it has just saved a checkpoint.

    Yields:
        The losses of all steps of the model in the context.
    """
    from hpo_cluster.objectives.lora.meter import Weights

    if run.train.lr_schedule != "wsd":
        yield state.losses
        return
    with branched(run, state) as end:
        split_seed = job.objective.data.split_seed
        decay(run, end, examples, split_seed, job.attempt, keep.end_if_asked)
        tokens = end.tokens - state.tokens
        job.meter.add(tokens=tokens, flops=Weights.of(run.model).training_flops(tokens))
        yield end.losses


def look(job: Job, run: Run, keep: Keeper, share: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return the optimised metrics of a model in the middle of its training, with their standard errors.

    Test tasks are left for the end. The model and its training stay as they are.

    Args:
        job: what the model is scored with.
        run: the model.
        keep: of this training; it has just saved a checkpoint.
        share: of the items of each validation task.
    """
    from hpo_cluster.objectives.lora.tasks import some_items, validation_only

    metrics: dict[str, float] = {}
    sems: dict[str, float] = {}
    wanted = [wanted.name for wanted in job.objective.wanted]
    with undisturbed(run, job.checkpoint_dir):
        if not {*OF_VALIDATION}.isdisjoint(wanted):
            metrics |= losses_of_validation(job.objective, validate(run, job.val_examples))
        if any("/" in name for name in wanted):
            tasks = validation_only(job.tasks, job.objective.tasks.validation) if job.ranks.first else {}
            items = some_items(tasks, share, job.objective.tasks.limit) if tasks and share < 1 else None
            lost, lm = merged(job, run, keep.end_if_asked)
            metrics |= lost
            scores, sems = score_on_all_ranks(job, run, lm, tasks, items)
            metrics |= scores
    return metrics, sems


def score_on_all_ranks(
    job: Job, run: Run, lm: Any, tasks: dict[str, Any], items: Mapping[str, list[int]] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what `score` does, with the work shared by all ranks; nothing on ranks other than the first."""
    from hpo_cluster.objectives.lora.tasks import score

    with job.meter.scoring(run.model):
        if not job.ranks.first:
            lm.help()
            return {}, {}
        found = score(lm, tasks, job.objective.tasks.limit, items)
        lm.dismiss()
        return found


def measures(used: Mapping[str, Any], state: State) -> dict[str, float]:
    """Return the metrics that say what an evaluation took; what was not measured is left out.

    Args:
        used: report of the meter.
        state: the end of the training.
    """
    metrics = {name: used[name] for name in ("peak_memory_gb", "energy_wh") if used[name] is not None}
    for phase, name in (("train", "train_mfu"), ("score", "score_mfu")):
        if (mfu := used["phases"].get(phase, {}).get("mfu")) is not None:
            metrics[name] = mfu
    if state.train_s > 0:
        metrics |= {"train_s": round(state.train_s, 6), "tokens_per_s": round(state.tokens / state.train_s, 3)}
    return metrics


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


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, on every device."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


# --- training --------------------------------------------------------------------------------------------------------


def make_optimizer(model: Any, train: TrainSettings) -> AdamW:
    """Return AdamW over the adapter's weights, which it updates in one kernel."""
    from hpo_cluster.objectives.lora.adamw import AdamW, Decay

    adapter = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return AdamW(adapter, Decay(train.beta1, train.beta2, train.epsilon, train.weight_decay))


def fine_tune(
    run: Run,
    state: State,
    examples: Any,
    split_seed: int,
    attempt: Attempt,
    keep: Callable[[], None] = lambda: None,
    until: int | None = None,
    branch: int | None = None,
) -> None:
    """Train from `state` on.

    The program runs ahead of the device: while the device computes one step, the program prepares the tokens of the
    next step and queues its work. Therefore the loss of a step is read after the next step has been queued.

    Args:
        run: the model and how it is trained.
        state: progress of the training, changed in place.
        examples: the training examples.
        split_seed: seed of the order of the examples.
        attempt: receives the progress of each step.
        keep: called after each step.
        until: number of the last step; None: the end of the plan.
        branch: number of steps after which this copy of a training left it; see `decay`.

    Raises:
        AttemptError: of kind ``diverged``, if a loss is not finite.
    """
    from hpo_cluster.objectives.lora.progress import Unread

    train = run.train
    plan = make_plan(train, len(examples))
    order = micro_batch_order(len(examples), train.micro_batch_size, split_seed)
    order = itertools.islice(order, state.step * plan.accumulation, None)
    adapter = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    run.ranks.copy(adapter)  # GPUs of different kinds draw different numbers from one seed
    run.model.train()
    last = plan.steps if until is None else min(until, plan.steps)
    while state.step < last:
        began = time.monotonic()
        micro_batches = [[examples[number] for number in next(order)] for _ in range(plan.accumulation)]
        lr = learning_rate(train, plan, state.step, branch)
        loss = summed_loss(run, micro_batches, weight=1 / plan.accumulation, step=state.step)
        loss = run.ranks.add_up(loss, adapter)
        state.read(attempt)  # the only point of a step where the program waits for the device
        state.optimizer.step(lr)
        state.optimizer.zero_grad()
        state.step += 1
        state.unread = Unread(state.step, plan.steps, lr, loss)
        state.examples += sum(map(len, micro_batches))
        state.tokens += sum(len(example["input_ids"]) for batch in micro_batches for example in batch)
        if state.step == last:
            state.read(attempt)
        state.train_s += time.monotonic() - began
        keep()


def decay(
    run: Run, state: State, examples: Any, split_seed: int, attempt: Attempt, keep: Callable[[], None] = lambda: None
) -> None:
    """Train on from `state` with a learning rate that falls to zero, as if the training ended here.

    The arguments are those of `fine_tune`; the examples are those that come next.
    """
    branch = state.step
    end = branch_end(run.train, make_plan(run.train, len(examples)), branch)
    fine_tune(run, state, examples, split_seed, attempt, keep, end, branch)


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
            if classify(error) != ErrorKind.OUT_OF_MEMORY or not divisible:
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

    from hpo_cluster.objectives.lora.base_model import default_dtype, read_base
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


def merged(job: Job, run: Run, keep: Callable[[], None]) -> tuple[dict[str, float], Any]:
    """Merge the adapter in place; return the metric of what that loses, and an lm-eval model.

    Args:
        job: what it is scored with.
        run: the model.
        keep: called between two batches of scoring.
    """
    from hpo_cluster.objectives.lora.language_model import LitLM

    lost, precision = merge_adapter(run, job.objective, job.checkpoint_dir)
    # weights that are not finite are found by scoring
    metrics = {} if lost is None or not math.isfinite(lost) else {"merge_loss": lost}

    def on_batch(done: int, total: int) -> None:
        job.attempt.progress(step=done, total=total)
        if done == total:
            job.meter.add(requests=total)
        keep()

    tokenizer, tokens = job.tokenizers.hugging_face, job.objective.tasks.tokens_at_once
    return metrics, LitLM(run.model, tokenizer, tokens, precision=precision, on_batch=on_batch, ranks=run.ranks)


if __name__ == "__main__":
    sys.exit(rank_processes.main(fine_tune_and_score) if rank_processes.is_rank() else worker.main(evaluate))
