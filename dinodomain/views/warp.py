"""Three ways to resample stored values into crops; same parameters, same result within stated bounds.

``Matmul``: dense matrices over whole tiles, batched; any device, 2-D and 3-D. ``Banded``: the same matrices crop by crop without
their zeros; needs the boxes on the host, so a CPU. ``Resize``: the framework's antialiased resize; CPU, 2-D, whole-pixel boxes.
A warp is prepared once for all rows of a group and then called for runs of rows.

Shapes: N = V x B rows of a group (row v * B + b), n of them in a run, C channels, T dates. A row's image is a slice of the batch,
never a copy. Weights are the share of known pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.types import TileInfo
from dinodomain.views.banded import Band, bands, contract_window
from dinodomain.views.dates import date_of
from dinodomain.views.draw import GroupParams, ViewParams
from dinodomain.views.resample import axis_matrices, blur_image, contract, gaussian_matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Tiles of a batch, T dates of each sample (``dates``).

    Attributes:
        pixels: [B, T, C, *L] as stored.
        known: [B, T, 1, *L] bool, or None where every pixel is known.
        info: Meaning of the pixels, [B * T], with the range that becomes 0..1.
    """

    pixels: Tensor
    known: Tensor | None
    info: TileInfo


class Warp(Protocol):
    """A renderer prepared for one group."""

    def __call__(self, tiles: Tiles, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Resamples rows start..stop.

        Returns:
            Stored values [n, C, *S] float32 and weights [n, 1, *S], None where every pixel is known.
        """
        ...


def may_blur(params: ViewParams) -> bool:
    """Whether the policy blurs any view; asks no device."""
    policy = params.policy
    return any(operation is not None for operation in (policy.blur, policy.thickness, policy.coarser_pixels))


class Matmul:
    """Rows of a matrix hold crop, antialiased resize, flip and blur; float32 accumulation."""

    def __init__(self, group: GroupParams, params: ViewParams) -> None:
        self._group, self._params = group, params

    def __call__(self, tiles: Tiles, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """See ``Warp``."""
        group, known = self._group.rows(start, stop), tiles.known
        matrices = self._matrices(group, tiles.pixels.shape[3:])
        stored, weight, row = [], [], start
        for view, samples in _segments(start, stop, tiles.pixels.shape[0]):
            images = (samples, date_of(view, tiles.pixels.shape[1]))
            own = [m[row - start : row - start + samples.stop - samples.start] for m in matrices]
            real = None if known is None else known[images]
            stored.append(contract(_channels_last(tiles.pixels[images], real), own))
            if real is not None:
                # Exactly 1 where a sample is whole, so that its bits do not depend on the others of its batch.
                whole = real.flatten(1).all(dim=1).reshape(-1, *(1,) * (real.ndim - 1))
                weight.append(torch.where(whole, 1.0, contract(real.movedim(1, -1).float(), own)))
            row += samples.stop - samples.start
        return self._turn(torch.cat(stored), group), self._turn(torch.cat(weight), group) if weight else None

    def _matrices(self, group: GroupParams, extent: tuple[int, ...]) -> list[Tensor]:
        found = [
            axis_matrices(group.boxes[:, axis], group.flips[:, axis], size=group.size, length=length, kind=self._params.filter)
            for axis, length in enumerate(extent)
        ]
        if not may_blur(self._params):
            return found
        blurs = [gaussian_matrices(group.sigma[:, axis], group.size) for axis in range(len(found))]
        return [torch.bmm(blur, matrix) for blur, matrix in zip(blurs, found)]

    def _turn(self, x: Tensor, group: GroupParams) -> Tensor:
        if not self._params.policy.quarter_turns:
            return x
        return torch.where(group.transpose.reshape(-1, *(1,) * (x.ndim - 1)), x.transpose(-1, -2), x)


def _segments(start: int, stop: int, samples: int) -> Iterator[tuple[int, slice]]:
    """Rows start..stop as runs of samples, one per view touched, each with its view."""
    while start < stop:
        view, first = divmod(start, samples)
        last = min(samples, first + stop - start)
        yield view, slice(first, last)
        start += last - first


def _channels_last(pixels: Tensor, known: Tensor | None) -> Tensor:
    """[b, C, *L] to [b, *L, C] float32, 0 where unknown: such pixels may hold anything, NaN too."""
    last = torch.empty((pixels.shape[0], *pixels.shape[2:], pixels.shape[1]), device=pixels.device)
    last.copy_(pixels.movedim(1, -1))
    return last if known is None else last.masked_fill_(~known.movedim(1, -1), 0.0)


class _PerCrop:
    """Common to the CPU warps: crop by crop, validity only where a crop holds unknown pixels."""

    def __init__(self, group: GroupParams, params: ViewParams) -> None:
        self._group, self._kind = group, params.filter
        self._first = torch.floor(group.boxes[..., 0]).long()
        last = torch.ceil(group.boxes[..., 1]).long()
        self._windows = [tuple(slice(a, b) for a, b in zip(start, stop)) for start, stop in zip(self._first.tolist(), last.tolist())]
        self._transpose = group.transpose.tolist()

    def _crop(self, crop: Tensor, row: int, out: Tensor) -> None:
        """One crop [C, *l], as stored or float32, into [C, *S] float32, before the transpose."""
        raise NotImplementedError

    def __call__(self, tiles: Tiles, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """See ``Warp``."""
        samples, dates, channels = tiles.pixels.shape[:3]
        size = (self._group.size,) * (tiles.pixels.ndim - 3)
        stored = torch.empty((stop - start, channels, *size))
        weight = None if tiles.known is None else torch.ones((stop - start, 1, *size))
        for row in range(start, stop):
            view, sample = divmod(row, samples)
            window: tuple[int | slice, ...] = (sample, date_of(view, dates), slice(None), *self._windows[row])
            crop, known = tiles.pixels[window], None if tiles.known is None else tiles.known[window]
            if known is None or bool(known.all()):
                self._put(stored[row - start], crop, row)
                continue
            assert weight is not None
            self._put(stored[row - start], crop.float().masked_fill(~known, 0.0), row)
            self._put(weight[row - start], known.float(), row)
        return stored, weight

    def _put(self, out: Tensor, crop: Tensor, row: int) -> None:
        self._crop(crop, row, out)
        if self._transpose[row]:
            out.copy_(out.transpose(-1, -2).contiguous())


class Banded(_PerCrop):
    """Banded matrices on each crop's own window."""

    def __init__(self, group: GroupParams, params: ViewParams) -> None:
        super().__init__(group, params)
        inner = group.boxes.double() - self._first[..., None]
        size, kind, sigma = group.size, params.filter, group.sigma
        axes = range(inner.shape[1])
        per_axis = [bands(inner[:, axis], group.flips[:, axis], sigma[:, axis], size=size, kind=kind) for axis in axes]
        self._bands: list[tuple[Band, ...]] = list(zip(*per_axis))

    def _crop(self, crop: Tensor, row: int, out: Tensor) -> None:
        contract_window(crop.float(), self._bands[row], out)


class Resize(_PerCrop):
    """The framework's antialiased resize.

    Against the other two, before intensity operations: 1e-5 of the value range for every dtype but uint8. Crops of uint8 stay
    uint8: at most 1 level away with ``linear``; with ``cubic``, whose overshoot is clipped between the axes, up to 4 on photographs.
    """

    def __init__(self, group: GroupParams, params: ViewParams) -> None:
        super().__init__(group, params)
        self._flips = [[axis - 2 for axis in (0, 1) if flips[axis]] for flips in group.flips.tolist()]
        self._sigma = group.sigma.tolist()

    def _crop(self, crop: Tensor, row: int, out: Tensor) -> None:
        crop = crop if crop.dtype in (torch.uint8, torch.float32) else crop.float()
        mode = "bicubic" if self._kind == "cubic" else "bilinear"
        size = (self._group.size, self._group.size)
        image = F.interpolate(crop[None], size, mode=mode, antialias=True, align_corners=False)[0]
        image = image.flip(self._flips[row]) if self._flips[row] else image
        out.copy_(image)
        if max(self._sigma[row]) > 0:
            out.copy_(blur_image(out, self._sigma[row]))
