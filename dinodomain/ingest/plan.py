"""The plan of an ingest: which sources, where to, who they belong to, and what is set aside for the audit.

Names no domain; lengths are in the unit that each attribute states.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from dinodomain.errors import Problems, UserError
from dinodomain.expression import Filter
from dinodomain.ingest.sizes import parse_size
from dinodomain.lineage import Json, digest_file, to_json
from dinodomain.store.format import StorePlan
from dinodomain.types import Select

TAKE_ALL = "all"
"""The value of ``ingest.select`` that filters nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestPlan:
    """What to convert, and how.

    Attributes:
        domain: Name of an installed domain, for example ``ct`` or ``sentinel2``.
        source: Folder or address that the domain reads.
        store: Folder of the store to make or to add to.
        withdraw: CSV of sources whose units are taken out of the store for good; needs neither ``domain`` nor ``source``, and may grow.
        include: Globs below the source that are taken; empty takes everything the domain reads.
        exclude: Globs below the source that are left out, applied after ``include``.
        select: Header filter, for example ``Modality == 'CT' and SliceThickness <= 3``; None takes the domain's default (printed), ``all``
            takes everything.
        one_per_acquisition: Where one acquisition was reconstructed several times, keep one: the commonest body ``kernel`` or the
            smallest slice ``thickness``; empty keeps all.
        mix: Let sources of different quantity (Level 1C and 2A, sigma0 and gamma0, for processing and for presentation) share a store.
        irregular: A series with a tilted gantry, missing slices or uneven spacing: ``refuse`` it, or ``resample`` it to an even grid.
        frames: A 4-D file or series: ``refuse`` it, or ``split`` it into one source per frame.
        stack: Channels of one frame of reference to be stacked into one record, for example ``[T1,FLAIR]``; empty stacks nothing.
        voi: Apply a radiograph's VOI LUT or window, as its maker meant it to be shown; False keeps the measured values.
        aoi: Area of interest, ``WEST,SOUTH,EAST,NORTH`` in degrees or a GeoJSON file; scenes are cut to its bounding box.
        dates: Acquisition dates taken, ``FIRST/LAST`` as YYYY, YYYY-MM or YYYY-MM-DD, both included; either may be ``..``, one alone is
            both.
        max_cloud: Largest cloud cover in percent that a scene's metadata may state.
        budget: Most bytes of sources to read, for example ``2TB``; chosen evenly over ground cells, seasons and sensors.
        seed: Seed of that choice.
        metadata: CSV with a row per source (or per patient, folder ...), or None.
        join: Column of ``metadata``, or of ``withdraw``, that names the source: its path, file name, stem, nearest folder or a field of
            that name.
        group: Column of ``metadata`` that names the unit (patient, place) a source belongs to; None takes what the domain knows.
        fields: Columns of ``metadata`` that are copied into the store's index.
        secret: File with the secret that keyed hashes are made with; None uses ``STORE.private/secret`` in personal domains.
        patient_map: CSV with columns ``PatientID`` and ``Patient`` (and ``IssuerOfPatientID``) that says which ids are one person.
        crosswalk: Keep a table from stored ids to clear ones in ``STORE.private``, for writing results back.
        audit_holdout: Share of the units set aside for the audit, 0 to 0.5; None means max(2 %, 30 units) where that is at most 10 %.
        cell: Side of the ground cells that are the units of georeferenced rasters, metres, 50 to 1000000 (1000 km).
        max_side: Longest side of an image that is read whole, pixels; larger ones are shrunk with antialiasing.
        bands: Channels to keep, in this order; empty keeps all that a source has.
        grid: Grid that bands of several resolutions are brought to: ``finest``, a band name, or metres (mm for stacked volumes).
        crs: Coordinate reference system that rasters are warped to, ``EPSG:CODE`` or ``utm``; empty warps nothing.
        sar: What Sentinel-1 values are where the files do not say: ``db``, ``power``, ``amplitude``, or as ``sigma0_db``.
        workers: Number of workers; 0 reads in this process, None takes one per processor (or all of a Dask cluster).
        executor: ``processes``; ``threads`` (rasters, slow networks; DICOM readers take turns there); or the address of a Dask scheduler
            (``tcp://HOST:PORT``) whose workers share the file system.
        shard: ``I/N``: stage only this share of the sources, 1 to N, for job arrays; a run without it then finishes the store.
        strict: Stop at the first source that cannot be read instead of listing it as skipped.
        dry_run: Only say what would be done; nothing is written.
        licence: Licence of the sources, kept in every index row.
        storage: Chunk size and codec of the store.
    """

    store: str
    domain: str = ""
    source: str = ""
    withdraw: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    select: str | None = None
    one_per_acquisition: Literal["", "kernel", "thickness"] = ""
    mix: bool = False
    irregular: Literal["refuse", "resample"] = "refuse"
    frames: Literal["refuse", "split"] = "refuse"
    stack: tuple[str, ...] = ()
    voi: bool = False
    aoi: str = ""
    dates: str = ""
    max_cloud: float | None = None
    budget: str | None = None
    seed: int = 0
    metadata: str | None = None
    join: str = "id"
    group: str | None = None
    fields: tuple[str, ...] = ()
    secret: str | None = None
    patient_map: str | None = None
    crosswalk: bool = False
    audit_holdout: float | None = None
    cell: float = 20000.0
    max_side: int = 1024
    bands: tuple[str, ...] = ()
    grid: str = "finest"
    crs: str = ""
    sar: str = ""
    workers: int | None = None
    executor: str = "processes"
    shard: str | None = None
    strict: bool = False
    dry_run: bool = False
    licence: str | None = None
    storage: StorePlan = field(default_factory=StorePlan)

    def __post_init__(self) -> None:
        self._check_places()
        self._check_ranges()
        self._check_texts()
        for key, wanted in (("group", self.group is not None), ("fields", bool(self.fields))):
            if wanted and self.metadata is None:
                raise UserError(f"ingest.{key}", "names a column, but there is no metadata", remedy="set ingest.metadata=CSV")

    def _check_places(self) -> None:
        needed = {"store": self.store} if self.withdraw else {"domain": self.domain, "source": self.source, "store": self.store}
        empty = [UserError(key, "is required", remedy=f"add {key}=...") for key, value in needed.items() if not value.strip()]
        if empty:
            raise Problems(empty)
        if self.withdraw and (self.domain or self.source):
            raise UserError("withdraw", "takes units out of a store; domain and source have no use", remedy="give store and withdraw only")
        if "://" in self.store:
            raise UserError("store", f"{self.store!r} is an address", allowed="a local folder", remedy="write it locally and copy it")

    def _check_ranges(self) -> None:
        if self.audit_holdout is not None and not 0 <= self.audit_holdout <= 0.5:
            raise UserError("ingest.audit_holdout", f"is {self.audit_holdout}", allowed="a share of the units, 0 to 0.5")
        if not 50 <= self.cell <= 1_000_000:
            raise UserError("ingest.cell", f"is {self.cell:g}", allowed="50 to 1000000 metres")
        if not 32 <= self.max_side <= 1024:
            raise UserError("ingest.max_side", f"is {self.max_side}", allowed="32 to 1024 pixels")
        if self.max_cloud is not None and not 0 <= self.max_cloud <= 100:
            raise UserError("ingest.max_cloud", f"is {self.max_cloud:g}", allowed="0 to 100 percent")
        if self.workers is not None and self.workers < 0:
            raise UserError("ingest.workers", f"is {self.workers}", allowed="0 (in this process) or a number of processes")

    def _check_texts(self) -> None:
        """Keys with a small language of their own; all that are wrong are told at once."""
        checks: tuple[tuple[str | None, Callable[[str], object]], ...] = (
            (None if self.select == TAKE_ALL else self.select, Filter),
            (self.dates, parse_dates),
            (self.budget, lambda text: parse_size(text, "ingest.budget")),
            (self.crs, _check_crs),
            (self.executor, _check_executor),
            (self.shard, parse_shard),
            (self.aoi, _check_aoi),
        )
        problems = []
        for text, check in checks:
            try:
                if text is not None and (text != "" or check in (_check_executor, parse_shard)):
                    check(text)
            except UserError as error:
                problems.append(error)
        if problems:
            raise problems[0] if len(problems) == 1 else Problems(problems)

    def as_select(self, where: str = "", scratch: str = "") -> Select:
        """What the domain needs to know about which files and bands are taken.

        Args:
            where: The domain's default header filter.
            scratch: Folder for what must be unpacked or fetched.
        """
        names = {item.name for item in fields(Select)} - {"where", "scratch", "dates", "workers"}
        chosen = where if self.select is None else "" if self.select == TAKE_ALL else self.select
        # Whole days, so that a domain need not know how few digits a person may type.
        days = "/".join(day.isoformat() if day else ".." for day in parse_dates(self.dates)) if self.dates else ""
        # A cluster's workers are no processes of this machine, which reads the headers.
        everywhere = self.workers is None or (self.workers > 0 and "://" in self.executor)
        num = len(os.sched_getaffinity(0)) if everywhere else self.workers
        return Select(where=chosen, scratch=scratch, dates=days, workers=num, **{name: getattr(self, name) for name in names})

    def signature(self) -> dict[str, Json]:
        """The part that decides the stored bytes of one source; staged work of another signature is done again."""
        names = ("domain", "bands", "grid", "crs", "sar", "irregular", "frames", "stack", "voi", "max_side", "cell", "storage")
        return {**{name: to_json(getattr(self, name)) for name in names}, "aoi": _area(self.aoi)}

    def differences(self, known: Mapping[str, Json]) -> list[str]:
        """What a store was made with and this plan does not want, as ``key=value (now value)``.

        A store of an earlier version lacks keys that were invented later: it was made as their defaults say.
        """
        wanted, default = self.signature(), IngestPlan(domain=self.domain, source=self.source, store=self.store).signature()
        made = {key: known.get(key, default[key]) for key in wanted}
        return [f"{key}={made[key]} (now {wanted[key]})" for key in wanted if made[key] != wanted[key]]

    def record(self, *, personal: bool) -> Mapping[str, Json]:
        """The plan as a store may keep it: no paths of this machine, and no globs where file names identify people."""
        hidden = {"source", "store", "withdraw", "metadata", "secret", "patient_map", "workers", "executor", "shard", "strict", "dry_run"}
        if personal:
            hidden |= {"include", "exclude", "select"}
        body: dict[str, Json] = {**to_json(self), "aoi": _area(self.aoi)}
        return {key: value for key, value in body.items() if key not in hidden}


def parse_dates(text: str) -> tuple[datetime.date | None, datetime.date | None]:
    """First and last day, both included, of ``2019-03-01/2020-02-29``, ``2019/..``, ``../2020-06`` or ``2020``; None where open.

    Raises:
        UserError: It is no such range, or ends before it begins.
    """
    place, allowed = "ingest.dates", "FIRST/LAST as YYYY, YYYY-MM or YYYY-MM-DD, either may be ..; one alone is both"
    parts = [part.strip() for part in text.split("/")]
    parts = parts * 2 if len(parts) == 1 else parts
    if len(parts) != 2 or parts == ["..", ".."]:
        raise UserError(place, f"{text!r} is no range of dates", allowed=allowed)
    try:
        first, last = _day(parts[0], last=False), _day(parts[1], last=True)
    except ValueError as error:
        raise UserError(place, f"{text!r} is no range of dates: {error}", allowed=allowed) from None
    if first and last and last < first:
        raise UserError(place, f"{text!r} ends before it begins", remedy="exchange the two dates")
    return first, last


def _day(text: str, *, last: bool) -> datetime.date | None:
    """The first or last day of a year, a month or a day."""
    if text == "..":
        return None
    found = re.fullmatch(r"(\d{4})(?:-(\d{2}))?(?:-(\d{2}))?", text)
    if found is None:
        raise ValueError(f"{text!r} is no date")
    year, month, day = (None if part is None else int(part) for part in found.groups())
    start = datetime.date(int(year or 0), month or 1, day or 1)
    if not last or day is not None:
        return start
    following = (start.year + 1, 1) if month in (None, 12) else (start.year, start.month + 1)
    return datetime.date(*following, 1) - datetime.timedelta(days=1)


def parse_shard(text: str) -> tuple[int, int]:
    """Number of the share, from 1, and number of shares of ``I/N``.

    Raises:
        UserError: It is no such share.
    """
    found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError("ingest.shard", f"{text!r} is no share", allowed="I/N with I from 1 to N, for example 3/16")
    return int(found[1]), int(found[2])


def _check_crs(text: str) -> None:
    if text != "utm" and re.fullmatch(r"EPSG:\d{4,6}", text) is None:
        raise UserError("ingest.crs", f"is {text!r}", allowed="EPSG:CODE, for example EPSG:32632, or utm")


def _check_executor(text: str) -> None:
    if text not in ("processes", "threads") and re.fullmatch(r"(tcp|tls|ucx|ws|wss|inproc)://\S+", text) is None:
        raise UserError(
            "ingest.executor", f"is {text!r}", allowed="processes, threads, or the address of a Dask scheduler (tcp://HOST:PORT)"
        )


def _check_aoi(text: str) -> None:
    """Four numbers must be a box; anything else must be a file, which the domain reads."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        if not Path(text).is_file():
            allowed = "WEST,SOUTH,EAST,NORTH in degrees, or a GeoJSON file"
            raise UserError("ingest.aoi", f"{text!r} is neither a box nor a file", allowed=allowed) from None
        return
    inside = len(numbers) == 4 and all(-180 <= x <= 180 for x in numbers[::2]) and all(-90 <= y <= 90 for y in numbers[1::2])
    if not inside or numbers[1] >= numbers[3] or numbers[0] == numbers[2]:
        raise UserError("ingest.aoi", f"{text!r} is no box", allowed="WEST,SOUTH,EAST,NORTH in degrees")


def _area(aoi: str) -> str:
    """A box as it is; a file as the digest of its bytes: its name says little, and may name this machine."""
    return f"sha256:{digest_file(aoi)}" if aoi and Path(aoi).is_file() else aoi
