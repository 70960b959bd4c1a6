"""The scores of single items of a fine-tuning: what lm-eval computed, and what a confirmation is compared on."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import pytest
from lora_bench import BUNDLE, PROGRAM, objective, run_attempt, write_attempt, write_data

from hpo_cluster import load_history, load_items
from hpo_cluster.cli.main import main
from hpo_cluster.errors import JournalError
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.record.items import Items, read_items
from hpo_cluster.record.layout import AttemptLayout, resources_dir
from hpo_cluster.record.status import campaign_status

#: Documents of each task that are scored in these tests.
LIMIT = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("items") / "data")


def kept(folder: Path) -> Items:
    items = read_items(AttemptLayout(folder), "k")
    assert items is not None
    return items


def of(data: Path, tasks: Path | None = None, **changes: Any) -> LoraObjective:
    settings = objective(data, limit=LIMIT, max_steps=2, validation_batches=0).model_dump()
    settings["tasks"] = {**settings["tasks"], **changes}
    if tasks is not None:
        settings["tasks"]["include_path"] = str(tasks)
    return LoraObjective.model_validate(settings)


def tasks_of(folder: Path, **files: str) -> Path:
    """The bundled tasks and others, in a folder of their own."""
    folder.mkdir()
    for path in (BUNDLE / "tasks").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("evaluation", ["in_memory", "litgpt_cli"])
def test_the_scores_are_those_that_lm_eval_logs(
    evaluation: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, Any] = {}
    evaluate = lm_eval.evaluator.evaluate

    def logging(*arguments: Any, **options: Any) -> Any:
        results = evaluate(*arguments, **{**options, "log_samples": True})
        logged.update(results["samples"])
        return results

    monkeypatch.setattr(lm_eval.evaluator, "evaluate", logging)
    what = LoraObjective.model_validate({**of(data).model_dump(), "evaluation": evaluation})
    result = run_attempt(tmp_path / "a0", what, token="k")
    items = kept(tmp_path / "a0")
    assert items.optimised == "village_val/acc"
    assert set(items.tasks) == {"village_val", "village_test"}
    for name, task in items.tasks.items():
        samples = sorted(logged[name], key=lambda sample: sample["doc_id"])
        assert [sample["acc"] for sample in samples] == list(task.scores["acc"])
        assert set(task.scores) == {"acc"}, "the metric that is optimised"
        assert len(samples) == LIMIT
    assert items.means == {name: result["metrics"][name] for name in ("village_val/acc", "village_test/acc")}
    assert (tmp_path / "a0" / "items.json").stat().st_size < 500


def test_another_order_is_another_digest(data: Path, tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path / "tasks")
    rows = (tasks / "village_val.jsonl").read_text().splitlines(keepends=True)
    (tasks / "village_val.jsonl").write_text("".join([rows[1], rows[0], *rows[2:]]))
    run_attempt(tmp_path / "a0", of(data), token="k", baseline=True)
    run_attempt(tmp_path / "a1", of(data, tasks), token="k", baseline=True)
    first, second = kept(tmp_path / "a0").tasks, kept(tmp_path / "a1").tasks
    assert first["village_val"].digest != second["village_val"].digest
    assert first["village_test"] == second["village_test"]
    assert sorted(first["village_val"].scores["acc"]) == sorted(second["village_val"].scores["acc"])


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_is_kept_if_its_metric_is_the_mean_over_its_items(by_size: bool, data: Path, tmp_path: Path) -> None:
    few = (BUNDLE / "tasks" / "village_val.yaml").read_text().replace("village_val", "few")
    weighted = f"aggregate_metric_list: [{{metric: acc, aggregation: mean, weight_by_size: {str(by_size).lower()}}}]\n"
    group = f"group: other\ntask: [village_val, few]\n{weighted}"
    tasks = tasks_of(tmp_path / "tasks", few=few, other=group)
    rows = (tasks / "village_val.jsonl").read_text().splitlines(keepends=True)
    (tasks / "few.jsonl").write_text("".join(rows[100:107]))
    result = run_attempt(tmp_path / "a0", of(data, tasks, validation="other"), token="k")
    items = kept(tmp_path / "a0")
    assert "other/acc" in result["metrics"]
    scores = [score for _, part in items.of("other/acc").values() for score in part]
    if by_size:
        assert items.optimised == "other/acc"
        assert len(scores) == LIMIT + 7
        assert sum(scores) / len(scores) == pytest.approx(result["metrics"]["other/acc"])
    else:
        assert items.optimised is None
        assert scores == []
        assert set(items.tasks) == {"village_val", "few", "village_test"}


def test_a_loss_has_no_items(data: Path, tmp_path: Path) -> None:
    settings = of(data).model_dump()
    settings["tasks"]["metric"] = "val_loss"
    settings["train"]["validation_batches"] = 1
    what = LoraObjective.model_validate({**settings, "direction": "minimize"})
    assert "metrics" in run_attempt(tmp_path / "a0", what, token="k")
    assert not (tmp_path / "a0" / "items.json").exists()


def test_an_evaluation_does_not_need_its_items(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a0").mkdir()
    (tmp_path / "a0" / "items.json").mkdir()  # in the way
    params = {"schema": 1, "parameters": {}, "seed": 1, "token": "k"}
    write_attempt(tmp_path / "other", of(data), **params)
    (tmp_path / "a0" / "params.json").write_text((tmp_path / "other" / "params.json").read_text())
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path / "a0")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the scores of single items are not kept: IsADirectoryError" in done.stderr
    assert (tmp_path / "a0" / "result.json").exists()
    assert not list((tmp_path / "a0").glob(".items*"))


def test_attempts_side_by_side_keep_their_own(data: Path, tmp_path: Path) -> None:
    folders = [tmp_path / f"a{number}" for number in range(2)]
    for number, folder in enumerate(folders):
        write_attempt(folder, of(data), seed=number, token="k")
    program = resources_dir() / "jobs" / "side_by_side.py"
    subprocess.run([sys.executable, str(program), str(PROGRAM), *map(str, folders)], check=True, timeout=300)
    for folder in folders:
        metrics = json.loads((folder / "result.json").read_text())["metrics"]
        assert kept(folder).means == {name: metrics[name] for name in ("village_val/acc", "village_test/acc")}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small campaign on the bundled model whose best two configurations are confirmed."""
    folder = tmp_path_factory.mktemp("campaign")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quick = [
            "optimizer=random",
            "train.max_steps=20",
            "tasks.limit=60",
            "poll_s=0.1",
            "workers=1",
            "launcher.trials_per_job=4",
        ]
        with contextlib.redirect_stdout(io.StringIO()) as first:
            assert main(["run", *quick, "campaign=c", "budget=2"]) == 0
        assert "\n           test scores looked at once, after 2 evaluations" in first.getvalue()
        with contextlib.redirect_stdout(io.StringIO()) as second:
            assert main(["confirm", "campaigns/c", "top=2", "replicates=2"]) == 0
        assert "test scores looked at 2 times, after 2 to 6 evaluations" in second.getvalue()
        assert "of 60 items, worse on" in second.getvalue()
    return folder / "campaigns" / "c"


def test_a_confirmation_is_compared_on_its_items(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best, other = campaign_status(campaign)["confirmation"]["trials"]
    assert best["items"] is None
    found = other["items"]
    assert (found["items"], found["pairs"], found["metric"]) == (60, 2, "village_val/acc")
    assert found["difference"] == pytest.approx(best["mean"] - other["mean"])
    assert found["difference"] == pytest.approx(other["behind"]["mean"])
    assert main(["status", str(campaign)]) == 0
    sentence = f"better on {found['better']} of 60 items, worse on {found['worse']}, in the mean of 2 seeds"
    assert sentence in capsys.readouterr().out
    assert main(["report", str(campaign)]) == 0
    for name in ("report.md", "report.html"):
        assert sentence in (campaign / "report" / name).read_text()
    assert main(["verify", str(campaign)]) == 0
    capsys.readouterr()
    assert main(["describe", str(campaign)]) == 0
    assert f"Item by item, t000{best['trial']} against t000{other['trial']}: {sentence}" in capsys.readouterr().out


def test_items_as_a_table(campaign: Path) -> None:
    history = load_history(campaign).set_index("trial")
    for trial in (0, -2):
        table = load_items(campaign, trial)
        assert list(table.columns) == ["task", "item", "acc"]
        means = table.groupby("task")["acc"].mean()
        for task in ("village_val", "village_test"):
            assert means[task] == pytest.approx(history.loc[trial, f"metric.{task}/acc"])
    with pytest.raises(JournalError, match="has no trial 17"):
        load_items(campaign, 17)


def items_file(campaign: Path, trial: str) -> Path:
    return campaign / "trials" / trial / "a0" / "items.json"


def test_other_items_and_missing_ones_are_not_compared(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [items_file(campaign, f"c000{number}") for number in (1, 2, 3, 4)]
    before = [path.read_text() for path in paths]
    try:
        paths[3].unlink()
        assert main(["verify", str(campaign)]) == 0, "a campaign may be handed on without it"
        assert "with 1 seed" in (capsys.readouterr(), main(["status", str(campaign)]), capsys.readouterr())[2].out
        document = json.loads(before[1])
        document["tasks"]["village_val"]["digest"] = "other"
        paths[1].write_text(json.dumps(document))
        assert main(["status", str(campaign)]) == 0
        assert "not compared on items, since those of village_val are not the same" in capsys.readouterr().out
        for path in paths:
            path.unlink(missing_ok=True)
        assert main(["status", str(campaign)]) == 0
        out = capsys.readouterr().out
        assert "confirmed  4 of 4" in out
        assert "items" not in out, "as a campaign of an earlier version"
    finally:
        for path, text in zip(paths, before, strict=True):
            path.write_text(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.update(token="x"), "cannot be read, or was written by another attempt"),
        (
            lambda document: document["tasks"]["village_val"]["scores"].update(acc=[1.0] * 60),
            "has other means over its items",
        ),
    ],
)
def test_verify_compares_items_with_metrics(
    change: Any, said: str, campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = items_file(campaign, "t0000")
    before = path.read_text()
    document = json.loads(before)
    change(document)
    path.write_text(json.dumps(document))
    assert main(["verify", str(campaign)]) == 1
    path.write_text(before)
    assert said in capsys.readouterr().out
