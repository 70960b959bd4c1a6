"""The comparison of campaigns of several objectives, on fronts whose volumes can be worked out by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.compared import GOALS, several

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import hypervolume
from hpo_cluster.report.comparison import compare_campaigns
from hpo_cluster.report.comparison.figures import as_files, draw, titles
from hpo_cluster.report.comparison.fronts import surfaces
from hpo_cluster.report.comparison.several import Box
from hpo_cluster.report.comparison.table import cells, explanation

#: With the references quality 0 and cost 10.
GIVEN = [{**GOALS[0], "reference": 0.0}, {**GOALS[1], "reference": 10.0}]


def test_volumes_are_shares_of_one_box(tmp_path: Path) -> None:
    """The best values are quality 4 (a) and cost 2 (b), so the box is 4 x 8."""
    a = several(tmp_path / "a", [(1.0, 8.0), None, (4.0, 6.0), (2.0, 9.0)], goals=GIVEN, optimizer="a")
    b = several(tmp_path / "b", [(1.0, 2.0), (2.0, 5.0), (3.0, 11.0)], goals=GIVEN, optimizer="b")
    found = compare_campaigns([a, b])
    one, other = found.runs
    assert one.curve.best.tolist() == pytest.approx([2 / 32, 2 / 32, 16 / 32, 16 / 32])
    assert other.curve.best.tolist() == pytest.approx([8 / 32, 13 / 32, 13 / 32])  # cost 11 is worse than the reference
    assert [run.score("front") for run in found.runs] == [1, 3]
    assert found.box is not None
    assert (found.box.reference, found.box.best, found.box.volume) == ((0.0, -10.0), (4.0, -2.0), 32.0)
    assert (
        "(quality 0, cost 10) to the best value of each metric in any campaign (quality 4, cost 2)"
        in (explanation(found)[0])
    )
    assert explanation(found)[1] == "The reference of quality and cost is the one that all campaigns were given."
    (pair,) = found.pairs
    assert (pair.better, pair.metric.shown) == ("a", "hypervolume")
    assert pair.difference == pytest.approx(3 / 32)
    head, rows = cells(found)
    assert [each.title for each in head[:5]] == ["group", "seeds", "evaluations", "hypervolume", "points of the front"]
    assert rows[0][3:5] == ["0.5", "1"]


def test_the_order_of_the_campaigns_and_of_their_metrics_changes_nothing(tmp_path: Path) -> None:
    points = {"a": [(1.0, 8.0), (4.0, 6.0)], "b": [(1.0, 2.0), (2.0, 5.0)], "c": [(3.0, 3.0)]}
    folders = [several(tmp_path / name, points[name], optimizer=name) for name in "ab"]
    turned = [(cost, quality) for quality, cost in points["c"]]
    folders.append(several(tmp_path / "c", turned, goals=GOALS[::-1], optimizer="c"))
    scores = []
    for order in itertools.permutations(folders):
        scores.append({run.campaign.name: run.score() for run in compare_campaigns(list(order)).runs})
        assert scores[-1] == pytest.approx(scores[0])


def test_without_a_reference_the_front_of_every_campaign_lies_in_the_box(tmp_path: Path) -> None:
    """The good campaign dominates everything of the weak ones, which can be told apart even so."""
    good = several(tmp_path / "good", [(9.0, 1.0), (10.0, 2.0)], optimizer="good")
    weak = several(tmp_path / "weak", [(1.0, 20.0), (2.0, 31.0), (0.0, 30.0)], optimizer="weak")
    found = compare_campaigns([good, weak])
    assert found.box is not None
    # the worst of the front of `weak` is quality 1 and cost 31, and its values range over 2 and 11
    assert found.box.reference == pytest.approx((1 - 0.2, -(31 + 1.1)))
    scores = [run.score() for run in found.runs]
    assert scores[0] > scores[1] > 0
    assert "tenth of the range" in explanation(found)[1]
    assert not found.notes


def test_trials_that_violate_a_constraint_do_not_push_the_others_out_of_the_box(tmp_path: Path) -> None:
    bound = [{"name": "memory", "at_most": 1.0}]
    points = [(9.0, 1.0, 5.0), (10.0, 2.0, 5.0), (3.0, 7.0, 0.5), (4.0, 9.0, 0.5)]
    folders = [several(tmp_path / name, points, constraints=bound, optimizer=name) for name in "ab"]
    found = compare_campaigns(folders)
    assert found.box is not None
    assert found.box.best == (4.0, -7.0)
    assert all(run.score() > 0 for run in found.runs)


def test_references_that_differ_are_not_used_and_make_groups(tmp_path: Path) -> None:
    other = [GIVEN[0], {**GIVEN[1], "reference": 50.0}]
    folders = [
        several(tmp_path / "a", [(1.0, 8.0), (2.0, 9.0)], goals=GIVEN),
        several(tmp_path / "b", [(1.0, 8.0), (2.0, 9.0)], goals=other),
    ]
    found = compare_campaigns(folders)
    assert [group.name for group in found.groups] == ["random reference.cost=10", "random reference.cost=50"]
    assert found.box is not None
    assert found.box.source == ("given", "derived")
    assert found.box.reference == pytest.approx((0.0, -9.1))
    chosen = compare_campaigns(folders, reference={"cost": 12})
    assert chosen.box is not None
    assert chosen.box.source == ("given", "chosen")
    assert chosen.box.reference == (0.0, -12.0)
    with pytest.raises(ConfigError, match=r"reference: costs is not one of the objectives; did you mean cost\?"):
        compare_campaigns(folders, reference={"costs": 12})


def test_the_value_to_reach_is_a_share_of_the_best_hypervolume(tmp_path: Path) -> None:
    folders = [
        several(tmp_path / "a", [(1.0, 8.0), (4.0, 6.0)], goals=GIVEN, optimizer="a"),
        several(tmp_path / "b", [(4.0, 8.0), (4.0, 7.0)], goals=GIVEN, optimizer="b"),
    ]
    found = compare_campaigns(folders, 0.75)
    assert found.reach_in_words == "0.75 (75 % of the best)"
    assert [found.to_reach(group, "evaluations") for group in found.groups] == [2, 2]
    half = compare_campaigns(folders, 0.5)
    assert [half.to_reach(group, "evaluations") for group in half.groups] == [2, 1]
    assert compare_campaigns(folders).reach == pytest.approx(0.75)  # what both have reached
    for reach in (0.0, 1.5):
        with pytest.raises(ConfigError, match="a share of the best hypervolume"):
            compare_campaigns(folders, reach)


def test_a_group_that_dominates_nothing_has_the_hypervolume_0(tmp_path: Path) -> None:
    bound = [{"name": "memory", "at_most": 1.0}]
    plain: dict[str, Any] = {"goals": GIVEN, "constraints": bound}
    folders = [
        several(tmp_path / "a", [(1.0, 8.0, 0.5), (4.0, 6.0, 2.0)], optimizer="a", **plain),
        several(tmp_path / "b", [(1.0, 8.0, 3.0)], optimizer="b", **plain),
        several(tmp_path / "c", [(1.0, 12.0, 0.5)], optimizer="c", **plain),
        several(tmp_path / "d", [], optimizer="d", budget=2, **plain),
    ]
    found = compare_campaigns(folders)
    assert [run.score() for run in found.runs[:3]] == [1.0, 0.0, 0.0]
    assert math.isnan(found.runs[3].score())
    assert found.reach == 1.0  # of those that dominate something
    assert [note.removeprefix(f"{tmp_path}/") for note in found.notes] == [
        "d: not finished, 0 of 2 evaluations",
        "b: no trial has values that satisfy the constraints: its hypervolume is 0",
        "c: no trial is better than the reference point in every metric: its hypervolume is 0",
        "d: no evaluation has ended",
    ]
    nothing = compare_campaigns([folders[1], folders[2]])
    assert (nothing.box, nothing.reach) == (None, None)
    assert explanation(nothing)[0].startswith("Every hypervolume is 0")
    assert draw(nothing, "fronts") is None
    assert compare_campaigns([folders[3], several(tmp_path / "e", [], optimizer="e", **plain)]).box is None


def test_goals_that_differ_are_named_one_by_one(tmp_path: Path) -> None:
    bound = [{"name": "memory", "at_most": 1.0}]
    maximized = [GOALS[0], {**GOALS[1], "direction": "maximize"}]
    more = [*GOALS, {"name": "energy", "direction": "minimize"}]
    folders = [
        several(tmp_path / "a", [(1.0, 8.0)]),
        several(tmp_path / "b", [(1.0, 8.0)], goals=maximized),
        several(tmp_path / "c", [(1.0, 8.0, 2.0)], goals=more),
        several(tmp_path / "d", [(1.0, 8.0, 2.0)], constraints=bound),
        several(tmp_path / "e", [(8.0, 1.0)], goals=GOALS[::-1]),
    ]
    with pytest.raises(ConfigError) as caught:
        compare_campaigns(folders)
    faults = [fault.replace(f"{tmp_path}/", "") for fault in caught.value.faults]
    assert faults == [
        "objective cost differs, so that values cannot be compared: minimize in a, c, d, e; maximize in b",
        "objective energy differs, so that values cannot be compared: (absent) in a, b, d, e; minimize in c",
        "constraint on memory differs, so that values cannot be compared: (absent) in a, b, c, e; at most 1 in d",
    ]


def test_the_diagram_of_ranks_goes_by_the_hypervolume(tmp_path: Path) -> None:
    for seed in range(5):
        for name, quality in (("a", 3.0), ("b", 2.0), ("c", 1.0)):
            # the first objective alone would give the opposite order
            points = [(quality + 0.1 * seed, 2.0), (9.0 - quality, 9.9)]
            several(tmp_path / f"{name}{seed}", points, goals=GIVEN, optimizer=name, seed=seed)
    found = compare_campaigns(sorted(tmp_path.iterdir()))
    assert found.ranking is not None
    assert found.ranking.names == ("a", "b", "c")
    assert draw(found, "critical_difference") is not None


def test_a_surface_is_what_more_than_half_of_the_campaigns_dominate() -> None:
    fronts = [[(1.0, 3.0), (2.0, 1.0)], [(1.0, 2.0)], [(3.0, 1.0)], []]
    thresholds, low, middle, high = surfaces(fronts, (0.0, 0.0))
    assert thresholds.tolist() == [0, 1, 2, 3]
    assert low.tolist() == [0, 0, 0, 0]  # of all four, one of which has nothing
    assert middle.tolist() == [1, 1, 0, 0]  # of three
    assert high.tolist() == [3, 3, 1, 1]  # of one
    # the area below the surface of one campaign is its hypervolume
    rng = np.random.default_rng(1)
    front = [tuple(point) for point in rng.uniform(0.0, 1.0, (20, 2)).tolist()]
    thresholds, _, middle, _ = surfaces([front], (0.0, 0.0))
    assert float(np.sum(np.diff(thresholds) * middle[1:])) == pytest.approx(hypervolume(front, (0.0, 0.0)))


@pytest.mark.parametrize("count", [2, 3])
def test_the_figures_of_two_and_of_three_objectives(tmp_path: Path, count: int) -> None:
    goals = [{"name": f"f{i}", "direction": "minimize"} for i in range(count)]
    rng = np.random.default_rng(0)
    for seed in range(2):
        for name in ("a", "b"):
            points = [tuple(point) for point in rng.uniform(0.0, 1.0, (6, count)).tolist()]
            several(tmp_path / f"{name}{seed}", points, goals=goals, optimizer=name, seed=seed)
    found = compare_campaigns(sorted(tmp_path.iterdir()))
    assert isinstance(found.box, Box)
    by = {f"hypervolume_by_{cost}" for cost in ("evaluations", "gpu_hours", "hours")}
    assert set(titles(found)) == {*by, "fronts", "critical_difference"}
    for name in ("hypervolume_by_evaluations", "hypervolume_by_gpu_hours", "fronts"):
        figure = draw(found, name)
        assert figure is not None
        assert as_files(figure)["png"].startswith(b"\x89PNG")
    fronts = draw(found, "fronts")
    assert fronts is not None
    assert len(fronts.axes) == {2: 1, 3: 3}[count]
    labels = set(fronts.axes[0].get_legend_handles_labels()[1])
    assert labels >= {"a (2 seeds)", "b (2 seeds)", "reference point"}
    lines = {line.get_label(): line for line in fronts.axes[0].get_lines()}
    if count == 2:  # a line ends where it meets the edges of the box
        x, y = lines["a (2 seeds)"].get_data()
        assert (max(x), max(y)) == pytest.approx([-edge for edge in found.box.reference])


def test_imported_evaluations_are_named(tmp_path: Path) -> None:
    options: dict[str, Any] = {"goals": GIVEN}
    folders = [
        several(tmp_path / "a", [(1.0, 8.0)], optimizer="a", imported=[1.0], **options),
        several(tmp_path / "b", [(1.0, 8.0)], optimizer="b", imported=[1.0, 2.0, 3.0], **options),
    ]
    assert compare_campaigns(folders).notes == [
        f"{tmp_path}/a: its front is without the 1 evaluation that it imported",
        f"{tmp_path}/b: its front is without the 3 evaluations that it imported",
    ]
