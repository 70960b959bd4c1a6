"""The memory that is free, and the number of tokens in one pass of training that fit into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hpo_cluster.objectives.lora.packing import passes

if TYPE_CHECKING:
    from hpo_cluster.objectives.lora.packed_forward import PackedModel

#: Tokens in a pass on a CPU, where more are not faster and take more memory.
TOKENS_ON_CPU = 1024

#: Tokens of the trial pass, and the smallest result.
TRIED = 64

#: The largest result; more tokens are not faster.
MOST = 2**16

#: Factor for what is not counted: the masks of dropout, and tensors that exist only for a moment.
SLACK = 2.0

#: Bytes of one logit with its gradient, in 16 and 32 bits.
LOGIT_BYTES = 16


def free_bytes(device: torch.device) -> int:
    """Return the memory of a GPU that torch can still use: what the device has left, and what torch has in reserve."""
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + reserved


def tokens_that_fit(packed: PackedModel, device: torch.device) -> int:
    """Return how many tokens fit into one pass of training."""
    if device.type != "cuda":
        return TOKENS_ON_CPU
    left = free_bytes(device) - LOGIT_BYTES * packed.logits_at_once
    kept = SLACK * max(1.0, kept_bytes_per_token(packed, device))  # zero without an adapter
    return min(max(TRIED, int(left / kept)), MOST)


def kept_bytes_per_token(packed: PackedModel, device: torch.device) -> float:
    """Return the bytes per token that a pass keeps for the backward pass, without the parameters."""
    mine = {parameter.untyped_storage().data_ptr() for parameter in packed.model.parameters()}
    sizes = dict[int, int]()
    alive = list[torch.Tensor]()  # an address is not used twice

    def count(kept: torch.Tensor) -> torch.Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in mine:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(kept)
        return kept

    tokens = torch.zeros(min(TRIED, packed.model.max_seq_length), dtype=torch.long)
    part = passes([[{"input_ids": tokens, "labels": tokens}]], 1.0, len(tokens))[0]
    was_training = packed.model.training
    packed.model.eval()  # without dropout masks
    with torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
        packed.hidden(part.to(device))
    packed.model.train(was_training)
    return sum(sizes.values()) / len(part.tokens)
