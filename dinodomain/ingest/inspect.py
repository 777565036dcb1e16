"""What a store holds, for people and machines: counts, shapes, channels, units, holdout, skipped sources, size, and a contact sheet."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.ingest.pictures import picture_of
from dinodomain.lineage import Json, to_json, write_bytes, write_json
from dinodomain.show.contact_sheet import draw_contact_sheet
from dinodomain.store.read import Store, open_store

_PICTURES = 24
_SHOWN = 6
_NOTE_3D = "middle axial slices, radiological display: R = the patient's right, on the left of the picture"
_NOTE_2D = "source's own 0.5 to 99.5 percentile; rasters north up"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFacts:
    """One channel over all sources, physical units.

    Attributes:
        sources: Sources that have it.
        low: Median of the sources' 0.5 percentiles.
        mean: Mean of their means.
        high: Median of their 99.5 percentiles.
    """

    sources: int
    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Facts about a store.

    Attributes:
        store: Its folder.
        domain: Its domain.
        ndim: Spatial axes.
        sources: Number of sources.
        chunks: Number of chunks and whole images.
        layouts: Number of sources by layout.
        shapes: Number of sources by shape (C, (Z,) Y, X), commonest first.
        dtypes: Number of sources by stored dtype.
        spacings: Number of sources by spacing in array order, mm or m, commonest first.
        channels: Facts by channel.
        units: Number of units.
        held_out_units: Number of those that are held out for the audit.
        held_out_chunks: Chunks that are never trained on: held out, or in a buffer.
        holdout: How the holdout was decided.
        skipped: Number of sources left out by kind of reason (names and numbers left out), commonest first.
        licences: Number of sources by licence.
        bytes_on_disk: Size of the folder.
        bytes_raw: Size of the pixels uncompressed and unpadded.
        digest: Digest of index and chunk table.
        figure: The contact sheet, or None.
    """

    store: str
    domain: str
    ndim: int
    sources: int
    chunks: int
    layouts: Mapping[str, int]
    shapes: Mapping[str, int]
    dtypes: Mapping[str, int]
    spacings: Mapping[str, int]
    channels: Mapping[str, ChannelFacts]
    units: int
    held_out_units: int
    held_out_chunks: int
    holdout: str
    skipped: Mapping[str, int]
    licences: Mapping[str, int]
    bytes_on_disk: int
    bytes_raw: int
    digest: str
    figure: str | None = None

    @property
    def ratio(self) -> float:
        """Raw size over size on disk."""
        return self.bytes_raw / self.bytes_on_disk

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        body: dict[str, Json] = to_json(self)
        return {**body, "ratio": round(self.ratio, 3)}

    def text(self) -> str:
        """Some lines for a person."""
        lines = [
            f"{self.store}: {self.sources} sources of domain {self.domain}, {self.ndim}-D ({_counted(self.layouts)}), {self.chunks} chunks",
            f"shapes: {_counted(self.shapes)}",
            f"dtypes: {_counted(self.dtypes)}",
            f"spacing ({'z, y, x' if self.ndim == 3 else 'y, x'}): {_counted(self.spacings)}",
            *_channel_lines(self.channels),
            f"units: {self.units}, held out for the audit: {self.held_out_units} ({self.holdout})",
            f"chunks never trained on: {self.held_out_chunks}",
            f"licences: {_counted(self.licences)}",
            f"on disk: {_size(self.bytes_on_disk)} for {_size(self.bytes_raw)} of pixels (ratio {self.ratio:.2f})",
            f"skipped: {sum(self.skipped.values())}",
            *(f"  {count} x {reason}" for reason, count in list(self.skipped.items())[:20]),
        ]
        return "\n".join([*lines, *([f"contact sheet: {self.figure}"] if self.figure else [])])


def inspect(store: str | Path | Store, out: str | Path | None = None, *, notice: str = "") -> Inspection:
    """Looks into a store.

    Args:
        store: The store, or its folder.
        out: Folder for ``contact_sheet.png``, ``inspect.json`` and ``inspect.txt``; None writes nothing.
        notice: Printed on the contact sheet, for example that the data are made up.

    Raises:
        UserError: It is no store, or a file of it is damaged.
    """
    opened = open_store(store) if isinstance(store, (str, Path)) else store
    figure = None if out is None else _sheet(opened, Path(out), notice)
    found = _facts(opened, figure)
    if out is not None:
        write_json(Path(out) / "inspect.json", found.as_json())
        write_bytes(Path(out) / "inspect.txt", (found.text() + "\n").encode())
    return found


def _facts(store: Store, figure: Path | None) -> Inspection:
    rows, manifest = store.index.to_pylist(), store.manifest
    return Inspection(
        store=str(store.path),
        domain=store.domain,
        ndim=store.ndim,
        sources=len(rows),
        chunks=store.chunks.num_rows,
        layouts=_ranked(row["layout"] for row in rows),
        shapes=_ranked("x".join(map(str, row["shape"])) for row in rows),
        dtypes=_ranked(row["dtype"] for row in rows),
        spacings=_ranked(" x ".join(f"{step:.4g}" if math.isfinite(step) else "unknown" for step in row["spacing"]) for row in rows),
        channels=_channels(rows),
        units=manifest["counts"]["units"],
        held_out_units=len(manifest["holdout"]["units"]),
        held_out_chunks=int(store.chunks["holdout"].to_numpy().sum()),
        holdout=manifest["holdout"]["reason"],
        skipped=_ranked(_kind(row["reason"]) for row in manifest["skipped"]),
        licences=_ranked(row["licence"] or "not stated" for row in rows),
        bytes_on_disk=sum(path.stat().st_size for path in Path(store.path).rglob("*") if path.is_file()),
        bytes_raw=sum(math.prod(row["shape"]) * np.dtype(row["dtype"]).itemsize for row in rows),
        digest=store.digest,
        figure=None if figure is None else str(figure),
    )


def _channels(rows: Sequence[Mapping[str, Any]]) -> dict[str, ChannelFacts]:
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        for name, *values in zip(row["channels"], row["low"], row["mean"], row["high"]):
            found.setdefault(name, []).append((values[0], values[1], values[2]))
    facts = {}
    for name, values in found.items():
        low, mean, high = np.array(values).T
        facts[name] = ChannelFacts(sources=len(values), low=float(np.median(low)), mean=float(np.mean(mean)), high=float(np.median(high)))
    return facts


def _sheet(store: Store, out: Path, notice: str) -> Path:
    """Sources spread evenly over the index."""
    out.mkdir(parents=True, exist_ok=True)
    rows = np.unique(np.linspace(0, len(store) - 1, min(len(store), _PICTURES)).round().astype(int))
    note = _NOTE_3D if store.ndim == 3 else _NOTE_2D
    title = f"{len(rows)} of {len(store)} sources, domain {store.domain}" + (f"\n{notice}" if notice else "")
    return draw_contact_sheet([picture_of(store, int(row)) for row in rows], out / "contact_sheet.png", title=title, note=note)


def _kind(reason: str) -> str:
    """A reason without the names and numbers of one source, so that equal faults are counted together."""
    return re.sub(r"'[^']*'", "…", re.sub(r"\d+(\.\d+)?", "#", reason))


def _ranked(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _counted(counts: Mapping[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")


def _channel_lines(channels: Mapping[str, ChannelFacts]) -> list[str]:
    width = max(len(name) for name in channels)
    head = f"{'channel':<{max(width, 7)}} {'sources':>8} {'low':>10} {'mean':>10} {'high':>10}"
    body = [f"{name:<{max(width, 7)}} {c.sources:>8} {c.low:>10.4g} {c.mean:>10.4g} {c.high:>10.4g}" for name, c in channels.items()]
    return [head, *body]


def _size(count: int) -> str:
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
