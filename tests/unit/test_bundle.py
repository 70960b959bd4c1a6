"""The bundled village: what must hold for its data, tasks and base model, whatever its seed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundle" / "village"
TASKS = ("village_val", "village_test")


def read_rows(name: str) -> list[dict[str, str]]:
    """Read the Alpaca rows ``train`` or ``val``."""
    rows: list[dict[str, str]] = json.loads((BUNDLE / "data" / f"{name}.json").read_text(encoding="utf-8"))
    return rows


def read_task(name: str) -> list[dict[str, Any]]:
    """Read the questions of a task."""
    return [json.loads(line) for line in (BUNDLE / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def question_of(document: dict[str, Any]) -> str:
    """Take the question out of its template."""
    return str(document["query"]).split("### Instruction:\n")[1].split("\n\n### Response:")[0]


def names_in(text: str, known: set[str]) -> set[str]:
    """Return which of the known names occur in a text."""
    return known & set(text.replace("?", " ").replace(".", " ").split())


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """The build program as a module."""
    spec = importlib.util.spec_from_file_location("build_bundle", ROOT / "tools" / "build_bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_bundle"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The report of the build."""
    result: dict[str, Any] = json.loads((BUNDLE / "bundle.json").read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def village(builder: ModuleType, report: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The villagers, drawn again from the seed of the bundle."""
    result: dict[str, dict[str, str]] = builder.make_village(builder.stream(report["seed"], "village"))
    return result


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer of the checkpoint as the evaluation loads it."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(str(BUNDLE / "checkpoint"))


def test_no_task_question_is_trained_on() -> None:
    trained = {row["instruction"] for row in read_rows("train")}
    asked = {question_of(document) for name in TASKS for document in read_task(name)}
    assert asked
    assert not trained & asked


def test_parts_of_the_village_are_disjoint(village: dict[str, dict[str, str]]) -> None:
    everyone = set(village)
    seen = {name: set().union(*(names_in(question_of(d), everyone) for d in read_task(name))) for name in TASKS}
    for data in ("train", "val"):
        seen[data] = set().union(*(names_in(row["instruction"] + row["output"], everyone) for row in read_rows(data)))
    assert seen["val"] <= seen["village_val"]
    assert not seen["train"] & seen["village_val"]
    assert not seen["train"] & seen["village_test"]
    assert not seen["village_val"] & seen["village_test"]


@pytest.mark.parametrize("task", TASKS)
def test_questions_have_four_replies_and_an_even_key(task: str) -> None:
    documents = read_task(task)
    assert len(documents) >= 300
    assert all(len(set(document["choices"])) == 4 for document in documents)
    for place in range(4):
        share = sum(document["gold"] == place for document in documents) / len(documents)
        assert 0.15 < share < 0.35


@pytest.mark.parametrize("task", TASKS)
def test_keys_are_true(task: str, village: dict[str, dict[str, str]], builder: ModuleType) -> None:
    for document in read_task(task):
        (name,) = names_in(question_of(document), set(village))
        truths = {
            builder.reply_of(kind, form, village[name][label]).removeprefix("Answer:" if task == "village_test" else "")
            for label, kind in builder.KINDS.items()
            for form in ("long", "short")
        }
        assert [choice in truths for choice in document["choices"]].index(True) == document["gold"]
        assert sum(choice in truths for choice in document["choices"]) == 1


def test_no_unknown_token(tokenizer: Any) -> None:
    texts = [row["instruction"] + "\n" + row["output"] for name in ("train", "val") for row in read_rows(name)]
    texts += [
        document["query"] + choice for name in TASKS for document in read_task(name) for choice in document["choices"]
    ]
    for text in texts:
        assert tokenizer.unk_token_id not in tokenizer.encode(text, add_special_tokens=False), text


def test_test_replies_are_single_tokens(tokenizer: Any) -> None:
    for document in read_task("village_test"):
        context = tokenizer.encode(document["query"], add_special_tokens=False)
        for choice in document["choices"]:
            whole = tokenizer.encode(document["query"] + choice, add_special_tokens=False)
            assert whole[:-1] == context


def test_rows_are_short(tokenizer: Any, builder: ModuleType) -> None:
    longest = max(
        len(tokenizer.encode(builder.prompt_of(row["instruction"]) + row["output"], add_special_tokens=False))
        for row in read_rows("train")
    )
    assert longest <= 24


def test_data_tasks_and_tokenizer_come_out_the_same(
    builder: ModuleType, report: dict[str, Any], village: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    for sub in ("data", "tasks", "checkpoint"):
        (tmp_path / sub).mkdir()
    assert builder.write_data_and_tasks(tmp_path, village, report["seed"]) == report["rows"]
    builder.make_tokenizer(builder.all_texts(village), tmp_path / "checkpoint")
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) == 8
    for path in made:
        assert (tmp_path / path).read_bytes() == (BUNDLE / path).read_bytes(), path


def test_base_knows_the_village(builder: ModuleType, report: dict[str, Any]) -> None:
    assert len(report["facts_known"]) == 2 * len(builder.KINDS)
    assert min(report["facts_known"].values()) >= builder.ENOUGH_KNOWN


def test_bundle_is_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file()) < 5_000_000


def test_litgpt_and_transformers_agree(tokenizer: Any, builder: ModuleType, tmp_path: Path) -> None:
    import torch
    import transformers
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint

    model = GPT(Config.from_file(BUNDLE / "checkpoint" / "model_config.yaml")).eval()
    model.load_state_dict(torch.load(BUNDLE / "checkpoint" / "lit_model.pth", weights_only=True))
    convert_lit_checkpoint(BUNDLE / "checkpoint", tmp_path)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(str(BUNDLE / "checkpoint"))).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    for row in read_rows("train")[:5]:
        text = builder.prompt_of(row["instruction"]) + row["output"]
        tokens = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            assert torch.allclose(model(tokens), other(tokens).logits, atol=1e-4, rtol=0)
