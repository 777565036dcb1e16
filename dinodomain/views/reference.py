"""The plain twin of draw-and-render: one view at a time, float64, loops; slow, read as the specification and used by tests only.

It follows the same order: resample pixels x validity, divide, ``to_float``, intensity, network range. The noise table is shared
with the fast path, because the numbers themselves are the specification.
"""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import torch

from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views.dates import date_of
from dinodomain.views.draw import GroupParams, ViewParams, channel_params
from dinodomain.views.intensity import SOLARISE_THRESHOLD
from dinodomain.views.noise import noise
from dinodomain.views.normalise import KNOWN, ToFloat, apply_range


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
        matrix = axis_matrix(
            start, stop, bool(group.flips[row, axis]), float(group.sigma[row]), size=group.size, length=image.shape[1 + axis], kind=kind
        )
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
    info = apply_range(batch.info, normalisation, batch.channels)
    image = sample * dates + date
    one = TileInfo(**{f.name: getattr(info, f.name)[image : image + 1] for f in fields(info)})
    unit = to_float(torch.from_numpy(stored).float()[None], one)[0].numpy().astype(np.float64)
    order = [normalisation.channels.index(name) for name in batch.channels]
    mean, std = np.array(normalisation.mean)[order], np.array(normalisation.std)[order]
    unit = _augment(unit, weight[0] >= KNOWN, params, group, row, mean)
    network = np.stack([(unit[c] - mean[c]) / std[c] for c in range(len(unit))])
    return np.where(weight[0] >= KNOWN, network, 0.0), weight[0] >= KNOWN


def _augment(unit: np.ndarray, known: np.ndarray, params: ViewParams, group: GroupParams, row: int, mean: np.ndarray) -> np.ndarray:
    channels = channel_params(params.policy, group, len(unit))
    out = unit.copy()
    grain = noise(group.noise_key[row : row + 1], unit.size)[0].reshape(unit.shape).numpy()
    for c in range(len(unit)):
        if bool(group.jitter[row]):
            about = unit[c][known].mean() if known.any() else 0.0
            factor, shift = float(channels.contrast[row, c]), float(channels.brightness[row, c])
            out[c] = np.clip(about + factor * (unit[c] - about) + shift, 0, 1) ** float(group.gamma[row])
        out[c] = out[c] + float(group.noise_std[row]) * grain[c]
        if bool(group.solarise[row]):
            out[c] = np.where(out[c] >= SOLARISE_THRESHOLD, 1 - out[c], out[c])
        if not bool(channels.keep[row, c]):
            out[c] = mean[c]
    return out
