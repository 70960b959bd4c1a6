"""The scores of single items: how they are kept, and how two configurations are compared on them."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from hpo_cluster.record.item_pairs import on_items, sentences_on_items, sign_test
from hpo_cluster.record.items import Items, TaskItems, read_items, write_items
from hpo_cluster.record.layout import AttemptLayout


def of_one_task(scores: list[float], digest: str = "d", task: str = "val") -> Items:
    return Items({task: TaskItems(digest, {"acc": scores})}, {}, f"{task}/acc")


def kept(folder: Path, items: Items) -> Items | None:
    write_items(AttemptLayout(folder), items, "token")
    return read_items(AttemptLayout(folder), "token")


@pytest.mark.parametrize("count", [1, 7, 8, 9, 640])
def test_correct_or_not_takes_one_bit(tmp_path: Path, count: int) -> None:
    scores = np.random.default_rng(count).integers(0, 2, count)
    assert kept(tmp_path, of_one_task(scores.astype(float).tolist())) == of_one_task(scores.tolist())
    packed = json.loads((tmp_path / "items.json").read_text())["tasks"]["val"]["scores"]["acc"]
    assert base64.b64decode(packed) == np.packbits(scores).tobytes(), "as the module says"


def test_14_000_items_of_57_tasks_take_some_kilobytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tasks = {
        f"mmlu_task_with_a_long_name_{number}": TaskItems("0123456789abcdef", {"acc": rng.integers(0, 2, 246).tolist()})
        for number in range(57)
    }
    items = Items(tasks, {"mmlu": list(tasks)}, "mmlu/acc")
    assert kept(tmp_path, items) == items
    assert (tmp_path / "items.json").stat().st_size < 12_000
    joined = [score for name, (_, scores) in items.of("mmlu/acc").items() for score in scores]
    assert len(joined) == 57 * 246


def test_other_scores_are_kept_as_numbers(tmp_path: Path) -> None:
    items = kept(tmp_path, of_one_task([0.25, 1 / 3, 1.0, 1e-12]))
    assert items is not None
    assert items.tasks["val"].scores["acc"] == [0.25, 0.333333, 1.0, 1e-12]
    assert items.means["val/acc"] == pytest.approx(np.mean([0.25, 1 / 3, 1.0, 0]), rel=1e-6)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_items(AttemptLayout(tmp_path), of_one_task([math.nan]), "token")
    assert read_items(AttemptLayout(tmp_path), "token") == items, "whole or not at all"
    assert [path.name for path in tmp_path.iterdir()] == ["items.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.update(token="another"),
        lambda document: document.update(schema=2),
        lambda document: document.pop("groups"),
        lambda document: document.update(tasks=[]),
        lambda document: document["tasks"]["val"].update(items=1000),
        lambda document: document["tasks"]["val"]["scores"].update(acc="?"),
        lambda document: document["tasks"]["val"]["scores"].update(acc=[1, None]),
        lambda document: document["tasks"]["val"]["scores"].update(acc=[1, float("inf")]),
    ],
)
def test_what_cannot_be_read_is_not_there(tmp_path: Path, damage: object) -> None:
    assert kept(tmp_path, of_one_task([1, 0])) is not None
    path = tmp_path / "items.json"
    document = json.loads(path.read_text())
    damage(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
    assert read_items(AttemptLayout(tmp_path), "token") is None
    path.write_text(path.read_text()[:20])
    assert read_items(AttemptLayout(tmp_path), "token") is None
    path.unlink()
    assert read_items(AttemptLayout(tmp_path), "token") is None


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 3), (41, 22), (22, 41), (0, 30), (900, 1001)])
def test_the_p_value_is_exact(better: int, worse: int) -> None:
    theirs = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert sign_test(better, worse) == pytest.approx(theirs, rel=1e-9)


def test_items_cancel_what_is_hard_for_both() -> None:
    """The difference is far clearer than that of two means whose errors are taken as independent."""
    rng = np.random.default_rng(1)
    hard = rng.random(2000) < 0.5
    theirs = np.where(hard, 0.0, 1.0)
    mine = np.where(rng.random(2000) < 0.02, 1.0, theirs)
    found = on_items([(of_one_task(mine.tolist()), of_one_task(theirs.tolist()))], maximize=True)
    assert found is not None
    differences = mine - theirs
    assert found["difference"] == pytest.approx(differences.mean())
    assert found["sem"] == pytest.approx(differences.std(ddof=1) / math.sqrt(2000))
    assert (found["better"], found["worse"]) == (int((differences > 0).sum()), 0)
    apart = math.hypot(mine.std() / math.sqrt(2000), theirs.std() / math.sqrt(2000))
    assert found["sem"] < apart / 4
    assert found["p"] < 1e-3 < 2 * (1 - 0.5 * (1 + math.erf(found["difference"] / apart / math.sqrt(2))))


def test_each_item_counts_once_with_several_seeds() -> None:
    pairs = [
        (of_one_task([1, 1, 0, 1]), of_one_task([0, 0, 1, 1])),
        (of_one_task([1, 0, 0, 1]), of_one_task([0, 1, 0, 1])),
    ]
    found = on_items(pairs, maximize=True)
    assert found is not None
    assert (found["items"], found["pairs"], found["better"], found["worse"]) == (4, 2, 1, 1)
    assert found["difference"] == pytest.approx(np.mean([1, 0, -0.5, 0]))
    assert found["sem"] == pytest.approx(np.std([1, 0, -0.5, 0], ddof=1) / 2)
    turned = on_items(pairs, maximize=False)
    assert turned is not None
    assert turned["difference"] == -found["difference"]
    apart = [(0.1, 0.4), (0.2, 0.0), (0.1, 0.0)]  # the sum of these differences is not 0 for a computer
    crossed = [(of_one_task([mine]), of_one_task([theirs])) for mine, theirs in apart]
    level = on_items(crossed, maximize=True)
    assert level is not None
    assert (level["better"], level["worse"], level["sem"], level["p"]) == (0, 0, None, 1.0), "rounding is no lead"


def test_only_the_same_items_are_compared() -> None:
    other = on_items([(of_one_task([1, 0]), of_one_task([1, 0], digest="e"))], maximize=True)
    assert other == {"metric": "val/acc", "differ": ["val"]}
    both = of_one_task([1, 0])
    assert on_items([(both, both), (of_one_task([1, 0], "e"), of_one_task([1, 0], "e"))], maximize=True) == other
    assert on_items([], maximize=True) is None
    assert on_items([(Items(both.tasks), Items(both.tasks))], maximize=True) is None, "a loss is optimised"
    assert on_items([(both, Items({}))], maximize=True) is None


def test_a_group_is_compared_on_the_items_of_all_its_tasks() -> None:
    def group(first: list[float], second: list[float], digest: str = "d") -> Items:
        tasks = {"one": TaskItems("d", {"acc": first}), "two": TaskItems(digest, {"acc": second})}
        return Items(tasks, {"both": ["two", "one"]}, "both/acc")

    found = on_items([(group([1, 1], [1]), group([0, 1], [0]))], maximize=True)
    assert found is not None
    assert (found["items"], found["better"], found["worse"]) == (3, 2, 0)
    other = on_items([(group([1, 1], [1]), group([0, 1], [0], "e"))], maximize=True)
    assert other == {"metric": "both/acc", "differ": ["two"]}


def test_in_words() -> None:
    seen = {"metric": "val/acc", "items": 640, "pairs": 3, "better": 41, "worse": 22, "difference": 0.0297}
    first = {"trial": 3, "items": None}
    rows = [
        first,
        {"trial": 7, "items": {**seen, "sem": 0.0121, "p": sign_test(41, 22)}},
        {"trial": 8, "items": {**seen, "pairs": 1, "better": 30, "worse": 25, "sem": 0.01, "p": sign_test(30, 25)}},
        {"trial": 9, "items": {"metric": "val/acc", "differ": ["val"]}},
        {"trial": 10, "items": None},
    ]
    assert sentences_on_items({"trials": rows}) == [
        "t0003 against t0007: better on 41 of 640 items, worse on 22, in the mean of 3 seeds; by 0.0297 ± 0.012; "
        "p = 0.023",
        "t0003 against t0008: better on 30 of 640 items, worse on 25, with 1 seed; by 0.0297 ± 0.01; p = 0.59, "
        "within the noise",
        "t0003 against t0009: not compared on items, since those of val are not the same",
    ]
    assert sentences_on_items({"trials": [first, {"trial": 7}]}) == [], "without items nothing is said"
