"""Rungs of a fine-tuning: what each of them is, and scoring a model in the middle of its training.

With ``lr_schedule=wsd`` what is scored is a copy that was trained on until its learning rate was zero (`branched`).

To be scored, a model is merged in place, as at the end of its training, so that scores at rungs are what the end would
give. Afterwards its base weights are read again from the checkpoint, which is exact and needs no second copy of them.
(Scoring with the adapter unmerged would need neither, but in bfloat16 it gives other scores: merging rounds.)
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.fidelity import Ladder
from hpo_cluster.objectives.lora.schedule import rung_step

if TYPE_CHECKING:  # torch and litgpt are imported once the environment is set
    from hpo_cluster.objectives.lora.progress import State
    from hpo_cluster.objectives.lora.run import Run


def stops(ladder: Ladder, steps: int, only: int | None = None) -> list[tuple[int, int]]:
    """Return each rung of a training with the number of steps after which it is reached.

    Args:
        ladder: the rungs.
        steps: number of steps of the whole training.
        only: the one rung that is reached at its end, if each rung is a training of its own.
    """
    if only is not None:
        return [(only, steps)]
    if ladder.kind == "items":
        return [(rung, steps) for rung in range(ladder.top + 1)]
    return [(rung, rung_step(steps, share)) for rung, share in enumerate(ladder.shares)]


def some_rows(examples: Sequence[Any], share: float, seed: int) -> Sequence[Any]:
    """Return a random share of the training examples, at least one; smaller shares are parts of larger ones."""
    import torch
    from torch.utils.data import Subset

    if share == 1:
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    rows: Any = Subset(examples, sorted(order[: math.ceil(share * len(examples))]))  # type: ignore[arg-type]
    return rows  # type: ignore[no-any-return]


@contextlib.contextmanager
def branched(run: Run, state: State) -> Iterator[State]:
    """Within the context, the model may be trained with the yielded state; afterwards its training is where it was.

    An exception ends the training, so nothing is restored then.

    Args:
        run: the model.
        state: the progress of its training, the loss of its last step read.
    """
    from hpo_cluster.objectives.lora.checkpoint import contents, restore

    kept = copy.deepcopy(contents(run.model, state.optimizer))
    yield dataclasses.replace(state, losses=[*state.losses])
    restore(kept, run.model, state.optimizer)


@contextlib.contextmanager
def undisturbed(run: Run, checkpoint_dir: Path) -> Iterator[None]:
    """Within the context, the model may be merged and scored; afterwards its training goes on as if it had not been.

    An exception ends the training, so nothing is restored then.
    """
    from litgpt.lora import LoRALayer

    from hpo_cluster.objectives.lora.base_model import read_base
    from hpo_cluster.objectives.lora.checkpoint import generators_of, set_generators

    model = run.model
    generators = generators_of(run.device)
    dtypes = [value.dtype for value in model.parameters()]
    length, cos, sin = model.max_seq_length, model.cos, model.sin
    yield
    for value, dtype in zip(model.parameters(), dtypes, strict=True):
        value.data = value.data.to(dtype)
    read_base(model, checkpoint_dir)
    for layer in model.modules():
        if isinstance(layer, LoRALayer) and hasattr(layer, "merged"):
            layer.merged = False
    model.cos, model.sin = cos, sin  # before the length, which may make them anew
    model.max_seq_length = length
    set_generators(generators, run.device)
