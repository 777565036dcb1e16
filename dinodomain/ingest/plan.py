"""The plan of an ingest: which sources, where to, who they belong to, and what is set aside for the audit.

Names no domain; lengths are in the unit that each attribute states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dinodomain.errors import UserError
from dinodomain.lineage import Json, to_json
from dinodomain.store.format import StorePlan
from dinodomain.types import Select


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestPlan:
    """What to convert, and how.

    Attributes:
        domain: Name of an installed domain, for example ``ct`` or ``sentinel2``.
        source: Folder or address that the domain reads.
        store: Folder of the store to make or to add to.
        include: Globs below the source that are taken; empty takes everything the domain reads.
        exclude: Globs below the source that are left out, applied after ``include``.
        metadata: CSV with a row per source (or per patient, folder ...), or None.
        join: Column of ``metadata`` that names the source: its path, file name, stem, nearest folder or a field of that name.
        group: Column of ``metadata`` that names the unit (patient, place) a source belongs to; None takes what the domain knows.
        fields: Columns of ``metadata`` that are copied into the store's index.
        secret: File with the secret that keyed hashes are made with; None uses ``STORE.private/secret`` in personal domains.
        audit_holdout: Share of the units set aside for the audit, 0 to 0.5; None means max(2 %, 30 units) where that is at most 10 %.
        cell: Side of the ground cells that are the units of georeferenced rasters, metres, 50 to 1000000 (1000 km).
        max_side: Longest side of an image that is read whole, pixels; larger ones are shrunk with antialiasing.
        bands: Channels to keep, in this order; empty keeps all that a source has.
        grid: Grid that bands of several resolutions are brought to: ``finest``, a band name, or metres.
        sar: What Sentinel-1 values are where the files do not say: ``db``, ``power``, ``amplitude``, or as ``sigma0_db``.
        workers: Number of processes; 0 reads in this process, None takes one per processor.
        strict: Stop at the first source that cannot be read instead of listing it as skipped.
        dry_run: Only say what would be done; nothing is written.
        licence: Licence of the sources, kept in every index row.
        storage: Chunk size and codec of the store.
    """

    domain: str
    source: str
    store: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    metadata: str | None = None
    join: str = "id"
    group: str | None = None
    fields: tuple[str, ...] = ()
    secret: str | None = None
    audit_holdout: float | None = None
    cell: float = 20000.0
    max_side: int = 1024
    bands: tuple[str, ...] = ()
    grid: str = "finest"
    sar: str = ""
    workers: int | None = None
    strict: bool = False
    dry_run: bool = False
    licence: str | None = None
    storage: StorePlan = field(default_factory=StorePlan)

    def __post_init__(self) -> None:
        self._check_places()
        self._check_ranges()
        for key, wanted in (("group", self.group is not None), ("fields", bool(self.fields))):
            if wanted and self.metadata is None:
                raise UserError(f"ingest.{key}", "names a column, but there is no metadata", remedy="set ingest.metadata=CSV")

    def _check_places(self) -> None:
        for key, value in (("source", self.source), ("store", self.store)):
            if not value.strip():
                raise UserError(key, "is empty", allowed="a path")
        if "://" in self.store:
            raise UserError("store", f"{self.store!r} is an address", allowed="a local folder", remedy="write it locally and copy it")

    def _check_ranges(self) -> None:
        if self.audit_holdout is not None and not 0 <= self.audit_holdout <= 0.5:
            raise UserError("ingest.audit_holdout", f"is {self.audit_holdout}", allowed="a share of the units, 0 to 0.5")
        if not 50 <= self.cell <= 1_000_000:
            raise UserError("ingest.cell", f"is {self.cell:g}", allowed="50 to 1000000 metres")
        if not 32 <= self.max_side <= 1024:
            raise UserError("ingest.max_side", f"is {self.max_side}", allowed="32 to 1024 pixels")
        if self.workers is not None and self.workers < 0:
            raise UserError("ingest.workers", f"is {self.workers}", allowed="0 (in this process) or a number of processes")

    def select(self) -> Select:
        """What the domain needs to know about which files and bands are taken."""
        return Select(include=self.include, exclude=self.exclude, bands=self.bands, grid=self.grid, sar=self.sar)

    def signature(self) -> dict[str, Json]:
        """The part that decides the stored bytes of one source; staged work of another signature is done again."""
        names = ("domain", "bands", "grid", "sar", "max_side", "cell", "storage")
        return {name: to_json(getattr(self, name)) for name in names}

    def record(self, *, personal: bool) -> Mapping[str, Json]:
        """The plan as a store may keep it: no paths of this machine, and no globs where file names identify people."""
        hidden = {"source", "store", "metadata", "secret", "workers", "strict", "dry_run"}
        if personal:
            hidden |= {"include", "exclude"}
        body: dict[str, Json] = to_json(self)
        return {key: value for key, value in body.items() if key not in hidden}
