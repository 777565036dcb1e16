"""Renders drawn parameters into views: deterministic, batched, on the tiles' device, without waiting for the host.

Per view: pixels x validity and validity are resampled alike and divided (``warp``), then ``to_float``, intensity, network range.
On a CPU the tail runs sample by sample, in a working set that stays in the cache.

Shapes: B samples of T dates, V views of one size, N = V x B rows (row v * B + b), C channels, D spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.errors import UserError
from dinodomain.exact import full_float32
from dinodomain.policy import ViewPolicy
from dinodomain.types import Batch, Normalisation, TileInfo, ViewGroup, Views
from dinodomain.views import matmul
from dinodomain.views.banded import empty
from dinodomain.views.dates import info_per_row
from dinodomain.views.draw import GroupParams, ViewParams, channels_kept
from dinodomain.views.geometry import crop_spacing, patch_sides, to_tile
from dinodomain.views.matmul import Matmul
from dinodomain.views.normalise import KNOWN, ToFloat, apply_range, constants, known_of, source_channels, to_network_
from dinodomain.views.operations import acts_on_physical, crop_mean, lose_channels_, physical_, spread, unit_
from dinodomain.views.radiometry import retold
from dinodomain.views.rotate import Turned
from dinodomain.views.warp import Banded, Resize, Tiles, Warp, interleaved, takes_words

_TINY = 64 * 64
"""Tiles of at most this many pixels go through batched dense products on a CPU: calls cost more than arithmetic."""

_SCRATCH = 1 << 20
"""Floats of one CPU working set: fewer cost calls, more leave the cache (measured from 2**17 to 2**21)."""


def render(batch: Batch, params: ViewParams, *, to_float: ToFloat, normalisation: Normalisation, patch_size: int | Sequence[int]) -> Views:
    """Makes all views of a batch.

    Args:
        batch: Tiles as stored, T dates of each sample (``dates``).
        params: From ``draw`` on the same batch.
        to_float: The domain's; called on float32 stored values after resampling.
        normalisation: The run's; its range replaces ``info.low``/``info.high`` unless its mode is ``source``.
        patch_size: Side of a patch token, pixels; one, or one for each axis.

    Returns:
        One group per crop size, in the order of ``params.groups``.

    Raises:
        UserError: Unknown channels, a crop size that patches do not divide, or ``resize`` where it cannot work.
    """
    device = batch.pixels.device
    tiles = Tiles(pixels=batch.pixels, known=known_of(batch), info=batch.info)
    params = params.to(device)
    kind = choose_warp(params, batch.pixels)
    tiles = interleaved(tiles) if kind is Resize else tiles
    tail = _Tail(to_float, params.policy, normalisation, batch, device)
    with _full_precision(device):
        warps = _warps(kind, params, batch.pixels.shape[3:])
        groups = tuple(_render_group(tiles, group, params, warp, tail, patch_size) for group, warp in zip(params.groups, warps))
    return Views(groups=groups, channels=normalisation.channels, tile_ids=batch.tile_ids, slots=batch.slots)


def choose_warp(params: ViewParams, pixels: Tensor) -> type[Banded | Matmul | Resize]:
    """The renderer for tiles [B, T, C, *L].

    Raises:
        UserError: ``resize`` was asked for on an accelerator or in 3-D.
    """
    on_cpu, flat = pixels.device.type == "cpu", pixels.ndim == 5
    if params.renderer == "resize":
        if not (on_cpu and flat):
            raise UserError("views.renderer", f"is resize for {pixels.ndim - 3}-D tiles on {pixels.device.type}", allowed="matmul, fastest")
        return Resize
    if not on_cpu or pixels.shape[3:].numel() <= _TINY:
        return Matmul
    return Resize if takes_words(pixels) and params.renderer == "fastest" else Banded


def _warps(kind: type[Banded | Matmul | Resize], params: ViewParams, extent: Sequence[int]) -> Sequence[Warp]:
    """A renderer of each group."""
    plain: Sequence[Warp] = matmul.prepare(params) if kind is Matmul else [kind(group, params) for group in params.groups]
    if params.policy.rotation is None:
        return plain
    return [Turned(warp, group, params, extent) for warp, group in zip(plain, params.groups)]


class _Tail:
    """What follows resampling: physical operations, the unit range with all affine changes folded in, unit operations, network range."""

    def __init__(self, to_float: ToFloat, policy: ViewPolicy, normalisation: Normalisation, batch: Batch, device: torch.device) -> None:
        self._to_float, self._policy = to_float, policy
        self.sources = source_channels(normalisation, batch.channels)
        self.info = apply_range(batch.info, normalisation, batch.channels)
        self._mean = constants(normalisation.mean, device, torch.float32)
        self._std = constants(normalisation.std, device, torch.float32)
        names = batch.channels
        self._of_stored = [policy.wavelengths_nm.get(name, math.nan) for name in names]
        self._of_network = [self._of_stored[place] for place in self.sources]
        self._index = constants(self.sources, device, torch.int64)
        self._same = self.sources == tuple(range(len(names)))

    def __call__(
        self, stored: Tensor, weight: Tensor | None, own: TileInfo, info: TileInfo, group: GroupParams, kept: Tensor | None, out: Tensor
    ) -> None:
        """Writes [n, K, *S] in the network's range into ``out``; uses ``stored`` [n, C, *S] as scratch."""
        mask = None
        if weight is not None:
            stored.div_(weight.clamp_min(KNOWN))
            mask = weight >= KNOWN
        ops, policy = group.operations, self._policy
        if acts_on_physical(policy):
            stored.mul_(spread(own.scale, stored)).add_(spread(own.offset, stored))
            physical_(stored, ops, group.key, policy, own, self._of_stored)
            info = replace(info, scale=torch.ones_like(info.scale), offset=torch.zeros_like(info.offset))
        mean = crop_mean(stored, mask) if policy.jitter is not None else None
        if not self._same:
            stored, mean = stored.index_select(1, self._index), None if mean is None else mean.index_select(1, self._index)
        unit = self._to_float(stored, retold(info, ops, mean, self._of_network))
        unit_(unit, ops, group.key, policy)
        if kept is not None:
            lose_channels_(unit, kept, self._mean)
        to_network_(unit, mask, self._mean, self._std, out)


def _render_group(
    tiles: Tiles, group: GroupParams, params: ViewParams, warp: Warp, tail: _Tail, patch_size: int | Sequence[int]
) -> ViewGroup:
    samples, channels = tiles.pixels.shape[0], len(tail.sources)
    rows, size, device = group.boxes.shape[0], (group.size,) * (tiles.pixels.ndim - 3), tiles.pixels.device
    patch = patch_sides(patch_size, size, group.name)
    out = empty((rows, channels, *size), device)
    tokens = torch.ones((rows, math.prod(group.size // side for side in patch)), device=device)
    info = info_per_row(tail.info, group.num_views, samples)
    own = info_per_row(tiles.info, group.num_views, samples) if acts_on_physical(params.policy) else info  # not looked at otherwise
    kept = channels_kept(params.policy, group, channels)
    step = rows if device.type != "cpu" else max(1, _SCRATCH // out[0].numel())
    # Without versions and views to keep track of, calls take a tenth less; what leaves was made before.
    with torch.inference_mode():
        for start, own_rows, info_rows in zip(range(0, rows, step), _pieces(own, step), _pieces(info, step)):
            stop = min(start + step, rows)
            stored, weight = warp(tiles, start, stop)
            lost = None if kept is None else kept[start:stop]
            tail(stored, weight, own_rows, info_rows, group.rows(start, stop), lost, out[start:stop])
            if weight is not None:
                tokens[start:stop] = _token_share(weight >= KNOWN, patch)
    return ViewGroup(
        name=group.name, pixels=out, valid=tokens, to_tile=to_tile(group), spacing=crop_spacing(group, tiles.info.spacing),
        kept=torch.ones((rows, channels), dtype=torch.bool, device=device) if kept is None else kept, num_views=group.num_views,
    )  # fmt: skip


def _pieces(info: TileInfo, step: int) -> Iterator[TileInfo]:
    """The meaning of runs of ``step`` rows; one call for each field, because calls are what small crops cost."""
    names = [f.name for f in fields(info)]
    return (TileInfo(**dict(zip(names, own))) for own in zip(*(getattr(info, name).split(step) for name in names)))


def _token_share(mask: Tensor, patch: tuple[int, ...]) -> Tensor:
    """[n, 1, *S] bool to [n, P] share of known pixels under each patch, row-major."""
    pool = F.avg_pool2d if mask.ndim == 4 else F.avg_pool3d
    return pool(mask.float(), patch).flatten(1)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keeps TF32 and autocast out: with them a CT view is off by several HU."""
    has_autocast = torch.amp.is_autocast_available(device.type)
    with full_float32(), torch.autocast(device.type, enabled=False) if has_autocast else nullcontext(), torch.no_grad():
        yield
