"""What lies below the source folder, under which names the store may know it, and what a metadata CSV adds.

In a personal domain every id, key and unit becomes a keyed hash here, before a worker sees it, and reasons lose whatever could
name a person. Reads headers only (through the domain) and the CSV.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from dinodomain.domain import Domain
from dinodomain.errors import BadSource, LeftOut, UserError
from dinodomain.ingest.join import DICOM_FIELDS, FRAMES_OF, KINDS, Match, Table, match, read_table
from dinodomain.ingest.patients import alias_of, apply, read_patient_map, unit_of
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.progress import counted
from dinodomain.ingest.scrub import scrubbed
from dinodomain.ingest.stage import Task
from dinodomain.lineage import clean_id, date_shift, pseudonym
from dinodomain.types import SourceRef

_SHOWN = 10
REFUSED, LEFT_OUT = "refused", "left out"
"""Kinds of skipped sources: at fault, or not wanted."""
_PLACES = {"site": "InstitutionName", "station": "StationName"}
"""Fields that only a keyed hash may fill, and the keys or facts of a header that they come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A source that was left out; clear names, for the user's eyes.

    Attributes:
        uri: Path below the source folder where it lies there.
        reason: What is wrong with it.
        remedy: What to do about it.
        keys: What a CSV may call it.
        kind: ``refused`` for what is at fault, ``left out`` for what a choice of the user leaves out.
    """

    uri: str
    reason: str
    remedy: str
    keys: Mapping[str, str]
    kind: str = REFUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How clear names become stored ones.

    Attributes:
        secret: The store's secret.
        personal: Whether names must be hashed.
    """

    secret: bytes = field(repr=False)
    personal: bool

    def stored(self, value: str) -> str:
        """An id, key or unit as the store holds it."""
        return pseudonym(self.secret, value) if self.personal else value

    def task(self, ref: SourceRef) -> Task:
        """A source with its stored names, and by how much its date moves: with its patient, or alone where nobody is known."""
        owner = ref.unit or ref.source_id
        days = date_shift(self.secret, owner) if self.personal else 0
        shift_of = self.stored(owner) if self.personal else ""
        return Task(
            ref=ref,
            source_id=self.stored(ref.source_id),
            digest=self.stored(ref.digest),
            instance=self.stored(ref.instance) if ref.instance else "",
            shift_days=days,
            shift_of=shift_of,
        )

    def places(self, ref: SourceRef) -> dict[str, str]:
        """Fields ``site`` and ``station`` of a personal domain's source: keyed hashes of what its header calls them."""
        named = {field: str(ref.keys.get(fact) or ref.facts.get(fact) or "") for field, fact in _PLACES.items()} if self.personal else {}
        return {field: self.stored(name) for field, name in named.items() if clean_id(name)}

    def row(self, skipped: Skipped) -> dict[str, str]:
        """A line of the manifest: nothing clear in a personal domain."""
        keys = {f"key_{kind}": self.stored(value) for kind, value in skipped.keys.items() if value}
        hide = (lambda text: scrubbed(text, (skipped.uri, *skipped.keys.values()))) if self.personal else str
        return {
            "uri": self.stored(skipped.uri),
            "reason": hide(skipped.reason),
            "remedy": hide(skipped.remedy),
            "kind": skipped.kind,
            **keys,
        }


def relative_to(source: str, uri: str) -> str:
    """Path below the source folder; the last part where it lies elsewhere, so that no path of this machine is kept."""
    root, path = Path(source).absolute(), Path(uri).absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else PurePosixPath(uri).name or uri


def refused(source: str, bad: BadSource, keys: Mapping[str, str] | None = None) -> Skipped:
    """A refusal, with its path below the source folder."""
    relative = relative_to(source, bad.uri)
    reason = str(bad.reason).replace(f"{source.rstrip('/')}/", "")
    kind = LEFT_OUT if isinstance(bad, LeftOut) else REFUSED
    return Skipped(
        uri=relative, reason=reason, remedy=bad.remedy or "", keys={**path_keys(relative), **bad.keys, **(keys or {})}, kind=kind
    )


def path_keys(relative: str) -> dict[str, str]:
    """The keys that follow from a relative path alone."""
    path = PurePosixPath(relative)
    return {"path": relative, "name": path.name, "stem": path.name.split(".")[0], "folder": path.parent.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Result of discovery.

    Attributes:
        refs: Readable sources, sorted by id, each id once.
        skipped: Refused ones.
    """

    refs: tuple[SourceRef, ...]
    skipped: tuple[Skipped, ...]


def discover(domain: Domain, plan: IngestPlan, scratch: str = "") -> Found:
    """Lists the sources.

    Args:
        domain: The domain.
        plan: The plan.
        scratch: Folder for what must be unpacked or fetched.

    Raises:
        UserError: Nothing is there.
        BadSource: A source was refused and the plan is strict.
    """
    refs: dict[str, SourceRef] = {}
    skipped: list[Skipped] = []
    for item in counted(domain.discover(plan.source, plan.as_select(domain.default_select, scratch)), "sources found"):
        bad = item if isinstance(item, BadSource) else _taken_id(item, refs)
        if bad is None:
            assert isinstance(item, SourceRef), "discover yields SourceRef or BadSource"
            refs[item.source_id] = _cleaned(item)
        elif plan.strict and not isinstance(bad, LeftOut):
            raise bad
        else:
            skipped.append(refused(plan.source, bad))
    if not refs and not skipped:
        nothing_there(plan)
    return Found(refs=_with_persons(domain, plan, [refs[key] for key in sorted(refs)]), skipped=tuple(skipped))


def _cleaned(ref: SourceRef) -> SourceRef:
    """Keys and unit without blanks and NULs around them, so that equal ids are equal."""
    keys = {kind: clean_id(value) for kind, value in ref.keys.items()}
    return replace(ref, keys=keys, unit=None if ref.unit is None else unit_of(*alias_of(ref.unit)))


def _with_persons(domain: Domain, plan: IngestPlan, refs: Sequence[SourceRef]) -> tuple[SourceRef, ...]:
    if plan.patient_map is None:
        return tuple(refs)
    if not domain.personal:
        raise UserError("ingest.patient_map", f"domain {domain.name!r} knows no patients", remedy="leave it out")
    return apply(read_patient_map(plan.patient_map), refs)


def _taken_id(ref: SourceRef, refs: Mapping[str, SourceRef]) -> BadSource | None:
    if ref.source_id not in refs:
        return None
    other = refs[ref.source_id].uris[0]
    return BadSource(ref.uris[0], f"its id {ref.source_id!r} is already that of {other!r}", "rename one of the two")


def nothing_there(plan: IngestPlan) -> None:
    """Raises the error of a source that holds nothing for the domain."""
    local = "://" not in plan.source and not plan.source.startswith(("generate:", "torchgeo:"))
    if local and not Path(plan.source).exists():
        raise UserError("source", f"{plan.source!r} does not exist", allowed="a folder or file that the domain reads")
    globs = (
        f" that ingest.include={list(plan.include)} and ingest.exclude={list(plan.exclude)} leave" if plan.include or plan.exclude else ""
    )
    raise UserError(
        "source", f"{plan.source!r} holds nothing that domain {plan.domain!r} reads{globs}", remedy="check the path and the domain"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What the CSV says of each source, by clear source id.

    Attributes:
        rows: Source id to its CSV row; a source without one is absent.
        without: Ids of sources without a row, sorted.
        kind: What the CSV was joined by, or "" without a CSV.
    """

    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    kind: str = ""


def read_metadata(plan: IngestPlan, found: Found, *, personal: bool) -> Metadata:
    """Joins ``ingest.metadata`` to the sources.

    Raises:
        UserError: A column is missing, a row matches no or several sources, a group is empty, or a copied column would identify people.
    """
    if plan.metadata is None:
        return Metadata()
    table = read_table(plan.metadata, "ingest.metadata")
    for key, columns in (("group", () if plan.group is None else (plan.group,)), ("fields", plan.fields)):
        for column in columns:
            table.require(column, f"ingest.{key}")
    keys, skipped = [ref.keys for ref in found.refs], [item.keys for item in found.skipped]
    joined = match(table, plan.join, keys, skipped, units=[ref.unit for ref in found.refs], place="ingest.join")
    _refuse_empty_groups(plan, table, joined)
    if personal:
        _refuse_identifying(plan, table, found, joined)
    rows = {found.refs[number].source_id: table.rows[row] for number, row in joined.rows.items()}
    return Metadata(rows=rows, without=tuple(ref.source_id for ref in found.refs if ref.source_id not in rows), kind=joined.kind)


def owned(plan: IngestPlan, found: Found, metadata: Metadata) -> Found:
    """Sources whose headers name nobody belong to the group that the CSV gives them; frames of one file belong together in any case."""
    groups = {} if plan.group is None else {source_id: row[plan.group] for source_id, row in metadata.rows.items()}
    refs = (replace(ref, unit=ref.unit or groups.get(ref.source_id) or ref.keys.get(FRAMES_OF)) for ref in found.refs)
    return replace(found, refs=tuple(refs))


def unnamed(refs: Iterable[SourceRef], *, personal: bool) -> int:
    """How many sources belong to no patient that headers or a CSV name."""
    return sum(ref.unit in (None, "", ref.keys.get(FRAMES_OF)) for ref in refs) if personal else 0


def _refuse_empty_groups(plan: IngestPlan, table: Table, joined: Match) -> None:
    if plan.group is None:
        return
    empty = sorted({table.lines[row] for row in joined.rows.values() if not table.rows[row][plan.group]})
    if empty:
        shown = ", ".join(map(str, empty[:_SHOWN]))
        raise UserError(
            "ingest.group", f"{table.path}: column {plan.group!r} is empty in {len(empty)} rows: line {shown}", remedy="fill it in"
        )


def _refuse_identifying(plan: IngestPlan, table: Table, found: Found, joined: Match) -> None:
    """A copied column lies in the store in the clear, so it may not hold what the store hashes."""
    rows = {number: table.rows[row] for number, row in joined.rows.items()}
    units = {number: rows[number].get(plan.group or "") or found.refs[number].unit or found.refs[number].source_id for number in rows}
    shared = _shared_folders(found, units)
    for column in plan.fields:
        if column in (plan.join, plan.group):
            problem = f"column {column!r} identifies people; domain {plan.domain!r} may not keep it"
            raise UserError("ingest.fields", problem, remedy="leave it out")
        for number, row in rows.items():
            if row[column] and row[column] in {units[number], row[plan.join], *_identities(found.refs[number], shared)}:
                problem = f"column {column!r} repeats a name of its source (line {table.lines[joined.rows[number]]})"
                raise UserError("ingest.fields", f"{problem}; domain {plan.domain!r} may not keep it", remedy="leave it out")


def _shared_folders(found: Found, units: Mapping[int, str]) -> set[str]:
    """Folders with sources of several units: their names (a site, a class) say nothing of one person."""
    held: dict[str, set[str]] = {}
    for number, unit in units.items():
        held.setdefault(found.refs[number].keys.get("folder", ""), set()).add(unit)
    return {folder for folder, inside in held.items() if len(inside) > 1}


def _identities(ref: SourceRef, shared: set[str]) -> set[str]:
    named = {value for kind, value in ref.keys.items() if kind in (*KINDS, *DICOM_FIELDS) or kind.endswith("ID")}
    return {ref.source_id, ref.unit or "", *named} - shared
