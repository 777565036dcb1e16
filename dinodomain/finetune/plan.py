"""What a fine-tuning run may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinodomain.errors import Problems, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunePlan:
    """Few labels on top of a pretrained backbone, scored on units that were never trained on.

    Attributes:
        checkpoint: A run, a checkpoint folder or an exported backbone.
        store: The store the labels speak of.
        labels: CSV with a header.
        target: Column of ``labels`` to predict.
        out: Folder for weights, predictions, report and figures.
        task: ``classify`` (texts or numbers as classes) or ``regress``.
        join: Column of ``labels`` that names the source.
        group: Column of ``labels`` that names the unit; None takes the store's units.
        secret: File with the store's secret, where it does not lie beside the store; personal domains only.
        seed: Decides split, order, views and the head's first weights.
        mode: ``head`` keeps the backbone frozen, ``full`` trains it too at ``backbone_lr``.
        steps: Optimiser steps.
        batch: Tiles per step.
        lr: Peak learning rate of the head.
        backbone_lr: Peak learning rate of the backbone in mode ``full``.
        weight_decay: AdamW's weight decay.
        test_share: Share of the units kept for scoring, at least one fold of two.
        labels_per_class: Train on this many labels of each class only; None takes all training units.
        baseline: Also train from an untrained backbone with the same budget, so that the report shows what pretraining bought.
        scale: Smallest and largest area (volume) fraction of a training crop.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    checkpoint: str
    store: str
    labels: str
    target: str
    out: str
    task: Literal["classify", "regress"] = "classify"
    join: str = "id"
    group: str | None = None
    secret: str | None = None
    seed: int = 0
    mode: Literal["head", "full"] = "head"
    steps: int = 200
    batch: int = 32
    lr: float = 3e-3
    backbone_lr: float = 1e-4
    weight_decay: float = 0.05
    test_share: float = 0.3
    labels_per_class: int | None = None
    baseline: bool = True
    scale: tuple[float, float] = (0.5, 1.0)
    device: str = "auto"

    def __post_init__(self) -> None:
        checks = [
            ("steps", self.steps >= 1, "1 or more"),
            ("batch", self.batch >= 1, "1 or more"),
            ("lr", self.lr > 0, "above 0"),
            ("backbone_lr", self.backbone_lr > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("test_share", 0 < self.test_share <= 0.5, "above 0, at most 0.5"),
            ("labels_per_class", self.labels_per_class is None or self.labels_per_class >= 1, "1 or more, or empty"),
            ("scale", 0 < self.scale[0] <= self.scale[1] <= 1, "0 < smallest <= largest <= 1"),
        ]
        problems = [UserError(f"finetune.{name}", f"is {getattr(self, name)}", allowed=allowed) for name, ok, allowed in checks if not ok]
        if self.labels_per_class is not None and self.task == "regress":
            problems.append(UserError("finetune.labels_per_class", "set for task=regress", allowed="task=classify"))
        if problems:
            raise Problems(problems)
