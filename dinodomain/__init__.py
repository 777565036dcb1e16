"""dinodomain: pretrain, fine-tune, audit and export DINO-family backbones on your own scans and scenes."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# PEP 562: names are found when they are asked for, so that `import dinodomain` loads no torch.
_OFFERED = (
    "audit", "doctor", "embed", "export", "finetune", "ingest", "inspect", "load", "open_store", "pretrain", "probe", "properties", "views",
)  # fmt: skip
__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    if name in _OFFERED:
        return getattr(importlib.import_module("dinodomain.api"), name)
    raise AttributeError(f"module 'dinodomain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Room(ModuleType):
    """A room named like its verb: ``dinodomain.audit`` is a package, and calling it is the verb."""

    def __call__(self, *plan: Any, **keys: Any) -> Any:
        verb = getattr(importlib.import_module("dinodomain.api"), self.__name__.rpartition(".")[2])
        return verb(*plan, **keys)


def callable_room(name: str) -> None:
    """Makes a room that shares its name with a verb callable; importing a subpackage would hide the function otherwise."""
    sys.modules[name].__class__ = _Room
