"""Rank, world and the few collectives the framework needs; the only file that calls torch.distributed.

Every function works without a process group, as one rank of one.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def is_distributed() -> bool:
    """Whether a process group is running."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, 0 without a process group."""
    return distributed.get_rank() if is_distributed() else 0


def world() -> int:
    """Number of processes, 1 without a process group."""
    return distributed.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Waits for all ranks."""
    if is_distributed():
        distributed.barrier()


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over ranks, in place; returns the tensor."""
    if is_distributed():
        distributed.all_reduce(value, op=distributed.ReduceOp.SUM)
    return value


def all_reduce_max(value: Tensor) -> Tensor:
    """Maximum over ranks, in place; returns the tensor."""
    if is_distributed():
        distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
    return value


def broadcast_module(module: torch.nn.Module) -> None:
    """Gives every rank the parameters and buffers of rank 0."""
    if is_distributed():
        for tensor in (*module.parameters(), *module.buffers()):
            distributed.broadcast(tensor.data, src=0)
