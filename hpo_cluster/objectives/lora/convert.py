"""Convert a Hugging Face model to a LitGPT checkpoint with LitGPT's own converter.

LitGPT looks a model up by name. Here the settings come from ``config.json`` instead, so that a model of any size and
any name can be converted if its architecture is one of `BUILDERS`. Other models are looked up by name, as LitGPT does.
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
from hpo_cluster.record.files import read_json

#: Texts that training and scoring must split into the same tokens.
SAMPLES = ("a", "The quick brown fox, 12 times.", " leading space\nand a new line", "naïve – 東京 🙂")


class ConversionError(Exception):
    """A model cannot be converted; the message says why and what to do."""


def convert(source: Path, folder: Path) -> None:
    """Write the LitGPT checkpoint of a Hugging Face folder into an empty folder. Nothing in `source` is changed.

    Args:
        source: has ``config.json``, weights (safetensors or pytorch_model.bin, in one file or several) and a tokenizer.
        folder: an empty folder.

    Raises:
        ConversionError: for an architecture, weights or a tokenizer that cannot be used.
    """
    weights = weight_files(source)
    if missing := [name for name in weights if not (source / name).is_file()]:
        raise ConversionError(f"{source} lacks {', '.join(missing)}; copy the folder again")
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    write_tokenizer(source, folder)  # first: it is quick, and what fails is best known before the weights are read
    for name in weights:
        (folder / name).symlink_to((source / name).resolve())
    convert_weights(folder, source.name)
    for name in weights:
        (folder / name).unlink()


def convert_weights(folder: Path, name: str) -> None:
    """Convert the Hugging Face weights in a folder, which stay there, to ``lit_model.pth`` and ``model_config.yaml``.

    Args:
        folder: has ``config.json`` and the weights, which may be links.
        name: of the model; where LitGPT looks it up if its architecture is not one of `BUILDERS`.

    Raises:
        ConversionError: if LitGPT cannot represent the model.
    """
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    with (
        _known_to_litgpt(folder, name) as known,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # it prints its arguments
    ):
        try:
            convert_hf_checkpoint(folder.absolute(), model_name=known)
        except Exception as error:  # tensors of unknown names, a damaged file
            if isinstance(error, (OSError, MemoryError)):
                raise
            what = f"a tensor {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            raise ConversionError(f"LitGPT cannot convert the weights of {name}: {what}") from error
    _check_weights(folder, name)


@contextlib.contextmanager
def _known_to_litgpt(folder: Path, name: str) -> Iterator[str]:
    """Give the name under which LitGPT finds the settings of a model, while it is converted."""
    from litgpt import config as registry

    raw = read_json(folder / "config.json") or {}
    architecture = raw.get("model_type")
    if raw.get("quantization_config"):
        raise ConversionError(f"{name} is quantized (quantization_config); take the model that it was made from")
    if architecture not in BUILDERS:
        named = [*registry.name_to_config, *(each["hf_config"]["name"] for each in registry.configs)]
        if name in named:
            yield name
            return
        message = (
            f"LitGPT knows no model {name}, and model_type={architecture!r} in config.json is not one that can be "
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
    """Return LitGPT's settings of the model described by ``config.json``."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)  # fills in what the file leaves to the default
    faults: list[str] = []
    made = {**_common(config, faults), **BUILDERS[architecture](config, faults)}
    if faults:
        raise ConversionError(f"LitGPT cannot represent config.json: {'; '.join(faults)}")
    return made


def _common(config: Any, faults: list[str]) -> dict[str, Any]:
    """Return the settings that all of `BUILDERS` share, and add to `faults` what LitGPT cannot do."""
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
    """Return the base of the rotary embedding and LitGPT's adjustments; transformers 5 keeps both in one entry."""
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


# Each returns what its architecture has besides the settings that all share. The beginning of the name tells LitGPT
# which converter to use, on the way back to transformers too.


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
    """Return the settings of attention to the last `size` tokens, if that is less than all."""
    return {} if size is None or size >= config.max_position_embeddings else {"sliding_window_size": size}


#: What makes LitGPT's settings, by ``model_type`` in ``config.json``.
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
        message = f"config.json of {name} says tie_word_embeddings=true, but its weights hold a head of their own"
        raise ConversionError(f"{message}, which transformers would ignore; set it to false if the head is meant")


# The tokenizer.


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, with which LitGPT and transformers see the same tokens.

    transformers reads whatever tokenizer `source` has, a SentencePiece model (``tokenizer.model``) too. LitGPT decides
    by ``add_bos_token`` whether a text begins with a special token; it is set to what transformers does.

    Raises:
        ConversionError: if the tokenizer cannot be read, or the two disagree all the same.
    """
    from transformers import AutoTokenizer

    if not (source / "tokenizer.json").is_file() and (source / "tokenizer.model").is_file():
        packages = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
        if absent := [package for module, package in packages.items() if not _is_installed(module)]:
            needs = f"{source / 'tokenizer.model'} cannot be read without {' and '.join(absent)}"
            raise ConversionError(f"{needs}; type: pip install {' '.join(absent)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        first = tokenizer.encode(SAMPLES[0])[:1]
    except Exception as error:  # whatever a file of another version makes of it
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
    config["add_bos_token"] = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _check_tokens(tokenizer, folder)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that the module is in
        return False


def _check_tokens(original: Any, folder: Path) -> None:
    """Raise ConversionError if the tokenizer as written reads a text otherwise than the original, or LitGPT does."""
    from litgpt.tokenizer import Tokenizer
    from transformers import AutoTokenizer

    scoring = AutoTokenizer.from_pretrained(folder)
    try:
        training = Tokenizer(folder)
    except Exception as error:
        message = f"the tokenizer cannot be read by LitGPT ({type(error).__name__}: {error})"
        raise ConversionError(message) from error
    for text in SAMPLES:
        wanted = original.encode(text)
        for reader, seen in (("transformers", scoring.encode(text)), ("LitGPT", training.encode(text).tolist())):
            if seen != wanted:
                raise ConversionError(
                    f"the tokenizer of {folder.name} would not train as it scores: {reader} reads {text!r} as {seen}, "
                    f"the original as {wanted}; see add_bos_token and add_eos_token in its tokenizer_config.json"
                )
