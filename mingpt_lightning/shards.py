"""Tensors that are divided over processes (torch's DTensor): made whole, and divided again.

A tensor that isn't divided passes through all of these unchanged, so callers need not know. Every process of the
training calls them at the same time, because each holds a part.
"""

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process has whole, divided as `like` is. Sends nothing."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None).clone()


def gathered(data: Any, keep: bool, known: dict[int, Any] | None = None) -> Any:
    """Nested data with every divided tensor whole, on the CPU; tensors become None in processes that don't `keep` it.

    One tensor after the other, so no process but the one that keeps them ever has more than one whole. The same tensor
    in two places stays the same.
    """
    known = {} if known is None else known
    if isinstance(data, dict):
        return {name: gathered(value, keep, known) for name, value in data.items()}
    if isinstance(data, list):
        return [gathered(value, keep, known) for value in data]
    if not isinstance(data, Tensor):
        return data
    if id(data) not in known:
        tensor = whole(data.detach())
        known[id(data)] = tensor.cpu() if keep else None
    return known[id(data)]
