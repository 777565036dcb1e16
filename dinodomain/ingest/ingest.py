"""The verb: find sources, stage each in a worker, finalise. Can be killed at any instant and run again.

A source that cannot be read is listed as skipped and stops nothing. A second ingest adds what is new; it moves nobody's holdout flag
and never rewrites an array.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dinodomain.domain import Domain, find_domain
from dinodomain.errors import BadSource, LeftOut, UserError
from dinodomain.ingest.crosswalk import crosswalk_file, update_crosswalk
from dinodomain.ingest.estimate import estimate
from dinodomain.ingest.executors import Shared, run_tasks
from dinodomain.ingest.finalise import Finaliser
from dinodomain.ingest.identity import compare
from dinodomain.ingest.partial import Partial, disk_errors
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.pool import Lost
from dinodomain.ingest.private import SKIPPED_COLUMNS, read_private_table, skipped_file, write_private_table
from dinodomain.ingest.progress import Progress, reporting
from dinodomain.ingest.same_patient import refuse_moved_patients
from dinodomain.ingest.secret import find_secret, make_secret, secret_file
from dinodomain.ingest.shard import Share
from dinodomain.ingest.sources import (
    REFUSED,
    Found,
    Metadata,
    Names,
    Skipped,
    discover,
    owned,
    read_metadata,
    refused,
    relative_to,
    unnamed,
)
from dinodomain.ingest.stage import Outcome, Stager, Task
from dinodomain.ingest.summary import Summary, Warned, nothing_taken, select_text
from dinodomain.ingest.withdraw import finish_withdrawal, leave_out_withdrawn
from dinodomain.ingest.work import Work, bytes_of, in_share, plan_work
from dinodomain.lineage import Json, digest, to_json
from dinodomain.store.cells import CellGrid
from dinodomain.store.format import MANIFEST
from dinodomain.store.read import Store, open_store

_DRY_KEY = b"dry run: nothing is stored under this key"
_log = logging.getLogger(__name__)


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
    if plan.dry_run:
        with tempfile.TemporaryDirectory(prefix="dinodomain-") as scratch:
            found, metadata = _found(domain, plan, scratch)
            return _dry_run(plan, domain, found, metadata, store)
    partial = Partial(store, Share.of(plan.shard).job)
    with _working(partial) as scratch:
        if plan.shard is None:
            with disk_errors(store):
                finish_withdrawal(partial)
        found, metadata = _found(domain, plan, scratch)
        with disk_errors(store):
            old = _existing(store, plan)
            names = Names(secret=_secret(plan, store, domain, old), personal=domain.personal)
            refuse_moved_patients(plan, found, names, old)
            found, withdrawn = leave_out_withdrawn(plan, found, metadata, names, old)
            summary = _Run(plan, domain, names, partial, old).run(found, metadata, progress)
            return _with_withdrawn(summary, in_share(plan, names, withdrawn))


@contextlib.contextmanager
def _working(partial: Partial) -> Iterator[str]:
    """Holds the locks; gives the scratch folder. What is staged or fetched outlives a failure, an empty folder does not."""
    with contextlib.ExitStack() as held:
        with disk_errors(partial.store):
            held.enter_context(partial.open_after_commit())
            (partial.root / "scratch").mkdir(mode=0o700, exist_ok=True)  # what is unpacked there has its clear names
            partial.scratch.mkdir(exist_ok=True)
        try:
            yield str(partial.scratch)
        except BaseException:
            partial.remove_if_unused()
            raise


def _found(domain: Domain, plan: IngestPlan, scratch: str) -> tuple[Found, Metadata]:
    """Sources and what the CSV says of them; a disk that is too full to unpack an archive is no fault of the archive."""
    try:
        found = discover(domain, plan, scratch)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with disk_errors(Path(scratch)):
            raise
    metadata = read_metadata(plan, found, personal=domain.personal)
    return owned(plan, found, metadata), metadata


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
    wrong = plan.differences(old.manifest["settings"])
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
    work = plan_work(plan, names, found, old)
    skipped = (*work.skipped, *in_share(plan, names, withdrawn))
    groups = {source_id: row[plan.group] for source_id, row in metadata.rows.items()} if plan.group else {}
    refs = [task.ref for task in work.new]
    return Summary(
        store=str(store),
        found=len(work.new) + work.present + len(skipped),
        added=len(work.new),
        present=work.present,
        renamed=work.renamed,
        skipped=skipped,
        select=select_text(plan, domain.default_select),
        unnamed=unnamed(refs, personal=domain.personal),
        without_row=metadata.without,
        joined_by=metadata.kind,
        estimate=estimate(refs, workers=plan.workers, cell_m=plan.cell, groups=groups, old=old, budget=work.budget),
        dry_run=True,
        shard=plan.shard or "",
    )


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
        work = plan_work(self._plan, self._names, found, self._old)
        if work.budget:
            _log.info("ingest.budget: %s", work.budget)
        staged, bad = self._stage(work.new, progress)
        if self._plan.shard is not None:
            return self._staged_share(len(staged), work, bad)
        compared = compare(self._plan.source, staged, work.known, self._stager.content_of)
        self._refuse_if_strict(compared.skipped)
        staged, present = list(compared.new), work.present + len(compared.renamed)
        skipped = tuple(sorted((*work.skipped, *bad, *compared.skipped), key=lambda item: (item.uri, item.reason)))
        select = select_text(self._plan, self._domain.default_select)
        if not staged and not present and (skipped or self._old is None):
            self._partial.remove()
            raise nothing_taken(self._plan, skipped, select)
        rows = self._skipped_rows(skipped, staged)
        self._write_private(skipped, rows)
        counts = self._finish(staged, rows, metadata)
        store = open_store(self._partial.store)
        self._cross(store, found)
        holdout = store.manifest["holdout"]
        return Summary(
            store=str(self._partial.store),
            found=len(staged) + present + len(skipped),
            added=len(staged),
            present=present,
            renamed=work.renamed + len(compared.renamed),
            skipped=skipped,
            warnings=self._warnings(store, staged),
            select=select,
            unnamed=unnamed((task.ref for task in staged), personal=self._domain.personal),
            without_row=metadata.without,
            joined_by=metadata.kind,
            counts=counts,
            holdout=f"{len(holdout['units'])} units ({holdout['reason']})",
        )

    def _staged_share(self, staged: int, work: Work, bad: Sequence[Skipped]) -> Summary:
        """What one job of many says; the run that finishes the store reads what could not be read once more, and lists it."""
        skipped = sorted((*work.skipped, *bad), key=lambda item: (item.uri, item.reason))
        return Summary(
            store=str(self._partial.store),
            found=staged + work.present + len(skipped),
            added=staged,
            present=work.present,
            renamed=work.renamed,
            skipped=tuple(skipped),
            shard=str(self._plan.shard),
        )

    def _refuse_if_strict(self, skipped: Iterable[Skipped]) -> None:
        for item in skipped:
            if self._plan.strict and item.kind == REFUSED:
                raise BadSource(item.uri, item.reason, item.remedy)

    def _warnings(self, store: Store, staged: Iterable[Task]) -> tuple[Warned, ...]:
        """What the readers of the new sources warned of, by clear name."""
        rows, clear = store.manifest.get("warnings", []), {task.source_id: task.ref.uris[0] for task in staged}
        mine = [row for row in rows if row["uri"] in clear]
        return tuple(Warned(uri=relative_to(self._plan.source, clear[row["uri"]]), warning=row["warning"]) for row in mine)

    def _stage(self, tasks: Sequence[Task], progress: Progress | None) -> tuple[list[Task], list[Skipped]]:
        staged: list[Task] = []
        waiting: list[Task] = []
        for task in tasks:
            (staged if self._stager.is_done(task) else waiting).append(task)
        if staged:
            _log.info("ingest: %d of %d sources were staged by an earlier run", len(staged), len(tasks))
        sizes, mine = bytes_of(tasks), {task.source_id: task for task in tasks}  # those that come back from workers are copies
        bad, read = list[Skipped](), sum(sizes.get(task.source_id, 0) for task in staged)
        with reporting(len(tasks), progress, sum(sizes.values())) as report:
            report(len(staged), read)
            for result in self._results(waiting):
                outcome = _as_outcome(result)
                if outcome.bad is None:
                    staged.append(mine[outcome.task.source_id])
                elif self._plan.strict and not isinstance(outcome.bad, LeftOut):
                    raise outcome.bad
                else:
                    bad.append(refused(self._plan.source, outcome.bad, outcome.task.ref.keys))
                read += sizes.get(outcome.task.source_id, 0)
                report(len(staged) + len(bad), read)
        return staged, bad

    def _results(self, tasks: Sequence[Task]) -> Iterable[Outcome | Lost[Task]]:
        def arrived(result: object) -> bool:
            return not isinstance(result, Outcome) or result.bad is not None or self._stager.is_done(result.task)

        shared = Shared(folder=self._partial.root, source=self._plan.source, arrived=arrived)
        return run_tasks(self._plan.executor, self._stager, tasks, self._plan.workers, shared)

    def _skipped_rows(self, skipped: Sequence[Skipped], staged: Sequence[Task]) -> list[dict[str, str]]:
        """The manifest's list: what was skipped now or before, but for what is in the store by now."""
        now = {(row["uri"], row["reason"]): row for row in map(self._names.row, skipped)}
        before = [] if self._old is None else self._old.manifest["skipped"]
        if before:
            done = {self._names.stored(relative_to(self._plan.source, uri)) for task in staged for uri in task.ref.uris}
            done |= {uri for uri, _ in now}  # what is said of a file now replaces what was said of it then
            before = [row for row in before if row["uri"] not in done]
        return sorted((*before, *now.values()), key=lambda row: (row["uri"], row["reason"]))

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
