"""Check that the bundled village is a meaningful objective, and write the record of it.

A table of configurations is fine-tuned with LitGPT's own LoRA program and scored on both tasks with the LM evaluation
harness: a Latin hypercube of the default search space, drawn with a seed that is fixed here, and a few configurations
with several training seeds each. The goals below are then checked and everything is written as a page of the
documentation.

Usage: ``python tools/check_bundle.py [--bundle bundle/village] [--out docs/objective/village.md]``

It takes about three minutes of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})

import lm_eval
import torch
import transformers
import yaml
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import JSON
from litgpt.finetune import lora
from litgpt.lora import merge_lora_weights
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from scipy.stats import qmc, spearmanr


@dataclass(frozen=True)
class Configuration:
    """The hyperparameters that the search varies, and the training seed."""

    learning_rate: float
    rank: int
    alpha: int
    dropout: float
    weight_decay: float
    seed: int = 1337


@dataclass(frozen=True)
class Settings:
    """What is the same in every evaluation."""

    epochs: int = 1
    batch: int = 4
    micro_batch: int = 4
    warmup: int = 24
    betas: tuple[float, float] = (0.9, 0.999)
    mask_prompt: bool = False


@dataclass(frozen=True)
class Result:
    """Accuracies and validation loss of one evaluation, and the CPU seconds it took besides imports."""

    val: float
    test: float
    val_loss: float
    train_seconds: float
    score_seconds: float


SETTINGS = Settings()
LEARNING_RATE, RANK, ALPHA, DROPOUT, WEIGHT_DECAY = (1e-4, 1e-1), (2, 32), (1, 64), (0.0, 0.5), (1e-5, 1e-1)
HYPERCUBE_SEED, POINTS = 2026, 20
SEEDS = (1, 2, 3, 1337)
NEAR_BEST = 0.1  # a configuration is in the good region if its mean validation accuracy is as near to the best
LEARNED = 0.35  # validation accuracy above which a configuration has learned something
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SEEDED = (
    Configuration(learning_rate=1e-3, rank=8, alpha=16, dropout=0.1, weight_decay=1e-3),
    Configuration(learning_rate=3e-3, rank=8, alpha=16, dropout=0.1, weight_decay=1e-3),
    Configuration(learning_rate=3e-3, rank=16, alpha=8, dropout=0.2, weight_decay=1e-2),
)


def hypercube(points: int = POINTS, seed: int = HYPERCUBE_SEED) -> list[Configuration]:
    """Return a scrambled Latin hypercube of the default search space."""

    def log_scale(unit: float, bounds: tuple[float, float]) -> float:
        return float(bounds[0] * (bounds[1] / bounds[0]) ** unit)

    def log_integer(unit: float, bounds: tuple[int, int]) -> int:
        value = log_scale(unit, (bounds[0] - 0.5, bounds[1] + 0.5))
        return min(max(round(value), bounds[0]), bounds[1])

    return [
        Configuration(
            learning_rate=float(f"{log_scale(row[0], LEARNING_RATE):.3g}"),
            rank=log_integer(row[1], RANK),
            alpha=log_integer(row[2], ALPHA),
            dropout=round(DROPOUT[0] + row[3] * (DROPOUT[1] - DROPOUT[0]), 3),
            weight_decay=float(f"{log_scale(row[4], WEIGHT_DECAY):.3g}"),
        )
        for row in qmc.LatinHypercube(d=5, seed=seed).random(points).tolist()
    ]


class VillageLM(TemplateLM):  # type: ignore[misc]
    """The harness's view of a LitGPT model: log-likelihoods of continuations, computed in memory."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, batch_size: int = 128) -> None:
        """Take a model in evaluation mode and the tokenizer of its checkpoint."""
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    @property
    def eot_token_id(self) -> int:
        """Token at the end of a text."""
        return int(self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text, without a start token."""
        return list(self.tokenizer.encode(string, add_special_tokens=False))

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        # continuations of one token share the forward pass of their context
        rows = sorted({(*context, *continuation[:-1]) for _, context, continuation in requests}, key=len, reverse=True)
        logprobs: dict[tuple[int, ...], torch.Tensor] = {}
        keep = max(len(continuation) for _, _, continuation in requests)
        for start in range(0, len(rows), self.batch_size):
            some = rows[start : start + self.batch_size]
            padded = torch.zeros(len(some), len(some[0]), dtype=torch.long)
            for i, row in enumerate(some):
                padded[i, : len(row)] = torch.tensor(row)
            logits = self.model(padded)
            for i, row in enumerate(some):
                logprobs[row] = torch.log_softmax(logits[i, max(0, len(row) - keep) : len(row)].float(), -1)
        answers = []
        for _, context, continuation in requests:
            scores = logprobs[(*context, *continuation[:-1])][-len(continuation) :]
            target = torch.tensor(continuation)
            greedy = bool((scores.argmax(-1) == target).all())
            answers.append((float(scores.gather(1, target[:, None]).sum()), greedy))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Not used by multiple-choice tasks."""
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not used by multiple-choice tasks."""
        raise NotImplementedError


def load_tasks(bundle: Path) -> list[dict[str, Any]]:
    """Return the configurations of both tasks with absolute file names."""
    tasks = []
    for path in sorted((bundle / "tasks").glob("*.yaml")):
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        files = task["dataset_kwargs"]["data_files"]
        task["dataset_kwargs"]["data_files"] = {key: str((path.parent / name).resolve()) for key, name in files.items()}
        tasks.append(task)
    return tasks


@contextlib.contextmanager
def keep_model() -> Iterator[dict[str, Any]]:
    """Let LitGPT hand over the live module at the end instead of writing and merging files."""
    kept: dict[str, Any] = {}
    names = ("save_lora_checkpoint", "save_hyperparameters", "merge_lora")
    before = {name: getattr(lora, name) for name in names}

    def keep(_fabric: Any, model: Any, _path: Path) -> None:
        kept["model"] = getattr(model, "module", model)

    lora.save_lora_checkpoint = keep
    lora.save_hyperparameters = lora.merge_lora = lambda *_args, **_kwargs: None
    try:
        yield kept
    finally:
        for name, function in before.items():
            setattr(lora, name, function)


def finetune(bundle: Path, configuration: Configuration, settings: Settings) -> tuple[Any, float]:
    """Fine-tune the base of the bundle and return the merged module and the final validation loss."""
    optimizer = {
        "class_path": "torch.optim.AdamW",
        "init_args": {
            "lr": configuration.learning_rate,
            "weight_decay": configuration.weight_decay,
            "betas": settings.betas,
        },
    }
    with tempfile.TemporaryDirectory() as folder, keep_model() as kept:
        out = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            lora.setup(
                checkpoint_dir=(bundle / "checkpoint").resolve(),
                out_dir=out,
                precision="32-true",
                devices=1,
                lora_r=configuration.rank,
                lora_alpha=configuration.alpha,
                lora_dropout=configuration.dropout,
                lora_query=True,
                lora_key=True,
                lora_value=True,
                lora_projection=True,
                lora_mlp=True,
                lora_head=False,
                data=JSON(
                    json_path=(bundle / "data").resolve(),
                    num_workers=0,
                    prompt_style="alpaca",
                    mask_prompt=settings.mask_prompt,
                ),
                train=TrainArgs(
                    save_interval=None,
                    log_interval=1,
                    global_batch_size=settings.batch,
                    micro_batch_size=settings.micro_batch,
                    lr_warmup_steps=settings.warmup,
                    epochs=settings.epochs,
                ),
                eval=EvalArgs(interval=10**9, max_new_tokens=10**6, max_iters=100, final_validation=True),
                optimizer=optimizer,
                logger_name="csv",
                seed=configuration.seed,
            )
        with (out / "logs/csv/version_0/metrics.csv").open(encoding="utf-8") as file:
            val_loss = float([row["val_loss"] for row in csv.DictReader(file) if row.get("val_loss")][-1])
    model = kept["model"].eval()
    with torch.no_grad():
        merge_lora_weights(model)
    model.max_seq_length = model.config.block_size  # the training had shortened it to its longest row
    return model, val_loss


def load_base(bundle: Path) -> Any:
    """Return the base model of the bundle."""
    model = lora.GPT(lora.Config.from_file(bundle / "checkpoint" / "model_config.yaml"))
    model.load_state_dict(torch.load(bundle / "checkpoint" / "lit_model.pth", weights_only=True), strict=False)
    return model.eval()


def score(model: Any, bundle: Path, log_samples: bool = False) -> dict[str, Any]:
    """Return the harness's results of both tasks."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(bundle / "checkpoint"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return dict(
            lm_eval.simple_evaluate(
                VillageLM(model, tokenizer),
                tasks=load_tasks(bundle),
                task_manager=TaskManager(include_defaults=False),
                bootstrap_iters=0,
                log_samples=log_samples,
            )
        )


def evaluate(bundle: Path, configuration: Configuration, settings: Settings = SETTINGS) -> Result:
    """Fine-tune with one configuration and score both tasks."""
    began = time.process_time()
    try:
        model, val_loss = finetune(bundle, configuration, settings)
    except OverflowError:  # LitGPT takes exp() of the validation loss; the training has diverged
        return Result(0.0, 0.0, math.inf, time.process_time() - began, 0.0)
    trained = time.process_time()
    results = score(model, bundle)["results"]
    return Result(
        val=round(results["village_val"]["acc,none"], 4),
        test=round(results["village_test"]["acc,none"], 4),
        val_loss=val_loss,
        train_seconds=trained - began,
        score_seconds=time.process_time() - trained,
    )


@dataclass(frozen=True)
class Goal:
    """One goal, what was found, and whether that meets it."""

    text: str
    found: str
    met: bool


def rank_correlation(results: Sequence[Result]) -> float:
    """Return Spearman's rank correlation between validation and test accuracy."""
    if len(results) < 3:
        return math.nan
    return float(spearmanr([result.val for result in results], [result.test for result in results]).statistic)


def check_goals(
    base: tuple[float, float],
    table: Sequence[tuple[Configuration, Result]],
    groups: Sequence[Sequence[Result]],
    report: dict[str, Any],
) -> list[Goal]:
    """Compare what was measured with what a meaningful objective needs.

    Args:
        base: Validation and test accuracy of the base model.
        table: The configurations of the hypercube with their results.
        groups: Results of each configuration that was run with several seeds, one for each seed.
        report: The report of the build.

    Returns:
        All goals in the order of the page.
    """
    results = [result for _, result in table]
    learned = [result for result in results if result.val > LEARNED]
    val, test = [result.val for result in results], [result.test for result in results]
    hottest = max(table, key=lambda pair: pair[0].learning_rate)[1].val
    overall, among = rank_correlation(results), rank_correlation(learned)
    good, flank = list[float](), list[float]()
    for group in groups:
        accuracies = [r.val for r in group]
        near_best = sum(accuracies) / len(accuracies) >= max(val) - NEAR_BEST
        (good if near_best else flank).append(max(accuracies) - min(accuracies))
    ranges = ", ".join(f"{value:.3f}" for value in good)
    ranges += "; outside of it " + ", ".join(f"{value:.3f}" for value in flank) if flank else ""
    seconds = [r.train_seconds + r.score_seconds for r in [*results, *(r for group in groups for r in group)]]
    known = min(report["facts_known"].values())
    return [
        Goal("the base knows at least 0.9 of every kind of fact", f"at least {known:.3f}", known >= 0.9),
        Goal("the base answers near chance (0.25) in both tasks", f"{base[0]:.3f}, {base[1]:.3f}", max(base) <= 0.35),
        Goal("validation reaches from 0.30 or less", f"{min(val):.3f}", min(val) <= 0.30),
        Goal("... to 0.85 or more", f"{max(val):.3f}", max(val) >= 0.85),
        Goal("the largest learning rate destroys it (at most 0.35)", f"{hottest:.3f}", hottest <= 0.35),
        Goal(
            "test accuracy is spread over 0.25 or more",
            f"{min(test):.3f} to {max(test):.3f}",
            max(test) - min(test) >= 0.25,
        ),
        Goal("rank correlation of validation and test at least 0.7", f"{overall:.3f}", overall >= 0.7),
        Goal(
            f"... and at least 0.9 among those that learned (validation above {LEARNED})",
            f"{among:.3f} ({len(learned)} of {len(results)})",
            among >= 0.9,
        ),
        Goal(
            "in the good region (mean validation within 0.1 of the best; at least two configurations) training seeds "
            "move the validation by at most 0.1",
            ranges,
            len(good) >= 2 and max(good) <= 0.1,
        ),
        Goal(
            "one evaluation takes at most 7 CPU s besides imports",
            f"mean {sum(seconds) / len(seconds):.1f}, most {max(seconds):.1f}",
            max(seconds) <= 7,
        ),
    ]


def table_lines(rows: Sequence[tuple[Configuration, Result]]) -> list[str]:
    """Format configurations and results as the lines of a table."""
    lines = [
        "| learning rate | rank | alpha | dropout | weight decay | seed | val loss | val acc | test acc |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    return lines + [
        f"| {c.learning_rate:.3g} | {c.rank} | {c.alpha} | {c.dropout:g} | {c.weight_decay:.3g} | {c.seed} "
        f"| {r.val_loss:.3f} | {r.val:.3f} | {r.test:.3f} |"
        for c, r in rows
    ]


def page_of(
    base: tuple[float, float],
    table: Sequence[tuple[Configuration, Result]],
    groups: Sequence[Sequence[tuple[Configuration, Result]]],
    report: dict[str, Any],
    goals: Sequence[Goal],
) -> str:
    """Write the measured part of the page."""
    results = [result for _, result in [*table, *(pair for group in groups for pair in group)]]
    train, scoring = [r.train_seconds for r in results], [r.score_seconds for r in results]
    verdict = "All goals are met." if all(goal.met for goal in goals) else "**Not all goals are met.**"
    lines = [
        "This part was written by `tools/check_bundle.py`; run it again rather than edit it.",
        "",
        f"World seed {report['seed']}, {report['steps']} pretraining steps, {report['parameters']} parameters, "
        f"{report['rows']['village_val']} validation and {report['rows']['village_test']} test questions.",
        f"Fixed settings: {SETTINGS}; LoRA on query, key, value, projection and MLP; precision 32-true.",
        f"Search space: learning rate {LEARNING_RATE[0]:g} to {LEARNING_RATE[1]:g} (log), rank {RANK[0]} to {RANK[1]} "
        f"(log), alpha {ALPHA[0]} to {ALPHA[1]} (log), dropout {DROPOUT[0]:g} to {DROPOUT[1]:g}, weight decay "
        f"{WEIGHT_DECAY[0]:g} to {WEIGHT_DECAY[1]:g} (log).",
        "",
        f"{verdict} Base model: validation {base[0]:.3f}, test {base[1]:.3f}.",
        "",
        "| goal | found | met |",
        "| --- | --- | --- |",
        *(f"| {goal.text} | {goal.found} | {'yes' if goal.met else '**no**'} |" for goal in goals),
        "",
        f"CPU seconds, one thread, without imports: training {sum(train) / len(train):.1f} on average (at most "
        f"{max(train):.1f}), scoring both tasks {sum(scoring) / len(scoring):.1f} (at most {max(scoring):.1f}).",
        "",
        f"### {len(table)} configurations of a Latin hypercube (seed {HYPERCUBE_SEED}), best first",
        "",
        *table_lines(sorted(table, key=lambda pair: -pair[1].val)),
        "",
        "### Training seeds",
        "",
        *table_lines([pair for group in groups for pair in group]),
    ]
    return "\n".join(lines)


def write_page(path: Path, measured: str) -> None:
    """Put the measured part between its marks, and leave the rest of the page as it is."""
    page = path.read_text(encoding="utf-8") if path.exists() else f"# The village objective\n\n{BEGIN}\n{END}\n"
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Read the command line, evaluate the table, write the page, and fail if a goal is missed."""
    parser = argparse.ArgumentParser(description="Check that the bundled village is a meaningful objective.")
    parser.add_argument("--bundle", type=Path, default=Path("bundle/village"), help="folder of the bundle")
    parser.add_argument("--out", type=Path, default=Path("docs/objective/village.md"), help="page to write")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    def run(configuration: Configuration) -> tuple[Configuration, Result]:
        result = evaluate(arguments.bundle, configuration)
        print(f"{configuration}: validation {result.val:.3f}, test {result.test:.3f}", flush=True)
        return configuration, result

    report = json.loads((arguments.bundle / "bundle.json").read_text(encoding="utf-8"))
    accuracies = score(load_base(arguments.bundle), arguments.bundle)["results"]
    base = (accuracies["village_val"]["acc,none"], accuracies["village_test"]["acc,none"])
    table = [run(configuration) for configuration in hypercube()]
    groups = [[run(replace(configuration, seed=seed)) for seed in SEEDS] for configuration in SEEDED]
    goals = check_goals(base, table, [[result for _, result in group] for group in groups], report)
    write_page(arguments.out, page_of(base, table, groups, report, goals))
    missed = [goal.text for goal in goals if not goal.met]
    if missed:
        raise SystemExit("goals missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
