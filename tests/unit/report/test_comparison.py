"""The parts of a comparison, on campaigns whose outcome can be worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from scipy import stats
from support.compared import LORA, campaign

from hpo_cluster.cli.main import main
from hpo_cluster.errors import ConfigError
from hpo_cluster.record import campaign_state
from hpo_cluster.record.clock import moment
from hpo_cluster.report.comparison import compare_campaigns, runs
from hpo_cluster.report.comparison.figures import as_files, band, draw_best
from hpo_cluster.report.comparison.runs import read_run
from hpo_cluster.report.comparison.table import cost_text
from hpo_cluster.report.comparison.verdicts import plus_minus, seeds_needed
from hpo_cluster.space import Float, Space


def test_the_curve_holds_the_best_value_and_what_was_spent(tmp_path: Path) -> None:
    curve = read_run(campaign(tmp_path / "a", [None, 0.2, 0.1, 0.4], gpus=3)).curve
    assert curve.best.tolist() == [-math.inf, 0.2, 0.2, 0.4]
    assert curve.costs["evaluations"].tolist() == [1, 2, 3, 4]
    assert curve.costs["equivalents"].tolist() == [1, 2, 3, 4]
    assert curve.costs["gpu_hours"] * 20 == pytest.approx([1, 2, 3, 4])
    assert curve.costs["hours"] * 60 == pytest.approx([1, 2, 3, 4])
    assert curve.at("evaluations", np.array([0.5, 1, 2, 3.9, 4, 9])).tolist() == [
        -math.inf,
        -math.inf,
        0.2,
        0.2,
        0.4,
        0.4,
    ]
    assert curve.reaches("evaluations", 0.3) == 4
    assert curve.reaches("evaluations", 0.5) == math.inf


def test_gpu_hours_do_not_hold_the_time_in_which_ended_jobs_waited_for_the_driver(tmp_path: Path) -> None:
    journal = campaign(tmp_path / "a", [0.1, 0.2]) / "events.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    ends = [{**event, "ended_at": event["at"]} for event in events if event["event"] == "ended"]
    late = [{**end, "at": end["at"].replace("T00", "T09")} for end in ends]  # both were noted in the morning
    ordered = [*(event for event in events if event["event"] != "ended"), *late]
    journal.write_text("".join(json.dumps({**event, "seq": seq}) + "\n" for seq, event in enumerate(ordered)))
    assert read_run(tmp_path / "a").curve.costs["gpu_hours"] * 60 == pytest.approx([2, 2])


def test_the_times_read_for_a_curve_grow_with_the_attempts_and_not_with_those_that_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for evaluations in (20, 40):
        journal = campaign(tmp_path / f"of-{evaluations}", [0.1] * evaluations) / "events.jsonl"
        events = [json.loads(line) for line in journal.read_text().splitlines()]
        ordered = sorted(events, key=lambda event: event["event"] in ("ended", "stopped"))  # all run at once
        journal.write_text("".join(json.dumps({**event, "seq": seq}) + "\n" for seq, event in enumerate(ordered)))
        read: list[str] = []
        for module in (runs, campaign_state):
            monkeypatch.setattr(module, "moment", lambda at, read=read: read.append(at) or moment(at))
        assert read_run(journal.parent).curve.costs["gpu_hours"][-1] * 60 == pytest.approx(evaluations)
        counts.append(len(read))
    assert 0 < counts[1] <= 2 * counts[0]


def test_what_is_minimised_is_best_where_it_is_low(tmp_path: Path) -> None:
    for seed in range(2):
        campaign(tmp_path / f"a{seed}", [3.0, 1.0], optimizer="a", seed=seed, direction="minimize")
        campaign(tmp_path / f"b{seed}", [3.0, 2.0 + seed], optimizer="b", seed=seed, direction="minimize")
    found = compare_campaigns(sorted(tmp_path.iterdir()))
    assert found.reach == 3.0  # what all of them have reached; b with seed 1 never got lower
    assert [found.to_reach(each, "evaluations") for each in found.groups] == [1, 1]
    (pair,) = found.pairs
    assert (pair.better, pair.difference) == ("a", 1.5)
    assert compare_campaigns(sorted(tmp_path.iterdir()), 1.5).to_reach(found.groups[1], "evaluations") == math.inf


def test_the_seed_never_makes_a_group_and_all_else_does(tmp_path: Path) -> None:
    wide = Space({"x": Float(0.0, 2.0)})
    many: list[dict[str, Any]] = [
        {"optimizer": "lhs", "seed": 0},
        {"optimizer": "lhs", "seed": 1},
        {"optimizer": {"name": "bo", "initial": 5}, "seed": 0},
        {"optimizer": {"name": "bo", "initial": 10}, "seed": 0},
        {"optimizer": {"name": "soo"}, "seed": 0},
        {"optimizer": {"name": "soo"}, "seed": 0, "space": wide},
    ]
    folders = [campaign(tmp_path / f"c{i}", [0.1], **options) for i, options in enumerate(many)]
    found = compare_campaigns(folders)
    assert [(each.name, len(each.runs)) for each in found.groups] == [
        ("lhs", 2),
        ("bo initial=5", 1),
        ("bo initial=10", 1),
        ("soo x.high=1", 1),
        ("soo x.high=2", 1),
    ]
    assert any(note.startswith("space.x.high differs: lhs 1, ") for note in found.notes)


def test_campaigns_that_are_the_same_are_told_apart_by_their_workers_or_refused(tmp_path: Path) -> None:
    folders = [campaign(tmp_path / str(workers), [0.1], workers=workers) for workers in (1, 4)]
    assert [each.name for each in compare_campaigns(folders).groups] == ["random workers=1", "random workers=4"]
    folders.append(campaign(tmp_path / "again", [0.3], workers=4))
    with pytest.raises(ConfigError, match=r"4, .*again: have the same optimizer, settings, space and seed 0"):
        compare_campaigns(folders)


def test_all_that_cannot_be_compared_is_named_at_once(tmp_path: Path) -> None:
    branin = {"kind": "synthetic", "function": "branin"}
    folders = [
        campaign(tmp_path / "a", [0.1], objective=branin),
        campaign(tmp_path / "b", [0.1], objective={**branin, "function": "ackley"}),
        campaign(tmp_path / "c", [0.1], objective=branin, direction="minimize"),
        campaign(tmp_path / "d", [0.1], objective=branin, space=Space({"other": Float(0.0, 1.0)})),
        campaign(tmp_path / "e", [0.1], objective={**branin, "metrics": [
            {"name": "u", "direction": "maximize"}, {"name": "v", "direction": "maximize"}]}),
        campaign(tmp_path / "f", [0.1], objective=branin),
    ]  # fmt: skip
    (tmp_path / "f" / "events.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError) as caught:
        compare_campaigns(folders)
    faults = "\n".join(caught.value.faults)
    assert "f: cannot be read" in faults
    assert "objective u differs, so that values cannot be compared: (absent) in " in faults
    assert "objective value differs" in faults
    assert "minimize in" in faults
    assert "objective.function differs" in faults
    assert "ackley in" in faults
    assert "have no parameter in common" in faults


def test_long_values_are_shown_from_where_they_differ(tmp_path: Path) -> None:
    command = "a long way to a program --lr={x} --with=what"
    made = [
        campaign(tmp_path / end, [0.1], objective={"kind": "command", "command": command + more, "metric": "u"})
        for end, more in (("a", ""), ("b", " --sleep=6"))
    ]
    with pytest.raises(ConfigError) as caught:
        compare_campaigns(made)
    (fault,) = caught.value.faults
    assert f"… --with=what in {made[0]}; … --with=what --sleep=6 in {made[1]}" in fault


def test_another_folder_with_the_same_files_is_the_same_objective(tmp_path: Path) -> None:
    moved = {**LORA, "model": {"name": "m", "checkpoint_dir": "/elsewhere/bundle:m"}}
    other = {**LORA, "model": {"name": "m", "checkpoint_dir": "/elsewhere/n"}}
    folders = [
        campaign(tmp_path / "a", [0.1], objective=LORA, optimizer="a"),
        campaign(tmp_path / "b", [0.1], objective=moved, optimizer="b"),
    ]
    assert len(compare_campaigns(folders).groups) == 2
    with pytest.raises(ConfigError, match=r"objective\.model\.checkpoint_dir differs.*: bundle:m in .*; n in"):
        compare_campaigns([*folders, campaign(tmp_path / "c", [0.1], objective=other, optimizer="c")])


@pytest.mark.parametrize("seeds", [1, 2, 5, 8])
def test_a_difference_is_called_one_only_with_enough_seeds(tmp_path: Path, seeds: int) -> None:
    for seed in range(seeds):
        campaign(
            tmp_path / f"good{seed}", [0.5 + 0.01 * seed], optimizer="good", seed=seed, objective=LORA, tests=[0.4]
        )
        campaign(
            tmp_path / f"weak{seed}", [0.3 - 0.01 * seed], optimizer="weak", seed=seed, objective=LORA, tests=[0.4]
        )
    found = compare_campaigns(sorted(tmp_path.iterdir()))
    validation, test = found.pairs
    assert (validation.better, validation.seeds) == ("good", seeds)
    assert validation.difference == pytest.approx(np.mean([0.2 + 0.02 * seed for seed in range(seeds)]))
    assert validation.verdict == {1: "unknown", 2: "hint", 5: "hint", 8: "differs"}[seeds]
    assert (validation.p is not None) == (seeds >= 6)
    if seeds == 8:
        assert validation.p == pytest.approx(2 / 2**8)
        assert "good is better than weak by 0.270 ± 0.017 (p = 0.00781, 8 seeds)." in found.verdicts[0].details
    else:
        assert any("at least 6 seeds in each group are needed" in line for line in found.verdicts[0].details)
    assert (test.difference, test.verdict) == (0, "noise" if seeds > 1 else "unknown")
    if seeds > 1:
        assert test.words == f"good and weak have equal values with each of {seeds} seeds."
        assert (
            found.verdicts[1].leader
            == f"test test/acc: good and weak have the best mean, 0.4 ± 0 (mean over {seeds} seeds)."
        )


def test_a_difference_within_the_noise_is_called_so(tmp_path: Path) -> None:
    for seed, shift in enumerate([0.1, -0.09, 0.05, -0.04, 0.08, -0.07, 0.01]):
        campaign(tmp_path / f"a{seed}", [0.5], optimizer="a", seed=seed)
        campaign(tmp_path / f"b{seed}", [0.5 - shift], optimizer="b", seed=seed)
    (pair,) = compare_campaigns(sorted(tmp_path.iterdir())).pairs
    assert pair.p == pytest.approx(stats.wilcoxon([0.1, -0.09, 0.05, -0.04, 0.08, -0.07, 0.01]).pvalue)
    assert pair.words.startswith("a and b: the difference is within the noise (0.006 ± 0.028 for a, p = ")
    few = compare_campaigns([tmp_path / name for name in ("a0", "b0", "a1", "b1", "a2", "b2")]).pairs[0]
    assert (
        few.words == "a and b: the difference is within the noise (0.020 ± 0.057 for a, 3 seeds, too few for a test)."
    )


def test_p_values_are_corrected_for_the_number_of_comparisons(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(mean, 0.1, 8).tolist() for name, mean in (("a", 1.0), ("b", 0.2))}
    scores["c"] = [value + 0.001 * (-1) ** i * (i + 1) for i, value in enumerate(scores["b"])]
    for name, values in scores.items():
        for seed, value in enumerate(values):
            campaign(tmp_path / f"{name}{seed}", [value], optimizer=name, seed=seed)
    found = compare_campaigns(sorted(tmp_path.iterdir()))
    raw = [stats.wilcoxon(np.subtract(scores[p], scores[q])).pvalue for p, q in (("a", "b"), ("a", "c"), ("b", "c"))]
    assert raw[0] == raw[1] == 2 / 2**8
    assert [pair.p for pair in found.pairs] == pytest.approx([3 * raw[0], 3 * raw[0], raw[2]])
    assert found.ranking is not None
    assert found.ranking.names[0] == "a"
    assert any({"b", "c"} == set(clique) for clique in found.ranking.cliques)


def test_pairs_are_campaigns_with_the_same_seed(tmp_path: Path) -> None:
    for seed in range(3):
        campaign(tmp_path / f"a{seed}", [0.1 * seed], optimizer="a", seed=seed)
        campaign(tmp_path / f"b{seed}", [0.1 * seed - 0.05], optimizer="b", seed=seed + 1)
    found = compare_campaigns(sorted(tmp_path.iterdir()))
    (pair,) = found.pairs
    assert (pair.seeds, pair.better) == (2, "a")
    assert pair.difference == pytest.approx(0.15)
    assert any("2 in common" in note for note in found.notes)


def test_the_scores_are_those_of_the_recommended_trial_and_not_the_lucky_one(tmp_path: Path) -> None:
    """Values grow with x, and have so much noise that the best one is not among the largest x."""
    rng = np.random.default_rng(3)
    values = [0.3 * ((0.137 * (i + 1)) % 1.0) + float(rng.normal(0, 0.15)) for i in range(40)]
    lucky = max(range(40), key=values.__getitem__)
    run = read_run(campaign(tmp_path / "a", values, objective=LORA, tests=[0.1 * value for value in values]))
    assert run.recommended is not None
    assert run.recommended != lucky
    assert run.score() == values[run.recommended]
    assert run.score("test/acc") == pytest.approx(0.1 * values[run.recommended])
    assert run.curve.best[-1] == values[lucky]


def test_campaigns_without_values_or_not_finished_take_part_as_far_as_they_go(tmp_path: Path) -> None:
    folders = [
        campaign(tmp_path / "a0", [0.5, 0.6], optimizer="a", seed=0),
        campaign(tmp_path / "a1", [0.4], optimizer="a", seed=1, budget=2),
        campaign(tmp_path / "b0", [None, None], optimizer="b", seed=0),
        campaign(tmp_path / "b1", [], optimizer="b", seed=1, budget=2),
    ]
    found = compare_campaigns(folders)
    assert [note.removeprefix(f"{tmp_path}/") for note in found.notes] == [
        "a1: not finished, 1 of 2 evaluations",
        "b1: not finished, 0 of 2 evaluations",
        "b0: no trial has a value that counts",
        "b1: no trial has a value that counts",
        "b0: 2 evaluations ended without a value",
    ]
    assert found.reach == 0.4
    assert [found.reached(each) for each in found.groups] == [2, 0]
    assert "no seed in common" in found.pairs[0].words


def test_a_recommended_evaluation_of_an_earlier_campaign_is_named(tmp_path: Path) -> None:
    folders = [
        campaign(tmp_path / "a", [0.1, 0.2, 0.3, 0.1, 0.2], optimizer="a", imported=[5.0, 0.1]),
        campaign(tmp_path / "b", [0.1, 0.2, 0.3, 0.1, 0.2], optimizer="b"),
    ]
    found = compare_campaigns(folders)
    assert found.runs[0].score() == 5.0
    assert found.runs[0].curve.best.tolist() == found.runs[1].curve.best.tolist()
    assert found.notes == [f"{tmp_path}/a: recommends an evaluation that it imported"]


def test_seeds_that_make_no_difference_are_no_repetitions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seed in range(10):
        campaign(tmp_path / f"a{seed}", [0.5, 0.6, 0.8], optimizer="a", seed=seed, drawn=0)
        campaign(tmp_path / f"b{seed}", [0.5, 0.7, 0.6], optimizer="b", seed=seed, drawn=1)
        noisy = (np.array([0.5, 0.55, 0.6]) + 0.01 * rng.standard_normal(3)).tolist()
        campaign(tmp_path / f"c{seed}", noisy, optimizer="c", seed=seed, drawn=2)
        campaign(tmp_path / f"d{seed}", [0.2, 0.3, 0.1], optimizer="d", seed=seed)
    found = compare_campaigns(sorted(tmp_path.iterdir()))
    same = "its 10 campaigns are one, with the same evaluations and values"
    noise = (
        "all evaluations are of the same configurations with every seed, so that its spread over seeds is that of the "
        "results' noise and of what follows from it"
    )
    assert found.notes == [f"a: {same}", f"b: {same}", f"c: {noise}"]
    verdicts = {(pair.better, pair.worse): (pair.verdict, pair.tests) for pair in found.pairs}
    assert verdicts["a", "b"] == ("unknown", 5)  # ten copies of one pair
    assert {verdict for pair, verdict in verdicts.items() if pair != ("a", "b")} == {("differs", 5)}
    words = next(pair.words for pair in found.pairs if (pair.better, pair.worse) == ("a", "b"))
    assert words.startswith("a is ahead of b by 0.1 with every seed; but both repeat the same evaluations")


def test_evaluations_that_were_made_elsewhere_are_evaluations(tmp_path: Path) -> None:
    lines = (
        "x,value,started_at,ended_at\n"
        "0.5,0.2,2026-01-01T00:00:00,2026-01-01T01:00:00\n"
        "0.6,0.4,2026-01-01T01:00:00,2026-01-01T02:00:00\n"
    )
    (tmp_path / "theirs.csv").write_text(lines)
    space, place = "space={x: {low: 0.0, high: 1.0}}", f"campaigns_dir={tmp_path}"
    assert main(["import", str(tmp_path / "theirs.csv"), "campaign=c", space, place]) == 0
    curve = read_run(tmp_path / "c").curve
    assert curve.best.tolist() == [0.2, 0.4]
    assert {name: costs.tolist() for name, costs in curve.costs.items()} == {
        "evaluations": [1, 2],
        "equivalents": [1, 2],
        "gpu_hours": [0, 0],
        "hours": [1, 2],
    }


def test_groups_of_one_seed_are_not_compared_pair_by_pair(tmp_path: Path) -> None:
    folders = [campaign(tmp_path / name, [value], optimizer=name) for name, value in (("a", 0.1), ("b", 0.2), ("c", 0))]
    (verdict,) = compare_campaigns(folders).verdicts
    assert "b has the best mean, 0.2 (one seed)" in verdict.leader
    assert verdict.details[0].startswith("Each two groups have one seed in common: nothing can be said")
    assert len(verdict.details) == 2


def test_a_scale_over_decades_has_plain_numbers(tmp_path: Path) -> None:
    for name in "ab":
        campaign(tmp_path / name, [500.0, 0.02], optimizer=name, direction="minimize")
    with rc_context({"text.parse_math": False}):  # as the files are written
        figure = draw_best(compare_campaigns([tmp_path / "a", tmp_path / "b"]), "evaluations")
        assert figure is not None
        as_files(figure)
        axes = figure.axes[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_yscale() == "log"
    assert {"0.1", "1", "10", "100"} <= set(labels)


def test_first_values_do_not_hide_the_others(tmp_path: Path) -> None:
    for name, first in (("a", 0.1), ("b", 0.4), ("c", 0.43)):
        campaign(tmp_path / name, [first, *np.linspace(0.45, 0.5, 19).tolist()], optimizer=name)
    far = draw_best(compare_campaigns([tmp_path / "a", tmp_path / "b"]), "evaluations")
    near = draw_best(compare_campaigns([tmp_path / "b", tmp_path / "c"]), "evaluations")
    assert far is not None
    assert near is not None
    low, high = far.axes[0].get_ylim()
    assert 0.45 < low < 0.4556  # the best value after a fifth of the evaluations
    assert high > 0.5
    assert near.axes[0].get_ylim()[0] < 0.4


@pytest.mark.parametrize("count", [1, 6])
def test_marks_stand_at_evaluations_up_to_the_last(tmp_path: Path, count: int) -> None:
    for name in "ab":
        campaign(tmp_path / name, [0.1 * i for i in range(count)], optimizer=name)
    figure = draw_best(compare_campaigns([tmp_path / "a", tmp_path / "b"]), "evaluations")
    assert figure is not None
    lines = [line for line in figure.axes[0].lines if line.get_markevery() is not None]
    assert len(lines) == 2
    for line in lines:
        marked = np.asarray(line.get_xdata())[line.get_markevery()].tolist()
        assert all(at == int(at) for at in marked)
        assert marked[-1] == count
        assert line.get_xdata()[-1] == count + 0.5  # what the last one has brought is seen


@pytest.mark.parametrize("second", ["b", {"name": "a", "acquisition": "a_long_name", "outcome": "another"}])
def test_names_of_any_length_leave_room_for_the_lines(tmp_path: Path, second: Any) -> None:
    campaign(tmp_path / "a", [0.1, 0.2], optimizer={"name": "a", "acquisition": "x", "outcome": "y"})
    campaign(tmp_path / "b", [0.1, 0.3], optimizer=second)
    figure = draw_best(compare_campaigns([tmp_path / "a", tmp_path / "b"]), "evaluations")
    assert figure is not None
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.55
    (legend,) = [*figure.legends, *([figure.axes[0].get_legend()] if figure.axes[0].get_legend() else [])]
    assert len(legend.get_texts()) == 2


def test_a_band_needs_values_of_all_campaigns_that_it_depends_on() -> None:
    best = np.array([[-np.inf, 1.0, 2.0], [-np.inf, -np.inf, 4.0], [-np.inf, 3.0, 3.0]])
    low, middle, high = band(best)
    assert np.isnan([low[0], middle[0], high[0], low[1]]).all()
    assert (middle[1], high[1]) == (1.0, 3.0)
    assert (low[2], middle[2], high[2]) == (2.0, 3.0, 4.0)
    assert band(np.arange(5.0)[:, None])[0] == 1.0  # five campaigns: the middle half


def test_a_line_without_a_point_is_no_fault(tmp_path: Path) -> None:
    """Half of a group has a value only after the other half has ended."""
    folders = [
        campaign(tmp_path / "a0", [0.5], optimizer="a", seed=0),
        campaign(tmp_path / "a1", [None, None, 0.4], optimizer="a", seed=1),
        campaign(tmp_path / "b0", [0.5], optimizer="b", seed=0),
    ]
    for cost in ("evaluations", "gpu_hours", "hours"):
        figure = draw_best(compare_campaigns(folders), cost)
        assert figure is not None
        assert as_files(figure)["png"].startswith(b"\x89PNG")


def test_numbers_have_the_decimals_that_their_error_needs() -> None:
    assert plus_minus(0.91234, 0.0123) == "0.912 ± 0.012"
    assert plus_minus(123.4, 27.0) == "123 ± 27"
    assert plus_minus(0.5, math.nan) == "0.5"
    assert plus_minus(math.nan, math.nan) == "–"
    assert plus_minus(1.0, 0.0) == "1 ± 0"
    assert plus_minus(2.5e-9, 1e-10) == "2.5e-09 ± 1e-10"
    assert [cost_text("hours", hours) for hours in (0.01, 1.0, 30.0, 200.0, math.inf)] == [
        "36 s",
        "60 min",
        "30 h",
        "8.33 d",
        "–",
    ]
    assert cost_text("evaluations", 14.0) == "14"


def test_the_seeds_that_are_needed_are_those_of_the_test() -> None:
    for tests in (1, 3, 6, 10):
        n = seeds_needed(tests)
        smallest = [tests * stats.wilcoxon(np.arange(1.0, count + 1)).pvalue for count in (n, n - 1)]
        assert smallest[0] <= 0.05 < smallest[1]
