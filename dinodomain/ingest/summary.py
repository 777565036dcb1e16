"""What an ingest tells: counts, and refused and left-out sources grouped by reason, so that 200,000 of them stay a few lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dinodomain.errors import UserError
from dinodomain.expression import clauses
from dinodomain.ingest.estimate import Estimate
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.sources import LEFT_OUT, REFUSED, Skipped
from dinodomain.lineage import Json, to_json

_GROUPS = 20
_EXAMPLES = 3
_WIDTH = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something a person should look at in a source that was taken.

    Attributes:
        uri: Path below the source folder.
        warning: What it is.
    """

    uri: str
    warning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows of one reason.

    Attributes:
        reason: The reason; names and numbers of single sources stand as ``…`` and ``#`` where they differ.
        count: Number of rows.
        remedy: What to do, of the first row.
        examples: The first few sources.
    """

    reason: str
    count: int
    remedy: str
    examples: tuple[str, ...]


def kind_of(reason: str) -> str:
    """A reason without the names and numbers of one source, so that equal faults are counted together.

    What follows a key of the user's is the user's own text, which says best what left a source out; it is kept.
    """
    chosen = _CHOSEN.match(reason)
    if chosen is None:
        return _without_details(reason)
    detail = re.sub(r" \(\d+ (files?|frames of a file)\)$", "", chosen["detail"])
    return chosen["choice"] + (detail if chosen["choice"].startswith("left out by domain=") else _without_details(detail))


_CHOSEN = re.compile(r"(?P<choice>left out by (ingest\.|domain=).*?)(?P<detail>( \([^()]*\))?)$", re.DOTALL)


def _without_details(text: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "…", re.sub(r"\d+(\.\d+)?", "#", text))


def grouped(rows: Iterable[tuple[str, str, str]]) -> tuple[Group, ...]:
    """Groups of (uri, reason, remedy), commonest first; a reason that is the same in all rows of its group is told as it is."""
    members: dict[str, list[tuple[str, str, str]]] = {}
    for row in rows:
        members.setdefault(kind_of(row[1]), []).append(row)
    groups = []
    for kind, found in members.items():
        first = found[0]
        reason = first[1] if all(row[1] == first[1] for row in found) else kind
        groups.append(Group(reason=reason, count=len(found), remedy=first[2], examples=tuple(row[0] for row in found[:_EXAMPLES])))
    return tuple(sorted(groups, key=lambda group: (-group.count, group.reason)))


def by_reason(skipped: Iterable[Skipped], kind: str) -> tuple[Group, ...]:
    """Groups of the skipped sources of one kind."""
    return grouped((item.uri, item.reason, item.remedy) for item in skipped if item.kind == kind)


def counts_by_reason(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs, sorted by reason: what a manifest keeps."""
    return {group.reason: group.count for group in sorted(grouped(("", reason, "") for reason in reasons), key=lambda one: one.reason)}


def group_lines(groups: Sequence[Group]) -> list[str]:
    """At most 20 lines, one a group."""
    lines = [_line(group) for group in groups[:_GROUPS]]
    rest = groups[_GROUPS:]
    return [*lines, *([f"  ... and {sum(group.count for group in rest)} more for {len(rest)} other reasons"] if rest else [])]


def _line(group: Group) -> str:
    names = ", ".join(group.examples) + (" ..." if group.count > len(group.examples) else "")
    text = f"  {group.count} x {group.reason}" if group.count > 1 else f"  {group.examples[0]}: {group.reason}"
    text = text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
    return "; ".join(part for part in (text, group.remedy) if part) + (f" ({names})" if group.count > 1 else "")


_DEFAULT, _EDIT = "default of domain", "; edit it, or ingest.select=all"


def select_text(plan: IngestPlan, default: str) -> str:
    """The header filter in use, and whose it is; empty where there is none."""
    if plan.select is None:
        return f"ingest.select ({_DEFAULT} {plan.domain!r}): {default}" if default else ""
    return f"ingest.select: {plan.select}"


def select_lines(select: str) -> list[str]:
    """The same for a person's eyes: a long filter one condition a line."""
    title, _, text = select.partition(": ")
    parts = clauses(text) if len(select) > _WIDTH else []
    if len(parts) < 2:
        return [select + (_EDIT if _DEFAULT in title else "")] if select else []
    return [f"{title}{_EDIT}:", *(f"  {'and ' if number else ''}{part}" for number, part in enumerate(parts))]


def nothing_taken(plan: IngestPlan, skipped: Sequence[Skipped], select: str) -> UserError:
    """The error of a source in which everything was refused or left out."""
    refused, left = by_reason(skipped, REFUSED), by_reason(skipped, LEFT_OUT)
    lines = [f"none of the {len(skipped)} sources below {plan.source!r} can be taken:", *group_lines(refused)]
    if left:
        lines += [f"left out by choice: {sum(group.count for group in left)}", *group_lines(left), *select_lines(select)]
    return UserError("source", "\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What an ingest did, or would do.

    Attributes:
        store: Folder of the store.
        found: Sources found, readable or not.
        added: Sources that are new in the store.
        present: Sources that were there already.
        renamed: How many of those lie there under another id: the same images under other names.
        skipped: Sources that were refused or left out, with clear names.
        warnings: What a person should look at in sources that were taken.
        select: The header filter that was in use, and whose it is.
        unnamed: How many of the added sources belong to no patient that is known, in a personal domain.
        without_row: Ids of sources that the metadata CSV says nothing of.
        joined_by: What the CSV was matched against, or "".
        counts: Sources, units and held-out units of the store.
        holdout: Why and how many units are held out.
        estimate: What a dry run reckons; None otherwise.
        dry_run: Nothing was written.
        shard: The share that was staged, ``I/N``; nothing is in the store yet. ``found`` and ``skipped`` count that share only.
    """

    store: str
    found: int
    added: int
    present: int
    skipped: tuple[Skipped, ...]
    renamed: int = 0
    warnings: tuple[Warned, ...] = ()
    select: str = ""
    unnamed: int = 0
    without_row: tuple[str, ...] = ()
    joined_by: str = ""
    counts: Mapping[str, Json] = field(default_factory=dict)
    holdout: str = ""
    estimate: Estimate | None = None
    dry_run: bool = False
    shard: str = ""

    @property
    def refused(self) -> int:
        """Number of sources that cannot be read as asked."""
        return sum(item.kind == REFUSED for item in self.skipped)

    @property
    def left_out(self) -> int:
        """Number of sources that a choice of the user leaves out."""
        return len(self.skipped) - self.refused

    def as_json(self) -> dict[str, Json]:
        """Plain values; every skipped source, and the reasons with their counts."""
        groups = {kind: to_json(by_reason(self.skipped, name)) for kind, name in (("refused", REFUSED), ("left_out", LEFT_OUT))}
        body: dict[str, Json] = to_json(self)
        return {**body, "refused": self.refused, "left_out": self.left_out, "by_reason": groups}

    def text(self) -> str:
        """Some lines for a person, however many sources there are."""
        lines = [self._first_line(), *self._select_lines()]
        for number, kind, name in ((self.refused, REFUSED, "refused"), (self.left_out, LEFT_OUT, "left out by choice")):
            lines += [f"{name}: {number}", *group_lines(by_reason(self.skipped, kind))] if number else []
        if self.warnings:
            told = grouped((item.uri, item.warning, "") for item in self.warnings)
            sources = len({item.uri for item in self.warnings})
            lines += [f"look at: {len(self.warnings)} warnings on {sources} sources that were taken", *group_lines(told)]
        if self.unnamed:
            lines.append(
                f"{self.unnamed} sources name no patient: each counts as a person of its own, so that scans of one person may end up on"
                " both sides of a split; name people with ingest.metadata and ingest.group"
            )
        if self.without_row:
            shown = ", ".join(self.without_row[:10]) + (" ..." if len(self.without_row) > 10 else "")
            lines.append(f"{len(self.without_row)} sources have no row in the metadata: {shown}")
        if self.estimate is not None:
            lines += self.estimate.lines()
        if self.counts:
            lines.append(f"{self.counts['sources']} sources of {self.counts['units']} units; held out for the audit: {self.holdout}")
        if self.shard and not self.dry_run:
            lines.append(f"this was share {self.shard}; once all are staged, run the same without ingest.shard to finish the store")
        lines.append(f"store: {self.store}" + (" (nothing was written)" if self.dry_run else ""))
        return "\n".join(lines)

    def _select_lines(self) -> list[str]:
        """A filter of a kilobyte is told in full where a person looks before deciding, and by its name afterwards."""
        if self.dry_run or len(self.select) <= _WIDTH:
            return select_lines(self.select)
        title = self.select.partition(": ")[0]
        return [f"{title}: printed by a dry run{_EDIT}"] if self.left_out else []

    def _first_line(self) -> str:
        verb = "would be added" if self.dry_run else "staged" if self.shard else "added"
        renamed = f" ({self.renamed} of them the same images under another name)" if self.renamed else ""
        kinds = ((self.refused, "refused"), (self.left_out, "left out by choice"))
        skipped = ", ".join(f"{number} {kind}" for number, kind in kinds if number) or "0 skipped"
        return f"{self.found} sources found: {self.added} {verb}, {self.present} already there{renamed}, {skipped}"
