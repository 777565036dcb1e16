"""What lies below a source, before anything is ingested: counts by what the headers say, and what a filter would take. Writes nothing.

Discovery runs twice where something would be left out by choice: once without any choice, for what is there, and once as an ingest would
run it, for what it would take. Counts are of sources (series, scenes, images). Texts hold what headers say, names included: they are
for the eyes of whoever may read the files.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dinodomain.domain import Domain, find_domain
from dinodomain.errors import BadSource, LeftOut
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.private import write_private
from dinodomain.ingest.sizes import size_text
from dinodomain.ingest.sources import nothing_there, relative_to
from dinodomain.ingest.summary import kind_of, select_lines
from dinodomain.ingest.tally import Spread, Tally, spread_lines
from dinodomain.lineage import Json, canonical, to_json, write_bytes, write_json
from dinodomain.types import FactValue, Select, SourceRef

FIRST_FACTS = (
    "Modality", "BodyPartExamined", "ProtocolName", "SeriesDescription", "ConvolutionKernel", "SliceThickness", "Manufacturer",
    "ManufacturerModelName", "ImageType", "NumberOfImages",
    "sensor", "platform", "level", "processing_baseline", "year_month", "cloud", "crs", "bands", "gsd",
)  # fmt: skip
"""Order in which facts are shown; others follow by name."""

_SUMMED = ("bytes_in", "bytes_out", "requests")
_PLACES = ("lon", "lat")
_NOT_COUNTED = frozenset({*_SUMMED, *_PLACES, "acquired", "cloud_cover_percent", "path", "quantity", "frame_of_reference"})
_CLOUD_EDGES = (0, 10, 20, 50, 100)
_REPORT_EVERY = 20_000
_SHOWN_REASONS = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Sources that share a reason; numbers and quoted words are left out of it.

    Attributes:
        count: How many.
        example: One of them, as its path and its own reason.
        remedy: What to do, of that one.
    """

    count: int
    example: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What an ingest with the same keys would do.

    Attributes:
        choice: The keys that choose, as text; empty where everything is taken.
        sources: Sources it would take.
        units: Units they belong to.
        left_out: Sources left out by choice, by reason.
        refused: Sources that cannot be read as asked, by reason.
    """

    choice: str
    sources: int
    units: int
    left_out: Mapping[str, Reason]
    refused: Mapping[str, Reason]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What lies below a source.

    Attributes:
        source: Where.
        domain: Read as which domain.
        personal: Whether its units are people.
        files: Files of the sources found.
        sources: Sources found that the domain can read, left out by choice or not.
        units: Patients (or other units) that headers name, before ``ingest.patient_map``.
        without_unit: Sources whose headers name none.
        bytes_in: Bytes to be read.
        bytes_out: Bytes of pixels, uncompressed.
        requests: Requests to a server.
        acquired: First and last date of acquisition, or None.
        quantities: Sources by quantity, where that matters.
        place: West, south, east and north end of the sources' centres in degrees, or None.
        facts: Spread of every fact that headers state.
        taken: What an ingest would take.
        top: Values shown per fact.
        files_written: Files written.
    """

    source: str
    domain: str
    personal: bool
    files: int
    sources: int
    units: int
    without_unit: int
    bytes_in: int
    bytes_out: int
    requests: int
    acquired: tuple[str, str] | None
    quantities: Mapping[str, int]
    place: tuple[float, float, float, float] | None
    facts: Mapping[str, Spread]
    taken: Taken
    top: int = 8
    files_written: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        body: dict[str, Json] = to_json(self)
        return {name: value for name, value in body.items() if name != "top"}

    def text(self) -> str:
        """Some lines for a person."""
        left, refused = self.taken.left_out, self.taken.refused
        of = f" of {self.taken.units} patients" if self.personal else ""
        lines = [
            f"{self.source}: {self.files} files, {self.sources} sources of domain {self.domain}{self._units()}",
            *self._sizes(),
            *([f"acquired: {self.acquired[0]} to {self.acquired[1]}"] if self.acquired else []),
            *(
                [f"place: {self.place[0]:.4f},{self.place[1]:.4f},{self.place[2]:.4f},{self.place[3]:.4f} (W, S, E, N)"]
                if self.place
                else []
            ),
            *([f"quantities: {_listed(self.quantities)}"] if self.quantities else []),
            *spread_lines(self.facts, self.top),
            *_choice_lines(f"an ingest would take {self.taken.sources} sources{of}, by ", self.taken.choice or "no choice: all"),
            *_reasons("left out", left),
            *_reasons("refused", refused),
        ]
        return "\n".join([*lines, *self.files_written])

    def _units(self) -> str:
        if not self.personal:
            return ""  # units of rasters are cells of the ground, known once they are read
        unnamed = f" ({self.without_unit} sources name none)" if self.without_unit else ""
        return f", {self.units} patients{unnamed}"

    def _sizes(self) -> list[str]:
        parts = [f"{size_text(self.bytes_in)} to read"] if self.bytes_in else []
        parts += [f"{size_text(self.bytes_out)} of pixels"] if self.bytes_out else []
        parts += [f"{self.requests} requests"] if self.requests else []
        return [", ".join(parts)] if parts else []


def survey(plan: IngestPlan, out: str | Path | None = None, *, domain: Domain | None = None, top: int = 8) -> Survey:
    """Reads headers below ``plan.source`` and counts.

    Args:
        plan: Source, domain and the choices of an ingest; its ``store`` is not looked at.
        out: Folder for ``source.json`` and ``source.txt``, readable by their owner only in a personal domain; None writes nothing.
        domain: The domain itself, where it is not installed under ``plan.domain``.
        top: Values shown per fact in the text.

    Raises:
        UserError: Nothing is there, or a choice does not fit the domain.
    """
    domain = find_domain(plan.domain) if domain is None else domain
    with tempfile.TemporaryDirectory(prefix="dinodomain-") as scratch:
        wanted = plan.as_select(domain.default_select, scratch)
        everything = replace(wanted, where="", one_per_acquisition="", dates="", aoi="", max_cloud=None)
        there, taken = _Seen(), _Seen()
        single = wanted == everything
        for seen, select in ((there, everything), *(() if single else ((taken, wanted),))):
            with _words(seen):
                for item in domain.discover(plan.source, select):
                    seen.add(plan.source, item)
    chosen = there if single else taken
    if not there.sources and not there.left_out and not there.refused:
        nothing_there(plan)
    found = _summed(plan, domain, there, chosen, _choice(plan, domain, wanted), top)
    return found if out is None else _written(found, Path(out), personal=domain.personal)


class _Seen:
    """One run of discovery, counted as it goes."""

    def __init__(self) -> None:
        self.sources = self.files = self.without_unit = self.items = 0
        self.units: set[str] = set()
        self.sums: Counter[str] = Counter()
        self.quantities: Counter[str] = Counter()
        self.tally = Tally()
        self.left_out: dict[str, Reason] = {}
        self.refused: dict[str, Reason] = {}
        self.days: list[str] = []
        self.ends: dict[str, tuple[float, float]] = {}

    def add(self, source: str, item: SourceRef | BadSource) -> None:
        self.items += 1
        if self.items % _REPORT_EVERY == 0:
            _log.info("inspect: %d sources seen", self.items)
        if isinstance(item, BadSource):
            _count(self.left_out if isinstance(item, LeftOut) else self.refused, source, item)
            return
        self.sources += 1
        self.files += len(item.uris)
        if item.unit is None:
            self.without_unit += 1
        else:
            self.units.add(item.unit)
        if item.quantity:
            self.quantities[item.quantity] += 1
        self._facts(item.facts)

    def _facts(self, facts: Mapping[str, FactValue]) -> None:
        for name in _SUMMED:
            value = facts.get(name)
            self.sums[name] += int(value) if isinstance(value, (int, float)) else 0
        for name in _PLACES:
            value = facts.get(name)
            if isinstance(value, (int, float)):
                low, high = self.ends.get(name, (value, value))
                self.ends[name] = (min(low, value), max(high, value))
        day = str(facts.get("acquired") or "")[:10]
        if day:
            self.days = [min([day, *self.days[:1]]), max([day, *self.days[1:]])]
        known = {name: value for name, value in facts.items() if name not in _NOT_COUNTED}
        self.tally.add({**known, "year_month": day[:7] or None, "cloud": _cloud(facts.get("cloud_cover_percent"))})


def _cloud(percent: FactValue) -> str | None:
    """The class of a cloud cover."""
    if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 0 <= percent <= 100:
        return None
    high = next(edge for edge in _CLOUD_EDGES[1:] if percent <= edge)
    return f"{_CLOUD_EDGES[_CLOUD_EDGES.index(high) - 1]} to {high} %"


def _count(reasons: dict[str, Reason], source: str, item: BadSource) -> None:
    kind = kind_of(item.reason)
    before = reasons.get(kind) or Reason(count=0, example=f"{relative_to(source, item.uri)}: {item.reason}", remedy=item.remedy or "")
    reasons[kind] = replace(before, count=before.count + 1)


@contextmanager
def _words(seen: _Seen) -> Iterator[None]:
    """Says how far a long look at headers came when it is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        _log.info("inspect: stopped after %d sources", seen.items)
        raise


def _choice(plan: IngestPlan, domain: Domain, select: Select) -> str:
    """The keys that leave something out, as they would be typed."""
    filtered = f"ingest.select={select.where}" if plan.select is not None else f"the default filter of {domain.name}: {select.where}"
    unset = {"one_per_acquisition": "", "dates": "", "aoi": "", "max_cloud": None}
    keys = [f"ingest.{name}={value}" for name, nothing in unset.items() if (value := getattr(select, name)) != nothing]
    return ", ".join([*keys, *([filtered] if select.where else [])])  # the filter last: it may take many lines


def _summed(plan: IngestPlan, domain: Domain, there: _Seen, chosen: _Seen, choice: str, top: int) -> Survey:
    place = (there.ends["lon"][0], there.ends["lat"][0], there.ends["lon"][1], there.ends["lat"][1]) if len(there.ends) == 2 else None
    return Survey(
        source=plan.source,
        domain=domain.name,
        personal=domain.personal,
        files=there.files,
        sources=there.sources,
        units=len(there.units),
        without_unit=there.without_unit,
        bytes_in=there.sums["bytes_in"],
        bytes_out=there.sums["bytes_out"],
        requests=there.sums["requests"],
        acquired=(there.days[0], there.days[1]) if there.days else None,
        quantities=dict(there.quantities.most_common()),
        place=place,
        facts=there.tally.spreads(FIRST_FACTS),
        taken=Taken(
            choice=choice,
            sources=chosen.sources,
            units=len(chosen.units),
            left_out=_ranked(chosen.left_out),
            refused=_ranked(chosen.refused),
        ),
        top=top,
    )


def _choice_lines(before: str, choice: str) -> list[str]:
    head, *rest = select_lines(choice)
    return [before + head, *rest]


def _ranked(reasons: Mapping[str, Reason]) -> dict[str, Reason]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1].count, item[0])))


def _reasons(word: str, reasons: Mapping[str, Reason]) -> list[str]:
    total = sum(reason.count for reason in reasons.values())
    lines = [_reason_line(kind, reason) for kind, reason in list(reasons.items())[:_SHOWN_REASONS]]
    more = [f"  and {len(reasons) - _SHOWN_REASONS} more reasons"] if len(reasons) > _SHOWN_REASONS else []
    return [f"{word}: {total}", *lines, *more]


def _reason_line(kind: str, reason: Reason) -> str:
    """The example repeats its reason only where that says more than what all have in common."""
    remedy = f"; {reason.remedy}" if reason.remedy else ""
    return f"  {reason.count} x {kind}{remedy} (for example {reason.example.removesuffix(f': {kind}')})"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _written(found: Survey, out: Path, *, personal: bool) -> Survey:
    out.mkdir(parents=True, exist_ok=True)
    found = replace(found, files_written=(str(out / "source.json"), str(out / "source.txt")))
    if personal:
        write_private(out / "source.json", (canonical(found.as_json()) + "\n").encode())
        write_private(out / "source.txt", (found.text() + "\n").encode())
    else:
        write_json(out / "source.json", found.as_json())
        write_bytes(out / "source.txt", (found.text() + "\n").encode())
    return found
