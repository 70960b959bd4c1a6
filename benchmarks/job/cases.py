"""What the two routes are compared on: the bundled model, or models with random weights and synthetic data."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpo_cluster.record.layout import resources_dir


@dataclass(frozen=True)
class Case:
    """One model with its data, its tasks and its training settings.

    Attributes:
        checkpoint_dir: LitGPT checkpoint.
        data_dir: folder with ``train.json`` and ``val.json``.
        tasks_dir: folder with a YAML and a JSONL file for each task.
        tasks: the validation task and the test task.
        batch_size: sequences that are scored at once, by both routes.
        train: training settings other than the defaults of `TrainSettings`.
    """

    name: str
    checkpoint_dir: Path
    data_dir: Path
    tasks_dir: Path
    tasks: tuple[str, str]
    batch_size: int = 32
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model with random weights, and the lengths (tokens) of its synthetic data.

    Attributes:
        litgpt_name: a model that LitGPT knows the shape of; empty if the next numbers give it.
        rows: training rows.
        documents: of each of the two tasks; each has four answers.
        row_tokens: median length of a row with its prompt template; log-normal with sigma 0.55, as in Alpaca.
        context_tokens: mean length of a question.
        ending_tokens: mean length of an answer of the first task (as in HellaSwag); the second's are one token (MMLU).
    """

    litgpt_name: str = ""
    layers: int = 2
    heads: int = 4
    groups: int = 2
    width: int = 32
    inner: int = 64
    vocabulary: int = 512
    block_size: int = 2048
    rows: int = 32
    documents: int = 8
    row_tokens: int = 60
    context_tokens: int = 20
    ending_tokens: int = 6
    precision: str = "32-true"


SHAPES = {
    "tiny": Shape(),
    "medium": Shape(
        layers=12, heads=10, groups=2, width=640, inner=2560, vocabulary=32000, rows=48, documents=24,
        row_tokens=105, context_tokens=75, ending_tokens=27,
    ),
    "1b": Shape(
        litgpt_name="Llama-3.2-1B", rows=1600, documents=1000, row_tokens=105, context_tokens=75, ending_tokens=27,
        precision="bf16-true",
    ),
}  # fmt: skip
MODELS = ("village", *SHAPES)


def village() -> Case:
    """Return the bundled model with its data and its tasks, trained as ``train=village`` says."""
    bundle = resources_dir() / "bundle" / "village"
    train = yaml.safe_load((resources_dir() / "conf" / "train" / "village.yaml").read_text())
    del train["defaults"]  # the defaults of `TrainSettings`
    names = ("village_val", "village_test")
    return Case("village", bundle / "checkpoint", bundle / "data", bundle / "tasks", names, train=train)


def build(name: str, folder: Path, **sizes: int) -> Case:
    """Write a model with random weights, its data and its tasks into a folder.

    Args:
        name: one of `SHAPES`.
        folder: a new folder.
        sizes: `rows` and `documents` in the place of the shape's.
    """
    import dataclasses

    shape = dataclasses.replace(SHAPES[name], **sizes)  # type: ignore[arg-type]
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    vocabulary = _write_model(checkpoint, shape)
    _write_tokenizer(checkpoint, vocabulary)
    words = _Words(vocabulary)
    data = folder / "data"
    data.mkdir()
    (data / "train.json").write_text(json.dumps([words.row(shape) for _ in range(shape.rows)]))
    (data / "val.json").write_text(json.dumps([words.row(shape) for _ in range(16)]))
    tasks = folder / "tasks"
    tasks.mkdir()
    _write_task(tasks, "endings", [words.question(shape) for _ in range(shape.documents)])
    _write_task(tasks, "letters", [words.letters(shape) for _ in range(shape.documents)])
    train = {
        "lr_warmup_steps": 1,
        "global_batch_size": 16,
        "micro_batch_size": 1,
        "validation_batches": 16,
        "precision": shape.precision,
    }
    batch_size = 64 if shape.litgpt_name else 32
    return Case(name, checkpoint, data, tasks, ("endings", "letters"), batch_size, train)


def _write_model(folder: Path, shape: Shape) -> int:
    """Write random weights and both configurations; return the size of the vocabulary."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import save_config

    own = {
        "name": "random",
        "hf_config": {"org": "random", "name": "random"},
        "block_size": shape.block_size,
        "vocab_size": shape.vocabulary,
        "padded_vocab_size": shape.vocabulary,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_query_groups": shape.groups,
        "n_embd": shape.width,
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": shape.inner,
        "rope_base": 500000,
    }
    config = Config.from_name(shape.litgpt_name) if shape.litgpt_name else Config(**own)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if shape.precision == "bf16-true" else torch.float32)
    try:
        torch.manual_seed(0)
        model = GPT(config)
    finally:
        torch.set_default_dtype(before)
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            torch.nn.init.normal_(module.weight, std=0.02)
    torch.save(model.state_dict(), folder / "lit_model.pth")
    save_config(config, folder)
    hugging_face = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "max_position_embeddings": config.block_size,
        "vocab_size": config.padded_vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(hugging_face))
    return int(config.padded_vocab_size)


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer of one token a word, so that synthetic texts have the lengths that are asked for."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "</s>", "<unk>", *"ABCD", *(f"w{number}" for number in range(vocabulary - 7))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


#: Words of the Alpaca template around an instruction without input.
TEMPLATE_TOKENS = 22


class _Words:
    """Draws texts of random words."""

    def __init__(self, vocabulary: int) -> None:
        self._rng = random.Random(0)
        self._words = vocabulary - 7

    def text(self, tokens: float) -> str:
        """Return a text of about so many tokens."""
        return " ".join(f"w{self._rng.randrange(self._words)}" for _ in range(max(1, round(tokens))))

    def row(self, shape: Shape) -> dict[str, str]:
        """Return a training row."""
        length = min(512.0, self._rng.lognormvariate(0, 0.55) * shape.row_tokens) - TEMPLATE_TOKENS
        instruction = min(12.0, max(2.0, length / 2))
        return {"instruction": self.text(instruction), "input": "", "output": self.text(length - instruction)}

    def question(self, shape: Shape) -> dict[str, Any]:
        """Return a document with four answers of several tokens."""
        endings = [self.text(max(2.0, self._rng.gauss(1, 0.3) * shape.ending_tokens)) for _ in range(4)]
        query = self.text(max(4.0, self._rng.gauss(1, 0.25) * shape.context_tokens))
        return {"query": query, "choices": endings, "gold": self._rng.randrange(4)}

    def letters(self, shape: Shape) -> dict[str, Any]:
        """Return a document with four answers of one token."""
        query = self.text(max(4.0, self._rng.lognormvariate(0, 0.5) * shape.context_tokens * 1.4))
        return {"query": query, "choices": list("ABCD"), "gold": self._rng.randrange(4)}


def _write_task(folder: Path, name: str, documents: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, documents)))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": f"{name}.jsonl"}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
