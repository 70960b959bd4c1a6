"""A campaign as pictures and one page: derived from its journal, written whole, made again at any time.

Only evaluated trials are drawn: values that an optimizer inherited, approximated or imputed are its own business.
A trial without a value (diverged, failed) stands on a strip along the lower edge of the axes. The colours are those of
M. Okabe and K. Ito, told apart by colour-blind readers too, and each state has its own marker besides.
"""

from __future__ import annotations

import io
import logging
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import ConfigError, JournalError
from hpo_cluster.files import read_json, replace_text
from hpo_cluster.history import METRIC_PREFIX, load_history
from hpo_cluster.identity import read_identity
from hpo_cluster.layout import CampaignLayout
from hpo_cluster.objectives import parse_objective
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.lora import LoraObjective
from hpo_cluster.space import Categorical, Integer, Space
from hpo_cluster.trial import BASELINE, Origin, State, trial_label

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

BLUE, VERMILION, GREY, GREEN, PURPLE = "#0072B2", "#D55E00", "#555555", "#009E73", "#CC79A7"
#: Colour and marker of the states that are drawn.
STATE_STYLE = {
    State.COMPLETED: (BLUE, "o"),
    State.DIVERGED: (VERMILION, "x"),
    State.INFEASIBLE: (PURPLE, "s"),
    State.FAILED: (GREY, "+"),
}
BEST_ROWS = 10
#: Values needed before the recommendation by posterior mean is more than an echo of the best value.
MIN_FOR_MODEL = 4
MAX_OTHER_METRICS = 4
#: Height, in the axes' own units, of the strip of the trials without a value.
STRIP = 0.035
#: Inches; a title and a legend need that much.
MIN_WIDTH = 6.4


@dataclass(frozen=True)
class Campaign:
    """What the pages and pictures are made from."""

    layout: CampaignLayout
    name: str
    identity: dict[str, Any]
    space: Space
    metric: str
    maximize: bool
    others: tuple[str, ...]  # metrics to set against the optimised one
    others_are_tests: bool
    history: pd.DataFrame
    sems: dict[int, dict[str, float]]  # standard errors that the results report, by trial and metric

    @property
    def ended(self) -> pd.DataFrame:
        """Evaluated trials that have ended, in the order in which they did."""
        frame = self.history
        drawn = frame["state"].isin([str(state) for state in STATE_STYLE]) & (frame["origin"] == str(Origin.EVALUATED))
        return frame[drawn].sort_values("ended_seq", kind="stable")

    @property
    def ranked(self) -> pd.DataFrame:
        """Evaluated trials with a value, the best first."""
        frame = self.ended[self.ended["value"].notna()]
        return frame.sort_values(["value", "trial"], ascending=[not self.maximize, True], kind="stable")

    @property
    def baseline(self) -> pd.Series | None:
        """The model before fine-tuning, where it was scored."""
        rows = self.history[(self.history["trial"] == BASELINE) & self.history["value"].notna()]
        return None if rows.empty else rows.iloc[0]

    @property
    def title(self) -> str:
        """The name, short enough for the head of a figure."""
        return _short(self.name, 36)

    @property
    def goal(self) -> str:
        """The optimised metric and its direction, in words."""
        return f"{self.metric} ({'higher' if self.maximize else 'lower'} is better)"


def write_report(campaign_dir: str | os.PathLike[str]) -> list[Path]:
    """Write ``report/report.md`` and its figures.

    Returns:
        The files written, the page first. Figures that nothing can be drawn in yet are left out.

    Raises:
        JournalError: where there is no campaign.
    """
    campaign = read_campaign(Path(campaign_dir))
    directory = campaign.layout.report_dir
    directory.mkdir(exist_ok=True)
    figures: list[tuple[str, str, Path]] = []
    for stem, title, draw in (
        ("best_by_evaluations", "Best so far against evaluations", draw_best_by_evaluations),
        ("best_by_time", "Best so far against time", draw_best_by_time),
        ("parameters", "Score by each parameter", draw_parameters),
        ("validation_test", "Validation against test" if campaign.others_are_tests else "Other metrics", draw_others),
    ):
        path = directory / f"{stem}.png"
        picture = draw(campaign)
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            _replace_bytes(path, picture)
            figures.append((stem, title, path))
    page = directory / "report.md"
    replace_text(page, render_page(campaign, [(title, path.name) for _, title, path in figures]))
    return [page, *(path for _, _, path in figures)]


def read_campaign(campaign_dir: Path) -> Campaign:
    """Gather what the report is made from. Raises JournalError where there is no campaign."""
    layout = CampaignLayout(campaign_dir)
    identity = read_identity(layout.identity)
    if identity is None:
        raise JournalError(f"{layout.dir} is no campaign: it has no campaign.yaml")
    history = load_history(campaign_dir)
    try:
        objective: Objective | None = parse_objective(identity["objective"])
    except ConfigError as error:  # of another version, perhaps: the history can be drawn all the same
        log.warning("campaign=%s objective=unreadable reason=%s", layout.dir, error)
        objective = None
    metric = (objective.metric if objective else None) or "value"
    direction = identity.get("direction") or (objective.direction if objective else "maximize")
    columns = map(str, history.columns)
    known = [column.removeprefix(METRIC_PREFIX) for column in columns if column.startswith(METRIC_PREFIX)]
    tests = isinstance(objective, LoraObjective)
    if isinstance(objective, LoraObjective):
        others = [f"{task}/{objective.tasks.metric}" for task in objective.tasks.test]
    else:
        others = known
    chosen = [name for name in others if name in known and name != metric]
    return Campaign(
        layout=layout,
        name=layout.dir.resolve().name,
        identity=identity,
        space=Space.from_json(identity["space"]),
        metric=metric,
        maximize=direction == "maximize",
        others=tuple(chosen if tests else chosen[:MAX_OTHER_METRICS]),
        others_are_tests=tests,
        history=history,
        sems={int(trial): _sems(layout, int(trial)) for trial in history["trial"]},
    )


def _sems(layout: CampaignLayout, trial: int) -> dict[str, float]:
    results = (layout.trials_dir / trial_label(trial)).glob("a*/result.json")
    sems = next(((read_json(result) or {}).get("sems") for result in results), None)  # an attempt of a trial has one
    return {str(name): float(sem) for name, sem in sems.items()} if isinstance(sems, dict) else {}


# Figures: each function returns a PNG, or None where there is nothing to draw.


def draw_best_by_evaluations(campaign: Campaign) -> bytes | None:
    """The value of each evaluation in the order in which they ended, and the best so far."""
    ended = campaign.ended
    if ended.empty:
        return None
    x = list(range(1, len(ended) + 1))
    figure, axes = _figure(7.2, 4.2)
    _draw_best(campaign, axes, x, ended)
    axes.set_xlabel("evaluations that have ended")
    axes.set_xlim(0.5 - 0.02 * len(x), len(x) + 0.5 + 0.02 * len(x))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_title(f"{campaign.title}: best so far against evaluations", loc="left")
    return _png(figure)


def draw_best_by_time(campaign: Campaign) -> bytes | None:
    """The value of each evaluation at the time when it ended, and the best so far."""
    import pandas as pd

    ended = campaign.ended
    times = pd.to_datetime(ended["ended_at"], utc=True, format="ISO8601")
    starts = pd.to_datetime(campaign.history["submitted_at"], utc=True, format="ISO8601").dropna()
    if ended.empty or times.isna().any():
        return None
    elapsed = (times - min([*starts, times.min()])).dt.total_seconds().sort_values(kind="stable")
    ended = ended.loc[elapsed.index]  # a driver may learn of two trials in another order than that of their ends
    divisor, unit = _time_unit(float(elapsed.max()))
    x = [second / divisor for second in elapsed]
    figure, axes = _figure(7.2, 4.2)
    _draw_best(campaign, axes, x, ended)
    axes.set_xlabel(f"time since the first submission ({unit})")
    span = max(x) or 1.0
    axes.set_xlim(-0.02 * span, 1.03 * span)
    axes.set_title(f"{campaign.title}: best so far against time", loc="left")
    return _png(figure)


def _draw_best(campaign: Campaign, axes: Any, x: Sequence[float], ended: pd.DataFrame) -> None:
    if ended["value"].notna().any():
        best = (ended["value"].cummax() if campaign.maximize else ended["value"].cummin()).ffill()
        axes.step(x, best, where="post", color=GREEN, linewidth=2, label="best so far", zorder=2)
    _draw_states(axes, x, ended)
    _draw_baseline(campaign, axes)
    axes.set_ylabel(campaign.goal)
    _scale_values(axes, campaign)
    _legend(axes)


def draw_parameters(campaign: Campaign) -> bytes | None:
    """Small multiples: the value against each parameter."""
    ended = campaign.ended
    if ended.empty:
        return None
    columns = {1: 1, 2: 2, 4: 2}.get(campaign.space.dim, 3)
    rows = math.ceil(campaign.space.dim / columns)
    figure, grid = _figures(rows, columns, 3.3 * columns + 0.6, 2.7 * rows + 1.0)
    cells = list(grid.flat)
    ranked = campaign.ranked
    for index, (name, parameter) in enumerate(campaign.space):
        axes = cells[index]
        if isinstance(parameter, Categorical):
            positions = {choice: i for i, choice in enumerate(parameter.choices)}
            spread = 0.3 if len(ended) > 1 else 0.0
            jitter = [spread * ((i * 0.618034) % 1 - 0.5) for i in range(len(ended))]
            x = [positions[choice] + shift for choice, shift in zip(ended[name], jitter, strict=True)]
            axes.set_xticks(list(positions.values()), [_short(choice) for choice in positions])
            axes.set_xlim(-0.5, len(positions) - 0.5)
        else:
            x = [float(value) for value in ended[name]]
            if parameter.log:
                axes.set_xscale("log")
                low, high = math.log(parameter.low), math.log(parameter.high)
                margin = 0.04 * (high - low)
                axes.set_xlim(math.exp(low - margin), math.exp(high + margin))
                if isinstance(parameter, Integer):
                    _label_integers(axes, parameter)
            else:
                margin = 0.04 * (parameter.high - parameter.low)
                axes.set_xlim(parameter.low - margin, parameter.high + margin)
        _draw_states(axes, x, ended)
        if not ranked.empty:
            place = list(ended["trial"]).index(ranked.iloc[0]["trial"])
            ring = {"facecolors": "none", "edgecolors": GREEN, "linewidths": 2, "s": 110}
            axes.scatter([x[place]], [ranked.iloc[0]["value"]], label="best", zorder=5, **ring)
        _draw_baseline(campaign, axes)
        axes.set_xlabel(name)
        _scale_values(axes, campaign)
    for axes in cells[campaign.space.dim :]:
        axes.set_axis_off()
    for row in range(rows):
        grid[row, 0].set_ylabel(campaign.metric)
    figure.suptitle(f"{campaign.title}: score by each parameter", x=0.01, ha="left")
    handles, labels = cells[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return _png(figure)


def _label_integers(axes: Any, parameter: Integer) -> None:
    """Powers of two, or of ten over a wide range, in plain digits on a log axis."""
    base = 2 if parameter.high < 100 * parameter.low else 10
    powers = [base**n for n in range(64) if parameter.low <= base**n <= parameter.high]
    axes.set_xticks(powers, [str(power) for power in powers])
    axes.set_xticks([], minor=True)


def draw_others(campaign: Campaign) -> bytes | None:
    """The optimised metric against each test metric, with standard errors; the baseline has its own marker."""
    frame = campaign.ranked
    names = [name for name in campaign.others if frame[METRIC_PREFIX + name].notna().any()]
    if not names:
        return None
    bars = " (bars: one standard error)" if any(campaign.sems.values()) else ""
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = _figures(rows, columns, 4.4 * columns + 0.6, 3.9 * rows + 0.7)
    for axes, name in zip(grid.flat, names, strict=False):
        best = [True] + [False] * (len(frame) - 1)
        _draw_pairs(campaign, axes, frame[[not b for b in best]], name, BLUE, "o", "trials" + bars)
        _draw_pairs(campaign, axes, frame[best], name, GREEN, "D", f"best by {campaign.metric}")
        if campaign.baseline is not None:
            _draw_pairs(campaign, axes, campaign.baseline.to_frame().T, name, VERMILION, "*", "baseline")
        test = "test: " if campaign.others_are_tests else ""
        axes.set_xlabel(("validation: " if campaign.others_are_tests else "") + campaign.metric)
        axes.set_ylabel(test + name)
        pairs = frame[["value", METRIC_PREFIX + name]].dropna()
        if len(pairs) >= 3 and (pairs.nunique() > 1).all():
            rho = pairs.rank().corr().to_numpy()[0, 1]
            axes.set_title(
                f"Spearman correlation {rho:.2f} over {len(pairs)} trials", loc="right", fontsize=9, color=GREY
            )
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    what = "validation against test" if campaign.others_are_tests else f"{campaign.metric} against other metrics"
    figure.suptitle(f"{campaign.title}: {what}", x=0.01, ha="left")
    handles, labels = next(iter(grid.flat)).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return _png(figure)


def _draw_pairs(
    campaign: Campaign, axes: Any, frame: pd.DataFrame, name: str, colour: str, marker: str, label: str
) -> None:
    from matplotlib.colors import to_rgb

    if frame.empty:
        return
    x = [float(value) for value in frame["value"]]
    y = [float(value) for value in frame[METRIC_PREFIX + name]]
    x_sem = [float(sem) if math.isfinite(sem) else 0.0 for sem in frame["value_sem"].astype(float)]
    y_sem = [campaign.sems.get(int(trial), {}).get(name, 0.0) for trial in frame["trial"]]
    size = {"o": 6, "D": 7, "*": 13}[marker]
    pale = tuple(0.55 + 0.45 * channel for channel in to_rgb(colour))
    style = {"ecolor": pale, "elinewidth": 0.9, "capsize": 0, "markeredgecolor": "white", "markeredgewidth": 0.6}
    axes.errorbar(x, y, y_sem, x_sem, fmt=marker, color=colour, markersize=size, label=label, **style)


def _draw_states(axes: Any, x: Sequence[float], ended: pd.DataFrame) -> None:
    """A marker for each trial: at its value, or on the strip at the lower edge where it has none."""
    values = [float(value) for value in ended["value"].astype(float)]
    states = list(ended["state"])
    for state, (colour, marker) in STATE_STYLE.items():
        mine = [i for i, name in enumerate(states) if name == state]
        chosen = [i for i in mine if math.isfinite(values[i])]
        absent = [i for i in mine if not math.isfinite(values[i])]
        filled = {"edgecolors": "white", "linewidths": 0.6} if marker in "os" else {"linewidths": 1.6}
        style = {"color": colour, "marker": marker, "s": 42, **filled}
        if chosen:
            y = [values[i] for i in chosen]
            axes.scatter([x[i] for i in chosen], y, label=str(state), zorder=3, **style)
        if absent:
            where = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 4}
            label = None if chosen else f"{state} (no value)"
            axes.scatter([x[i] for i in absent], [STRIP] * len(absent), label=label, **where, **style)


def _draw_baseline(campaign: Campaign, axes: Any) -> None:
    if campaign.baseline is not None:
        axes.axhline(
            float(campaign.baseline["value"]), color=GREY, linestyle="--", linewidth=1.2, label="baseline", zorder=1
        )


def _scale_values(axes: Any, campaign: Campaign) -> None:
    """A log scale where values to minimise spread over decades; room at the bottom for the strip."""
    from matplotlib.patches import Rectangle

    values = [float(value) for value in campaign.ended["value"].dropna()]
    if not values:
        axes.text(0.5, 0.5, "no trial has a value", transform=axes.transAxes, ha="center", color=GREY)
        if campaign.baseline is None:
            axes.set_yticks([])
        return
    if not campaign.maximize and min(values) > 0 and max(values) > 1000 * min(values):
        axes.set_yscale("log")
    if campaign.ended["value"].isna().any():
        low, high = axes.get_ylim()
        if axes.get_yscale() == "log":
            axes.set_ylim(low * (low / high) ** 0.1, high)
        else:
            axes.set_ylim(low - 0.1 * (high - low), high)
        # a band across the axes' width, in their own units: what stands there is not to be read off the scale
        axes.add_patch(Rectangle((0, 0), 1, 2 * STRIP, facecolor="#EFEFEF", zorder=0.8, transform=axes.transAxes))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, grid = _figures(1, 1, width, height)
    return figure, grid[0, 0]


def _figures(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes (``rows x columns``), without pyplot: nothing global, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, MIN_WIDTH), height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.4)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": "hpo_cluster"})
    return stream.getvalue()


def _time_unit(seconds: float) -> tuple[float, str]:
    for limit, divisor, unit in ((300, 1, "s"), (3 * 3600, 60, "min"), (4 * 86400, 3600, "h")):
        if seconds < limit:
            return float(divisor), unit
    return 86400.0, "days"


def _short(choice: Any, length: int = 12) -> str:
    text = str(choice)
    return text if len(text) <= length else text[: length - 1] + "…"


def _replace_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# The page.


def render_page(campaign: Campaign, figures: Sequence[tuple[str, str]]) -> str:
    """The report as Markdown; `figures` are (title, file name)."""
    identity, ranked = campaign.identity, campaign.ranked
    kind = (identity.get("objective") or {}).get("kind", "?")
    optimizer = identity.get("optimizer") or {}
    optimizer_name = optimizer.get("name", "?") if isinstance(optimizer, dict) else optimizer
    lines = [
        f"# Campaign {campaign.name}",
        "",
        f"Objective `{kind}`, metric `{campaign.metric}` ({'maximised' if campaign.maximize else 'minimised'}), "
        f"optimizer `{optimizer_name}`, seed {identity.get('seed', '?')}.",
        "",
        *_counts(campaign),
        "",
        "## Best",
        "",
    ]
    if ranked.empty:
        lines.append("No trial has a value yet." if campaign.ended.empty else "No trial ended with a value.")
    else:
        lines.append(f"By measured value: {_describe(campaign, ranked.iloc[0])}")
        if advice := _recommendation(campaign):
            lines += ["", advice]
    if campaign.baseline is not None:
        lines += ["", f"Baseline: {_value(campaign.baseline)}{_other_scores(campaign, campaign.baseline)}."]
    if not ranked.empty:
        lines += ["", f"## The {min(BEST_ROWS, len(ranked))} best of {len(ranked)}", "", *_table(campaign)]
    if failures := _failures(campaign):
        lines += ["", "## Without a value", "", *failures]
    for title, name in figures:
        lines += ["", f"## {title}", "", f"![{title}]({name})"]
    return "\n".join(lines) + "\n"


def _counts(campaign: Campaign) -> list[str]:
    frame = campaign.history[campaign.history["trial"] != BASELINE]
    evaluated = frame[frame["origin"] == str(Origin.EVALUATED)]
    counts = {str(state): int((evaluated["state"] == str(state)).sum()) for state in State}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    settled = len(frame) - len(evaluated)
    more = f"; {settled} more rows need no job (inherited, approximated or imported)" if settled else ""
    return [f"Trials: {text or 'none yet'}{more}."]


def _value(row: Any) -> str:
    sem = float(row["value_sem"]) if row["value_sem"] is not None else math.nan
    return f"{float(row['value']):.6g}" + (f" ± {sem:.2g}" if math.isfinite(sem) else "")


def _other_scores(campaign: Campaign, row: Any) -> str:
    scores = [f"`{name}` {float(row[METRIC_PREFIX + name]):.6g}" for name in campaign.others]
    return f" ({', '.join(scores)})" if scores else ""


def _parameters(campaign: Campaign, row: Any) -> str:
    return ", ".join(f"`{name}={_cell(row[name])}`" for name in campaign.space.names)


def _describe(campaign: Campaign, row: Any) -> str:
    scores = _other_scores(campaign, row)
    return f"trial {int(row['trial'])}, {_value(row)}{scores}, with {_parameters(campaign, row)}."


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(campaign: Campaign) -> list[str]:
    names = [*campaign.space.names]
    head = ["trial", campaign.metric, *campaign.others, *names]
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    for _, row in campaign.ranked.head(BEST_ROWS).iterrows():
        others = [_cell(float(row[METRIC_PREFIX + name])) for name in campaign.others]
        cells = [str(int(row["trial"])), _value(row), *others, *(_cell(row[name]) for name in names)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _failures(campaign: Campaign) -> list[str]:
    frame = campaign.ended[campaign.ended["value"].isna()]
    errors: dict[str, list[int]] = {}
    for _, row in frame.iterrows():
        error = str(row["error"]).splitlines()[0][:160] if isinstance(row["error"], str) else str(row["state"])
        errors.setdefault(error, []).append(int(row["trial"]))
    lines = []
    for error, trials in sorted(errors.items(), key=lambda entry: -len(entry[1])):
        shown = ", ".join(map(str, trials[:8])) + (", …" if len(trials) > 8 else "")
        lines.append(f"- {len(trials)} × {error} (trials {shown})")
    return lines[:BEST_ROWS]


def _recommendation(campaign: Campaign) -> str | None:
    """The evaluated trial of the best posterior mean, where there is enough to fit a surrogate."""
    if len(campaign.ranked) < MIN_FOR_MODEL:
        return None
    from hpo_cluster.surrogate import recommend

    trial = recommend(campaign.history, campaign.space)
    if trial is None:
        return None
    if trial == int(campaign.ranked.iloc[0]["trial"]):
        return "By posterior mean (recommended, since a single measurement is partly luck): the same trial."
    row = campaign.ranked[campaign.ranked["trial"] == trial].iloc[0]
    return f"By posterior mean (recommended, since a single measurement is partly luck): {_describe(campaign, row)}"
