"""Every optimizer has a page in ``docs/algorithms/``: its settings, a picture, and an example that runs as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from hpo_cluster.optimizers.registry import OPTIMIZERS

PAGES = Path(__file__).resolve().parents[2] / "docs" / "algorithms"

#: Settings of a page that are those of another page's table.
ELSEWHERE = {"bamsoo": "soo"}
#: Where the page has more than one optimizer.
PAGE_OF = {
    **dict.fromkeys(["random", "lhs", "sobol", "grid"], "designs"),
    **dict.fromkeys(["optuna", "nevergrad", "nomad"], "other_libraries"),
    "direct_l": "direct",
}


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_setting_is_on_the_page(optimizer: str) -> None:
    name = PAGE_OF.get(optimizer, optimizer)
    text = page(name)
    assert all(heading in text for heading in ("## Example", "## When to use it"))
    settings = page(ELSEWHERE[name]) + text if name in ELSEWHERE else text
    assert [field for field in OPTIMIZERS[optimizer].settings.model_fields if f"`{field}`" not in settings] == []


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_the_example_runs_and_the_picture_is_there(path: Path) -> None:
    mpl.use("Agg")
    (program,) = re.findall(r"^```python\n(.*?)^```$", path.read_text(), flags=re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(program, str(path), "exec"), names)
    history = names["result"].history if "result" in names else names["history"]
    assert history.target.max() > -25.0  # of random points one in five
    pictures = re.findall(r"\]\((\.\./images/\w+\.png)\)", path.read_text())
    assert pictures
    assert all((path.parent / picture).exists() for picture in pictures)
