"""Open arrays and shards by location: what a ``Store`` and the reader processes share. Loads no Arrow and no torch."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dinodomain.store.cache import Cache
from dinodomain.store.format import MANIFEST
from dinodomain.store.place import is_remote
from dinodomain.store.reader import ArrayReader, open_array
from dinodomain.store.shard import Guard, Shard

if TYPE_CHECKING:
    from dinodomain.store.ranges import RemoteReads

__all__ = ["Address", "OpenArrays", "fitted", "is_remote"]

Address = tuple[str, tuple[int, ...]]
"""Where a box begins: location of the array (absolute path or URL), first pixel along each of its axes. Small and picklable: reader
processes are sent these."""

_ARRAYS = 4096


class OpenArrays:
    """Reads boxes of arrays by location, and keeps the arrays and shards used last open; safe in threads.

    Args:
        requests: Most requests in flight, for arrays on servers.
        guards: Of the stores that were opened; where a store has none, what lies there when its first array is opened is taken for it.

    Attributes:
        guards: Root of a store to what notices withdrawals from it.
    """

    def __init__(self, requests: int = 32, guards: Mapping[str, Guard] | None = None) -> None:
        self._requests = requests
        self._arrays: Cache[ArrayReader] = Cache(_ARRAYS)
        self._present: Cache[bool] = Cache(_ARRAYS)
        self.guards: dict[str, Guard] = dict(guards or {})
        # Each mapping holds a file descriptor; half of what the system allows is left to others.
        self._shards: Cache[Shard | None] = Cache(max(16, min(_ARRAYS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)))

    def exists(self, location: str) -> bool:
        """Whether an array lies there."""
        if is_remote(location):
            return self._remote.exists(location)
        return self._present.get(location, lambda: Path(location).is_dir())

    def read(self, address: Address, out: np.ndarray) -> None:
        """Decodes the box that begins at ``address`` straight into ``out``; pixels outside the array are 0.

        Args:
            address: Location and start, see ``Store.address``.
            out: The array's dtype; leading axes that a source lacks (the slot of a stack, the one channel of a volume) are fitted.

        Raises:
            UserError: A file is damaged or was changed since it was opened, or a server does not give it; names file and chunk.
        """
        location, start = address
        if is_remote(location):
            self._remote.read_many([(location, start, fitted(out, len(start)))])
            return
        array = self._arrays.get(location, partial(self._open, Path(location)))
        array.read(start, fitted(out, len(start)))

    def read_many(self, items: Iterable[tuple[Address, np.ndarray]]) -> None:
        """``read`` for each; of arrays on servers, requests for all of them are in flight together."""
        remote = []
        for address, out in items:
            if is_remote(address[0]):
                remote.append((*address, fitted(out, len(address[1]))))
            else:
                self.read(address, out)
        if remote:
            self._remote.read_many(remote)

    def close(self) -> None:
        """Ends the threads that ask servers."""
        if "_remote" in self.__dict__:
            self._remote.close()

    def watch(self, root: str, manifest: Mapping[str, object]) -> None:
        """Notices when sources are withdrawn from the store in a folder, which was opened with this manifest."""
        self.guards[root] = Guard(Path(root), manifest)

    @cached_property
    def _remote(self) -> RemoteReads:
        from dinodomain.store.ranges import RemoteReads  # a process that reads files is up sooner without

        return RemoteReads(self._requests)

    def _open(self, path: Path) -> ArrayReader:
        root = next((folder for folder in path.parents if (folder / MANIFEST).is_file()), None)
        if root is None:
            return open_array(path, self._shards)
        if str(root) not in self.guards:
            self.guards.setdefault(str(root), Guard(root))
        return open_array(path, self._shards, self.guards[str(root)].check)


def fitted(out: np.ndarray, axes: int) -> np.ndarray:
    """``out`` with a leading axis of length 1 added or taken away, so that it has as many axes as its array."""
    if out.ndim == axes:
        return out
    assert abs(out.ndim - axes) == 1, f"a buffer of {out.ndim} axes for an array of {axes}"
    return out[None] if out.ndim < axes else out[0]
