"""Opens a store and reads boxes of its sources into given buffers.

Boxes are in array pixels, channels first: [C, (Z,) Y, X]. A ``Store`` is safe in threads and cheap to open in several processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinodomain.errors import UserError
from dinodomain.lineage import digest
from dinodomain.store.fields import NONE, UNKNOWN, fields_of
from dinodomain.store.format import CHUNKS, INDEX
from dinodomain.store.load import load_tables
from dinodomain.store.open_arrays import Address, OpenArrays
from dinodomain.store.place import below, is_mix, is_remote, location_of, shown
from dinodomain.store.summary import ChannelSummary, summarise

Json = Any


def open_store(path: str | Path, *, mixed: bool = False) -> Store:
    """Opens a store for reading.

    Args:
        path: The store's folder, or its URL (``s3://BUCKET/KEY``, ``gs://``, ``az://``, ``https://``). Credentials come from the
            environment variables of that service.
        mixed: Take a YAML file that lists several stores, too (``mix.py``).

    Raises:
        UserError: It is no store, is half written, was written by a newer version, its tables were altered, or a server refuses.
    """
    if is_mix(path):
        if not mixed:
            raise UserError(str(path), "lists several stores, and one is wanted here", remedy="give one of them")
        from dinodomain.store.mix import open_mix  # which opens stores by way of this file

        return open_mix(path)
    location = location_of(path)
    return Store(location if is_remote(location) else path, *load_tables(location))


class Store:
    """An opened store; see ``open_store``.

    Attributes:
        location: Its absolute path, or its URL.
        manifest: Plain values of ``manifest.json``.
        index: One row per source, sorted by ``source_id`` (``schema.INDEX_SCHEMA``).
        chunks: One row per chunk or whole image (``schema.CHUNK_SCHEMA``).
        lineage: Plain values of ``lineage.json``.
        digest: Digest of index and chunk table: two stores with the same digest hold the same tiles.
        domain: Entry-point name of its domain.
        ndim: Number of spatial axes.
        arrays: Its open arrays.
        member: [n_sources] int64, which store of a mix a source comes from; zeros where this is no mix.
        shares: Share of each member in what is drawn.
    """

    def __init__(
        self,
        path: str | Path,
        manifest: Mapping[str, Json],
        index: pa.Table,
        chunks: pa.Table,
        lineage: Mapping[str, Json],
        *,
        member: np.ndarray | None = None,
        shares: Sequence[float] = (1.0,),
    ) -> None:
        """``path`` is the folder or the URL; an index may name arrays by locations of their own."""
        self.location = location_of(path)
        self._folder = Path(self.location if is_remote(str(path)) else path)
        self.manifest, self.index, self.chunks, self.lineage = manifest, index, chunks, lineage
        self.member = np.zeros(index.num_rows, dtype=np.int64) if member is None else member
        self.shares = tuple(shares)
        self.digest = digest([manifest["digests"][INDEX], manifest["digests"][CHUNKS]])
        self.domain, self.ndim = str(manifest["domain"]), int(manifest["ndim"])
        self._paths, self._items = index["array"].to_pylist(), index["item"].to_pylist()
        self._shapes = index["shape"].to_pylist()
        self.arrays = OpenArrays()
        if not is_remote(self.location):
            self.arrays.watch(self.location, manifest)

    def __len__(self) -> int:
        return int(self.index.num_rows)

    @property
    def path(self) -> Path:
        """Its folder.

        Raises:
            UserError: It lies on a server.
        """
        if is_remote(self.location):
            problem = "lies on a server; this needs the store in a folder, and what lies beside it"
            raise UserError(shown(self.location), problem, remedy="copy it to a disk")
        return self._folder

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
            Whether some pixel of the source is not valid; ``out`` is zeroed where all are.
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
        """The same for the ``valid`` field; None where every pixel of the source is valid, as the tables tell."""
        if self._fields[row] == NONE:
            return None
        location, item = f"{self._location(row).rpartition('/')[0]}/valid", self._items[row]
        if self._fields[row] == UNKNOWN and not self.arrays.exists(location):
            return None
        return location, (item, *start) if item >= 0 else tuple(start)

    @cached_property
    def _fields(self) -> np.ndarray:
        return fields_of(self.index, self.chunks)

    def has_valid(self, row: int) -> bool:
        """Whether some pixel of this source is not valid."""
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
        return below(self.location, self._paths[row])
