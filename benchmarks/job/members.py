"""Would several trials on one GPU at once pay? Train four adapters on one frozen base together, and one after another.

Usage: ``python -m benchmarks.job.members [village|medium|1b|tiny] [--steps 6] [--batch 16]``, on a GPU if there is one.

The members have ranks, scales, dropouts, learning rates, seeds and orders of their own. Together, the tokens of all
go through the base in one row. Their updates are one of the rank of all: the low-rank numbers of a token are zero but
for its member's. So a step takes hardly more kernels than that of one member. The weights of both ways are compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from litgpt.lora import LoRAQKVLinear
from torch.nn import functional

from benchmarks.job.cases import MODELS, SHAPES, Case, build, village
from benchmarks.job.kernels import counted, load_job
from benchmarks.job.routes import objective_of
from hpo_cluster.objectives.lora.adamw import AdamW
from hpo_cluster.objectives.lora.base_model import default_dtype, load_model
from hpo_cluster.objectives.lora.dropout import GivenDropout, Site, StepMasks
from hpo_cluster.objectives.lora.low_rank import has_update
from hpo_cluster.objectives.lora.packed_forward import PackedModel
from hpo_cluster.objectives.lora.packing import Pass, passes
from hpo_cluster.objectives.lora.run import Run
from hpo_cluster.objectives.lora.settings import TrainSettings
from hpo_cluster.objectives.lora.tokenizers import Tokenizers

Batch = list[list[Any]]


@dataclass(frozen=True)
class Member:
    """What one trial of the group has of its own."""

    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    learning_rate: float


MEMBERS = (Member(2, 4, 0.0, 3e-3), Member(4, 16, 0.1, 1e-2), Member(8, 16, 0.05, 3e-3), Member(16, 32, 0.2, 1e-3))
RANK = sum(member.lora_rank for member in MEMBERS)


@dataclass
class Group:
    """The base, the examples of each member's steps, and how a model is made.

    Attributes:
        batches: for each member, for each step, its micro-batches.
    """

    job: Any
    case: Case
    settings: list[TrainSettings]
    batches: list[list[Batch]]
    device: torch.device

    @classmethod
    def of(cls, case: Case, steps: int, batch: int) -> Group:
        """Return the group for a case, with updates of all matrices but the head, and `batch` examples in a step."""
        job = load_job()
        objective = objective_of(case)
        everywhere = {"lora_projection": True, "lora_mlp": True, "lora_head": False, "global_batch_size": batch}
        settings = [objective.train.model_copy(update={**everywhere, **vars(member)}) for member in MEMBERS]
        examples, _ = job.load_examples(objective, settings[0], Tokenizers(case.checkpoint_dir))
        batches = []
        for seed in range(len(MEMBERS)):
            order = job.micro_batch_order(len(examples), 1, seed)
            batches.append([[[examples[next(order)[0]]] for _ in range(batch)] for _ in range(steps)])
        return cls(job, case, settings, batches, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def model(self, train: TrainSettings, seed: int) -> Any:
        """Return the base with a new adapter."""
        self.job.seed_everything(seed)
        return load_model(self.case.checkpoint_dir, train, self.device, baseline=False).train()

    def passes(self, batch: Batch) -> list[Pass]:
        """Return one pass with all examples of a step; the weights are those of the mean over one member's examples."""
        return passes(batch, 1 / self.settings[0].global_batch_size, sys.maxsize)


def layers(model: Any) -> list[tuple[str, Any]]:
    """Return the layers with updates by name."""
    return [(name, module) for name, module in model.named_modules() if has_update(module)]


# --- one after another -----------------------------------------------------------------------------------------------


class Alone:
    """One member trained as our job does."""

    def __init__(self, group: Group, number: int) -> None:
        train = group.settings[number]
        self.model, self.number, self.group, self.rate = group.model(train, number), number, group, train.learning_rate
        self.run = Run(self.model, train, group.device, number)
        self.optimizer = group.job.make_optimizer(self.model, train)

    def step(self, step: int) -> None:
        """Train on one step."""
        batch = self.group.batches[self.number][step]
        if self.run.masks is not None:
            self.run.masks.step(step, batch)
        for part in self.group.passes(batch):
            if self.run.masks is not None:
                self.run.masks.give(part)
            self.run.packed.loss(part, backward=True)
        self.optimizer.step(self.rate)
        self.optimizer.zero_grad()


# --- together --------------------------------------------------------------------------------------------------------


@dataclass
class Shared:
    """What the layers of the joint model look up in a step.

    Attributes:
        factors: scale of the update for each token and each low-rank number; zero for those of other members.
        masks: each member's source of masks.
    """

    masks: list[StepMasks]
    site: Site = field(default_factory=Site)
    factors: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        """Return the masks of all members."""
        return torch.cat([masks.mask(self.site, x) for masks in self.masks])


class JointUpdate(torch.autograd.Function):
    """`UpdatedLinear` with a factor for each token and each low-rank number in the place of one scale."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, bias: Any, a: Any, b: Any, mask: Any, factors: Any) -> Any:
        """Return the output."""
        kept = x * mask
        low = (kept @ a.T).mul_(factors)
        ctx.save_for_backward(kept, weight, a, b, mask, low, factors)
        return functional.linear(x, weight, bias).addmm_(low, b.T)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return the gradients of the input and of both matrices."""
        kept, weight, a, b, mask, low, factors = ctx.saved_tensors
        of_low = (gradient @ b).mul_(factors)
        of_x = (gradient @ weight).addcmul_(of_low @ a, mask) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.T @ kept, gradient.T @ low, None, None


def _joint(layer: Any, shared: Shared, x: torch.Tensor) -> torch.Tensor:
    rows, up, factors = x.flatten(0, -2), layer.lora_B, shared.factors
    if isinstance(layer, LoRAQKVLinear):
        ones = [up.new_ones(rows, 1, requires_grad=False) for rows in layer.qkv_shapes]
        own: torch.Tensor = torch.block_diag(*ones)  # type: ignore[no-untyped-call]
        up = layer.zero_pad((up.unsqueeze(1) * own.unsqueeze(2)).flatten(1).T).T
        factors = factors.repeat(1, len(ones))
    linear = layer.linear
    tensors = (rows, linear.weight, linear.bias, layer.lora_A, up, shared.mask(rows), factors)
    out: torch.Tensor = JointUpdate.apply(*tensors)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


class Together:
    """All members trained at once."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.model = group.model(group.settings[0].model_copy(update={"lora_rank": RANK}), 0)
        for number, train in enumerate(group.settings):
            adapters = dict(layers(group.model(train, number)))
            for name, layer in layers(self.model):
                theirs = adapters[name].lora_A.data
                part_of_member("lora_A", layer.lora_A.data, number).copy_(
                    theirs.view(-1, train.lora_rank, theirs.shape[-1])
                )
        half = group.settings[0].precision != "32-true"
        precision = partial(default_dtype, torch.bfloat16) if half else nullcontext
        self.packed = PackedModel(self.model, precision, half=half)
        sources = [GivenDropout(train.lora_dropout, Site()) for train in group.settings]
        self.shared = Shared([StepMasks([each], seed, group.device) for seed, each in enumerate(sources)])
        joint = {id(layer): partial(_joint, layer, self.shared) for _, layer in layers(self.model)}
        self.packed._short = [(module, joint.get(id(module), short)) for module, short in self.packed._short]
        self.optimizer: AdamW = group.job.make_optimizer(self.model, group.settings[0])
        self.adapter = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self.rates = [torch.empty_like(each) for each in self.adapter.values()]
        for name, rates in zip(self.adapter, self.rates, strict=True):
            for number, train in enumerate(group.settings):
                part_of_member(name, rates, number).fill_(train.learning_rate)

    def step(self, step: int) -> None:
        """Train each member on one step of its own."""
        own = [self.group.passes(batches[step])[0] for batches in self.group.batches]
        self.shared.factors = self._factors([len(part.tokens) for part in own])
        for masks, part in zip(self.shared.masks, own, strict=True):
            masks.step(step, [])
            masks.give(part)
        for part in self.group.passes([each for batches in self.group.batches for each in batches[step]]):
            self.packed.loss(part, backward=True)
        adapter = list(self.adapter.values())
        before = [each.detach().clone() for each in adapter]
        self.optimizer.step(1.0)  # what AdamW changes is proportional to the learning rate
        with torch.no_grad():
            torch._foreach_sub_(adapter, before)
            torch._foreach_mul_(adapter, self.rates)
            torch._foreach_add_(adapter, before)
        self.optimizer.zero_grad()

    def _factors(self, sizes: Sequence[int]) -> torch.Tensor:
        """See `Shared`."""
        dtype = next(self.model.parameters()).dtype
        blocks = [
            torch.full((size, train.lora_rank), train.alpha / train.lora_rank / (1 - train.lora_dropout), dtype=dtype)
            for size, train in zip(sizes, self.group.settings, strict=True)
        ]
        factors: torch.Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return factors.to(self.group.device)


def part_of_member(name: str, matrix: torch.Tensor, number: int) -> torch.Tensor:
    """Return one member's part of a matrix A or B of all members; A may hold blocks for query, key and value."""
    begin = sum(member.lora_rank for member in MEMBERS[:number])
    part = slice(begin, begin + MEMBERS[number].lora_rank)
    return matrix.view(-1, RANK, matrix.shape[-1])[:, part] if name.endswith("lora_A") else matrix[:, part]


def difference(together: Together, alone: Sequence[Alone]) -> float:
    """Return the mean difference between weights trained together and alone, of the matrix where it is largest.

    Where a gradient is as small as AdamW's epsilon, rounding alone changes a weight by as much as the learning rate.
    """
    found = [0.0]
    for number, one in enumerate(alone):
        theirs = dict(one.model.named_parameters())
        for name, matrix in together.adapter.items():
            mine = part_of_member(name, matrix.detach(), number).flatten()
            found.append(float((mine - theirs[name].detach().flatten()).abs().mean()))
    return max(found)


# --- measuring -------------------------------------------------------------------------------------------------------


def seconds(group: Group, work: Callable[[], None]) -> float:
    """Return the CPU seconds that some work takes; on a GPU the wall seconds until it has ended."""
    if group.device.type == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def train(trainings: Sequence[Alone | Together], step: int) -> None:
    """Train each on one step."""
    for training in trainings:
        training.step(step)


def measure(case: Case, steps: int, batch: int) -> None:
    """Train both ways in turns, and print what a step of all members takes."""
    group = Group.of(case, steps, batch)
    together, alone = Together(group), [Alone(group, number) for number in range(len(MEMBERS))]
    took: dict[str, list[float]] = {"alone": [], "together": []}
    kernels: list[int] = []
    for step in range(steps):
        for name, way in (("alone", alone), ("together", [together])):
            work = partial(train, way, step)
            if step == 0:  # a first step is not typical: it makes buffers
                with counted(kernels):
                    work()
            else:
                took[name].append(seconds(group, work))
    tokens = sum(len(each["input_ids"]) for batches in group.batches for batch in batches[1:] for (each,) in batch)
    a, b = (sum(each) for each in took.values())
    print(f"{case.name} on {group.device.type}: {len(MEMBERS)} members, {tokens / (steps - 1):.0f} tokens in a step")
    print(f"one after another: {kernels[0]} kernels, {a / (steps - 1):.4f} s a step")
    print(f"together:          {kernels[1]} kernels, {b / (steps - 1):.4f} s a step, {a / b:.2f} times as fast")
    print(f"mean difference of a matrix's weights, at most: {difference(together, alone):.1e}")


def main() -> int:
    """Measure one case."""
    parser = argparse.ArgumentParser(description="Four trials on one base at once, against one after another.")
    parser.add_argument("model", nargs="?", default="village", choices=MODELS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16, help="examples in a step of one member")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        case = build(arguments.model, Path(folder) / "case") if arguments.model in SHAPES else village()
        measure(case, arguments.steps, arguments.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
