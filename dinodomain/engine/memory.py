"""How much memory a step takes, from its plan alone: a model of what lives at its peak, and what to change where it does not fit.

Counted are the tensors that grow with sizes (weights, moments, views, what the backward pass keeps, targets); not the interpreter, the
device's context and what the allocator wastes, for which ``USABLE`` leaves room. Checked against measured peaks to within 40 %.
Legend: P parameters, T tokens of a sample, D width, K prototypes, n rows that go through a head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch

from dinodomain.engine.anchor import ENLARGED
from dinodomain.engine.machine import readable_size, total_memory
from dinodomain.engine.plan import PretrainPlan
from dinodomain.errors import UserError
from dinodomain.model import ModelPlan
from dinodomain.objective.fused import CHUNK_BYTES
from dinodomain.parallel import choose_device

USABLE = 0.85
"""Share of a memory that plans may fill: the rest is for context, fragments and temporary tensors that the model leaves out."""

CERTAIN: Mapping[str, float] = {"cuda": 0.7, "cpu": 1.0}
"""The model may be too high by 40 %: a plan is refused outright only if even this share of its estimate does not fit. On a CPU nothing says
so when memory runs out, the system ends the process, and maybe others: there the whole estimate counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one device at the peak of a step, by what they are for.

    Attributes:
        weights: Student, teacher and the autocast copies of the student's.
        moments: Gradients and AdamW's two moments.
        views: All tiles of the process's batch, as they are read, and the crops of one micro-batch.
        activations: What the student keeps for the backward pass, of one micro-batch.
        targets: What the teacher leaves of the process's batch, and what its targets are made of.
        loss: Logits in work and gradients of the prototypes.
    """

    weights: int
    moments: int
    views: int
    activations: int
    targets: int
    loss: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(getattr(self, item.name) for item in fields(self))

    def __str__(self) -> str:
        parts = sorted(((getattr(self, item.name), item.name) for item in fields(self)), reverse=True)
        return f"{readable_size(self.total)} (" + ", ".join(f"{name} {readable_size(size)}" for size, name in parts) + ")"


def estimate(plan: PretrainPlan, *, ndim: int, channels: int, world: int = 1, tile: int = 0) -> Memory:
    """Memory of one step of a plan on one of ``world`` devices.

    Args:
        plan: Sizes are settled; ``auto`` elsewhere does no harm.
        ndim: 2 or 3.
        channels: Of the network's input.
        world: Processes that share the global batch and, under ``fsdp2``, the weights.
        tile: Bytes of what is read for one sample.
    """
    samples = max(1, plan.loader.batch // world)
    micro = max(1, samples // plan.engine.accumulate)
    half = plan.engine.precision == "bf16"
    backbone = backbone_parameters(plan.model, ndim=ndim, channels=channels, size=plan.views.global_size)
    heads = head_parameters(plan)
    parts = world if plan.engine.distribute == "fsdp2" else 1
    parameters = (backbone + heads) // parts
    anchor = backbone if plan.gram.weight > 0 else 0
    return Memory(
        weights=4 * (2 * parameters + anchor) + (2 * (backbone + heads) if half else 0),
        moments=12 * parameters,
        views=samples * tile + micro * _view_bytes(plan, ndim, channels),
        activations=micro * _activation_bytes(plan, ndim, half=half),
        targets=_target_bytes(plan, ndim, samples),
        loss=_loss_bytes(plan, ndim, micro),
    )


def smallest_accumulation(plan: PretrainPlan, budget: int, *, ndim: int, channels: int, world: int = 1, tile: int = 0) -> int | None:
    """Fewest micro-batches a step with which the estimate stays within ``budget`` bytes; None where none do.

    Micro-batches keep two samples for KoLeo, which compares within them, and hold whole reads (``loader.draws``).
    """
    samples = plan.loader.batch // world
    least = 2 if plan.objective.koleo_weight > 0 else 1
    for count in range(plan.engine.accumulate, samples // least + 1):
        if samples % count == 0:
            trial = replace(plan, engine=replace(plan.engine, accumulate=count))
            if estimate(trial, ndim=ndim, channels=channels, world=world, tile=tile).total <= budget:
                return count
    return None


def does_not_fit(plan: PretrainPlan, needed: str, there: int, *, world: int = 1, fitting: int | None = None) -> UserError:
    """The refusal: which key makes the same run smaller, best first.

    Args:
        plan: The plan that is too large.
        needed: How much it takes, in words.
        there: Bytes that the device has.
        world: Processes.
        fitting: Fewest micro-batches a step that fit by the estimate; None where that is not known, or none do.
    """
    samples = max(1, plan.loader.batch // world)
    least = 2 if plan.objective.koleo_weight > 0 else 1
    more = [count for count in range(plan.engine.accumulate + 1, samples // least + 1) if samples % count == 0]
    remedies = []
    if more:
        remedies.append(f"engine.accumulate={fitting or _about_double(more, plan.engine.accumulate)} (the same step in smaller parts)")
    if not plan.engine.checkpointing:
        remedies.append("engine.checkpointing=true (a third slower)")
    remedies += ["a smaller loader.batch, views.global_size or objective.prototypes", "a smaller model"]
    key = "engine.accumulate" if more else "engine.checkpointing" if not plan.engine.checkpointing else "loader.batch"
    return UserError(key, f"a step needs {needed}, the device has {readable_size(there)}", remedy="take " + "; or ".join(remedies))


@contextmanager
def memory_errors(plan: PretrainPlan, *, world: int = 1) -> Iterator[None]:
    """Turns running out of device or host memory into the refusal that names the key to change.

    Raises:
        UserError: Memory ran out inside the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        device, _ = choose_device(plan.engine.device)
        raise does_not_fit(plan, "more memory than there is", device_memory(device) or 0, world=world) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; torch's CPU allocator has no type of its own for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def memory_by_kind(share: int) -> dict[str, int]:
    """Bytes of each kind of device that one of ``share`` processes on this machine may have; accelerators are not shared."""
    found = {kind: device_memory(kind) for kind in ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))}
    return {kind: size // (share if kind == "cpu" else 1) for kind, size in found.items() if size is not None}


def device_memory(device: str) -> int | None:
    """All memory of the device, bytes: not what is free now, so that a plan does not depend on the moment; None where unknown."""
    if torch.device(device).type == "cuda":
        size: int = torch.cuda.get_device_properties(torch.device(device)).total_memory
        return size
    return total_memory()


def backbone_parameters(model: ModelPlan, *, ndim: int, channels: int, size: int) -> int:
    """Number of parameters of a transformer; wavelength embeddings count as one kernel and their attention."""
    dim, hidden = model.dim, round(model.mlp_ratio * model.dim)
    mlp = (3 if model.mlp == "swiglu" else 2) * dim * hidden + (2 if model.mlp == "swiglu" else 1) * hidden + dim
    block = 4 * dim * dim + 4 * dim + mlp + 4 * dim + (2 * dim if model.layer_scale else 0)
    kernels = channels if model.channels == "fixed" else 1
    embed = kernels * math.prod(patches(model, ndim)) * dim + dim + (4 * dim * dim if model.channels == "wavelength" else 0)
    positions = 0 if model.position == "rope" else _tokens(model, ndim, size) * dim
    return model.depth * block + embed + positions + (3 + model.registers) * dim


def head_parameters(plan: PretrainPlan) -> int:
    """Number of parameters of the head, or of both."""
    objective = plan.objective
    widths = [plan.model.dim, *[objective.head_hidden] * (objective.head_layers - 1), objective.bottleneck]
    mlp = sum(before * after + after for before, after in itertools.pairwise(widths))
    own = objective.patch_head == "separate" and objective.ibot_weight > 0
    second = mlp + (objective.patch_prototypes or objective.prototypes) * objective.bottleneck if own else 0
    return mlp + objective.prototypes * objective.bottleneck + second


def patches(model: ModelPlan, ndim: int) -> tuple[int, ...]:
    """Sides of a patch, one per axis."""
    return (model.patch,) * ndim if isinstance(model.patch, int) else tuple(model.patch)


def _about_double(choices: list[int], now: int) -> int:
    return next((count for count in choices if count >= 2 * now), choices[-1])


def _tokens(model: ModelPlan, ndim: int, size: int) -> int:
    """Patch tokens of a crop."""
    return math.prod(size // side for side in patches(model, ndim))


def _view_bytes(plan: PretrainPlan, ndim: int, channels: int) -> int:
    """Crops of a sample, the Gram anchor's larger ones too: float32, with one byte of validity per pixel while they are made."""
    views, gram = plan.views, plan.gram
    pixels: int = views.num_global * views.global_size**ndim + views.num_local * views.local_size**ndim
    if gram.weight > 0:
        pixels += views.num_global * (gram.size or ENLARGED * views.global_size) ** ndim
    return (4 * channels + 1) * pixels


def _activation_bytes(plan: PretrainPlan, ndim: int, *, half: bool) -> int:
    """What a sample's student tokens leave for the backward pass.

    A block keeps, per token: its input, two normalised copies, q, k, v, the attended values, both branches before LayerScale, the residual
    between them, and the MLP's hidden values before and after the activation (twice that before it with a gate).
    """
    model, views, objective = plan.model, plan.views, plan.objective
    prefix = 1 + model.registers
    tokens = views.num_global * (prefix + _tokens(model, ndim, views.global_size))
    tokens += views.num_local * (prefix + _tokens(model, ndim, views.local_size))
    hidden = (4 if model.mlp == "swiglu" else 2) * model.mlp_ratio
    turned = 2 if model.position == "rope" else 0
    small = 2 if half else 4
    block = model.dim * (8 + small * (8 + turned + hidden))
    kept = 4 * model.dim * model.depth + block if plan.engine.checkpointing else model.depth * block
    rows = views.num_global + views.num_local + _masked(plan, ndim)
    head = rows * small * (2 * objective.head_hidden * (objective.head_layers - 1) + 4 * objective.bottleneck + model.dim)
    gram = 0
    if plan.gram.weight > 0:
        patch_tokens = _tokens(model, ndim, views.global_size)
        # Two similarity matrices of an image, and what a teacher block works on at its larger size.
        gram = 12 * patch_tokens**2 + views.num_global * 4 * patch_tokens * model.dim * round(6 + hidden)
    return int(tokens * kept + head + gram)


def _masked(plan: PretrainPlan, ndim: int) -> int:
    """Patches of a sample that go through the head."""
    objective = plan.objective
    if objective.ibot_weight == 0:
        return 0
    share = objective.mask_probability * sum(objective.mask_ratio) / 2
    return math.ceil(plan.views.num_global * share * _tokens(plan.model, ndim, plan.views.global_size))


def _target_bytes(plan: PretrainPlan, ndim: int, samples: int) -> int:
    """What the teacher leaves of all micro-batches: class tokens and points; with Sinkhorn-Knopp also one matrix over the prototypes."""
    objective, views = plan.objective, plan.views
    cls, masked = views.num_global, _masked(plan, ndim)
    kept = 4 * (cls * plan.model.dim + (cls + masked) * objective.bottleneck)
    matrix = cls * objective.prototypes + masked * (objective.patch_prototypes or objective.prototypes)
    return samples * (kept + (4 * matrix if objective.centering == "sinkhorn" else 0))


def _loss_bytes(plan: PretrainPlan, ndim: int, micro: int) -> int:
    """A chunk of logits, targets and their products, and the gradients of prototypes before and after they are normalised."""
    objective, views = plan.objective, plan.views
    rows = micro * (views.num_global + views.num_local + _masked(plan, ndim))
    return min(3 * 4 * rows * objective.prototypes, CHUNK_BYTES) + 3 * 4 * objective.prototypes * objective.bottleneck
