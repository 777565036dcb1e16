"""What lies on disk: the format, its writer and its reader. No torch.

Names are found when they are asked for: a process that only reads pixels (``dinodomain.loader.worker``) loads neither Arrow nor the writer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinodomain.store.arrays import ArrayWriter
    from dinodomain.store.build import array_record, build_store
    from dinodomain.store.format import FORMAT, StorePlan, bucket_of, source_folder, stack_folder
    from dinodomain.store.open_arrays import Address, OpenArrays
    from dinodomain.store.read import Store, open_store
    from dinodomain.store.tables import chunk_table, index_columns, write_chunks, write_index, write_manifest
    from dinodomain.store.write import Whole, Written, prepare_whole, write_scene, write_stack, write_volume, written_from_json

_ROOMS = {
    "arrays": ("ArrayWriter",),
    "build": ("array_record", "build_store"),
    "format": ("FORMAT", "StorePlan", "bucket_of", "source_folder", "stack_folder"),
    "open_arrays": ("Address", "OpenArrays"),
    "read": ("Store", "open_store"),
    "tables": ("chunk_table", "index_columns", "write_chunks", "write_index", "write_manifest"),
    "write": ("Whole", "Written", "prepare_whole", "write_scene", "write_stack", "write_volume", "written_from_json"),
}
_FILE = {name: file for file, names in _ROOMS.items() for name in names}

__all__ = [
    "FORMAT",
    "Address",
    "ArrayWriter",
    "OpenArrays",
    "Store",
    "StorePlan",
    "Whole",
    "Written",
    "array_record",
    "bucket_of",
    "build_store",
    "chunk_table",
    "index_columns",
    "open_store",
    "prepare_whole",
    "source_folder",
    "stack_folder",
    "write_chunks",
    "write_index",
    "write_manifest",
    "write_scene",
    "write_stack",
    "write_volume",
    "written_from_json",
]


def __getattr__(name: str) -> Any:
    if name in _FILE:
        return getattr(importlib.import_module(f"dinodomain.store.{_FILE[name]}"), name)
    raise AttributeError(f"module 'dinodomain.store' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
