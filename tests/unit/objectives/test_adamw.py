"""Our AdamW is torch's fused one, and reads its checkpoints."""

import copy
from typing import Any

import pytest
import torch

from hpo_cluster.objectives.lora.adamw import AdamW, Decay

SETTINGS = Decay(0.8, 0.95, 1e-6, 0.3)


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((3, 5), (7,), (2, 2))]


def give_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for each in parameters:
        each.grad = torch.randn(each.shape, generator=generator).to(each.dtype)


def torchs(parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    how: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
    return torch.optim.AdamW(parameters, fused=True, **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_steps_are_those_of_torch_and_go_on_from_its_checkpoint(dtype: torch.dtype) -> None:
    theirs, mine = parameters(dtype), parameters(dtype)
    reference, optimizer = torchs(theirs), AdamW(mine, SETTINGS)
    for step in range(6):
        if step == 3:  # a checkpoint of an earlier version
            optimizer = AdamW(mine, SETTINGS)
            optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
        for each in (theirs, mine):
            give_gradients(each, step)
        for group in reference.param_groups:
            group["lr"] = 0.1 / (step + 1)
        reference.step()
        optimizer.step(0.1 / (step + 1))
        optimizer.zero_grad()
        assert all(each.grad is None for each in mine)
        assert all(torch.equal(a, b) for a, b in zip(theirs, mine, strict=True))


def test_a_parameter_without_a_gradient_decays() -> None:
    (one, *_), (before, *_) = parameters(), parameters()
    AdamW([one], SETTINGS).step(0.5)
    assert torch.allclose(one, before * (1 - 0.5 * 0.3))


def test_a_state_of_other_shapes_is_refused_and_changes_nothing() -> None:
    one, other, fewer = (AdamW(each, SETTINGS) for each in (parameters(), parameters()[::-1], parameters()[:2]))
    for optimizer in (other, fewer):
        give_gradients(optimizer._parameters, 0)
        optimizer.step(0.1)
    before = copy.deepcopy(one.state_dict())
    for optimizer, error in ((other, ValueError), (fewer, KeyError)):
        with pytest.raises(error):
            one.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="other shapes"):
        fewer.load_state_dict(one.state_dict())
    for name, value in before["state"][0].items():
        assert torch.equal(one.state_dict()["state"][0][name], value)
