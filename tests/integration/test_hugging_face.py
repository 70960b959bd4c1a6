"""A Hugging Face folder as the base model: converted once by `prepare`, then trained and scored as transformers would.

The folders are made here with transformers from random weights.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lora_bench import BUNDLE, objective, run_attempt, train_sentencepiece, write_data, write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpo_cluster.cli.main import main
from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.lora import convert as lit_convert
from hpo_cluster.objectives.lora.convert import ConversionError, convert
from hpo_cluster.objectives.lora.hugging_face import ORIGIN, converted_dir
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.prepare import prepare

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 5000.0,
    "initializer_range": 0.4,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: Architecture and settings of each model that is compared with transformers.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama-3-rope": ("llama", {"rope_scaling": LLAMA3_ROPE, "head_dim": 16}),
    "llama-linear-rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "pythia-14m": ("gpt_neox", {}),  # not of `BUILDERS`: LitGPT knows it by its name
}
TEXTS = ("Ada lives by the river and keeps bees.", "Which animal does Bruno keep?", "one two three four five six " * 4)


def write_model(folder: Path, kind: str, vocab_size: int, shards: str = "5GB", **changes: Any) -> None:
    """Random weights of an architecture, as transformers saves them."""
    from transformers import CONFIG_MAPPING

    torch.manual_seed(1)
    sizes = {**SIZES, **changes, "vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "gpt_neox":
        sizes |= {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "rope_theta": 10000.0}
        sizes |= {"max_position_embeddings": 512, "vocab_size": 50304, "initializer_range": 0.1}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes))
    for name, value in model.named_parameters():  # transformers begins them with zeros and ones
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(value, float("norm" in name and not name.endswith("bias")), 0.3)
    model.save_pretrained(folder, max_shard_size=shards)


def write_village_tokenizer(folder: Path) -> int:
    """The bundled tokenizer; returns the size of its vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLE / "checkpoint")
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def hugging_face(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    write_model(folder, kind, write_village_tokenizer(folder), **changes)
    return folder


class Resolve:
    """Paths of one storage folder."""

    def __init__(self, storage_dir: Path) -> None:
        self.storage_dir = storage_dir

    def __call__(self, path: str) -> Path:
        prefix, separator, rest = path.partition(":")
        return {"storage": self.storage_dir, "bundle": BUNDLE.parent}[prefix] / rest if separator else Path(path)


@pytest.fixture
def resolve(tmp_path: Path) -> Resolve:
    return Resolve(tmp_path / "storage")


def lora(folder: Path, data: Path = BUNDLE / "data", **train: Any) -> LoraObjective:
    return objective(data, checkpoint=folder, **train)


def to_prepare(folder: Path) -> LoraObjective:
    """With bundled data and tasks, with which nothing is to be done."""
    what = lora(folder)
    data = what.data.model_copy(update={"path": "bundle:village/data"})
    tasks = what.tasks.model_copy(update={"include_path": "bundle:village/tasks"})
    return what.model_copy(update={"data": data, "tasks": tasks})


def prepared(folder: Path, resolve: Resolve) -> Path:
    prepare(to_prepare(folder), resolve, lambda _: None)
    return converted_dir(folder, resolve)


def fault(folder: Path, resolve: Resolve) -> str:
    with pytest.raises(ConfigError) as caught:
        prepared(folder, resolve)
    (only,) = caught.value.faults
    return only


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lit_model(checkpoint: Path) -> Any:
    from litgpt.config import Config
    from litgpt.model import GPT

    model = GPT(Config.from_file(checkpoint / "model_config.yaml"))
    model.load_state_dict(torch.load(checkpoint / "lit_model.pth", weights_only=True))
    return model


def log_likelihoods(lm: Any, texts: tuple[str, ...] = TEXTS) -> list[float]:
    """Of the second half of each text after the first, and of each text as a whole."""
    from lm_eval.api.instance import Instance

    def requests(kind: str, arguments: Callable[[str], tuple[str, ...]]) -> list[Instance]:
        return [Instance(kind, {}, arguments(text), number) for number, text in enumerate(texts)]

    halves = lm.loglikelihood(requests("loglikelihood", lambda t: (t[: len(t) // 2], t[len(t) // 2 :])))
    whole = lm.loglikelihood_rolling(requests("loglikelihood_rolling", lambda t: (t,)))
    return [score for score, _ in halves] + list(whole)


def of_transformers(folder: Path) -> list[float]:
    """lm-eval's own model over transformers, on the folder as it is."""
    from lm_eval.models.huggingface import HFLM

    return log_likelihoods(HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4))


def of_ours(checkpoint: Path, tokens_at_once: int | None = None) -> list[float]:
    from hpo_cluster.objectives.lora.language_model import LitLM

    return log_likelihoods(LitLM(lit_model(checkpoint), AutoTokenizer.from_pretrained(checkpoint), tokens_at_once))


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_transformers(name: str, tmp_path: Path, resolve: Resolve) -> None:
    kind, changes = MODELS[name]
    folder = hugging_face(tmp_path / name, kind, **changes)
    before = files(folder)
    checkpoint = prepared(folder, resolve)
    assert files(folder) == before
    theirs = of_transformers(folder)
    for tokens_at_once in (None, 40):
        assert of_ours(checkpoint, tokens_at_once) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_job_trains_and_the_exported_model_scores_as_the_job_did(kind: str, tmp_path: Path, resolve: Resolve) -> None:
    from lm_eval.models.huggingface import HFLM

    from hpo_cluster.objectives.lora.adapter import export_adapter
    from hpo_cluster.objectives.lora.checks import load_tasks_of
    from hpo_cluster.objectives.lora.tasks import score

    folder = hugging_face(tmp_path / "mine", kind)
    what = lora(prepared(folder, resolve), write_data(tmp_path / "data"), max_steps=1, lr_warmup_steps=0)
    trained = run_attempt(tmp_path / "a0", what)["metrics"]
    export_adapter(tmp_path / "a0" / "adapter", tmp_path / "exported")
    their_lm = HFLM(pretrained=str(tmp_path / "exported"), device="cpu", dtype="float32", batch_size=8)
    theirs, _ = score(their_lm, load_tasks_of(what, tmp_path / "cache"), what.tasks.limit)
    assert theirs == pytest.approx({name: trained[name] for name in theirs})
    again = prepared(tmp_path / "exported", resolve)  # pytorch_model.bin, as the base of another campaign
    assert of_ours(again) == pytest.approx(of_transformers(tmp_path / "exported"), abs=1e-4)
    base = run_attempt(tmp_path / "a1", what, baseline=True)["metrics"]
    assert base["val_loss"] != trained["val_loss"]


def test_several_files_of_weights(tmp_path: Path, resolve: Resolve) -> None:
    folder = hugging_face(tmp_path / "mine", shards="20kB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    (folder / "adapter_model.safetensors").write_text("of something else")
    assert of_ours(prepared(folder, resolve)) == pytest.approx(of_transformers(folder), abs=1e-4)

    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    other = Resolve(tmp_path / "elsewhere")
    assert f"lacks {gone.name}; copy the folder again" in fault(folder, other)
    assert list((tmp_path / "elsewhere" / "checkpoints" / "converted").iterdir()) == []


# --- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_alone(kind: str, tmp_path: Path, resolve: Resolve) -> None:
    folder = tmp_path / "mine"
    write_model(folder, "llama", train_sentencepiece(folder, kind))
    checkpoint = prepared(folder, resolve)

    from litgpt.tokenizer import Tokenizer
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    scoring, training = AutoTokenizer.from_pretrained(checkpoint), Tokenizer(checkpoint)
    assert training.backend == "huggingface"
    for text in (*TEXTS, *lit_convert.SAMPLES, "two  spaces and\ttabs", "naïve façade"):
        wanted = [pieces.bos_id(), *pieces.encode(text)]
        assert scoring.encode(text) == wanted
        assert training.encode(text).tolist() == wanted
    assert training.eos_id == scoring.eos_token_id == pieces.eos_id()
    assert of_ours(checkpoint) == pytest.approx(of_transformers(folder), abs=1e-4)

    what = lora(checkpoint, write_data(tmp_path / "data"), max_steps=1)
    assert set(run_attempt(tmp_path / "a0", what)["metrics"]) >= {"village_val/acc", "val_loss"}


def test_without_sentencepiece_the_fault_says_what_to_install(
    tmp_path: Path, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hugging_face(tmp_path / "mine")
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setattr(lit_convert, "_is_installed", lambda module: module != "sentencepiece")
    said = fault(folder, resolve)
    assert said.endswith("tokenizer.model cannot be read without sentencepiece; type: pip install sentencepiece")


def test_training_begins_with_the_token_that_scoring_begins_with(tmp_path: Path, resolve: Resolve) -> None:
    from litgpt.tokenizer import Tokenizer

    folder = hugging_face(tmp_path / "mine")
    write_tokenizer(folder, "{bos} $A")
    original = AutoTokenizer.from_pretrained(folder)
    assert Tokenizer(folder).encode("a").tolist() != original.encode("a")  # what LitGPT makes of the folder as it is
    checkpoint = prepared(folder, resolve)
    wanted = original.encode("a")
    assert wanted[0] == original.bos_token_id
    assert Tokenizer(checkpoint).encode("a").tolist() == wanted
    assert AutoTokenizer.from_pretrained(checkpoint).encode("a") == wanted


def test_a_name_that_litgpt_has_a_rule_for(tmp_path: Path, resolve: Resolve) -> None:
    from litgpt.tokenizer import Tokenizer

    folder = hugging_face(tmp_path / "Llama-3-mine")
    wanted = AutoTokenizer.from_pretrained(folder).encode("a")
    assert Tokenizer(folder).encode("a").tolist() != wanted
    assert Tokenizer(prepared(folder, resolve)).encode("a").tolist() == wanted


def test_tokens_that_training_and_scoring_disagree_about(tmp_path: Path, resolve: Resolve) -> None:
    from tokenizers.processors import TemplateProcessing

    folder = hugging_face(tmp_path / "mine")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    last = [(tokenizer.eos_token, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=last
    )
    tokenizer.save_pretrained(folder)
    assert "differs between training and scoring: LitGPT reads 'a' as" in fault(folder, resolve)


# --- what is done once, whole or not at all --------------------------------------------------------------------------


def words(folder: Path, tmp_path: Path) -> list[str]:
    return ["model=local", f"model.checkpoint_dir={folder}", f"storage_dir={tmp_path / 'storage'}"]


def test_from_prepare_to_run_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = hugging_face(tmp_path / "my model")
    command = words(folder, tmp_path)
    typed = f"model=local 'model.checkpoint_dir={folder}' storage_dir={tmp_path}/storage"

    assert main(["run", *command]) == 2
    said = capsys.readouterr().err
    assert f"{folder} is a Hugging Face model that has not been converted" in said
    assert f"run: hpo-cluster prepare {typed}" in said
    assert main(["doctor", *command]) == 1
    out = capsys.readouterr().out
    assert out.count("FAULT") == 2  # and that no job was submitted
    assert f"-> run: hpo-cluster prepare {typed}" in out
    assert list(Path.cwd().iterdir()) == []
    assert not (tmp_path / "storage").exists()

    assert main(["prepare", *command]) == 0
    said = capsys.readouterr().out
    assert f"done; next, with your other settings: hpo-cluster run {typed}" in said
    quick = ["launcher=local", "train.max_steps=1", "train.precision=32-true", "tasks.limit=4", "baseline=false"]
    budget = ["optimizer=random", "budget=1", "workers=1", "campaign=c"]
    assert main(["run", *command, *quick, *budget]) == 0
    capsys.readouterr()
    (result,) = (Path.cwd() / "campaigns" / "c" / "trials").glob("*/a0/result.json")
    params = json.loads((result.parent / "params.json").read_text())
    converted = converted_dir(folder, Resolve(tmp_path / "storage"))
    assert params["settings"]["model"]["checkpoint_dir"] == str(converted)


def test_a_second_time_and_a_folder_that_changed(tmp_path: Path, resolve: Resolve) -> None:
    folder = hugging_face(tmp_path / "mine")
    converted = prepared(folder, resolve)
    before = files(converted)
    lines: list[str] = []
    prepare(to_prepare(folder), resolve, lines.append)
    assert lines[0] == f"model village: already converted, nothing to do ({folder} -> {converted})"
    assert files(converted) == before
    assert lora(folder).file_faults(resolve) == []

    hugging_face(folder, rms_norm_eps=1e-4)
    (said,) = lora(folder).file_faults(resolve)
    assert f"{folder} has changed since it was converted to {converted}; move {converted} away and run:" in said
    assert fault(folder, resolve) == said
    assert files(converted) == before
    shutil.rmtree(converted)
    prepared(folder, resolve)
    assert yaml.safe_load((converted / "model_config.yaml").read_text())["norm_eps"] == 1e-4

    (converted / "lit_model.pth").unlink()
    (said,) = lora(folder).file_faults(resolve)
    assert "lacks lit_model.pth; move it away and run: hpo-cluster prepare" in said
    assert fault(folder, resolve) == said


def test_folders_of_one_name_and_a_folder_that_is_gone(tmp_path: Path, resolve: Resolve) -> None:
    one, other = hugging_face(tmp_path / "a" / "mine"), hugging_face(tmp_path / "b" / "mine", "qwen2")
    converted = [prepared(folder, resolve) for folder in (one, other)]
    names = [yaml.safe_load((folder / "model_config.yaml").read_text())["name"] for folder in converted]
    assert names == ["Llama-converted", "Qwen2.5-converted"]
    shutil.rmtree(one)
    assert lora(one).file_faults(resolve) == []
    assert lora(one).job_settings(resolve)["model"]["checkpoint_dir"] == str(converted[0])


STALL = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from hpo_cluster.objectives.lora import prepare as module
from test_hugging_face import Resolve, to_prepare
original = module.convert
def slow(source, folder):
    original(source, folder)
    Path({ready!r}).touch()
    while not Path({go!r}).exists():
        time.sleep(0.02)
module.convert = slow
module.prepare(to_prepare(Path({folder!r})), Resolve(Path({storage!r})), print)
"""


def start_slow(tmp_path: Path, folder: Path) -> subprocess.Popen[str]:
    """A `prepare` that waits, when all is converted, before it gives the checkpoint its name."""
    paths = {name: str(tmp_path / name) for name in ("ready", "go", "storage")}
    code = STALL.format(tests=str(Path(__file__).parent), folder=str(folder), **paths)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    until = time.time() + 120
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        assert time.time() < until
        time.sleep(0.05)
    return process


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_one(tmp_path: Path, resolve: Resolve) -> None:
    folder = hugging_face(tmp_path / "mine")
    process = start_slow(tmp_path, folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    converted = converted_dir(folder, resolve)
    (left,) = converted.parent.iterdir()
    assert left != converted
    (said,) = lora(folder).file_faults(resolve)
    assert "has not been converted for LitGPT yet" in said
    prepared(folder, resolve)
    assert list(converted.parent.iterdir()) == [converted]


def test_two_conversions_at_once(tmp_path: Path, resolve: Resolve) -> None:
    folder = hugging_face(tmp_path / "mine")
    process = start_slow(tmp_path, folder)
    converted = prepared(folder, resolve)
    before = files(converted)
    (tmp_path / "go").touch()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "another prepare has converted it in the meantime" in said
    assert files(converted) == before
    assert list(converted.parent.iterdir()) == [converted]


# --- what cannot be converted ----------------------------------------------------------------------------------------


def settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def other_head(folder: Path) -> None:
    settings(tie_word_embeddings=True)(folder)


def no_eos(folder: Path) -> None:
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (settings(model_type="bert"), "model_type='bert' in config.json is not one that can be converted"),
        (settings(model_type=None), "accepted: llama, mistral, qwen2, qwen3"),
        (settings(hidden_act="gelu", mlp_bias=True), "hidden_act='gelu' (accepted: 'silu'); mlp_bias=true"),
        (settings(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope_scaling of type 'yarn'"),
        (settings(quantization_config={"quant_method": "gptq"}), "use the model before quantization"),
        (settings(intermediate_size=64), "do not fit its configuration: transformer.h.0.mlp.fc_1.weight has shape"),
        (truncated, "LitGPT cannot convert the weights of mine: "),
        (other_head, "tie_word_embeddings=true, but its weights contain a separate head"),
        (no_eos, "has no eos token: add"),
        (no_tokenizer, "cannot be read by transformers"),
    ],
)
def test_what_cannot_be_converted(change: Callable[[Path], None], says: str, tmp_path: Path, resolve: Resolve) -> None:
    folder = hugging_face(tmp_path / "mine")
    change(folder)
    assert says in fault(folder, resolve)
    assert list((tmp_path / "storage" / "checkpoints" / "converted").iterdir()) == []


def test_conversion_asks_for_no_more_than_the_folder(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "mine")
    (tmp_path / "made").mkdir()
    convert(folder, tmp_path / "made")
    assert not any(path.is_symlink() for path in (tmp_path / "made").iterdir())
    assert not (tmp_path / "made" / ORIGIN).exists()
    shutil.rmtree(folder)
    with pytest.raises(ConversionError):
        convert(folder, tmp_path / "made")
