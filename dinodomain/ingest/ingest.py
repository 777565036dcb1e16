"""The verb: find sources, stage each in a worker, finalise. Can be killed at any instant and run again.

A source that cannot be read is listed as skipped and stops nothing. A second ingest adds what is new; it moves nobody's holdout flag
and never rewrites an array.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dinodomain.domain import Domain, find_domain
from dinodomain.errors import BadSource, UserError
from dinodomain.ingest.cells import CellGrid
from dinodomain.ingest.crosswalk import crosswalk_file, update_crosswalk
from dinodomain.ingest.executors import Shared, run_tasks
from dinodomain.ingest.finalise import Finaliser
from dinodomain.ingest.partial import Partial, disk_errors
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.pool import Lost
from dinodomain.ingest.private import SKIPPED_COLUMNS, read_private_table, skipped_file, write_private_table
from dinodomain.ingest.progress import Progress, reporting
from dinodomain.ingest.same_patient import refuse_moved_patients
from dinodomain.ingest.secret import find_secret, make_secret, secret_file
from dinodomain.ingest.shard import Share
from dinodomain.ingest.sources import (
    Found,
    Metadata,
    Names,
    Skipped,
    discover,
    nothing_readable,
    owned,
    read_metadata,
    refused,
    relative_to,
)
from dinodomain.ingest.stage import Outcome, Stager, Task
from dinodomain.ingest.withdraw import finish_withdrawal, leave_out_withdrawn
from dinodomain.lineage import Json, digest, to_json
from dinodomain.store.format import MANIFEST
from dinodomain.store.read import Store, open_store

_DRY_KEY = b"dry run: nothing is stored under this key"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What an ingest did, or would do.

    Attributes:
        store: Folder of the store.
        found: Sources found, readable or not.
        added: Sources that are new in the store.
        present: Sources that were there already.
        skipped: Sources that could not be read, with clear names.
        without_row: Ids of sources that the metadata CSV says nothing of.
        joined_by: What the CSV was matched against, or "".
        counts: Sources, units and held-out units of the store.
        holdout: Why and how many units are held out.
        dry_run: Nothing was written.
        shard: The share that was staged, ``I/N``; nothing is in the store yet. ``found`` and ``skipped`` count that share only.
    """

    store: str
    found: int
    added: int
    present: int
    skipped: tuple[Skipped, ...]
    without_row: tuple[str, ...] = ()
    joined_by: str = ""
    counts: Mapping[str, Json] = field(default_factory=dict)
    holdout: str = ""
    dry_run: bool = False
    shard: str = ""

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        body: dict[str, Json] = to_json(self)
        return body

    def text(self) -> str:
        """A few lines for a person."""
        verb = "would be added" if self.dry_run else "staged" if self.shard else "added"
        lines = [f"{self.found} sources found: {self.added} {verb}, {self.present} already there, {len(self.skipped)} skipped"]
        lines += [f"  skipped {item.uri}: {item.reason}; {item.remedy}" for item in self.skipped[:20]]
        lines += [f"  ... and {len(self.skipped) - 20} more, see the manifest"] if len(self.skipped) > 20 else []
        if self.without_row:
            lines.append(f"{len(self.without_row)} sources have no row in the metadata: {', '.join(self.without_row[:10])}")
        if self.counts:
            lines.append(f"{self.counts['sources']} sources of {self.counts['units']} units; held out for the audit: {self.holdout}")
        if self.shard and not self.dry_run:
            lines.append(f"this was share {self.shard}; once all are staged, run the same without ingest.shard to finish the store")
        lines.append(f"store: {self.store}" + (" (nothing was written)" if self.dry_run else ""))
        return "\n".join(lines)


def ingest(plan: IngestPlan, *, domain: Domain | None = None, progress: Progress | None = None) -> Summary:
    """Converts sources into a store, or adds new ones to it.

    Args:
        plan: What to convert, and how.
        domain: The domain itself, where it is not installed under ``plan.domain``.
        progress: Called with (done, total); a bar or log lines unless given.

    Raises:
        UserError: The input is wrong, nothing can be read, or the disk refuses. What is staged is kept for the next run.
        KeyboardInterrupt: Ctrl-C; what is staged is kept as well.
    """
    assert plan.withdraw is None, "a list of withdrawals is for ingest.withdraw"
    domain = find_domain(plan.domain) if domain is None else domain
    if plan.crosswalk and not domain.personal:
        raise UserError("ingest.crosswalk", f"domain {domain.name!r} keeps clear ids", remedy="leave it out: there is nothing to map back")
    store = Path(os.path.abspath(plan.store))
    _refuse_other_folder(store)
    found = discover(domain, plan)
    metadata = read_metadata(plan, found, personal=domain.personal)
    found = owned(plan, found, metadata)
    if plan.dry_run:
        return _dry_run(plan, domain, found, metadata, store)
    partial = Partial(store, Share.of(plan.shard).job)
    with disk_errors(store), partial.open_after_commit():
        if plan.shard is None:
            finish_withdrawal(partial)
        old = _existing(store, plan)
        names = Names(secret=_secret(plan, store, domain, old), personal=domain.personal)
        refuse_moved_patients(plan, found, names, old)
        found, withdrawn = leave_out_withdrawn(plan, found, metadata, names, old)
        summary = _Run(plan, domain, names, partial, old).run(found, metadata, progress)
        return _with_withdrawn(summary, _in_share(plan, names, withdrawn))


def _with_withdrawn(summary: Summary, withdrawn: Sequence[Skipped]) -> Summary:
    """The user is told of sources that a withdrawal keeps out; the store is not."""
    return replace(summary, found=summary.found + len(withdrawn), skipped=(*summary.skipped, *withdrawn))


def _refuse_other_folder(store: Path) -> None:
    if store.exists() and not (store / MANIFEST).exists() and (not store.is_dir() or any(store.iterdir())):
        raise UserError("store", f"{str(store)!r} exists and is not a store", remedy="choose another folder")


def _existing(store: Path, plan: IngestPlan) -> Store | None:
    """The store that is added to, if there is one; refuses other settings than it was made with."""
    if not (store / MANIFEST).exists():
        return None
    old = open_store(store)
    wanted, known = plan.signature(), old.manifest["settings"]
    wrong = [f"{key}={known.get(key)} (now {wanted[key]})" for key in wanted if wanted[key] != known.get(key)]
    if wrong:
        raise UserError("store", f"{str(store)!r} was made with {', '.join(wrong)}", remedy="use the same settings, or make a new store")
    return old


def _secret(plan: IngestPlan, store: Path, domain: Domain, old: Store | None) -> bytes:
    known = None if old is None else str(old.manifest["secret_fingerprint"])
    found = find_secret(store, plan.secret, personal=domain.personal, known=known)
    return make_secret(secret_file(store)) if found is None else found


def _dry_run(plan: IngestPlan, domain: Domain, found: Found, metadata: Metadata, store: Path) -> Summary:
    old = _existing(store, plan)
    known = None if old is None else str(old.manifest["secret_fingerprint"])
    secret = find_secret(store, plan.secret, personal=domain.personal, known=known)
    names = Names(secret=_DRY_KEY if secret is None else secret, personal=domain.personal)
    refuse_moved_patients(plan, found, names, old)
    found, withdrawn = leave_out_withdrawn(plan, found, metadata, names, old)
    new, present, changed = _sort_out(plan, found, names, old)
    skipped = (*_in_share(plan, names, (*found.skipped, *withdrawn)), *changed)
    return Summary(
        store=str(store),
        found=len(new) + present + len(skipped),
        added=len(new),
        present=present,
        skipped=skipped,
        without_row=metadata.without,
        joined_by=metadata.kind,
        dry_run=True,
        shard=plan.shard or "",
    )


def _sort_out(plan: IngestPlan, found: Found, names: Names, old: Store | None) -> tuple[list[Task], int, list[Skipped]]:
    """New sources, the number of those already there, and those that changed since."""
    known = {} if old is None else dict(zip(old.index["source_id"].to_pylist(), old.index["source_digest"].to_pylist()))
    new, present, changed, share = [], 0, [], Share.of(plan.shard)
    for ref in found.refs:
        task = names.task(ref)
        if not share.holds(task.source_id):
            continue
        if task.source_id not in known:
            new.append(task)
        elif known[task.source_id] == task.digest:
            present += 1
        else:
            bad = BadSource(ref.uris[0], "has changed since it was ingested; a store never rewrites a source", "ingest into a new store")
            changed.append(refused(plan.source, bad, ref.keys))
    return new, present, changed


def _in_share(plan: IngestPlan, names: Names, skipped: Sequence[Skipped]) -> list[Skipped]:
    share = Share.of(plan.shard)
    return [item for item in skipped if share.holds(names.stored(item.uri))]


class _Run:
    """One ingest, from discovery to the finished store."""

    def __init__(self, plan: IngestPlan, domain: Domain, names: Names, partial: Partial, old: Store | None) -> None:
        self._plan, self._domain, self._names, self._partial, self._old = plan, domain, names, partial, old
        cells = CellGrid(cell_m=plan.cell)
        # The domain object counts too: two of one name may be set up differently.
        signature = digest({**plan.signature(), "domain_settings": repr(domain) if type(domain).__repr__ is not object.__repr__ else ""})
        self._stager = Stager(
            domain=domain, partial=partial, storage=plan.storage, max_side=plan.max_side, cells=cells, signature=signature
        )

    def run(self, found: Found, metadata: Metadata, progress: Progress | None) -> Summary:
        new, present, changed = _sort_out(self._plan, found, self._names, self._old)
        staged, bad = self._stage(new, progress)
        if self._plan.shard is not None:
            return self._staged_share(len(staged), present, (*_in_share(self._plan, self._names, found.skipped), *changed, *bad))
        skipped = tuple(sorted((*found.skipped, *changed, *bad), key=lambda item: item.uri))
        if not staged and not present and (skipped or self._old is None):
            self._partial.remove()
            raise nothing_readable(self._plan, skipped)
        rows = self._skipped_rows(skipped, staged)
        self._write_private(skipped, rows)
        counts = self._finish(staged, rows, metadata)
        store = open_store(self._partial.store)
        self._cross(store, found)
        holdout = store.manifest["holdout"]
        return Summary(
            store=str(self._partial.store),
            found=len(found.refs) + len(found.skipped),
            added=len(staged),
            present=present,
            skipped=skipped,
            without_row=metadata.without,
            joined_by=metadata.kind,
            counts=counts,
            holdout=f"{len(holdout['units'])} units ({holdout['reason']})",
        )

    def _staged_share(self, staged: int, present: int, skipped: Sequence[Skipped]) -> Summary:
        """What one job of many says; the run that finishes the store reads what could not be read once more, and lists it."""
        return Summary(
            store=str(self._partial.store),
            found=staged + present + len(skipped),
            added=staged,
            present=present,
            skipped=tuple(sorted(skipped, key=lambda item: item.uri)),
            shard=str(self._plan.shard),
        )

    def _stage(self, tasks: Sequence[Task], progress: Progress | None) -> tuple[list[Task], list[Skipped]]:
        staged: list[Task] = []
        waiting: list[Task] = []
        for task in tasks:
            (staged if self._stager.is_done(task) else waiting).append(task)
        if staged:
            _log.info("ingest: %d of %d sources were staged by an earlier run", len(staged), len(tasks))
        bad: list[Skipped] = []
        with reporting(len(tasks), progress) as report:
            report(len(staged), len(tasks))
            for result in self._results(waiting):
                outcome = _as_outcome(result)
                if outcome.bad is None:
                    staged.append(outcome.task)
                elif self._plan.strict:
                    raise outcome.bad
                else:
                    bad.append(refused(self._plan.source, outcome.bad, outcome.task.ref.keys))
                report(len(staged) + len(bad), len(tasks))
        return staged, bad

    def _results(self, tasks: Sequence[Task]) -> Iterable[Outcome | Lost[Task]]:
        def arrived(result: object) -> bool:
            return not isinstance(result, Outcome) or result.bad is not None or self._stager.is_done(result.task)

        shared = Shared(folder=self._partial.root, source=self._plan.source, arrived=arrived)
        return run_tasks(self._plan.executor, self._stager, tasks, self._plan.workers, shared)

    def _skipped_rows(self, skipped: Sequence[Skipped], staged: Sequence[Task]) -> list[dict[str, str]]:
        """The manifest's list: what was skipped now or before, but for what is in the store by now."""
        rows = {row["uri"]: row for row in ([] if self._old is None else self._old.manifest["skipped"])}
        rows |= {row["uri"]: row for row in map(self._names.row, skipped)}
        now_in = {self._names.stored(relative_to(self._plan.source, uri)) for task in staged for uri in task.ref.uris}
        return [rows[uri] for uri in sorted(rows) if uri not in now_in]

    def _write_private(self, skipped: Sequence[Skipped], rows: Sequence[Mapping[str, str]]) -> None:
        """Clear names of skipped sources of a personal domain lie beside the store: those that its manifest lists."""
        if not self._domain.personal:
            return
        path = skipped_file(self._partial.store)
        before = read_private_table(path)
        known = {row["stored"]: row for row in before}
        known |= {self._names.stored(item.uri): to_json(item) for item in skipped}
        listed = [{**known[row["uri"]], "stored": row["uri"], "kind": row.get("kind", "refused")} for row in rows if row["uri"] in known]
        if listed != before:
            write_private_table(path, SKIPPED_COLUMNS, listed)

    def _cross(self, store: Store, found: Found) -> None:
        """The crosswalk, where it is asked for or there already."""
        if self._domain.personal and (self._plan.crosswalk or crosswalk_file(self._partial.store).exists()):
            update_crosswalk(store, ((self._names.stored(ref.source_id), ref) for ref in found.refs))

    def _finish(self, staged: Sequence[Task], rows: Sequence[Mapping[str, str]], metadata: Metadata) -> Mapping[str, Json]:
        if self._old is not None and not staged and list(rows) == self._old.manifest["skipped"]:
            self._partial.remove()
            counts: Mapping[str, Json] = self._old.manifest["counts"]
            return counts
        last = Finaliser(plan=self._plan, domain=self._domain, names=self._names, partial=self._partial, old=self._old, metadata=metadata)
        return last.run(staged, rows)


def _as_outcome(result: Outcome | Lost[Task]) -> Outcome:
    if isinstance(result, Outcome):
        return result
    remedy = "if memory ran out, set ingest.workers lower; otherwise its decoder crashes: leave it out with ingest.exclude"
    return Outcome(task=result.task, bad=BadSource(result.task.ref.uris[0], f"the worker that read it died ({result.cause})", remedy))
