"""``jobs/lora.py`` on the bundled model: what it publishes, and what must not change a result."""

import copy
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_bench import (
    BUNDLE,
    PROGRAM,
    TRAIN,
    adapter,
    learned,
    load_program,
    max_difference,
    objective,
    our_run,
    run_attempt,
    write_attempt,
    write_data,
)

from hpo_cluster.cli.config.compose import compose
from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora import tasks as lm_tasks
from hpo_cluster.objectives.lora.base_model import load_model
from hpo_cluster.objectives.lora.metrics import MEASURES, OF_TRAINING
from hpo_cluster.objectives.lora.progress import State
from hpo_cluster.objectives.lora.ranks import Ranks
from hpo_cluster.objectives.lora.run import Run
from hpo_cluster.objectives.lora.settings import LORA_MATRICES, TrainSettings
from hpo_cluster.objectives.lora.tokenizers import Tokenizers

SCORES = [f"village_{split}/{metric}" for split in ("val", "test") for metric in ("acc", "acc_norm")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("lora") / "data")


def refuse_nan(word: str) -> float:
    raise AssertionError(f"{word} in a JSON file")


@pytest.fixture(scope="module")
def by_hand(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attempt that was run as a user runs it: from elsewhere, with nothing in the environment."""
    folder = write_attempt(tmp_path_factory.mktemp("by-hand") / "a0", objective(data, lora_dropout=0.1))
    run_by_hand(folder)
    return folder


def run_by_hand(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), str(folder)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder.parent)}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_publishes_a_whole_result(by_hand: Path) -> None:
    result = json.loads((by_hand / "result.json").read_text(), parse_constant=refuse_nan)
    assert set(result["metrics"]) == {*SCORES, *MEASURES, "merge_loss"} - {"energy_wh"}
    assert set(result["sems"]) == set(SCORES)
    assert set(result["seconds"]) == {"import", "load", "train", "validate", "merge", "score"}
    assert result["steps"] == 7  # 15 micro-batches make 7 accumulations of 2
    assert result["examples"] == 56
    assert 56 * 10 < result["tokens"] < 56 * 25
    assert [point["step"] for point in result["curve"]] == [1, 2, 3, 4, 5, 6, 7]
    losses = [point["train_loss"] for point in result["curve"]]
    assert len(set(losses)) == 7
    assert result["metrics"]["train_loss"] == pytest.approx(sum(losses) / 7)
    assert [point["learning_rate"] for point in result["curve"]][:4] == pytest.approx([0, 4e-3 / 3, 8e-3 / 3, 4e-3])
    assert result["trainable_parameters"] == sum(weight.numel() for weight in adapter(by_hand).values())
    assert result["seeds"] == {"train": 1337, "split": 42}
    assert result["train"]["lora_dropout"] == 0.1
    assert result["device"] == "cpu"
    assert result["energy_wh"] is None
    measured = result["metrics"]
    assert measured["val_perplexity"] == pytest.approx(math.exp(measured["val_loss"]))
    assert measured["trainable_parameters"] == result["trainable_parameters"]
    assert measured["peak_memory_gb"] == result["peak_memory_gb"]
    assert 0 < measured["train_s"] <= result["seconds"]["train"] + 1e-3
    assert measured["tokens_per_s"] == pytest.approx(result["tokens"] / measured["train_s"], rel=1e-3)
    assert result["energy_source"] == "none"
    assert 0.1 < result["peak_memory_gb"] < 8
    assert not list(by_hand.glob(".*")), "nothing temporary is left"


def test_an_attempt_that_has_been_run_is_left_alone(by_hand: Path) -> None:
    before = (by_hand / "result.json").read_bytes()
    assert run_by_hand(by_hand).returncode == worker.CLAIMED_EXIT_STATUS
    assert (by_hand / "result.json").read_bytes() == before


def test_same_attempt_same_metrics_and_weights(by_hand: Path, data: Path, tmp_path: Path) -> None:
    again = run_attempt(tmp_path / "a0", objective(data, lora_dropout=0.1))
    first = json.loads((by_hand / "result.json").read_text())
    assert learned(again) == learned(first)
    assert max_difference(adapter(tmp_path / "a0"), adapter(by_hand)) == 0
    other = run_attempt(tmp_path / "a1", objective(data, lora_dropout=0.1), seed=7)
    assert other["metrics"]["train_loss"] != first["metrics"]["train_loss"]
    fixed = run_attempt(tmp_path / "a2", objective(data, lora_dropout=0.1, seed=1337), seed=7)
    assert learned(fixed) == learned(first)


def test_learning_rate_zero_leaves_the_base_model(data: Path, tmp_path: Path) -> None:
    base = run_attempt(tmp_path / "base", objective(data), baseline=True)
    assert base["steps"] == base["trainable_parameters"] == 0
    assert base["curve"] == []
    assert not {*OF_TRAINING} & base["metrics"].keys()
    assert not (tmp_path / "base" / "adapter").exists()
    for number, (rank, alpha) in enumerate(((2, 64.0), (64, 1.0))):
        parameters = {"learning_rate": 0.0, "lora_rank": rank, "lora_alpha": alpha, "weight_decay": 0.1}
        what = objective(data, lora_head=True, lora_dropout=0.3)
        result = run_attempt(tmp_path / f"a{number}", what, parameters=parameters)
        assert result["metrics"].pop("merge_loss") == 0
        assert {name: value for name, value in learned(result).items() if name not in OF_TRAINING} == learned(base)


#: A value of each parameter of the extended spaces other than the one in `lora_bench.TRAIN`.
OTHERWISE: dict[str, Any] = {
    **{f"lora_{matrix}": matrix == "head" for matrix in LORA_MATRICES},
    "lora_rank": 4,
    "lora_alpha_rule": "root",
    "lora_alpha": 3,
    "lora_alpha_factor": 5.0,
    "lora_dropout": 0.2,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "lr_warmup_share": 0.1,
    "weight_decay": 0.1,
    "beta1": 0.8,
    "beta2": 0.99,
    "epsilon": 1e-4,
    "global_batch_size": 4,
    "precision": "bf16-mixed",
    "epochs": 2,
}


@pytest.fixture(scope="module")
def plain_weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("plain") / "a0"
    run_attempt(folder, objective(data, limit=1, validation_batches=0))
    return adapter(folder)


@pytest.mark.parametrize("name", OTHERWISE)
def test_every_parameter_of_the_extended_spaces_takes_effect(
    name: str, data: Path, tmp_path: Path, plain_weights: dict[str, torch.Tensor]
) -> None:
    what = objective(data, limit=1, validation_batches=0, lora_alpha_rule="rank" if "factor" in name else "free")
    result = run_attempt(tmp_path / "a0", what, parameters={name: OTHERWISE[name]})
    weights = adapter(tmp_path / "a0")
    assert result["train"][name] == OTHERWISE[name]
    same = {n for n in weights.keys() & plain_weights.keys() if weights[n].equal(plain_weights[n])}
    assert weights.keys() != plain_weights.keys() or len(same) < len(weights) / 2


def test_each_of_them_was_tried() -> None:
    for space in ("lora_extended", "village_extended"):
        config = compose([f"space={space}"], check_files=False)
        assert set(config.space.names) == set(OTHERWISE)


@pytest.fixture(scope="module", params=["step", "litgpt"])
def as_it_fits(data: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """A training with dropout whose steps fit into one pass, its settings and its result."""
    # AdamW magnifies the rounding of gradients near zero up to the learning rate, so it is a moderate one
    train: dict[str, Any] = {"lora_dropout": 0.3, "lora_head": True, "max_steps": 5, "learning_rate": 1e-3}
    train["dropout_draws"] = request.param
    with pytest.MonkeyPatch.context() as patch:
        return train, *our_run(tmp_path_factory.mktemp("fits") / "a0", objective(data, limit=2, **train), patch)


@pytest.mark.parametrize("tokens", [1, 50, 100])
def test_tokens_at_once_change_nothing(
    tokens: int, as_it_fits: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, plain, expected = as_it_fits
    monkeypatch.setattr("hpo_cluster.objectives.lora.packed_forward.LOGITS_AT_ONCE", 512 * 8)  # several pieces
    what = objective(data, limit=2, tokens_at_once=tokens, **train)
    trace, result = our_run(tmp_path / "a", what, monkeypatch)
    assert trace.losses == pytest.approx(plain.losses, abs=1e-5)
    assert max_difference(trace.weights, plain.weights) <= 1e-5
    assert result["metrics"]["val_loss"] == pytest.approx(expected["metrics"]["val_loss"], abs=1e-5)
    assert result["tokens"] == expected["tokens"]


@pytest.mark.parametrize("draws", ["step", "litgpt"])
def test_memory_that_runs_out_halves_the_tokens_and_repeats_the_step(
    draws: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hpo_cluster.objectives.lora.packed_forward import PackedModel

    what = objective(data, limit=2, lora_dropout=0.3, max_steps=5, learning_rate=1e-3, dropout_draws=draws)
    with monkeypatch.context() as patch:
        plain, _ = our_run(tmp_path / "plain", what, patch)
    loss, sizes = PackedModel.loss, []

    def limited(self: Any, part: Any, *, backward: bool) -> torch.Tensor:
        sizes.append(len(part.tokens))
        result: torch.Tensor = loss(self, part, backward=backward)
        if len(part.tokens) > 50:  # gradients are there already
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result

    monkeypatch.setattr(PackedModel, "loss", limited)
    trace, result = our_run(tmp_path / "a0", what, monkeypatch)
    assert trace.losses == pytest.approx(plain.losses, abs=1e-5)
    assert max_difference(trace.weights, plain.weights) <= 1e-5
    assert result["steps"] == 5
    halvings = [record for record in caplog.messages if "out of memory: continuing with at most" in record]
    assert 1 <= len(halvings) == sum(size > 50 for size in sizes)
    assert max(sizes[sizes.index(next(size for size in sizes if size <= 50)) + 1 :]) <= 50


def test_a_step_without_a_learned_token_decays_the_weights_as_litgpts_does() -> None:
    job = load_program()
    train = TrainSettings(**{**TRAIN, "weight_decay": 0.5, "lr_warmup_steps": 0, "global_batch_size": 4})
    row = {"input_ids": torch.arange(5), "labels": torch.full((5,), -100)}
    model = load_model(BUNDLE / "checkpoint", train, torch.device("cpu"), baseline=False)
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora_A" in name}
    state = State(job.make_optimizer(model, train))
    job.fine_tune(Run(model, train, torch.device("cpu"), 0), state, [row] * 4, 42, SimpleNamespace(progress=dict))
    assert state.losses == [0] * state.step
    for name, value in before.items():
        assert torch.allclose(model.state_dict()[name], value * (1 - train.learning_rate * 0.5))


def test_steps_of_epochs_and_max_steps(data: Path, tmp_path: Path) -> None:
    result = run_attempt(tmp_path / "a0", objective(data, limit=2, epochs=2, lr_warmup_steps=0, validation_batches=0))
    assert result["steps"] == 15
    assert "val_loss" not in result["metrics"]
    result = run_attempt(tmp_path / "a1", objective(data, limit=2, epochs=2, max_steps=3))
    assert result["steps"] == 3
    assert result["examples"] == 24


class StoppedError(Exception):
    pass


def test_training_goes_on_from_its_state(data: Path) -> None:
    job = load_program()
    what = objective(data, lora_dropout=0.3, epochs=2)

    def start() -> tuple[Any, Any]:
        job.seed_everything(5)
        model = load_model(BUNDLE / "checkpoint", what.train, torch.device("cpu"), baseline=False)
        return Run(model, what.train, torch.device("cpu"), 5), State(job.make_optimizer(model, what.train))

    def fine_tune(run: Any, state: Any, stop: int | None = None) -> dict[str, torch.Tensor]:
        def progress(step: int, **_: Any) -> None:
            if step == stop:
                raise StoppedError

        examples, _ = job.load_examples(what, what.train, Tokenizers(BUNDLE / "checkpoint"))
        job.fine_tune(run, state, examples, 42, SimpleNamespace(progress=progress))
        return {name: value for name, value in run.model.state_dict().items() if "lora_" in name}

    expected = fine_tune(*start())
    run, state = start()
    with pytest.raises(StoppedError):
        fine_tune(run, state, stop=4)
    kept = copy.deepcopy((run.model.state_dict(), state.optimizer.state_dict(), torch.get_rng_state()))
    run, fresh = start()
    run.model.load_state_dict(kept[0])
    fresh.optimizer.load_state_dict(kept[1])
    torch.set_rng_state(kept[2])
    state = replace(state, optimizer=fresh.optimizer)
    assert max_difference(fine_tune(run, state), expected) == 0
    assert (state.step, state.examples) == (15, 116)  # micro-batches of 4 and, at the end of an epoch, of 2


@pytest.mark.parametrize("warmup", [0, 1, 4, 10, 40])
def test_learning_rates_are_those_of_litgpts_schedule(warmup: int) -> None:
    from litgpt.finetune.lora import get_lr_scheduler

    job = load_program()
    train = TrainSettings(learning_rate=0.1, lr_warmup_steps=warmup, global_batch_size=1)
    plan = job.make_plan(train, 20)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    if warmup:
        schedule = get_lr_scheduler(optimizer, warmup_steps=warmup, max_steps=plan.schedule)
    else:  # LitGPT divides by the warm-up
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=plan.schedule)
    for step in range(plan.steps):
        assert job.learning_rate(train, plan, step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_other_schedules_and_a_warm_up_that_is_a_share_of_them() -> None:
    job = load_program()
    settings = {"learning_rate": 0.1, "lr_warmup_share": 0.25, "global_batch_size": 2, "lr_warmup_steps": 7}
    cosine = TrainSettings(**settings)
    plan = job.make_plan(cosine, 16)
    assert plan.schedule == 8
    warm = [0.0, 0.05, 0.1]
    rates = {
        name: [job.learning_rate(TrainSettings(**settings, lr_schedule=name), plan, step) for step in range(10)]
        for name in ("cosine", "linear", "constant")
    }
    assert all(values[:3] == pytest.approx(warm) for values in rates.values())
    assert rates["constant"][3:] == [0.1] * 7
    assert rates["linear"][2:] == pytest.approx([0.1 * (1 - i / 6) for i in range(7)] + [0.0])
    fixed = TrainSettings(learning_rate=0.1, lr_warmup_steps=2, global_batch_size=2)
    assert rates["cosine"] == [job.learning_rate(fixed, plan, step) for step in range(10)]


def test_a_constant_rate_falls_to_zero_at_the_end_and_in_copies_of_the_training() -> None:
    job = load_program()
    train = TrainSettings(
        learning_rate=0.1, lr_warmup_steps=2, lr_schedule="wsd", lr_decay_share=0.25, global_batch_size=1
    )
    plan = job.make_plan(train, 16)
    rates = [job.learning_rate(train, plan, step) for step in range(16)]
    assert rates == pytest.approx([0, 0.05, *[0.1] * 11, 0.075, 0.05, 0.025])

    def copied(branch: int) -> list[float]:
        return [
            job.learning_rate(train, plan, step, branch) for step in range(branch, job.branch_end(train, plan, branch))
        ]

    assert copied(8) == pytest.approx([0.1, 0.05])
    assert copied(12) == pytest.approx([0.1, 0.2 / 3, 0.1 / 3])
    assert copied(14) == pytest.approx([0.05, 0.025]), "it falls already, and ends with the training"
    assert copied(1) == pytest.approx([0.05]), "at least one step, in the warm-up not above it"
    assert copied(16) == []


def test_a_falling_rate_ends_with_the_last_step_of_several_epochs() -> None:
    job = load_program()
    train = TrainSettings(lr_warmup_steps=0, lr_schedule="wsd", global_batch_size=2, micro_batch_size=1, epochs=3)
    plan = job.make_plan(train, 5)
    assert (plan.steps, plan.schedule) == (7, 6)
    assert job.learning_rate(train, plan, 6) > 0


@pytest.mark.parametrize(("rule", "scale"), [("free", 3 / 4), ("rank", 5.0), ("root", 5 / 2)])
def test_alpha_is_free_or_follows_the_rank_or_its_root(rule: str, scale: float, data: Path) -> None:
    job = load_program()
    train = objective(data, lora_rank=4, lora_alpha=3, lora_alpha_factor=5.0, lora_alpha_rule=rule, epsilon=1e-5).train
    model = load_model(BUNDLE / "checkpoint", train, torch.device("cpu"), baseline=False)
    scales = {module.scaling for module in model.modules() if getattr(module, "r", 0) > 0}
    assert scales == {scale}
    assert job.make_optimizer(model, train).settings.eps == 1e-5


def test_divergence_ends_the_attempt_at_once(data: Path, tmp_path: Path) -> None:
    error = run_attempt(tmp_path / "a0", objective(data, learning_rate=1e3, lr_warmup_steps=0, epochs=20))
    assert error["kind"] == "diverged"
    assert "of 150, learning rate" in error["message"]
    assert int(error["message"].split("step ")[1].split()[0]) < 10
    assert "score" not in error["seconds"]


@pytest.mark.parametrize("at", [3, 7])
def test_a_loss_that_is_no_number_is_seen_one_step_later_at_most(
    at: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load_program()
    summed_loss, steps = job.summed_loss, []

    def spoil(*arguments: Any, step: int | None, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = summed_loss(*arguments, step=step, **options)
        steps.append(step)
        return loss * math.nan if len(steps) == at else loss

    monkeypatch.setattr(job, "summed_loss", spoil)
    error = run_attempt(tmp_path / "a0", objective(data, checkpoint_interval_s=1e-6 if at == 3 else 0))
    assert error["kind"] == "diverged"
    assert f"training loss is nan at step {at} of 7" in error["message"]
    assert len(steps) <= at + 1
    assert worker.checkpoint_step(worker.AttemptLayout(tmp_path / "a0")) <= at - 1, "nothing of it is kept"


def test_weights_that_are_no_numbers_after_the_last_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load_program()
    fine_tune = job.fine_tune

    def spoil(run: Any, *arguments: Any) -> None:
        fine_tune(run, *arguments)
        with torch.no_grad():
            run.model.transformer.h[0].attn.qkv.lora_B.fill_(math.nan)

    monkeypatch.setattr(job, "fine_tune", spoil)
    for validation_batches, word in ((100, "validation loss is nan"), (0, "log-likelihood is nan")):
        what = objective(data, max_steps=1, validation_batches=validation_batches)
        error = run_attempt(tmp_path / f"a{validation_batches}", what)
        assert error["kind"] == "diverged"
        assert word in error["message"]


def test_out_of_memory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def fail(self: Any, part: Any, **_: Any) -> None:
        sizes.append(len(part.lengths))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("hpo_cluster.objectives.lora.packed_forward.PackedModel.loss", fail)
    error = run_attempt(tmp_path / "a0", objective(data))
    assert error["kind"] == "out_of_memory"
    assert "2.00 GiB" in error["message"]
    assert sizes[0] == 8
    assert sizes[-1] == 1, "there is no less than one example"
    assert "physical_batch_size" not in error


BAD_DATA = {
    "not JSON": ("[{", "data"),
    "not a list": ('{"instruction": "a", "output": "b"}', "one dict with the keys"),
    "empty": ("[]", "empty"),
    "a key is missing": (
        '[{"instruction": "a", "output": "b"}, {"instruction": "a"}]',
        "row 1 lacks the text 'output'",
    ),
    "not text": ('[{"instruction": "a", "output": null}]', "row 0 lacks the text 'output'"),
    "too few": ('[{"instruction": "a", "output": "b"}]', "1 training examples"),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_bad_data(fault: str, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    text, word = BAD_DATA[fault]
    (folder / "train.json").write_text(text)
    error = run_attempt(tmp_path / "a0", objective(folder))
    assert error["kind"] == "bad_data", error
    assert word in error["message"]
    assert str(folder) in error["message"] or fault == "too few"


def test_no_data(tmp_path: Path) -> None:
    error = run_attempt(tmp_path / "a0", objective(tmp_path / "nowhere"))
    assert error["kind"] == "bad_data"
    assert "nowhere" in error["message"]


def test_one_file_is_split(tmp_path: Path) -> None:
    rows = json.loads((BUNDLE / "data" / "train.json").read_text())[:40]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    what = objective(tmp_path / "rows.json", limit=2)
    what = what.model_copy(update={"data": what.data.model_copy(update={"val_split_fraction": 0.2})})
    result = run_attempt(tmp_path / "a0", what)
    assert result["examples"] == 32
    assert "val_loss" in result["metrics"]


def test_missing_task(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=BUNDLE / "tasks", include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: own)  # lm-eval's own index takes 6 s
    what = objective(data)
    misspelt = what.model_copy(update={"tasks": what.tasks.model_copy(update={"validation": "village_vall"})})
    error = run_attempt(tmp_path / "a0", misspelt)
    assert error["kind"] == "missing_task"
    assert "village_vall" in error["message"]
    assert str(BUNDLE / "tasks") in error["message"]
    assert "did you mean village_val?" in error["message"]
    nowhere = what.tasks.model_copy(update={"include_path": str(tmp_path / "nowhere")})
    error = run_attempt(tmp_path / "a1", what.model_copy(update={"tasks": nowhere}))
    assert error["kind"] == "missing_task"


def test_missing_documents_of_a_task(data: Path, tmp_path: Path) -> None:
    shutil.copytree(BUNDLE / "tasks", tmp_path / "tasks")
    (tmp_path / "tasks" / "village_test.jsonl").unlink()
    what = objective(data)
    tasks = what.tasks.model_copy(update={"include_path": str(tmp_path / "tasks")})
    error = run_attempt(tmp_path / "a0", what.model_copy(update={"tasks": tasks}))
    assert error["kind"] == "missing_task"
    assert "village_test.jsonl" in error["message"]


def test_missing_model(data: Path, tmp_path: Path) -> None:
    error = run_attempt(tmp_path / "a0", objective(data, checkpoint=tmp_path / "nowhere"))
    assert error["kind"] == "missing_model"
    assert "lit_model.pth" in error["message"]
    shutil.copytree(BUNDLE / "checkpoint", tmp_path / "torn")
    weights = tmp_path / "torn" / "lit_model.pth"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run_attempt(tmp_path / "a1", objective(data, checkpoint=tmp_path / "torn"))["kind"] == "missing_model"
    whole = torch.load(BUNDLE / "checkpoint" / "lit_model.pth", weights_only=True)
    torch.save({"lm_head.weight": whole["lm_head.weight"]}, weights)
    error = run_attempt(tmp_path / "a2", objective(data, checkpoint=tmp_path / "torn"))
    assert error["kind"] == "missing_model"
    assert "transformer.wte.weight" in error["message"]


def test_settings_of_the_space_reach_the_training(data: Path, tmp_path: Path) -> None:
    what = objective(data, limit=2, max_steps=1)
    error = run_attempt(tmp_path / "a0", what, parameters={"lora_rank": 0})
    assert error["kind"] == "code"
    none = {f"lora_{name}": False for name in ("query", "key", "value", "projection", "mlp", "head")}
    assert "LoRA needs at least one matrix" in run_attempt(tmp_path / "a1", what, parameters=none)["message"]
    result = run_attempt(tmp_path / "a2", what, parameters={"lora_rank": 3, "beta1": 0.5})
    assert result["train"]["lora_rank"] == 3
    assert next(iter(adapter(tmp_path / "a2").values())).shape[0] == 9  # query, key and value


# --- both ways of scoring --------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Log-likelihoods of each evaluation, in lm-eval's order."""
    runs: list[list[float]] = []
    score = lm_tasks.score

    def spy(lm: Any, tasks: Any, *which: Any) -> Any:
        ask = lm.loglikelihood

        def loglikelihood(requests: Any, **options: Any) -> Any:
            answers = ask(requests, **options)
            runs.append([float(value) for value, _ in answers])
            return answers

        lm.loglikelihood = loglikelihood
        return score(lm, tasks, *which)

    monkeypatch.setattr(lm_tasks, "score", spy)
    return runs


def both_ways(tmp_path: Path, what: Any, **params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    ours = run_attempt(tmp_path / "ours", what, **params)
    theirs = run_attempt(tmp_path / "theirs", what.model_copy(update={"evaluation": "litgpt_cli"}), **params)
    assert not list((tmp_path / "theirs").glob(".*")), "the large files are gone"
    return ours, theirs


@pytest.mark.parametrize("baseline", [False, True])
def test_classic_route_gives_the_same_scores(
    baseline: bool, data: Path, tmp_path: Path, recorded: list[list[float]]
) -> None:
    what = objective(data, limit=None, learning_rate=1e-2, epochs=2, lora_head=True)
    ours, theirs = both_ways(tmp_path, what, baseline=baseline)
    assert ("merge_loss" in ours["metrics"]) is not baseline
    ours["metrics"].pop("merge_loss", None)  # LitGPT merges by itself there, and nothing measures it
    assert learned(theirs) == pytest.approx(learned(ours), abs=1e-9)
    assert theirs["sems"] == pytest.approx(ours["sems"], abs=1e-9)
    in_memory, converted = recorded
    questions = sum(len(path.read_text().splitlines()) for path in (BUNDLE / "tasks").glob("*.jsonl"))
    assert len(in_memory) == 4 * questions
    assert max(abs(a - b) for a, b in zip(in_memory, converted, strict=True)) <= 1e-4


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The bundled base model, as it is or with its embeddings for its head, as Llama-3.2-1B has."""
    checkpoint = tmp_path / "base"
    shutil.copytree(BUNDLE / "checkpoint", checkpoint)
    if request.param:
        weights = torch.load(checkpoint / "lit_model.pth", weights_only=True)
        weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
        torch.save(weights, checkpoint / "lit_model.pth")
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return checkpoint


@pytest.mark.parametrize("lora_head", [False, True])
def test_classic_route_keeps_a_trained_head(
    base: Path, lora_head: bool, data: Path, tmp_path: Path, recorded: list[list[float]]
) -> None:
    """transformers would put the embeddings in its place where the configuration says that they are tied."""
    both_ways(tmp_path, objective(data, checkpoint=base, lora_head=lora_head))
    in_memory, converted = recorded
    assert max(abs(a - b) for a, b in zip(in_memory, converted, strict=True)) <= 1e-4


def test_an_exported_model_scores_as_the_attempt_did(
    base: Path, data: Path, tmp_path: Path, recorded: list[list[float]]
) -> None:
    from lm_eval.models.huggingface import HFLM

    from hpo_cluster.objectives.lora.adapter import export_adapter

    what = objective(data, checkpoint=base, lora_head=True)
    run_attempt(tmp_path / "a0", what)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a0" / "adapter").iterdir()}
    export_adapter(tmp_path / "a0" / "adapter", tmp_path / "exported")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a0" / "adapter").iterdir()} == before
    tasks = lm_tasks.load_tasks(["village_val", "village_test"], BUNDLE / "tasks", None, tmp_path / "cache")
    lm_tasks.score(HFLM(pretrained=str(tmp_path / "exported"), device="cpu", batch_size=8), tasks, what.tasks.limit)
    ours, theirs = recorded
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(("cuda", "kind"), [("12.8", "node"), (None, "code")])
def test_a_gpu_that_was_promised_and_is_not_there_ends_the_attempt_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, kind: str
) -> None:
    """On the host's cores it would train for days, in silence."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    error = run_attempt(tmp_path / "a0", objective(data), gpus=1)
    assert error["kind"] == kind
    assert "launcher.gpus_per_trial=1" in error["message"]
    assert ("sees no GPU here" if cuda else "CUDA build") in error["message"]


def test_fewer_gpus_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with pytest.raises(AttemptError, match=r"torch sees 2 GPUs here \(CUDA_VISIBLE_DEVICES=4,7\)"):
        load_program().prepare_process(tmp_path, 4, Ranks(0, 4))


def test_a_base_model_that_does_not_fit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_config: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("hpo_cluster.objectives.lora.base_model.GPT", fail)
    error = run_attempt(tmp_path / "a0", objective(data))
    assert error["kind"] == "out_of_memory"
    assert "each GPU of a trial holds the whole model" in error["message"]
