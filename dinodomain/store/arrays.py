"""Writes one sharded Zarr v3 array chunk row by chunk row: equal input gives equal bytes, and a file is whole or absent.

Shards are appended in the order in which chunks arrive and closed when full, so a scene of any size needs one row of chunks in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from dinodomain.lineage import canonical, write_bytes
from dinodomain.store.codec import MISSING, array_metadata, encode, encode_index, shuffle_of
from dinodomain.store.format import Codec, Grid, check_dtype


class ShardFile:
    """A shard under a temporary name, appended to until ``finish`` renames it.

    Args:
        path: Final path.
        cells: Inner chunks per axis.
    """

    def __init__(self, path: Path, cells: tuple[int, ...]) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        self.index = np.full((*cells, 2), MISSING, dtype="<u8")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = open(self._temporary, "wb")  # noqa: SIM115 - closed by finish or discard: its life spans many writes
        self._offset = 0

    def append(self, cell: tuple[int, ...], data: bytes) -> None:
        """Adds the encoded inner chunk at position ``cell`` of this shard."""
        self._handle.write(data)
        self.index[cell] = self._offset, len(data)
        self._offset += len(data)

    def finish(self) -> bytes:
        """Writes the index and moves the file into place; gives the encoded index."""
        tail = encode_index(self.index)
        self._handle.write(tail)
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        os.replace(self._temporary, self._path)
        return tail

    def discard(self) -> None:
        """Removes the unfinished file."""
        with contextlib.suppress(OSError):  # what is left in the buffer may not fit on the disk: it is not wanted any more
            self._handle.close()
        self._temporary.unlink(missing_ok=True)


class ArrayWriter:
    """Writes one array; use as a context manager. ``zarr.json`` comes last, so an array without it was never finished.

    Attributes:
        grid: Shape, inner chunk and shard.
        metadata: Its ``zarr.json``.
        digest: Digest of what was written, after ``close``: over the metadata, the checksums of all chunks and the shard indexes.
    """

    def __init__(
        self, path: Path, grid: Grid, dtype: str, dims: Sequence[str], codec: Codec, attributes: Mapping[str, Any], fill_value: float
    ) -> None:
        self.grid, self.digest = grid, ""
        self._path, self._codec, self._shuffle = path, codec, shuffle_of(codec, dtype, dims)
        self._dtype = check_dtype(dtype)
        self._fill = np.full((), fill_value, dtype=self._dtype)
        self.metadata = array_metadata(grid, dtype, dims, codec, attributes, fill_value)
        self._per_shard = tuple(shard // chunk for shard, chunk in zip(grid.shard, grid.chunk))
        self._open: dict[tuple[int, ...], ShardFile] = {}
        self._left: dict[tuple[int, ...], int] = {}
        self._done: dict[str, str] = {}
        self._sums: dict[tuple[int, ...], list[str]] = {}

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        shape: Sequence[int],
        dtype: str,
        dims: Sequence[str],
        chunk: Sequence[int],
        shard: Sequence[int],
        codec: Codec = "fast",
        attributes: Mapping[str, Any] | None = None,
        fill_value: float = 0,
    ) -> Self:
        """Begins an array.

        Args:
            path: Folder of the array; must not hold one yet.
            shape: Array shape.
            dtype: One of ``format.DTYPES``.
            dims: Name of each axis.
            chunk: Inner chunk shape.
            shard: Shard shape, a multiple of ``chunk`` per axis.
            codec: Codec of the inner chunks.
            attributes: Zarr attributes.
            fill_value: Value of padding and of chunks that are not stored.
        """
        assert all(outer % inner == 0 for outer, inner in zip(shard, chunk)), f"shard {shard} is no multiple of chunk {chunk}"
        grid = Grid(shape=tuple(shape), chunk=tuple(chunk), shard=tuple(shard))
        return cls(path, grid, dtype, dims, codec, attributes or {}, fill_value)

    def write(self, start: Sequence[int], block: np.ndarray) -> None:
        """Writes a block that begins on the chunk grid and ends on it or at the edge of the array. Each chunk is written once."""
        assert block.dtype == self._dtype, f"{block.dtype} into {self._dtype}"
        for cell, inside in self._cells_of(start, block.shape):
            self._put(cell, block[inside])

    def _cells_of(self, start: Sequence[int], extent: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Cells of the chunk grid under a block, in C order, with their place in the block."""
        ranges = []
        for begin, size, side, whole in zip(start, extent, self.grid.chunk, self.grid.shape):
            stop = begin + size
            on_grid = begin % side == 0 and (stop == whole or (stop % side == 0 and stop < whole))
            assert on_grid, f"block {begin}..{stop} is off the chunk grid of {side} in {whole}"
            ranges.append(range(begin // side, -(-stop // side)))
        for cell in itertools.product(*ranges):
            places = zip(cell, start, extent, self.grid.chunk)
            yield cell, tuple(slice(i * side - begin, min((i + 1) * side - begin, size)) for i, begin, size, side in places)

    def _put(self, cell: tuple[int, ...], pixels: np.ndarray) -> None:
        shard = tuple(i // n for i, n in zip(cell, self._per_shard))
        inner = tuple(i % n for i, n in zip(cell, self._per_shard))
        file, chunk = self._shard(shard), self._padded(pixels)
        if not _is_fill(chunk, self._fill):
            data = encode(chunk, self._codec, self._shuffle)
            self._sums[shard].append(data[-4:].hex())
            file.append(inner, data)
        self._left[shard] -= 1
        if self._left[shard] == 0:
            self._finish(shard)

    def _padded(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape == self.grid.chunk:
            return np.ascontiguousarray(pixels)
        whole = np.full(self.grid.chunk, self._fill, dtype=self._dtype)
        whole[tuple(slice(0, size) for size in pixels.shape)] = pixels
        return whole

    def _shard(self, shard: tuple[int, ...]) -> ShardFile:
        if shard not in self._open:
            assert self._key(shard) not in self._done, f"shard {shard} is full already"
            self._open[shard] = ShardFile(self._path / self._key(shard), self._per_shard)
            ends = zip(shard, self._per_shard, self.grid.cells)
            self._left[shard] = int(np.prod([min(n, cells - i * n) for i, n, cells in ends]))
            self._sums[shard] = []
        return self._open[shard]

    @staticmethod
    def _key(shard: tuple[int, ...]) -> str:
        return "/".join(("c", *(str(i) for i in shard)))

    def _finish(self, shard: tuple[int, ...]) -> None:
        tail = self._open[shard].finish()
        del self._open[shard]
        self._done[self._key(shard)] = hashlib.sha256(tail + "".join(self._sums.pop(shard)).encode()).hexdigest()

    def close(self) -> str:
        """Writes the shards that nothing was put into, then ``zarr.json``; gives the digest."""
        for shard in np.ndindex(*(-(-cells // n) for cells, n in zip(self.grid.cells, self._per_shard))):
            # Every shard exists, so that a lost file is told from one that holds only fill values.
            if self._key(shard) not in self._done:
                self._shard(shard)
                self._finish(shard)
        write_bytes(self._path / "zarr.json", self.metadata)
        self.digest = hashlib.sha256(self.metadata + canonical(self._done).encode()).hexdigest()
        return self.digest

    def abort(self) -> None:
        """Removes temporary files; the array stays without ``zarr.json``."""
        for file in self._open.values():
            file.discard()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _is_fill(chunk: np.ndarray, fill: np.ndarray) -> bool:
    """Whether a contiguous chunk holds nothing but the fill value; bitwise, so that a negative zero is kept."""
    bits = f"u{chunk.dtype.itemsize}"
    found, wanted = chunk.reshape(-1).view(bits), fill.view(bits)
    return bool(found[0] == wanted) and not bool(np.any(found != wanted))  # one look at the first pixel spares most chunks the rest
