"""``jobs/lora.py`` on two ranks: the same result as on one, and an end for all of them whatever happens to one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lora_bench import (
    BUNDLE,
    PROGRAM,
    adapter,
    learned,
    load_program,
    max_difference,
    objective,
    write_attempt,
    write_data,
)
from support import two_ranks
from support.light_ranks import living

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.rung_files import publish_word

# AdamW magnifies the rounding of gradients near zero up to the learning rate, so it is a moderate one
TRAIN: dict[str, Any] = {"lora_dropout": 0.3, "lora_head": True, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("ranks") / "data")


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def run(folder: Path, what: LoraObjective, ranks: int = 2, **params: Any) -> dict[str, Any]:
    """Run an attempt under the signal handlers of a job; its result or its error."""
    write_attempt(folder, what, **params)
    evaluate = two_ranks.evaluate if ranks == 2 else load_program().evaluate
    status = worker.main(evaluate, [str(folder)])
    return read(folder / ("error.json" if status else "result.json"))


def same(two: dict[str, Any], one: dict[str, Any], folder: Path, other: Path) -> None:
    assert learned(two).keys() == learned(one).keys()
    assert learned(two) == pytest.approx(learned(one), abs=1e-5)
    assert two["sems"] == pytest.approx(one["sems"], abs=1e-9)
    for name in ("steps", "examples", "tokens", "trainable_parameters", "resumed_at"):
        assert two[name] == one[name], name
    assert max_difference(adapter(folder), adapter(other)) <= 1e-6
    items = folder / "items.json", other / "items.json"
    assert items[0].exists() == items[1].exists()
    if items[0].exists():  # not of a metric that is no mean over items
        assert read(items[0])["tasks"] == read(items[1])["tasks"]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attempt on one rank."""
    folder = tmp_path_factory.mktemp("whole") / "a0"
    assert "metrics" in run(folder, objective(data, **TRAIN), ranks=1)
    return folder


def test_two_ranks_give_the_result_of_one(whole: Path, data: Path, tmp_path: Path) -> None:
    one, two = read(whole / "result.json"), run(tmp_path / "a0", objective(data, **TRAIN))
    same(two, one, tmp_path / "a0", whole)
    for phase, names in {"train": ("tokens",), "score": ("requests",)}.items():
        for name in names:
            assert two["phases"][phase][name] == one["phases"][phase][name]
    assert set(two["seconds"]) == set(one["seconds"])
    assert read(tmp_path / "a0" / "progress.json")["phase"] == "score"
    assert len(living(os.getpid())) == 2, "they stay for the next attempt"
    before = living(os.getpid())
    same(run(tmp_path / "a1", objective(data, **TRAIN)), two, tmp_path / "a1", tmp_path / "a0")
    assert living(os.getpid()) == before


def test_two_ranks_finish_a_copy_together(data: Path, tmp_path: Path) -> None:
    rungs = {"kind": "steps", "shares": [1 / 3, 1.0], "goal": 0, "first": 0, "linger_s": 0}
    what = objective(data, **TRAIN, lr_schedule="wsd", lr_decay_share=0.4)
    for ranks in (1, 2):
        folder = write_attempt(tmp_path / f"a{ranks}", what, rungs=rungs)
        publish_word(AttemptLayout(folder), 0, go_on=True)
        assert worker.main((two_ranks if ranks == 2 else load_program()).evaluate, [str(folder)]) == 0
    one, two = tmp_path / "a1", tmp_path / "a2"
    assert learned(read(two / "rung-0.json")) == pytest.approx(learned(read(one / "rung-0.json")), abs=1e-5)
    same(read(two / "result.json"), read(one / "result.json"), two, one)


def test_two_ranks_climb_together(whole: Path, data: Path, tmp_path: Path) -> None:
    """The first one is told whether to go on, the others follow it."""
    rungs = {"kind": "steps", "shares": [1 / 3, 1.0], "goal": 0, "first": 0, "linger_s": 0}
    ended = run(tmp_path / "a0", objective(data, **TRAIN), rungs=rungs)
    assert (ended["rung"], ended["steps"]) == (0, 2)
    rung = read(tmp_path / "a0" / "rung-0.json")
    assert rung["metrics"]["village_val/acc"] == ended["metrics"]["village_val/acc"]
    more = {"rungs": {**rungs, "goal": 1}, "previous": [str(tmp_path / "a0")]}
    result = run(tmp_path / "a1", objective(data, **TRAIN), **more)
    assert (result["resumed_at"], [each["step"] for each in result["rungs"]]) == ([2], [2])
    same({**result, "resumed_at": []}, read(whole / "result.json"), tmp_path / "a1", whole)

    folder = write_attempt(tmp_path / "b0", objective(data, **TRAIN), rungs=rungs)
    publish_word(AttemptLayout(folder), 0, go_on=True)
    assert worker.main(two_ranks.evaluate, [str(folder)]) == 0
    same(read(folder / "result.json"), read(whole / "result.json"), folder, whole)


@pytest.mark.parametrize(
    "changes", [{"dropout_draws": "litgpt"}, {"global_batch_size": 1, "micro_batch_size": 1, "max_steps": 3}]
)
def test_litgpts_draws_and_steps_of_one_example(changes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    what = objective(data, limit=2, **TRAIN, **changes)
    one = run(tmp_path / "one", what, ranks=1)
    same(run(tmp_path / "two", what), one, tmp_path / "two", tmp_path / "one")


def test_the_base_model_is_scored_by_both(data: Path, tmp_path: Path) -> None:
    one, two = (run(tmp_path / str(n), objective(data, limit=None), n, baseline=True) for n in (1, 2))
    assert learned(two) == pytest.approx(learned(one), abs=1e-6)
    assert two["phases"]["score"]["tokens"] == pytest.approx(one["phases"]["score"]["tokens"], rel=0.2)


def test_texts_are_generated_by_both(data: Path, tmp_path: Path) -> None:
    shutil.copytree(BUNDLE / "tasks", tmp_path / "tasks")
    (tmp_path / "tasks" / "talks.yaml").write_text(
        "task: talks\noutput_type: generate_until\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: village_test.jsonl}}\ntest_split: test\n"
        "doc_to_text: '{{query}}'\ndoc_to_target: '{{choices[gold]}}'\n"
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}\n'
        "metric_list: [{metric: chrf, aggregation: chrf, higher_is_better: true}]\n"
    )
    what = objective(data, limit=None, **TRAIN)
    changes = {"include_path": str(tmp_path / "tasks"), "validation": "talks", "metric": "chrf"}
    tasks = what.tasks.model_copy(update=changes)
    what = what.model_copy(update={"tasks": tasks})
    one, two = (run(tmp_path / str(n), what, n) for n in (1, 2))
    same(two, one, tmp_path / "2", tmp_path / "1")
    assert one["metrics"]["talks/chrf"] > 1, "so that other texts would give another number"


def test_little_memory_on_one_gpu_changes_nothing(whole: Path, data: Path, tmp_path: Path) -> None:
    fault = {"rank": 1, "step": 0, "what": "little_memory"}
    result = run(tmp_path / "a0", objective(data, **TRAIN), fault=fault)
    same(result, read(whole / "result.json"), tmp_path / "a0", whole)


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1)])
def test_a_checkpoint_goes_to_another_number_of_ranks(
    ranks: tuple[int, int], whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ranks
    progress = worker.Attempt.progress

    def interrupt(self: worker.Attempt, *, force: bool = False, **fields: Any) -> None:
        if fields.get("step") == 3 and "learning_rate" in fields:
            os.kill(os.getpid(), signal.SIGUSR2)
        progress(self, force=force, **fields)

    what = objective(data, **TRAIN)
    fault = {"rank": 0, "step": 3, "what": "signalled"}
    with monkeypatch.context() as patch:
        if first == 1:
            patch.setattr(worker.Attempt, "progress", interrupt)
        error = run(tmp_path / "a0", what, first, fault=fault)
    assert (error["kind"], error["message"]) == ("interrupted", "SIGUSR2 asked to end during train")
    assert worker.checkpoint_step(worker.AttemptLayout(tmp_path / "a0")) == 4
    result = run(tmp_path / "a1", what, second, previous=[str(tmp_path / "a0")])
    assert result["resumed_at"] == [4]
    result["resumed_at"] = []
    same(result, read(whole / "result.json"), tmp_path / "a1", whole)
    assert not list(tmp_path.glob("*/checkpoint"))


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("nan", "diverged", "the training loss is nan at step 4 of 7"),
        ("killed", "vanished", "the process of GPU 1 of 2 (counted from 0) was ended by SIGKILL"),
    ],
)
def test_what_ends_one_rank_ends_all(what: str, kind: str, words: str, data: Path, tmp_path: Path) -> None:
    fault = {"rank": 1, "step": 3, "what": what}
    error = run(tmp_path / "a0", objective(data, micro_batch_size=1, **TRAIN), fault=fault)
    assert (error["kind"], "score" in error["seconds"]) == (kind, False)
    assert words in error["message"]
    assert living(os.getpid()) == []


def children_ended(parent: int) -> bool:
    deadline = time.monotonic() + 5
    while living(parent) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not living(parent)


def test_a_job_that_is_killed_without_a_warning(whole: Path, data: Path, tmp_path: Path) -> None:
    """Its ranks end too, and the next attempt goes on from its checkpoint."""
    what = objective(data, checkpoint_interval_s=1e-6, **TRAIN)
    fault = {"rank": 1, "step": 5, "what": "", "others_hang": True}
    first = write_attempt(tmp_path / "a0", what, fault=fault)
    program = Path(two_ranks.__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen([sys.executable, str(program), str(first)], stderr=log, env=environment)
    deadline = time.monotonic() + 120
    while worker.checkpoint_step(worker.AttemptLayout(first)) < 5 and time.monotonic() < deadline:
        assert job.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    assert len(living(job.pid)) == 2
    job.kill()
    job.wait()
    assert children_ended(job.pid)
    assert not (first / "error.json").exists()
    result = run(tmp_path / "a1", what, previous=[str(first)])
    assert result["resumed_at"] == [5]
    result["resumed_at"] = []
    same(result, read(whole / "result.json"), tmp_path / "a1", whole)
    assert not (tmp_path / "a1" / "error.json").exists()
    assert not list(tmp_path.glob("*/checkpoint"))


def test_a_job_that_sees_fewer_gpus_than_it_asked_for(data: Path, tmp_path: Path) -> None:
    """The program itself, as the driver starts it: here with no GPU at all."""
    folder = write_attempt(tmp_path / "a0", objective(data), gpus=2)
    done = subprocess.run([sys.executable, str(PROGRAM), str(folder)], capture_output=True, timeout=120, check=False)
    assert done.returncode == 1
    error = read(folder / "error.json")
    assert error["kind"] in ("node", "code")
    assert "launcher.gpus_per_trial=2, and torch" in error["message"]
