"""What the merge loses of an update, and scoring in another precision than that of training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_bench import BUNDLE, TRAIN, adapter, load_program, objective, run_attempt, write_attempt, write_data
from pydantic import ValidationError
from test_hugging_face import log_likelihoods

from hpo_cluster.objectives.lora import forward
from hpo_cluster.objectives.lora.base_model import load_model
from hpo_cluster.objectives.lora.language_model import LitLM
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.run import Run
from hpo_cluster.objectives.lora.tokenizers import Tokenizers

CHECKPOINT = BUNDLE / "checkpoint"
#: All matrices, keys left out: the rows of queries and values are not next to each other.
SMALL_UPDATE: dict[str, Any] = {"learning_rate": 3e-4, "lora_key": False, "lora_head": True, "lr_warmup_steps": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("precision") / "data")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """An attempt with a small update in each precision of training."""
    folder = tmp_path_factory.mktemp("trained")
    attempts = {}
    for precision in ("bf16-true", "bf16-mixed", "32-true"):
        result = run_attempt(folder / precision, objective(data, precision=precision, **SMALL_UPDATE))
        attempts[precision] = (folder / precision, result)
    return attempts


def scoring(what: LoraObjective, score_precision: str | None) -> LoraObjective:
    return LoraObjective.model_validate({**what.model_dump(), "score_precision": score_precision})


def merged(trained: Path, precision: str, score_precision: str | None) -> tuple[Any, float | None, list[float]]:
    """The model of an attempt, merged as its job does it; the loss of the merge; log-likelihoods."""
    job = load_program()
    what = scoring(objective(BUNDLE / "data", precision=precision, **SMALL_UPDATE), score_precision)
    model = load_model(CHECKPOINT, what.train, torch.device("cpu"), baseline=False)
    model.load_state_dict(adapter(trained), strict=False)
    run = Run(model, what.train, torch.device("cpu"), 0)
    lost, context = job.merge_adapter(run, what, CHECKPOINT)
    return model, lost, log_likelihoods(LitLM(model, Tokenizers(CHECKPOINT).hugging_face, precision=context))


def unmerged_in_float32(trained: Path) -> list[float]:
    """Log-likelihoods of the base model in float32 with the adapter beside it."""
    train = objective(BUNDLE / "data", precision="32-true", **SMALL_UPDATE).train
    model = load_model(CHECKPOINT, train, torch.device("cpu"), baseline=False)
    model.load_state_dict(adapter(trained), strict=False)
    return log_likelihoods(LitLM(model, Tokenizers(CHECKPOINT).hugging_face))


def furthest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_a_small_update_is_lost_in_bfloat16_and_the_result_says_so(
    trained: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    folder, result = trained["bf16-true"]
    base = torch.load(CHECKPOINT / "lit_model.pth", weights_only=True)
    weights = {name: value.float() for name, value in adapter(folder).items()}
    error = whole = 0.0
    for name in weights:
        if not name.endswith("lora_A"):
            continue
        a, b = weights[name], weights[name.replace("lora_A", "lora_B")]
        scale = TRAIN.get("lora_alpha", 16) / TRAIN.get("lora_rank", 8)
        before = base[name.replace("lora_A", "weight")].bfloat16()
        if "qkv" in name:
            queries, values = b[: before.shape[0] // 2] @ a[:8], b[before.shape[0] // 2 :] @ a[8:]
            zeros = torch.zeros(len(before) - len(queries) - len(values), before.shape[1])
            change = torch.cat([queries, zeros, values]) * scale
        else:
            change = (b @ a) * scale
        after = (before.float() + change).bfloat16()
        error += float((after.double() - before.double() - change).square().sum())
        whole += float(change.double().square().sum())
    expected = (error / whole) ** 0.5
    assert result["metrics"]["merge_loss"] == pytest.approx(expected, rel=0.02)  # LitGPT rounds the product, too
    assert result["metrics"]["merge_loss"] > 0.1
    assert trained["bf16-mixed"][1]["metrics"]["merge_loss"] > 0.1, "products are computed in bfloat16"
    assert trained["32-true"][1]["metrics"]["merge_loss"] < 1e-4


def test_a_larger_update_loses_less(data: Path, tmp_path: Path, trained: dict[str, tuple[Path, Any]]) -> None:
    what = objective(data, precision="bf16-true", **{**SMALL_UPDATE, "learning_rate": 3e-2})
    assert (
        run_attempt(tmp_path / "a0", what)["metrics"]["merge_loss"] < trained["bf16-true"][1]["metrics"]["merge_loss"]
    )
    still = objective(data, precision="bf16-true", **{**SMALL_UPDATE, "learning_rate": 0.0})
    assert run_attempt(tmp_path / "a1", still)["metrics"]["merge_loss"] == 0.0
    assert "merge_loss" not in run_attempt(tmp_path / "a2", still, baseline=True)["metrics"]


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true"])
def test_scores_in_float32_are_those_of_the_unmerged_model_in_float32(
    precision: str, trained: dict[str, tuple[Path, Any]]
) -> None:
    folder, _ = trained[precision]
    expected = unmerged_in_float32(folder)
    model, lost, found = merged(folder, precision, "float32")
    assert lost is not None
    assert lost < 1e-3
    assert found == pytest.approx(expected, rel=1e-5)
    assert {value.dtype for name, value in model.named_parameters() if "lora_" not in name} == {torch.float32}
    _, _, as_trained = merged(folder, precision, None)
    _, in_bfloat16_lost, in_bfloat16 = merged(folder, precision, "bfloat16")
    errors = {"as trained": furthest(as_trained, expected), "in bfloat16": furthest(in_bfloat16, expected)}
    assert errors["in bfloat16"] > 1e-2, errors
    assert in_bfloat16_lost is not None
    assert in_bfloat16_lost > 0.1
    if precision == "32-true":
        assert errors["as trained"] < 1e-3
    else:
        assert errors["as trained"] > 1e-2, errors
    kept = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    assert all(value.equal(adapter(folder)[name]) for name, value in kept.items()), "for a checkpoint"
    assert {value.dtype for value in kept.values()} == {value.dtype for value in adapter(folder).values()}


def test_the_exported_model_scores_as_the_job_did_in_float32(data: Path, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from hpo_cluster.objectives.lora.adapter import export_adapter
    from hpo_cluster.objectives.lora.checks import load_tasks_of
    from hpo_cluster.objectives.lora.tasks import score

    what = scoring(objective(data, limit=None, precision="bf16-true", **SMALL_UPDATE), "float32")
    result = run_attempt(tmp_path / "a0", what)
    assert result["score_precision"] == "float32"
    export_adapter(tmp_path / "a0" / "adapter", tmp_path / "exported")
    lm = HFLM(pretrained=str(tmp_path / "exported"), device="cpu", dtype="float32", batch_size=32)
    theirs, _ = score(lm, load_tasks_of(what, tmp_path / "cache"), what.tasks.limit)
    assert {name: result["metrics"][name] for name in theirs} == theirs
    base = run_attempt(tmp_path / "a1", what, baseline=True)
    plain = run_attempt(tmp_path / "a2", objective(data, limit=None), baseline=True)
    scores = [name for name in base["metrics"] if name.startswith("village_")]
    assert [base["metrics"][name] for name in scores] == [plain["metrics"][name] for name in scores], "in float32"


def test_it_belongs_to_the_identity_and_is_not_there_by_default(data: Path, tmp_path: Path) -> None:
    what = objective(data)
    assert "score_precision" not in what.identity()
    assert "score_precision" not in write_attempt(tmp_path / "a0", what).joinpath("params.json").read_text()
    assert scoring(what, "float32").identity()["score_precision"] == "float32"
    with pytest.raises(ValidationError, match=r"objective\.score_precision=float32: objective\.evaluation=litgpt_cli"):
        LoraObjective.model_validate({**scoring(what, "float32").model_dump(), "evaluation": "litgpt_cli"})


def test_tokens_at_once_follow_the_dtype_that_is_scored_in(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    """The adapter comes first among the parameters, and keeps the dtype of training."""
    job = load_program()
    monkeypatch.setattr(forward, "free_bytes", lambda _: 2 * 10**9)
    fitting = {}
    for score_precision in (None, "float32"):
        what = scoring(objective(data, precision="bf16-true", lora_head=True), score_precision)
        model = load_model(CHECKPOINT, what.train, torch.device("cpu"), baseline=False)
        job.merge_adapter(Run(model, what.train, torch.device("cpu"), 0), what, CHECKPOINT)
        on_gpu = SimpleNamespace(
            cos=SimpleNamespace(device=SimpleNamespace(type="cuda")),
            config=SimpleNamespace(**{**vars(model.config), "n_embd": 2048, "n_layer": 64, "head_size": 64}),
            transformer=model.transformer,
            parameters=model.parameters,
        )
        fitting[score_precision] = forward.tokens_that_fit(on_gpu)
    assert fitting["float32"] * 2 == fitting[None]
