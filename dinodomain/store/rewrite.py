"""Takes whole images out of a stack for good: the one case in which a stored array is changed.

Items keep their numbers; those taken out read as fill value, in ``data`` and in ``valid``. A shard is written anew under a temporary
name and moved into place, so that a reader sees the old one or the new one; chunks without such an item are copied byte by byte. Doing
it twice does nothing more. A ``Store`` that was opened before may still map an old shard: open it again. Nothing here knows ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc

from dinodomain.errors import UserError
from dinodomain.lineage import canonical, sync_folder
from dinodomain.store.arrays import ShardFile
from dinodomain.store.codec import MISSING, Corrupt, FastLayout, crc32c, decode, decode_index, index_bytes, parse_layout, view

_SHUFFLES: Mapping[str, int] = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}

Cell = tuple[int, ...]


def clear_items(folder: Path, items: Collection[int]) -> str:
    """Overwrites whole images of a stack with the fill value.

    Args:
        folder: ``<store>/stacks/<bucket>/NNNN``.
        items: Their positions in the stack.

    Returns:
        Digest of the folder as it is then, for the manifest.

    Raises:
        UserError: A file is damaged, or was not written by this package.
    """
    for array in _arrays(folder):
        for left in array.rglob(".*.tmp"):  # of a run that was killed
            left.unlink()
        opened = _open(array)
        for key in _shards(opened.layout):
            first = key[0] * opened.layout.grid.shard[0]
            inside = {item - first for item in items if 0 <= item - first < opened.layout.grid.shard[0]}
            if inside:
                _clear(opened, key, inside)
    return folder_digest(folder)


def folder_digest(folder: Path) -> str:
    """Digest of the arrays in a folder, from what is on disk: equal to what their writers gave."""
    return "".join(_array_digest(_open(array)) for array in _arrays(folder))


def _arrays(folder: Path) -> list[Path]:
    return [folder / name for name in ("data", "0", "valid") if (folder / name / "zarr.json").is_file()]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Array:
    path: Path
    text: bytes
    metadata: Mapping[str, Any]
    layout: FastLayout

    def shard(self, key: Cell) -> Path:
        return self.path.joinpath("c", *map(str, key))


def _open(path: Path) -> _Array:
    text = (path / "zarr.json").read_bytes()
    metadata = json.loads(text)
    layout = parse_layout(metadata)
    if layout is None or not layout.checked:
        raise UserError(str(path), "was not written by dinodomain, and cannot be changed", remedy="ingest its sources into a new store")
    return _Array(path=path, text=text, metadata=metadata, layout=layout)


def _shards(layout: FastLayout) -> Iterator[Cell]:
    grid = layout.grid
    return np.ndindex(*(-(-size // side) for size, side in zip(grid.shape, grid.shard)))


def _read(array: _Array, key: Cell) -> list[tuple[Cell, bytes]]:
    """Stored chunks of a shard in the order in which they lie in the file."""
    path = array.shard(key)
    cells = tuple(outer // inner for outer, inner in zip(array.layout.grid.shard, array.layout.grid.chunk))
    try:
        data = path.read_bytes()
        index = decode_index(data[-index_bytes(cells) :], cells)
    except FileNotFoundError:
        raise _damaged(path, "the file is missing") from None
    except (Corrupt, ValueError) as error:
        raise _damaged(path, f"{error}; the file is truncated or altered") from error
    end = len(data) - index_bytes(cells)
    found = [(int(index[cell][0]), int(index[cell][1]), cell) for cell in np.ndindex(*cells) if int(index[cell][0]) != MISSING]
    if any(offset + length > end for offset, length, _ in found):
        raise _damaged(path, "its index points outside the file")
    return [(cell, data[offset : offset + length]) for offset, length, cell in sorted(found)]


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(str(path), problem, remedy="restore the file from a copy")


def _clear(array: _Array, key: Cell, items: Collection[int]) -> None:
    """Writes one shard anew; ``items`` count from its first one."""
    before = _read(array, key)
    after = [(cell, _cleared(array, key, cell, data, items)) for cell, data in before]
    if after == before:
        return
    cells = tuple(outer // inner for outer, inner in zip(array.layout.grid.shard, array.layout.grid.chunk))
    file = ShardFile(array.shard(key), cells)
    try:
        for cell, data in after:
            if data is not None:
                file.append(cell, data)
        file.finish()
    except BaseException:
        file.discard()
        raise
    sync_folder(array.shard(key).parent)


def _cleared(array: _Array, key: Cell, cell: Cell, data: bytes, items: Collection[int]) -> bytes | None:
    """A chunk without these items: itself where it holds none, None where nothing else is left."""
    side = array.layout.grid.chunk[0]
    inside = [item - cell[0] * side for item in items if 0 <= item - cell[0] * side < side]
    if not inside:
        return data
    pixels = np.empty(array.layout.grid.chunk, dtype=array.layout.dtype)
    try:
        if array.layout.compressed:
            decode(memoryview(data), pixels, array.layout, verify=True)
        else:
            pixels[...] = view(memoryview(data), array.layout, verify=True)
    except Corrupt as error:
        raise _damaged(array.shard(key), f"chunk {cell} cannot be read: {error}") from error
    fill = np.full((), array.layout.fill, dtype=array.layout.dtype)
    if all(_is_fill(pixels[item], fill) for item in inside):
        return data
    pixels[inside] = fill
    return None if _is_fill(pixels, fill) else _encoded(array, pixels)


def _is_fill(pixels: np.ndarray, fill: np.ndarray) -> bool:
    """Bitwise, as the writer tells it."""
    bits = f"u{pixels.dtype.itemsize}"
    return not bool(np.any(np.ascontiguousarray(pixels).view(bits) != fill.view(bits)))


def _encoded(array: _Array, pixels: np.ndarray) -> bytes:
    """A chunk as the array's own metadata says, which may be of an earlier version of this package."""
    codecs = array.metadata["codecs"][0]["configuration"]["codecs"]
    options = next((codec["configuration"] for codec in codecs if codec["name"] == "blosc"), None)
    body = pixels.tobytes()
    if options is not None:
        body = bytes(blosc.compress(pixels, options["cname"].encode(), options["clevel"], _SHUFFLES[options["shuffle"]]))
    return body + crc32c(body).to_bytes(4, "little")


def _array_digest(array: _Array) -> str:
    """As ``arrays.ArrayWriter`` reckons it."""
    done = {}
    cells = tuple(outer // inner for outer, inner in zip(array.layout.grid.shard, array.layout.grid.chunk))
    for key in _shards(array.layout):
        sums = "".join(data[-4:].hex() for _, data in _read(array, key))
        with open(array.shard(key), "rb") as handle:
            handle.seek(-index_bytes(cells), 2)
            tail = handle.read()
        done["/".join(("c", *map(str, key)))] = hashlib.sha256(tail + sums.encode()).hexdigest()
    return hashlib.sha256(array.text + canonical(done).encode()).hexdigest()
