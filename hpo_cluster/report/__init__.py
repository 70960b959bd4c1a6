"""The report of a campaign: pages and figures, derived from the journal, which can be written again at any time."""

from __future__ import annotations

import os
import shlex
from contextlib import AbstractContextManager
from pathlib import Path

from hpo_cluster.record.files import replace_bytes, replace_text
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.looks import count_look
from hpo_cluster.record.writable import writing
from hpo_cluster.report.data import read_campaign
from hpo_cluster.text import Progress, command_line, untold

__all__ = ["read_campaign", "write_page", "write_report"]


def write_page(campaign_dir: str | os.PathLike[str]) -> Path:
    """Write ``report/report.html``, the interactive page, and return its path.

    Raises:
        JournalError: if the folder does not hold a campaign.
        ConfigError: if nothing can be written in it.
    """
    from hpo_cluster.report.figures import figures_of
    from hpo_cluster.report.html import html_page

    campaign = read_campaign(Path(campaign_dir))
    count_look(campaign.layout, campaign.record, campaign.tests)
    page = campaign.layout.report_dir / "report.html"
    with _writing_into(campaign.layout):
        replace_text(page, html_page(campaign, figures_of(campaign)))
    return page


def write_report(campaign_dir: str | os.PathLike[str], progress: Progress = untold) -> list[Path]:
    """Write ``report/report.html``, and for papers ``report.md`` and each figure as PNG and PDF.

    Args:
        campaign_dir: the campaign's folder.
        progress: is told of each figure that was computed, and of each that was drawn as a file.

    Returns:
        The files written: the pages, then the figures. Figures for which there is no data yet are left out.

    Raises:
        JournalError: if the folder does not hold a campaign.
        ConfigError: if nothing can be written in it.
    """
    from hpo_cluster.report.figures import FIGURES, figures_of
    from hpo_cluster.report.figures.still import draw
    from hpo_cluster.report.html import html_page
    from hpo_cluster.report.page import render_page

    campaign = read_campaign(Path(campaign_dir))
    count_look(campaign.layout, campaign.record, campaign.tests)
    directory = campaign.layout.report_dir
    paths = [directory / "report.html", directory / "report.md"]
    with _writing_into(campaign.layout):
        figures = figures_of(campaign, progress)
        progress("page", 0, 1)
        replace_text(paths[0], html_page(campaign, figures))
        replace_text(paths[1], render_page(campaign, figures))
        progress("page", 1, 1)
        for number, stem in enumerate(FIGURES):
            progress("pictures", number, len(FIGURES))
            mine = [directory / f"{stem}.png", directory / f"{stem}.pdf"]
            if stem in figures:
                for path, picture in zip(mine, draw(figures[stem], campaign.title), strict=True):
                    replace_bytes(path, picture)
                paths += mine
            else:
                for path in mine:
                    path.unlink(missing_ok=True)  # of an earlier report: it no longer holds
    return paths


def _writing_into(layout: CampaignLayout) -> AbstractContextManager[None]:
    """Return the context in which a report is written; it checks that this is possible."""
    copy = layout.dir.with_name(f"{layout.dir.name}-copy").name
    by_copy = f"cp -r {shlex.quote(str(layout.dir))} {shlex.quote(copy)} && {command_line('report', copy)}"
    return writing(str(layout.report_dir), layout.report_dir, f"If that cannot be changed, report a copy:  {by_copy}")
