"""Check that the bundled village is a meaningful objective, and write a page with the results.

The program evaluates configurations as jobs of the default campaign do (``jobs/lora.py``, with the settings and the
space of ``conf/``): a Latin hypercube of the search space, drawn with a fixed seed, and a few configurations with
several training seeds each. It then checks the goals below and writes everything to a page of the documentation.

Usage: ``python tools/check_bundle.py [--bundle bundle/village] [--out docs/objective/village.md]``

It takes two and a half minutes on one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1")

from scipy.stats import qmc, spearmanr

from hpo_cluster.cli.config.compose import compose
from hpo_cluster.cli.config.schema import Config
from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.settings import LORA_MATRICES
from hpo_cluster.objectives.worker import Attempt
from hpo_cluster.record.attempt_files import SCHEMA
from hpo_cluster.record.files import dumps, replace_text
from hpo_cluster.record.layout import AttemptLayout, resources_dir
from hpo_cluster.space import Configuration, Space
from hpo_cluster.trial import ErrorKind

#: Axes of the hypercube and their names on the page; the order is part of the draw, like the seed.
AXES = {
    "learning_rate": "learning rate",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "weight_decay": "weight decay",
}
HYPERCUBE_SEED, POINTS = 2026, 20
SEEDS, SEED = (1, 2, 3, 1337), 1337  # training seeds of the repeated configurations, and of all others
NEAR_BEST = 0.1  # a configuration is in the good region if its mean validation accuracy is this close to the best
LEARNED = 0.35  # validation accuracy above which a configuration has learned something
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SEEDED: tuple[Configuration, ...] = tuple(
    dict(zip(AXES, values, strict=True))
    for values in ((1e-3, 8, 16, 0.1, 1e-3), (3e-3, 8, 16, 0.1, 1e-3), (3e-3, 16, 8, 0.2, 1e-2))
)


@dataclass(frozen=True)
class Result:
    """Result of one evaluation: the configuration, its accuracies and validation loss, and the process time."""

    parameters: Mapping[str, Any]
    seed: int
    val: float
    test: float
    val_loss: float
    cpu_seconds: float


def configure(bundle: Path) -> Config:
    """Return the configuration of the default campaign with the files of a bundle."""
    places = {"model.checkpoint_dir": "checkpoint", "data.path": "data", "tasks.include_path": "tasks"}
    overrides = [f"{key}='{(bundle / name).resolve()}'" for key, name in places.items()]
    return compose(["space=village", "train=village", "objective.keep_adapter=false", *overrides])


def load_program() -> Any:
    """Return ``jobs/lora.py`` as a module."""
    spec = importlib.util.spec_from_file_location("lora_job", resources_dir() / "jobs" / "lora.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def hypercube(space: Space) -> list[Configuration]:
    """Return a scrambled Latin hypercube of the search space."""
    rows = qmc.LatinHypercube(d=len(AXES), seed=HYPERCUBE_SEED).random(POINTS).tolist()
    points = [dict(zip(AXES, row, strict=True)) for row in rows]
    return [space.decode([point[name] for name in space.names]) for point in points]


def evaluate(program: Any, config: Config, parameters: Configuration | None, seed: int = SEED) -> Result:
    """Evaluate one configuration in this process as its job would; None evaluates the base model."""
    assert isinstance(config.objective, LoraObjective)
    with tempfile.TemporaryDirectory() as folder:
        params: dict[str, Any] = {
            "schema": SCHEMA,
            "seed": seed,
            "baseline": parameters is None,
            "parameters": parameters or {},
            "settings": config.objective.job_settings(config.resolve),
        }
        replace_text(AttemptLayout(Path(folder)).params, dumps(params))
        attempt = Attempt(Path(folder))
        began = time.process_time()
        try:
            metrics = program.evaluate(attempt)["metrics"]
        except AttemptError as error:
            if error.kind != ErrorKind.DIVERGED:
                raise
            metrics = {}
        seconds = time.process_time() - began
    tasks = config.objective.tasks
    return Result(
        parameters=params["parameters"],
        seed=seed,
        val=metrics.get(config.objective.metric, 0.0),
        test=metrics.get(f"{tasks.test[0]}/{tasks.metric}", 0.0),
        val_loss=metrics.get("val_loss", math.inf),
        cpu_seconds=seconds,
    )


@dataclass(frozen=True)
class Goal:
    """One goal, what was measured, and whether the goal is met."""

    text: str
    found: str
    met: bool


def rank_correlation(results: Sequence[Result]) -> float:
    """Return Spearman's rank correlation between validation and test accuracy."""
    if len(results) < 3:
        return math.nan
    return float(spearmanr([result.val for result in results], [result.test for result in results]).statistic)


def check_goals(
    base: Result,
    table: Sequence[Result],
    groups: Sequence[Sequence[Result]],
    report: dict[str, Any],
) -> list[Goal]:
    """Check the goals of a meaningful objective against the measurements.

    Args:
        base: Result of the base model.
        table: Results of the configurations of the hypercube.
        groups: For each repeated configuration, its results with the different training seeds.
        report: The report of the build.

    Returns:
        All goals, in the order of the page.
    """
    learned = [result for result in table if result.val > LEARNED]
    val, test = [result.val for result in table], [result.test for result in table]
    hottest = max(table, key=lambda result: float(result.parameters["learning_rate"])).val
    overall, among = rank_correlation(table), rank_correlation(learned)
    good, flank = list[float](), list[float]()
    for group in groups:
        accuracies = [r.val for r in group]
        near_best = sum(accuracies) / len(accuracies) >= max(val) - NEAR_BEST
        (good if near_best else flank).append(max(accuracies) - min(accuracies))
    ranges = ", ".join(f"{value:.3f}" for value in good)
    ranges += "; outside of it " + ", ".join(f"{value:.3f}" for value in flank) if flank else ""
    seconds = [r.cpu_seconds for r in [*table, *(r for group in groups for r in group)]]
    known = min(report["facts_known"].values())
    return [
        Goal("the base knows at least 0.9 of every kind of fact", f"at least {known:.3f}", known >= 0.9),
        Goal(
            "the base answers near chance (0.25) in both tasks",
            f"{base.val:.3f}, {base.test:.3f}",
            max(base.val, base.test) <= 0.35,
        ),
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
            f"{among:.3f} ({len(learned)} of {len(table)})",
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


def table_lines(results: Sequence[Result]) -> list[str]:
    """Return configurations and results as the lines of a table."""
    heads = [*AXES.values(), "seed", "val loss", "val acc", "test acc"]
    lines = [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    for r in results:
        cells = [*(f"{r.parameters[name]:.3g}" for name in AXES), str(r.seed)]
        cells += [f"{value:.3f}" for value in (r.val_loss, r.val, r.test)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def setting_lines(objective: LoraObjective, space: Space) -> list[str]:
    """Return lines about the settings that are the same in every evaluation, and about the search space."""
    fixed = objective.train.model_dump(exclude={*space.names, *(f"lora_{matrix}" for matrix in LORA_MATRICES), "seed"})
    matrices = [matrix for matrix in LORA_MATRICES if getattr(objective.train, f"lora_{matrix}")]
    ranges = space.to_json()
    searched = (
        f"{label} {entry['low']:g} to {entry['high']:g}{' (log)' if entry['log'] else ''}"
        for label, entry in ((label, ranges[name]) for name, label in AXES.items())
    )
    return [
        f"Fixed settings: {', '.join(f'{name}={value}' for name, value in fixed.items() if value is not None)}, "
        f"mask_prompt={objective.data.mask_prompt}; LoRA on {', '.join(matrices)}.",
        f"Search space: {', '.join(searched)}.",
    ]


def page_of(
    config: Config,
    base: Result,
    table: Sequence[Result],
    groups: Sequence[Sequence[Result]],
    report: dict[str, Any],
    goals: Sequence[Goal],
) -> str:
    """Return the measured part of the page."""
    repeated = [result for group in groups for result in group]
    results = [*table, *repeated]
    cpu = [result.cpu_seconds for result in results]
    verdict = "All goals are met." if all(goal.met for goal in goals) else "**Not all goals are met.**"
    assert isinstance(config.objective, LoraObjective)
    lines = [
        "This part was written by `tools/check_bundle.py`; run it again rather than edit it.",
        "",
        f"World seed {report['seed']}, {report['steps']} pretraining steps, {report['parameters']} parameters, "
        f"{report['rows']['village_val']} validation and {report['rows']['village_test']} test questions.",
        *setting_lines(config.objective, config.space),
        "",
        f"{verdict} Base model: validation {base.val:.3f}, test {base.test:.3f}.",
        "",
        "| goal | found | met |",
        "| --- | --- | --- |",
        *(f"| {goal.text} | {goal.found} | {'yes' if goal.met else '**no**'} |" for goal in goals),
        "",
        "CPU seconds of one evaluation, from reading its files to the last score (process time, one thread, without "
        f"imports): {sum(cpu) / len(cpu):.1f} on average (at most {max(cpu):.1f}).",
        "",
        f"### {len(table)} configurations of a Latin hypercube (seed {HYPERCUBE_SEED}), best first",
        "",
        *table_lines(sorted(table, key=lambda result: -result.val)),
        "",
        "### Training seeds",
        "",
        *table_lines(repeated),
    ]
    return "\n".join(lines)


def write_page(path: Path, measured: str) -> None:
    """Replace the measured part of the page between its marks; the rest of the page stays."""
    page = path.read_text(encoding="utf-8") if path.exists() else f"# The village objective\n\n{BEGIN}\n{END}\n"
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Read the command line, evaluate the configurations, write the page, and fail if a goal is not met."""
    parser = argparse.ArgumentParser(description="Check that the bundled village is a meaningful objective.")
    parser.add_argument("--bundle", type=Path, default=Path("bundle/village"), help="folder of the bundle")
    parser.add_argument("--out", type=Path, default=Path("docs/objective/village.md"), help="page to write")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")

    config, program = configure(arguments.bundle), load_program()

    def run(parameters: Configuration | None, seed: int = SEED) -> Result:
        result = evaluate(program, config, parameters, seed)
        print(f"{parameters or 'base'}, seed {seed}: validation {result.val:.3f}, test {result.test:.3f}", flush=True)
        return result

    report = json.loads((arguments.bundle / "bundle.json").read_text(encoding="utf-8"))
    base = run(None)  # first, so that the imports do not count in the times of the others
    table = [run(parameters) for parameters in hypercube(config.space)]
    groups = [[run(parameters, seed) for seed in SEEDS] for parameters in SEEDED]
    goals = check_goals(base, table, groups, report)
    write_page(arguments.out, page_of(config, base, table, groups, report, goals))
    missed = [goal.text for goal in goals if not goal.met]
    if missed:
        raise SystemExit("goals missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
