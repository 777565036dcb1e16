"""Two ways to resample stored values into crops on a CPU; same parameters, same result within stated bounds.

``Banded``: resampling matrices crop by crop without their zeros; any dtype, 2-D and 3-D; needs the boxes on the host, so a CPU.
``Resize``: the framework's antialiased resize; CPU, 2-D, whole-pixel boxes; for bytes in interleaved channels nothing is faster.
The third, for accelerators, is ``views.matmul``. A warp is prepared once for all rows of a group and then called for runs of rows.

Shapes: N = V x B rows of a group (row v * B + b), n of them in a run, C channels, T dates. A row's image is a slice of the batch,
never a copy. Weights are the share of known pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.types import TileInfo
from dinodomain.views.banded import BLOCK, Band, Scratch, bands, blur_bands, contract_window
from dinodomain.views.dates import date_of
from dinodomain.views.draw import GroupParams, ViewParams

Window = tuple[int | slice, ...]

_LANES = 4
"""Bytes of a pixel word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Tiles of a batch, T dates of each sample (``dates``).

    Attributes:
        pixels: [B, T, C, *L] as stored.
        known: [B, T, 1, *L] bool, or None where every pixel is known.
        info: Meaning of the pixels, [B * T], with the range that becomes 0..1.
        words: [B, T, 4, *L] the pixels once more for ``Resize``, see ``interleaved``, or None.
    """

    pixels: Tensor
    known: Tensor | None
    info: TileInfo
    words: Tensor | None = None


class Warp(Protocol):
    """A renderer prepared for one group."""

    def __call__(self, tiles: Tiles, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Resamples rows start..stop.

        Returns:
            Stored values [n, C, *S] float32 and weights [n, 1, *S], None where every pixel is known.
        """
        ...


class _PerCrop:
    """Common to the CPU warps: crop by crop, validity only where a crop holds unknown pixels."""

    def __init__(self, group: GroupParams, params: ViewParams, shape: Sequence[int] | None = None) -> None:
        """Prepares a group.

        Args:
            group: Its rows.
            params: Those of the batch.
            shape: S of each axis, where it is not ``group.size`` for all.
        """
        self._group, self._kind = group, params.filter
        self._shape = tuple(shape or (group.size,) * group.boxes.shape[1])
        self._first = torch.floor(group.boxes[..., 0]).long()
        last = torch.ceil(group.boxes[..., 1]).long()
        edges = zip(self._first.tolist(), last.tolist())
        self._windows: list[tuple[slice, ...]] = [tuple(slice(a, b) for a, b in zip(start, stop)) for start, stop in edges]
        self._transpose = group.transpose.tolist()
        self._scratch = Scratch()

    @cached_property
    def _bands(self) -> list[tuple[Band, ...]]:
        inner = self._group.boxes.double() - self._first[..., None]
        flips, sigma, block = self._group.flips, self._group.sigma, BLOCK[len(self._shape)]
        if len(set(self._shape)) == 1:  # all axes at once: calls cost more than numbers
            every = bands(inner.flatten(0, 1), flips.flatten(), sigma.flatten(), size=self._shape[0], kind=self._kind, block=block)
            return list(zip(*(iter(every),) * len(self._shape)))
        axes = enumerate(self._shape)
        return list(zip(*(bands(inner[:, a], flips[:, a], sigma[:, a], size=size, kind=self._kind, block=block) for a, size in axes)))

    def _crop(self, tiles: Tiles, window: Window, row: int, out: Tensor) -> None:
        """One crop, all known, into [C, *S] float32, before the transpose; ``window`` of a batch leaves [1, C, *l]."""
        raise NotImplementedError

    def __call__(self, tiles: Tiles, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """See ``Warp``."""
        samples, dates, channels = tiles.pixels.shape[:3]
        stored = torch.empty((stop - start, channels, *self._shape))
        weight = None if tiles.known is None else torch.ones((stop - start, 1, *self._shape))
        for row in range(start, stop):
            view, sample = divmod(row, samples)
            window: Window = (slice(sample, sample + 1), date_of(view, dates), slice(None), *self._windows[row])
            known = None if tiles.known is None else tiles.known[window]
            if known is None or bool(known.all()):
                self._crop(tiles, window, row, stored[row - start])
            else:
                assert weight is not None
                crop = tiles.pixels[window].float().masked_fill(~known, 0.0)
                contract_window(crop[0], self._bands[row], stored[row - start], self._scratch)
                contract_window(known[0], self._bands[row], weight[row - start], self._scratch)
                self._turn(weight[row - start], row)
            self._turn(stored[row - start], row)
        return stored, weight

    def _turn(self, out: Tensor, row: int) -> None:
        if self._transpose[row]:
            out.copy_(out.transpose(-1, -2).contiguous())


class Banded(_PerCrop):
    """Banded matrices on each crop's own window."""

    def _crop(self, tiles: Tiles, window: Window, row: int, out: Tensor) -> None:
        contract_window(tiles.pixels[window][0], self._bands[row], out, self._scratch)


class Resize(_PerCrop):
    """The framework's antialiased resize of whole crops; crops with unknown pixels go the way of ``Banded``.

    Against the other two, before intensity operations: 1e-5 of the value range for every dtype but uint8. Crops of uint8 stay
    uint8: at most 1 level away with ``linear``; with ``cubic``, whose overshoot is clipped between the axes, up to 5 on photographs.
    """

    def __init__(self, group: GroupParams, params: ViewParams, shape: Sequence[int] | None = None) -> None:
        """See ``_PerCrop``."""
        super().__init__(group, params, shape)
        self._flips = [[axis for axis in (0, 1) if flips[axis]] for flips in group.flips.tolist()]
        self._blurs = _blurs(group, self._shape)

    def _crop(self, tiles: Tiles, window: Window, row: int, out: Tensor) -> None:
        crop = (tiles.pixels if tiles.words is None else tiles.words)[window]
        crop = crop if crop.dtype in (torch.uint8, torch.float32) else crop.float()
        mode = "bicubic" if self._kind == "cubic" else "bilinear"
        small = F.interpolate(crop, self._shape, mode=mode, antialias=True, align_corners=False)[0]
        if self._flips[row]:
            small = small.flip([axis + 1 for axis in self._flips[row]]) if tiles.words is None else _flip_words(small, self._flips[row])
        blur = self._blurs[row]
        if blur is None:
            out.copy_(small[: len(out)])
        else:
            contract_window(small[: len(out)], blur, out, self._scratch)


def _flip_words(lanes: Tensor, axes: list[int]) -> Tensor:
    """[4, *S] bytes side by side, reversed along some axes: a word at a time, in a third of the time that bytes take."""
    words = lanes.movedim(0, -1).contiguous().view(torch.int32)[..., 0].flip(axes)
    return words[..., None].view(torch.uint8).movedim(-1, 0)


def _blurs(group: GroupParams, shape: Sequence[int]) -> list[tuple[Band, ...] | None]:
    """What blurs each row's crop after it was resized; None where nothing is blurred."""
    found: list[tuple[Band, ...] | None] = [None] * len(group.boxes)
    rows = torch.nonzero(group.sigma.amax(dim=1) > 0).flatten()
    if len(rows):
        sigma = group.sigma[rows]
        first = blur_bands(sigma[:, 0], shape[0])
        alike = shape[0] == shape[1] and torch.equal(sigma[:, 0], sigma[:, 1])
        for row, blur in zip(rows.tolist(), zip(first, first if alike else blur_bands(sigma[:, 1], shape[1]))):
            found[row] = blur
    return found


def takes_words(pixels: Tensor) -> bool:
    """Whether bytes of tiles [B, T, C, *L] can be held as one word per pixel."""
    return pixels.dtype == torch.uint8 and pixels.ndim == 5 and 2 <= pixels.shape[2] <= _LANES


def interleaved(tiles: Tiles) -> Tiles:
    """The same tiles with the bytes of a pixel side by side in memory, which is what the framework's fast resize wants.

    Channels are put together in 32-bit words, whole planes at a time: less than half the time of copying byte by byte.
    """
    if not takes_words(tiles.pixels):
        return tiles
    samples, dates, channels, *extent = tiles.pixels.shape
    words = torch.from_numpy(np.empty((samples, dates, *extent), np.int32))
    plane = torch.empty(extent, dtype=torch.int32)
    for image, word in zip(tiles.pixels.flatten(0, 1), words.flatten(0, 1)):
        word.copy_(image[0])
        for place in range(1, channels):
            word.bitwise_or_(plane.copy_(image[place]).bitwise_left_shift_(8 * place))
    lanes = words.view(torch.uint8).view(samples, dates, *extent, _LANES).movedim(-1, 2)
    return replace(tiles, words=lanes)
