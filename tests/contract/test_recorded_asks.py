"""Optimizers propose what they have always proposed: a campaign that goes on with a new version goes on as it began."""

from __future__ import annotations

import json

import pytest
from support.recorded_asks import NAMES, OPTIMIZERS, RECORDED, asked
from support.spaces import SPACES

CASES = json.loads(RECORDED.read_text())


def test_every_case_is_recorded() -> None:
    assert set(CASES) == {f"{optimizer} {name}" for optimizer in OPTIMIZERS for name in NAMES}
    assert all(len(case["alone"]) == 8 and len(case["crowd"]) >= 12 for case in CASES.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_proposals_are_as_recorded(optimizer: str, name: str) -> None:
    assert asked(optimizer, SPACES[name]) == CASES[f"{optimizer} {name}"]
