"""Crops in millimetres or metres: what the store's index must say for them, and which ranges can be kept.

A crop's in-plane length is the square root of its area, so a tile's is, too; its depth is along the first axis of a volume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError
from dinodomain.loader import Tiles
from dinodomain.store import Store
from dinodomain.views import ViewsPlan

KEYS = ("global_extent", "local_extent", "global_depth", "local_depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """One kind of length of the tiles that will be trained on: ``extent`` in the plane, or ``depth`` across it.

    Attributes:
        smallest: Of the smallest tile, in the store's unit; NaN where no source has a known spacing.
        largest: Of the largest tile.
        pixel: Of the smallest pixel.
        sources: Number of sources that are drawn from.
        unknown: Number of those without a known spacing along these axes.
        first: Id of the first of them, in index order; empty where there is none.
        median: Of the tiles of the median source.
    """

    smallest: float
    largest: float
    pixel: float
    sources: int
    unknown: int = 0
    first: str = ""
    median: float = math.nan


def asked_lengths(views: ViewsPlan) -> dict[str, tuple[float, float]]:
    """The ranges in mm or m that a plan asks for, by key; those of local crops only where there are any."""
    ranges = {name: getattr(views, name) for name in KEYS if views.num_local or not name.startswith("local")}
    return {name: span for name, span in ranges.items() if span is not None}


def kind_of(key: str) -> str:
    """``extent`` or ``depth``."""
    return key.rpartition("_")[2]


def measure_lengths(store: Store, tiles: Tiles, weights: Mapping[str, float]) -> dict[str, Lengths]:
    """What the index says of the lengths of the tiles that are drawn.

    Args:
        store: Opened.
        tiles: Eligible tiles.
        weights: ``loader.weights``; tiles of a bucket of weight 0 are never drawn.

    Returns:
        ``extent`` and, for volumes, ``depth``.
    """
    drawn = np.array([weights.get(bucket.name, 1.0) > 0 for bucket in tiles.buckets])[tiles.bucket]
    rows, first = np.unique(tiles.rows[drawn], return_index=True)
    extents = tiles.extents[tiles.bucket[drawn][first]]
    shapes, spacing, ids = (store.column(name)[rows] for name in ("shape", "spacing", "source_id"))
    pixels = np.minimum(extents, np.array([shape[1:] for shape in shapes], dtype=np.int64))
    sides = pixels * np.array([list(steps) for steps in spacing], dtype=np.float64)
    sides[~(np.isfinite(sides) & (sides > 0))] = np.nan
    found = {"extent": np.sqrt(sides[:, -2] * sides[:, -1])}
    if store.ndim == 3:
        found["depth"] = sides[:, 0]
    counts = {"extent": np.sqrt(pixels[:, -2] * pixels[:, -1]), "depth": pixels[:, 0]}
    return {kind: _lengths(values, values / counts[kind], ids) for kind, values in found.items()}


def _lengths(values: np.ndarray, pixel: np.ndarray, ids: np.ndarray) -> Lengths:
    known = np.isfinite(values)
    some = known.any()
    smallest, median, largest = (values[known].min(), np.median(values[known]), values[known].max()) if some else (np.nan,) * 3
    first = "" if known.all() else str(ids[int(np.argmin(known))])
    finest = float(pixel[known].min()) if some else np.nan
    return Lengths(
        smallest=float(smallest), largest=float(largest), pixel=finest, median=float(median), sources=len(values),
        unknown=int((~known).sum()), first=first,
    )  # fmt: skip


def length_problems(views: ViewsPlan, lengths: Mapping[str, Lengths]) -> list[UserError]:
    """Ranges that this store cannot give.

    Args:
        views: The plan's.
        lengths: From ``measure_lengths``.
    """
    problems = []
    for key, span in asked_lengths(views).items():
        found = lengths.get(kind_of(key))
        if found is None:
            problems.append(UserError(f"views.{key}", "is set, images have no depth", remedy=f"leave it out; use views.{key[:-6]}_extent"))
        elif found.unknown:
            problems.append(_unknown(key, found))
        elif span[0] >= found.largest:
            where = "side of the largest tile" if kind_of(key) == "extent" else "depth of the deepest tile"
            problems.append(UserError(
                f"views.{key}", f"is {_shown(span)}, all of it beyond the {where}, {found.largest:g}: every crop would be the whole tile",
                allowed=f"a range that begins below {found.largest:g}", remedy="loader.tile takes larger tiles of volumes and scenes",
            ))  # fmt: skip
        elif span[1] < found.pixel:
            problems.append(UserError(
                f"views.{key}", f"is {_shown(span)}, less than a pixel of any tile, {found.pixel:g}", allowed=f"{found.pixel:g} or more",
                remedy="lengths are in mm for scans and in metres for scenes",
            ))  # fmt: skip
    return problems


def _unknown(key: str, found: Lengths) -> UserError:
    return UserError(
        f"views.{key}",
        f"needs the spacing of every source; {found.unknown} of {found.sources} have none, the first is {found.first!r}",
        remedy=f"use fractions (views.{key.partition('_')[0]}_scale), leave these sources out, or ingest files that state their spacing",
    )


def length_remarks(views: ViewsPlan, lengths: Mapping[str, Lengths]) -> list[str]:
    """Ranges of which a part lies beyond some tiles, which clips crops to their tile."""
    remarks = []
    for key, span in asked_lengths(views).items():
        found = lengths[kind_of(key)]
        if span[1] > found.smallest:
            always = "" if span[0] < found.smallest else ", always on the smallest"
            what = (
                "whole tiles where they would be longer" if kind_of(key) == "extent" else "as deep as their tile where they would be deeper"
            )
            remarks.append(
                f"views.{key} = {_shown(span)}: crops are {what}{always} (tiles measure {found.smallest:g} to {found.largest:g})"
            )
    return remarks


def _shown(span: tuple[float, float]) -> str:
    return f"[{span[0]:g}, {span[1]:g}]"
