from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.campaigns import make_campaign

from hpo_cluster.record.journal import Journal
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.report import read_campaign
from hpo_cluster.report.data import Campaign
from hpo_cluster.report.figures import FIGURES, curves, jobs, live, model, objectives, parameters, progress, still
from hpo_cluster.report.figures.description import CROWDED, STYLES, Axis, Bars, Figure, Lines, Panel, Points, Spans
from hpo_cluster.report.figures.model import total_effects
from hpo_cluster.report.figures.shared import MOST_POINTS, thinned
from hpo_cluster.report.html import html_page
from hpo_cluster.space import Categorical, Float, Integer, Space

SPACE = Space({"x": Float(1e-6, 1.0, log=True), "n": Integer(1, 64), "kind": Categorical(("a", "b"))})
OBJECTIVE = {"kind": "command", "command": "train {x} {n} {kind}", "metric": "score", "direction": "maximize"}


def campaign_of(folder: Path, ends: list[Mapping[str, Any]], objective: Mapping[str, Any] = OBJECTIVE) -> Campaign:
    random = np.random.default_rng(0)
    trials = [
        {"number": i, "parameters": SPACE.decode(random.random(3)), "gpus": 1, "end": end} for i, end in enumerate(ends)
    ]
    return read_campaign(make_campaign(folder, objective, SPACE, trials, "maximize"))


def completed(value: float) -> dict[str, Any]:
    return {"state": "completed", "value": value, "metrics": {"score": value, "other": -value}}


def test_with_several_objectives_the_front_is_marked_by_each_parameter(tmp_path: Path) -> None:
    goals = [{"name": "score", "direction": "maximize"}, {"name": "cost", "direction": "minimize"}]
    ends = [
        {"state": "completed", "value": score, "metrics": {"score": score, "cost": cost}}
        for score, cost in [(0.9, 3.0), (0.8, 3.0), (0.7, 1.0)]
    ]
    campaign = campaign_of(tmp_path / "c", ends, {**OBJECTIVE, "metrics": goals})
    by_value, over_time = parameters.score_by_parameter(campaign), parameters.parameters_over_time(campaign)
    assert by_value is not None
    assert over_time is not None
    assert "the diamonds are the Pareto front" in by_value.reading
    for panel in (*by_value.panels, *over_time.panels):
        assert {0, 2} == {
            n for layer in panel.layers if isinstance(layer, Points) and layer.style == "front" for n in layer.trials
        }
    (marks,) = [layer for layer in by_value.panels[0].layers if isinstance(layer, Points) and layer.style == "front"]
    assert marks.y == (0.9, 0.7)


def test_a_trial_that_violates_a_constraint_is_never_the_best_of_the_other_metrics(tmp_path: Path) -> None:
    goals = [{"name": "score", "direction": "maximize"}, {"name": "cost", "direction": "minimize"}]
    objective = {**OBJECTIVE, "metrics": goals, "constraints": [{"name": "memory", "at_most": 4.0}]}
    measured = [(0.9, 3.0, 9.0), (0.8, 3.0, 1.0), (0.8, 2.0, 1.0), (0.5, 2.0, 1.0)]
    ends = [
        {"state": "completed", "value": score, "metrics": {"score": score, "cost": cost, "memory": memory}}
        for score, cost, memory in measured
    ]
    figure = objectives.validation_test(campaign_of(tmp_path / "c", ends, objective))
    assert figure is not None
    shown = {layer.label: layer.trials for layer in figure.panels[0].layers if isinstance(layer, Points)}
    assert shown == {"trials": (1, 3), "violates a constraint": (0,), "best by score": (2,)}  # 2 dominates 1


def test_the_total_effects_of_a_known_function() -> None:
    random = np.random.default_rng(0)
    first, second = random.random((4000, 3)), random.random((4000, 3))
    samples = [first] + [np.where(np.arange(3) == axis, second, first) for axis in range(3)]
    values = np.stack([[2 * sample[:, 0] + sample[:, 1]] for sample in samples]).transpose(0, 2, 1)
    shares = total_effects(values)
    assert shares.shape == (3, 1)
    assert shares[:, 0] == pytest.approx([0.8, 0.2, 0.0], abs=0.03)


def test_a_product_has_effects_that_add_up_to_more_than_one() -> None:
    random = np.random.default_rng(0)
    first, second = random.random((4000, 2)) - 0.5, random.random((4000, 2)) - 0.5
    samples = [first] + [np.where(np.arange(2) == axis, second, first) for axis in range(2)]
    values = np.stack([sample.prod(axis=1)[:, None] for sample in samples])
    assert total_effects(values)[:, 0] == pytest.approx([1.0, 1.0], abs=0.1)


def test_an_estimated_effect_is_never_larger_than_all_of_the_variance() -> None:
    values = np.array([[[0.0], [0.0], [0.1]], [[1.0], [1.0], [0.1]]])  # changes more than the first sample varies
    assert total_effects(values)[0, 0] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_one_parameter_alone_explains_all_within_the_axis(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    parameters = [SPACE.decode(random.random(3)) for _ in range(12)]
    trials = [
        {"number": i, "parameters": at, "gpus": 1, "end": completed(-((math.log10(float(at["x"])) + 2) ** 2))}  # type: ignore[arg-type]
        for i, at in enumerate(parameters)
    ]
    figure = model.importance(read_campaign(make_campaign(tmp_path / "c", OBJECTIVE, SPACE, trials, "maximize")))
    assert figure is not None
    panel = figure.panels[0]
    (bars,) = [layer for layer in panel.layers if isinstance(layer, Bars)]
    assert panel.x.high is not None
    assert max(*bars.values, *bars.high) <= 1.0 < panel.x.high
    assert panel.y.ticks is not None
    assert panel.y.ticks[-1][1] == "x"


def test_a_fixed_parameter_has_no_place_in_figures_of_the_model(tmp_path: Path) -> None:
    space = Space({"batch": Integer(16, 16), "kind": Categorical(("a", "b")), "x": Float(0, 1), "y": Float(0, 1)})
    random = np.random.default_rng(0)
    parameters = [space.decode(random.random(space.dim)) for _ in range(12)]
    trials = [
        {"number": i, "parameters": at, "gpus": 1, "end": completed(-((float(at["y"]) - 0.3) ** 2))}  # type: ignore[arg-type]
        for i, at in enumerate(parameters)
    ]
    campaign = read_campaign(make_campaign(tmp_path / "c", OBJECTIVE, space, trials, "maximize"))
    importance, contours = model.importance(campaign), model.contours(campaign)
    assert importance is not None
    ticks = importance.panels[0].y.ticks
    assert ticks is not None
    assert {name for _, name in ticks} == {"kind", "x", "y"}
    assert ticks[-1][1] == "y"
    assert contours is not None
    assert {panel.x.label for panel in contours.panels} == {"x"}
    assert {panel.y.label for panel in contours.panels} == {"y"}


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1.0), (0.02, 0.09)])
def test_logarithmic_axes_are_labelled_without_formulas(low: float, high: float) -> None:
    panel = Panel(Axis("x", True, low, high), Axis("$y$"), [Points((low, high), (1.0, 2.0), "completed", "")])
    drawn = still._drawn(Figure("title", "", [panel]), "heading")
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    labels = [tick.get_text() for tick in axes.get_xticklabels() if low <= tick.get_position()[0] <= high]
    assert len([label for label in labels if label]) >= 2
    assert not any("$" in label for label in labels)


def test_long_choices_stand_at_an_angle_and_no_number_is_to_be_added() -> None:
    long = tuple((float(i), f"{name}_with_rest") for i, name in enumerate(("cosine", "linear", "constant", "root")))
    short = tuple((float(i), name) for i, name in enumerate("abcd"))
    flat = Points((0.0, 3.0), (25.0 + 1e-7, 25.0), "completed", "")
    panels = [Panel(Axis("kind", ticks=ticks), Axis("y"), [flat]) for ticks in (long, short)]
    drawn = still._drawn(Figure("title", "", panels, 2), "heading")
    drawn.draw_without_rendering()
    assert [axes.get_xticklabels()[0].get_rotation() for axes in drawn.axes] == [30.0, 0.0]
    assert [axes.yaxis.get_offset_text().get_text() for axes in drawn.axes] == ["", ""]
    boxes = [
        label.get_window_extent().transformed(drawn.transFigure.inverted()) for label in drawn.axes[1].get_xticklabels()
    ]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_the_ends_of_a_range_are_the_ends_of_its_line_in_parallel_coordinates(tmp_path: Path) -> None:
    space = Space({"rank": Integer(2, 32, log=True), "depth": Integer(1, 4), "x": Float(1e-4, 1e-2, log=True)})
    rows = [{"rank": 2, "depth": 1, "x": 1e-4}, {"rank": 32, "depth": 4, "x": 1e-2}, {"rank": 8, "depth": 2, "x": 1e-3}]
    trials = [{"number": i, "parameters": row, "gpus": 1, "end": completed(i / 2)} for i, row in enumerate(rows)]
    figure = FIGURES["parallel_coordinates"](
        read_campaign(make_campaign(tmp_path / "c", OBJECTIVE, space, trials, "maximize"))
    )
    assert figure is not None
    lines = figure.panels[0].layers[0]
    assert isinstance(lines, Lines)
    heights = dict(zip(lines.trials, lines.ys, strict=True))
    assert heights[0] == pytest.approx([0, 0, 0, 0])
    assert heights[1] == pytest.approx([1, 1, 1, 0.5])
    assert heights[2] == pytest.approx([0.5, 1 / 3, 0.5, 1])


def test_a_character_that_the_font_lacks_is_told_once_and_in_words(caplog: pytest.LogCaptureFixture) -> None:
    ticks = ((0.0, "日本"), (1.0, "β"))
    figure = Figure("title", "", [Panel(Axis("kind", ticks=ticks), Axis("y"), [Points((0.0,), (1.0,), "seen", "")])])
    still._tell_missing.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png, pdf = still.draw(figure, "heading")
        still.draw(figure, "heading")
    assert png.startswith(b"\x89PNG")
    assert pdf.startswith(b"%PDF")
    assert [record.getMessage()[:39] for record in caplog.records] == [
        "figures (PNG, PDF) show a box for 日, wh",
        "figures (PNG, PDF) show a box for 本, wh",
    ]


def test_slices_have_one_scale(tmp_path: Path) -> None:
    figure = model.slices(campaign_of(tmp_path / "c", [completed(25 + i / 10) for i in range(6)]))
    assert figure is not None
    assert len(figure.panels) == 3
    assert len({(panel.y.low, panel.y.high) for panel in figure.panels}) == 1
    assert figure.panels[0].y.low is not None


@pytest.mark.parametrize("rise", [1e-10, 1e-4])
def test_labels_of_a_flat_model_have_no_offset_and_few_digits(tmp_path: Path, rise: float) -> None:
    campaign = campaign_of(tmp_path / "c", [completed(0.4 + rise * i) for i in range(8)])
    made = {name: FIGURES[name](campaign) for name in ("slices", "contours", "parameters", "best_by_evaluations")}
    figures = [figure for figure in made.values() if figure is not None]
    assert (made["contours"] is None) == (rise == 1e-10)
    assert len(figures) > 2
    for figure in figures:
        drawn = still._drawn(figure, "heading")
        drawn.draw_without_rendering()
        assert {axes.yaxis.get_offset_text().get_text() for axes in drawn.axes} == {""}
        labels = [label.get_text() for axes in drawn.axes for label in axes.get_yticklabels()]
        assert len(labels) > 3
        assert max(map(len, labels)) <= len("0.40025")


@pytest.mark.parametrize(("value", "label"), [(1e-4, "10⁻⁴"), (1e12, "10¹²"), (1.0, "10⁰")])
def test_labels_of_powers(value: float, label: str) -> None:
    assert still.power(value) == label


@pytest.mark.parametrize("ends", [[], [1.0], [0.5, 2.0]])
def test_the_ends_of_an_axis_are_both_given_or_none(tmp_path: Path, ends: list[float]) -> None:
    failed = {"state": "failed", "error": {"kind": "code", "message": "no"}}
    campaign = campaign_of(tmp_path / "c", [*map(completed, ends), failed])
    campaign.record.rows[0].info["depth"] = 3
    made = [make(campaign) for make in FIGURES.values()]
    axes = [axis for figure in made if figure for panel in figure.panels for axis in (panel.x, panel.y)]
    assert len(axes) > 8
    assert all((axis.low is None) == (axis.high is None) for axis in axes)


def test_jobs_lie_on_lanes_that_do_not_overlap(tmp_path: Path) -> None:
    layout = CampaignLayout(make_campaign(tmp_path / "c", OBJECTIVE, SPACE, [], "maximize"))
    at = [("node10", 0, 10), ("node9", 0, 10), ("node9", 5, 20), ("node9", 10, 20)]
    with Journal(layout.events) as journal:
        for number, (node, start, end) in enumerate(at):
            row = {"trial": number, "parameters": {"x": 0.1, "n": 2, "kind": "a"}, "seed": 1, "origin": "evaluated"}
            journal.append("asked", trials=[row], decision={})
            names = {"trial": number, "attempt": 0}
            journal.append("intent", **names, token=f"t{number}", code="c")
            journal.append("running", **names, node=node, started_at=f"2026-01-01T00:00:{start:02d}Z")
            journal.append("ended", **names, **completed(1.0), ended_at=f"2026-01-01T00:00:{end:02d}Z")
    figure = jobs.timeline(read_campaign(layout.dir))
    assert figure is not None
    panel = figure.panels[0]
    assert [label for _, label in panel.y.ticks or ()][::-1] == ["node9", "node9 ·2", "node10"]
    spans = next(layer for layer in panel.layers if isinstance(layer, Spans))
    assert dict(zip(spans.trials, spans.rows, strict=True)) == {0: 0, 1: 2, 2: 1, 3: 2}
    assert panel.note == "busy 75% of the time, idle 25%"  # 45 of 60 seconds


def test_failures_count_attempts(tmp_path: Path) -> None:
    failed = {"state": "failed", "error": {"kind": "code", "message": "\nno\nluck"}}
    lost = {"state": "failed", "error": {"kind": "node", "message": "gone"}}
    figure = jobs.failures(campaign_of(tmp_path / "c", [failed, completed(1.0), failed, lost]))
    assert figure is not None
    assert figure.panels[0].layers == [Bars((1.0, 2.0), "failed")]
    assert [label for _, label in figure.panels[0].y.ticks or ()] == ["node", "code"]
    assert figure.table[2:] == ("| 2 | code | no | 0, 2 |", "| 1 | node | gone | 3 |")


def test_a_pause_longer_than_all_jobs_is_cut_out() -> None:
    stays = [jobs.Stay("a", start, end, i, "completed") for i, (start, end) in enumerate([(0, 10), (5, 12), (14, 24)])]
    assert jobs._without_pauses(stays) == (stays, [])  # a short one is drawn as it is
    later = [jobs.Stay("a", start, end, 3, "completed") for start, end in [(2400, 2408), (9000, 9003)]]
    kept, cuts = jobs._without_pauses([*stays, *later])
    busy = 12 + 10 + 8 + 3
    rest = jobs.GAP * busy
    assert kept[:3] == stays
    assert [stay.start for stay in kept[3:]] == pytest.approx([24 + rest, 24 + rest + 8 + rest])
    assert [stay.end - stay.start for stay in kept[3:]] == pytest.approx([8, 3])
    assert cuts == pytest.approx([24 + rest / 2, 24 + rest + 8 + rest / 2])


def test_costs_are_in_minutes_if_they_are_small(tmp_path: Path) -> None:
    campaign = campaign_of(tmp_path / "c", [completed(1.0), completed(2.0)])
    assert (figure := jobs.costs(campaign)) is not None
    assert figure.title == "GPU-hours and energy"
    for trial in campaign.record.rows:
        trial.attempts[0].gpus = 0
        trial.attempts[0].started_at, trial.attempts[0].ended_at = "2026-01-01T00:00:00Z", "2026-01-01T00:03:00Z"
    assert (figure := jobs.costs(campaign)) is not None
    assert figure.panels[0].x.label == "minutes of evaluation, without a GPU"
    assert figure.panels[0].layers == [Bars((6.0,), "completed")]
    for trial in campaign.record.rows:
        trial.attempts[0].ended_at = "2026-01-01T00:00:06Z"
    assert (figure := jobs.costs(campaign)) is not None
    assert figure.panels[0].x.label == "seconds of evaluation, without a GPU"
    assert figure.panels[0].layers == [Bars((12.0,), "completed")]


def test_of_many_trials_the_best_and_some_others_are_drawn(tmp_path: Path) -> None:
    import pandas as pd

    campaign = campaign_of(tmp_path / "c", [completed(1.0)])
    many = pd.DataFrame({"trial": range(5000), "value": [math.nan if i % 10 == 0 else float(i) for i in range(5000)]})
    kept = thinned(campaign, many)
    assert len(kept) == MOST_POINTS
    assert kept["trial"].is_monotonic_increasing
    assert set(many.nlargest(MOST_POINTS // 2, "value")["trial"]) <= set(kept["trial"])
    assert kept["value"].isna().sum() > 50
    assert len(thinned(campaign, many.head(MOST_POINTS))) == MOST_POINTS


@pytest.mark.parametrize(("count", "edges"), [(CROWDED, True), (CROWDED + 1, False)])
def test_very_many_markers_have_no_edges_that_hide_one_another(count: int, edges: bool) -> None:
    points = Points((0.0,) * count, (0.0,) * count, "completed", "evaluated", tuple(range(count)))
    panel = Panel(Axis("x"), Axis("y"), [points])
    (drawn,) = still._drawn(Figure("f", "", [panel]), "c").axes[0].get_lines()
    assert (drawn.get_markeredgewidth() > 0) == edges
    (mark,) = live._plot(panel).renderers
    assert (mark.glyph.line_color == "#ffffff") == edges


def test_correlations_are_those_of_all_trials_and_not_of_those_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [10.0, 0.0, *range(1, 9)]  # of the four best alone, the correlation is perfect
    ends = [
        {"state": "completed", "value": 1.0 * i, "metrics": {"score": 1.0 * i, "other": others[i]}} for i in range(10)
    ]
    campaign = campaign_of(tmp_path / "c", ends)
    monkeypatch.setattr(objectives, "thinned", lambda _, frame: frame.head(4))
    figure = objectives.validation_test(campaign)
    assert figure is not None
    assert sum(len(layer.trials) for layer in figure.panels[0].layers if isinstance(layer, Points)) == 4
    assert figure.panels[0].note.endswith(f"Spearman {stats.spearmanr(range(10), others)[0]:.2f} over 10 trials")


def test_many_curves_are_fainter(tmp_path: Path) -> None:
    def opacity(count: int) -> float:
        campaign = campaign_of(tmp_path / f"of-{count}", [completed(1.0)])
        curve = {"curve": [{"step": step, "train_loss": 1.0 + step} for step in range(3)]}
        campaign.__dict__["results"] = dict.fromkeys(range(1, count + 1), curve)  # what it would read from the files
        figure = curves.losses(campaign)
        assert figure is not None
        (lines,) = figure.panels[0].layers
        assert isinstance(lines, Lines)
        assert len(lines.xs) == count
        return lines.opacity[0]

    assert opacity(30) == opacity(40) == 0.5
    assert opacity(160) == 0.25


def test_choices_over_the_campaign_are_spread_if_there_are_many_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = campaign_of(tmp_path / "c", [completed(0.1 * i) for i in range(40)])

    def places() -> set[float]:
        figure = parameters.parameters_over_time(campaign)
        assert figure is not None
        return {y for layer in figure.panels[2].layers if isinstance(layer, Points) for y in layer.y}

    assert places() == {0.0, 1.0}
    monkeypatch.setattr(parameters, "MOST_SMALL", 30)
    assert len(places()) > 20
    assert all(min(abs(y), abs(y - 1)) < 0.2 for y in places())


@pytest.mark.parametrize(("count", "crowded"), [(3, False), (20, True)])
def test_many_parallel_coordinates_have_labels_at_an_angle(tmp_path: Path, count: int, crowded: bool) -> None:
    space = Space({f"parameter_{i}": Float(0.0, 1.0) for i in range(count)})
    objective = {**OBJECTIVE, "command": " ".join(["train", *(f"{{{name}}}" for name in space.names)])}
    trials = [
        {"number": i, "parameters": space.decode([0.1 * i] * count), "end": completed(float(i))} for i in range(3)
    ]
    campaign = read_campaign(make_campaign(tmp_path / "c", objective, space, trials, "maximize"))
    figure = parameters.parallel_coordinates(campaign)
    assert figure is not None
    assert figure.panels[0].x.crowded == crowded
    (drawn,) = [axes for axes in still._drawn(figure, "c").axes if axes.get_xlabel() == ""]
    labels = [label for label in drawn.get_xticklabels() if label.get_text()]
    assert len(labels) == count + 1
    assert {label.get_rotation() > 0 for label in labels} == {crowded}


def test_the_page_of_500_trials_is_small(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    campaign = campaign_of(tmp_path / "c", [completed(float(value)) for value in random.random(500)])
    for number in range(500):
        files = CampaignLayout(tmp_path / "c").attempt(number, 0)
        files.job_dir.mkdir(parents=True)
        (files.job_dir / "1_log.err").write_text("a line of a log that says a lot of things\n" * 400)
    figures = {name: make(campaign) for name, make in FIGURES.items() if name not in ("importance", "slices")}
    page = html_page(campaign, {name: figure for name, figure in figures.items() if figure is not None})
    assert 1e6 < len(page.encode()) < 5e6
    assert page.count("a line of a log") > 500


def test_each_figure_can_be_told_apart_without_colours(tmp_path: Path) -> None:
    failed = {"state": "failed", "error": {"kind": "code", "message": "no"}}
    diverged = {"state": "diverged", "error": {"kind": "diverged", "message": "nan"}}
    figure = progress.best_by_evaluations(campaign_of(tmp_path / "c", [completed(1.0), failed, diverged]))
    assert figure is not None
    markers = [STYLES[layer.style].marker for layer in figure.panels[0].layers if isinstance(layer, Points)]
    assert len(markers) == len(set(markers)) == 3
