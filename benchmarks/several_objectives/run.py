"""Make the runs of the benchmark of several objectives that are not cached yet.

Usage: ``python -m benchmarks.several_objectives.run [quick|full] [options]``. An interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.optimizers.cache import Key
from benchmarks.optimizers.runner import make_missing, options
from benchmarks.optimizers.simulate import Run, duration, simulate
from benchmarks.several_objectives import contestants
from benchmarks.several_objectives.problems import PROBLEMS, Metrics, Volume
from benchmarks.several_objectives.problems import missing as missing_problem
from hpo_cluster.space import Configuration
from hpo_cluster.trial import derive_seed

#: Where the runs lie, unless the command line says otherwise. Not in version control.
RESULTS = Path(__file__).parent / "results" / "runs.jsonl"

#: Evaluations of a run.
BUDGET = 50

#: quick: some fifteen minutes on two cores.
QUICK_PROBLEMS, QUICK_SEEDS, QUICK_WORKERS = ("zdt1", "dtlz2", "bnh"), 3, (1,)
FULL_SEEDS, FULL_WORKERS = 10, (1, 8)


class Told:
    """A contestant that is told metrics, as one that is told numbers.

    Args:
        key: of the run.
    """

    def __init__(self, key: Key) -> None:
        self.problem = PROBLEMS[key.problem]()
        seed = derive_seed("campaign", key.problem, key.seed)  # equal for all, so that the comparison is paired
        self._contestant = contestants.make(key.optimizer, self.problem, seed)
        self._volume, self._observed, self._seed = Volume(self.problem), dict[int, Metrics](), key.seed

    def ask(self, trial: int) -> Configuration | None:
        """Return the configuration of the next trial."""
        return self._contestant.ask(trial)

    def evaluate(self, trial: int, configuration: Configuration) -> tuple[float, float]:
        """Evaluate a trial, and return the share of the best hypervolume that the run has then, twice."""
        self._observed[trial], true = self.problem.observe(configuration, self._seed, trial)
        share = self._volume.add(self._observed[trial], true)
        return share, share

    def tell(self, trial: int, target: float) -> None:
        """Report the metrics of a trial."""
        self._contestant.tell(trial, self._observed.pop(trial))


def execute(key: Key) -> Run:
    """Make one run in this process."""
    told = Told(key)
    return simulate(
        told, told.evaluate, int(key.budget), key.workers, lambda trial: duration(key.problem, key.seed, trial)
    )


def plan(arguments: argparse.Namespace) -> tuple[list[Key], list[str]]:
    """Return the wanted runs, seed by seed, and what was left out."""
    quick = arguments.setting == "quick"
    wanted = arguments.problems or [name for name in PROBLEMS if not quick or name in QUICK_PROBLEMS]
    names = arguments.optimizers or contestants.NAMES
    messages = [message for message in (*map(missing_problem, wanted), *map(contestants.missing, names)) if message]
    keys = [
        Key(problem, name, seed, workers, arguments.budget)
        for seed in range(arguments.seeds or (QUICK_SEEDS if quick else FULL_SEEDS))
        for workers in arguments.workers or (QUICK_WORKERS if quick else FULL_WORKERS)
        for problem in wanted
        for name in names
        if not missing_problem(problem) and not contestants.missing(name)
    ]
    return keys, messages


def main(argv: Sequence[str]) -> int:
    """Make the missing runs."""
    parser = options("benchmarks.several_objectives.run", __doc__, RESULTS, "1,8")
    parser.add_argument("--problems", type=lambda text: text.split(","), help="names, joined by commas")
    parser.add_argument("--budget", type=int, default=BUDGET, help="evaluations of a run")
    arguments = parser.parse_args(argv)
    keys, messages = plan(arguments)
    for message in messages:
        print(message)
    return make_missing(keys, execute, contestants.versions, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
