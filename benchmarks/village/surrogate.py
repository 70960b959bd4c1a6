"""A regression on the table: a value for any configuration of the space, not for those in the table alone.

Optimizers propose points between the rows, and with 21 parameters the nearest row is far away: its value predicts
hardly anything, the trees three quarters of the variance (``docs/benchmarks/village.md`` has the figures). So the
problem `village` of `benchmarks.optimizers` is the mean of a forest, with the noise that was measured with several
seeds. Methods that choose among given configurations need no regression: they can be run on the rows themselves.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.village.table import FOLDER, TABLE, configurations, load, read_space, trials
from hpo_cluster.objectives.forest import Array, Trees
from hpo_cluster.space import Configuration, Space, Value

PLACES = ("lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp", "lora_head")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
#: Rows of the training data, whose number gives that of the steps.
EXAMPLES = 960
#: Values in a leaf at least, so that a single noisy one is not repeated.
LEAF = 2
#: The highest values of the surrogates (`best_test`: on the test task) and their noise, with the digest of their table.
CONSTANTS = FOLDER / "surrogate.json"
#: Where the highest value is looked for: known and random points, then rounds of points around the best ones.
DRAWN, ROUNDS, AROUND, KEPT = 4000, 40, 100, 10


def alpha_of(configuration: Mapping[str, Any]) -> float:
    """Return LoRA's alpha by its rule, as `TrainSettings.alpha` does."""
    rank, rule = configuration["lora_rank"], configuration["lora_alpha_rule"]
    if rule == "free":
        return float(configuration["lora_alpha"])
    return float(configuration["lora_alpha_factor"] * (rank if rule == "rank" else math.sqrt(rank)))


def features(configuration: Mapping[str, Any]) -> list[float]:
    """Return what the trees split on: the parameters, most of them as logarithms, and what follows from several."""
    c = configuration
    rate, scale = math.log10(c["learning_rate"]), math.log10(alpha_of(c) / c["lora_rank"])
    steps = EXAMPLES * c["epochs"] / c["global_batch_size"]
    places = [float(c[name]) for name in PLACES]
    return [
        *places,
        sum(places),
        math.log2(c["lora_rank"]),
        math.log2(alpha_of(c)),
        scale,
        c["lora_dropout"],
        rate,
        rate + scale,
        rate + scale / 2,
        *(float(c["lr_schedule"] == name) for name in SCHEDULES),
        c["lr_warmup_share"],
        math.log10(c["weight_decay"]),
        c["beta1"],
        math.log10(1 - c["beta2"]),
        math.log10(c["epsilon"]),
        math.log2(c["global_batch_size"]),
        *(float(c["precision"] == name) for name in PRECISIONS),
        c["epochs"],
        math.log2(steps),
        rate + math.log10(steps),
    ]


def matrix(found: Sequence[Mapping[str, Any]]) -> Array:
    """Return the features of several configurations (``n x f``)."""
    return np.array([features(configuration) for configuration in found], dtype=np.float64)


def targets(frame: pd.DataFrame, column: str) -> Array:
    """Return a column; a training that diverged is as good as the worst."""
    values = frame[column]
    worst = values.max() if column.startswith(("val_loss", "train_loss")) else values.min()
    return values.fillna(worst).to_numpy(dtype=np.float64)


@dataclass(frozen=True)
class Surrogate:
    """Predictions of a column of the table.

    Attributes:
        space: of the configurations.
        trees: the forest.
        known: points of the unit cube that it was fitted to (``n x d``).
    """

    space: Space
    trees: Trees
    known: Array

    @classmethod
    def fit(cls, frame: pd.DataFrame, column: str = "val_acc") -> Surrogate:
        """Return the forest of a column, such as ``test_acc``, ``val_acc@1/3`` or ``total_s``."""
        space, rows = read_space(), trials(frame)
        found = configurations(rows, space)
        known = np.array([space.encode(configuration) for configuration in found])
        return cls(space, Trees(matrix(found), targets(rows, column), LEAF), known)

    def predict(self, found: Sequence[Mapping[str, Value]]) -> Array:
        """Return the means of several configurations."""
        return self.trees.predict(matrix(found))

    def __call__(self, configuration: Mapping[str, Value]) -> float:
        """Return the mean of a configuration."""
        return float(self.predict([configuration])[0])

    def highest(self) -> tuple[float, Configuration]:
        """Return the highest mean that is found, and where: at known and random points, then around the best ones."""
        rng = np.random.default_rng(0)
        points, values = self._allowed(np.concatenate([self.known, rng.random((DRAWN, self.space.dim))]))
        for number in range(ROUNDS):
            best = np.argsort(-values)[:KEPT]
            near = points[best][rng.integers(KEPT, size=AROUND)]
            moved = near + rng.standard_normal(near.shape) * 0.3 * 0.93**number
            near = np.where(rng.random(near.shape) < 0.3, np.clip(moved, 0, 1), near)
            more, seen = self._allowed(near)
            points, values = np.concatenate([points[best], more]), np.concatenate([values[best], seen])
        top = int(values.argmax())
        return float(values[top]), self.space.decode(points[top])

    def _allowed(self, points: Array) -> tuple[Array, Array]:
        """Return the points that the constraints allow, and their means."""
        decoded = [self.space.decode(point) for point in points]
        allowed = [number for number, configuration in enumerate(decoded) if self.space.allows(configuration)]
        return points[allowed], self.predict([decoded[number] for number in allowed])


@functools.cache
def village(column: str = "val_acc") -> Surrogate:
    """Return the surrogate of a column, by default of the validation accuracy."""
    return Surrogate.fit(load(), column)


def digest() -> str:
    """Return a digest of the table."""
    return hashlib.sha256(TABLE.read_bytes()).hexdigest()[:16]


@functools.cache
def constants() -> dict[str, Any]:
    """Return what `benchmarks.village.report` found: the highest values, and the noise by accuracy."""
    found: dict[str, Any] = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    return found


def noise_at(accuracy: float) -> float:
    """Return the standard deviation over training seeds at an accuracy: as measured at chance, between, and above."""
    points = np.array(constants()["noise"])
    return float(np.interp(accuracy, points[:, 0], points[:, 1]))


# --- how good it is --------------------------------------------------------------------------------------------------


def nearest(known: Array, values: Array, points: Array) -> Array:
    """Return the value of the nearest known point of the unit cube, for each point."""
    distances = ((points[:, None, :] - known[None, :, :]) ** 2).sum(-1)
    return np.asarray(values[distances.argmin(1)], dtype=np.float64)


def cross_validation(frame: pd.DataFrame, column: str = "val_acc", folds: int = 10) -> pd.DataFrame:
    """Return R² and Spearman's correlation of held-out rows, for the forest and other ways to fill the gaps."""
    from scipy.stats import spearmanr
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
    from sklearn.model_selection import KFold

    space, rows = read_space(), trials(frame)
    found = configurations(rows, space)
    x, y = matrix(found), targets(rows, column)
    cube = np.array([space.encode(configuration) for configuration in found])

    def fitted(model: Any) -> Callable[[Any, Any], Any]:
        return lambda train, test: model.fit(x[train], y[train]).predict(x[test])

    ways: dict[str, Callable[[Any, Any], Any]] = {
        "extremely randomised trees": lambda train, test: Trees(x[train], y[train], LEAF).predict(x[test]),
        "random forest": fitted(RandomForestRegressor(200, random_state=0, n_jobs=1)),
        "gradient boosting": fitted(GradientBoostingRegressor(random_state=0)),
        "nearest row in the unit cube": lambda train, test: nearest(cube[train], y[train], cube[test]),
    }
    held_out = {name: np.empty(len(y)) for name in ways}
    for train, test in KFold(folds, shuffle=True, random_state=0).split(x):
        for name, predict in ways.items():
            held_out[name][test] = predict(train, test)
    rows_ = [
        {
            "way": name,
            "R²": 1 - ((y - seen) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
            "Spearman": spearmanr(y, seen)[0],
            "error": np.sqrt(((y - seen) ** 2).mean()),
        }
        for name, seen in held_out.items()
    ]
    return pd.DataFrame(rows_)
