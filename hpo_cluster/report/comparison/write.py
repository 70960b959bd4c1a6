"""Write a comparison into a folder: page, tables and figures, all of which can be written again at any time."""

from __future__ import annotations

from pathlib import Path

from hpo_cluster.record.files import replace_bytes, replace_text
from hpo_cluster.report.comparison import Comparison
from hpo_cluster.report.comparison.figures import as_files, band_in_words, draw, titles
from hpo_cluster.report.comparison.runs import COSTS
from hpo_cluster.report.comparison.table import campaigns_csv, latex_table, page, pairs_csv, table_csv
from hpo_cluster.report.figures.still import plain_text
from hpo_cluster.text import Progress, in_markdown, untold

#: The page, by which a folder is known as that of a comparison.
PAGE = "comparison.md"
#: Figures that a comparison may have; those of an earlier comparison that do not apply are removed.
STEMS = (*(f"{what}_by_{cost}" for what in ("best", "hypervolume") for cost in COSTS), "fronts", "critical_difference")


def write_comparison(comparison: Comparison, folder: Path, progress: Progress = untold) -> list[Path]:
    """Write a comparison into a folder; `progress` is told of each figure.

    Returns:
        The files, the page first.
    """
    tables = {"table.csv": table_csv(comparison), "table.tex": latex_table(comparison)}
    tables["campaigns.csv"] = campaigns_csv(comparison)
    if comparison.pairs:
        tables["pairs.csv"] = pairs_csv(comparison)
    else:
        (folder / "pairs.csv").unlink(missing_ok=True)
    for name, text in tables.items():
        replace_text(folder / name, text)
    shown, pictures = titles(comparison), []
    for number, stem in enumerate(STEMS):
        progress("figures", number, len(STEMS))
        with plain_text():
            figure = draw(comparison, stem) if stem in shown else None
            files = {} if figure is None else as_files(figure)
        for ending in ("png", "pdf"):
            path = folder / f"{stem}.{ending}"
            if ending in files:
                replace_bytes(path, files[ending])
                pictures.append(path)
            else:
                path.unlink(missing_ok=True)
    drawn = [(shown[path.stem], path.name) for path in pictures if path.suffix == ".png"]
    text = page(comparison, drawn, [*tables, "each figure as PDF"] if drawn else tables)
    if drawn:
        text += f"\n{in_markdown(band_in_words(comparison))}\n"
    replace_text(folder / PAGE, text)
    return [folder / PAGE, *(folder / name for name in tables), *pictures]
