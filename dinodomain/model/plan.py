"""The plan of a vision transformer. No torch here, so that a plan can be built and checked without it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from dinodomain.errors import Problems, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """A vision transformer for images or volumes (Dosovitskiy 2021; LayerScale: Touvron 2021; registers: Darcet 2024).

    Attributes:
        dim: Width of a token (192 Ti, 384 S, 768 B, 1024 L).
        depth: Number of blocks (12; 24 for L).
        heads: Attention heads; must divide ``dim``.
        patch: Side of a patch in pixels: one number, or one per axis in array order ((z,) y, x) where voxels are not cubes.
        mlp: ``gelu``, or ``swiglu``: a gated MLP (Shazeer 2020; DINOv2's largest, DINOv3's H+ and 7B).
        mlp_ratio: Hidden width of the MLP as a multiple of ``dim``; of ``swiglu``, of each of its two halves.
        registers: Number of register tokens, which keep artefacts out of the patch tokens.
        layer_scale: Initial LayerScale gain; 0 leaves LayerScale out.
        drop_path: Share of samples that skip a block's branch in training, the same in every block.
        position: ``learned`` positions, fixed ``sincos`` of the grid coordinates, or ``rope``: queries and keys are turned by the
            coordinates of their patches in every block (Su 2021; per axis as in DINOv3).
        rope_unit: What RoPE's coordinates measure, from the middle of the crop: ``crop``, its half sides (DINOv3: every crop spans -1..1);
            ``patch``, patches, so that a local crop spans less; ``physical``, the pixels' own mm or m, so that size itself is seen.
        rope_length: Length that spans 0..1: in patches (None: half the grid of a global crop) or in mm or m (None: pretraining takes half
            of the median global crop). Not with ``crop``.
        rope_base: The n periods of an axis are ``rope_base ** (i / n)`` for i = 0..n-1, with 1 the reach of 0..1 (DINOv3: 100).
        rope_shift: Largest shift of all coordinates of a crop, drawn in training; 0 for none.
        rope_jitter: Largest factor by which each axis is stretched or shrunk by itself, drawn log-uniformly in training; 1 for none.
        rope_rescale: The same for all axes together (DINOv3: 2).
        channels: What the patch embedding does with channels: ``fixed``, one kernel per channel; ``wavelength``, one kernel for all,
            told apart by wavelength or name, and attention over channels (Waldmann 2025, "Panopticon"): any subset later.
        init: First weights of the linears: ``normal`` 0.02 as in DINO and timm, or ``xavier`` (gain sqrt 2), which a narrow network needs
            to be more than linear from the start.
        class_position: Whether class and register tokens carry positions too, as ViTs without registers often do.
        norm_eps: What layer norms add to the variance: 1e-6 as in DINO and DINOv2; DINOv3 has 1e-5.
    """

    dim: int = 384
    depth: int = 12
    heads: int = 6
    patch: int | tuple[int, ...] = 16
    mlp: Literal["gelu", "swiglu"] = "gelu"
    mlp_ratio: float = 4.0
    registers: int = 4
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    position: Literal["learned", "sincos", "rope"] = "learned"
    rope_unit: Literal["crop", "patch", "physical"] = "crop"
    rope_length: float | None = None
    rope_base: float = 100.0
    rope_shift: float = 0.0
    rope_jitter: float = 1.0
    rope_rescale: float = 1.0
    channels: Literal["fixed", "wavelength"] = "fixed"
    init: Literal["normal", "xavier"] = "normal"
    class_position: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if not isinstance(self.patch, int):
            object.__setattr__(self, "patch", tuple(self.patch))  # JSON and YAML have lists only
        problems = [
            UserError(f"model.{name}", f"is {getattr(self, name)}", allowed="at least 1")
            for name in ("dim", "depth", "heads")
            if getattr(self, name) < 1
        ]
        problems += _patch_problems(self.patch)
        if self.heads > 0 and self.dim % self.heads:
            near = [count for count in range(1, self.dim + 1) if self.dim % count == 0 and count <= 2 * self.heads]
            problems.append(UserError("model.heads", f"{self.heads} heads do not divide dim {self.dim}", allowed=", ".join(map(str, near))))
        if self.mlp_ratio <= 0:
            problems.append(UserError("model.mlp_ratio", f"is {self.mlp_ratio}", allowed="above 0"))
        if self.registers < 0:
            problems.append(UserError("model.registers", f"is {self.registers}", allowed="0 or more"))
        if self.layer_scale < 0:
            problems.append(UserError("model.layer_scale", f"is {self.layer_scale}", allowed="0 (off) or more"))
        if self.norm_eps <= 0:
            problems.append(UserError("model.norm_eps", f"is {self.norm_eps}", allowed="above 0"))
        if not 0.0 <= self.drop_path < 1.0:
            problems.append(UserError("model.drop_path", f"is {self.drop_path}", allowed="0 <= drop_path < 1"))
        problems += _rope_problems(self) if self.position == "rope" else _without_rope(self)
        if problems:
            raise Problems(problems)


def _patch_problems(patch: int | tuple[int, ...]) -> list[UserError]:
    sides = (patch,) if isinstance(patch, int) else patch
    if not isinstance(patch, int) and len(sides) not in (2, 3):
        return [UserError("model.patch", f"has {len(sides)} sides", allowed="one number, or 2 (images) or 3 (volumes) of them")]
    if min(sides) < 1:
        return [UserError("model.patch", f"is {patch}", allowed="at least 1")]
    return []


def _rope_problems(plan: ModelPlan) -> list[UserError]:
    """Values and combinations of RoPE; whether heads are wide enough for the axes is known when a network is built."""
    ranges = {
        "rope_base": (plan.rope_base > 1, "above 1"),
        "rope_shift": (0 <= plan.rope_shift < math.inf, "0 (off) or more"),
        "rope_jitter": (1 <= plan.rope_jitter < math.inf, "1 (off) or more"),
        "rope_rescale": (1 <= plan.rope_rescale < math.inf, "1 (off) or more"),
        "rope_length": (plan.rope_length is None or 0 < plan.rope_length < math.inf, "above 0, or nothing"),
    }
    problems = [
        UserError(f"model.{name}", f"is {getattr(plan, name)}", allowed=allowed) for name, (fits, allowed) in ranges.items() if not fits
    ]
    if plan.rope_unit == "crop" and plan.rope_length is not None:
        remedy = "leave it out, or set model.rope_unit=patch or physical"
        problems.append(UserError("model.rope_length", "is set with rope_unit=crop, where every crop spans -1..1", remedy=remedy))
    if plan.class_position:
        found = "is set with position=rope, which turns patches only"
        problems.append(UserError("model.class_position", found, remedy="set model.class_position=false"))
    if plan.heads > 0 and plan.dim % plan.heads == 0 and plan.dim // plan.heads % 2:
        found = f"{plan.heads} heads of {plan.dim // plan.heads} channels each: rope turns channels in pairs"
        problems.append(UserError("model.heads", found, allowed="heads of an even width"))
    return problems


def _without_rope(plan: ModelPlan) -> list[UserError]:
    """Keys of RoPE that would do nothing."""
    names = ("rope_unit", "rope_length", "rope_base", "rope_shift", "rope_jitter", "rope_rescale")
    own = {item.name: item.default for item in fields(ModelPlan)}
    return [
        UserError(f"model.{name}", f"is {getattr(plan, name)} with position={plan.position}, where it does nothing",
                  remedy=f"set model.position=rope, or model.{name}={'null' if own[name] is None else own[name]}")
        for name in names
        if getattr(plan, name) != own[name]
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPlan:
    """Weights that a run begins with.

    Attributes:
        weights: A run, checkpoint or exported backbone of this package; a ``.safetensors``, ``.pth`` or ``.bin`` file or a folder in
            Meta's, timm's or Hugging Face's layout; or ``hub:OWNER/NAME`` from the local hub cache. None starts with fresh weights.
        layout: Whose parameter names these are; ``any`` recognises them.
        heads: Also take heads, centres and the student's own weights; needs a run or checkpoint of this package.
        min_coverage: Least share of the backbone's parameters that must have been found; fewer is refused.
        inflate: How 3 colour channels become N: ``mean`` (their mean kernel for each, scaled by 3 / N) or ``cycle`` (1 2 3 1 2 ..., each
            divided by the number of its copies). Either way equal channels give the response that they gave.
    """

    weights: str | None = None
    layout: Literal["any", "dinodomain", "meta", "timm", "hf"] = "any"
    heads: bool = False
    min_coverage: float = 0.95
    inflate: Literal["mean", "cycle"] = "mean"

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.min_coverage <= 1:
            problems.append(UserError("start.min_coverage", f"is {self.min_coverage}", allowed="0..1"))
        if self.weights is not None and not self.weights.strip():
            problems.append(UserError("start.weights", "is empty", allowed="a path, hub:OWNER/NAME, or nothing"))
        if self.heads and self.weights is None:
            problems.append(UserError("start.heads", "is set without start.weights", remedy="set start.weights"))
        if problems:
            raise Problems(problems)
