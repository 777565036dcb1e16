"""Renders drawn parameters into views: deterministic, batched, on the tiles' device, without waiting for the host.

Per view: pixels x validity and validity are resampled alike and divided (``warp``), then ``to_float``, intensity, network range.
On a CPU the tail runs sample by sample, in a working set that stays in the cache.

Shapes: B samples of T dates, V views of one size, N = V x B rows (row v * B + b), C channels, D spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.domain import ViewPolicy
from dinodomain.errors import UserError
from dinodomain.types import Batch, Normalisation, TileInfo, ViewGroup, Views
from dinodomain.views.dates import info_per_row
from dinodomain.views.draw import ChannelParams, GroupParams, ViewParams, channel_params
from dinodomain.views.geometry import crop_spacing, to_tile
from dinodomain.views.intensity import augment_
from dinodomain.views.normalise import KNOWN, ToFloat, apply_range, channel_rows, channel_tensor, known_pixels, to_network_
from dinodomain.views.warp import Banded, Matmul, Resize, Tiles

_TINY = 64 * 64
"""Tiles of at most this many pixels go through batched dense products on a CPU: calls cost more than arithmetic."""

_SCRATCH = 1 << 18
"""Floats of one CPU working set; larger ones leave the cache and fault pages."""


def render(batch: Batch, params: ViewParams, *, to_float: ToFloat, normalisation: Normalisation, patch_size: int) -> Views:
    """Makes all views of a batch.

    Args:
        batch: Tiles as stored, T dates of each sample (``dates``).
        params: From ``draw`` on the same batch.
        to_float: The domain's; called on float32 stored values after resampling.
        normalisation: The run's; its range replaces ``info.low``/``info.high`` unless its mode is ``source``.
        patch_size: Side of a patch token, pixels.

    Returns:
        One group per crop size, in the order of ``params.groups``.

    Raises:
        UserError: Unknown channels, a crop size that patches do not divide, or ``resize`` where it cannot work.
    """
    device = batch.pixels.device
    tiles = Tiles(pixels=batch.pixels, known=_known(batch), info=apply_range(batch.info, normalisation, batch.channels))
    params = params.to(device)
    kind = choose_warp(params, batch.pixels)
    _, _, mean, std = channel_rows(normalisation, batch.channels)
    tail = _Tail(to_float=to_float, policy=params.policy, mean=channel_tensor(mean, device), std=channel_tensor(std, device))
    with _full_precision(device):
        groups = tuple(_render_group(tiles, group, params, kind, tail, patch_size) for group in params.groups)
    return Views(groups=groups, channels=batch.channels, tile_ids=batch.tile_ids, slots=batch.slots)


def _known(batch: Batch) -> Tensor | None:
    """[B, T, 1, *L] bool, see ``known_pixels``."""
    known = known_pixels(batch.pixels.flatten(0, 1), None if batch.valid is None else batch.valid.flatten(0, 1))
    return None if known is None else known.reshape(*batch.pixels.shape[:2], *known.shape[1:])


def choose_warp(params: ViewParams, pixels: Tensor) -> type[Banded | Matmul | Resize]:
    """The renderer for tiles [B, T, C, *L].

    Raises:
        UserError: ``resize`` was asked for on an accelerator or in 3-D.
    """
    on_cpu, flat = pixels.device.type == "cpu", pixels.ndim == 5
    if params.renderer == "resize":
        if not (on_cpu and flat):
            raise UserError("views.renderer", f"is resize for {pixels.ndim - 3}-D tiles on {pixels.device.type}", allowed="matmul, auto")
        return Resize
    return Banded if on_cpu and pixels.shape[3:].numel() > _TINY else Matmul


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tail:
    """What follows resampling."""

    to_float: ToFloat
    policy: ViewPolicy
    mean: Tensor
    std: Tensor

    def __call__(self, stored: Tensor, weight: Tensor | None, info: TileInfo, group: GroupParams, own: ChannelParams, out: Tensor) -> None:
        """Writes [n, C, *S] in the network's range into ``out``; uses ``stored`` as scratch."""
        mask = None
        if weight is not None:
            stored.div_(weight.clamp_min(KNOWN))
            mask = weight >= KNOWN
        unit = self.to_float(stored, info)
        augment_(unit, mask, group, own, self.policy, self.mean)
        to_network_(unit, mask, self.mean, self.std, out)


def _render_group(
    tiles: Tiles, group: GroupParams, params: ViewParams, kind: type[Banded | Matmul | Resize], tail: _Tail, patch_size: int
) -> ViewGroup:
    if group.size % patch_size:
        raise UserError(f"views.{group.name}_size", f"is {group.size}", allowed=f"a multiple of the patch size {patch_size}")
    samples, channels = tiles.pixels.shape[0], tiles.pixels.shape[2]
    rows, size, device = group.boxes.shape[0], (group.size,) * (tiles.pixels.ndim - 3), tiles.pixels.device
    out = torch.empty((rows, channels, *size), device=device)
    tokens = torch.ones((rows, (group.size // patch_size) ** len(size)), device=device)
    info, own = info_per_row(tiles.info, group.num_views, samples), channel_params(params.policy, group, channels)
    warp = kind(group, params)
    step = rows if device.type != "cpu" else max(1, _SCRATCH // out[0].numel())
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        stored, weight = warp(tiles, start, stop)
        tail(stored, weight, _rows(info, start, stop), group.rows(start, stop), own.rows(start, stop), out[start:stop])
        if weight is not None:
            tokens[start:stop] = _token_share(weight >= KNOWN, patch_size)
    return ViewGroup(
        name=group.name, pixels=out, valid=tokens, to_tile=to_tile(group), spacing=crop_spacing(group, tiles.info.spacing),
        num_views=group.num_views,
    )  # fmt: skip


def _rows(info: TileInfo, start: int, stop: int) -> TileInfo:
    return TileInfo(**{f.name: getattr(info, f.name)[start:stop] for f in fields(info)})


def _token_share(mask: Tensor, patch: int) -> Tensor:
    """[n, 1, *S] bool to [n, P] share of known pixels under each patch, row-major."""
    pool = F.avg_pool2d if mask.ndim == 4 else F.avg_pool3d
    return pool(mask.float(), patch).flatten(1)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keeps TF32 and autocast out: with them a CT view is off by several HU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
