"""Jobs: where and when they ran, what failed, and what it cost."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from hpo_cluster.record.clock import moment
from hpo_cluster.report.data import Campaign, shorten
from hpo_cluster.report.figures.description import Axis, Bars, Figure, Layer, Line, Panel, Spans
from hpo_cluster.report.figures.shared import time_unit
from hpo_cluster.text import first_line, in_markdown
from hpo_cluster.trial import BASELINE, Origin, State

#: Most attempts and lanes drawn; of more, the last ones.
MOST_SPANS, MOST_LANES = 3000, 60
#: What is left of a pause that is cut out, as a share of the time in which jobs ran.
GAP = 0.04
#: Most kinds of errors in the table.
MOST_ERRORS = 10


class Stay(NamedTuple):
    """The time of one attempt on a node, in seconds since the first."""

    node: str
    start: float
    end: float
    trial: int
    style: str


def timeline(campaign: Campaign) -> Figure | None:
    """Return the attempts over nodes and time. A node that evaluates several at a time has several lanes."""
    stays = _stays(campaign)
    if not stays:
        return None
    stays, cuts = _without_pauses(stays)
    lanes = _lanes(stays)
    shown = list(reversed(list(lanes.items())[:MOST_LANES]))  # the first one is drawn at the top
    names = [shorten(node, 24) + (f" ·{lane + 1}" if lane else "") for (node, lane), _ in shown]
    divisor, unit = time_unit(max(stay.end for stay in stays))
    layers: list[Layer] = [
        Line((at / divisor, at / divisor), (-0.7, len(names) - 0.3), "baseline", "pause, cut out" if not i else "")
        for i, at in enumerate(cuts)
    ]
    kept = [(row, stay) for row, (_, mine) in enumerate(shown) for stay in mine]
    kept = sorted(kept, key=lambda item: item[1].start)[-MOST_SPANS:]
    for style in dict.fromkeys(stay.style for _, stay in kept):
        mine = [(row, stay) for row, stay in kept if stay.style == style]
        layers.append(
            Spans(
                tuple(float(row) for row, _ in mine),
                tuple(stay.start / divisor for _, stay in mine),
                tuple(stay.end / divisor for _, stay in mine),
                style,
                style,
                tuple(stay.trial for _, stay in mine),
            )
        )
    busy = math.fsum(stay.end - stay.start for stay in stays)
    first, last = min(stay.start for stay in stays), max(stay.end for stay in stays)
    share = busy / (len(lanes) * (last - first)) if last > first else 1.0
    ticks = tuple((float(row), name) for row, name in enumerate(names))
    height = 1.6 + 0.24 * len(names)
    panel = Panel(
        Axis(f"time since the first job began{', without pauses' if cuts else ''} ({unit})"),
        Axis("", low=-0.7, high=len(names) - 0.3, ticks=ticks),
        layers,
        f"busy {share:.0%} of the time, idle {1 - share:.0%}",
        height,
    )
    reading = (
        "Each bar is one attempt, from its claim to its end. A gap is time in which a place was idle: it waited for "
        "the queue, or for a proposal. Several lanes of one node are places side by side."
    )
    if cuts:
        reading += " Where nothing ran for longer than all jobs took, such as before a confirmation, time is cut out."
    if len(kept) < len(stays):
        reading += f" The last {len(kept)} of {len(stays)} attempts, on {len(shown)} of {len(lanes)} places, are drawn."
    return Figure("Jobs over nodes in time", reading, [panel])


def _stays(campaign: Campaign) -> list[Stay]:
    found = []
    now = campaign.record.last["at"] if campaign.record.last else None
    for trial in campaign.record.rows:
        for attempt in trial.attempts:
            end = attempt.ended_at or now
            if attempt.started_at is None or end is None or trial.origin is Origin.IMPORTED:
                continue
            last = attempt is trial.attempts[-1]
            if attempt.error and not (last and trial.state.ended):
                style = str(State.FAILED)
            elif attempt.rung is not None:
                style = str(State.PAUSED)
            else:
                style = str(trial.state) if trial.state.ended else str(State.RUNNING)
            begin, finish = _seconds(attempt.started_at), _seconds(end)
            found.append(Stay(attempt.node or "no node", begin, max(begin, finish), trial.number, style))
    origin = min((stay.start for stay in found), default=0.0)
    found.sort(key=lambda stay: (stay.start, stay.trial))
    return [stay._replace(start=stay.start - origin, end=stay.end - origin) for stay in found]


def _without_pauses(stays: list[Stay]) -> tuple[list[Stay], list[float]]:
    """Return the stays without the pauses that would leave no room for them, and where these were.

    A pause is cut to a little if it is longer than the time in which any job ran.
    """
    pauses, end = [], 0.0
    for stay in stays:  # in the order of their starts
        if stay.start > end:
            pauses.append((end, stay.start))
        end = max(end, stay.end)
    busy = end - math.fsum(begin - before for before, begin in pauses)
    pauses = [(before, begin) for before, begin in pauses if begin - before > busy > 0]
    rest = GAP * busy
    kept, cuts = list(stays), list[float]()
    for before, begin in reversed(pauses):
        cut = begin - before - rest
        kept = [s._replace(start=s.start - cut, end=s.end - cut) if s.start >= begin else s for s in kept]
        cuts = [before + rest / 2, *(at - cut for at in cuts)]
    return kept, cuts


def _seconds(at: str) -> float:
    return moment(at).timestamp()


def _lanes(stays: list[Stay]) -> dict[tuple[str, int], list[Stay]]:
    """Return the stays by node and lane: those of one lane do not overlap."""
    ends: dict[str, list[float]] = {}
    lanes: dict[tuple[str, int], list[Stay]] = {}
    for stay in stays:
        mine = ends.setdefault(stay.node, [])
        lane = next((i for i, end in enumerate(mine) if end <= stay.start), len(mine))
        mine[lane : lane + 1] = [stay.end]
        lanes.setdefault((stay.node, lane), []).append(stay)
    return dict(sorted(lanes.items(), key=lambda item: (_natural(item[0][0]), item[0][1])))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts `node9` before `node10`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def failures(campaign: Campaign) -> Figure | None:
    """Return how many attempts failed, by kind of error, with the messages."""
    rows = [trial for trial in campaign.record.rows if trial.origin is not Origin.IMPORTED]
    errors = [(trial, attempt.error) for trial in rows for attempt in trial.attempts if attempt.error]
    tried = {trial.number for trial, _ in errors}
    errors += [(trial, trial.error) for trial in rows if trial.error and trial.number not in tried]
    if not errors:
        return None
    kinds = Counter(str(error["kind"]) for _, error in errors).most_common()[::-1]
    ticks = tuple((float(row), kind) for row, (kind, _) in enumerate(kinds))
    panel = Panel(
        Axis("attempts that failed", low=0, high=1.08 * kinds[-1][1], integers=True),
        Axis("", low=-0.6, high=len(kinds) - 0.4, ticks=ticks),
        [Bars(tuple(float(count) for _, count in kinds), "failed")],
        height=1.2 + 0.4 * len(kinds),
    )
    messages: dict[tuple[str, str], list[int]] = {}
    for trial, error in errors:
        text = first_line(str(error.get("message") or ""))[:160]
        messages.setdefault((str(error["kind"]), text), []).append(trial.number)
    table = ["| attempts | kind | message | trials |", "| ---: | --- | --- | --- |"]
    for (kind, text), trials in sorted(messages.items(), key=lambda item: -len(item[1]))[:MOST_ERRORS]:
        shown = ", ".join(map(str, dict.fromkeys(trials[:8]))) + (", …" if len(trials) > 8 else "")
        table.append(f"| {len(trials)} | {in_markdown(kind)} | {in_markdown(text)} | {shown} |")
    reading = "Attempts that ended without a value. A trial may have several: what may pass is tried again."
    return Figure("Failures by kind", reading, [panel], table=tuple(table))


def costs(campaign: Campaign) -> Figure | None:
    """Return the GPU-hours (hours of evaluation without a GPU) and the energy, by what became of the trials."""
    hours: dict[str, float] = {}
    wh: dict[str, float] = {}
    on_gpu = any(attempt.gpus for trial in campaign.record.rows for attempt in trial.attempts)
    for trial in campaign.record.rows:
        if trial.origin is Origin.IMPORTED:
            continue
        what = "baseline" if trial.number == BASELINE else str(trial.state)
        spans = [(a.gpus if on_gpu else 1, a.started_at, a.ended_at) for a in trial.attempts]
        used = sum(n * (_seconds(end) - _seconds(start)) / 3600 for n, start, end in spans if start and end)
        hours[what] = hours.get(what, 0.0) + used
        wh[what] = wh.get(what, 0.0) + campaign.record.energy_wh_of(trial.number)
    unit = "GPU-hours" if on_gpu else "hours of evaluation, without a GPU"
    if not on_gpu and math.fsum(hours.values()) < 1:
        divisor, name = time_unit(3600 * math.fsum(hours.values()))
        hours = {what: 3600 * used / divisor for what, used in hours.items()}
        unit = unit.replace("hours", {"s": "seconds", "min": "minutes"}[name])
    panels = [_bars(hours, unit)] if any(hours.values()) else []
    panels += [_bars(wh, "energy (Wh)")] if any(wh.values()) else []
    if not panels:
        return None
    reading = f"What the campaign has used, by what became of the trials: {math.fsum(hours.values()):.4g} {unit}" + (
        f", {math.fsum(wh.values()):.4g} Wh as the jobs measured it." if len(panels) > 1 else "."
    )
    return Figure("GPU-hours and energy" if on_gpu else "Time and energy", reading, panels, 2)


def _bars(counts: Mapping[str, float], unit: str) -> Panel:
    kinds = sorted((item for item in counts.items() if item[1] > 0), key=lambda item: item[1])
    ticks = tuple((float(row), kind) for row, (kind, _) in enumerate(kinds))
    layers = [Bars(tuple(value for _, value in kinds), "completed")]
    axis = Axis(unit, low=0, high=1.08 * kinds[-1][1])
    return Panel(axis, Axis("", low=-0.6, high=len(kinds) - 0.4, ticks=ticks), layers, height=1.4 + 0.4 * len(kinds))
