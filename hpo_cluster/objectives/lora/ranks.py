"""The ranks of an evaluation: its processes, each with its own GPU and a copy of the whole model.

All ranks run the same program, `jobs/lora.py`. They share the work (`deal`, `mine`, `scatter`) and put the results
together (`add_up`, `gather`). With one rank, the default, each of these methods returns at once what it was given.

Each rank must make the same calls in the same order, since each call waits for the others. What one rank decides alone
(to end because of a signal, a fault, too little memory) needs no call: it raises, and the job's process, which watches
all ranks, ends them (`rank_processes`).
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpo_cluster.errors import AttemptError
from hpo_cluster.trial import ErrorKind

if TYPE_CHECKING:  # the process that starts the ranks does not need torch
    import torch

T = TypeVar("T")

#: Time limit of one exchange. It is not needed to notice a rank that is gone, so no slow phase must reach it.
TIMEOUT = datetime.timedelta(days=30)


class RankLostError(AttemptError):
    """An exchange with the other ranks failed, most likely because one of them has ended."""


def deal(costs: Sequence[int], count: int) -> list[list[int]]:
    """Divide items into shares of similar cost: the most expensive first, each to the cheapest share.

    Args:
        costs: cost of each item.
        count: number of shares.

    Returns:
        The numbers of the items of each share, in ascending order.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [(0, rank) for rank in range(count)]
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        total, rank = sums[0]
        shares[rank].append(item)
        heapq.heapreplace(sums, (total + costs[item], rank))
    return [sorted(share) for share in shares]


@dataclass(frozen=True)
class Ranks:
    """All ranks of an evaluation, as one of them sees them.

    Attributes:
        rank: number of this rank, from 0.
        count: number of ranks.
        store: file by which the ranks find each other.
    """

    rank: int = 0
    count: int = 1
    store: Path | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that scores, and that writes checkpoints and the adapter."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Connect this rank to the others, once in a process.

        Tensors on GPUs are exchanged by NCCL; Python objects, and tensors of a CPU, by Gloo.
        """
        if self.count == 1:
            return
        import torch.distributed as dist
        from torch._C._distributed_c10d import FileStore

        if dist.is_initialized():
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = FileStore(str(self.store), self.count)
        with _exchange():
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.count, timeout=TIMEOUT)

    def mine(self, costs: Sequence[int]) -> Sequence[int]:
        """Return the numbers of the items that this rank takes, in ascending order."""
        return range(len(costs)) if self.count == 1 else deal(costs, self.count)[self.rank]

    def scatter(self, parts: Sequence[T] | None) -> T:
        """Return the part of this rank; the first rank has all parts, the others pass None."""
        if self.count == 1:
            assert parts is not None
            return parts[0]
        import torch.distributed as dist

        received: list[Any] = [None]
        with _exchange():
            dist.scatter_object_list(received, None if parts is None else list(parts), src=0)
        part: T = received[0]
        return part

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of the ranks."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        with _exchange():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the function returns on the first rank; the others do not call it."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        made: list[Any] = [make() if self.first else None]
        with _exchange():
            dist.broadcast_object_list(made, src=0)
        value: T = made[0]
        return value

    def copy(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite tensors of the other ranks with those of the first."""
        if self.count == 1:
            return
        import torch.distributed as dist

        with _exchange():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def add_up(self, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter] = ()) -> torch.Tensor:
        """Return the sum of the losses of all ranks, and replace gradients by their sums, in one exchange.

        The sums are equal on all ranks, to the last bit. On GPUs the program does not wait for them.
        """
        if self.count == 1:
            return loss
        import torch
        import torch.distributed as dist

        for parameter in parameters:
            if parameter.grad is None:  # this rank has no token that teaches
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([loss.reshape(1).float(), *(gradient.flatten().float() for gradient in gradients)])
        with _exchange():
            dist.all_reduce(flat)
        sums = torch.split(flat, [1, *(gradient.numel() for gradient in gradients)])
        if gradients:
            same_shape = [total.view_as(gradient) for total, gradient in zip(sums[1:], gradients, strict=True)]
            torch._foreach_copy_(gradients, same_shape)
        return sums[0].clone().squeeze(0)


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Raise `RankLostError` if an exchange with the other ranks fails."""
    try:
        yield
    except RuntimeError as error:
        message = f"the exchange between the GPUs of the trial failed: {error}"
        raise RankLostError(ErrorKind.NODE, message) from error
