"""Small rotations, as a second resampling step: any angle mixes two axes, which one matrix per axis cannot.

A crop that is turned is rendered upright first, on a canvas: the smallest upright box around the turned crop (which ``boxes`` keeps inside
the known part of the tile), in the last two axes, at the output's pixel size or a little finer. The output is then sampled from the
canvas, with the linear or Keys' cubic kernel (torch's, a = -0.75) as the filter is, validity alike. Other rows are left as they are, bit
by bit.

Cost where every view is turned by up to 10 degrees, on one thread, as a multiple of all views without: 3.7 for bytes of 3 channels and
3.9 for 12 channels of uint16 (2 x 224 + 8 x 96, cubic), 1.9 for volumes (2 x 96^3 + 8 x 48^3, linear). Rows that are not turned cost
nothing more on a CPU; an accelerator renders both and chooses.

Shapes: n rows, C channels, S output pixels, K canvas pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.policy import ViewPolicy
from dinodomain.views.boxes import canvas
from dinodomain.views.draw import GroupParams, ViewParams
from dinodomain.views.matmul import Matmul
from dinodomain.views.normalise import constants
from dinodomain.views.warp import Banded, Tiles, Warp


class Turned:
    """A warp of rows some of which are turned."""

    def __init__(self, plain: Warp, group: GroupParams, params: ViewParams, extent: Sequence[int]) -> None:
        """Prepares a group.

        Args:
            plain: Renders rows whose angle is 0.
            group: Its rows.
            params: Those of the batch; its policy has ``rotation``.
            extent: Pixels of a tile along each axis.
        """
        size = canvas_size(params.policy, group.size)
        shape = (*(group.size,) * (len(extent) - 2), size, size)
        self._group, self._mode = group, "bicubic" if params.filter == "cubic" else "bilinear"
        self._boxes = canvas_boxes(group, extent)
        upright = _upright(group, self._boxes, shape)
        kind: type[Banded | Matmul] = Banded if group.boxes.device.type == "cpu" else Matmul
        self._plain, self._canvas = plain, kind(upright, params, shape)

    def __call__(self, tiles: Tiles, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """See ``Warp``. On a CPU each row goes one way; elsewhere, where the host does not know the angles, both, and one is taken."""
        still = self._group.angle[start:stop] == 0
        if still.device.type != "cpu":
            (plain, plain_weight), (turned, weight) = self._plain(tiles, start, stop), self._turn(tiles, start, stop)
            both = None if plain_weight is None or weight is None else _either(still, plain_weight, weight)
            return _either(still, plain, turned), both
        ways = [self._plain if one else self._turn for one in still.tolist()]
        rows = [way(tiles, row, row + 1) for row, way in enumerate(ways, start)]
        weights = [weight for _, weight in rows if weight is not None]
        return torch.cat([stored for stored, _ in rows]), torch.cat(weights) if weights else None

    def _turn(self, tiles: Tiles, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        stored, weight = self._canvas(tiles, start, stop)
        group = self._group.rows(start, stop)
        grid = sampling_grid(group, self._boxes[start:stop])
        return self._sample(stored, grid), None if weight is None else self._sample(weight, grid)

    def _sample(self, x: Tensor, grid: Tensor) -> Tensor:
        """[n, C, (S,) K, K] to [n, C, (S,) S, S]."""
        planes = x.reshape(len(x), -1, *x.shape[-2:])
        out = F.grid_sample(planes, grid, mode=self._mode, padding_mode="border", align_corners=False)
        return out.reshape(*x.shape[:-2], *out.shape[-2:])


def _either(still: Tensor, plain: Tensor, turned: Tensor) -> Tensor:
    return torch.where(still.reshape(-1, *(1,) * (plain.ndim - 1)), plain, turned)


def canvas_size(policy: ViewPolicy, size: int) -> int:
    """K: side of the canvas, from the largest angle that the policy allows."""
    assert policy.rotation is not None
    return canvas(size, max(map(abs, policy.rotation.degrees)))


def canvas_boxes(group: GroupParams, extent: Sequence[int]) -> Tensor:
    """[N, D, 2] float64 smallest upright boxes around the turned crops, inside the tile; edges are fractional."""
    boxes, limit = group.boxes.double(), constants(tuple(extent), group.boxes.device)
    growth = (group.angle.double().cos().abs() + group.angle.double().sin().abs())[:, None]
    middle, half = boxes.mean(dim=-1), (boxes[..., 1] - boxes[..., 0]) / 2
    half = torch.cat([half[:, :-2], half[:, -2:] * growth], dim=1)
    low, high = (middle - half).clamp_min(0.0), (middle + half).minimum(limit)
    return torch.stack([low, high], dim=-1)


def _upright(group: GroupParams, boxes: Tensor, shape: Sequence[int]) -> GroupParams:
    """The canvases' own parameters: blur in canvas pixels; flips and turns in the plane come later."""
    size = constants(tuple(shape), boxes.device)
    coarser = (group.boxes.double().diff(dim=-1) / group.size)[..., 0] / (boxes.diff(dim=-1)[..., 0] / size)
    flips = torch.cat([group.flips[:, :-2], torch.zeros_like(group.flips[:, -2:])], dim=1)
    sigma = (group.sigma * coarser).float()
    return replace(group, boxes=boxes, flips=flips, transpose=torch.zeros_like(group.transpose), sigma=sigma)


def sampling_grid(group: GroupParams, boxes: Tensor) -> Tensor:
    """Where each output pixel lies in its canvas: the map of ``geometry.to_tile``, in the plane.

    Args:
        group: Of n rows.
        boxes: [n, D, 2] canvases.

    Returns:
        [n, S, S, 2] float32 column and row, -1..1 from edge to edge.
    """
    line = torch.arange(group.size, device=boxes.device, dtype=torch.float64) - (group.size - 1) / 2
    rows, columns = line[None, :, None], line[None, None, :]
    turn = group.transpose[:, None, None]
    sign = torch.where(group.flips[:, -2:], -1.0, 1.0).double()
    rows, columns = torch.where(turn, columns, rows) * sign[:, 0, None, None], torch.where(turn, rows, columns) * sign[:, 1, None, None]
    cos, sin = group.angle.double().cos()[:, None, None], group.angle.double().sin()[:, None, None]
    own = group.boxes.double()
    places = []
    for axis, offset in ((-1, cos * columns - sin * rows), (-2, cos * rows + sin * columns)):
        step, centre = (own[:, axis, 1] - own[:, axis, 0]) / group.size, own[:, axis].mean(dim=-1)
        low, high = boxes[:, axis, 0], boxes[:, axis, 1]
        scale, shift = 2 * step / (high - low), 2 * (centre - low) / (high - low) - 1
        places.append(offset * scale[:, None, None] + shift[:, None, None])
    return torch.stack(places, dim=-1).float()
