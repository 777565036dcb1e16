"""Open arrays and shards by location: what a ``Store`` and the reader processes share. Loads no Arrow and no torch."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np

from dinodomain.store.cache import Cache
from dinodomain.store.reader import ArrayReader, open_array
from dinodomain.store.shard import Shard

Address = tuple[str, tuple[int, ...]]
"""Where a box begins: location of the array, first pixel along each of its axes. Small and picklable: reader processes are sent these."""

_ARRAYS = 4096


class OpenArrays:
    """Reads boxes of arrays by location, and keeps the arrays and shards used last open; safe in threads."""

    def __init__(self) -> None:
        self._arrays: Cache[ArrayReader] = Cache(_ARRAYS)
        self._present: Cache[bool] = Cache(_ARRAYS)
        # Each mapping holds a file descriptor; half of what the system allows is left to others.
        self._shards: Cache[Shard | None] = Cache(max(16, min(_ARRAYS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)))

    def exists(self, location: str) -> bool:
        """Whether an array lies there."""
        return self._present.get(location, lambda: Path(location).is_dir())

    def read(self, address: Address, out: np.ndarray) -> None:
        """Decodes the box that begins at ``address`` straight into ``out``; pixels outside the array are 0.

        Args:
            address: Location and start, see ``Store.address``.
            out: The array's dtype; leading axes that a source lacks (the slot of a stack, the one channel of a volume) are fitted.

        Raises:
            UserError: A file is damaged; names file and chunk.
        """
        location, start = address
        array = self._arrays.get(location, lambda: open_array(Path(location), self._shards))
        array.read(start, fitted(out, len(start)))


def fitted(out: np.ndarray, axes: int) -> np.ndarray:
    """``out`` with a leading axis of length 1 added or taken away, so that it has as many axes as its array."""
    if out.ndim == axes:
        return out
    assert abs(out.ndim - axes) == 1, f"a buffer of {out.ndim} axes for an array of {axes}"
    return out[None] if out.ndim < axes else out[0]
