"""Convert a Hugging Face model to a LitGPT checkpoint with LitGPT's own converter.

LitGPT looks up the settings of a model by name. Here they come from ``config.json``, so that a model of any size and
name can be converted if its architecture is in `BUILDERS`. Other models are looked up by name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpo_cluster.objectives.lora.hugging_face import weight_files
from hpo_cluster.objectives.lora.model_config import norm_epsilon
from hpo_cluster.objectives.lora.tokenizers import SAMPLES, Tokenizers, adds_bos
from hpo_cluster.record.files import read_json


class ConversionError(Exception):
    """Error: a model cannot be converted. The message says why and what to do."""


def convert(source: Path, folder: Path) -> None:
    """Convert a Hugging Face folder to a LitGPT checkpoint in an empty folder, without changing `source`.

    Args:
        source: contains ``config.json``, weights (safetensors or pytorch_model.bin, sharded or not) and a tokenizer.
        folder: an empty folder.

    Raises:
        ConversionError: if the architecture, the weights or the tokenizer cannot be used.
    """
    weights = weight_files(source)
    if missing := [name for name in weights if not (source / name).is_file()]:
        raise ConversionError(f"{source} lacks {', '.join(missing)}; copy the folder again")
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    write_tokenizer(source, folder)  # first, because it is quick: if it fails, the user need not wait for the weights
    for name in weights:
        (folder / name).symlink_to((source / name).resolve())
    convert_weights(folder, source.name)
    for name in weights:
        (folder / name).unlink()


def convert_weights(folder: Path, name: str) -> None:
    """Convert the Hugging Face weights in a folder to ``lit_model.pth`` and ``model_config.yaml``; keep the originals.

    Args:
        folder: contains ``config.json`` and the weights, which may be links.
        name: name of the model; LitGPT looks it up if the architecture is not in `BUILDERS`.

    Raises:
        ConversionError: if LitGPT cannot represent the model.
    """
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    with (
        _known_to_litgpt(folder, name) as known,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # LitGPT prints its arguments
    ):
        try:
            convert_hf_checkpoint(folder.absolute(), model_name=known)
        except Exception as error:  # for example an unknown tensor name or a damaged file
            if isinstance(error, (OSError, MemoryError)):
                raise
            what = f"a tensor {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            raise ConversionError(f"LitGPT cannot convert the weights of {name}: {what}") from error
    _check_weights(folder, name)
    _set_norm_epsilon(folder)


@contextlib.contextmanager
def _known_to_litgpt(folder: Path, name: str) -> Iterator[str]:
    """Register the settings of a model with LitGPT while the context is open, and yield the name to look up."""
    from litgpt import config as registry

    raw = read_json(folder / "config.json") or {}
    architecture = raw.get("model_type")
    if raw.get("quantization_config"):
        raise ConversionError(f"{name} is quantized (quantization_config); use the model before quantization")
    if architecture not in BUILDERS:
        named = [*registry.name_to_config, *(each["hf_config"]["name"] for each in registry.configs)]
        if name in named:
            yield name
            return
        message = (
            f"LitGPT does not know model {name}, and model_type={architecture!r} in config.json is not one that can be "
            f"converted under any name; accepted: {', '.join(BUILDERS)}"
        )
        raise ConversionError(message)
    settings = _settings(folder, architecture)
    registry.name_to_config[settings["name"]] = settings
    try:
        yield settings["name"]
    finally:
        del registry.name_to_config[settings["name"]]


def _settings(folder: Path, architecture: str) -> dict[str, Any]:
    """Return LitGPT's settings for the model that ``config.json`` describes."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)  # fills in the defaults that the file leaves out
    faults: list[str] = []
    made = {**_common(config, faults), **BUILDERS[architecture](config, faults)}
    if faults:
        raise ConversionError(f"LitGPT cannot represent config.json: {'; '.join(faults)}")
    return made


def _common(config: Any, faults: list[str]) -> dict[str, Any]:
    """Return the settings that all `BUILDERS` share; add what LitGPT does not support to `faults`."""
    if config.hidden_act != "silu":
        faults.append(f"hidden_act={config.hidden_act!r} (accepted: 'silu')")
    heads = config.num_attention_heads
    rope_base, adjustments = _rope(config, faults)
    return {
        "hf_config": {},
        "block_size": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "n_layer": config.num_hidden_layers,
        "n_head": heads,
        "n_query_groups": getattr(config, "num_key_value_heads", None) or heads,
        "n_embd": config.hidden_size,
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "rotary_percentage": 1.0,
        "rope_base": rope_base,
        "rope_adjustments": adjustments,
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "norm_eps": config.rms_norm_eps,
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": config.intermediate_size,
    }


def _rope(config: Any, faults: list[str]) -> tuple[float, dict[str, Any] | None]:
    """Return the base of the rotary embedding and LitGPT's adjustments; transformers 5 has both in one entry."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    base = rope.get("rope_theta") or config.rope_theta
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, {"factor": rope["factor"]}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        length = rope["original_max_position_embeddings"]
        return base, {**{name: rope[name] for name in names}, "original_max_seq_len": length}
    faults.append(f"rope_scaling of type {kind!r} (accepted: 'default', 'linear', 'llama3')")
    return base, None


# Each function returns the settings of its architecture that `_common` does not give. From the beginning of the name
# LitGPT chooses the converter, also for the conversion back to transformers.


def _llama(config: Any, faults: list[str]) -> dict[str, Any]:
    faults += [f"{name}=true" for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    return {"name": "Llama-converted"}


def _mistral(config: Any, faults: list[str]) -> dict[str, Any]:
    return {**_llama(config, faults), "name": "Mistral-converted", **_window(config.sliding_window, config)}


def _qwen2(config: Any, faults: list[str]) -> dict[str, Any]:
    if config.use_sliding_window:
        faults.append("use_sliding_window=true")
    return {"name": "Qwen2.5-converted", "attn_bias": True}


def _qwen3(config: Any, faults: list[str]) -> dict[str, Any]:
    if config.use_sliding_window:
        faults.append("use_sliding_window=true")
    return {**_llama(config, faults), "name": "Qwen3-converted", "norm_qk": True}


def _window(size: int | None, config: Any) -> dict[str, Any]:
    """Return the settings of sliding-window attention, if the window is smaller than the context."""
    return {} if size is None or size >= config.max_position_embeddings else {"sliding_window_size": size}


#: Functions that return LitGPT's settings, by ``model_type`` in ``config.json``.
BUILDERS: dict[str, Callable[[Any, list[str]], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


def _check_weights(folder: Path, name: str) -> None:
    """Raise ConversionError if converted weights are not those of the model in ``model_config.yaml``."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT

    with torch.device("meta"):
        wanted = {
            key: tensor.shape for key, tensor in GPT(Config.from_file(folder / "model_config.yaml")).named_parameters()
        }
    weights = torch.load(folder / "lit_model.pth", map_location="cpu", mmap=True, weights_only=True)
    found = {key: tensor.shape for key, tensor in weights.items()}
    if wrong := sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)):
        key = wrong[0]
        seen = f"{key} has shape {tuple(found.get(key, ()))}, expected {tuple(wanted.get(key, ()))}"
        raise ConversionError(f"the weights of {name} do not fit its configuration: {seen}")
    tied = (read_json(folder / "config.json") or {}).get("tie_word_embeddings", False)
    if tied and not torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"]):
        message = f"config.json of {name} says tie_word_embeddings=true, but its weights contain a separate head"
        raise ConversionError(f"{message}, which transformers would ignore; set it to false if the head should be used")


def _set_norm_epsilon(folder: Path) -> None:
    """Write the epsilon of the model's norms to ``model_config.yaml``: LitGPT's own settings of Gemma have another."""
    from litgpt.config import Config
    from litgpt.utils import save_config

    config = Config.from_file(folder / "model_config.yaml")
    config.norm_eps = norm_epsilon(folder, config)
    save_config(config, folder)


# The tokenizer.


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` so that LitGPT and transformers give the same tokens.

    transformers reads any kind of tokenizer in `source`, including a SentencePiece model (``tokenizer.model``). The
    programs of LitGPT put a BOS token before a text if ``add_bos_token`` is true; it is set to what transformers does.

    Raises:
        ConversionError: if the tokenizer cannot be read, or if LitGPT and transformers still disagree.
    """
    from transformers import AutoTokenizer

    if not (source / "tokenizer.json").is_file() and (source / "tokenizer.model").is_file():
        packages = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
        if absent := [package for module, package in packages.items() if not _is_installed(module)]:
            needs = f"{source / 'tokenizer.model'} cannot be read without {' and '.join(absent)}"
            raise ConversionError(f"{needs}; type: pip install {' '.join(absent)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        begins_with_bos = adds_bos(tokenizer)
    except Exception as error:  # files of other versions raise many kinds of errors
        message = f"the tokenizer in {source} cannot be read by transformers ({type(error).__name__}: {error})"
        raise ConversionError(
            f"{message}; it needs tokenizer.json, or tokenizer.model, and tokenizer_config.json"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConversionError(
            f'the tokenizer in {source} has no eos token: add "eos_token" to its tokenizer_config.json'
        )
    if not tokenizer.is_fast:
        raise ConversionError(f"the tokenizer in {source} has no fast version, which LitGPT needs (tokenizer.json)")
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["add_bos_token"] = begins_with_bos
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _check_tokens(tokenizer, folder)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _check_tokens(original: Any, folder: Path) -> None:
    """Raise ConversionError if the written files give other tokens than the original, or training others than scoring.

    Both texts and answers are compared; see `Tokenizers.difference`.
    """
    tokenizers = Tokenizers(folder)
    for text in SAMPLES:
        if (seen := tokenizers.hugging_face.encode(text)) != (wanted := original.encode(text)):
            what = f"transformers reads {text!r} as {seen}, not as {wanted}"
            raise ConversionError(f"the tokenizer of {folder.name} changes when it is written: {what}")
    try:
        difference = tokenizers.difference()
    except Exception as error:
        message = f"the tokenizer cannot be read by LitGPT ({type(error).__name__}: {error})"
        raise ConversionError(message) from error
    if difference is not None:
        raise ConversionError(
            f"the tokenizer of {folder.name} differs between training and scoring: {difference}; see add_bos_token and "
            "add_eos_token in its tokenizer_config.json"
        )
