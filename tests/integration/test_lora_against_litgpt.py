"""The recipe of ``jobs/lora.py`` is LitGPT's ``finetune_lora``: same order, learning rates, losses and weights."""

from pathlib import Path

import pytest
from lora_bench import litgpt_run, max_difference, objective, our_run, write_data

BF16 = ("bf16-true", "bf16-mixed")
IN_BF16 = {"lora_dropout": 0.2, "dropout_draws": "litgpt"}
CASES = {
    # 58 rows in micro-batches of 4 are 15 an epoch: the odd one of each of two epochs make a step together
    "two epochs, accumulation, no dropout": ({"epochs": 2}, False),
    "dropout": ({"lora_dropout": 0.2, "lora_head": True, "dropout_draws": "litgpt"}, True),
    "max_steps, mask_prompt": ({"max_steps": 4, "micro_batch_size": 8, "lora_key": False}, False),
    "bf16-true": ({"max_steps": 4, **IN_BF16, "precision": "bf16-true"}, True),
    "bf16-mixed": ({"max_steps": 4, **IN_BF16, "precision": "bf16-mixed"}, True),
    "what the study did not tune": (
        {
            "max_steps": 4,
            "lora_alpha_rule": "root",
            "lora_alpha_factor": 5.0,
            "lora_projection": False,
            "lora_head": True,
            "beta1": 0.8,
            "beta2": 0.95,
            "epsilon": 1e-4,
            "lr_warmup_share": 0.5,
        },
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_litgpt(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, repeat_draws = CASES[case]
    what = objective(write_data(tmp_path / "data"), limit=1, **train)
    if "mask_prompt" in case:
        what = what.model_copy(update={"data": what.data.model_copy(update={"mask_prompt": True})})
    theirs = litgpt_run(tmp_path / "litgpt", what, monkeypatch)
    ours, result = our_run(tmp_path / "ours", what, monkeypatch, repeat_draws=repeat_draws)

    assert result["steps"] == len(theirs.losses) == len(ours.losses)
    assert ours.labels == theirs.labels[: len(ours.labels)], "order of the examples"
    assert len(theirs.labels) - len(ours.labels) < what.train.global_batch_size // what.train.micro_batch_size
    # LitGPT logs the learning rate of the step that follows
    assert ours.rates[1:] == pytest.approx(theirs.rates[:-1], abs=1e-12)
    differences = {
        "loss": max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
        "val_loss": abs(ours.val_loss - theirs.val_loss),
        "adapter": max_difference(ours.weights, theirs.weights),
    }
    # examples that travel together are summed in another order, which 8 bits show
    assert max(differences.values()) <= (1e-2 if case in BF16 else 1e-5), differences
