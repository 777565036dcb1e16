"""How several processes share a model: DDP (each has all of it) or FSDP2 (each has some rows of everything). One process needs neither.

DDP averages gradients while the backward pass still runs. FSDP2 (Zhao 2023; ``fully_shard``) keeps weights, gradients, moments and the
teacher in parts and gathers one block at a time. Weights are float32 wherever they lie or travel, and so are sums of gradients: autocast
alone narrows what is multiplied, so that both ways compute the same. Both keep the names of parameters, so that groups, checkpoints and
exports know nothing of them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinodomain import parallel
from dinodomain.engine.memory import USABLE, device_memory, estimate
from dinodomain.engine.plan import EnginePlan, PretrainPlan
from dinodomain.errors import UserError
from dinodomain.model import Branch, Pair


def choose_distribute(plan: PretrainPlan, *, ndim: int, channels: int, world: int) -> tuple[str, str]:
    """``ddp`` or ``fsdp2``, and the reason.

    Args:
        plan: Sizes, device and precision are settled.
        ndim: 2 or 3.
        channels: Of the network's input.
        world: Number of processes.

    Raises:
        UserError: The device of the plan cannot be shared between processes.
    """
    kind, wanted = torch.device(plan.engine.device).type, plan.engine.distribute
    if world == 1:
        return ("ddp" if wanted == "auto" else wanted), "one process, which has all of the model"
    if kind not in ("cpu", "cuda"):
        raise UserError("engine.device", f"is {kind!r} with {world} processes", allowed="cpu, cuda", remedy="start one process")
    if wanted != "auto":
        return wanted, "asked for"
    needed, there = estimate(plan, ndim=ndim, channels=channels, world=world), device_memory(plan.engine.device)
    held = needed.weights + needed.moments
    if there is not None and held > USABLE * there / 2:
        return "fsdp2", f"weights, teacher and moments take {held / 2**30:.3g} GiB, more than half of a device's {there / 2**30:.3g} GiB"
    return "ddp", f"weights, teacher and moments take {held / 2**30:.3g} GiB on each device"


def distribute(pair: Pair, plan: EnginePlan, device: torch.device) -> nn.Module:
    """Prepares student and teacher for all processes of the run; before the optimiser is made, because FSDP2 replaces parameters.

    Args:
        pair: Equal on all ranks, on the device; FSDP2 changes it in place.
        plan: Resolved.
        device: Of this process.

    Returns:
        What the loss calls as the student: the branch itself, or DDP's wrapper of it.
    """
    student: Branch = pair.student
    if not parallel.is_distributed():
        return student
    if plan.distribute == "fsdp2":
        _shard(student, device, keep=True)
        # The teacher is moved from its own rows after every step, so they must be back in place after every pass.
        _shard(pair.teacher, device, keep=False)
        return student
    own = [device] if device.type == "cuda" else None
    # Buffers are constants here, equal on all ranks; torch 2.13 gave the switch a new name.
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    still: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(student, device_ids=own, gradient_as_bucket_view=True, init_sync=False, **still)


def micro_batch(student: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """The context of one micro-batch's forward and backward pass: DDP talks to the other ranks in the last one only.

    FSDP2 adds up its parts after each: whole gradients of the model are what a sharded run has no room for.
    """
    return student.no_sync() if isinstance(student, DistributedDataParallel) and not last else nullcontext()


def whole_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with all their rows; collective where any is sharded, one tensor at a time.

    Returns:
        Sharded ones gathered into host memory on rank 0 and left out elsewhere; others as they are, not copied.
    """
    found = {}
    for name, tensor in tensors.items():
        sharded, all_rows = parallel.is_sharded(tensor), parallel.whole(tensor.detach())
        if not sharded or parallel.rank() == 0:
            found[name] = all_rows.cpu() if sharded else all_rows
    return found


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of these is held in parts, so that reading all of it is collective."""
    return any(parallel.is_sharded(tensor) for tensor in tensors)


def _shard(branch: Branch, device: torch.device, *, keep: bool) -> None:
    """Cuts a branch into one part per block and one for the rest: embeddings, norm, heads.

    Args:
        branch: Changed in place.
        device: Of this process.
        keep: Hold the rest whole between forward and backward pass, which follows at once.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # What a branch returns are views of larger tensors, and nobody changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    shared: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (parallel.world(),)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    for block in branch.backbone.vit.blocks:
        fully_shard(block, reshard_after_forward=True, **shared)
    fully_shard(branch, reshard_after_forward=not keep, **shared)
