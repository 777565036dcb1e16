"""Rank, world and the few collectives the framework needs; the only file that calls torch.distributed.

Every function works without a process group, as one rank of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from dinodomain.errors import UserError


def is_distributed() -> bool:
    """Whether a process group is running."""
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the group that ``torchrun`` laid out in the environment, for the length of the block; alone it does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_distributed():
        yield
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def choose_device(wanted: str, *, key: str = "engine.device") -> tuple[str, str]:
    """A usable device and the reason for it.

    Args:
        wanted: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        key: The user's key, for the message.

    Raises:
        UserError: The device is unknown or not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda", "a CUDA device is there"
        return "cpu", "no CUDA device is there"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(key, f"is {wanted!r}", allowed="auto, cpu, cuda, cuda:N, mps") from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 0):
        there = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items() if count)
        raise UserError(key, f"{wanted!r} is not on this machine", allowed=there, remedy=f"{key}=auto takes what is there")
    return wanted, "asked for"


def local_device(device: str) -> torch.device:
    """The device of this process: ``cuda`` becomes the one ``torchrun`` gave it."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device)


def rank() -> int:
    """This process's number, 0 without a process group."""
    return distributed.get_rank() if is_distributed() else 0


def world() -> int:
    """Number of processes, 1 without a process group."""
    return distributed.get_world_size() if is_distributed() else 1


def local_world() -> int:
    """Number of processes on this machine; all of them where the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if is_distributed() else 1


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


def average_gradients(module: torch.nn.Module) -> None:
    """Mean of every parameter's gradient over ranks, in place; one collective per 64 MiB.

    A parameter that got no gradient on this rank counts as zero: another rank may have one, and all must take part alike.
    """
    if not is_distributed():
        return
    gradients: list[Tensor] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        all_reduce_sum(flat).div_(world())
        for gradient, mean in zip(bucket, flat.split_with_sizes([gradient.numel() for gradient in bucket])):
            gradient.copy_(mean.view_as(gradient))


def _buckets(tensors: list[Tensor], size: int = 64 * 2**20) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        if buckets[-1] and held + tensor.nbytes > size:
            buckets.append([])
            held = 0
        buckets[-1].append(tensor)
        held += tensor.nbytes
    return buckets
