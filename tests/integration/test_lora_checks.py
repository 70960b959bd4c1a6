"""What can be known before training is known before training: in `run`, in `doctor`, and at a job's start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lora_bench import BUNDLE, objective, run_attempt, write_data

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.objectives.lora import tasks as lm_tasks
from hpo_cluster.objectives.lora.checks import faults_of_settings
from hpo_cluster.objectives.lora.metrics import MEASURES
from hpo_cluster.objectives.lora.objective import LoraObjective

Change = Callable[[dict[str, Any], Path], None]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of a job, on copies of the bundled files that a test may change."""
    data = write_data(tmp_path / "data")
    shutil.copytree(BUNDLE / "tasks", tmp_path / "tasks")
    shutil.copytree(BUNDLE / "checkpoint", tmp_path / "checkpoint")
    made = objective(data, checkpoint=tmp_path / "checkpoint").model_dump(mode="json")
    made["tasks"]["include_path"] = str(tmp_path / "tasks")
    return made


def metric(name: str) -> Change:
    return lambda settings, folder: settings["tasks"].update(metric=name, test=[])


def validation(text: str) -> Change:
    """Another validation task, defined by that YAML."""

    def change(settings: dict[str, Any], folder: Path) -> None:
        (folder / "tasks" / "other.yaml").write_text(text)
        settings["tasks"].update(validation="other", test=[])

    return change


def task(**changes: Any) -> Change:
    """The validation task with other entries."""

    def change(settings: dict[str, Any], folder: Path) -> None:
        path = folder / "tasks" / "village_val.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    return change


def generates(**options: Any) -> Change:
    """A test task that generates text, with those options."""

    def change(settings: dict[str, Any], folder: Path) -> None:
        entry = {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}], "task": "talks"}
        original = yaml.safe_load((folder / "tasks" / "village_test.yaml").read_text())
        made = {**original, **entry, "generation_kwargs": {"until": ["."], "max_gen_toks": 8, **options}}
        del made["doc_to_choice"]
        (folder / "tasks" / "talks.yaml").write_text(yaml.safe_dump({**made, "doc_to_target": "{{choices[gold]}}"}))
        settings["tasks"]["test"] = ["village_test", "talks"]

    return change


def tokenizer_config(**changes: Any) -> Change:
    def change(settings: dict[str, Any], folder: Path) -> None:
        path = folder / "checkpoint" / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def experts(settings: dict[str, Any], folder: Path) -> None:
    path = folder / "checkpoint" / "model_config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "n_expert": 4, "n_expert_per_token": 2}))
    settings["train"].update(lora_mlp=True, lora_dropout=0.1, dropout_draws="litgpt")


def data(text: str | bytes, name: str = "train.json") -> Change:
    def change(settings: dict[str, Any], folder: Path) -> None:
        (folder / "data" / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return change


FAULTS: dict[str, tuple[Change, str, str]] = {
    "misspelt metric": (metric("acc_nrom"), "bad_config", "did you mean acc_norm? accepted: acc, acc_norm, val_loss"),
    "misspelt measure": (metric("trainable_params"), "bad_config", "did you mean trainable_parameters?"),
    "another task's metric": (metric("hellaswag/acc"), "bad_config", "no task of tasks.validation=village_val has it"),
    "misspelt in full": (metric("village_val/acc_nrom"), "bad_config", "did you mean village_val/acc_norm?"),
    "tag": (task(tag="other", task="one"), "missing_task", "village_val"),
    "group without a value": (
        validation("group: other\ntask: [village_val, village_test]\n"),
        "bad_config",
        "without an aggregate_metric_list",
    ),
    "a task twice": (
        lambda settings, folder: (
            (folder / "tasks" / "both.yaml").write_text("group: both\ntask: [village_val, village_test]\n"),
            settings["tasks"].update(validation="village_val", test=["both"]),
        ),
        "bad_config",
        "name it once",
    ),
    "samples": (
        generates(do_sample=True, temperature=0.7),
        "bad_config",
        "task talks has generation_kwargs do_sample=True, temperature=0.7: evaluation=in_memory decodes greedily",
    ),
    "generates too much": (generates(max_gen_toks=128), "bad_config", "task talks generates up to 128 tokens"),
    "too many examples": (
        lambda settings, folder: settings["tasks"].update(num_fewshot=2000),
        "bad_config",
        "has only 639 documents",
    ),
    "broken template": (task(doc_to_text="{{nothing.at.all}}"), "bad_config", "cannot be loaded"),
    "no eos": (tokenizer_config(eos_token=None), "missing_model", "no eos token"),
    "newer tokenizer": (tokenizer_config(extra_special_tokens=["<a>"]), "missing_model", "newer version"),
    "prompt style": (
        lambda settings, folder: settings["data"].update(prompt_style="llama-3"),
        "bad_config",
        "did you mean llama3?",
    ),
    "experts": (experts, "bad_config", "train.dropout_draws=litgpt: not for a mixture of experts"),
    "Latin-1": (data('[{"instruction": "é", "output": "b"}]'.encode("latin1")), "bad_data", "iconv -f latin1"),
    "gzip": (data(b"\x1f\x8b123"), "bad_data", "gunzip"),
    "an object": (data('{"rows": []}'), "bad_data", "one dict with the keys 'rows'"),
    "other columns": (data('[{"prompt": "a", "response": "b"}]'), "bad_data", "it has prompt, response"),
    "input": (data('[{"instruction": "a", "output": "b", "input": 5}]'), "bad_data", "input=5 is not a text"),
    "no validation rows": (
        lambda settings, folder: (
            (folder / "data" / "val.json").unlink(),
            settings["data"].update(val_split_fraction=0),
            settings["tasks"].update(metric="val_loss"),
            settings.update(direction="minimize"),
        ),
        "bad_config",
        "there are no validation rows",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_before_training_and_is_of_the_right_kind(
    fault: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    change, kind, words = FAULTS[fault]
    assert faults_of_settings(settings) == []
    change(settings, tmp_path)
    found = faults_of_settings(settings)
    assert [error.kind for error in found][:1] == [kind], list(map(str, found))
    assert words in str(found[0])


@pytest.mark.parametrize("fault", ["misspelt metric", "samples", "no eos", "prompt style"])
def test_a_job_ends_with_it_before_it_trains(fault: str, settings: dict[str, Any], tmp_path: Path) -> None:
    change, kind, words = FAULTS[fault]
    change(settings, tmp_path)
    error = run_attempt(tmp_path / "a0", LoraObjective.model_validate(settings))
    assert error["kind"] == kind
    assert words in error["message"]
    assert "train" not in error["seconds"]


def test_a_task_that_generates_is_scored_in_memory_as_by_the_classic_route(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: dict[str, list[str]] = {}
    score = lm_tasks.score

    def spy(lm: Any, tasks: Any, *which: Any) -> Any:
        generate = lm.generate_until

        def generate_until(requests: Any, **options: Any) -> Any:
            texts[type(lm).__name__] = made = generate(requests, **options)
            return made

        lm.generate_until = generate_until
        return score(lm, tasks, *which)

    monkeypatch.setattr(lm_tasks, "score", spy)
    generates()(settings, tmp_path)
    settings["tasks"].update(limit=6, validation="talks", test=[], metric="exact_match")
    settings["train"].update(max_steps=2, lr_warmup_steps=0)
    for evaluation in ("in_memory", "litgpt_cli"):
        what = LoraObjective.model_validate({**settings, "evaluation": evaluation})
        assert "talks/exact_match" in run_attempt(tmp_path / evaluation, what)["metrics"]
    assert texts["LitLM"] == texts["HFLM"]
    assert len(set(texts["LitLM"])) > 2


def test_a_tag_has_no_value_of_its_own(settings: dict[str, Any], tmp_path: Path) -> None:
    task(tag="several")(settings, tmp_path)
    settings["tasks"]["validation"] = "several"
    assert "is a tag for village_val" in str(faults_of_settings(settings)[0])


def test_a_metric_of_ones_own_says_which_way_is_better(settings: dict[str, Any], tmp_path: Path) -> None:
    entries = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    entries += [{"metric": "acc_bytes", "aggregation": "mean", "higher_is_better": False}]
    task(metric_list=entries)(settings, tmp_path)
    settings["tasks"].update(metric="acc_bytes")
    assert "give objective.direction=minimize" in str(faults_of_settings(settings)[0])
    settings["direction"] = "minimize"
    assert faults_of_settings(settings) == []


def test_run_and_doctor_say_all_of_it_and_create_nothing(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tokenizer_config(eos_token=None)(settings, tmp_path)
    words = [
        "tasks=local", "tasks.validation=village_val", f"tasks.include_path={tmp_path}/tasks", "tasks.metric=acc_nrom",
        "data.prompt_style=llama-3", f"model.checkpoint_dir={tmp_path}/checkpoint", f"data.path={tmp_path}/data",
    ]  # fmt: skip
    assert main(["run", *words]) == 2
    said = capsys.readouterr().err
    assert "3 faults:" in said
    assert all(part in said for part in ("did you mean acc_norm", "did you mean llama3", "no eos token"))
    assert list(Path.cwd().iterdir()) == []
    assert main(["doctor", *words]) == 1
    assert capsys.readouterr().out.count("FAULT") == 4  # and that no job was submitted


# --- directions, data of other shapes --------------------------------------------------------------------------------


def of(**tasks: Any) -> dict[str, Any]:
    made = objective(BUNDLE / "data").model_dump(mode="json")
    del made["direction"]
    made["tasks"].update(tasks)
    return made


def test_the_direction_is_the_metrics() -> None:
    assert LoraObjective.model_validate(of()).direction == "maximize"
    assert LoraObjective.model_validate(of(metric="tokens_per_s")).direction == "maximize"
    with pytest.raises(ValueError, match="more tokens_per_s is better; give maximize"):
        LoraObjective.model_validate({**of(metric="tokens_per_s"), "direction": "minimize"})
    costs = [name for name, less in MEASURES.items() if less]
    for name in ("word_perplexity", "ter", "bits_per_byte", "village_val/word_perplexity", *costs):
        assert LoraObjective.model_validate(of(metric=name)).direction == "minimize"
        assert LoraObjective.model_validate({**of(metric=name), "direction": None}).direction == "minimize"
        with pytest.raises(ValueError, match=f"less {name} is better; give minimize"):
            LoraObjective.model_validate({**of(metric=name), "direction": "maximize"})
    with pytest.raises(ValueError, match="more exact_match,flexible is better"):
        LoraObjective.model_validate({**of(metric="exact_match,flexible"), "direction": "minimize"})


def test_whatever_a_result_measures_can_be_optimised(tmp_path: Path) -> None:
    result = run_attempt(tmp_path / "a0", objective(BUNDLE / "data", limit=4, max_steps=2))
    assert {*MEASURES} - result["metrics"].keys() == {"energy_wh"}  # nothing counts it on a CPU
    for name in (*MEASURES, "village_val/acc_norm"):
        if name != "energy_wh":
            assert LoraObjective.model_validate(of(metric=name)).outcome(result).value == result["metrics"][name]
    short, full = (LoraObjective.model_validate(of(metric=name)) for name in ("acc_norm", "village_val/acc_norm"))
    assert short.metric == full.metric


def test_what_cannot_be_measured_ends_a_job_before_it_trains(tmp_path: Path) -> None:
    train = {"train": objective(BUNDLE / "data").train}
    for name, baseline, words in (("energy_wh", False, "optimise train_s"), ("train_s", True, "give baseline=false")):
        what = LoraObjective.model_validate(of(metric=name)).model_copy(update=train)
        error = run_attempt(tmp_path / name, what, baseline=baseline)
        assert error["kind"] == "bad_config"
        assert words in error["message"]
        assert "train" not in error["seconds"]


def test_test_tasks_are_not_optimised(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="village_test is a test task: it is only recorded"):
        LoraObjective.model_validate(of(metric="village_test/acc"))
    (tmp_path / "tasks" / "final.yaml").write_text("group: final\ntask: [village_test]\n")
    settings["tasks"].update(metric="village_test/acc", test=["final"])
    assert "village_test is a test task" in str(faults_of_settings(settings)[0])
    task(tag="several")(settings, tmp_path)
    settings["tasks"].update(validation="village_test", metric="village_val/acc", test=["several"])
    assert "village_val is a test task" in str(faults_of_settings(settings)[0])


def test_a_task_of_a_group_or_a_tag_can_be_optimised(settings: dict[str, Any], tmp_path: Path) -> None:
    validation("group: other\ntask: [village_val, village_test]\n")(settings, tmp_path)
    for name in ("village_test/acc", "village_val/acc_norm"):
        settings["tasks"]["metric"] = name
        assert faults_of_settings(settings) == []
    settings["tasks"]["metric"] = "village_test/acc_nrom"
    assert "did you mean village_test/acc_norm?" in str(faults_of_settings(settings)[0])
    task(tag="several")(settings, tmp_path)
    settings["tasks"].update(validation="several", metric="village_val/acc")
    assert faults_of_settings(settings) == []


def test_a_campaign_finds_the_smallest_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "run", "optimizer=grid", "space={lora_rank: {choices: [8, 2]}}", "campaign=small", "tasks.limit=2",
        "train.max_steps=1", "tasks.metric=trainable_parameters", "poll_s=0.1", "budget=2",
    ]  # fmt: skip
    assert main([*words, "objective.direction=maximize"]) == 2
    assert "less trainable_parameters is better; give minimize" in capsys.readouterr().err
    assert main([*words, "baseline=true"]) == 2
    assert "a model before fine-tuning has no trainable_parameters" in capsys.readouterr().err
    assert not (tmp_path / "campaigns").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "lora_rank=2" in next(line for line in said.splitlines() if line.startswith("best "))
    assert "village_test/acc " in said, "test tasks are shown all the same"
    history = load_history("campaigns/small")
    assert list(history["value"]) == list(history["metric.trainable_parameters"])
    assert history["target"].max() == -history["value"].min()


def test_the_validation_loss_can_be_optimised(tmp_path: Path) -> None:
    what = LoraObjective.model_validate(of(metric="val_loss", limit=4))
    result = run_attempt(tmp_path / "a0", what.model_copy(update={"train": objective(BUNDLE / "data").train}))
    outcome = what.outcome(result)
    assert outcome.value == result["metrics"]["val_loss"]
    with pytest.raises(ValueError, match="validation_batches=0 does not measure it"):
        LoraObjective.model_validate({**of(metric="val_loss"), "train": {"validation_batches": 0}})


ROWS = json.loads((BUNDLE / "data" / "train.json").read_text())[:24]
RENAMED = [{"prompt": row["instruction"], "response": row["output"]} for row in ROWS]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


SHAPES = {
    "jsonl": ("rows.jsonl", jsonl(ROWS), {}),
    "jsonl under another name": ("rows.json", jsonl(ROWS), {}),
    "byte order mark": ("rows.json", "\ufeff" + json.dumps(ROWS), {}),
    "other columns": ("rows.json", json.dumps(RENAMED), {"instruction": "prompt", "output": "response"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_data_of_another_shape_trains_as_the_same_rows_in_json_do(shape: str, tmp_path: Path) -> None:
    name, text, fields = SHAPES[shape]
    (tmp_path / "plain.json").write_text(json.dumps(ROWS))
    (tmp_path / name).write_text(text, encoding="utf-8")
    losses = []
    for number, (path, columns) in enumerate([(tmp_path / "plain.json", {}), (tmp_path / name, fields)]):
        what = objective(path, limit=2)
        update = {"fields": columns, "val_split_fraction": 0.25}
        what = what.model_copy(update={"data": what.data.model_copy(update=update)})
        result = run_attempt(tmp_path / f"a{number}", what)
        losses.append((result["metrics"]["train_loss"], result["metrics"]["val_loss"], result["examples"]))
    assert losses[0] == losses[1]


def test_training_without_validation_rows(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(jsonl(ROWS))
    what = objective(tmp_path / "data", limit=2)
    what = what.model_copy(update={"data": what.data.model_copy(update={"val_split_fraction": 0.0})})
    result = run_attempt(tmp_path / "a0", what)
    assert "val_loss" not in result["metrics"]
    assert result["examples"] == len(ROWS)


def test_nothing_to_learn_is_not_success(tmp_path: Path) -> None:
    """Prompts that are longer than the context leave no token of the answer, and a loss of zero."""
    folder = write_data(tmp_path / "data", rows=20)
    long = {"instruction": " ".join(["Where do I find Jotep?"] * 200), "output": "Here."}
    for count, kind in ((20, "bad_data"), (5, None)):
        (folder / "train.json").write_text(json.dumps([long] * count + ROWS[: 20 - count]))
        what = objective(folder, limit=2)
        what = what.model_copy(update={"data": what.data.model_copy(update={"mask_prompt": True})})
        document = run_attempt(tmp_path / f"a{count}", what)
        assert document.get("kind") == kind
        if kind:
            assert "none of the 20 training examples has a token to learn" in document["message"]
        else:
            assert document["examples_without_labels"] == 5


def test_a_campaign_from_before_there_were_column_names_is_the_same_campaign() -> None:
    identity = LoraObjective.model_validate(of()).identity()
    assert "fields" not in identity["data"]
    assert "tokens_at_once" not in identity["tasks"], "it changes no result"
    assert identity["direction"] == "maximize"


def test_a_group_with_a_value_of_its_own_can_be_optimised(settings: dict[str, Any], tmp_path: Path) -> None:
    entry = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    validation(f"group: other\ntask: [village_val, village_test]\n{entry}")(settings, tmp_path)
    assert faults_of_settings(settings) == []
    settings["tasks"]["metric"] = "acc_norm"
    assert "accepted: acc, val_loss, train_loss" in str(faults_of_settings(settings)[0])
