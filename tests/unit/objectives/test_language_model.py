"""`LitLM` scores as lm-eval's `HFLM` does on the converted checkpoint, whatever the requests look like."""

import json
import math
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._index import Kind
from transformers import AutoTokenizer

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora import forward
from hpo_cluster.objectives.lora.forward import takes_masks
from hpo_cluster.objectives.lora.generation import Decoding, generate
from hpo_cluster.objectives.lora.language_model import LitLM
from hpo_cluster.objectives.lora.tasks import _find as find_tasks
from hpo_cluster.objectives.lora.tasks import load_tasks, score
from hpo_cluster.record.layout import resources_dir

CHECKPOINT = resources_dir() / "bundle" / "village" / "checkpoint"


def requests(pairs: Sequence[tuple[Any, ...]], kind: str = "loglikelihood") -> list[Instance]:
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
    return LitLM(model, AutoTokenizer.from_pretrained(CHECKPOINT), tokens_at_once=200)


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
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-5)
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


def alone(model: Any, row: list[int], tail: int) -> tuple[float, bool]:
    """Score the last tokens of a row by `GPT.forward`, with nothing else in the batch."""
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.tensor([row[:-1]]))[0, -tail:].float(), -1)
    wanted = torch.tensor(row[-tail:])
    return float(log_probs.gather(1, wanted[:, None]).sum()), bool((log_probs.argmax(-1) == wanted).all())


#: What is special about a family: whether its requests may share a row, and the changes to the bundled model.
FAMILIES: dict[str, tuple[bool, dict[str, Any]]] = {
    "llama": (True, {}),
    "pythia": (True, {"rotary_percentage": 0.25, "parallel_residual": True, "bias": True}),
    "phi": (True, {"parallel_residual": True, "shared_attention_norm": True, "rotary_percentage": 0.5}),
    "qwen3": (True, {"norm_qk": True, "attn_bias": True}),
    "gemma": (True, {"scale_embeddings": True, "n_query_groups": 1}),
    "experts": (True, {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2}),
    "capped logits": (True, {"final_logit_softcapping": 3.0}),
    "window": (False, {"sliding_window_size": 6, "sliding_window_indices": [1, 0, 1]}),
    "capped attention": (False, {"attention_logit_softcapping": 5.0}),
    "two kinds of positions": (
        False,
        {"rope_local_base_freq": 100.0, "rope_indices": [1, 0, 1], "sliding_window_size": 6}
        | {"sliding_window_indices": [1, 0, 1]},
    ),
}


def family(name: str) -> Any:
    """A model with random weights that lead to attention and predictions which are far from uniform."""
    from litgpt.config import Config
    from litgpt.model import GPT

    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = GPT(Config.from_file(CHECKPOINT / "model_config.yaml", **FAMILIES[name][1]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, float(parameter.dim() == 1), 0.2)
    return model


def shapes() -> list[tuple[None, list[int], list[int]]]:
    """Requests that share all, some or nothing of their tokens, in no order."""
    rng = random.Random(3)

    def some(count: int) -> list[int]:
        return [rng.randrange(3, 500) for _ in range(count)]

    examples = some(25)
    contexts = [[1], some(30), some(9), *([*examples, *some(rng.randint(3, 12))] for _ in range(4)), some(140)]
    made = [(None, context, some(rng.choice([1, 1, 2, 9]))) for context in contexts for _ in range(4)]
    made += [(None, context, [token]) for context in contexts for token in (5, 6)]
    made += [(None, [*context, *continuation[:2]], [*continuation[2:], 7]) for _, context, continuation in made[:8]]
    made += [made[3], (None, [1], some(128))]
    rng.shuffle(made)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_each_request_alone(name: str, lit_lm: LitLM) -> None:
    model, asked = family(name), shapes()
    expected = [alone(model, [*context, *tail][-129:], len(tail)) for _, context, tail in asked]
    shares, _ = FAMILIES[name]
    assert takes_masks(model.config) == shares
    for tokens_at_once in (1, 100, 5000):
        found = LitLM(model, lit_lm.tokenizer, tokens_at_once)._loglikelihood_tokens(asked)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_greedy_continuations_are_found(lit_lm: LitLM) -> None:
    """So that the flags compared above are not all False: continuations made of the likeliest tokens."""
    model = family("llama")
    asked = []
    for _, context, _ in shapes()[:6]:
        row = context[-100:]
        for _ in range(3):
            row = [*row, int(model(torch.tensor([row]))[0, -1].argmax())]
        asked += [(None, row[:-3], row[-3:]), (None, row[:-3], [*row[-3:-1], (row[-1] + 1) % 500])]
    found = LitLM(model, lit_lm.tokenizer)._loglikelihood_tokens(asked)
    assert [greedy for _, greedy in found] == [True, False] * 6


def spied(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Sizes of the batches that pass through a model from now on."""
    sizes: list[torch.Size] = []
    trunk = forward.trunk

    def spy(model: Any, tokens: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(tokens.shape)
        return trunk(model, tokens, *others)

    monkeypatch.setattr(forward, "trunk", spy)
    return sizes


def test_what_is_shared_passes_through_the_model_once(lit_lm: LitLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = spied(monkeypatch)
    examples, question = [*range(10, 50)], [*range(60, 70)]
    context = [1, *examples, *question]
    lit_lm._loglikelihood_tokens([(None, context, [token, *range(100, 104)]) for token in range(4)])
    assert sizes == [(1, 51 + 4 * 4 + 5)]  # the last token of a continuation is predicted only; a multiple of 8
    sizes.clear()
    lit_lm._loglikelihood_tokens([(None, context, [token]) for token in range(4)])
    assert sizes == [(1, 51)], "one pass answers the letters of a question"
    sizes.clear()
    others = [(None, [1, *examples, 80 + number, *question], [token]) for number in range(5) for token in range(4)]
    lit_lm._loglikelihood_tokens(others)
    assert sizes == [(1, 41 + 5 * 11)], "questions share their examples"
    sizes.clear()
    lit_lm._loglikelihood_tokens([(None, [1, *range(n, n + 40)], [7, 8]) for n in range(9)])
    assert sum(rows for rows, _ in sizes) == 9, "what shares little has rows of its own"


def test_batches_keep_to_their_tokens_and_tell(model: Any, lit_lm: LitLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = spied(monkeypatch)
    told: list[tuple[int, int]] = []
    lm = LitLM(model, lit_lm.tokenizer, 100, on_batch=lambda done, total: told.append((done, total)))
    asked = pairs()
    lm.loglikelihood(requests(asked))
    assert len(sizes) > 3
    assert all(rows == 1 or rows * width <= 100 for rows, width in sizes)
    assert [total for _, total in told] == [len(asked)] * len(sizes)
    assert told[-1] == (len(asked), len(asked))
    assert sorted(told) == told


def test_the_head_runs_on_scored_positions_only_and_in_pieces(
    model: Any, lit_lm: LitLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: sizes.append(len(output)))
    asked = [(None, [1, 5, 6, 7], [8, 9]), (None, [1, 5], [9])]
    whole = lit_lm._loglikelihood_tokens(asked)
    assert sizes == [3]
    monkeypatch.setattr(forward, "LOGITS", 512 * 2)
    assert lit_lm._loglikelihood_tokens(asked) == whole
    assert sizes[1:] == [2, 1]


def test_many_texts_in_few_batches(lit_lm: LitLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = spied(monkeypatch)
    texts = [(document["query"],) for document in prompts()]
    lit_lm.tokens_at_once = 4000
    lit_lm.loglikelihood_rolling(requests(texts, "loglikelihood_rolling"))
    assert len(sizes) == 1


def test_numbers_that_are_none_are_a_divergence(model: Any, lit_lm: LitLM) -> None:
    with torch.no_grad():
        model.lm_head.weight.fill_(math.inf)
    with pytest.raises(AttemptError) as caught:
        lit_lm.loglikelihood(requests(pairs()[:1]))
    assert caught.value.kind == "diverged"


def test_what_cannot_be_scored_says_so(lit_lm: LitLM) -> None:
    with pytest.raises(ValueError, match="129 tokens"):
        lit_lm._loglikelihood_tokens([(None, [1], [5] * 129)])
    for options, words in (
        ({"do_sample": True, "temperature": 0.5}, "do_sample=True, temperature=0.5"),
        ({"temperature": 0.5}, "temperature=0.5"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"max_gen_toks": 128}, "leaves no room in 128 tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            lit_lm.generate_until(requests([("a", {"until": ["b"], "max_gen_toks": 5, **options})]))


def to_generate() -> list[tuple[str, dict[str, Any]]]:
    queries = [document["query"] for document in prompts()]
    kinds = [
        {"until": ["."], "max_gen_toks": 12, "do_sample": False},
        {"until": ["\n\n", " in the"], "max_gen_toks": 9, "temperature": 0.0},
        {"until": [], "max_gen_toks": 20},
        {"until": "e", "max_new_tokens": 7, "do_sample": False, "temperature": 0.7},
    ]
    asked = [(query, kinds[number % 4]) for number, query in enumerate(queries)]
    return [*asked, (queries[0] * 12, kinds[2]), ("<s>" + queries[1], kinds[0]), ("The", kinds[1])]


@pytest.mark.parametrize("tokens_at_once", [1, 150, 4000])
def test_generated_texts_are_those_of_the_converted_model(model: Any, hflm: Any, tokens_at_once: int) -> None:
    lm = LitLM(model, AutoTokenizer.from_pretrained(CHECKPOINT), tokens_at_once)
    asked = requests(to_generate(), "generate_until")
    # one at a time: HFLM adds no first token to a batch of which one text spells it out
    theirs = [hflm.generate_until([request], disable_tqdm=True)[0] for request in asked]
    assert lm.generate_until(asked) == theirs
    assert len({text for text in theirs if text}) > 6


@pytest.mark.parametrize("name", FAMILIES)
def test_generated_tokens_are_the_likeliest_ones(name: str, lit_lm: LitLM) -> None:
    model = family(name)
    contexts = [context[-100:] for _, context, _ in shapes()[:5]]
    decoding = Decoding(until=(), max_gen_toks=10)
    with torch.no_grad():
        found = generate(model, lit_lm.tokenizer, contexts, decoding, lit_lm.eot_token_id)
        for context, text in zip(contexts, found, strict=True):
            row = list(context)
            for _ in range(10):
                row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
                if row[-1] == lit_lm.eot_token_id:
                    break
            assert text == lit_lm.tokenizer.decode(row[len(context) :], skip_special_tokens=True)
    assert model.mask_cache is None
    assert all(block.attn.kv_cache is None for block in model.transformer.h)


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


def test_lm_evals_own_tasks_are_found_without_reading_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    shutil.copytree(CHECKPOINT.parent / "tasks", tmp_path / "own")
    (tmp_path / "own" / "mixed.yaml").write_text("group: mixed\ntask: [village_val, arc_easy, mmlu]\n")
    everything: list[bool] = []

    full = lm_eval.tasks.TaskManager(include_path=str(tmp_path / "own"))

    class Spy(lm_eval.tasks.TaskManager):  # type: ignore[misc]  # lm-eval ships no types
        def __init__(self, include_path: Any, include_defaults: bool) -> None:
            everything.append(include_defaults)
            if include_defaults:
                self._index = full.task_index
            else:
                super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Spy)
    for names in (["hellaswag", "mmlu"], ["mmlu_anatomy"], ["mixed", "village_test"], ["village_val"]):
        found = find_tasks(names, tmp_path / "own").task_index
        known = [name for name, entry in found.items() if entry.kind is not Kind.TAG]
        assert set(names) <= set(known)
        assert all(found[name].yaml_path == full.task_index[name].yaml_path for name in known)
        stem = [name for name in ("mmlu_stem_tasks", "mmlu_other_tasks") if name in found]
        assert all(found[name].tags == full.task_index[name].tags for name in stem)
    assert not any(everything)
    for names in (["ai2_arc"], ["mmlu_stem_tasks"], ["hellaswga"]):  # two tags and no task
        everything.clear()
        assert len(find_tasks(names, None).task_index) > 10_000
        assert everything[-1], names


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
