"""Masks that people drew, read beside the store: which patches of a tile they cover. Labels never enter a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.domain import Domain
from dinodomain.errors import BadSource, UserError, require
from dinodomain.ingest import join_labels
from dinodomain.properties.scene import Picture, Scene
from dinodomain.types import Select

COLUMN = "mask"
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


class Masks:
    """Masks of the sources of a scene's store; empty where none were given.

    Args:
        scene: Its plan names the CSV.

    Raises:
        UserError: The CSV cannot be joined.
    """

    def __init__(self, scene: Scene) -> None:
        plan = scene.plan
        self._domain, self._paths, self._made = scene.domain, dict[int, str](), dict[tuple[int, ...], np.ndarray]()
        self._shapes = scene.store.column("shape")
        if plan.masks is not None:
            labels = join_labels(scene.store, plan.masks, plan.join, COLUMN, secret=plan.secret)
            base = Path(plan.masks).parent
            self._paths = {int(row): str(base / str(value)) for row, value in zip(labels.rows, labels.values)}

    def __bool__(self) -> bool:
        return bool(self._paths)

    def of(self, tile: Picture) -> np.ndarray | None:
        """[P] bool, patches with data of which at least half is mask; None where the tile's source has no mask.

        Raises:
            UserError: The file cannot be read, or is not of the source's size.
        """
        if tile.row not in self._paths:
            return None
        key = (tile.row, *tile.start, *tile.extent, *tile.grid)
        if key not in self._made:
            self._made[key] = self._read(tile) & tile.valid
        return self._made[key]

    def _read(self, tile: Picture) -> np.ndarray:
        path, shape = self._paths[tile.row], tuple(self._shapes[tile.row][1:])
        whole = _read(path, self._domain)
        if whole.shape != shape:
            problem = f"is {'x'.join(map(str, whole.shape))} pixels, the image in the store {'x'.join(map(str, shape))}"
            raise UserError(path, problem, remedy="give masks on the grid of their images")
        box = np.zeros(tile.extent, np.float32)
        cut = whole[tuple(slice(begin, begin + side) for begin, side in zip(tile.start, tile.extent))]
        box[tuple(slice(0, side) for side in cut.shape)] = cut
        found: np.ndarray = _shares(torch.from_numpy(box), tile.grid).flatten().numpy() >= 0.5
        return found


def _shares(box: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[*size] 0 or 1 to [*grid] share of ones."""
    one, *rest = grid
    if not rest:
        return F.adaptive_avg_pool1d(box[None], one)[0]
    apart = torch.stack([_shares(part, tuple(rest)) for part in box])
    return F.adaptive_avg_pool1d(apart.flatten(1).T[None], one)[0].T.reshape(one, *rest)


def _read(path: str, domain: Domain) -> np.ndarray:
    """[*size] bool, in the axes that a store would hold the file in: medical volumes are turned as their images are."""
    if not Path(path).is_file():
        raise UserError(path, "is not there", remedy=f"give paths in column {COLUMN!r} relative to the CSV")
    if path.endswith(".npy"):
        return np.asarray(np.load(path, allow_pickle=False) > 0)
    if path.lower().endswith(_PICTURES):
        image = require("PIL.Image", extra="all", wanted_by="masks")
        with image.open(path) as opened:
            return np.asarray(opened.convert("L") if opened.mode not in ("P", "1", "L") else opened) > 0
    if path.lower().endswith((".tif", ".tiff")) and domain.ndim == 2:
        return _raster(path)
    return _by_domain(path, domain)


def _raster(path: str) -> np.ndarray:
    """A raster of one band as it is: bands of a mask are none of a sensor's."""
    rasterio = require("rasterio", extra="remote-sensing", wanted_by="masks in GeoTIFF")
    with rasterio.open(path) as opened:
        if opened.count != 1:
            raise UserError(path, f"holds {opened.count} bands", allowed="a mask of one band, 0 is background")
        return np.asarray(opened.read(1) > 0)


def _by_domain(path: str, domain: Domain) -> np.ndarray:
    # Named by itself, because readers pass over what looks like a label map.
    for found in domain.discover(path, Select(include=(Path(path).name,))):
        if isinstance(found, BadSource):
            raise UserError(path, str(found))
        record = domain.read(found)
        whole = tuple(slice(0, side) for side in record.shape[1:])
        return np.asarray(record.read(whole)[0] > 0)
    raise UserError(path, f"is no file that the domain {domain.name} reads", allowed=".npy, PNG, GeoTIFF, or a format of the domain")
