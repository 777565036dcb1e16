"""The plan of a vision transformer. No torch here, so that a plan can be built and checked without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinodomain.errors import Problems, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """A vision transformer for images or volumes (Dosovitskiy 2021; LayerScale: Touvron 2021; registers: Darcet 2024).

    Attributes:
        dim: Width of a token (192 Ti, 384 S, 768 B, 1024 L).
        depth: Number of blocks (12; 24 for L).
        heads: Attention heads; must divide ``dim``.
        patch: Side of a patch in pixels, on every axis.
        mlp_ratio: Hidden width of the MLP as a multiple of ``dim``.
        registers: Number of register tokens, which keep artefacts out of the patch tokens.
        layer_scale: Initial LayerScale gain; 0 leaves LayerScale out.
        drop_path: Share of samples that skip a block's branch in training, the same in every block.
        position: ``learned`` positions, or fixed ``sincos`` of the grid coordinates.
        init: First weights of the linears: ``normal`` 0.02 as in DINO and timm, or ``xavier`` (gain sqrt 2), which a narrow network needs
            to be more than linear from the start.
        class_position: Whether class and register tokens carry positions too, as ViTs without registers often do.
    """

    dim: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 16
    mlp_ratio: float = 4.0
    registers: int = 4
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    position: Literal["learned", "sincos"] = "learned"
    init: Literal["normal", "xavier"] = "normal"
    class_position: bool = False

    def __post_init__(self) -> None:
        problems = [
            UserError(f"model.{name}", f"is {getattr(self, name)}", allowed="at least 1")
            for name in ("dim", "depth", "heads", "patch")
            if getattr(self, name) < 1
        ]
        if self.heads > 0 and self.dim % self.heads:
            near = [count for count in range(1, self.dim + 1) if self.dim % count == 0 and count <= 2 * self.heads]
            problems.append(UserError("model.heads", f"{self.heads} heads do not divide dim {self.dim}", allowed=", ".join(map(str, near))))
        if self.mlp_ratio <= 0:
            problems.append(UserError("model.mlp_ratio", f"is {self.mlp_ratio}", allowed="above 0"))
        if self.registers < 0:
            problems.append(UserError("model.registers", f"is {self.registers}", allowed="0 or more"))
        if self.layer_scale < 0:
            problems.append(UserError("model.layer_scale", f"is {self.layer_scale}", allowed="0 (off) or more"))
        if not 0.0 <= self.drop_path < 1.0:
            problems.append(UserError("model.drop_path", f"is {self.drop_path}", allowed="0 <= drop_path < 1"))
        if problems:
            raise Problems(problems)
