"""Reads boxes of one array on disk straight into a given buffer.

Direct: shards are memory-mapped (``shard.py``), and a chunk that lies whole and contiguous in the destination is decoded in place. Any
other codec or grid goes through zarr-python, with the same results. Boxes may reach outside the array; those pixels are 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dinodomain.errors import UserError
from dinodomain.store.cache import Cache
from dinodomain.store.codec import FastLayout, parse_layout
from dinodomain.store.pieces import Cell, outside_boxes, pieces
from dinodomain.store.place import shown
from dinodomain.store.shard import Shard, damaged


class ArrayReader(Protocol):
    """One array.

    Attributes:
        shape: Array shape.
    """

    shape: tuple[int, ...]

    def read(self, start: Sequence[int], out: np.ndarray) -> None:
        """Fills ``out`` with the box that begins at ``start``.

        Raises:
            UserError: A file is damaged.
        """
        ...


class DirectArray:
    """The fast reader of one array; safe in threads.

    Args:
        path: Folder of the array.
        layout: Its layout.
        shards: Cache of open shards, shared by all arrays of a store.
        guard: Called before a shard is opened; may refuse.
    """

    def __init__(self, path: Path, layout: FastLayout, shards: Cache[Shard | None], guard: Callable[[], None] = lambda: None) -> None:
        self.shape = layout.grid.shape
        self._path, self._layout, self._shards, self._guard = path, layout, shards, guard

    def read(self, start: Sequence[int], out: np.ndarray) -> None:
        """See ``ArrayReader``."""
        assert out.dtype == self._layout.dtype, f"{out.dtype} buffer for {self._layout.dtype} pixels"
        for key, found in pieces(self._layout.grid, start, out.shape).items():
            shard = self._shards.get((self._path, key), partial(self._open, key))
            if shard is not None:
                shard.read(found, out)
            else:
                for _, target, _ in found:
                    out[target] = self._layout.fill
        for outside in outside_boxes(start, out.shape, self.shape):
            out[outside] = 0

    def _open(self, key: Cell) -> Shard | None:
        path = self._path.joinpath("c", *map(str, key))
        self._guard()
        try:
            return Shard(path, self._layout)
        except FileNotFoundError:
            if self._layout.complete:
                raise damaged(str(path), "the file is missing") from None
            return None
        except OSError as error:  # said here: reader processes pass on the words, not what kind of error it was
            raise UserError(str(path), f"cannot be read ({error.strerror})", remedy="check its permissions and the disk") from None


class ZarrArray:
    """The plain twin of ``DirectArray``: any array that zarr-python reads. Files that change while they are open go unnoticed here.

    Args:
        source: What ``zarr.open_array`` takes: the folder, or a store of an object.
        name: Of the array, for messages.
        path: Path within ``source``.
    """

    def __init__(self, source: Any, name: str, path: str = "") -> None:
        import zarr  # slow to import, and a store that this package wrote never needs it

        self._name = name
        self._array = self._try(lambda: zarr.open_array(source, path=path, mode="r"))
        self.shape = tuple(self._array.shape)

    def read(self, start: Sequence[int], out: np.ndarray) -> None:
        """See ``ArrayReader``."""
        low = [min(max(begin, 0), size) for begin, size in zip(start, self.shape)]
        high = [max(min(begin + n, size), least) for begin, n, size, least in zip(start, out.shape, self.shape, low)]
        target = out[tuple(slice(a - begin, b - begin) for a, b, begin in zip(low, high, start))] if low != high else None
        if target is not None and target.size:
            assert out.dtype == self._array.dtype.newbyteorder("="), f"{out.dtype} buffer for {self._array.dtype} pixels"
            target[...] = self._try(lambda: self._array[tuple(slice(a, b) for a, b in zip(low, high))])
        for outside in outside_boxes(start, out.shape, self.shape):
            out[outside] = 0

    def _try(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except MemoryError:
            raise
        except Exception as error:  # whatever its codecs and stores raise
            lines = str(error).splitlines() or [type(error).__name__]
            raise damaged(shown(self._name), f"zarr-python cannot read it: {lines[0][:200]}") from error


def layout_of(name: str, metadata: bytes) -> FastLayout | None:
    """What ``zarr.json`` says; None means: use zarr-python.

    Raises:
        UserError: It is damaged.
    """
    try:
        return parse_layout(json.loads(metadata))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(f"{shown(name)}/zarr.json", f"is not Zarr v3 metadata ({error!r})") from error


def open_array(path: Path, shards: Cache[Shard | None], guard: Callable[[], None] = lambda: None) -> ArrayReader:
    """The fastest reader for the array in ``path``.

    Raises:
        UserError: There is none, or its metadata is damaged.
    """
    try:
        metadata = (path / "zarr.json").read_bytes()
    except FileNotFoundError:
        guard()
        raise damaged(str(path), "holds no zarr.json") from None
    except OSError as error:
        raise UserError(str(path / "zarr.json"), f"cannot be read ({error.strerror})", remedy="check its permissions") from None
    layout = layout_of(str(path), metadata)
    return ZarrArray(str(path), str(path)) if layout is None else DirectArray(path, layout, shards, guard)
