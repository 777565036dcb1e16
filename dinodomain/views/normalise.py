"""From stored values to the network's range: which range becomes 0..1, and the whole-tile path that inference uses.

Shapes: B samples, C channels, D spatial axes. unit = to_float(stored), with ``info.low``..``info.high`` as the range;
network = (unit - mean) / std; what is not known is 0 in the network's range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dinodomain.domain import Channel, ViewPolicy
from dinodomain.errors import Problems, UserError
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views.resample import Filter, axis_matrices, contract

ToFloat = Callable[[Tensor, TileInfo], Tensor]
Stats = Mapping[str, tuple[float, float, float, float]]
"""Channel name to (mean, std, low, high), physical values."""

KNOWN = 0.5
"""An output pixel is known where at least this share of its weight fell on known pixels."""

_PLAIN = (0.5, 0.25)


def resolve_normalisation(
    mode: Literal["auto", "domain", "store", "source"],
    policy: ViewPolicy,
    channels: Mapping[str, Channel],
    names: Sequence[str],
    stats: Stats | Callable[[], Stats] | None,
) -> Normalisation:
    """Settles the numbers that a run, its checkpoints and its exports use.

    Args:
        mode: As in the plan; ``auto`` takes the policy's.
        policy: The domain's.
        channels: The domain's declared channels.
        names: Channels of the store, in order.
        stats: Measured statistics, or what measures them; used in mode ``store`` only, and measured only then.

    Raises:
        UserError: A channel has no declared range, or no usable statistics.
    """
    mode = policy.default_mode if mode == "auto" else mode
    measured = (stats() if callable(stats) else stats or {}) if mode == "store" else {}
    rows, problems = [], []
    for name in names:
        try:
            rows.append(_numbers(mode, name, channels.get(name), measured.get(name)))
        except UserError as error:
            problems.append(error)
    if problems:
        raise Problems(problems)
    low, high, mean, std = (tuple(column) for column in zip(*rows))
    return Normalisation(mode=mode, channels=tuple(names), low=low, high=high, mean=mean, std=std)


def _numbers(mode: str, name: str, declared: Channel | None, measured: tuple[float, float, float, float] | None) -> tuple[float, ...]:
    if mode == "source":  # low and high are not used: each source brings its own
        mean, std = (declared.mean, declared.std) if declared else _PLAIN
        return (0.0, 1.0, mean, std)
    if mode == "domain":
        if declared is None:
            raise UserError("views.normalise", f"channel {name!r} has no declared range in this domain", remedy="use views.normalise=store")
        return (declared.low, declared.high, declared.mean, declared.std)
    if measured is None:
        raise UserError("views.normalise", f"the store has no statistics of channel {name!r}", remedy="use views.normalise=source")
    mean, std, low, high = measured
    span = high - low
    if not (all(math.isfinite(value) for value in measured) and span > 0 and std > 0):
        found = f"channel {name!r} has mean {mean}, std {std}, range {low}..{high} in the store"
        raise UserError("views.normalise", found, remedy="use views.normalise=domain, or leave the channel out with ingest.bands")
    return (low, high, (mean - low) / span, std / span)


def channel_rows(normalisation: Normalisation, names: Sequence[str]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Low, high, mean and std in the order of a batch's channels.

    Raises:
        UserError: The batch has a channel that the normalisation lacks.
    """
    missing = [name for name in names if name not in normalisation.channels]
    if missing:
        raise UserError("channels", f"{', '.join(missing)} not known to the normalisation", allowed=", ".join(normalisation.channels))
    order = [normalisation.channels.index(name) for name in names]
    low, high, mean, std = (
        [column[i] for i in order] for column in (normalisation.low, normalisation.high, normalisation.mean, normalisation.std)
    )
    return low, high, mean, std


def channel_tensor(values: Sequence[float], device: torch.device) -> Tensor:
    """[C] float32, filled on the device: a copy from the host would wait for it."""
    return torch.cat([torch.full((1,), value, device=device) for value in values])


def apply_range(info: TileInfo, normalisation: Normalisation, names: Sequence[str]) -> TileInfo:
    """Replaces the sources' own percentiles by the declared or measured range, unless the mode is ``source``."""
    low, high, _, _ = channel_rows(normalisation, names)
    if normalisation.mode == "source":
        return info
    device, shape = info.low.device, info.low.shape
    return replace(info, low=channel_tensor(low, device).expand(shape), high=channel_tensor(high, device).expand(shape))


def only_date(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Pixels [B, C, ...] and validity bits [B, ...] of a batch of single dates.

    Raises:
        UserError: The batch holds several dates.
    """
    dates = batch.pixels.shape[1]
    if dates != 1:
        raise UserError("loader.pairs", f"the batch holds {dates} dates of each place", allowed="one date")
    return batch.pixels[:, 0], None if batch.valid is None else batch.valid[:, 0]


def known_pixels(pixels: Tensor, bits: Tensor | None) -> Tensor | None:
    """Where every channel of a pixel is real.

    Args:
        pixels: [B, C, ...] stored values.
        bits: [B, ...] uint8, 0 valid, or None.

    Returns:
        [B, 1, ...] bool; None where all pixels are known and the host can tell without waiting for a device.
    """
    known = None if bits is None else (bits == 0)[:, None]
    if pixels.is_floating_point():
        finite = torch.isfinite(pixels).all(dim=1, keepdim=True)
        known = finite if known is None else known & finite
    if known is not None and known.device.type == "cpu" and bool(known.all()):
        return None
    return known


def to_network_(unit: Tensor, mask: Tensor | None, mean: Tensor, std: Tensor, out: Tensor) -> None:
    """Out <- (unit - mean) / std, 0 where nothing is known; ``unit`` is used as scratch.

    Args:
        unit: [n, C, ...].
        mask: [n, 1, ...] bool or None.
        mean: [C].
        std: [C].
        out: [n, C, ...].
    """
    shape = (-1, *(1,) * (unit.ndim - 2))
    torch.div(unit.sub_(mean.reshape(shape)), std.reshape(shape), out=out)
    if mask is not None:
        out.masked_fill_(~mask, 0.0)


def to_network(
    batch: Batch, *, to_float: ToFloat, normalisation: Normalisation, size: int | Sequence[int] | None = None, kind: Filter | None = None
) -> tuple[Tensor, Tensor]:
    """Whole tiles for inference, the same maths as the views without augmentation.

    Args:
        batch: Tiles as stored, one date.
        to_float: The domain's.
        normalisation: The run's.
        size: Side of the output in pixels (antialiased), one for all axes or one for each; None keeps the tile's own.
        kind: Filter; None is cubic in 2-D and linear in 3-D.

    Returns:
        Pixels [B, C, ...] float32 in the network's range and validity [B, ...] bool, False also on a tile's padding.

    Raises:
        UserError: Several dates, or channels that the normalisation lacks.
    """
    pixels, bits = only_date(batch)
    info = apply_range(batch.info, normalisation, batch.channels)
    _, _, mean, std = channel_rows(normalisation, batch.channels)
    known = known_pixels(pixels, bits)
    inside = _inside(batch.info.valid_box, tuple(pixels.shape[2:]))
    mask = inside if known is None else known & inside
    stored = pixels.float().masked_fill(~mask, 0.0)  # not in place: float() of float32 is the batch itself
    if size is not None:
        stored, mask = _resize(stored, mask, size, kind or ("cubic" if pixels.ndim == 4 else "linear"))
    unit = to_float(stored, info)
    out = torch.empty_like(unit)
    to_network_(unit, mask, channel_tensor(mean, unit.device), channel_tensor(std, unit.device), out)
    return out, mask[:, 0]


def _inside(valid_box: Tensor, extent: tuple[int, ...]) -> Tensor:
    """[B, 1, *extent] bool, inside each sample's valid box."""
    inside = torch.ones((valid_box.shape[0], 1, *extent), dtype=torch.bool, device=valid_box.device)
    for axis, length in enumerate(extent):
        index = torch.arange(length, device=valid_box.device)
        line = (index >= valid_box[:, axis, :1]) & (index < valid_box[:, axis, 1:])
        inside &= line.reshape(-1, 1, *(length if i == axis else 1 for i in range(len(extent))))
    return inside


def _resize(stored: Tensor, mask: Tensor, size: int | Sequence[int], kind: Filter) -> tuple[Tensor, Tensor]:
    """Whole-tile antialiased resize of pixels x validity and of validity, divided."""
    rows = stored.shape[0]
    stay = torch.zeros(rows, dtype=torch.bool, device=stored.device)
    matrices = []
    sides = (size,) * (stored.ndim - 2) if isinstance(size, int) else size
    for side, length in zip(sides, stored.shape[2:]):
        box = torch.stack([torch.zeros_like(stay, dtype=torch.float32), torch.full((rows,), float(length), device=stored.device)], dim=1)
        matrices.append(axis_matrices(box, stay, size=side, length=length, kind=kind))
    resized, weight = (contract(x.movedim(1, -1).contiguous(), matrices) for x in (stored, mask.float()))
    return resized / weight.clamp_min(KNOWN), weight >= KNOWN
