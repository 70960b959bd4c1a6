"""`LitLM` scores as lm-eval's `HFLM` does on the converted checkpoint, whatever the requests look like."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora.language_model import LitLM
from hpo_cluster.objectives.lora.tasks import load_tasks, score
from hpo_cluster.record.layout import resources_dir

CHECKPOINT = resources_dir() / "bundle" / "village" / "checkpoint"


def requests(pairs: list[tuple[str, ...]], kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, pair, number, metadata=("task", number, 1)) for number, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def hflm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint

    folder = tmp_path_factory.mktemp("hf")
    for path in CHECKPOINT.glob("*.json"):
        shutil.copy(path, folder)
    convert_lit_checkpoint(CHECKPOINT, folder)
    torch.save(torch.load(folder / "model.pth", weights_only=True), folder / "pytorch_model.bin")
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture
def model() -> Any:
    from litgpt.config import Config
    from litgpt.model import GPT

    torch.set_num_threads(1)
    model = GPT(Config.from_file(CHECKPOINT / "model_config.yaml"))
    model.load_state_dict(torch.load(CHECKPOINT / "lit_model.pth", weights_only=True))
    model.max_seq_length = 20  # as training leaves it
    return model


@pytest.fixture
def lit_lm(model: Any) -> LitLM:
    return LitLM(model, AutoTokenizer.from_pretrained(CHECKPOINT), batch_size=4)


def prompts() -> list[dict[str, Any]]:
    lines = [
        line
        for split in ("val", "test")
        for line in (CHECKPOINT.parent / "tasks" / f"village_{split}.jsonl").read_text().splitlines()[:6]
    ]
    return [json.loads(line) for line in lines]


def pairs() -> list[tuple[str, str]]:
    documents = prompts()
    asked = [(document["query"], choice) for document in documents for choice in document["choices"]]
    first = documents[0]["query"]
    return [
        *asked,
        ("", documents[0]["choices"][0]),  # no context
        ("<s>" + first, documents[0]["choices"][1]),  # a first token that is spelt out
        (first * 12, documents[0]["choices"][2]),  # longer than the context window
        ("Answer:", " red"),
        ("Answer:", " red silver"),
    ]


def test_log_likelihoods_are_those_of_the_converted_model(lit_lm: LitLM, hflm: Any) -> None:
    asked = pairs()
    ours = lit_lm.loglikelihood(requests(asked))
    theirs = hflm.loglikelihood(requests(asked), disable_tqdm=True)
    assert max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True)) <= 1e-4
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert any(greedy for _, greedy in ours)


def test_the_same_tokens_split_at_two_points(lit_lm: LitLM, hflm: Any) -> None:
    asked = [("Answer:", " red silver"), ("Answer: red", " silver")]
    ours = lit_lm.loglikelihood(requests(asked))
    # one at a time: asked together, HFLM reads the scores of the second at the first position of the pair's tail
    theirs = [hflm.loglikelihood(requests([pair]), disable_tqdm=True)[0] for pair in asked]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)


def test_rolling_log_likelihoods(lit_lm: LitLM, hflm: Any) -> None:
    texts = [(document["query"] * times,) for document, times in zip(prompts()[:3], (1, 3, 20), strict=True)]
    ours = lit_lm.loglikelihood_rolling(requests(texts, "loglikelihood_rolling"))
    theirs = hflm.loglikelihood_rolling(requests(texts, "loglikelihood_rolling"), disable_tqdm=True)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_order_and_batch_size_change_nothing(model: Any, lit_lm: LitLM) -> None:
    asked = pairs()
    expected = [value for value, _ in lit_lm.loglikelihood(requests(asked))]
    one = LitLM(model, lit_lm.tokenizer, batch_size=1).loglikelihood(requests(asked[::-1]))
    assert [value for value, _ in one][::-1] == pytest.approx(expected, abs=1e-4)


def test_one_pass_answers_one_token_choices(model: Any, lit_lm: LitLM) -> None:
    rows: list[int] = []
    told: list[tuple[int, int]] = []
    forward = model.forward
    model.forward = lambda tokens: rows.append(len(tokens)) or forward(tokens)
    lm = LitLM(model, lit_lm.tokenizer, batch_size=4, on_batch=lambda done, total: told.append((done, total)))
    asked = [(document["query"], choice) for document in prompts()[6:] for choice in document["choices"]]
    lm.loglikelihood(requests(asked))
    assert len(asked) == 24
    assert sum(rows) == 6
    assert told[-1] == (24, 24)


def test_the_head_runs_on_scored_positions_only(model: Any, lit_lm: LitLM) -> None:
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[1]))
    lit_lm._loglikelihood_tokens([(("", ""), [1, 5, 6, 7], [8, 9]), (("", ""), [1, 5], [9])])
    assert sizes == [3]


def test_numbers_that_are_none_are_a_divergence(model: Any, lit_lm: LitLM) -> None:
    with torch.no_grad():
        model.lm_head.weight.fill_(math.inf)
    with pytest.raises(AttemptError) as caught:
        lit_lm.loglikelihood(requests(pairs()[:1]))
    assert caught.value.kind == "diverged"


def test_what_cannot_be_scored_says_so(lit_lm: LitLM) -> None:
    with pytest.raises(NotImplementedError, match="litgpt_cli"):
        lit_lm.generate_until(requests([("a", "b")]))
    with pytest.raises(ValueError, match="129 tokens"):
        lit_lm._loglikelihood_tokens([(("", ""), [1], [5] * 129)])


GROUP = """
group: both
task: [village_val, village_test]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""


def test_group_of_own_tasks_is_read_from_anywhere_and_scored(
    lit_lm: LitLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tasks"
    shutil.copytree(CHECKPOINT.parent / "tasks", folder)
    (folder / "both.yaml").write_text(GROUP)
    monkeypatch.chdir("/")
    loaded = load_tasks(["both"], folder, None, tmp_path / "cache")
    assert set(loaded["tasks"]) == {"village_val", "village_test"}
    assert (tmp_path / "cache").is_dir(), "the converted documents are private"

    metrics, sems = score(lit_lm, loaded, limit=10)
    rows = {f"village_{split}/{metric}" for split in ("val", "test") for metric in ("acc", "acc_norm")}
    assert set(metrics) == set(sems) == rows | {"both/acc"}
    assert metrics["both/acc"] == pytest.approx((metrics["village_val/acc"] + metrics["village_test/acc"]) / 2)
    assert sems["village_val/acc"] > 0


def test_one_document_has_no_standard_error(lit_lm: LitLM, tmp_path: Path) -> None:
    loaded = load_tasks(["village_val"], CHECKPOINT.parent / "tasks", None, tmp_path)
    metrics, sems = score(lit_lm, loaded, limit=1)
    assert set(metrics) == {"village_val/acc", "village_val/acc_norm"}
    assert sems == {}


def test_number_of_examples_in_the_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    shutil.copytree(CHECKPOINT.parent / "tasks", folder)
    text = (folder / "village_test.yaml").read_text()
    (folder / "village_test.yaml").write_text(text + "num_fewshot: 0\n")
    for asked, val in ((None, 0), (3, 3)):
        tasks = load_tasks(["village_val", "village_test"], folder, asked, tmp_path / "cache")["tasks"]
        assert tasks["village_val"].get_config("num_fewshot") == val
        assert tasks["village_test"].get_config("num_fewshot") == 0, "a task's own zero stands"


def test_bootstrapped_standard_errors_fork_no_processes(
    lit_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of processes hung for ever in jobs that handle SIGTERM."""
    rows = (CHECKPOINT.parent / "tasks" / "village_val.jsonl").read_text().splitlines(keepends=True)[:8]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": "rows.jsonl"}},
        "validation_split": "validation",
        "doc_to_text": "{{query}}",
        "target_delimiter": "",
    }
    two = {"output_type": "multiple_choice", "doc_to_target": "{{gold % 2}}", "doc_to_choice": "{{choices[:2]}}"}
    metrics = [{"metric": "mcc", "aggregation": "matthews_corrcoef"}, {"metric": "f1", "aggregation": "f1"}]
    one = {"output_type": "loglikelihood", "doc_to_target": "{{choices[gold]}}"}
    (tmp_path / "two.yaml").write_text(json.dumps({"task": "two", **common, **two, "metric_list": metrics}))
    perplexity = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    (tmp_path / "one.yaml").write_text(json.dumps({"task": "one", **common, **one, "metric_list": perplexity}))

    def fork() -> int:
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", fork)
    metrics_found, sems = score(lit_lm, load_tasks(["one", "two"], tmp_path, None, tmp_path / "cache"), limit=None)
    assert set(metrics_found) == {"one/perplexity", "two/mcc", "two/f1"}
    assert {"one/perplexity", "two/f1"} <= set(sems)
