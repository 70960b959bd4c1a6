"""The table of evaluations: what is in it, and how it is read.

``load()`` returns it as a frame with one row for each fine-tuning. Columns:

| column | meaning |
|---|---|
| `origin`, `trial` | which configuration: of the design (``sobol``) or of the campaign of an optimizer, by number |
| `seed` | of the adapter's first weights and the dropout masks |
| `share` | part of the steps after which the training and its schedule end: ``1``, ``1/3`` or ``1/9`` |
| the space's parameters | the configuration; NaN where a parameter is not active |
| `error` | ``diverged`` if a loss was not finite; empty otherwise |
| `steps` `planned_steps` `schedule_steps` | optimizer steps done, in the plan and in the schedule |
| `examples` `tokens` `trainable_parameters` | of the training |
| `load_s` `train_s` `score_s` `total_s` | CPU seconds of one thread; the total without the looks before the end |
| `val_acc` `val_acc_norm` `test_acc` `test_acc_norm` `val_loss` | at the end; NaN if it diverged |
| `train_loss` | loss of the last step alone |
| these with ``@1/9`` and ``@1/3`` | at a look into a whole training; NaN for the shorter ones |
| `step` `tokens` `train_s` with ``@1/9`` and ``@1/3`` | where the look was, and what had been spent on training |

Usage: ``python -m benchmarks.village.table rows.jsonl`` writes the table of the lines of `benchmarks.village.make`.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpo_cluster.space import Configuration, Space

FOLDER = Path(__file__).parent
TABLE = FOLDER / "table.csv.gz"
#: The space of the configurations, as it was when they were evaluated.
SPACE = FOLDER / "space.json"

#: Measurements of a look, and their names in the rows of `benchmarks.village.make`.
METRICS = {
    "val_acc": "village_val/acc",
    "val_acc_norm": "village_val/acc_norm",
    "test_acc": "village_test/acc",
    "test_acc_norm": "village_test/acc_norm",
    "val_loss": "val_loss",
    "train_loss": "train_loss",
    "score_s": "score_s",
}
PROGRESS = ("step", "tokens", "train_s")
#: The looks before the end.
EARLY = ("1/9", "1/3")
KEY = ["origin", "trial", "seed", "share"]
COUNTS = ("steps", "planned_steps", "schedule_steps", "examples", "tokens", "trainable_parameters")
COSTS = ("load_s", "train_s", "total_s")
#: Seed and share of the rows that stand for a configuration.
FIRST_SEED, WHOLE = 0, "1"


def read_space() -> Space:
    """Return the space of the configurations."""
    return Space.from_json(json.loads(SPACE.read_text(encoding="utf-8")))


def load(path: Path = TABLE) -> pd.DataFrame:
    """Return the table; see the top of this module for its columns."""
    frame = pd.read_csv(
        path,
        dtype={"origin": str, "share": str, "error": str, "lr_schedule": str, "precision": str, "lora_alpha_rule": str},
        keep_default_na=False,
        na_values={name: [""] for name in pd.read_csv(path, nrows=0).columns if name not in ("error", *KEY)},
        float_precision="round_trip",
    )
    assert isinstance(frame, pd.DataFrame)
    return frame


def trials(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that stand for a configuration: whole trainings with the first seed."""
    return frame[(frame["seed"] == FIRST_SEED) & (frame["share"] == WHOLE)].reset_index(drop=True)


def configurations(frame: pd.DataFrame, space: Space) -> list[Configuration]:
    """Return the configuration of each row, with the values' own types."""
    columns = {name: frame[name].tolist() for name in space.names}
    found = []
    for number in range(len(frame)):
        values = {name: column[number] for name, column in columns.items()}
        active = {name: value for name, value in values.items() if not (isinstance(value, float) and np.isnan(value))}
        found.append(space.decode(space.encode(active)) | _reals(active, space))
    return found


def _reals(configuration: Mapping[str, Any], space: Space) -> Configuration:
    """Return the real parameters as they stand in the table, without the rounding of the unit cube."""
    return {name: value for name, value in configuration.items() if space.parameters[name].cardinality is None}


def frame_of(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> pd.DataFrame:
    """Return the table of rows of `benchmarks.village.make`, in their order.

    Args:
        rows: the rows.
        names: of the space's parameters.
    """
    return pd.DataFrame([_flat(row, names) for row in rows])


def _flat(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    looks = row["looks"]
    flat = {name: row[name] for name in KEY}
    flat |= {name: row["parameters"].get(name) for name in names}
    flat["error"] = row.get("error", {}).get("kind", "")
    flat |= {name: row[name] for name in (*COUNTS, *COSTS)}
    end = looks.get(row["share"], {})
    flat |= {name: end.get(key) for name, key in METRICS.items()}
    for share in EARLY:
        look = looks.get(share, {}) if row["share"] == WHOLE else {}
        flat |= {f"{name}@{share}": look.get(name) for name in PROGRESS}
        flat |= {f"{name}@{share}": look.get(key) for name, key in METRICS.items()}
    return flat


def rows_of(frame: pd.DataFrame, space: Space) -> list[dict[str, Any]]:
    """Return the rows that a table was made of, without the words of errors, so that `make` can go on with them."""
    found = []
    for record, parameters in zip(frame.to_dict("records"), configurations(frame, space), strict=True):
        row: dict[str, Any] = {str(k): v for k, v in record.items() if k in (*KEY, *COUNTS, *COSTS)}
        looks = {share: _look(record, f"@{share}") for share in EARLY} | {row["share"]: _look(record, "")}
        row |= {"parameters": parameters, "looks": {share: look for share, look in looks.items() if look}}
        if record["error"]:
            row["error"] = {"kind": record["error"], "message": ""}
        found.append(row)
    return found


def _look(record: Mapping[Any, Any], suffix: str) -> dict[str, float]:
    progress = {name: name if suffix or name != "step" else "steps" for name in PROGRESS}
    named = {key: record[f"{name}{suffix}"] for name, key in METRICS.items()}
    if all(np.isnan(value) for value in named.values()):
        return {}
    named |= {key: record[f"{column}{suffix}"] for key, column in progress.items()}
    return {key: value for key, value in named.items() if not np.isnan(value)}


def write(frame: pd.DataFrame, path: Path = TABLE) -> None:
    """Write a table; the same table gives the same bytes."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:
        packed.write(frame.to_csv(index=False).encode())


def main(argv: Sequence[str]) -> int:
    """Write the table of some rows, and the space."""
    from benchmarks.village.evaluate import configuration
    from benchmarks.village.make import key_of, read

    space = configuration().space
    rows = {key_of(row): row for path in argv for row in read(Path(path))}
    write(frame_of(rows.values(), space.names))
    SPACE.write_text(json.dumps(space.to_json(), indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} evaluations, {TABLE.stat().st_size / 1000:.0f} kB: {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
