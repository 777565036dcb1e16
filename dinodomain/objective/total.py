"""The whole objective: one teacher pass, one student pass, one head pass each, and the weighted sum of the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinodomain.errors import UserError
from dinodomain.objective.centering import Center, Sinkhorn, make_centering
from dinodomain.objective.dino import dino_loss
from dinodomain.objective.ibot import ibot_loss
from dinodomain.objective.koleo import koleo_loss
from dinodomain.objective.masks import Masks, draw_masks
from dinodomain.objective.plan import ObjectivePlan
from dinodomain.types import Features, ViewGroup, Views


class Transformer(Protocol):
    """What the objective asks of a transformer: see ``model.VisionTransformer``."""

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Tokens of one crop size."""
        ...

    def forward_many(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]:
        """Tokens of several crop sizes."""
        ...


class Encoder(Protocol):
    """See ``model.Backbone``."""

    @property
    def vit(self) -> Transformer:
        """Its transformer."""
        ...


class Branch(Protocol):
    """See ``model.Branch``."""

    @property
    def backbone(self) -> Encoder:
        """Images to tokens."""
        ...

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """[n, E] to logits [n, K]."""
        ...


class Pair(Protocol):
    """See ``model.Pair``."""

    @property
    def student(self) -> Branch:
        """Takes the gradient."""
        ...

    @property
    def teacher(self) -> Branch:
        """Gives the targets."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a step gives. All are scalars on the device; nothing has waited for them.

    Attributes:
        total: Sum of ``parts``, with a gradient.
        parts: ``dino_global``, ``dino_local``, ``ibot``, ``koleo`` with their weights, without gradient; only those in use.
        diagnostics: ``teacher_entropy`` (nats, mean over the teacher's rows; log K means no preference at all), ``kl_to_uniform``
            (nats, of the mean target from uniform; log K means that one prototype takes everything), ``feature_std`` (standard
            deviation over the batch of the teacher's unit features times sqrt(E); about 1 healthy, 0 collapsed), ``center_norm``,
            ``teacher_temperature``. Over this rank's samples.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    diagnostics: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Teacher:
    cls: Tensor  # [G, B, E]
    targets: Tensor  # [G, B, K]
    patches: Tensor | None  # [M, K]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Student:
    cls: Tensor  # [G, B, E], global views
    logits: Tensor  # [V, B, K], all views
    patches: Tensor | None  # [M, K]


class Objective(nn.Module):
    """DINO + iBOT + KoLeo. Its buffers (the centres) belong into the checkpoint.

    After a step that was taken, every rank calls ``update_centers()``; after one that was skipped, ``discard()``.

    Args:
        plan: Weights, temperatures, masks. Whoever builds the pair gives its head the sizes in the same plan.
    """

    def __init__(self, plan: ObjectivePlan) -> None:
        super().__init__()
        self.plan = plan
        self.cls_centering = make_centering(plan.centering, plan.prototypes, plan.center_momentum)
        self.patch_centering = make_centering(plan.centering, plan.prototypes, plan.center_momentum) if plan.ibot_weight > 0 else None

    def forward(self, pair: Pair, views: Views, *, step: int, total_steps: int, seed: int) -> Loss:
        """The loss of one batch.

        Args:
            pair: Student and teacher; gradients reach the student only.
            views: Crops, the global group first.
            step: Step of the run, which sets the teacher's temperature and keys the masks.
            total_steps: Steps of the run.
            seed: Of the run.

        Raises:
            UserError: The views make no pair.
        """
        first = views.groups[0]
        if first.name != "global":
            raise UserError("views", f"the first group is {first.name!r}", allowed="'global'")
        temperature = teacher_temperature(self.plan, step, total_steps)
        with torch.no_grad():
            features = pair.teacher.backbone.vit(first.pixels)
        # Masks are drawn on the host while the device still works on the teacher.
        masks = self._masks(views, features.grid, step=step, seed=seed)
        teacher = self._teacher(pair.teacher, features, first, masks, temperature)
        student = self._student(pair.student, views, masks)
        parts = self._parts(student, teacher, masks)
        detached = {name: value.detach() for name, value in parts.items()}
        return Loss(total=sum_of(parts), parts=detached, diagnostics=self._diagnostics(teacher, temperature))

    def update_centers(self) -> None:
        """Moves the centres by the logits seen since the last call; collective, once per optimiser step."""
        for centering in self._centerings():
            centering.update()

    def discard(self) -> None:
        """Forgets the logits seen since the last ``update_centers``, because the step was skipped."""
        for centering in self._centerings():
            centering.discard()

    def _centerings(self) -> list[Center | Sinkhorn]:
        return [centering for centering in (self.cls_centering, self.patch_centering) if centering is not None]

    def _masks(self, views: Views, grid: tuple[int, ...], *, step: int, seed: int) -> Masks | None:
        plan, first = self.plan, views.groups[0]
        if plan.ibot_weight == 0:
            return None
        return draw_masks(
            views.slots,
            first.num_views,
            grid,
            seed=seed,
            step=step,
            probability=plan.mask_probability,
            ratio=plan.mask_ratio,
            valid=first.valid,
        )

    @torch.no_grad()
    def _teacher(self, branch: Branch, features: Features, group: ViewGroup, masks: Masks | None, temperature: float) -> _Teacher:
        count, views = len(features.cls), group.num_views
        logits = branch.head(_rows([features.cls], features, masks))
        targets = self.cls_centering(logits[:count], temperature)
        patches = None
        if masks is not None and self.patch_centering is not None:
            patches = self.patch_centering(logits[count:], temperature, (masks.weight > 0).float())
        return _Teacher(cls=_by_view(features.cls, views), targets=_by_view(targets, views), patches=patches)

    def _student(self, branch: Branch, views: Views, masks: Masks | None) -> _Student:
        groups = views.groups
        hidden = [masks.mask if masks is not None else None, *[None] * (len(groups) - 1)]
        features = branch.backbone.vit.forward_many([group.pixels for group in groups], hidden)
        num_views, batch = sum(group.num_views for group in groups), len(features[0].cls) // groups[0].num_views
        logits = branch.head(_rows([part.cls for part in features], features[0], masks))
        return _Student(
            cls=_by_view(features[0].cls, groups[0].num_views),
            logits=_by_view(logits[: num_views * batch], num_views),
            patches=logits[num_views * batch :] if masks is not None else None,
        )

    def _parts(self, student: _Student, teacher: _Teacher, masks: Masks | None) -> dict[str, Tensor]:
        plan = self.plan
        dino = dino_loss(student.logits, teacher.targets, plan.student_temperature)
        parts = {"dino_global": dino.glob, "dino_local": dino.local}
        if masks is not None and student.patches is not None and teacher.patches is not None:
            loss = ibot_loss(student.patches, teacher.patches, masks.weight, len(masks.mask), plan.student_temperature)
            parts["ibot"] = plan.ibot_weight * loss
        if plan.koleo_weight > 0:
            parts["koleo"] = plan.koleo_weight * koleo_loss(student.cls)
        return parts

    @torch.no_grad()
    def _diagnostics(self, teacher: _Teacher, temperature: float) -> dict[str, Tensor]:
        targets = teacher.targets.flatten(0, 1)
        features = functional.normalize(teacher.cls.float().flatten(0, 1), dim=1)
        mean = targets.mean(0)
        return {
            "teacher_entropy": entropy(targets).mean(),
            "kl_to_uniform": torch.log(mean.new_tensor(float(len(mean)))) - entropy(mean),
            "feature_std": features.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5,
            "center_norm": self.cls_centering.norm().to(mean.device),
            "teacher_temperature": mean.new_tensor(temperature),
        }


def teacher_temperature(plan: ObjectivePlan, step: int, total_steps: int) -> float:
    """Linear from the first to the last temperature over the warm-up, then constant (Caron 2021, appendix C)."""
    start, end = plan.teacher_temperature
    warmup = round(plan.teacher_warmup * total_steps)
    return end if step >= warmup else start + (end - start) * step / warmup


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy along the last axis, in nats."""
    total: Tensor = torch.special.entr(probabilities).sum(-1)
    return total


def sum_of(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum of scalars, in the order of the mapping."""
    return torch.stack(list(parts.values())).sum()


def _by_view(rows: Tensor, num_views: int) -> Tensor:
    """[V * B, ...] to [V, B, ...]."""
    return rows.view(num_views, len(rows) // num_views, *rows.shape[1:])


def _rows(cls: list[Tensor], features: Features, masks: Masks | None) -> Tensor:
    """Everything that goes through a head in one call: class tokens, then masked patches."""
    if masks is None:
        return cls[0] if len(cls) == 1 else torch.cat(cls)
    return torch.cat([*cls, features.patches.flatten(0, 1).index_select(0, masks.index)])
