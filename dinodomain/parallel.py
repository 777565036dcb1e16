"""Rank, world and the few collectives the framework needs; the only file that calls torch.distributed.

Every function works without a process group, as one rank of one. A tensor is *sharded* if each rank holds some of its rows (FSDP2's
``DTensor``); ``own_rows``, ``whole`` and ``cut_like`` are all that anybody needs to know about that.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, distributed

from dinodomain.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others, torch's own limit with NCCL: longer than any save or figure, shorter than a wasted night."""

_SILENT = ("timed out", "timeout", "connection closed", "connection reset", "connection refused", "broken pipe", "peer")
"""What backends say when another process has gone."""


def is_distributed() -> bool:
    """Whether a process group is running."""
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the group that ``torchrun`` laid out in the environment, for the length of the block; alone it does nothing.

    Raises:
        UserError: The environment is incomplete, the others do not come, or one of them stopped answering.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_distributed():
        yield
        return
    # Tensors on the host travel by gloo beside a run on CUDA.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        remedy = (
            "start all processes with torchrun (it sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT); see its log for one that failed"
        )
        raise UserError(
            "WORLD_SIZE", f"the {os.environ['WORLD_SIZE']} processes could not meet ({_first_line(error)})", remedy=remedy
        ) from error
    try:
        yield
    except RuntimeError as error:
        if not is_silence(error):
            raise
        raise UserError(
            "torchrun", f"process {os.environ.get('RANK', '?')} waited for another one that stopped answering ({_first_line(error)})",
            remedy="the message of the process that failed first says why; after that, the same command goes on from the last checkpoint",
        ) from error  # fmt: skip
    finally:
        # What wrapped a network for several processes lies in reference cycles and holds the group: its threads would end with the
        # interpreter, which now and then aborts there (seen with gloo, torch 2.14).
        gc.collect()
        distributed.destroy_process_group()


def is_silence(error: BaseException) -> bool:
    """Whether a backend says that another process is gone or late, rather than that something is wrong here."""
    said = str(error).lower()
    by_backend = isinstance(error, distributed.DistError) or "gloo" in said or "nccl" in said or "socket" in said
    return by_backend and any(word in said for word in _SILENT)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    """The device of this process: ``cuda`` becomes the one ``torchrun`` gave it.

    Raises:
        UserError: There are more processes on this machine than devices.
    """
    if device == "cuda":
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise UserError("torchrun", f"started {own + 1} processes or more on a machine with {there} CUDA devices",
                            remedy=f"use --nproc-per-node {there}")  # fmt: skip
        torch.cuda.set_device(own)
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


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each rank holds some rows of this tensor."""
    if not is_distributed():
        return False
    from torch.distributed.tensor import DTensor  # a tenth of a second that one process need not spend

    return isinstance(tensor, DTensor)


def own_rows(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows of a sharded tensor, gathered on every rank; any other tensor as it is. Collective."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copies whole values into a tensor of the same shape; each rank takes its own rows of them. No collective.

    Args:
        tensor: Changed in place; may be sharded, over any number of ranks.
        values: Whole, on any device.
    """
    own_rows(tensor).copy_(_cut(values, tensor) if is_sharded(tensor) else values)


def cut_like(values: Tensor, like: Tensor) -> Tensor:
    """Whole values as a tensor that is sharded as ``like`` is, on its device; as they are where it is not sharded or shapes differ."""
    if not is_sharded(like) or values.shape != like.shape:
        return values
    made = torch.empty_like(like, dtype=values.dtype)
    fill(made, values)
    return made


def _cut(values: Tensor, like: DTensor) -> Tensor:
    """The rows of this rank: DTensor's own cut is that of ``torch.chunk``, which may leave the last ranks none."""
    mesh = like.device_mesh
    pieces = values.chunk(mesh.size(), 0)
    place = mesh.get_local_rank()
    return pieces[place] if place < len(pieces) else values[:0]
