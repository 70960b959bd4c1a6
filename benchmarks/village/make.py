"""Make the evaluations of the table, one JSON line each. An interrupted run goes on where it was.

Usage: ``python -m benchmarks.village.make --out rows.jsonl [--processes 1]``, then
``python -m benchmarks.village.table rows.jsonl``. A new file begins with the evaluations of the table there is.

Each of `ROUNDS` goes on with these, in this order: a Sobol design; campaigns of optimizers, each of which sees its own
trials only; other seeds of some configurations, good and bad ones; and, of some, trainings that end with their schedule
after a ninth and a third of the steps. So the table has all of them whenever the program is stopped after a round.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.village.evaluate import VALIDATION, Evaluator, configuration, quiet
from benchmarks.village.table import TABLE, load, read_space, rows_of
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record.campaign_state import asked_rows
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.record.processes import end_with_parent
from hpo_cluster.space import Configuration, Space
from hpo_cluster.trial import Ask, Proposal, derive_seed


class Round(NamedTuple):
    """How many of each there are at the end of a round.

    Attributes:
        sobol: points of the design.
        campaigns: trials of each optimizer.
        seeded: configurations with other seeds.
        shorter: configurations with shorter schedules.
    """

    sobol: int
    campaigns: Mapping[str, int]
    seeded: int
    shorter: int


ROUNDS = (
    Round(72, {"bo": 4, "mosaic": 2, "turbo": 2, "optuna": 2}, seeded=8, shorter=12),
    Round(128, {"bo": 24, "mosaic": 12, "turbo": 12, "optuna": 12}, seeded=20, shorter=30),
    Round(256, {"bo": 40, "mosaic": 24, "turbo": 24, "optuna": 24}, seeded=40, shorter=60),
    Round(512, {"bo": 64, "mosaic": 48, "turbo": 40, "optuna": 48}, seeded=72, shorter=80),
)
#: Of the configurations with other seeds and shorter schedules, this share has learned something.
GOOD = 2 / 3
SEEDS = (1, 2)
#: Accuracy above which a model has learned something; chance is 0.25.
LEARNED = 0.35
SEED = 0


class Key(NamedTuple):
    """What identifies an evaluation: its configuration by origin and trial, the training's seed, and its length."""

    origin: str
    trial: int
    seed: int = SEED
    share: str = "1"


@dataclass(frozen=True)
class Task:
    """An evaluation to be made."""

    key: Key
    parameters: Configuration


Row = Mapping[str, Any]


def key_of(row: Row) -> Key:
    """Return the key of a row."""
    return Key(*(row[name] for name in Key._fields))


def read(path: Path) -> list[Row]:
    """Return the rows in a file; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.endswith("}")]


def append(path: Path, row: Row) -> None:
    """Append a row in one write. If the last line was cut off, it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut = file.read(1) != b"\n"
        else:
            cut = False
        file.write((b"\n" if cut else b"") + json.dumps(row).encode() + b"\n")


def score_of(row: Row) -> float | None:
    """Return the validation accuracy of a whole training; None if it diverged."""
    value: float | None = row["looks"].get("1", {}).get(f"{VALIDATION}/acc")
    return value


class Campaign:
    """An optimizer, one trial after the other. It is made again from its rows whenever the program starts.

    Args:
        name: of the optimizer.
        space: of the campaign.
        rows: its rows so far.
    """

    def __init__(self, name: str, space: Space, rows: Iterable[Row]) -> None:
        self.name = name
        self.optimizer = make_optimizer(name, space, derive_seed("village", name))
        self.journal = MemoryJournal(space.names, maximize=True)
        self.running = False
        for row in sorted(rows, key=key_of):
            self._take(Ask((Proposal(row["parameters"]),)))
            self.tell(row)

    @property
    def trials(self) -> int:
        """Number of trials so far."""
        return self.journal.record.next_trial

    def ask(self) -> Task:
        """Return the next trial."""
        ask = self.optimizer.ask(self.journal.history(), 1)
        self.running = True
        key = Key(self.name, self.trials)
        self._take(ask)
        return Task(key, dict(ask.proposals[0].parameters))

    def _take(self, ask: Ask) -> None:
        self.journal.append("asked", trials=asked_rows(ask, self.trials, 0))

    def tell(self, row: Row) -> None:
        """Report a trial's end."""
        self.running = False
        value = score_of(row)
        end = {"state": "diverged"} if value is None else {"state": "completed", "value": value}
        self.journal.append("ended", trial=row["trial"], **end)


class Plan:
    """Says which evaluation comes next.

    Args:
        space: of the configurations.
        rows: the evaluations made so far.
    """

    def __init__(self, space: Space, rows: Sequence[Row]) -> None:
        self.rows = {key_of(row): row for row in rows}
        self.begun = dict.fromkeys(self.rows)
        empty = MemoryJournal(space.names, maximize=True).history()
        design = make_optimizer("sobol", space, derive_seed("village", "sobol")).ask(empty, ROUNDS[-1].sobol).proposals
        self.design = [Task(Key("sobol", number), dict(p.parameters)) for number, p in enumerate(design)]
        self.campaigns = [
            Campaign(name, space, (r for k, r in self.rows.items() if k == Key(name, k.trial)))
            for name in ROUNDS[-1].campaigns
        ]

    def add(self, row: Row) -> None:
        """Take in an evaluation."""
        self.rows[key_of(row)] = row
        for campaign in self.campaigns:
            if key_of(row) == Key(campaign.name, row["trial"]):
                campaign.tell(row)

    def next(self) -> Task | None:
        """Return the next evaluation; None if all are made or begun."""
        task = next((task for task in self._in_order() if task.key not in self.begun), None)
        if task is not None:
            self.begun[task.key] = None
        return task

    def _in_order(self) -> Iterator[Task]:
        for round_ in ROUNDS:
            yield from self.design[: round_.sobol]
            open_ = [c for c in self.campaigns if not c.running and c.trials < round_.campaigns[c.name]]
            if open_:
                yield min(open_, key=lambda campaign: campaign.trials).ask()
            chosen = self._chosen(round_.shorter)
            for task in chosen[: round_.seeded]:
                yield from (Task(task.key._replace(seed=seed), task.parameters) for seed in SEEDS)
            for task in chosen:
                yield from (Task(task.key._replace(share=share), task.parameters) for share in ("1/9", "1/3"))

    def _chosen(self, number: int) -> list[Task]:
        """Return some configurations in random order.

        They are evenly spaced in the ranking of those that have learned something, and in that of the others. What was
        chosen before stays chosen and comes first, though later rows change the ranking.
        """
        whole = {k: r for k, r in self.rows.items() if (k.seed, k.share) == (SEED, "1")}
        before = dict.fromkeys(k._replace(seed=SEED, share="1") for k in self.begun if (k.seed, k.share) != (SEED, "1"))
        ranked = sorted(whole, key=lambda k: (score_of(whole[k]) or 0.0, k))
        good = [k for k in ranked if (score_of(whole[k]) or 0.0) > LEARNED]
        bad = ranked[: len(ranked) - len(good)]
        count = min(round(number * GOOD), len(good))
        picked = [*_spaced(good, count), *_spaced(bad, number - count)]
        order = np.random.default_rng(derive_seed("village", "chosen")).permutation(len(picked))
        keys = dict.fromkeys([*before, *(picked[i] for i in order)])
        return [Task(key, dict(whole[key]["parameters"])) for key in list(keys)[:number]]


def _spaced(keys: Sequence[Key], count: int) -> list[Key]:
    """Return `count` of the keys, or all, evenly spaced."""
    count = min(count, len(keys))
    return [keys[i] for i in np.linspace(0, len(keys) - 1, count).round().astype(int)] if count else []


_evaluator: Evaluator


def _start() -> None:
    """Prepare a process of the pool."""
    global _evaluator
    end_with_parent()
    quiet()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    _evaluator = Evaluator()


def _evaluate(task: Task) -> Row:
    measured = _evaluator(task.parameters, task.key.seed, task.key.share)
    return {**task.key._asdict(), "parameters": task.parameters, **measured}


def main(argv: Sequence[str]) -> int:
    """Make the missing evaluations."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.village.make", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines; it may hold some already")
    parser.add_argument("--processes", type=int, default=1, help="evaluations at once")
    arguments = parser.parse_args(argv)
    quiet()  # inherited by the pool, whose processes read it when they start
    if not arguments.out.exists() and TABLE.exists():
        for known in rows_of(load(), read_space()):
            append(arguments.out, known)
    plan = Plan(configuration().space, read(arguments.out))
    print(f"{len(plan.rows)} evaluations are in {arguments.out}", flush=True)
    context = multiprocessing.get_context("spawn")
    running: set[Future[Row]] = set()
    with ProcessPoolExecutor(arguments.processes, mp_context=context, initializer=_start) as pool:
        while True:
            while len(running) < arguments.processes and (task := plan.next()):
                running.add(pool.submit(_evaluate, task))
            if not running:
                return 0
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                row = future.result()
                append(arguments.out, row)
                plan.add(row)
                score = score_of(row)
                print(f"{len(plan.rows)} {tuple(key_of(row))} {score} {row['total_s']} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
