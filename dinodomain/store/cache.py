"""Values that are made on demand and kept within a bound; safe in threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_V = TypeVar("_V")


class Cache(Generic[_V]):
    """The values used last.

    Args:
        limit: Number of values that are kept.
        most: Sum of their costs that is kept.
        cost: What a value costs, for example its bytes.
    """

    def __init__(self, limit: int, *, most: int = 0, cost: Callable[[_V], int] | None = None) -> None:
        self._limit, self._most, self._cost, self._lock = limit, most, cost, threading.Lock()
        self._values: OrderedDict[Any, _V] = OrderedDict()
        self._held = 0

    def __contains__(self, key: Any) -> bool:
        with self._lock:
            return key in self._values

    def get(self, key: Any, make: Callable[[], _V]) -> _V:
        """The value of ``key``. Two threads may both make a missing one; one of the two results is kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            self._drop(key)
            self._values[key] = made
            self._held += self._cost(made) if self._cost else 0
            while len(self._values) > self._limit or (self._held > self._most and self._cost and len(self._values) > 1):
                self._drop(next(iter(self._values)))
        return made

    def _drop(self, key: Any) -> None:
        if key in self._values:
            gone = self._values.pop(key)
            self._held -= self._cost(gone) if self._cost else 0
