"""The plan of the training objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinodomain.errors import Problems, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectivePlan:
    """DINO, iBOT and KoLeo (Caron 2021; Zhou 2022; Sablayrolles 2019; together: Oquab 2024).

    Attributes:
        prototypes: Number of prototypes, K (1024 for thousands of images, 8192 for tens of thousands, 65536 beyond).
        head_hidden: Width of the head's MLP.
        bottleneck: Width in which cosines to the prototypes are taken.
        head_layers: Linears of the head's MLP.
        student_temperature: Temperature of the student's softmax.
        teacher_temperature: First and last temperature of the teacher.
        teacher_warmup: Share of the steps in which the teacher's temperature moves linearly from first to last.
        centering: ``softmax`` with a moving centre (DINO), or ``sinkhorn`` (SwAV, DINOv2's long recipe).
        center_momentum: Share of the centre that stays at each step; unused by ``sinkhorn``.
        ibot_weight: Weight of the masked-patch loss; 0 leaves masks out altogether.
        koleo_weight: Weight of the spreading loss; 0 leaves it out.
        mask_probability: Share of global crops that are masked.
        mask_ratio: Least and largest share of a masked crop's patches that is hidden.
    """

    prototypes: int = 8192
    head_hidden: int = 2048
    bottleneck: int = 256
    head_layers: int = 3
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    teacher_warmup: float = 0.3
    centering: Literal["softmax", "sinkhorn"] = "softmax"
    center_momentum: float = 0.9
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        low, high = self.mask_ratio
        checks = [
            ("prototypes", self.prototypes >= 2, "at least 2"),
            ("head_hidden", self.head_hidden >= 1, "at least 1"),
            ("bottleneck", self.bottleneck >= 1, "at least 1"),
            ("head_layers", self.head_layers >= 1, "at least 1"),
            ("student_temperature", self.student_temperature > 0, "above 0"),
            # Cosines over 0.01 are exponents of up to 200: their differences leave float32.
            ("teacher_temperature", min(self.teacher_temperature) >= 0.02, "at least 0.02"),
            ("teacher_warmup", 0 <= self.teacher_warmup <= 1, "0..1"),
            ("center_momentum", 0 <= self.center_momentum < 1, "0 <= center_momentum < 1"),
            ("ibot_weight", self.ibot_weight >= 0, "0 (off) or more"),
            ("koleo_weight", self.koleo_weight >= 0, "0 (off) or more"),
            ("mask_probability", 0 < self.mask_probability <= 1, "above 0, at most 1 (ibot_weight=0 turns masks off)"),
            ("mask_ratio", 0 < low <= high < 1, "0 < least <= largest < 1"),
        ]
        problems = [UserError(f"objective.{name}", f"is {getattr(self, name)}", allowed=allowed) for name, ok, allowed in checks if not ok]
        if problems:
            raise Problems(problems)
