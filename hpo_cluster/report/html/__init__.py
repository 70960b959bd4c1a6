"""The report as one HTML page, which needs no server and no network: text, figures, and a table of the trials.

All that comes from users and jobs is escaped: text as HTML, and what the page's script reads as JSON in which no tag
can begin. The script writes it with ``textContent`` alone.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from markdown_it import MarkdownIt

from hpo_cluster.report.data import Campaign
from hpo_cluster.report.figures.description import (
    ON_DARK,
    STYLES,
    Band,
    Bars,
    Contours,
    Figure,
    Labelled,
    Line,
    Lines,
    Panel,
    Points,
    Rule,
    Spans,
    Strip,
)
from hpo_cluster.report.html.trials import trial_table
from hpo_cluster.report.page import sections, summary

MARKS: Mapping[str, str] = {
    "circle": '<circle cx="11" cy="7" r="4" {fill}/>',
    "ring": '<circle cx="11" cy="7" r="5" {line}/>',
    "x": '<path d="M7 3l8 8m0-8l-8 8" {line}/>',
    "plus": '<path d="M11 2v10m-5-5h10" {line}/>',
    "square": '<path d="M7 3h8v8h-8z" {fill}/>',
    "diamond": '<path d="M11 2l5 5-5 5-5-5z" {fill}/>',
    "triangle": '<path d="M11 2l5 9h-10z" {fill}/>',
    "star": '<path d="M11 1l2 4 4 .5-3 3 1 4.500-4-2-4 2 1-4.500-3-3 4-.5z" {fill}/>',
}
DASHES = {"solid": "", "dashed": 'stroke-dasharray="5 3"', "dotted": 'stroke-dasharray="2 2"'}


def html_page(campaign: Campaign, figures: Mapping[str, Figure]) -> str:
    """Return the page; `figures` are shown in their order, by the names of their files."""
    from hpo_cluster.report.figures import live

    parts, scripts, contents = [], [], []
    for title, lines in sections(campaign).items():
        contents.append((_slug(title), title))
        parts.append(_section(_slug(title), title, f'<div class="text">{_rendered(lines)}</div>'))
    parts.append(_section("trials", "Trials", (files(__package__) / "trials.html").read_text(encoding="utf-8")))
    contents.append(("trials", "Trials"))
    for stem, figure in figures.items():
        script, elements = live.draw(figure.panels)
        scripts.append(script)
        contents.append((stem, figure.title))
        panels = "".join(f'<div class="panel">{element}</div>' for element in elements)
        body = f'<p class="reading">{html.escape(figure.reading)}</p>{_legend(figure.panels)}'
        body += f'<div class="panels columns-{min(figure.columns, len(elements))}">{panels}</div>'
        body += f'<div class="text">{_rendered(figure.table)}</div>' if figure.table else ""
        parts.append(_section(stem, figure.title, body))
    here = files(__package__)
    page = {
        "TITLE": html.escape(campaign.name),
        "STYLE": (here / "page.css").read_text(encoding="utf-8") + _colours(),
        "SUMMARY": _rendered(summary(campaign)),
        "CONTENTS": "".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title in contents),
        "SECTIONS": "\n".join(parts),
        "DATA": _json(trial_table(campaign)),
        "ON_DARK": _json(dict(ON_DARK)),
        "BOKEH": live.scripts(),
        "SCRIPT": (here / "page.js").read_text(encoding="utf-8"),
        "COUNT": str(len(scripts)),
        "FIGURES": "\n".join(scripts),
    }
    return _filled((here / "page.html").read_text(encoding="utf-8"), page)


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Return the template with each ``@@NAME@@`` replaced, once: what is filled in is not read again."""
    pieces = template.split("@@")
    return "".join(values[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def _json(value: Any) -> str:
    """Return JSON in which no tag can begin, for a script element."""
    return json.dumps(value, allow_nan=False, ensure_ascii=True).replace("<", "\\u003c").replace("&", "\\u0026")


def _slug(title: str) -> str:
    return "text-" + "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{html.escape(name)}"><h2>{html.escape(title)}</h2>{body}</section>'


def _rendered(lines: Iterable[str]) -> str:
    """Return Markdown as HTML, tables in a frame that scrolls; HTML and links in it stay text."""
    text = str(
        MarkdownIt("commonmark", {"html": False})
        .enable("table")
        .disable(["link", "image", "autolink"])
        .render("\n".join(lines))
    )
    return text.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def _colours() -> str:
    """Return the colours of the styles as variables, for the legends: on a light page, and on a dark one."""
    styles = {name: style.colour for name, style in STYLES.items()}
    light = "".join(f"--{name}: {colour};" for name, colour in styles.items())
    dark = "".join(f"--{name}: {ON_DARK[colour]};" for name, colour in styles.items())
    return f"\n:root {{ {light} }}\n:root.dark {{ {dark} }}\n"


def _legend(panels: Sequence[Panel]) -> str:
    """Return the labels of the layers, each once, with their signs."""
    found: dict[str, str] = {}
    for panel in panels:
        for layer in panel.layers:
            if not isinstance(layer, (Strip, Contours)) and layer.label:
                found.setdefault(layer.label, _sign(layer))
    items = "".join(f"<li>{sign}{html.escape(label)}</li>" for label, sign in found.items())
    return f'<ul class="legend">{items}</ul>' if items else ""


def _sign(layer: Labelled) -> str:
    """Return a small picture of what a layer looks like: a marker, a piece of a line, or an area."""
    style, colour = STYLES[layer.style], f"var(--{layer.style})"
    drawn = ""
    if isinstance(layer, (Line, Lines, Rule)):
        drawn = f'<path d="M0 7h22" stroke="{colour}" stroke-width="2" {DASHES[style.dash]}/>'
    if isinstance(layer, (Band, Bars, Spans)):
        drawn = f'<path d="M3 3h16v8h-16z" fill="{colour}" opacity="{0.35 if isinstance(layer, Band) else 0.8}"/>'
    if isinstance(layer, Points) or (isinstance(layer, Lines) and layer.dots):
        line = f'fill="none" stroke="{colour}" stroke-width="2"'
        drawn += MARKS[style.marker].format(fill=f'fill="{colour}"', line=line)
    return f'<svg width="22" height="14" viewBox="0 0 22 14" aria-hidden="true">{drawn}</svg>'
