"""Opens a store and reads boxes of its sources into given buffers.

Boxes are in array pixels, channels first: [C, (Z,) Y, X]. A ``Store`` is safe in threads and cheap to open in several processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinodomain.errors import UserError
from dinodomain.lineage import digest, digest_file
from dinodomain.store.format import CHUNKS, FORMAT, INDEX, LINEAGE, MANIFEST, PENDING
from dinodomain.store.open_arrays import Address, OpenArrays
from dinodomain.store.summary import ChannelSummary, summarise

Json = Any


def open_store(path: str | Path) -> Store:
    """Opens a store for reading.

    Args:
        path: The store's folder.

    Raises:
        UserError: It is no store, is half written, was written by a newer version, or its tables were altered.
    """
    root = Path(path)
    # A withdrawal holds from the moment its tables are there, whatever is left to be done to the pixels.
    tables = root / PENDING if (root / PENDING / MANIFEST).is_file() else root
    manifest = _manifest(tables)
    for name, expected in manifest["digests"].items():
        if not (tables / name).is_file() or digest_file(tables / name) != expected:
            raise UserError(str(tables / name), "is missing or not what the manifest says", remedy="restore the file, or ingest again")
    index, chunks = _table(tables / INDEX), _table(tables / CHUNKS)
    lineage = json.loads((tables / LINEAGE).read_bytes())
    return Store(root, manifest, index, chunks, lineage)


def _table(path: Path) -> pa.Table:
    """Not by ``pq.read_table``: its dataset layer loads pandas, a third of a second and 60 MB in every process that opens a store."""
    with pq.ParquetFile(path, memory_map=False) as file:
        return file.read()


def _manifest(root: Path) -> dict[str, Json]:
    """The manifest, checked for format."""
    if not root.is_dir():
        raise UserError(str(root), "is no folder", allowed="the folder of a store", remedy="make one with `dinodomain ingest`")
    if not (root / MANIFEST).is_file():
        raise UserError(str(root), f"has no {MANIFEST}: no store, or one that was never finished",
                        remedy="run the same `dinodomain ingest` again: it goes on where it stopped")  # fmt: skip
    try:
        manifest: dict[str, Json] = json.loads((root / MANIFEST).read_bytes())
        found = int(manifest["format"])
        manifest["digests"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(str(root / MANIFEST), f"is not a manifest ({error!r})", remedy="restore the file, or ingest again") from error
    if found != FORMAT:
        remedy = "upgrade dinodomain" if found > FORMAT else "ingest again"
        raise UserError(str(root), f"has store format {found}", allowed=str(FORMAT), remedy=remedy)
    return manifest


class Store:
    """An opened store; see ``open_store``.

    Attributes:
        path: Its folder.
        manifest: Plain values of ``manifest.json``.
        index: One row per source, sorted by ``source_id`` (``schema.INDEX_SCHEMA``).
        chunks: One row per chunk or whole image (``schema.CHUNK_SCHEMA``).
        lineage: Plain values of ``lineage.json``.
        digest: Digest of index and chunk table: two stores with the same digest hold the same tiles.
        domain: Entry-point name of its domain.
        ndim: Number of spatial axes.
        arrays: Its open arrays.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Json], index: pa.Table, chunks: pa.Table, lineage: Mapping[str, Json]) -> None:
        self.path, self.manifest, self.index, self.chunks, self.lineage = path, manifest, index, chunks, lineage
        self.digest = digest([manifest["digests"][INDEX], manifest["digests"][CHUNKS]])
        self.domain, self.ndim = str(manifest["domain"]), int(manifest["ndim"])
        self._paths, self._items = index["array"].to_pylist(), index["item"].to_pylist()
        self._shapes = index["shape"].to_pylist()
        self.arrays = OpenArrays()

    def __len__(self) -> int:
        return int(self.index.num_rows)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Names of all channels of the store, in order of first appearance."""
        return tuple(self.index["channels"].combine_chunks().flatten().unique().to_pylist())

    def column(self, name: str) -> np.ndarray:
        """One column of the index, a value per source; list columns give arrays of lists.

        Raises:
            UserError: There is no such column.
        """
        if name not in self.index.column_names:
            raise UserError("column", f"the index has no {name!r}", allowed=", ".join(self.index.column_names))
        values = self.index[name]
        if pa.types.is_list(values.type):
            out = np.empty(len(values), dtype=object)
            out[:] = values.to_pylist()
            return out
        found: np.ndarray = values.to_numpy()
        return found

    def row(self, row: int) -> dict[str, Json]:
        """All columns of one source."""
        found: dict[str, Json] = self.index.slice(row, 1).to_pylist()[0]
        return found

    def read_box(self, row: int, start: Sequence[int], out: np.ndarray) -> None:
        """Decodes the box of a source that begins at ``start`` straight into ``out``; 0 outside the array.

        Args:
            row: Row of the index.
            start: First pixel per spatial axis; for whole images in their slot.
            out: [C, (Z,) Y, X] buffer in the stored dtype, for example one slot of a batch.

        Raises:
            UserError: A file is damaged; names file and chunk.
        """
        self.arrays.read(self.address(row, start), out)

    def read_valid(self, row: int, start: Sequence[int], out: np.ndarray) -> bool:
        """Reads the bit field (0 valid) of the same box into ``out``.

        Args:
            row: Row of the index.
            start: First pixel per spatial axis.
            out: [(Z,) Y, X] uint8.

        Returns:
            Whether the array has such a field; ``out`` is zeroed where it has none.
        """
        address = self.valid_address(row, start)
        if address is None:
            out[...] = 0
            return False
        self.arrays.read(address, out)
        return True

    def address(self, row: int, start: Sequence[int]) -> Address:
        """Where the box of a source that begins at ``start`` (one value per spatial axis) lies."""
        item, shape = self._items[row], self._shapes[row]
        lead = (item, 0) if item >= 0 else () if shape[0] == 1 and len(shape) == 4 else (0,)
        return self._location(row), (*lead, *start)

    def valid_address(self, row: int, start: Sequence[int]) -> Address | None:
        """The same for the ``valid`` field; None where the array has none, which means that every pixel is valid."""
        location, item = f"{self._location(row).rpartition('/')[0]}/valid", self._items[row]
        return (location, (item, *start) if item >= 0 else tuple(start)) if self.arrays.exists(location) else None

    def has_valid(self, row: int) -> bool:
        """Whether the array of this source has a ``valid`` field."""
        return self.valid_address(row, ()) is not None

    def valid_box(self, row: int, start: Sequence[int], extent: Sequence[int]) -> np.ndarray:
        """[D, 2] int64 start and stop of real pixels inside a box, in box coordinates."""
        sizes = np.asarray(self._shapes[row][1:])
        ends = np.stack([-np.asarray(start), sizes - np.asarray(start)], axis=1)
        clipped: np.ndarray = np.clip(ends, 0, np.asarray(extent)[:, None]).astype(np.int64)
        return clipped

    def stats(self) -> Mapping[str, ChannelSummary]:
        """(mean, std, low, high) per channel in physical units over training units: held-out tiles are left out. Computed once.

        Raises:
            UserError: Nothing is left to measure.
        """
        return self._stats

    @cached_property
    def _stats(self) -> Mapping[str, ChannelSummary]:
        return summarise(self)

    def chunk_shape(self, row: int) -> tuple[int, ...]:
        """Spatial inner chunk of a window array, slot extent of a whole image."""
        return tuple(self.index["chunk"][row].as_py())

    def _location(self, row: int) -> str:
        return f"{self.path}/{self._paths[row]}"
