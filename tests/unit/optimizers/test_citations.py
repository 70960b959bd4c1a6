"""What is cited for the optimizers: an entry for each key, and an answer for each optimizer."""

from __future__ import annotations

import re

import pytest

from hpo_cluster.optimizers.bayesian.bo import WEIGHTED
from hpo_cluster.optimizers.citations import BY_SETTING, CITATIONS, ENTRIES, MOST_BY_VOLUME, citations_of
from hpo_cluster.optimizers.registry import OPTIMIZERS
from hpo_cluster.report.bibliography import OWN

FIELDS = {"@article": {"journal"}, "@inproceedings": {"booktitle"}, "@misc": set(), "@unpublished": {"note"}}


def test_every_optimizer_of_the_registry_has_a_row() -> None:
    assert set(CITATIONS) == set(OPTIMIZERS)
    named = {key for keys in (*CITATIONS.values(), *BY_SETTING.values()) for key in keys} | {
        "hvarfner2022pibo",
        "daulton2021nehvi",
    }
    assert named == set(ENTRIES)


def test_rows_by_setting_name_settings_that_exist() -> None:
    for name, setting, value in BY_SETTING:
        made = OPTIMIZERS[name].settings(**{setting: value})
        assert getattr(made, setting) == value


@pytest.mark.parametrize("key", [*ENTRIES, *OWN])
def test_an_entry_is_well_formed(key: str) -> None:
    entry = {**ENTRIES, **OWN}[key]
    assert entry.startswith(("@article{", "@inproceedings{", "@misc{", "@unpublished{"))
    kind = entry.partition("{")[0]
    assert entry.split(",")[0] == f"{kind}{{{key}"
    depth = 0
    for character in re.sub(r"\\[{}]", "", entry):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    fields = set(re.findall(r"^  (\w+) *= ", entry, re.MULTILINE))
    assert fields >= {"author", "title", "year", *FIELDS[kind]}
    assert re.search(r"year += \{(19|20)\d\d\}", entry)
    assert entry.isascii()


def test_what_several_objectives_cite_changes_where_bo_does() -> None:
    assert MOST_BY_VOLUME == WEIGHTED


def test_settings_and_priors_add_what_they_use() -> None:
    assert citations_of({"name": "bo", "acquisition": "qlognei"})[-1] == "ament2023logei"
    assert citations_of({"name": "bo", "acquisition": "qlognei"}, objectives=4)[-1] == "daulton2021nehvi"
    assert citations_of({"name": "bo", "acquisition": "qlognei"}, objectives=5)[-1] == "knowles2006parego"
    assert "ament2023logei" not in citations_of({"name": "bo", "acquisition": "thompson"})
    assert citations_of({"name": "bo"}, has_prior=True)[-1] == "hvarfner2022pibo"
    assert citations_of({"name": "soo"}, has_prior=True) == ["munos2011soo"]
    assert citations_of({"name": "unknown"}) == []
