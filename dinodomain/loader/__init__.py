"""Disk to device: which tiles, in which order, read ahead of use by threads or processes.

Names are found when they are asked for: a reader process (``dinodomain.loader.worker``) loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinodomain.loader.loader import Loader, State, sweep, sweep_tiles
    from dinodomain.loader.order import Draw, Order
    from dinodomain.loader.plan import LoaderPlan
    from dinodomain.loader.tiles import Bucket, Tiles, find_tiles

_ROOMS = {
    "loader": ("Loader", "State", "sweep", "sweep_tiles"),
    "order": ("Draw", "Order"),
    "plan": ("LoaderPlan",),
    "tiles": ("Bucket", "Tiles", "find_tiles"),
}
_FILE = {name: file for file, names in _ROOMS.items() for name in names}

__all__ = ["Bucket", "Draw", "Loader", "LoaderPlan", "Order", "State", "Tiles", "find_tiles", "sweep", "sweep_tiles"]


def __getattr__(name: str) -> Any:
    if name in _FILE:
        return getattr(importlib.import_module(f"dinodomain.loader.{_FILE[name]}"), name)
    raise AttributeError(f"module 'dinodomain.loader' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
