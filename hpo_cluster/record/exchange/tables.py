"""Write the history of a campaign as a table that other programs read."""

from __future__ import annotations

import io
from pathlib import Path

from hpo_cluster.record.files import replace_bytes
from hpo_cluster.record.history import load_history, write_history


def write_table(campaign_dir: Path, path: Path) -> int:
    """Write the history as CSV or, if the name ends with ``.parquet``, as Parquet; return the number of trials."""
    history = load_history(campaign_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".parquet":
        write_history(history, path)
        return len(history)
    for name in [column for column in history.columns if history[column].dtype.kind == "O"]:
        kinds = {type(cell) for cell in history[name].dropna()}
        if len(kinds) > 1 and not kinds <= {int, float}:  # a column of a Parquet file has one type
            history[name] = [None if cell is None else str(cell) for cell in history[name]]
    buffer = io.BytesIO()
    history.to_parquet(buffer, index=False)
    replace_bytes(path, buffer.getvalue())
    return len(history)
