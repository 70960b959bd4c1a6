"""How often test scores were looked at: only what is new counts, and nothing that happens to the count is a fault."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.looks import LookAtTests as Look
from hpo_cluster.record.looks import count_look, looks_in_words, read_looks

TESTS = ("test", "other")


def record(*metrics: str) -> Any:
    """A record with a trial for each of these metrics."""
    return SimpleNamespace(rows=[SimpleNamespace(metrics={name: 0.5}) for name in metrics])


def seen(layout: CampaignLayout) -> list[int]:
    return [look.evaluations for look in read_looks(layout)]


def test_a_look_counts_if_there_is_something_new(tmp_path: Path) -> None:
    layout = CampaignLayout(tmp_path)
    assert count_look(layout, record("val/acc", "tests/acc"), TESTS) == []
    assert not layout.test_looks.exists(), "no test score is shown"
    for metrics, expected in (
        (["test/acc"], [1]),
        (["test/acc"], [1]),
        (["test/acc", "val/acc"], [1]),
        (["test/acc", "other/acc,strict", "val/acc"], [1, 2]),
        (["test/acc"], [1, 2]),
        (["test/acc"] * 5, [1, 2, 5]),
    ):
        assert [look.evaluations for look in count_look(layout, record(*metrics), TESTS)] == expected
    assert len(layout.test_looks.read_text().splitlines()) == 3
    assert count_look(layout, record("test/acc"), ()) == read_looks(layout), "without test tasks nothing is new"


def test_views_at_once_count_once(tmp_path: Path) -> None:
    layout = CampaignLayout(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda count: count_look(layout, record(*["test/acc"] * (count // 8 + 1)), TESTS), range(64)))
    assert seen(layout)[-1] == 8
    assert seen(layout) == sorted(set(seen(layout)))
    assert all(json.loads(line) for line in layout.test_looks.read_text().splitlines()), "each line is whole"


def test_what_is_in_the_way_is_no_fault(tmp_path: Path) -> None:
    assert count_look(CampaignLayout(tmp_path / "gone"), record("test/acc"), TESTS) == []
    layout = CampaignLayout(tmp_path)
    layout.test_looks.mkdir()
    assert count_look(layout, record("test/acc"), TESTS) == []
    layout.test_looks.rmdir()
    layout.test_looks.write_bytes(
        b'\xff\n[]\n{"at": "then"}\n{"at": "then", "evaluations": "x"}\n{"at": "then", "evalua'
    )
    assert read_looks(layout) == []


@pytest.mark.parametrize(
    ("evaluations", "words"),
    [
        ([], ""),
        ([1], "test scores looked at once, after 1 evaluation: choose"),
        ([7], "test scores looked at once, after 7 evaluations: choose"),
        ([3, 7, 12], "test scores looked at 3 times, after 3 to 12 evaluations: choose"),
    ],
)
def test_in_words(evaluations: list[int], words: str) -> None:
    said = looks_in_words([Look("then", count) for count in evaluations])
    assert said.startswith(words)
    assert bool(said) == bool(evaluations)
