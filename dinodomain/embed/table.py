"""Features on disk: features.parquet (one row per tile), tokens.safetensors and lineage.json, keyed by content hash.

Shapes: n tiles, E feature width, P tokens. pyarrow is imported at the point of use.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from dinodomain import lineage
from dinodomain.errors import UserError, require
from dinodomain.types import FeatureTable

FEATURES, TOKENS, LINEAGE = "features.parquet", "tokens.safetensors", "lineage.json"
FORMAT: Final = 1

_OWN = ("content_hash", "tile_id", "row", "unit", "features")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTable:
    """Patch tokens of tiles, half precision on disk and here.

    Attributes:
        tokens: ``key(content hash, tile id)`` to [*grid, E] float16, row-major over the token grid.
    """

    tokens: Mapping[str, np.ndarray]

    @staticmethod
    def key(content_hash: str, tile_id: int) -> str:
        """Name of a tile's tokens."""
        return f"{content_hash}:{tile_id}"

    def of(self, table: FeatureTable, row: int) -> np.ndarray:
        """Tokens of one row of the table that was made with them."""
        return self.tokens[self.key(str(table.content_hash[row]), int(table.tile_ids[row]))]


def save_features(
    folder: Path, table: FeatureTable, *, tokens: TokenTable | None = None, record: Mapping[str, Any] | None = None
) -> list[Path]:
    """Writes a table, its tokens and its lineage; each file whole or not at all, lineage last.

    Args:
        folder: Made if absent.
        table: n rows.
        tokens: Tokens of the same tiles.
        record: Lineage of the features.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lineage.write_bytes(folder / FEATURES, _parquet(table))
    files = [folder / FEATURES]
    if tokens is not None:
        lineage.write_bytes(folder / TOKENS, safetensors.numpy.save(dict(tokens.tokens), metadata={"format": str(FORMAT)}))
        files.append(folder / TOKENS)
    digests = {file.name: lineage.digest_file(file) for file in files}
    lineage.write_json(folder / LINEAGE, {"format": FORMAT, "files": digests, "record": dict(record or {})})
    return [*files, folder / LINEAGE]


def load_features(path: Path | str) -> FeatureTable:
    """Reads a table from its folder or its parquet file; a folder's digests are checked.

    Raises:
        UserError: Not there, altered, or without the columns of a feature table.
    """
    path = Path(path)
    if path.is_dir():
        check_files(path)
        path = path / FEATURES
    if not path.is_file():
        raise UserError("features", f"{path} does not exist", allowed=f"a folder that dinodomain embed wrote, or its {FEATURES}")
    parquet = require("pyarrow.parquet", extra="dev", wanted_by="features")
    try:
        read = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"is not a readable parquet file ({error})", remedy="run dinodomain embed again") from error
    missing = [name for name in _OWN if name not in read.column_names]
    if missing:
        raise UserError(str(path), f"lacks the columns {', '.join(missing)}", remedy="run dinodomain embed again")
    return _table(read)


def load_tokens(folder: Path | str) -> TokenTable:
    """Reads the tokens beside a table.

    Raises:
        UserError: There are none, or the file is damaged.
    """
    path = Path(folder) / TOKENS
    if not path.is_file():
        raise UserError("tokens", f"{path} does not exist", remedy="run dinodomain embed with embed.tokens=true")
    check_files(Path(folder))
    try:
        return TokenTable(tokens=safetensors.numpy.load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(str(path), f"cannot be read as safetensors ({error})", remedy="run dinodomain embed again") from error


def load_record(folder: Path | str) -> dict[str, Any]:
    """The lineage record of the features in a folder."""
    record: dict[str, Any] = json.loads((Path(folder) / LINEAGE).read_text(encoding="utf-8"))["record"]
    return record


def check_files(folder: Path) -> None:
    """Refuses a folder whose files are not those its lineage names.

    Raises:
        UserError: Half written, altered, or of a newer format.
    """
    path = folder / LINEAGE
    if not path.is_file():
        raise UserError(str(folder), f"has no {LINEAGE}: no features, or half written", remedy="run dinodomain embed again")
    body = json.loads(path.read_text(encoding="utf-8"))
    if body.get("format") != FORMAT:
        raise UserError(str(path), f"is format {body.get('format')!r}", allowed=str(FORMAT), remedy="upgrade dinodomain, or embed again")
    for name, digest in body["files"].items():
        if not (folder / name).is_file() or lineage.digest_file(folder / name) != digest:
            raise UserError(str(folder / name), "is missing or does not match its digest", remedy="run dinodomain embed again")


def _parquet(table: FeatureTable) -> bytes:
    arrow = require("pyarrow", extra="dev", wanted_by="features")
    parquet = require("pyarrow.parquet", extra="dev", wanted_by="features")
    width = table.features.shape[1]
    flat = np.ascontiguousarray(table.features, dtype=np.float32).reshape(-1)
    columns = {
        "content_hash": arrow.array(table.content_hash.astype(str).tolist()),
        "tile_id": arrow.array(table.tile_ids.astype(np.int64)),
        "row": arrow.array(table.rows.astype(np.int64)),
        "unit": arrow.array(table.units.astype(str).tolist()),
        "features": arrow.FixedSizeListArray.from_arrays(arrow.array(flat), width),
        **{name: arrow.array(values.tolist()) for name, values in table.columns.items()},
    }
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns), buffer, compression="zstd", store_schema=True)
    return buffer.getvalue()


def _table(read: Any) -> FeatureTable:
    features = read["features"].combine_chunks()
    width = features.type.list_size
    values: np.ndarray = features.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return FeatureTable(
        features=values.astype(np.float32),
        content_hash=np.array(read["content_hash"].to_pylist(), dtype=object),
        tile_ids=read["tile_id"].to_numpy(),
        rows=read["row"].to_numpy(),
        units=np.array(read["unit"].to_pylist(), dtype=object),
        columns={name: _column(read[name]) for name in read.column_names if name not in _OWN},
    )


def _column(values: Any) -> np.ndarray:
    held = values.to_pylist()
    kinds = {type(value) for value in held}
    if kinds <= {bool} or kinds <= {int} or kinds <= {float}:
        return np.array(held)
    out = np.empty(len(held), dtype=object)
    out[:] = held
    return out
