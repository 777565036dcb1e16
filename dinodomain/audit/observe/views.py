"""Shows the encoder crops of the audited tiles: many at random, as training did, and one with each operation of the policy by itself.

n rows, B tiles, V crops, E width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dinodomain.audit.observe.observer import Observer, Shown
from dinodomain.embed import encode_frozen, narrowed
from dinodomain.model import Backbone
from dinodomain.policy import ViewPolicy
from dinodomain.types import Acquisition, Normalisation, ViewGroup
from dinodomain.views import ViewsPlan, draw_batch, effective_policy, render
from dinodomain.views.alone import at_levels, trials

CROPS, PARTS = 6, 6
"""Global and local crops of each tile."""

STATISTICS = ("agreement of crops", "answer of parts", "length")


def look_at_crops(observer: Observer, numbers: np.ndarray, views: ViewsPlan, seed: int) -> dict[str, np.ndarray]:
    """Three numbers of each tile that tend to differ where an encoder has seen it in training.

    How much its crops agree, how well a part stands for the whole, and how long its features are.

    Args:
        observer: Shows the tiles.
        numbers: [n] rows of the whole audited set, sorted.
        views: Crops and policy of the training, or the domain's own.
        seed: Of the crops.

    Returns:
        ``audited`` and ``untrained`` to [n, 3], in the order of ``STATISTICS``. Source: Liu et al. 2021 (agreement of augmented views),
        Zhu et al. 2024 (answer of parts).
    """
    plan = replace(views, num_global=CROPS, num_local=PARTS)
    out = {name: np.zeros((len(numbers), len(STATISTICS)), np.float32) for name in ("audited", "untrained")}
    for rows, shown in observer.placed(numbers):
        groups = list(_crops(observer, shown, plan, seed))
        for name, backbone in (("audited", observer.backbone), ("untrained", observer.frozen.untrained)):
            out[name][rows] = _statistics([_pooled(backbone, group, len(rows), shown.about.channels) for group in groups])
    return out


def _crops(observer: Observer, shown: Shown, plan: ViewsPlan, seed: int) -> Iterator[ViewGroup]:
    policy, numbers = observer.frozen.domain.view_policy(), narrowed(observer.backbone, shown.batch.channels)
    params = draw_batch(effective_policy(policy, plan), replace(plan, policy={}), shown.batch, seed=seed, normalisation=numbers)
    made = render(
        shown.batch, params, to_float=observer.frozen.domain.to_float, normalisation=numbers, patch_size=observer.backbone.patch
    )  # fmt: skip
    yield from made.groups


def _pooled(backbone: Backbone, group: ViewGroup, samples: int, channels: tuple[str, ...]) -> Tensor:
    """[V, B, E] features of the crops."""
    about = Acquisition(spacing=group.spacing, kept=group.kept, channels=channels)
    found = backbone.pool(encode_frozen(backbone, group.pixels, about)).float().cpu()
    return found.reshape(group.num_views, samples, -1)


def _statistics(groups: list[Tensor]) -> np.ndarray:
    whole, parts = groups[0], groups[-1]
    mean = whole.mean(dim=0)
    agreement = cosine_similarity(whole, mean[None], dim=2).mean(dim=0)
    answer = cosine_similarity(parts, mean[None], dim=2).mean(dim=0)
    return torch.stack([agreement, answer, mean.norm(dim=1)], dim=1).numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operated:
    """Features of one crop of each tile, with and without an operation.

    Attributes:
        plain: [n, E] without.
        altered: [n, E] with the operation at its strongest setting.
        untrained: Mean cosine similarity of the two for the untrained encoder.
    """

    plain: np.ndarray
    altered: np.ndarray
    untrained: float

    @property
    def kept(self) -> float:
        """Mean cosine similarity of the two for the audited encoder."""
        lengths = np.linalg.norm(self.plain, axis=1) * np.linalg.norm(self.altered, axis=1)
        return float(((self.plain * self.altered).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())


def look_through_operations(observer: Observer, numbers: np.ndarray, views: ViewsPlan, seed: int) -> dict[str, Operated]:
    """What each operation of the training's policy does to the features, by itself and at its strongest.

    Args:
        observer: Shows the tiles.
        numbers: [n] rows of the whole audited set, sorted.
        views: Policy of the training, or the domain's own.
        seed: Of what an operation draws.
    """
    policy = effective_policy(observer.frozen.domain.view_policy(), views)
    plan = replace(views, policy={}, global_scale=(1.0, 1.0), global_extent=None, global_depth=None)
    found: dict[str, _Kept] = {}
    for rows, shown in observer.placed(numbers):
        for name, pair in _pairs(observer, shown, policy, plan, seed):
            found.setdefault(name, _Kept(len(numbers))).put(rows, observer, pair, shown.about.channels)
    return {name: kept.operated() for name, kept in found.items()}


def _pairs(
    observer: Observer, shown: Shown, policy: ViewPolicy, plan: ViewsPlan, seed: int
) -> Iterator[tuple[str, tuple[ViewGroup, ViewGroup]]]:  # fmt: skip
    """Name and the crops without and with each operation."""
    numbers: Normalisation = narrowed(observer.backbone, shown.batch.channels)
    for trial in trials(policy):
        drawn = at_levels(policy, plan, shown.batch, trial, seed=seed, normalisation=numbers)
        before, after = (
            render(shown.batch, params, to_float=observer.frozen.domain.to_float, normalisation=numbers, patch_size=observer.backbone.patch)
            for params in (drawn[0], drawn[-1])
        )
        name = trial.operation if len(trial.varied) != 1 else f"{trial.operation} {trial.varied[0]}"
        yield name.replace("_", " "), (before.groups[0], after.groups[0])


class _Kept:
    """Rows of one operation as they come."""

    def __init__(self, count: int) -> None:
        self._count, self._rows = count, dict[str, np.ndarray]()
        self._alike: list[float] = []

    def put(self, rows: np.ndarray, observer: Observer, pair: tuple[ViewGroup, ViewGroup], channels: tuple[str, ...]) -> None:
        """The features of both crops of some rows."""
        for name, group in zip(("plain", "altered"), pair):
            found = _pooled(observer.backbone, group, len(rows), channels)[0].numpy()
            self._rows.setdefault(name, np.zeros((self._count, found.shape[1]), np.float32))[rows] = found
        before, after = (_pooled(observer.frozen.untrained, group, len(rows), channels)[0] for group in pair)
        self._alike += cosine_similarity(before, after, dim=1).tolist()

    def operated(self) -> Operated:
        """All of them."""
        return Operated(**self._rows, untrained=float(np.mean(self._alike)))


def training_views(observer: Observer, record: Mapping[str, object] | None) -> ViewsPlan:
    """Crops of the training, from its record; without one, two crops of the pretraining size under the domain's policy."""
    size = max(observer.backbone.image_size)
    patch = max(observer.backbone.patch)
    plan = (record or {}).get("plan")
    views = dict(plan.get("views", {})) if isinstance(plan, Mapping) else {}
    known = {name: views[name] for name in ("global_scale", "local_scale", "local_size", "filter") if views.get(name) is not None}
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    half = max(patch, size // 2 // patch * patch)
    return ViewsPlan(**{"global_size": size, "local_size": half, "num_global": 1, "num_local": 1, **known})
