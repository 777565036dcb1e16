"""The plain twin of draw-and-render: one view at a time, float64, loops; slow, read as the specification and used by tests only.

It follows the same order: resample pixels x validity, divide, ``to_float``, intensity, network range. The noise table is shared
with the fast path, because the numbers themselves are the specification.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import torch

from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import counter
from dinodomain.views.dates import date_of
from dinodomain.views.draw import GroupParams, ViewParams, channels_kept, word
from dinodomain.views.noise import noise
from dinodomain.views.normalise import KNOWN, ToFloat, apply_range, source_channels


def filter_weight(distance: float, kind: str) -> float:
    """Triangle, or Keys' cubic with a = -0.5, at a distance in (stretched) input pixels."""
    d = abs(distance)
    if kind == "linear":
        return max(0.0, 1.0 - d)
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def axis_matrix(start: float, stop: float, flip: bool, sigma: float, *, size: int, length: int, kind: str) -> np.ndarray:
    """[S, L] float64 matrix that crops, resizes, flips and blurs one axis."""
    scale = (stop - start) / size
    stretch = max(scale, 1.0)
    matrix = np.zeros((size, length))
    for i in range(size):
        centre = start + ((size - 1 - i if flip else i) + 0.5) * scale
        for j in range(max(0, math.floor(start)), min(length, math.ceil(stop))):
            matrix[i, j] = filter_weight((j + 0.5 - centre) / stretch, kind)
        matrix[i] /= matrix[i].sum()
    return blur_matrix(sigma, size) @ matrix if sigma > 0 else matrix


def blur_matrix(sigma: float, size: int) -> np.ndarray:
    """[S, S] float64 normalised Gaussian convolution."""
    matrix = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            matrix[i, j] = math.exp(-0.5 * ((i - j) / sigma) ** 2)
        matrix[i] /= matrix[i].sum()
    return matrix


def resample(image: np.ndarray, group: GroupParams, row: int, kind: str) -> np.ndarray:
    """One view of an image [C, *L] as stored: [C, *S] float64."""
    out = image.astype(np.float64)
    for axis, (start, stop) in enumerate(group.boxes[row].tolist()):
        sigma, length = float(group.sigma[row, axis]), image.shape[1 + axis]
        matrix = axis_matrix(start, stop, bool(group.flips[row, axis]), sigma, size=group.size, length=length, kind=kind)
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, 1 + axis)), 0, 1 + axis)
    return np.swapaxes(out, -1, -2) if bool(group.transpose[row]) else out


def reference_view(
    batch: Batch, params: ViewParams, index: int, row: int, *, to_float: ToFloat, normalisation: Normalisation
) -> tuple[np.ndarray, np.ndarray]:
    """One view by the plain way.

    Args:
        batch: Tiles as stored.
        params: From ``draw``.
        index: Which group.
        row: Which row of it.
        to_float: The domain's.
        normalisation: The run's.

    Returns:
        Pixels [C, *S] float64 in the network's range and known [*S] bool.
    """
    group = params.groups[index]
    samples, dates = batch.pixels.shape[:2]
    sample, date = row % samples, date_of(row // samples, dates)
    tile = batch.pixels[sample, date].numpy().astype(np.float64)
    known = np.all(np.isfinite(tile), axis=0, keepdims=True)[0]
    if batch.valid is not None:
        known = known & (batch.valid[sample, date].numpy() == 0)
    weight = resample(known[None], group, row, params.filter)
    stored = resample(np.where(known, tile, 0.0), group, row, params.filter) / np.maximum(weight, KNOWN)
    known = weight[0] >= KNOWN
    image = sample * dates + date
    info = _one(apply_range(batch.info, normalisation, batch.channels), image)
    sources = list(source_channels(normalisation, batch.channels))
    unit = _unit(stored[sources], known, info, to_float, group, row)
    mean, std = np.array(normalisation.mean), np.array(normalisation.std)
    network = np.stack([(unit[c] - mean[c]) / std[c] for c in range(len(unit))])
    kept = channels_kept(params.policy, group, len(unit))
    if kept is not None:
        network = np.where(kept[row].numpy()[(slice(None), *(None,) * (network.ndim - 1))], network, 0.0)
    return np.where(known, network, 0.0), known


def _one(info: TileInfo, image: int) -> TileInfo:
    return TileInfo(**{f.name: getattr(info, f.name)[image : image + 1] for f in fields(info)})


def _unit(stored: np.ndarray, known: np.ndarray, info: TileInfo, to_float: ToFloat, group: GroupParams, row: int) -> np.ndarray:
    """One crop [K, *S] from stored values to the unit range, through every operation of the policy."""
    ops = {name: {key: _number(value[row]) for key, value in item.values.items()} for name, item in group.operations.items()}
    scale, offset, low, high = (getattr(info, name)[0].double().numpy() for name in ("scale", "offset", "low", "high"))
    out = np.empty(stored.shape)
    for c in range(len(stored)):
        image = stored[c] * scale[c] + offset[c]
        if "gain" in ops:
            image = image * _of(ops["gain"]["gain"], c) + _of(ops["gain"]["offset"], c)
        if "window" in ops:
            width = high[c] - low[c]
            middle = (high[c] + low[c]) / 2 + ops["window"]["centre"] * width
            start, stop = middle - ops["window"]["width"] * width / 2, middle + ops["window"]["width"] * width / 2
        else:
            start, stop = low[c], high[c]
        unit = (image - start) / (stop - start)
        if "jitter" in ops:
            about = unit[known].mean() if known.any() else 0.0
            unit = about + _of(ops["jitter"]["contrast"], c) * (unit - about) + _of(ops["jitter"]["brightness"], c)
        # The same value, told to the domain's own clip as a physical one.
        told = TileInfo(
            **{f.name: getattr(info, f.name)[:, [c]] if f.name in _PER_CHANNEL else getattr(info, f.name) for f in fields(info)}
        )
        told = replace(told, scale=torch.ones(1, 1), offset=torch.zeros(1, 1))
        physical = torch.from_numpy(low[c] + unit * (high[c] - low[c])).float()
        out[c] = to_float(physical[None, None], told)[0, 0].double().numpy()
        if "gamma" in ops:
            out[c] = out[c] ** ops["gamma"]["exponent"]
    if "noise" in ops:
        key = counter.absorb(group.key[row : row + 1], word("noise"))
        out = out + ops["noise"]["std"] * noise(key, out.size)[0].reshape(out.shape).double().numpy()
    if "solarise" in ops:
        out = np.where(out >= ops["solarise"]["threshold"], 1 - out, out)
    return out


_PER_CHANNEL = ("scale", "offset", "nodata", "low", "high")


def _number(value: torch.Tensor) -> float | np.ndarray:
    """One number, or one for each channel."""
    return float(value) if value.ndim == 0 else value.double().numpy()


def _of(value: float | np.ndarray, channel: int) -> float:
    return value if isinstance(value, float) else float(value[channel])
