"""From stored values to the network's range: which range becomes 0..1, and the whole-tile path that inference uses.

Shapes: B samples, C channels, D spatial axes. unit = to_float(stored), with ``info.low``..``info.high`` as the range;
network = (unit - mean) / std; what is not known is 0 in the network's range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

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
    windows: Sequence[str] = (),
) -> Normalisation:
    """Settles the numbers that a run, its checkpoints and its exports use.

    Args:
        mode: As in the plan; ``auto`` takes the policy's.
        policy: The domain's.
        channels: The domain's declared channels.
        names: Channels of the store, in order.
        stats: Measured statistics, or what measures them; used in mode ``store`` only, and measured only then.
        windows: Display windows; each becomes a channel of the network, for every stored channel that has it. A stored channel that has
            none of them stays as it is.

    Raises:
        UserError: A channel has no declared range, no usable statistics, or no channel has a window of that name.
    """
    mode = policy.default_mode if mode == "auto" else mode
    if windows:
        return _windowed(mode, channels, names, windows)
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
    units = tuple(channels[name].unit if name in channels else "" for name in names)
    return Normalisation(mode=mode, channels=tuple(names), low=low, high=high, mean=mean, std=std, units=units)


def _windowed(mode: str, channels: Mapping[str, Channel], names: Sequence[str], windows: Sequence[str]) -> Normalisation:
    """One network channel for each window of each stored channel that has it."""
    if mode != "domain":
        raise UserError("views.windows", f"views.normalise is {mode}", allowed="domain: a window is stated in physical units")
    declared = {name: channels[name] for name in names if name in channels}
    offered = sorted({window for channel in declared.values() for window in channel.windows})
    unknown = [window for window in windows if window not in offered]
    if unknown or len(set(windows)) < len(windows):
        found = f"no channel has {', '.join(unknown)}" if unknown else f"{', '.join(windows)} names one twice"
        raise UserError("views.windows", found, allowed=", ".join(offered) or "none in this domain")
    rows: list[tuple[Any, ...]] = []
    for name in names:
        own = [window for window in windows if name in declared and window in declared[name].windows]
        for window in own:
            shown = declared[name].windows[window]
            low, high = shown.centre - shown.width / 2, shown.centre + shown.width / 2
            rows.append((f"{name}/{window}", name, low, high, shown.mean, shown.std))
        if not own:
            rows.append((name, name, *_numbers(mode, name, declared.get(name), None)))
    columns: list[tuple[Any, ...]] = [tuple(column) for column in zip(*rows)]
    fields = ("channels", "sources", "low", "high", "mean", "std")
    made = Normalisation(mode="domain", **dict(zip(fields, columns)))
    return replace(made, units=tuple(declared[source].unit for source in made.sources))


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


def stored_channels(normalisation: Normalisation) -> tuple[str, ...]:
    """Name of the stored channel behind each channel of the network."""
    return normalisation.sources or normalisation.channels


def input_channels(normalisation: Normalisation) -> tuple[str, ...]:
    """The stored channels that the network is made from, each once, in its order: what a store must have."""
    return tuple(dict.fromkeys(stored_channels(normalisation)))


def windows_told(normalisation: Normalisation) -> str:
    """A line that names the channels of a network made from display windows, with their ranges."""
    units = normalisation.units or ("",) * len(normalisation.channels)
    rows = zip(normalisation.channels, normalisation.low, normalisation.high, units)
    told = ", ".join(f"{name} ({low:g} to {high:g}{' ' * bool(unit)}{unit})" for name, low, high, unit in rows)
    return f"views.windows: the network has {len(normalisation.channels)} channels: {told}"


def source_channels(normalisation: Normalisation, names: Sequence[str]) -> tuple[int, ...]:
    """K places in ``names`` of the stored channel behind each channel of the network.

    Raises:
        UserError: A batch lacks a channel of the network, or has one that the network does not use.
    """
    wanted = input_channels(normalisation)
    strange = [name for name in names if name not in wanted]
    if strange:
        found = f"{', '.join(strange)} not known to the network"
        raise UserError("channels of the store", found, allowed=", ".join(wanted), remedy="ingest these alone (ingest.bands)")
    missing = [name for name in wanted if name not in names]
    if missing:
        found, remedy = f"{', '.join(missing)} missing", "ingest them (ingest.bands), or train a network on what is there"
        raise UserError("channels of the store", found, allowed=f"all of {', '.join(wanted)}", remedy=remedy)
    return tuple(list(names).index(name) for name in stored_channels(normalisation))


def apply_range(info: TileInfo, normalisation: Normalisation, names: Sequence[str]) -> TileInfo:
    """The meaning of the network's channels: gathered from those of the stored channels, with the declared or measured range.

    Args:
        info: Of C stored channels.
        normalisation: The run's; in mode ``source`` each source keeps its own percentiles as range.
        names: C channel names.

    Returns:
        Of K network channels.
    """
    sources = source_channels(normalisation, names)
    if sources != tuple(range(len(names))):
        index = constants(sources, info.low.device, torch.int64)
        per_channel = ("scale", "offset", "nodata", "low", "high")
        info = replace(info, **{name: getattr(info, name).index_select(-1, index) for name in per_channel})
    if normalisation.mode == "source":
        return info
    device, shape = info.low.device, info.low.shape
    low, high = (constants(column, device, torch.float32).expand(shape) for column in (normalisation.low, normalisation.high))
    return replace(info, low=low, high=high)


@lru_cache(maxsize=256)
def constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """[n] on a device, copied there once: a copy in every step would make the host wait. Never write to it."""
    with torch.inference_mode(False):  # it is kept for calls that need gradients
        return torch.tensor(values, dtype=dtype, device=device)


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


def known_of(batch: Batch) -> Tensor | None:
    """[B, T, 1, *L] bool, see ``known_pixels``."""
    known = known_pixels(batch.pixels.flatten(0, 1), None if batch.valid is None else batch.valid.flatten(0, 1))
    return None if known is None else known.reshape(*batch.pixels.shape[:2], *known.shape[1:])


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
    torch.mul(unit.sub_(mean.reshape(shape)), std.reciprocal().reshape(shape), out=out)
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
        Pixels [B, K, ...] float32 in the network's range and validity [B, ...] bool, False also on a tile's padding.

    Raises:
        UserError: Several dates, or channels that the normalisation lacks.
    """
    pixels, bits = only_date(batch)
    info = apply_range(batch.info, normalisation, batch.channels)
    sources = source_channels(normalisation, batch.channels)
    known = known_pixels(pixels, bits)
    inside = _inside(batch.info.valid_box, tuple(pixels.shape[2:]))
    mask = inside if known is None else known & inside
    stored = pixels.float().masked_fill(~mask, 0.0)  # not in place: float() of float32 is the batch itself
    if size is not None:
        stored, mask = _resize(stored, mask, size, kind or ("cubic" if pixels.ndim == 4 else "linear"))
    if sources != tuple(range(len(batch.channels))):
        stored = stored.index_select(1, constants(sources, stored.device, torch.int64))
    unit = to_float(stored, info)
    out = torch.empty_like(unit)
    mean, std = (constants(column, unit.device, torch.float32) for column in (normalisation.mean, normalisation.std))
    to_network_(unit, mask, mean, std, out)
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
