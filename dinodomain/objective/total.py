"""The whole objective in three acts: the teacher looks (``teach``), its logits become targets (``center``), the student learns (``learn``).

A step may consist of several micro-batches. Centring by Sinkhorn-Knopp needs the logits of all of them, and of all ranks, before the
first student loss; so a step calls ``teach`` for every micro-batch, ``center`` once, and ``learn`` for every micro-batch.
Legend: G global views, L local views, V = G + L, B samples of the micro-batch, M masked patches, d width of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinodomain.errors import UserError
from dinodomain.objective.centering import Centering, Targets, Taught, by_view, make_centering
from dinodomain.objective.dino import dino_loss
from dinodomain.objective.gram import gram_loss
from dinodomain.objective.ibot import ibot_loss
from dinodomain.objective.koleo import koleo_counts, koleo_loss
from dinodomain.objective.masks import Masks, draw_masks
from dinodomain.objective.moments import Moments, collapse_measures, moments_of
from dinodomain.objective.plan import ObjectivePlan
from dinodomain.objective.protocols import Branch, Pair, Teacher
from dinodomain.parallel import all_reduce_sum, world
from dinodomain.types import Acquisition, ViewGroup, Views

LEAST_TOKEN = 0.5
"""Share of real pixels from which on a patch counts as valid."""
LEAST_CROP = 0.1
"""Share of valid patches below which a crop leaves KoLeo: such crops are alike, whatever they show, and must not be pushed apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a step gives. All are scalars on the device; nothing has waited for them.

    Attributes:
        total: Sum of ``parts``, with a gradient.
        parts: ``dino_global``, ``dino_local``, ``ibot``, ``koleo``, ``gram`` with their weights, without gradient; only those in use.
        moments: What ``Objective.diagnose`` makes measures of.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    moments: Moments


@dataclass(slots=True, kw_only=True)
class Lesson:
    """What the teacher saw of one micro-batch, and what follows from it; ``Objective.center`` adds targets and shares.

    Attributes:
        cls: [G * B, E] the teacher's class tokens of the global crops.
        taught: Its points of the global crops, row g * B + b.
        patches: Its points of the masked patches; None without iBOT.
        masks: What the student will not see; None without iBOT.
        real: [G * B, P] bool, valid patches of the global crops (``LEAST_TOKEN``).
        content: [G, B] bool, crops that have enough of them (``LEAST_CROP``).
        targets: Of the global crops.
        patch_targets: Of the masked patches; None without iBOT.
        counts: [G + 1] crops of each view that KoLeo spreads, and images that Gram anchors: the mean over the micro-batches of the step.
    """

    cls: Tensor
    taught: Taught
    patches: Taught | None
    masks: Masks | None
    real: Tensor
    content: Tensor
    targets: Targets | None = None
    patch_targets: Targets | None = None
    counts: Tensor | None = None


class Objective(nn.Module):
    """DINO + iBOT + KoLeo + Gram anchoring. Its buffers (the centres) belong into the checkpoint.

    After a step that was taken, every rank calls ``update_centers()``; after one that was skipped, ``discard()``.

    Args:
        plan: Weights, temperatures, masks. Whoever builds the pair gives its heads the sizes in the same plan.
        gram_weight: Of Gram anchoring, where ``learn`` is given an anchor.
    """

    def __init__(self, plan: ObjectivePlan, *, gram_weight: float = 0.0) -> None:
        super().__init__()
        self.plan, self.gram_weight = plan, gram_weight
        self.cls_centering = make_centering(plan.centering, plan.prototypes, plan.center_momentum)
        patch = plan.patch_prototypes or plan.prototypes
        self.patch_centering = make_centering(plan.centering, patch, plan.center_momentum) if plan.ibot_weight > 0 else None

    def forward(self, pair: Pair, views: Views, *, step: int, total_steps: int, seed: int) -> Loss:
        """The loss of a step of one micro-batch; see ``teach``, ``center``, ``learn``."""
        lesson = self.teach(pair.teacher, views, step=step, seed=seed)
        self.center([lesson], step=step, total_steps=total_steps)
        return self.learn(pair.student, views, lesson, step=step, total_steps=total_steps)

    @torch.no_grad()
    def teach(self, teacher: Teacher, views: Views, *, step: int, seed: int, earlier: Lesson | None = None) -> Lesson:
        """The teacher looks at the global crops of one micro-batch.

        Args:
            teacher: In evaluation mode.
            views: Crops, the global group first; the others may be absent.
            step: Step of the run, which keys the masks.
            seed: Of the run.
            earlier: A lesson of this step; its prototypes are the same and are kept once for all.

        Raises:
            UserError: The first group is not the global one.
        """
        first = views.groups[0]
        if first.name != "global":
            raise UserError("views", f"the first group is {first.name!r}", allowed="'global'")
        # Masks are drawn on the host while the device still renders.
        masks = self._masks(views, teacher.grid(first.pixels), step=step, seed=seed)
        seen = teacher([first.pixels], None, [_about(first)], masks.index if masks is not None else None)
        taught, patches = Taught(seen.points, seen.prototypes), None
        if masks is not None:
            patches = Taught(seen.patch_points, seen.patch_prototypes, (masks.weight > 0).float())
        if earlier is not None:
            taught = taught._replace(prototypes=earlier.taught.prototypes)
            patches = patches and earlier.patches and patches._replace(prototypes=earlier.patches.prototypes)
        real = first.valid >= LEAST_TOKEN
        content = by_view(real.float().mean(1) >= LEAST_CROP, first.num_views)
        return Lesson(cls=seen.cls, taught=taught, patches=patches, masks=masks, real=real, content=content)

    @torch.no_grad()
    def center(self, lessons: Sequence[Lesson], *, step: int, total_steps: int) -> None:
        """Makes targets of what the teacher saw of a whole step, and counts what the losses average over; collective.

        Args:
            lessons: One for each micro-batch of this rank; every rank has as many.
            step: Step of the run, which sets the teacher's temperature.
            total_steps: Steps of the run.
        """
        temperature = teacher_temperature(self.plan, step, total_steps)
        for lesson, targets in zip(lessons, self.cls_centering([lesson.taught for lesson in lessons], temperature)):
            lesson.targets = targets
        if self.patch_centering is not None:
            patches = [lesson.patches for lesson in lessons if lesson.patches is not None]
            for lesson, targets in zip(lessons, self.patch_centering(patches, temperature)):
                lesson.patch_targets = targets
        if self.plan.koleo_weight > 0 or self.gram_weight > 0:
            counts = all_reduce_sum(torch.stack([_counts(lesson) for lesson in lessons]).sum(0))
            # The mean over micro-batches and ranks of sums over this is the exact mean; where all is 0 the sums are 0, too.
            counts = counts.clamp_min(1.0) / (world() * len(lessons))
            for lesson in lessons:
                lesson.counts = counts

    def learn(self, student: Branch, views: Views, lesson: Lesson, *, step: int, total_steps: int, anchor: Tensor | None = None) -> Loss:
        """The student's losses on one micro-batch.

        Args:
            student: The student, or a wrapper of it.
            views: All crops, the global group first.
            lesson: The teacher's, with targets.
            step: Step of the run.
            total_steps: Steps of the run.
            anchor: [G * B, P, F] patch tokens of the anchoring teacher for the same global crops, on the student's grid; None: no Gram.

        Raises:
            UserError: The views make no pair.
        """
        groups, masks, plan = views.groups, lesson.masks, self.plan
        assert lesson.targets is not None, "center() comes before learn()"
        hidden = [masks.mask if masks is not None else None, *[None] * (len(groups) - 1)]
        seen = student([group.pixels for group in groups], hidden, [_about(group) for group in groups], masks.index if masks else None)
        num_global, num_views = groups[0].num_views, sum(group.num_views for group in groups)
        dino = dino_loss(
            by_view(seen.points, num_views), seen.prototypes, lesson.targets, plan.student_temperature,
            num_global=num_global, local_weight=local_weight(plan, step, total_steps),
        )  # fmt: skip
        extra: dict[str, Tensor] = {}
        if masks is not None and lesson.patch_targets is not None:
            loss = ibot_loss(
                seen.patch_points, seen.patch_prototypes, lesson.patch_targets, masks.weight, len(masks.mask), plan.student_temperature
            )
            extra["ibot"] = plan.ibot_weight * loss
        if plan.koleo_weight > 0:
            assert lesson.counts is not None
            features = by_view(seen.cls[: len(lesson.cls)], num_global)
            extra["koleo"] = plan.koleo_weight * koleo_loss(features, lesson.content, lesson.counts[:-1])
        if anchor is not None and self.gram_weight > 0:
            assert lesson.counts is not None
            extra["gram"] = self.gram_weight * gram_loss(seen.patches, anchor, lesson.real, lesson.counts[-1])
        parts = {"dino_global": dino.glob, "dino_local": dino.local, **{name: value.detach() for name, value in extra.items()}}
        with torch.no_grad():
            moments = moments_of(lesson.cls, dino.entropy, dino.mean)
        return Loss(total=torch.stack([dino.total, *extra.values()]).sum(), parts=parts, moments=moments)

    @torch.no_grad()
    def diagnose(self, losses: Sequence[Loss], *, step: int, total_steps: int) -> dict[str, Tensor]:
        """Measures of a whole step, the same on every rank; collective.

        Args:
            losses: One for each micro-batch of this rank.
            step: Step of the run.
            total_steps: Steps of the run.

        Returns:
            ``teacher_entropy`` (nats, mean over the teacher's images; log K means no preference at all), ``kl_to_uniform`` (nats, of the
            mean target from uniform; log K means that one prototype takes everything), ``feature_std`` (standard deviation over the
            images of the teacher's unit features times sqrt(E); about 1 healthy, 0 collapsed), ``center_norm``, ``teacher_temperature``.
        """
        measures = collapse_measures([loss.moments for loss in losses])
        temperature = losses[0].total.new_full((), teacher_temperature(self.plan, step, total_steps))
        norm = self.cls_centering.norm(temperature.device)
        return {**measures, "center_norm": norm, "teacher_temperature": temperature}

    def update_centers(self) -> None:
        """Moves the centres by the logits seen since the last call; collective, once per optimiser step."""
        for centering in self._centerings():
            centering.update()

    def discard(self) -> None:
        """Forgets the logits seen since the last ``update_centers``, because the step was skipped."""
        for centering in self._centerings():
            centering.discard()

    def _centerings(self) -> list[Centering]:
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


def teacher_temperature(plan: ObjectivePlan, step: int, total_steps: int) -> float:
    """Linear from the first to the last temperature over the warm-up, then constant (Caron 2021, appendix C)."""
    start, end = plan.teacher_temperature
    warmup = round(plan.teacher_warmup * total_steps)
    return end if step >= warmup else start + (end - start) * step / warmup


def local_weight(plan: ObjectivePlan, step: int, total_steps: int) -> float:
    """Weight of the local crops' share: a line from the first step of the run to its last."""
    first, last = plan.local_weight
    return first + (last - first) * step / max(total_steps - 1, 1)


def _counts(lesson: Lesson) -> Tensor:
    """See ``Lesson.counts``; of one micro-batch."""
    return torch.cat([koleo_counts(lesson.content), lesson.real.any(1).sum(dtype=torch.float32)[None]])


def _about(group: ViewGroup) -> Acquisition:
    return Acquisition(spacing=group.spacing, kept=group.kept)
