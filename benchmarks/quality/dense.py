"""One vector, one class and one unit for every patch of the labelled images: by a network, or the patch's own pixels.

R patches, E width, C channels, p pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dinodomain.domain import find_domain
from dinodomain.embed import encode_frozen, fit_channels, network_input, token_weights
from dinodomain.ingest import join_labels
from dinodomain.loader import LoaderPlan, sweep
from dinodomain.model import Backbone
from dinodomain.model.patch_embed import grid_of, unfold
from dinodomain.probes.frozen import column_of
from dinodomain.store import open_store
from quality.cases import Case
from quality.data import REAL, Prepared

IGNORED = -1
PER_CLASS = 1500
"""Patches of a class that are drawn for the probe, at most: background and land are most of an image."""
TISSUES = ("outside the brain", "cortex", "white matter", "deep grey matter", "ventricles and sulci", "cerebellum and brain stem")
_DEEP = (23, 30, 31, 32, 36, 37, 47, 48, 55, 56, 57, 58, 59, 60, 61, 62, 75, 76)
_FLUID = (1, 4, 11, 46, 49, 50, 51, 52)
_HIND = (35, 38, 39, 40, 41, 71, 72, 73)
_WHITE = (69, *range(81, 96))
BLOCKS = {"spain": 128, "boadella": 64}
"""Side of the ground cells that folds keep together, pixels of 10 m; the reservoir's are the same at all dates."""


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches of all labelled images that have a class.

    Attributes:
        tokens: [R, E] of the network.
        pixels: [R, C * p ** D] in the network's range.
        y: [R] class.
        units: [R] unit.
    """

    tokens: np.ndarray
    pixels: np.ndarray
    y: np.ndarray
    units: np.ndarray

    def drawn(self, seed: int) -> Patches:
        """At most ``PER_CLASS`` of each class."""
        generator = np.random.default_rng(seed)
        chosen = [generator.permutation(np.flatnonzero(self.y == one))[:PER_CLASS] for one in np.unique(self.y)]
        kept = np.sort(np.concatenate(chosen))
        y = np.unique(self.y[kept], return_inverse=True)[1].reshape(-1)
        return Patches(self.tokens[kept], self.pixels[kept], y, self.units[kept])


def patches(backbone: Backbone, case: Case, data: Prepared) -> Patches:
    """All patches that are mostly valid and have a class."""
    store, domain = open_store(data.store), find_domain(case.domain)
    backbone = fit_channels(backbone, store, domain)
    labels = join_labels(store, data.labels, "id", "file")
    plan = LoaderPlan(tile=case.tile, min_valid=0.0, batch=4)
    found: list[tuple[np.ndarray, ...]] = []
    for tile in sweep(store, plan, rows=labels.rows.tolist()):
        files = column_of(labels, tile.rows.numpy(), labels.values)
        places = column_of(labels, tile.rows.numpy(), labels.columns["unit"])
        extent = tuple(tile.pixels.shape[3:])
        shown = network_input(backbone, tile, domain, extent)
        tokens = encode_frozen(backbone, shown.pixels, shown.about).patches.numpy()
        whole = token_weights(shown.valid, backbone.patch).numpy() > 0.5
        pixels = _cells(shown.pixels.numpy(), backbone.patch)
        starts = tile.origins.numpy()
        for place, (file, unit) in enumerate(zip(files, places)):
            y, units = _classes(str(file), str(unit), starts[place], extent, backbone.patch)
            kept = whole[place] & (y != IGNORED)
            found.append((tokens[place][kept], pixels[place][kept], y[kept], units[kept]))
    return Patches(*(np.concatenate(parts) for parts in zip(*found)))


def _cells(images: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """[B, C, *size] to [B, P, C * p ** D], patches in the order of tokens."""
    cells: np.ndarray = unfold(torch.from_numpy(images), grid_of(images.shape[2:], patch), patch).flatten(2).numpy()
    return cells


def _classes(file: str, unit: str, start: np.ndarray, extent: tuple[int, ...], patch: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Class of most of the pixels of each patch of a tile, and its unit: [P] and [P]."""
    labels = label_map(REAL / _folder(file) / file)
    box = np.full(extent, IGNORED)
    part = labels[tuple(slice(low, low + side) for low, side in zip(start, extent))]
    box[tuple(slice(0, side) for side in part.shape)] = part
    cells = _cells(box[None, None], patch)[0]
    counts = np.stack([(cells == one).sum(1) for one in range(len(TISSUES))], 1)
    y = np.where(counts.max(1) * 2 > cells.shape[1], counts.argmax(1), IGNORED)
    return y, np.array(list(_units(unit, start, extent, patch)))


def _units(unit: str, start: np.ndarray, extent: tuple[int, ...], patch: tuple[int, ...]) -> Iterator[str]:
    side = BLOCKS.get(unit)
    for place in np.ndindex(*(size // one for size, one in zip(extent, patch))):
        at = [low + index * one for low, index, one in zip(start, place, patch)]
        yield unit if side is None else f"{unit} {at[0] // side} {at[1] // side}"


def _folder(file: str) -> str:
    return "ixi_t1_2mm" if "IXI" in file else "sat_multispectral"


def label_map(path: Path) -> np.ndarray:
    """Classes on the grid of the stored image: water 0 and 1, or the place in ``TISSUES``; -1 where nobody knows."""
    if path.suffix == ".tif":
        import rasterio

        with rasterio.open(path) as raster:
            water = raster.read(1).astype(int)
        return np.where((water == 0) | (water == 1), water, IGNORED)
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.load(path))  # type: ignore[attr-defined]
    regions = np.asarray(image.dataobj).astype(int).transpose(2, 1, 0)
    tissue = np.zeros_like(regions)
    tissue[regions >= 100] = 1
    for number, group in ((2, _WHITE), (3, _DEEP), (4, _FLUID), (5, _HIND)):
        tissue[np.isin(regions, group)] = number
    tissue[(regions > 0) & (tissue == 0)] = IGNORED  # vessels
    return tissue
