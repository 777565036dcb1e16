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
            ``none`` leaves targets as they are: it collapses, and is there to show how that looks (Caron 2021, figure 7).
        center_momentum: Share of the centre that stays at each step; unused by ``sinkhorn``.
        ibot_weight: Weight of the masked-patch loss; 0 leaves masks out altogether.
        koleo_weight: Weight of the spreading loss; 0 leaves it out.
        mask_probability: Share of global crops that are masked.
        mask_ratio: Least and largest share of a masked crop's patches that is hidden.
        patch_head: ``shared``: one head for class tokens and masked patches; ``separate``: one each (DINOv2's long recipe, DINOv3).
        patch_prototypes: Prototypes of the masked patches' own head; None takes ``prototypes``.
        local_weight: First and last weight of the loss of local crops, joined by a line (DINOv3: 1 to 0.5).
    """

    prototypes: int = 8192
    head_hidden: int = 2048
    bottleneck: int = 256
    head_layers: int = 3
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    teacher_warmup: float = 0.3
    centering: Literal["softmax", "sinkhorn", "none"] = "softmax"
    center_momentum: float = 0.9
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    patch_head: Literal["shared", "separate"] = "shared"
    patch_prototypes: int | None = None
    local_weight: tuple[float, float] = (1.0, 1.0)

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
            ("patch_prototypes", self.patch_prototypes is None or self.patch_prototypes >= 2, "at least 2, or empty"),
            ("local_weight", min(self.local_weight) >= 0, "0 or more"),
        ]
        problems = [UserError(f"objective.{name}", f"is {getattr(self, name)}", allowed=allowed) for name, ok, allowed in checks if not ok]
        if self.patch_prototypes is not None and self.patch_head == "shared":
            problems.append(
                UserError("objective.patch_prototypes", "is set, but one head serves both", remedy="set objective.patch_head=separate")
            )
        if problems:
            raise Problems(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class GramPlan:
    """Gram anchoring: patch similarities of the student are held to those of an earlier teacher (Simeoni 2025, section 4.2).

    Attributes:
        weight: Weight of the loss; 0 leaves it out (DINOv3: 2).
        teacher: Who anchors: ``start``, the weights that the run begins with (DINOv3's Gram stage), or the path of a run, checkpoint or
            exported backbone, from the first step on; or ``drift``: this run's teacher at its best dense matching so far, from
            the moment that dense quality has fallen (``drop``).
        size: Side of the crops that the anchoring teacher sees, pixels; None takes twice the global size (DINOv3), its tokens are
            resampled to the student's grid.
        drop: Share of its best value by which dense matching must have fallen, three times in a row, before ``drift`` anchors.
        refresh: Steps after which the anchoring teacher is replaced by the present teacher (DINOv3: 10,000, three times); 0 never.
        refreshes: How often at most.
    """

    weight: float = 0.0
    teacher: str = "drift"
    size: int | None = None
    drop: float = 0.1
    refresh: int = 0
    refreshes: int = 3

    def __post_init__(self) -> None:
        checks = [
            ("weight", self.weight >= 0, "0 (off) or more"),
            ("teacher", bool(self.teacher.strip()), "drift, or a path"),
            ("size", self.size is None or self.size >= 1, "1 or more pixels, or empty"),
            ("drop", 0 < self.drop < 1, "above 0, below 1"),
            ("refresh", self.refresh >= 0, "0 (never) or more steps"),
            ("refreshes", self.refreshes >= 0, "0 or more"),
        ]
        problems = [UserError(f"gram.{name}", f"is {getattr(self, name)}", allowed=allowed) for name, ok, allowed in checks if not ok]
        if problems:
            raise Problems(problems)
