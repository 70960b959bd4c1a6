"""The problems: test functions, cliffs made for this benchmark, and surrogates of real fine-tunings.

A problem is always maximised here. Its *regret* at a configuration is the best known value minus the true one.

`village` is a regression on the fine-tunings of the bundled model in `benchmarks.village`: 21 parameters, mixed and
conditional, with the noise of their seeds. In `village_test` the optimizer sees the same, and what counts is the
accuracy on the test task.

`lora1B` and its variants come from the 203 fine-tunings of Llama-3.2-1B published with N. Davouse and E.-G. Talbi,
"Bayesian and Partition-Based Optimization for Hyperparameter Optimization of LLM Fine-Tuning", OLA 2025, in
https://github.com/Kiwy3/BO_PBO_HPO_LLM (``computation_experiments/results/*_bis.json``, MIT). The folder named by
`DATA_VARIABLE` holds their solutions as JSON lines: ``lhs.jsonl``, ``bo.jsonl``, ``soo.jsonl``, ``bamsoo.jsonl``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpo_cluster.objectives import benchmark_functions
from hpo_cluster.objectives.forest import TREES, Array, Trees
from hpo_cluster.space import Configuration, Float, Integer, Parameter, Space, Value
from hpo_cluster.trial import derive_seed

#: Environment variable that names the folder with the published evaluations.
DATA_VARIABLE = "HPO_CLUSTER_BENCH_DATA"
#: Those of the bundled model's fine-tunings: what counts is the validation accuracy, or the accuracy on the test task.
VILLAGE = ("village", "village_test")
#: The problems made of the published evaluations.
LORA = ("lora1B", "lora1Bs", "lora1B_noisy")
DATA_FILES = ("lhs.jsonl", "bo.jsonl", "soo.jsonl", "bamsoo.jsonl")


@dataclass(frozen=True)
class Problem:
    """A problem to maximise.

    Args:
        name: its key.
        space: where it is defined.
        truth: noiseless value of a configuration.
        best: the highest known value.
        noise: standard deviation of the noise that the optimizer sees, the same everywhere or by the true value.
        shown: noiseless value that the optimizer sees, where it is not the one that counts.
    """

    name: str
    space: Space
    truth: Callable[[Mapping[str, Value]], float]
    best: float
    noise: float | Callable[[float], float] = 0.0
    shown: Callable[[Mapping[str, Value]], float] | None = None

    def observe(self, configuration: Configuration, seed: int, trial: int) -> tuple[float, float]:
        """Return what the optimizer sees, and the true value. The noise depends on (problem, seed, trial)."""
        true = self.truth(configuration)
        seen = true if self.shown is None else self.shown(configuration)
        if not self.noise:
            return seen, true
        rng = np.random.default_rng(derive_seed("noise", self.name, seed, trial))
        noise = self.noise(seen) if callable(self.noise) else self.noise
        return seen + noise * float(rng.standard_normal()), true


#: `island`: heights of chance, of the plateau and of the island's top; where the edge and the island lie; its widths.
ISLAND_CHANCE, ISLAND_PLATEAU, ISLAND_TOP = 0.25, 0.85, 0.95
ISLAND_EDGE, ISLAND_AT, ISLAND_WIDTH, ISLAND_BREADTH = 0.62, 0.74, 0.06, 0.5
ISLAND_CENTRE = (0.74, 0.74, 0.35, 0.5, 0.5)


def island(x: Array) -> float:
    """Return a plateau, a cliff to chance and, behind it, a narrow island higher than the plateau, at ``x`` (5).

    With ``s = (x1 + x2) / 2``: a slope from chance up to a plateau that rises by 0.02 towards its edge at 0.62, where
    it falls to chance within 0.01. Behind it, at 0.74, lies the island: 0.06 wide in ``s``, and 0.5 in ``x1 - x2`` and
    ``x3`` (standard deviations of its Gaussian form). ``x4`` and ``x5`` do nothing.
    """
    s = (x[0] + x[1]) / 2
    rise = 1 / (1 + math.exp(-(s - 0.2) / 0.05))
    plateau = (ISLAND_PLATEAU - ISLAND_CHANCE - 0.02 + 0.02 * min(s / ISLAND_EDGE, 1.0)) * rise
    plateau /= 1 + math.exp(min((s - ISLAND_EDGE) / 0.002, 50.0))
    away = ((s - ISLAND_AT) / ISLAND_WIDTH) ** 2 + ((x[0] - x[1]) / ISLAND_BREADTH) ** 2
    away += ((x[2] - ISLAND_CENTRE[2]) / ISLAND_BREADTH) ** 2
    peak = (ISLAND_TOP - ISLAND_CHANCE) * math.exp(-away / 2)
    return float(ISLAND_CHANCE + max(plateau, peak))


def _of(function: benchmark_functions.TestFunction, name: str, noise: float = 0.0) -> Problem:
    return Problem(name, function.space, lambda c: -function.evaluate(c), -function.optimum, noise)


def synthetic() -> dict[str, Problem]:
    """Return the problems that need no data."""
    known = benchmark_functions.FUNCTIONS
    whole: dict[str, Parameter] = {f"x{i}": Integer(-5, 10) for i in (1, 2)}
    valley = Space(whole | {f"x{i}": Float(-5.0, 10.0) for i in (3, 4, 5)})
    at: Configuration = {"x1": 1, "x2": 1, "x3": 1.0, "x4": 1.0, "x5": 1.0}
    rosenbrock = benchmark_functions.TestFunction("rosenbrock_mixed", valley, benchmark_functions.rosenbrock, 0.0, at)
    cube = Space({f"x{i}": Float(0.0, 1.0) for i in range(1, 6)})
    top = dict(zip(cube.names, ISLAND_CENTRE, strict=True))
    height = benchmark_functions.TestFunction("island", cube, lambda x: -island(x), -ISLAND_TOP, dict(top))
    problems = [
        _of(known["himmelblau"], "himmelblau"),
        _of(known["branin"], "branin"),
        _of(known["hartmann6"], "hartmann6"),
        _of(known["ackley_shifted"], "ackley5"),
        _of(known["rosenbrock"], "rosenbrock5"),
        _of(known["levy"], "levy5"),
        _of(known["ackley_mixed"], "ackley5mix"),
        _of(rosenbrock, "rosen5mix"),
        _of(known["cliff"], "cliff"),
        _of(known["cliff"], "cliff_noisy", noise=0.01),
        _of(height, "island"),
    ]
    return {problem.name: problem for problem in problems}


def village(name: str = "village") -> Problem:
    """Return the regression on fine-tunings of the bundled model, with the noise of their seeds.

    Args:
        name: `village`, or `village_test`: what counts is the accuracy on the test task, which no optimizer sees.
    """
    from benchmarks.village import surrogate, table

    known, noise = surrogate.constants(), surrogate.noise_at
    if name == "village":
        return Problem(name, table.read_space(), lambda c: surrogate.village()(c), known["best"], noise)
    return Problem(
        name,
        table.read_space(),
        lambda c: surrogate.village("test_acc")(c),
        known["best_test"],
        noise,
        shown=lambda c: surrogate.village()(c),
    )


# --- the surrogate of real evaluations ---------------------------------------------------------------------------


LORA_SPACE = Space(
    {
        "rank": Integer(2, 64),
        "alpha": Integer(1, 64),
        "dropout": Float(0.0, 0.5),
        "learning_rate": Float(1e-10, 1e-1, log=True),
        "weight_decay": Float(1e-5, 1e-1, log=True),
    }
)
PERTURBATIONS, SPREAD, NOISE = 32, 0.02, 0.005


def load(folder: Path) -> tuple[Array, Array]:
    """Return natural units (``n x 5``: rank, alpha, dropout, log10 rate, log10 decay) and accuracies (``n``)."""
    x, y = [], []
    for name in DATA_FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            score = entry.get("score") or {}
            if entry.get("info", {}).get("score_state") == "approximated" or "hellaswag" not in score:
                continue
            rank, alpha, dropout, rate, decay = entry["solution"]["base_value"]
            x.append([int(rank), int(alpha), dropout, rate, decay])
            y.append(score["hellaswag"]["acc,none"])
    return np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)


def columns(x: Array) -> Array:
    """Return the features (``n x 9``) of natural units (``n x 5``): with alpha/r, alpha/sqrt r, both times rate."""
    rank, alpha, dropout, rate, decay = x.T
    ratio, root = alpha / rank, alpha / np.sqrt(rank)
    effective = [rate + np.log10(ratio), rate + np.log10(root)]
    return np.stack([np.log2(rank), np.log2(alpha), dropout, rate, decay, np.log2(ratio), root, *effective], axis=1)


def natural(configuration: Mapping[str, Value]) -> Array:
    """Return the natural units (``5``) of a configuration of `LORA_SPACE`."""
    rank, alpha, dropout, rate, decay = (float(configuration[name]) for name in LORA_SPACE.names)
    return np.array([rank, alpha, dropout, math.log10(rate), math.log10(decay)])


LOW = np.array([2.0, 1.0, 0.0, -10.0, -5.0])
HIGH = np.array([64.0, 64.0, 0.5, -1.0, -1.0])


def _blur() -> Array:
    """Return the fixed perturbations (``32 x 5``, natural units) that `lora1Bs` is averaged over."""
    rng = np.random.default_rng(derive_seed("lora1Bs"))
    return np.asarray(rng.standard_normal((PERTURBATIONS, 5)) * SPREAD * (HIGH - LOW), dtype=np.float64)


@functools.cache
def _trees(folder: Path) -> Trees:
    x, y = load(folder)
    return Trees(columns(x), y)


def surrogate_problems(folder: Path, store: Path | None = None) -> dict[str, Problem]:
    """Return the three problems made from the evaluations in `folder`; their best values are kept in `store`."""
    blur = _blur()

    def raw(points: Array) -> Array:
        return _trees(folder).predict(columns(points))

    def smooth(points: Array) -> Array:
        near = np.clip(points[:, None, :] + blur, LOW, HIGH).reshape(-1, 5)
        return np.asarray(raw(near).reshape(len(points), -1).mean(axis=1), dtype=np.float64)

    store = store or Path(__file__).parent / "results" / "best_known.json"
    tops = _tops(folder, {"lora1B": raw, "lora1Bs": smooth}, store)

    def made(name: str, predict: Callable[[Array], Array], noise: float) -> Problem:
        top = tops["lora1Bs" if name == "lora1Bs" else "lora1B"]
        return Problem(name, LORA_SPACE, lambda c: float(predict(natural(c)[None])[0]), top, noise)

    return {
        "lora1B": made("lora1B", raw, 0.0),
        "lora1Bs": made("lora1Bs", smooth, 0.0),
        "lora1B_noisy": made("lora1B_noisy", raw, NOISE),
    }


def _tops(folder: Path, predictions: Mapping[str, Callable[[Array], Array]], store: Path) -> dict[str, float]:
    """Return the highest values found: 4000 uniform points, then 60 rounds of 100 points around the ten best."""
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in DATA_FILES)).hexdigest()[:16]
    kept: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    if kept.get("data") == digest:
        return {name: float(kept[name]) for name in predictions}
    tops: dict[str, Any] = {"data": digest}
    for name, predict in predictions.items():
        rng = np.random.default_rng(0)
        parts = [np.stack([natural(LORA_SPACE.decode(u)) for u in rng.random((200, 5))]) for _ in range(20)]
        values = np.concatenate([predict(part) for part in parts])
        points = np.concatenate(parts)
        for round_ in range(60):
            best = points[np.argsort(-values)[:10]]
            step = rng.standard_normal((100, 5)) * (HIGH - LOW) * (0.1 * 0.93**round_)
            near = np.clip(best[rng.integers(10, size=100)] + step, LOW, HIGH)
            near[:, :2] = np.round(near[:, :2])
            points, values = np.concatenate([best, near]), np.concatenate([predict(best), predict(near)])
        tops[name] = float(values.max())
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(tops) + "\n", encoding="utf-8")
    return {name: tops[name] for name in predictions}


def cross_validation(folder: Path) -> dict[str, float]:
    """Return R2 and Spearman's correlation of the surrogate: 10 folds, equal configurations in one fold."""
    from scipy.stats import spearmanr
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.model_selection import GroupKFold

    x, y = load(folder)
    groups = np.unique(np.round(x, 6), axis=0, return_inverse=True)[1].ravel()
    held_out = np.empty(len(y))
    for train, test in GroupKFold(10).split(x, y, groups):
        forest = ExtraTreesRegressor(n_estimators=TREES, random_state=0).fit(columns(x[train]), y[train])
        held_out[test] = forest.predict(columns(x[test]))
    residual = float(((y - held_out) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    error = float(np.sqrt(((y - held_out) ** 2).mean()))
    return {"evaluations": len(y), "r2": 1 - residual, "spearman": float(spearmanr(y, held_out)[0]), "rmse": error}
