"""Patch tokens at three depths of context: embedded, computed alone, and with all others. What the locality ladder is climbed on.

n images, P patches, E width. Tokens computed alone show what a place holds by itself; what only full tokens show was brought there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from dinodomain.audit.masks.regions import patch_share, regions_of
from dinodomain.audit.observe.observer import Observer, Shown
from dinodomain.embed import token_weights

KINDS = ("embedded", "alone", "full")
MOST_BYTES = 1 << 30
_SEQUENCES = 4096  # of tokens alone, at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """Tokens of images that share a grid.

    Attributes:
        numbers: [n] rows of the whole audited set.
        grid: Patches per axis.
        tokens: Each of ``KINDS`` to [n, P, E] float32.
        known: [n, P] share of each patch that has data.
        norms: [n, P] length of the tokens before the final norm, which makes all lengths alike.
        regions: Name to [n, P] share of each patch that the region covers.
    """

    numbers: np.ndarray
    grid: tuple[int, ...]
    tokens: Mapping[str, np.ndarray]
    known: np.ndarray
    norms: np.ndarray
    regions: Mapping[str, np.ndarray]


def look_at_tokens(observer: Observer, numbers: np.ndarray, seed: int) -> TokenSet:
    """Tokens of as many images as memory allows, drawn at random among those of the commonest size.

    Args:
        observer: Shows them.
        numbers: [m] rows of the whole audited set to choose from.
        seed: Decides which.
    """
    chosen = _choose(observer, numbers, seed)
    parts = list(_parts(observer, chosen))
    order = np.argsort(np.concatenate([part.numbers for part in parts]), kind="stable")
    names = sorted({name for part in parts for name in part.regions})
    return TokenSet(
        numbers=np.concatenate([part.numbers for part in parts])[order],
        grid=parts[0].grid,
        tokens={kind: np.concatenate([part.tokens[kind] for part in parts])[order] for kind in KINDS},
        known=np.concatenate([part.known for part in parts])[order],
        norms=np.concatenate([part.norms for part in parts])[order],
        regions={name: np.concatenate([part.regions.get(name, np.zeros_like(part.known)) for part in parts])[order] for name in names},
    )


def _choose(observer: Observer, numbers: np.ndarray, seed: int) -> np.ndarray:
    extents = [tuple(observer.tiles.extents[bucket].tolist()) for bucket in observer.tiles.bucket[numbers]]
    common = Counter(extents).most_common(1)[0][0]
    alike = numbers[[extent == common for extent in extents]]
    probe = next(observer.show(alike[:1]))
    each = observer.tokens(probe).numel() * 4 * len(KINDS)
    most = max(1, MOST_BYTES // each)
    shuffled: np.ndarray = np.random.default_rng([seed, 0x70CE]).permutation(alike)
    return np.sort(shuffled[:most])


def _parts(observer: Observer, numbers: np.ndarray) -> Iterator[TokenSet]:
    for shown in observer.show(numbers):
        full = observer.tokens(shown)
        regions = {name: patch_share(region, observer.backbone.patch).numpy() for name, region in regions_of(shown).items()}
        yield TokenSet(
            numbers=shown.rows, grid=_grid(observer, shown),
            tokens={"embedded": observer.tokens(shown, layer=0).numpy(), "alone": _alone(observer, shown), "full": full.numpy()},
            known=token_weights(shown.valid, observer.backbone.patch).cpu().numpy(), regions=regions,
            norms=observer.tokens(shown, layer=observer.backbone.vit.plan.depth).norm(dim=2).numpy(),
        )  # fmt: skip


def _grid(observer: Observer, shown: Shown) -> tuple[int, ...]:
    return tuple(side // patch for side, patch in zip(shown.pixels.shape[2:], observer.backbone.patch, strict=True))


@torch.no_grad()
def _alone(observer: Observer, shown: Shown) -> np.ndarray:
    backbone, count = observer.backbone, len(shown.pixels)
    step = max(1, _SEQUENCES // int(np.prod(_grid(observer, shown))))
    pieces = []
    for start in range(0, count, step):
        part = shown.take(slice(start, start + step))
        pieces.append(backbone.encode_alone(part.pixels.to(backbone.device), part.about).float().cpu())
    return torch.cat(pieces).numpy()
