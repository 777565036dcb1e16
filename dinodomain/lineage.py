"""Digests and the lineage record that every artefact carries: what it was made from, by which plan, with how many samples.

Nothing here reads a clock or a host name: equal inputs give equal bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Json = Any

MOST_SHIFT_DAYS = 182
"""Dates of people move by at most so many days, either way."""

_AROUND = re.compile(r"^[\s\0\ufeff]+|[\s\0\ufeff]+$")
"""What pads identifiers: blanks of any script, NULs, byte order marks."""


_PLAIN = frozenset((str, int, bool, type(None)))


def to_json(value: Any) -> Json:
    """Dataclasses, tuples, paths and numpy scalars as plain JSON values; NaN becomes None, so that the text stays valid JSON.

    Fields whose metadata say ``recorded: False`` are left out.
    """
    if type(value) in _PLAIN:  # most values by far: an ingest writes millions of them
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value) if item.metadata.get("recorded", True)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def canonical(value: Any) -> str:
    """One text per value: sorted keys, no spaces."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 hex digest of a plain value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """sha256 hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_hash(pixels: np.ndarray, channels: tuple[str, ...]) -> str:
    """sha256 over dtype, shape, channel names and stored pixels: the same pixels are the same wherever they lie.

    Pixels are taken line by line, every channel of line 0 of the first spatial axis, then of line 1 ... (band interleaved by line). Unlike
    plain C order this can be streamed from a source of any size in slabs of any height, so chunking never changes it; with one channel
    the two are equal.

    Args:
        pixels: [C, ...] in the stored dtype.
        channels: Channel names.
    """
    return ContentHash(pixels.dtype.str[1:], pixels.shape, channels).update(pixels).hexdigest()


class ContentHash:
    """The running form of ``content_hash`` for sources that are read in slabs of lines.

    Args:
        dtype: Kind and item size, for example ``u2``.
        shape: (C, ...) of the whole source.
        channels: Channel names.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], channels: tuple[str, ...]) -> None:
        self._hash = hashlib.sha256(canonical([dtype, list(shape), list(channels)]).encode())

    def update(self, pixels: np.ndarray) -> ContentHash:
        """Adds the next slab [C, lines, ...]."""
        little = np.moveaxis(pixels, 0, 1).astype(pixels.dtype.newbyteorder("<"), copy=False)
        self._hash.update(np.ascontiguousarray(little).data)
        return self

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


def tile_id(content: str, index: int) -> int:
    """64-bit id of a tile as a signed integer (torch has no uint64 arithmetic): hash of content hash and tile index."""
    raw = hashlib.blake2b(f"{content}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "little", signed=True)


def clean_id(value: str) -> str:
    """An identifier without blanks and NULs around it (DICOM pads values with both); nothing inside it is touched or guessed."""
    return _AROUND.sub("", value)


def _bytes(value: str) -> bytes:
    """A cleaned identifier; file names that are not UTF-8 keep their own bytes."""
    return clean_id(value).encode("utf-8", "surrogateescape")


def pseudonym(secret: bytes, value: str) -> str:
    """HMAC-SHA256 of a cleaned identifier under the store's secret, 32 hex digits; equal values give equal pseudonyms."""
    return hmac.new(secret, _bytes(value), hashlib.sha256).hexdigest()[:32]


def date_shift(secret: bytes, unit: str) -> int:
    """Days by which all dates of one unit are moved: -182 to 182 without 0, the same in every store of one secret."""
    raw = hmac.new(secret, b"date shift\0" + _bytes(unit), hashlib.sha256).digest()
    drawn = int.from_bytes(raw[:8], "big") % (2 * MOST_SHIFT_DAYS) - MOST_SHIFT_DAYS
    return drawn + (drawn >= 0)


def share_of(secret: bytes, unit: str) -> float:
    """A number in [0, 1) that depends on the secret and the unit only; decides the audit holdout."""
    raw = hmac.new(secret, b"audit-holdout\0" + unit.encode(), hashlib.sha256).digest()
    return int.from_bytes(raw[:8], "big") / 2**64


def fingerprint(secret: bytes) -> str:
    """What a store keeps of its secret: enough to refuse another one, not enough to find it."""
    return hashlib.sha256(b"dinodomain-secret\0" + secret).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What an artefact was made from.

    Attributes:
        kind: ``store``, ``run``, ``checkpoint``, ``features``, ``report`` or ``export``.
        parents: Digest of each artefact it was made from, by role (``store``, ``checkpoint`` ...).
        plan: The resolved plan, as plain values.
        counts: Numbers of sources, units and samples drawn.
        versions: Package versions that shaped the result.
        history: Lineage records of the parents, so that one file answers "what data shaped this".
    """

    kind: str
    parents: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Json] = field(default_factory=dict)
    counts: Mapping[str, Json] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Mapping[str, Json], ...] = ()

    def as_json(self) -> dict[str, Json]:
        """Plain values, with the record's own digest."""
        body: dict[str, Json] = to_json(self)
        return {**body, "digest": digest(body)}


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Writes a whole file or none: temporary name, fsync, rename, fsync of the folder; ``mode`` is cut by the process's umask."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    write_bytes(path, (json.dumps(to_json(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
