"""What lies on disk: the format, its writer and its reader. No torch."""

from dinodomain.store.arrays import ArrayWriter
from dinodomain.store.build import array_record, build_store
from dinodomain.store.format import FORMAT, StorePlan, bucket_of, source_folder, stack_folder
from dinodomain.store.read import Store, open_store
from dinodomain.store.tables import chunk_table, index_columns, write_chunks, write_index, write_manifest
from dinodomain.store.write import Whole, Written, prepare_whole, write_scene, write_stack, write_volume, written_from_json

__all__ = [
    "FORMAT",
    "ArrayWriter",
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
