"""What a store holds, for people and machines: counts, shapes, channels, fields, units, skipped sources, size, a contact sheet, histograms.

Held-out units count in every number but the histograms, which come from training pixels alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import UserError
from dinodomain.ingest.histogram import Histogram, histograms
from dinodomain.ingest.pictures import picture_of
from dinodomain.ingest.private import read_private_table, skipped_file
from dinodomain.ingest.summary import grouped
from dinodomain.ingest.tally import Spread, Tally, spread_lines
from dinodomain.lineage import Json, to_json, write_bytes, write_json
from dinodomain.show.contact_sheet import draw_contact_sheet
from dinodomain.show.histograms import Bars, draw_histograms
from dinodomain.store.place import is_remote, shown
from dinodomain.store.read import Store, open_store

_PICTURES = 24
_SHOWN = 8
_SHOWN_REASONS = 20
_OWN_LINES = ("quantity", "split", "licence")
"""Fields that the store counts apart."""

_NOTE_3D = "middle slices in the plane of acquisition, radiological display: R = the patient's right, on the left of the picture"
_NOTE_2D = "source's own 0.5 to 99.5 percentile; rasters north up, radiographs as their header says (R = the patient's right)"


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
        histograms: Histogram by channel of the sampled pixels that are trained on: held-out units are left out.
        units: Number of units.
        held_out_units: Number of those that are held out for the audit.
        held_out_chunks: Chunks that are never trained on: held out, or in a buffer.
        holdout: How the holdout was decided.
        splits: Number of sources and of units by the split that the metadata name.
        units_in_several_splits: Units with sources in more than one of them: what is learned of them leaks.
        acquired: First and last date, or None; in a personal domain of dates moved by one constant per unit.
        personal: Whether ids and dates are disguised.
        fields: Spread of every acquisition field.
        quantities: Number of sources by quantity, where that matters.
        skipped: Number of skipped sources by kind (``refused``, ``left out``) and kind of reason (names and numbers left out).
        warnings: Number of sources that were taken with a warning, by kind of warning.
        withdrawn: Withdrawals so far, as the manifest records them.
        licences: Number of sources by licence.
        bytes_on_disk: Size of the folder; None where the store lies on a server.
        bytes_raw: Size of the pixels uncompressed and unpadded.
        digest: Digest of index and chunk table.
        figure: The contact sheet, or None.
        figure_histograms: The histograms as a figure, or None.
        skipped_files: Clear names of skipped sources with their reasons, only where they were asked for; never written to a file.
        top: Values shown per field.
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
    histograms: Mapping[str, Histogram]
    units: int
    held_out_units: int
    held_out_chunks: int
    holdout: str
    splits: Mapping[str, Mapping[str, int]]
    units_in_several_splits: int
    acquired: tuple[str, str] | None
    personal: bool
    fields: Mapping[str, Spread]
    quantities: Mapping[str, int]
    skipped: Mapping[str, Mapping[str, int]]
    warnings: Mapping[str, int]
    withdrawn: tuple[Mapping[str, Json], ...]
    licences: Mapping[str, int]
    bytes_on_disk: int | None
    bytes_raw: int
    digest: str
    figure: str | None = None
    figure_histograms: str | None = None
    skipped_files: tuple[Mapping[str, str], ...] = ()
    top: int = _SHOWN

    @property
    def ratio(self) -> float | None:
        """Raw size over size on disk."""
        return None if self.bytes_on_disk is None else self.bytes_raw / self.bytes_on_disk

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        body: dict[str, Json] = to_json(self)
        del body["top"]
        if not self.skipped_files:
            del body["skipped_files"]
        return {**body, "ratio": None if self.ratio is None else round(self.ratio, 3)}

    def _size_line(self) -> str:
        if self.bytes_on_disk is None:
            return f"on a server: {_size(self.bytes_raw)} of pixels"
        return (
            f"on disk: {_size(self.bytes_on_disk)} for {_size(self.bytes_raw)} of pixels (ratio {self.bytes_raw / self.bytes_on_disk:.2f})"
        )

    def text(self) -> str:
        """Some lines for a person."""
        lines = [
            f"{self.store}: {self.sources} sources of domain {self.domain}, {self.ndim}-D ({self._counted(self.layouts)}), "
            f"{self.chunks} chunks",
            f"shapes: {self._counted(self.shapes)}",
            f"dtypes: {self._counted(self.dtypes)}",
            f"spacing ({'z, y, x' if self.ndim == 3 else 'y, x'}): {self._counted(self.spacings)}",
            *_channel_lines(self.channels),
            f"units: {self.units}, held out for the audit: {self.held_out_units} ({self.holdout})",
            f"chunks never trained on: {self.held_out_chunks}",
            *self._split_lines(),
            *self._acquired_lines(),
            *([f"quantities: {self._counted(self.quantities)}"] if self.quantities else []),
            *spread_lines(self.fields, self.top),
            f"licences: {self._counted(self.licences)}",
            self._size_line(),
            *self._skipped_lines(),
            *_reason_lines("warnings", self.warnings),
            *(f"withdrawn on {event['date']}: {event['sources']} sources of {event['units']} units" for event in self.withdrawn),
        ]
        figures = [("contact sheet", self.figure), ("histograms", self.figure_histograms)]
        return "\n".join([*lines, *(f"{name}: {path}" for name, path in figures if path)])

    def _counted(self, counts: Mapping[str, int]) -> str:
        shown = [f"{name} ({count})" for name, count in list(counts.items())[: self.top]]
        return ", ".join(shown) + (f" and {len(counts) - self.top} more" if len(counts) > self.top else "")

    def _split_lines(self) -> list[str]:
        if not self.splits:
            return []
        shown = (f"{name}: {count['sources']} sources of {count['units']} units" for name, count in self.splits.items())
        several = self.units_in_several_splits
        return [f"splits: {'; '.join(shown)}", *([f"UNITS IN SEVERAL SPLITS: {several} (their images leak)"] if several else [])]

    def _acquired_lines(self) -> list[str]:
        if self.acquired is None:
            return []
        moved = " (dates moved by one constant per unit)" if self.personal else ""
        return [f"acquired: {self.acquired[0]} to {self.acquired[1]}{moved}"]

    def _skipped_lines(self) -> list[str]:
        lines = [line for kind, reasons in self.skipped.items() for line in _reason_lines(kind, reasons)]
        return [*(lines or ["skipped: 0"]), *(f"  {row['uri']}: {row['reason']}" for row in self.skipped_files)]


def inspect(store: str | Path | Store, out: str | Path | None = None, *, notice: str = "", names: bool = False,
            top: int = _SHOWN) -> Inspection:  # fmt: skip
    """Looks into a store.

    Args:
        store: The store, or its folder.
        out: Folder for ``contact_sheet.png``, ``histograms.png``, ``inspect.json`` and ``inspect.txt``; None writes nothing.
        notice: Printed on the contact sheet, for example that the data are made up.
        names: Also give the clear names of skipped sources; they are never written to ``out``.
        top: Values shown per field in the text.

    Raises:
        UserError: It is no store, a file of it is damaged, or clear names are asked for and do not lie beside it.
    """
    opened = open_store(store) if isinstance(store, (str, Path)) else store
    clear = _skipped_names(opened) if names else ()
    found = _facts(opened, top)
    if out is not None:
        found = _drawn(opened, found, Path(out), notice)
        write_json(Path(out) / "inspect.json", found.as_json())
        write_bytes(Path(out) / "inspect.txt", (found.text() + "\n").encode())
    return replace(found, skipped_files=clear)


def _skipped_names(store: Store) -> tuple[Mapping[str, str], ...]:
    """Clear names and reasons; of a personal domain from the list beside the store."""
    listed = store.manifest["skipped"]
    if not store.manifest.get("personal", False):
        return tuple({"uri": row["uri"], "reason": row["reason"]} for row in listed)
    path = skipped_file(Path(store.path))
    rows = {row["stored"]: row for row in read_private_table(path)}
    if listed and not rows:
        raise UserError("names", f"there are no clear names at {str(path)!r}", remedy="look where the store was made, or leave names out")
    clear = sorted((rows[row["uri"]]["uri"], rows[row["uri"]]["reason"]) for row in listed if row["uri"] in rows)
    return tuple({"uri": uri, "reason": reason} for uri, reason in clear)


def _facts(store: Store, top: int) -> Inspection:
    rows, manifest = store.index.to_pylist(), store.manifest
    days = sorted(row["acquired"] for row in rows if row["acquired"])
    splits, several = _splits(store)
    return Inspection(
        store=shown(store.location),
        domain=store.domain,
        ndim=store.ndim,
        sources=len(rows),
        chunks=store.chunks.num_rows,
        layouts=_ranked(row["layout"] for row in rows),
        shapes=_ranked("x".join(map(str, row["shape"])) for row in rows),
        dtypes=_ranked(row["dtype"] for row in rows),
        spacings=_ranked(" x ".join(f"{step:.4g}" if math.isfinite(step) else "unknown" for step in row["spacing"]) for row in rows),
        channels=_channels(rows),
        histograms=histograms(store),
        units=manifest["counts"]["units"],
        held_out_units=len(manifest["holdout"]["units"]),
        held_out_chunks=int(store.chunks["holdout"].to_numpy().sum()),
        holdout=manifest["holdout"]["reason"],
        splits=splits,
        units_in_several_splits=several,
        acquired=(days[0], days[-1]) if days else None,
        personal=bool(manifest.get("personal", False)),
        fields=_fields(rows),
        quantities=dict(manifest.get("quantities", {})),
        skipped=_skipped(manifest["skipped"]),
        warnings=_by_reason(row["warning"] for row in manifest.get("warnings", ())),
        withdrawn=tuple(manifest.get("withdrawn", ())),
        licences=_ranked(row["licence"] or "not stated" for row in rows),
        bytes_on_disk=_bytes_on_disk(store),
        bytes_raw=sum(math.prod(row["shape"]) * np.dtype(row["dtype"]).itemsize for row in rows),
        digest=store.digest,
        top=top,
    )


def _bytes_on_disk(store: Store) -> int | None:
    return None if is_remote(store.location) else sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())


def _splits(store: Store) -> tuple[dict[str, dict[str, int]], int]:
    """Sources and units by split, and how many units lie in several; units are those of the chunks."""
    by_row = store.index["split"].to_pylist()
    if not any(by_row):
        return {}, 0
    units: dict[str, set[str]] = {}
    for row, unit in zip(store.chunks["row"].to_pylist(), store.chunks["unit"].to_pylist()):
        units.setdefault(by_row[row] or "none", set()).add(unit)
    sources = Counter(split or "none" for split in by_row)
    times = Counter(unit for inside in units.values() for unit in inside)
    counts = {split: {"sources": sources[split], "units": len(units.get(split, ()))} for split in sorted(sources)}
    return counts, sum(count > 1 for count in times.values())


def _fields(rows: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    tally = Tally()
    for row in rows:
        tally.add({name: value for name, value in json.loads(row["fields"]).items() if name not in _OWN_LINES})
    return tally.spreads()


def _skipped(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    kinds = sorted({row.get("kind", "refused") for row in rows}, reverse=True)
    return {kind: _by_reason(row["reason"] for row in rows if row.get("kind", "refused") == kind) for kind in kinds}


def _by_reason(reasons: Iterable[str]) -> dict[str, int]:
    """How often, commonest first; a reason that all of its kind share is told with its numbers."""
    return {group.reason: group.count for group in grouped(("", reason, "") for reason in reasons)}


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


def _drawn(store: Store, found: Inspection, out: Path, notice: str) -> Inspection:
    """The figures of a store: pictures of sources spread evenly over the index, and histograms."""
    out.mkdir(parents=True, exist_ok=True)
    rows = np.unique(np.linspace(0, len(store) - 1, min(len(store), _PICTURES)).round().astype(int))
    note = _NOTE_3D if store.ndim == 3 else _NOTE_2D
    title = f"{len(rows)} of {len(store)} sources, domain {store.domain}" + (f"\n{notice}" if notice else "")
    sheet = draw_contact_sheet([picture_of(store, int(row)) for row in rows], out / "contact_sheet.png", title=title, note=note)
    bars = [
        Bars(title=name, unit=one.unit, start=one.start, width=one.width, counts=one.counts, outside=one.below + one.above)
        for name, one in found.histograms.items()
    ]
    figure = None
    if bars:
        title = f"domain {store.domain}: sampled pixels of training chunks,\nphysical values; held-out units left out"
        figure = str(draw_histograms(bars, out / "histograms.png", title=title + (f"\n{notice}" if notice else "")))
    return replace(found, figure=str(sheet), figure_histograms=figure)


def _reason_lines(word: str, reasons: Mapping[str, int]) -> list[str]:
    if not reasons:
        return []
    lines = [f"  {count} x {reason}" for reason, count in list(reasons.items())[:_SHOWN_REASONS]]
    more = [f"  and {len(reasons) - _SHOWN_REASONS} more reasons"] if len(reasons) > _SHOWN_REASONS else []
    return [f"{word}: {sum(reasons.values())}", *lines, *more]


def _ranked(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _channel_lines(channels: Mapping[str, ChannelFacts]) -> list[str]:
    width = max(len(name) for name in channels)
    head = f"{'channel':<{max(width, 7)}} {'sources':>8} {'low':>10} {'mean':>10} {'high':>10}"
    body = [f"{name:<{max(width, 7)}} {c.sources:>8} {c.low:>10.4g} {c.mean:>10.4g} {c.high:>10.4g}" for name, c in channels.items()]
    return [head, *body]


def _size(count: int) -> str:
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
