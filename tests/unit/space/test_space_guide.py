"""What ``docs/howto/describe_a_space.md`` shows works as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from hpo_cluster.space import Space

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "howto" / "describe_a_space.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), flags=re.M | re.S)


def space_of(text: str) -> Space:
    data = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(data, dict)
    return Space.from_json({str(name): entry for name, entry in data.items()})


@pytest.fixture(scope="module")
def spaces() -> list[Space]:
    return [space_of(text) for text in blocks("yaml")]


def test_every_space_can_be_searched(spaces: list[Space]) -> None:
    assert len(spaces) == 4
    for space in spaces:
        points = np.random.default_rng(0).random((50, space.dim))
        assert space.allowed(points).any()
        assert Space.from_json(space.to_json()) == space


def test_they_show_what_they_say(spaces: list[Space]) -> None:
    plain, conditional, constrained, known = spaces
    shown = plain.decode([0.5] * plain.dim)
    assert [type(value) for value in shown.values()] == [float, float, int, int, float, int, str, bool, str]
    assert (shown["batch_size"], shown["label_smoothing"], shown["train_optimizer"]) == (40, 0.15, "adamw")
    assert plain.dim == 8
    assert conditional.decode([0.1, 0.5, 0.1, 0.5, 0.5]) == {"schedule": "constant", "use_adapter": False}
    at = {"rank": 8, "alpha": 16, "query": True, "key": False, "schedule": "linear", "warmup": 0.5}
    assert constrained.allows(at)
    assert not constrained.allows({**at, "alpha": 17})
    assert len(constrained.constraints) == 4
    assert known.start[0] == {"learning_rate": 2e-4, "schedule": "cosine", "dropout": 0.05}
    assert known.start[1] == {"learning_rate": 1e-3, "schedule": "cosine", "dropout": 0.25}


def test_the_program_runs() -> None:
    (program,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(program, str(GUIDE), "exec"), names)
    result = names["result"]
    assert result.history.loc[0, "rate"] == 1e-3
    assert len(result.history) == 20
    assert result.history["momentum"].isna().any()
    assert result.history["momentum"].notna().any()
