"""The report of a campaign: one page with figures, derived from the journal, which can be written again at any time."""

from __future__ import annotations

import os
from pathlib import Path

from hpo_cluster.record.files import replace_bytes, replace_text
from hpo_cluster.report.data import read_campaign
from hpo_cluster.report.figures import FIGURES
from hpo_cluster.report.page import render_page

__all__ = ["read_campaign", "write_report"]


def write_report(campaign_dir: str | os.PathLike[str]) -> list[Path]:
    """Write ``report/report.md`` and its figures.

    Returns:
        The files written, the page first. Figures for which there is no data yet are left out.

    Raises:
        JournalError: if the folder does not hold a campaign.
    """
    from matplotlib import rc_context

    campaign = read_campaign(Path(campaign_dir))
    directory = campaign.layout.report_dir
    directory.mkdir(exist_ok=True)
    figures: list[tuple[str, Path]] = []
    for figure in FIGURES:
        path = directory / f"{figure.stem}.png"
        with rc_context({"text.parse_math": False}):  # names and choices may hold dollar signs
            picture = figure.draw(campaign)
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            replace_bytes(path, picture)
            figures.append((figure.title(campaign), path))
    page = directory / "report.md"
    replace_text(page, render_page(campaign, [(title, path.name) for title, path in figures]))
    return [page, *(path for _, path in figures)]
