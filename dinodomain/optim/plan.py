"""The plan of the optimiser and of everything that changes with the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinodomain.errors import Problems, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimPlan:
    """AdamW, its schedules and the teacher's momentum (DINO: Caron 2021, appendix C; DINOv2: Oquab 2024, appendix).

    Attributes:
        lr: Peak learning rate at a global batch of 256; the rate used is lr * sqrt(batch / 256), the rule of DINOv2.
        min_lr: Learning rate at the end, not scaled with the batch.
        warmup: Share of the steps in which the learning rate rises linearly from 0.
        weight_decay: First and last weight decay, joined by a cosine.
        betas: AdamW's averaging coefficients.
        clip: Largest gradient norm of each sub-module (backbone, head); 0 leaves gradients alone.
        momentum: First and last teacher momentum, joined by a cosine.
        layer_decay: Factor on the learning rate from one block to the one below it; 1 treats all alike.
        freeze_last_layer: Share of the steps in which the prototypes stay as they are.
        freeze_backbone: Share of the steps in which only the head learns, so that a fresh head does not spoil a warm start; the backbone's
            rate then rises over as many steps as the warm-up has. The teacher's backbone rests as long.
        schedule: What the learning rate and weight decay do after the warm-up: ``cosine`` to their last values, or ``constant``, ``lr``
            and the first ``weight_decay`` (DINOv3: the length need not be known beforehand).
        patch_lr: Factor on the learning rate of the patch embedding (DINOv2, DINOv3: 0.2).
    """

    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup: float = 0.1
    weight_decay: tuple[float, float] = (0.04, 0.4)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 3.0
    momentum: tuple[float, float] = (0.992, 1.0)
    layer_decay: float = 1.0
    freeze_last_layer: float = 0.01
    freeze_backbone: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    patch_lr: float = 1.0

    def __post_init__(self) -> None:
        checks = [
            ("lr", self.lr > 0, "above 0"),
            ("min_lr", self.min_lr >= 0, "0 or more"),
            ("warmup", 0 <= self.warmup < 1, "0 <= warmup < 1"),
            ("weight_decay", min(self.weight_decay) >= 0, "0 or more"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "0 <= beta < 1"),
            ("clip", self.clip >= 0, "0 (off) or more"),
            ("momentum", all(0 <= value <= 1 for value in self.momentum), "0..1"),
            ("layer_decay", 0 < self.layer_decay <= 1, "0 < layer_decay <= 1"),
            ("freeze_last_layer", 0 <= self.freeze_last_layer <= 1, "0..1"),
            ("freeze_backbone", 0 <= self.freeze_backbone < 1, "0 <= freeze_backbone < 1"),
            ("patch_lr", self.patch_lr > 0, "above 0"),
        ]
        problems = [UserError(f"optim.{name}", f"is {getattr(self, name)}", allowed=allowed) for name, ok, allowed in checks if not ok]
        if problems:
            raise Problems(problems)
