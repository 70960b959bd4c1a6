"""What the tests of the fine-tuning job share: the program as a module, small attempts, LitGPT's own run."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

# before a job of ours, which imports LitGPT without what only its loop needs
from litgpt.finetune import lora as theirs

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora import checkpoint
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.record.layout import resources_dir

BUNDLE = resources_dir() / "bundle" / "village"
PROGRAM = resources_dir() / "jobs" / "lora.py"
TRAIN = {
    "learning_rate": 4e-3,
    "beta2": 0.95,
    "lora_projection": True,
    "lora_mlp": True,
    "lora_head": False,
    "lora_dropout": 0.0,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "lr_warmup_steps": 3,
    "precision": "32-true",
}


def load_program() -> Any:
    """``jobs/lora.py`` as a module."""
    if "lora_job" not in sys.modules:
        spec = importlib.util.spec_from_file_location("lora_job", PROGRAM)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["lora_job"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["lora_job"])
    torch.set_num_threads(1)
    return sys.modules["lora_job"]


def write_data(folder: Path, rows: int = 58, val_rows: int = 20) -> Path:
    """The first rows of the bundled data, in a folder of their own."""
    folder.mkdir(parents=True)
    for name, count in (("train", rows), ("val", val_rows)):
        data = json.loads((BUNDLE / "data" / f"{name}.json").read_text())[:count]
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder


def objective(
    data: Path, checkpoint: Path = BUNDLE / "checkpoint", limit: int | None = 24, **train: Any
) -> LoraObjective:
    """The village objective with few documents and steps."""
    return LoraObjective.model_validate(
        {
            "model": {"name": "village", "checkpoint_dir": str(checkpoint)},
            "data": {"name": "village", "path": str(data)},
            "tasks": {
                "name": "village",
                "validation": "village_val",
                "test": ["village_test"],
                "include_path": str(BUNDLE / "tasks"),
                "limit": limit,
            },
            "train": {**TRAIN, **train},
        }
    )


def write_attempt(folder: Path, what: LoraObjective, seed: int = 1337, **params: Any) -> Path:
    """An attempt directory as the driver would write it."""
    folder.mkdir(parents=True)
    settings = what.job_settings(lambda path: folder / "storage" if path == "storage:" else Path(path))
    document = {"schema": 1, "parameters": {}, "settings": settings, "seed": seed, **params}
    (folder / "params.json").write_text(json.dumps(document))
    return folder


def run_attempt(folder: Path, what: LoraObjective, **params: Any) -> dict[str, Any]:
    """Run an attempt in this process; its result or its error."""
    status = worker.run(worker.Attempt(write_attempt(folder, what, **params)), load_program().evaluate)
    document: dict[str, Any] = json.loads((folder / ("error.json" if status else "result.json")).read_text())
    return document


#: Two epochs, dropout, and an accumulation that spans both of them: 15 steps.
TRAINING: dict[str, Any] = {"lora_dropout": 0.3, "epochs": 2, "micro_batch_size": 4, "global_batch_size": 8}
COUNTS = ("steps", "examples", "tokens", "sems", "train", "trainable_parameters", "curve")

#: Metrics that measure the machine, and so differ from run to run.
COSTS = ("train_s", "gpu_seconds", "tokens_per_s", "peak_memory_gb", "energy_wh")


def learned(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a result that say what was learned."""
    return {name: value for name, value in result["metrics"].items() if name not in COSTS}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """LoRA weights of an attempt, or of a run of LitGPT."""
    path = next(folder.glob("*/lit_model.pth.lora"))
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return weights


def max_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference between two sets of weights of the same names."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def same(folder: Path, whole: Path) -> None:
    """Assert that two attempts ended alike, to the last bit."""
    mine, theirs = read(folder / "result.json"), read(whole / "result.json")
    assert learned(mine) == learned(theirs)
    for name in COUNTS:
        one, other = mine[name], theirs[name]
        if name == "train":
            one, other = ({k: v for k, v in x.items() if k not in checkpoint.FREE_SETTINGS} for x in (one, other))
        assert one == other, name
    assert max_difference(adapter(folder), adapter(whole)) == 0
    assert not list(folder.parent.glob("*/checkpoint")), "removed with the result"


@dataclasses.dataclass
class Trace:
    """What one training did."""

    labels: list[list[list[int]]] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    weights: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    val_loss: float = float("nan")


def litgpt_run(out: Path, what: LoraObjective, monkeypatch: Any, seed: int = 1337) -> Trace:
    """LitGPT's own ``finetune_lora``, in this process; its losses are those at optimizer steps."""
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import JSON

    torch.set_num_threads(1)
    trace = Trace()
    train = what.train
    loss_function = theirs.chunked_cross_entropy

    def spy(logits: Any, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        if not options:  # training; validation passes chunk_size
            trace.labels.append(targets.tolist())
        result: torch.Tensor = loss_function(logits, targets, **options)
        return result

    monkeypatch.setattr(theirs, "chunked_cross_entropy", spy)
    monkeypatch.setattr(theirs, "save_hyperparameters", lambda *_: None)  # it reads sys.argv again
    monkeypatch.setattr(theirs, "merge_lora", lambda **_: None)
    theirs.setup(
        checkpoint_dir=Path(what.model.checkpoint_dir),
        out_dir=out,
        precision=train.precision,
        devices=1,
        data=JSON(
            json_path=Path(what.data.path), num_workers=0, prompt_style="alpaca", mask_prompt=what.data.mask_prompt
        ),
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            lr_warmup_steps=train.warmup_steps(train.max_steps or 0),
            epochs=train.epochs,
            max_steps=train.max_steps,
        ),
        eval=EvalArgs(interval=10**9, max_new_tokens=10**6, max_iters=100, final_validation=True),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "lr": train.learning_rate,
                "weight_decay": train.weight_decay,
                "betas": (train.beta1, train.beta2),
                "eps": train.epsilon,
            },
        },
        logger_name="csv",
        seed=seed,
        **{k: getattr(train, k) for k in LORA_ARGUMENTS},
        lora_r=train.lora_rank,
        lora_alpha=train.alpha,
    )
    accumulation = train.global_batch_size // train.micro_batch_size
    for row in csv.DictReader(next(out.rglob("metrics.csv")).open()):
        if row.get("val_loss"):
            trace.val_loss = float(row["val_loss"])
        elif row["iter"] and int(row["iter"]) % accumulation == 0:
            trace.losses.append(float(row["loss"]))
            trace.rates.append(float(row["learning_rate"]))
    trace.weights = adapter(out)
    return trace


LORA_ARGUMENTS = (
    "lora_dropout",
    "lora_query",
    "lora_key",
    "lora_value",
    "lora_projection",
    "lora_mlp",
    "lora_head",
)


def our_run(
    folder: Path, what: LoraObjective, monkeypatch: Any, repeat_draws: bool = False
) -> tuple[Trace, dict[str, Any]]:
    """The same by our recipe, with all that it publishes.

    Args:
        repeat_draws: repeat the one draw that LitGPT's first validation takes from the global generator.
    """
    job = load_program()
    trace = Trace()
    summed_loss, fine_tune, progress = job.summed_loss, job.fine_tune, worker.Attempt.progress

    def spy_losses(run: Any, micro_batches: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        for examples in micro_batches if options["step"] is not None else []:
            width = max(len(example["labels"]) for example in examples)
            trace.labels.append(
                [example["labels"].tolist()[1:] + [-100] * (width - len(example["labels"])) for example in examples]
            )
        result: torch.Tensor = summed_loss(run, micro_batches, *arguments, **options)
        return result

    def spy_fine_tune(*arguments: Any) -> None:
        if repeat_draws:
            torch.empty((), dtype=torch.int64).random_()
        fine_tune(*arguments)

    def spy_progress(self: worker.Attempt, *, force: bool = False, **fields: Any) -> None:
        if "learning_rate" in fields:
            trace.losses.append(fields["loss"])
            trace.rates.append(fields["learning_rate"])
        progress(self, force=force, **fields)

    monkeypatch.setattr(job, "summed_loss", spy_losses)
    monkeypatch.setattr(job, "fine_tune", spy_fine_tune)
    monkeypatch.setattr(worker.Attempt, "progress", spy_progress)
    result = run_attempt(folder, what)
    assert "metrics" in result, result
    trace.weights = adapter(folder)
    trace.val_loss = result["metrics"]["val_loss"]
    return trace, result


def train_sentencepiece(folder: Path, kind: str) -> int:
    """A SentencePiece model alone, no other file of a tokenizer, with Llama's options."""
    import sentencepiece

    folder.mkdir(exist_ok=True)
    rows = json.loads((BUNDLE / "data" / "train.json").read_text())
    (folder.parent / "text").write_text("\n".join(str(text) for row in rows for text in row.values() if text))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder.parent / "text"), model_prefix=str(folder / "tokenizer"), model_type=kind, vocab_size=400,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    return 400


def write_tokenizer(folder: Path, single: str) -> None:
    """The bundled tokenizer with a post-processor like Llama 3's, and a class that tells LitGPT nothing.

    Args:
        folder: where its files are written.
        single: what becomes of a text, ``{bos} $A`` for instance.
    """
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokens = {"bos": "<s>", "eos": "</s>"}
    village = Tokenizer.from_file(str(BUNDLE / "checkpoint" / "tokenizer.json"))
    pairs = [(token, village.token_to_id(token)) for token in tokens.values()]
    village.post_processor = TemplateProcessing(single=single.format(**tokens), special_tokens=pairs)
    made = PreTrainedTokenizerFast(tokenizer_object=village, bos_token=tokens["bos"], eos_token=tokens["eos"])
    made.save_pretrained(folder)


def village_checkpoint(folder: Path, single: str | None = None) -> Path:
    """The bundled checkpoint under another name, with another tokenizer if `single` is given (`write_tokenizer`)."""
    shutil.copytree(BUNDLE / "checkpoint", folder)
    if single is not None:
        write_tokenizer(folder, single)
    return folder
