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
from dinodomain.audit.protocol.leakmap import WIDTH, Basis
from dinodomain.embed import token_weights

KINDS = ("embedded", "alone", "full")
LEAST_KNOWN = 0.5
"""Share of a patch that must have data."""
MOST_BYTES = 2 << 30
_SAMPLE = 256  # images whose tokens give the components
_SEQUENCES = 4096  # of tokens alone, at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """Tokens of images that share a grid.

    Attributes:
        numbers: [n] rows of the whole audited set.
        grid: Patches per axis.
        tokens: Each of ``KINDS`` to [n, P, W] float32, at most 96 leading components, found without labels.
        known: [n, P] whether a patch has data.
        norms: [n, P] length of the tokens before the final norm, which makes all lengths alike.
        regions: Name to [n, E] mean full token of what the region covers; NaN where that is less than a patch.
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
    bases = _bases(observer, np.random.default_rng([seed, 0xBA5E]).permutation(chosen)[:_SAMPLE])
    parts = list(_parts(observer, chosen, bases))
    joined = np.concatenate([part.numbers for part in parts])
    order = np.argsort(joined, kind="stable")
    names = sorted({name for part in parts for name in part.regions})
    width = observer.backbone.vit.plan.dim
    return TokenSet(
        numbers=joined[order],
        grid=parts[0].grid,
        tokens={kind: np.concatenate([part.tokens[kind] for part in parts])[order] for kind in KINDS},
        known=np.concatenate([part.known for part in parts])[order],
        norms=np.concatenate([part.norms for part in parts])[order],
        regions={
            name: np.concatenate([part.regions.get(name, np.full((len(part.numbers), width), np.nan)) for part in parts])[order]
            for name in names
        },
    )


def _choose(observer: Observer, numbers: np.ndarray, seed: int) -> np.ndarray:
    extents = [tuple(observer.tiles.extents[bucket].tolist()) for bucket in observer.tiles.bucket[numbers]]
    common = Counter(extents).most_common(1)[0][0]
    alike = numbers[[extent == common for extent in extents]]
    _, places, width = observer.tokens(next(observer.show(alike[:1]))).shape
    most = max(1, MOST_BYTES // (places * min(width, WIDTH) * 4 * len(KINDS)))
    shuffled: np.ndarray = np.random.default_rng([seed, 0x70CE]).permutation(alike)
    return np.sort(shuffled[:most])


def _bases(observer: Observer, numbers: np.ndarray) -> Mapping[str, Basis]:
    """The components of each kind, from some images."""
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for shown in observer.show(numbers):
        known = _known(observer, shown)
        for kind, tokens in _tokens(observer, shown).items():
            found[kind].append(tokens[known])
    return {kind: Basis.of(np.concatenate(pieces)) for kind, pieces in found.items()}


def _parts(observer: Observer, numbers: np.ndarray, bases: Mapping[str, Basis]) -> Iterator[TokenSet]:
    for shown in observer.show(numbers):
        tokens = _tokens(observer, shown)
        shares = {name: patch_share(region, observer.backbone.patch).numpy() for name, region in regions_of(shown).items()}
        yield TokenSet(
            numbers=shown.rows, grid=_grid(observer, shown), tokens={kind: bases[kind].project(tokens[kind]) for kind in KINDS},
            known=_known(observer, shown), regions={name: mean_token(tokens["full"], share) for name, share in shares.items()},
            norms=observer.tokens(shown, layer=observer.backbone.vit.plan.depth).norm(dim=2).numpy(),
        )  # fmt: skip


def _tokens(observer: Observer, shown: Shown) -> Mapping[str, np.ndarray]:
    """Each of ``KINDS`` to [B, P, E]."""
    full, embedded = observer.tokens(shown).numpy(), observer.tokens(shown, layer=0).numpy()
    return {"embedded": embedded, "alone": _alone(observer, shown), "full": full}


def _known(observer: Observer, shown: Shown) -> np.ndarray:
    found: np.ndarray = token_weights(shown.valid, observer.backbone.patch).cpu().numpy() >= LEAST_KNOWN
    return found


def mean_token(tokens: np.ndarray, share: np.ndarray) -> np.ndarray:
    """[B, E] mean token of a region; NaN where it covers less than a patch.

    Args:
        tokens: [B, P, E].
        share: [B, P] of each patch that the region covers.
    """
    total = share.sum(axis=1)
    mean = np.einsum("npe,np->ne", tokens, share) / np.maximum(total, 1e-9)[:, None]
    result: np.ndarray = np.where(total[:, None] >= 1, mean, np.nan)
    return result


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
