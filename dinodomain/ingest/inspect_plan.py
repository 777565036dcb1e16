"""The plan of a look: into a store, or at a source before it is ingested."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from dinodomain.errors import Problems, UserError
from dinodomain.ingest.plan import IngestPlan

_OWN = frozenset({"store", "source", "domain", "out", "notice", "names", "crosswalk", "top"})
_OF_STORE = ("notice", "names", "crosswalk")


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectPlan:
    """What a store holds, or what lies below a source before it is ingested.

    Attributes:
        store: The store to look into.
        source: Folder or address whose headers are counted instead; nothing is converted. Needs ``domain``.
        domain: Name of the installed domain that reads the source.
        out: Folder for what is found as files: ``contact_sheet.png``, ``histograms.png``, ``inspect.json`` and ``inspect.txt`` of a
            store, ``source.json`` and ``source.txt`` of a source; None only prints.
        notice: Printed on the contact sheet, for example that the data are made up.
        names: List the clear file names of what was skipped, from ``STORE.private``; printed only, never written to ``out``.
        crosswalk: Table of results (CSV or parquet with a column ``source_id`` or ``unit``) that is written to ``out`` again with clear
            ids beside the stored ones; needs a store made with ``ingest.crosswalk=true``.
        top: Values shown per field.
        include: As for an ingest: globs below the source that are looked at.
        exclude: As for an ingest: globs below the source that are left out.
        select: As for an ingest: header filter whose effect is told; None takes the domain's default, ``all`` filters nothing.
        one_per_acquisition: As for an ingest: ``kernel`` or ``thickness``.
        irregular: As for an ingest: ``refuse`` or ``resample``.
        frames: As for an ingest: ``refuse`` or ``split``.
        stack: As for an ingest: channels stacked into one record.
        aoi: As for an ingest: area of interest.
        dates: As for an ingest: ``FIRST/LAST``.
        max_cloud: As for an ingest: largest cloud cover in percent.
        bands: As for an ingest: channels kept.
        grid: As for an ingest: grid of several resolutions.
        crs: As for an ingest: coordinate reference system warped to.
        sar: As for an ingest: what Sentinel-1 values are.
    """

    store: str = ""
    source: str = ""
    domain: str = ""
    out: str | None = None
    notice: str = ""
    names: bool = False
    crosswalk: str | None = None
    top: int = 8
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    select: str | None = None
    one_per_acquisition: Literal["", "kernel", "thickness"] = ""
    irregular: Literal["refuse", "resample"] = "refuse"
    frames: Literal["refuse", "split"] = "refuse"
    stack: tuple[str, ...] = ()
    aoi: str = ""
    dates: str = ""
    max_cloud: float | None = None
    bands: tuple[str, ...] = ()
    grid: str = "finest"
    crs: str = ""
    sar: str = ""

    def __post_init__(self) -> None:
        if bool(self.store.strip()) == bool(self.source.strip()):
            problem = "both store and source are given" if self.store.strip() else "store or source is required"
            raise UserError("store", problem, allowed="store=STORE, or source=PATH domain=NAME", remedy="give exactly one of them")
        problems = self._misplaced() if self.store.strip() else self._misplaced_for_source()
        if self.crosswalk is not None and self.out is None and not problems:
            problems = [UserError("out", "is required with crosswalk", remedy="add out=FOLDER, outside the store")]
        if not 1 <= self.top <= 200:
            problems.append(UserError("top", f"is {self.top}", allowed="1 to 200"))
        if problems:
            raise problems[0] if len(problems) == 1 else Problems(problems)
        if self.source.strip():
            self.as_ingest()  # checks the keys of an ingest

    def _given(self) -> dict[str, Any]:
        """Keys of an ingest that differ from their defaults."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in _OWN and getattr(self, item.name) != item.default
        }

    def _misplaced(self) -> list[UserError]:
        given = [*(("domain",) if self.domain else ()), *self._given()]
        return [UserError(name, "has no use with a store", remedy="it goes with source=PATH domain=NAME") for name in given]

    def _misplaced_for_source(self) -> list[UserError]:
        problems = [UserError(name, "has no use with a source", remedy="it goes with store=STORE") for name in _OF_STORE
                    if getattr(self, name)]  # fmt: skip
        return problems if self.domain.strip() else [*problems, UserError("domain", "is required with source", remedy="add domain=NAME")]

    def as_ingest(self) -> IngestPlan:
        """The ingest whose choices are told; its store is never touched."""
        return IngestPlan(domain=self.domain, source=self.source, store="nowhere", dry_run=True, **self._given())
