"""Inner chunks to bytes and back, and the Zarr v3 metadata that describes them.

An inner chunk is little-endian C-order pixels, blosc (unless codec ``none``), then a crc32c of what went before: blosc itself has no
checksum, and a flipped byte could decode to wrong pixels. Anything this file cannot describe is left to zarr-python (``array.py``).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from dinodomain.store.format import DTYPES, Codec, Grid

# Parallelism is by decode threads and by processes, each on its own chunk. Threaded blosc would also order its blocks by chance when it
# writes, so equal input would not give equal bytes; without it every call uses its own context and is safe in any thread.
blosc.use_threads = False

MISSING = 2**64 - 1
"""Offset and length of an inner chunk that holds only the fill value."""

_BLOSC: Mapping[str, tuple[str, int]] = {"fast": ("lz4", 9), "small": ("zstd", 5)}
_SHUFFLES: Mapping[str, int] = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
_CRC = struct.Struct("<I")
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_HEADER = 16


class Corrupt(Exception):
    """Bytes that are not what was written; the reader adds file and chunk."""


def crc32c(data: bytes | memoryview) -> int:
    """Castagnoli checksum (RFC 3720)."""
    # The extension refuses a memoryview but takes an array over the same bytes, without a copy.
    return int(google_crc32c.value(np.frombuffer(data, dtype=np.uint8)))


def shuffle_of(codec: Codec, dtype: str, dims: Sequence[str]) -> str:
    """The filter before the compressor that made real images smallest (see ``experiments.md``).

    lz4 knows no entropy coding, so it needs single bits put together where values are 8 bits wide or noisy in their low bits (volumes);
    in rasters and for zstd whole bytes do better.
    """
    return "bitshuffle" if codec == "fast" and (np.dtype(dtype).itemsize == 1 or "z" in dims) else "shuffle"


def encode(chunk: np.ndarray, codec: Codec, shuffle: str) -> bytes:
    """One whole inner chunk as stored, checksum included; ``shuffle`` comes from ``shuffle_of``."""
    little = np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("<"))
    if codec == "none":
        body = little.tobytes()
    else:
        name, level = _BLOSC[codec]
        body = bytes(blosc.compress(little, name.encode(), level, _SHUFFLES[shuffle]))
    return body + _CRC.pack(crc32c(body))


@dataclass(frozen=True, slots=True, kw_only=True)
class FastLayout:
    """An array that the direct reader understands.

    Attributes:
        grid: Shape, inner chunk and shard.
        dtype: Little-endian numpy dtype.
        fill: Value of missing chunks.
        compressed: Whether inner chunks are blosc frames.
        checked: Whether inner chunks end in a crc32c.
        complete: Whether every shard was written, so that a missing file is an error.
    """

    grid: Grid
    dtype: np.dtype[np.generic]
    fill: float
    compressed: bool
    checked: bool
    complete: bool


def decode(data: memoryview, out: np.ndarray, layout: FastLayout, *, verify: bool) -> None:
    """Decodes one compressed inner chunk into ``out``, a C-contiguous array of exactly one chunk.

    Raises:
        Corrupt: Checksum, length or frame is wrong.
    """
    body = _body(data, layout, verify=verify)
    _check_frame(body, out.nbytes)
    try:
        blosc.decompress(body, out)
    except RuntimeError as error:
        raise Corrupt(str(error)) from error


def view(data: memoryview, layout: FastLayout, *, verify: bool) -> np.ndarray:
    """An inner chunk that is not compressed, as an array over the stored bytes: no copy, read-only.

    Raises:
        Corrupt: Checksum or length is wrong.
    """
    body = _body(data, layout, verify=verify)
    expected = math.prod(layout.grid.chunk) * layout.dtype.itemsize
    if body.nbytes != expected:
        raise Corrupt(f"{body.nbytes} bytes where {expected} were expected")
    return np.frombuffer(body, dtype=layout.dtype).reshape(layout.grid.chunk)


def _body(data: memoryview, layout: FastLayout, *, verify: bool) -> memoryview:
    """What lies before the checksum."""
    if not layout.checked:
        return data
    body = data[: -_CRC.size]
    if verify and (data.nbytes < _CRC.size or crc32c(body) != _CRC.unpack(data[-_CRC.size :])[0]):
        raise Corrupt("its checksum differs")
    return body


def _check_frame(data: memoryview, expected: int) -> None:
    """Sizes in the blosc header (bytes 4..8 decoded, 12..16 encoded), checked before anything is written to a batch slot."""
    if data.nbytes < _HEADER:
        raise Corrupt("it is shorter than a blosc header")
    decoded, encoded = struct.unpack_from("<I4xI", data, 4)
    if decoded != expected or encoded != data.nbytes:
        raise Corrupt(f"blosc header says {decoded} bytes from {encoded}, expected {expected} from {data.nbytes}")


def encode_index(index: np.ndarray) -> bytes:
    """The index at the end of a shard: (offset, length) per inner chunk in C order, uint64, and its crc32c."""
    body = np.ascontiguousarray(index, dtype="<u8").tobytes()
    return body + _CRC.pack(crc32c(body))


def decode_index(data: bytes | memoryview, cells: Sequence[int]) -> np.ndarray:
    """[*cells, 2] uint64.

    Raises:
        Corrupt: The checksum differs.
    """
    if crc32c(data[: -_CRC.size]) != _CRC.unpack(data[-_CRC.size :])[0]:
        raise Corrupt("the checksum of the shard index differs")
    return np.frombuffer(data[: -_CRC.size], dtype="<u8").reshape(*cells, 2)


def index_bytes(cells: Sequence[int]) -> int:
    """Length of an encoded index."""
    return math.prod(cells) * 16 + _CRC.size


def array_metadata(
    grid: Grid, dtype: str, dims: Sequence[str], codec: Codec, attributes: Mapping[str, Any], fill_value: float = 0
) -> bytes:
    """``zarr.json`` of an array. Written here and not by zarr-python so that its bytes do not depend on that package's version."""
    inner: list[dict[str, Any]] = [_BYTES]
    if codec != "none":
        name, level = _BLOSC[codec]
        options = {
            "cname": name,
            "clevel": level,
            "shuffle": shuffle_of(codec, dtype, dims),
            "typesize": np.dtype(dtype).itemsize,
            "blocksize": 0,
        }
        inner.append({"name": "blosc", "configuration": options})
    sharding = {
        "chunk_shape": list(grid.chunk),
        "codecs": [*inner, {"name": "crc32c"}],
        "index_codecs": [_BYTES, {"name": "crc32c"}],
        "index_location": "end",
    }
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(grid.shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(grid.shard)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": float(fill_value) if dtype == "float32" else int(fill_value),
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {**attributes, "dinodomain": {**attributes.get("dinodomain", {}), "every_shard_written": True}},
            "dimension_names": list(dims),
            "storage_transformers": [],
        }
    )


def plain_metadata(
    shape: Sequence[int], data_type: str, dims: Sequence[str], codec: Mapping[str, Any], attributes: Mapping[str, Any], fill_value: object
) -> bytes:
    """``zarr.json`` of a small array that is one chunk without compression."""
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": data_type,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill_value,
            "codecs": [dict(codec)],
            "attributes": dict(attributes),
            "dimension_names": list(dims),
            "storage_transformers": [],
        }
    )


def group_metadata(attributes: Mapping[str, Any], members: Mapping[str, bytes] | None = None) -> bytes:
    """``zarr.json`` of a group.

    Args:
        attributes: Zarr attributes.
        members: ``zarr.json`` of each array in it, to be repeated as consolidated metadata: a reader then opens the group with one
            request and without listing it.
    """
    group = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if members:
        metadata = {name: json.loads(text) for name, text in members.items()}
        group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    return _json(group)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_layout(metadata: Mapping[str, Any]) -> FastLayout | None:
    """The layout of an array that the direct reader can read, or None, which means: use zarr-python."""
    sharding = _only_sharding(metadata)
    if sharding is None or metadata["data_type"] not in DTYPES or not isinstance(metadata["fill_value"], (int, float)):
        return None
    names = [codec["name"] for codec in sharding["codecs"]]
    if names[0] != "bytes" or names[1:] not in ([], ["blosc"], ["crc32c"], ["blosc", "crc32c"]):
        return None
    if any(codec.get("configuration", {}).get("endian") == "big" for codec in (sharding["codecs"][0], sharding["index_codecs"][0])):
        return None
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    shard = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    own = metadata.get("attributes", {}).get("dinodomain", {})
    return FastLayout(
        grid=Grid(shape=tuple(metadata["shape"]), chunk=tuple(sharding["chunk_shape"]), shard=shard),
        dtype=dtype,
        fill=metadata["fill_value"],
        compressed="blosc" in names,
        checked="crc32c" in names,
        complete=bool(own.get("every_shard_written", False)),
    )


def _only_sharding(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The configuration of the sharding codec where grid, keys and index are the plain ones."""
    codecs, keys = metadata["codecs"], metadata["chunk_key_encoding"]
    plain_keys = keys["name"] == "default" and keys.get("configuration", {}).get("separator", "/") == "/"
    if metadata["chunk_grid"]["name"] != "regular" or not plain_keys or metadata.get("storage_transformers"):
        return None
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return None
    sharding: Mapping[str, Any] = codecs[0]["configuration"]
    plain_index = [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"]
    return sharding if plain_index and sharding.get("index_location", "end") == "end" else None
