"""Columns of ``index.parquet`` and ``chunks.parquet``, format 1.

Apart from ``format.py``, so that a process that only reads pixels loads no Arrow.
"""

from __future__ import annotations

import pyarrow as pa


def _list(item: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", item))


INDEX_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),  # sorted; a pseudonym in personal domains
        ("array", pa.string()),  # path of the zarr array below the store
        ("item", pa.int32()),  # position in a stack; -1 for window arrays
        ("layout", pa.string()),
        ("channels", _list(pa.string())),
        ("dtype", pa.string()),
        ("shape", _list(pa.int32())),  # (C, (Z,) Y, X) without padding
        ("extent", _list(pa.int32())),  # window: spatial shape of the array; whole: extent of the slot
        ("chunk", _list(pa.int32())),  # window: spatial inner chunk; whole: extent of the slot
        ("spacing", _list(pa.float64())),  # per spatial axis, NaN where unknown
        ("affine", _list(pa.float64())),
        ("original_affine", _list(pa.float64())),
        ("crs", pa.string()),
        ("scale", _list(pa.float64())),  # physical = stored * scale + offset
        ("offset", _list(pa.float64())),
        ("nodata", _list(pa.float64())),  # stored value, NaN where there is none
        ("low", _list(pa.float64())),  # 0.5 percentile of the source's valid pixels, physical
        ("high", _list(pa.float64())),  # 99.5 percentile
        ("mean", _list(pa.float64())),
        ("std", _list(pa.float64())),
        ("lon", pa.float64()),
        ("lat", pa.float64()),
        ("acquired", pa.string()),
        ("fields", pa.string()),  # JSON
        ("stages", _list(pa.string())),
        ("content_hash", pa.string()),
        ("source_digest", pa.string()),
        ("unit", pa.string()),  # "" where units are per chunk
        ("split", pa.string()),
        ("licence", pa.string()),
        ("holdout", pa.bool_()),
        ("key_path", pa.string()),
        ("key_name", pa.string()),
        ("key_stem", pa.string()),
        ("key_folder", pa.string()),
    ]
)
"""One row per source, sorted by ``source_id``; ``key_<Field>`` string columns may follow."""

CHUNK_SCHEMA = pa.schema(
    [
        ("row", pa.int32()),  # row of the index
        ("chunk", _list(pa.int32())),  # cell of the spatial chunk grid; the item for whole arrays
        ("unit", pa.string()),
        ("holdout", pa.bool_()),  # touches a held-out unit or its buffer: never trained on
        ("valid_fraction", pa.float32()),  # valid pixels / min(chunk, source) pixels
        ("acquired", pa.string()),
    ]
)
"""One row per cell of the spatial chunk grid of a window array (C order), one per item of a whole array; ordered by ``row``."""
