"""The settings of a LitGPT checkpoint's model, with the epsilon that transformers has in the model's norms.

LitGPT's settings of Gemma (1, 2, 3 and CodeGemma) leave the epsilon at 1e-5, while the models have 1e-6. The right one
is in ``config.json``, for other families too; a Gemma checkpoint without that file is recognised by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo_cluster.objectives.lora.tokenizers import Tokenizers

FILE = "model_config.yaml"

#: Names of the epsilon in the configurations of transformers, by the class of the norms in LitGPT.
EPSILONS = {"RMSNorm": ("rms_norm_eps",), "LayerNorm": ("layer_norm_eps", "layer_norm_epsilon")}

#: How the names of the Gemma models begin in LitGPT, the epsilon that it gives them, and the one that they have.
GEMMA = ("Gemma", "CodeGemma")
LITGPT_EPSILON, GEMMA_EPSILON = 1e-5, 1e-6


def read_config(checkpoint_dir: Path, **lora: Any) -> Any:
    """Return the `litgpt.lora.Config` of a checkpoint, with the settings of LoRA in `lora`."""
    from litgpt.lora import Config

    config = Config.from_file(checkpoint_dir / FILE, **lora)
    config.norm_eps = norm_epsilon(checkpoint_dir, config)
    return config


def norm_epsilon(checkpoint_dir: Path, config: Any) -> float:
    """Return the epsilon of a model's norms: as in ``config.json``; without that, as the family has it."""
    said = _of_transformers(checkpoint_dir, config.norm_class_name)
    if said is not None:
        return said
    is_default = config.norm_eps == LITGPT_EPSILON
    return GEMMA_EPSILON if is_default and config.name.startswith(GEMMA) else float(config.norm_eps)


def _of_transformers(checkpoint_dir: Path, norm_class: str) -> float | None:
    """Return the epsilon that transformers reads from ``config.json``; None if it cannot."""
    if not (checkpoint_dir / "config.json").is_file():
        return None
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint_dir).get_text_config()  # fills in what the file leaves out
    except Exception:  # for example a model with code of its own
        return None
    values = (getattr(config, name, None) for name in EPSILONS.get(norm_class, ()))
    return next((float(value) for value in values if value is not None), None)


def unlike_litgpt(tokenizers: Tokenizers, config: Any) -> dict[str, Any]:
    """Return what LitGPT by itself would do otherwise with a checkpoint; each with the value that is used here.

    Args:
        tokenizers: of the checkpoint.
        config: result of `read_config`.
    """
    from litgpt.config import Config

    found = dict[str, Any]()
    if tokenizers.adds_bos != tokenizers.litgpt_adds_bos:
        found["adds_bos"] = tokenizers.adds_bos
    if config.norm_eps != Config.from_file(tokenizers.checkpoint_dir / FILE).norm_eps:
        found["norm_eps"] = config.norm_eps
    return found
