"""The plain twin of draw-and-render: one view at a time, float64, loops; slow, read as the specification and used by tests only.

It follows the physical order and folds nothing: resample pixels x validity, divide, physical values, operations one after another,
``to_float``, unit range, network range. Tables of random numbers and the node values of smooth fields are shared with the fast path,
because the numbers themselves are the specification; what is made of them is not.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from statistics import NormalDist

import numpy as np
import torch

from dinodomain.policy import ViewPolicy
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import counter
from dinodomain.views.boxes import canvas
from dinodomain.views.dates import date_of
from dinodomain.views.draw import GroupParams, ViewParams, channels_kept, word
from dinodomain.views.fields import log_gamma_quantile, node_values
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


def rotate(image: np.ndarray, group: GroupParams, row: int, kind: str, degrees: float) -> np.ndarray:
    """``resample`` of a turned view: its upright bounding box on a finer canvas, from which each output pixel is then interpolated.

    Args:
        image: [C, *L] as stored.
        group: Parameters.
        row: Which row; its angle is not 0.
        kind: Filter.
        degrees: Largest angle of the policy, which settles how fine the canvas is.
    """
    size, angle = group.size, float(group.angle[row])
    side = canvas(size, degrees)
    out, axes = image.astype(np.float64), range(image.ndim - 1)
    inside = []
    for axis, (start, stop) in enumerate(group.boxes[row].double().tolist()):
        flip, sigma, pixels, length = bool(group.flips[row, axis]), float(group.sigma[row, axis]), size, image.shape[1 + axis]
        if axis in axes[-2:]:
            step, middle = (stop - start) / size, (start + stop) / 2
            half = (stop - start) / 2 * (abs(math.cos(angle)) + abs(math.sin(angle)))
            start, stop, pixels, flip = max(0.0, middle - half), min(float(length), middle + half), side, False
            sigma = sigma * step / ((stop - start) / side)
            inside.append((middle, step, start, (stop - start) / side))
        matrix = axis_matrix(start, stop, flip, sigma, size=pixels, length=length, kind=kind)
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, 1 + axis)), 0, 1 + axis)
    (middle_y, step_y, start_y, pitch_y), (middle_x, step_x, start_x, pitch_x) = inside
    signs = [-1 if bool(group.flips[row, axis]) else 1 for axis in axes[-2:]]
    turned = np.zeros((*out.shape[:-2], size, size))
    for i in range(size):
        for j in range(size):
            at_row, at_column = (j, i) if bool(group.transpose[row]) else (i, j)
            y, x = signs[0] * (at_row - (size - 1) / 2), signs[1] * (at_column - (size - 1) / 2)
            place_y = middle_y + step_y * (math.cos(angle) * y + math.sin(angle) * x)
            place_x = middle_x + step_x * (math.cos(angle) * x - math.sin(angle) * y)
            turned[..., i, j] = _between_pixels(out, (place_y - start_y) / pitch_y - 0.5, (place_x - start_x) / pitch_x - 0.5, kind)
    return turned


def _between_pixels(image: np.ndarray, y: float, x: float, kind: str) -> np.ndarray:
    """[...] value at a place of [..., K, K], edges repeated: linear, or Keys' cubic with a = -0.75, which is torch's."""
    total = np.zeros(image.shape[:-2])
    for i in range(math.floor(y) - 1, math.floor(y) + 3):
        for j in range(math.floor(x) - 1, math.floor(x) + 3):
            weight = _kernel(y - i, kind) * _kernel(x - j, kind)
            total += weight * image[..., min(max(i, 0), image.shape[-2] - 1), min(max(j, 0), image.shape[-1] - 1)]
    return total


def _kernel(distance: float, kind: str, a: float = -0.75) -> float:
    d = abs(distance)
    if kind == "linear":
        return max(0.0, 1.0 - d)
    if d < 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


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
    weight, stored = (_cropped(image, params, group, row) for image in (known[None], np.where(known, tile, 0.0)))
    stored = stored / np.maximum(weight, KNOWN)
    known = weight[0] >= KNOWN
    image = sample * dates + date
    own, info = _one(batch.info, image), _one(apply_range(batch.info, normalisation, batch.channels), image)
    nm = [params.policy.wavelengths_nm.get(name) for name in batch.channels]
    physical = _physical(stored, own, params.policy, group, row, nm)
    sources = list(source_channels(normalisation, batch.channels))
    unit = _unit(physical[sources], known, info, to_float, group, row, [nm[source] for source in sources])
    mean, std = np.array(normalisation.mean), np.array(normalisation.std)
    network = np.stack([(unit[c] - mean[c]) / std[c] for c in range(len(unit))])
    kept = channels_kept(params.policy, group, len(unit))
    if kept is not None:
        network = np.where(kept[row].numpy()[(slice(None), *(None,) * (network.ndim - 1))], network, 0.0)
    return np.where(known, network, 0.0), known


def _cropped(image: np.ndarray, params: ViewParams, group: GroupParams, row: int) -> np.ndarray:
    """One view of an image, turned or not."""
    turn = params.policy.rotation
    if turn is None or float(group.angle[row]) == 0:
        return resample(image, group, row, params.filter)
    return rotate(image, group, row, params.filter, max(map(abs, turn.degrees)))


def _one(info: TileInfo, image: int) -> TileInfo:
    return TileInfo(**{f.name: getattr(info, f.name)[image : image + 1] for f in fields(info)})


Drawn = dict[str, dict[str, float | np.ndarray]]
"""Operation and parameter name to one number, or one for each channel of the network."""


def _drawn(group: GroupParams, row: int) -> Drawn:
    return {name: {key: _number(value[row]) for key, value in item.values.items()} for name, item in group.operations.items()}


def _physical(
    stored: np.ndarray, own: TileInfo, policy: ViewPolicy, group: GroupParams, row: int, wavelengths: list[float | None]
) -> np.ndarray:
    """One crop [C, *S] from stored to physical values, through the operations on these."""
    ops, key = _drawn(group, row), group.key[row : row + 1]
    scale, offset, low, high = (getattr(own, name)[0].double().numpy() for name in ("scale", "offset", "low", "high"))
    out = np.stack([stored[c] * scale[c] + offset[c] for c in range(len(stored))])
    if policy.bias_field is not None:
        field = plain_field(counter.absorb(key, word("bias_field")), policy.bias_field.nodes, out.shape[1:])
        out = out * np.exp(ops["bias_field"]["strength"] * field)
    if policy.shadow is not None:
        field = plain_field(counter.absorb(key, word("shadow")), policy.shadow.nodes, out.shape[1:])
        shade = shadow_share(field, _of(ops["shadow"]["share"], 0), policy.shadow.edge)
        for c, nm in enumerate(wavelengths):
            sky = 1.0 if nm is None else min(1.0, policy.shadow.skylight * (490.0 / nm) ** 4)
            out[c] = out[c] * (1 - shade * ops["shadow"]["depth"] * (1 - sky))
    if policy.speckle is not None and math.isfinite(_of(ops["speckle"]["looks"], 0)):
        normal = noise(counter.absorb(key, word("speckle")), out.size)[0].double().reshape(out.shape)
        power = log_gamma_quantile(normal, torch.full_like(normal, _of(ops["speckle"]["looks"], 0))).exp().numpy()
        if policy.speckle.scale == "db":
            out = 10 * np.log10(10 ** (out / 10) * power)
        else:
            out = out * (power if policy.speckle.scale == "power" else np.sqrt(power))
    if policy.rician is not None and _of(ops["rician"]["std"], 0) > 0:
        parts = noise(counter.absorb(key, word("rician")), 2 * out.size)[0].double().numpy().reshape(2, *out.shape)
        for c in range(len(out)):
            std = ops["rician"]["std"] * (high[c] - low[c]) if low[c] >= 0 else 0.0
            if std == 0:
                continue
            out[c] = np.hypot(out[c] + std * parts[0, c], std * parts[1, c])
    if policy.value_noise is not None:
        grain = noise(counter.absorb(key, word("value_noise")), out.size)[0].double().numpy().reshape(out.shape)
        out = out + ops["value_noise"]["std"] * grain
    return out


def plain_field(key: torch.Tensor, nodes: int, shape: tuple[int, ...]) -> np.ndarray:
    """[*S] float64 smooth field of one row."""
    field = node_values(key, nodes, len(shape))[0].double().numpy()
    for axis, size in enumerate(shape):
        matrix = np.zeros((size, nodes))
        for i in range(size):
            for j in range(nodes):
                matrix[i, j] = cubic_spline((i + 0.5) / size * (nodes - 1) - j)
            matrix[i] /= math.sqrt(sum(weight**2 for weight in matrix[i]))
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return field


def cubic_spline(distance: float) -> float:
    """The cubic B-spline: what four boxes of width 1 make when they are convolved."""
    return math.fsum((-1.0) ** k * math.comb(4, k) * max(0.0, distance + 2 - k) ** 3 for k in range(5)) / 6


def shadow_share(field: np.ndarray, share: float, edge: float) -> np.ndarray:
    """[*S] how much of the sun is gone: where a field is high, by a normal edge, for a share of the ground."""
    if share <= 0:
        return np.zeros(field.shape)
    threshold = math.sqrt(1 + edge**2) * NormalDist().inv_cdf(1 - share)
    share_of_pixel = [NormalDist().cdf((value - threshold) / edge) for value in field.ravel().tolist()]
    return np.array(share_of_pixel).reshape(field.shape)


def _unit(
    physical: np.ndarray, known: np.ndarray, info: TileInfo, to_float: ToFloat, group: GroupParams, row: int,
    wavelengths: list[float | None],
) -> np.ndarray:  # fmt: skip
    """One crop [K, *S] from physical values to the unit range, through every operation that follows."""
    ops = _drawn(group, row)
    low, high = (getattr(info, name)[0].double().numpy() for name in ("low", "high"))
    out = np.empty(physical.shape)
    for c in range(len(physical)):
        image = physical[c]
        if "gain" in ops:
            image = image * _of(ops["gain"]["gain"], c) + _of(ops["gain"]["offset"], c)
        nm = wavelengths[c]
        if "haze" in ops and nm is not None:
            path = _of(ops["haze"]["amount"], c) * (490.0 / nm) ** _of(ops["haze"]["exponent"], c)
            image = path + (1 - path) * (1 - path) * image
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
        value = torch.from_numpy(low[c] + unit * (high[c] - low[c])).float()
        out[c] = to_float(value[None, None], told)[0, 0].double().numpy()
        if "gamma" in ops:
            out[c] = out[c] ** ops["gamma"]["exponent"]
    if "noise" in ops:
        grain = noise(counter.absorb(group.key[row : row + 1], word("noise")), out.size)[0].reshape(out.shape).double().numpy()
        out = out + np.sqrt(_of(ops["noise"]["std"], 0) ** 2 + _of(ops["noise"]["shot"], 0) ** 2 * out) * grain
    if "solarise" in ops:
        out = np.where(out >= ops["solarise"]["threshold"], 1 - out, out)
    return out


_PER_CHANNEL = ("scale", "offset", "nodata", "low", "high")


def _number(value: torch.Tensor) -> float | np.ndarray:
    """One number, or one for each channel."""
    return float(value) if value.ndim == 0 else value.double().numpy()


def _of(value: float | np.ndarray, channel: int) -> float:
    return value if isinstance(value, float) else float(value[channel])
