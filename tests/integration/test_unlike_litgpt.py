"""Where LitGPT differs from transformers, training and scoring do as transformers does, and the result says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from litgpt.prompts import PromptStyle
from lora_bench import BUNDLE, litgpt_run, objective, our_run, run_attempt, village_checkpoint, write_data
from test_hugging_face import log_likelihoods, of_transformers, write_village_tokenizer
from transformers import AutoTokenizer

from hpo_cluster.objectives.lora.checks import faults_of_settings, tokenizer_faults
from hpo_cluster.objectives.lora.tokenizers import Tokenizers

BOS, EOS = 1, 2
ALPACA = PromptStyle.from_name("alpaca").apply("Where?")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("unlike") / "data")


def test_special_tokens_of_the_bundled_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLE / "checkpoint")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS, EOS)


# --- the first token -------------------------------------------------------------------------------------------------

#: Name of a folder, what its tokenizer makes of a text, and whether LitGPT by itself puts a BOS token before it.
FOLDERS = {
    "a Llama 3 tokenizer under another name": ("mine", "{bos} $A", False),
    "a Llama 3 tokenizer under its own name": ("Llama-3.2-mine", "{bos} $A", True),
    "another tokenizer under Llama 3's name": ("Llama-3-mine", "$A", True),
    "another tokenizer under another name": ("mine", "$A", False),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_training_begins_with_what_the_tokenizer_begins_with_whatever_the_folder_is_called(
    case: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, single, litgpt_adds = FOLDERS[case]
    adds = single.startswith("{bos}")
    checkpoint = village_checkpoint(tmp_path / name, single)
    first = AutoTokenizer.from_pretrained(checkpoint).encode(ALPACA, add_special_tokens=False)[0]
    what = objective(data, checkpoint=checkpoint, limit=1, max_steps=2)
    theirs = litgpt_run(tmp_path / "litgpt", what, monkeypatch)
    ours, result = our_run(tmp_path / "ours", what, monkeypatch)
    # the labels of an example lack its first token: they begin with the prompt if BOS came before it
    assert (theirs.labels[0][0][0] == first) == litgpt_adds, "what LitGPT does"
    assert (ours.labels[0][0][0] == first) == adds, "what the tokenizer does"
    assert result["adds_bos"] == adds
    if adds == litgpt_adds:
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)
        assert result["unlike_litgpt"] == {}
        assert "unlike LitGPT" not in caplog.text
    else:
        assert abs(ours.losses[0] - theirs.losses[0]) > 1e-4
        assert result["unlike_litgpt"] == {"adds_bos": adds}
        assert caplog.text.count(f"unlike LitGPT, as transformers: adds_bos={adds}") == 1


def test_both_routes_score_with_the_token_that_training_begins_with(data: Path, tmp_path: Path) -> None:
    checkpoint = village_checkpoint(tmp_path / "mine", "{bos} $A")
    what = objective(data, checkpoint=checkpoint, max_steps=1, lr_warmup_steps=0)
    ours = run_attempt(tmp_path / "a0", what)
    classic = run_attempt(tmp_path / "a1", what.model_copy(update={"evaluation": "litgpt_cli"}))
    scores = [name for name in ours["metrics"] if name.startswith("village_")]
    assert [classic["metrics"][name] for name in scores] == [ours["metrics"][name] for name in scores]
    assert classic["adds_bos"] is ours["adds_bos"] is True


@pytest.mark.parametrize("single", ["$A {eos}", "{bos} $A {eos}", "{eos} $A"])
def test_tokenizers_that_cannot_serve_training_and_scoring_alike(single: str, data: Path, tmp_path: Path) -> None:
    checkpoint = village_checkpoint(tmp_path / "mine", single)
    (fault,) = tokenizer_faults(Tokenizers(checkpoint))
    assert fault.kind == "missing_model"
    assert "gives training other tokens than scoring: LitGPT reads 'a'" in str(fault)
    assert "see add_bos_token and add_eos_token in its tokenizer_config.json" in str(fault)
    settings = objective(data, checkpoint=checkpoint).job_settings(Path)
    assert [str(each) for each in faults_of_settings(settings)] == [str(fault)]  # before anything is submitted
    assert run_attempt(tmp_path / "a0", objective(data, checkpoint=checkpoint))["message"] == str(fault)


# --- the epsilon of the norms ----------------------------------------------------------------------------------------

SMALL = {"n_layer": 2, "n_head": 4, "n_query_groups": 2, "n_embd": 32, "head_size": 8, "intermediate_size": 48}
#: What of LitGPT's settings is made smaller, and the same model in transformers.
GEMMAS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "Gemma-7b": ({}, "gemma", {"hidden_activation": "gelu_pytorch_tanh"}),
    "Gemma-2-2b": (
        {"attention_scores_scalar": 16, "sliding_window_size": 8, "sliding_window_indices": [1, 0]},
        "gemma2",
        {"query_pre_attn_scalar": 16, "sliding_window": 8},
    ),
    "Gemma-3-1b-it": (
        {"attention_scores_scalar": 16, "sliding_window_size": 8, "sliding_window_indices": [1, 0]}
        | {"rope_indices": [1, 0]},
        "gemma3_text",
        {"query_pre_attn_scalar": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


@pytest.fixture(params=GEMMAS)
def gemma(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Gemma model with random weights as transformers saves it; LitGPT knows its name and small sizes."""
    from litgpt import config as registry
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    name = str(request.param)
    sizes, kind, theirs = GEMMAS[name]
    folder = tmp_path / "hub" / name
    vocabulary = write_village_tokenizer(folder)
    small = {**registry.name_to_config[name], **SMALL, **sizes, "block_size": 128}
    small |= {"vocab_size": vocabulary, "padded_vocab_size": vocabulary}
    monkeypatch.setitem(registry.name_to_config, name, small)
    torch.manual_seed(1)
    config = CONFIG_MAPPING[kind](
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        head_dim=8, max_position_embeddings=128, initializer_range=0.02, bos_token_id=BOS, eos_token_id=EOS,
        **{"num_key_value_heads": 2, **theirs},
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def by_litgpt(source: Path, folder: Path) -> Path:
    """A checkpoint as ``litgpt download`` leaves it."""
    import shutil

    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    shutil.copytree(source, folder)
    convert_hf_checkpoint(folder, model_name=source.name)
    return folder


def norm_eps(checkpoint: Path) -> float:
    return float(yaml.safe_load((checkpoint / "model_config.yaml").read_text())["norm_eps"])


def of_a_job(checkpoint: Path) -> list[float]:
    """The log-likelihoods of a model that is loaded as a job does it."""
    from hpo_cluster.objectives.lora.base_model import load_model
    from hpo_cluster.objectives.lora.language_model import LitLM

    train = objective(BUNDLE / "data").train
    model = load_model(checkpoint, train, torch.device("cpu"), baseline=True)
    return log_likelihoods(LitLM(model, AutoTokenizer.from_pretrained(checkpoint)))


def test_gemmas_norms_are_those_of_transformers(gemma: Path, tmp_path: Path) -> None:
    from hpo_cluster.objectives.lora.convert import convert

    theirs = of_transformers(gemma)
    litgpts = by_litgpt(gemma, tmp_path / "litgpt")
    assert norm_eps(litgpts) == 1e-5, "what LitGPT says"
    with_config = of_a_job(litgpts)
    (litgpts / "config.json").rename(tmp_path / "config.json")
    by_family = of_a_job(litgpts)
    (tmp_path / "config.json").rename(litgpts / "config.json")
    ours = tmp_path / "ours"
    ours.mkdir()
    convert(gemma, ours)
    assert norm_eps(ours) == 1e-6
    for found in (with_config, by_family, of_a_job(ours)):
        assert found == pytest.approx(theirs, rel=2e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpo_cluster.objectives.lora.model_config.norm_epsilon", lambda _, config: config.norm_eps)
        before = of_a_job(litgpts)
    errors = [max(abs(a - b) for a, b in zip(found, theirs, strict=True)) for found in (before, with_config)]
    # of log-likelihoods near -157: 0.59, 0.12 and 0.09 before, 1e-5 now
    assert errors[0] > 0.05
    assert errors[1] < 1e-4


@pytest.mark.parametrize(
    ("said", "wanted"),
    [({"rms_norm_eps": 1e-4}, 1e-4), ({"rms_norm_eps": None}, 1e-6), (None, 1e-5), ({"model_type": "unknown"}, 1e-5)],
)
def test_the_epsilon_of_other_families_is_that_of_config_json(
    said: dict[str, Any] | None, wanted: float, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = village_checkpoint(tmp_path / "mine")
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    if said is not None:
        config |= said
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    result = run_attempt(tmp_path / "a0", objective(data, checkpoint=checkpoint, limit=1, max_steps=1))
    assert result["norm_eps"] == wanted
    assert result["unlike_litgpt"] == ({} if wanted == 1e-5 else {"norm_eps": wanted})
    assert caplog.text.count(f"unlike LitGPT, as transformers: norm_eps={wanted}") == (wanted != 1e-5)


def test_a_checkpoint_of_an_earlier_version_is_used_where_nothing_has_changed() -> None:
    from hpo_cluster.objectives.lora.checkpoint import differences, fingerprint

    what = objective(BUNDLE / "data")
    earlier = fingerprint(what, what.train, 1)
    assert differences(earlier, fingerprint(what, what.train, 1, {})) == []
    assert differences(earlier, fingerprint(what, what.train, 1, {"norm_eps": 1e-6})) == ["unlike_litgpt"]
