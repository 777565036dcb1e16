"""Looks at the teacher through tiles that are not trained on: are its features spread, is an image told from others, a place from others?

Of each tile the teacher sees three crops of the global size, which never change: the whole of it, and two that are cut as in training
but not altered otherwise. Every rank reads and encodes an equal share, so that wrappers that hold parts of a model on each rank work, too;
rank 0 measures, and all get its numbers. Nothing is drawn from torch's generators, and nothing of the training state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinodomain import parallel
from dinodomain.engine import measures
from dinodomain.engine.drift import Drift, spread_tokens
from dinodomain.engine.held import Held
from dinodomain.engine.plan import PretrainPlan, WatchPlan
from dinodomain.engine.precision import autocast
from dinodomain.engine.saver import alike
from dinodomain.engine.training import Training
from dinodomain.errors import UserError
from dinodomain.loader import Tiles, sweep_tiles
from dinodomain.policy import without_augmentation
from dinodomain.store import Store
from dinodomain.types import Acquisition, Batch, Labels, ViewGroup
from dinodomain.views import correspond, draw_batch, render, rows_of_view, token_grid
from dinodomain.views.correspond import USABLE

WHOLE, FIRST, SECOND = range(3)
"""The crops of a tile, by number of the view."""

NAMES = (
    "watch_rankme", "watch_effective_rank", "watch_feature_std", "watch_knn", "watch_knn_own", "watch_dense_match", "watch_dense_drift",
    "watch_cls_patch", "watch_outliers",
)  # fmt: skip
"""What a look may tell. ``watch_knn_own`` needs no labels, the share of tiles whose own other crop is nearest; ``watch_knn`` is the
accuracy by labels."""

MOST_TILES = 16
"""Tiles of one pass on a CPU: 4, 8 and 16 take the same time, 32 and 64 a quarter more (measured: ViT-Ti/16, 224 px)."""

LEAST_LABELLED = 8
"""Labelled tiles below which a share of them is no accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Labels of the held tiles.

    Attributes:
        tiles: [m] positions of the labelled tiles.
        labels: [m] class numbers.
        units: [m] numbers of units.
    """

    tiles: Tensor
    labels: Tensor
    units: Tensor


class Watcher:
    """Measures the teacher of a run on its held tiles.

    Args:
        store: The run's store.
        held: What ``held.hold`` chose.
        plan: Resolved.
        out: Run folder, for the similarities of the first look.

    Raises:
        UserError: ``watch.labels`` cannot be joined, or labels too few of the held tiles.
    """

    def __init__(self, store: Store, held: Held, plan: PretrainPlan, out: Path) -> None:
        assert held.tiles is not None, "watching is off"
        self.tiles, self._store, self._plan = held.tiles, store, plan
        self._drift = Drift(out, self.tiles.digest)
        self._classes = classes_of(store, self.tiles, plan.watch)

    def due(self, step: int) -> bool:
        """Whether to look after ``step`` finished steps: every ``watch.every``, at the end, and after the first.

        After one step the teacher is still as good as untrained: what later looks are held against.
        """
        return step == 1 or step % self._plan.watch.every == 0 or step == self._plan.engine.steps

    @torch.no_grad()
    def look(self, training: Training) -> dict[str, float]:
        """Looks at the teacher as it is; collective: every rank calls it after the same step.

        Args:
            training: Its teacher, policy and normalisation are used, nothing is changed.

        Returns:
            Numbers by name (``NAMES``), the same on every rank; what cannot be measured is left out.

        Raises:
            UserError: A held tile cannot be read, or rank 0 cannot measure what was seen; every rank raises.
        """
        seen = self._see(training)
        values = torch.zeros(len(NAMES), dtype=torch.float64)  # on the host: not every device has float64
        measured = alike(lambda: self._measure(seen, training.step) if parallel.rank() == 0 else None, self._plan.engine.device, "watch")
        if measured is not None:
            values += torch.tensor([measured.get(name, math.nan) for name in NAMES], dtype=torch.float64)
        shared: list[float] = parallel.all_reduce_sum(values).tolist()
        return {name: value for name, value in zip(NAMES, shared) if math.isfinite(value)}

    def _see(self, training: Training) -> dict[str, Tensor]:
        """What was seen of all tiles, [n, ...] by name, on every rank."""
        mine, owned = share_of(self.tiles, parallel.rank(), parallel.world())
        plan, device = self._plan, next(training.pair.teacher.parameters()).device
        # What training itself holds fits; the teacher's pass keeps less than the student's.
        most = max(1, plan.loader.batch * plan.views.num_global // (3 * parallel.world() * plan.engine.accumulate))
        loader = replace(plan.loader, batch=min(most, MOST_TILES) if device.type == "cpu" else most, workers=0, prefetch=1)
        parts = []
        with closing(sweep_tiles(self._store, self.tiles.only(mine), loader, device=device)) as batches:
            # All ranks have as many batches; a rank that cannot read its own must not leave the others waiting.
            while (batch := alike(lambda: next(batches, None), plan.engine.device, "watch.tiles")) is not None:
                parts.append(see_tiles(training, batch))
        own = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: _gathered(value, mine, owned, len(self.tiles)) for name, value in own.items()}

    def _measure(self, seen: Mapping[str, Tensor], step: int) -> dict[str, float]:
        seen = {name: value.cpu() for name, value in seen.items()}
        cls, matches, norms = seen["cls"], seen["matches"].sum(0), seen["norms"]
        if not bool(torch.isfinite(cls).all()):
            return {}
        own = measures.own_neighbour(seen["first"], seen["second"])
        found = {
            "watch_rankme": measures.rankme(cls),
            "watch_effective_rank": measures.effective_rank(cls),
            "watch_feature_std": measures.feature_std(cls),
            "watch_knn_own": own,
            "watch_dense_match": float(matches[0] / matches[1]) if matches[1] > 0 else math.nan,
            "watch_dense_drift": self._drift.since_first(seen["similarity"], step),
            "watch_cls_patch": float(seen["cls_patch"].mean()),
            "watch_outliers": measures.outlier_share(norms[norms >= 0]),
        }
        if self._classes is not None:
            both = torch.cat([cls, seen["mean"]], dim=1)[self._classes.tiles]
            found["watch_knn"] = measures.labelled_neighbours(both, self._classes.labels, self._classes.units)
        return found


def share_of(tiles: Tiles, rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
    """A rank's equal share of every bucket; where a bucket does not divide, some ranks see one of its tiles once more.

    Returns:
        Positions [m] of the tiles, bucket by bucket as they are read; and a mask [m] of those that count, each on one rank only.
    """
    mine, owned = [], []
    for members in tiles.members:
        place = np.arange(-(-len(members) // world)) * world + rank
        mine.append(members[place % max(len(members), 1)])
        owned.append(place < len(members))
    return np.concatenate(mine), np.concatenate(owned)


def see_tiles(training: Training, batch: Batch) -> dict[str, Tensor]:
    """What the teacher makes of one batch of tiles: float32, [b, ...] by name, on its device.

    Returns:
        ``cls``, ``mean`` (of valid patches) of the whole tile and ``first``, ``second`` (class tokens of the two crops) [b, E];
        ``matches`` [b, 2] and ``similarity`` [b, M] as in ``measures``; ``cls_patch`` [b]; ``norms`` [b, P], -1 where not valid.
    """
    plan, teacher = training.plan, training.pair.teacher
    views = fixed_views(training, batch)
    with autocast(plan.engine.device, plan.engine.precision), before_norm(teacher.backbone.vit.norm) as raw:
        seen = teacher([views.pixels], None, [Acquisition(spacing=views.spacing, kept=views.kept)])
    count = len(views.pixels) // 3
    cls, patches = (part.float().view(3, count, *part.shape[1:]) for part in (seen.cls, seen.patches))
    valid = (views.valid >= USABLE).view(3, count, -1)
    where = correspond(views, rows_of_view(views, FIRST), views, rows_of_view(views, SECOND), plan.model.patch)
    tokens = spread_tokens(patches.shape[2]).to(patches.device)
    weight = valid[WHOLE].float()
    norms = raw[0].float().view(3 * count, -1, patches.shape[3])[:count, -patches.shape[2] :].norm(dim=2)
    return {
        "cls": cls[WHOLE],
        "first": cls[FIRST],
        "second": cls[SECOND],
        "mean": (patches[WHOLE] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1),
        "matches": measures.dense_matches(
            patches[FIRST], patches[SECOND], valid[SECOND], where.index, where.position, token_grid(views, plan.model.patch)
        ),
        "similarity": measures.patch_similarity(patches[WHOLE][:, tokens], valid[WHOLE][:, tokens]),
        "cls_patch": measures.class_to_patches(cls[WHOLE], patches[WHOLE], weight),
        "norms": torch.where(valid[WHOLE], norms, -1.0),
    }


def fixed_views(training: Training, batch: Batch) -> ViewGroup:
    """The three crops of every tile: the same at every look, whatever is augmented in training."""
    plan, normalisation = training.plan, training.normalisation
    crops = replace(training.views, num_global=3, num_local=0)
    policy = without_augmentation(training.policy)
    params = draw_batch(policy, crops, batch, seed=plan.seed, normalisation=normalisation)
    group = params.groups[0]
    boxes = group.boxes.clone()
    boxes[: len(batch.tile_ids)] = batch.info.valid_box.to(boxes)
    params = replace(params, groups=(replace(group, boxes=boxes),))
    return render(batch, params, to_float=training.to_float, normalisation=normalisation, patch_size=plan.model.patch).groups[0]


@contextmanager
def before_norm(norm: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what a final norm is given: after it, long tokens are no longer than others."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
        kept.append(given[0])

    handle = norm.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def classes_of(store: Store, tiles: Tiles, plan: WatchPlan) -> Classes | None:
    """Labels of held tiles; None where none were given.

    Raises:
        UserError: The CSV cannot be joined, the target is no class, or too few held tiles are labelled.
    """
    if plan.labels is None or plan.target is None:
        return None
    from dinodomain.ingest import join_labels

    labels = join_labels(store, plan.labels, plan.join, plan.target)
    places, values = _labelled(tiles, labels)
    names, numbers = np.unique(np.array([str(value) for value in values]), return_inverse=True)
    if len(places) < LEAST_LABELLED:
        problem = f"names {len(places)} of the {len(tiles)} tiles that are watched"
        raise UserError("watch.labels", problem, allowed=f"{LEAST_LABELLED} or more", remedy="label more sources, or raise watch.tiles")
    if not 2 <= len(names) <= len(places) // 2:
        problem = f"has {len(names)} different values on {len(places)} watched tiles"
        raise UserError("watch.target", problem, allowed=f"2 to {len(places) // 2} classes", remedy="choose a column of classes")
    own = np.char.add(tiles.units.astype(str)[places], np.where(tiles.units.astype(str)[places] == "", tiles.rows[places].astype(str), ""))
    units = np.unique(own, return_inverse=True)[1]
    return Classes(tiles=torch.from_numpy(places), labels=torch.from_numpy(numbers), units=torch.from_numpy(units))


def _labelled(tiles: Tiles, labels: Labels) -> tuple[np.ndarray, list[Any]]:
    """Positions of labelled tiles and their values; an empty value is no label."""
    known = {int(row): value for row, value in zip(labels.rows, labels.values) if value not in ("", None)}
    places = [place for place, row in enumerate(tiles.rows.tolist()) if row in known]
    return np.array(places, dtype=np.int64), [known[int(tiles.rows[place])] for place in places]


def _gathered(own: Tensor, mine: np.ndarray, owned: np.ndarray, count: int) -> Tensor:
    """[count, ...] of all ranks: each fills its own rows of zeros, and the sum is everyone's."""
    whole = own.new_zeros(count, *own.shape[1:])
    which = torch.from_numpy(np.flatnonzero(owned)).to(own.device)
    whole[torch.from_numpy(mine[owned]).to(own.device)] = own[which]
    return parallel.all_reduce_sum(whole)
