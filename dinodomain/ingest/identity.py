"""Which sources are new, which the store has already (perhaps under another name), and which are copies of each other.

A source is known by its id and digest. A DICOM source is also known by its images (``SourceRef.instance``): archives are exported again
under other names and with other headers, and hold the same series twice. Where the digests of two sources of the same images are equal,
they are the same; where not, both are staged and their pixels compared. Runs in the parent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dinodomain.errors import BadSource, LeftOut
from dinodomain.ingest.join import INSTANCE
from dinodomain.ingest.sources import Found, Names, Skipped, refused
from dinodomain.ingest.stage import Task
from dinodomain.store.read import Store

_COPY = "a copy: the same images are taken from"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """Sources by what is to be done with them.

    Attributes:
        new: To be staged; where the store may hold the same images, to be compared with them after that.
        present: Clear ids of sources that the store has.
        renamed: Those of them that it has under another id.
        skipped: Changed sources and copies.
    """

    new: tuple[Task, ...]
    present: frozenset[str]
    renamed: frozenset[str]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Staged sources after their pixels were compared.

    Attributes:
        new: In the store from now on.
        renamed: Clear ids of sources whose images the store has already.
        skipped: Copies, and sources that claim images of other pixels.
    """

    new: tuple[Task, ...]
    renamed: frozenset[str]
    skipped: tuple[Skipped, ...]


class Known:
    """What an existing store knows of its sources; nothing without one."""

    def __init__(self, old: Store | None) -> None:
        index = None if old is None else old.index
        self.digests: dict[str, str] = {}
        self._instances: dict[str, dict[str, str]] = {}
        if index is None:
            return
        ids, digests, contents = (index[name].to_pylist() for name in ("source_id", "source_digest", "content_hash"))
        self.digests = dict(zip(ids, digests))
        if INSTANCE in index.column_names:
            for instance, digest, content in zip(index[INSTANCE].to_pylist(), digests, contents):
                if instance:
                    self._instances.setdefault(instance, {})[digest] = content

    def has_images(self, task: Task) -> bool:
        """Whether the store holds a source of these images, whatever their pixels."""
        return task.instance in self._instances

    def has_same(self, task: Task) -> bool:
        """Whether it holds a source of these images with this digest."""
        return task.digest in self._instances.get(task.instance, {})

    def has_pixels(self, task: Task, content: str) -> bool:
        """Whether it holds a source of these images with these pixels."""
        return content in self._instances.get(task.instance, {}).values()


def sort_out(source: str, found: Found, names: Names, known: Known) -> Sorted:
    """Sorts discovered sources, by headers alone.

    Args:
        source: The source folder, for names in messages.
        found: What was discovered, sorted by id.
        names: How clear names become stored ones.
        known: What the store has.
    """
    new, skipped, present, renamed = list[Task](), list[Skipped](), set[str](), set[str]()
    taken: dict[tuple[str, str], tuple[str, ...]] = {}
    for ref in found.refs:
        task = names.task(ref)
        first = taken.setdefault((task.instance, task.digest), ref.uris) if task.instance else ref.uris
        if known.digests.get(task.source_id) == task.digest:
            present.add(ref.source_id)
        elif known.has_same(task):
            present.add(ref.source_id)
            renamed.add(ref.source_id)
        elif not set(first) & set(ref.uris):  # two parts of one file are no copies
            skipped.append(_copy(source, task, first[0]))
        elif task.source_id in known.digests and not known.has_images(task):
            skipped.append(_changed(source, task))
        else:
            new.append(task)
    return Sorted(new=tuple(new), present=frozenset(present), renamed=frozenset(renamed), skipped=tuple(skipped))


def compare(source: str, staged: Sequence[Task], known: Known, content_of: Callable[[Task], str]) -> Compared:
    """Compares the pixels of staged sources of the same images, with the store and with each other.

    Args:
        source: The source folder, for names in messages.
        staged: Staged sources.
        known: What the store has.
        content_of: Content hash of a staged source; asked only where images are the same.
    """
    repeated = _repeated(staged)
    new, renamed, skipped = list[Task](), set[str](), list[Skipped]()
    taken: dict[str, list[tuple[str, Task]]] = {}
    for task in sorted(staged, key=lambda task: task.ref.source_id):
        if not task.instance or not (known.has_images(task) or task.instance in repeated):
            new.append(task)
            continue
        content, twins = content_of(task), taken.setdefault(task.instance, [])
        if known.has_images(task):
            if known.has_pixels(task, content):
                renamed.add(task.ref.source_id)
            else:
                skipped.append(_other_pixels(source, task, "a source of the store"))
        elif not twins or any(set(twin.ref.uris) & set(task.ref.uris) for _, twin in twins):
            twins.append((content, task))
            new.append(task)
        elif any(content == other for other, _ in twins):
            skipped.append(_copy(source, task, twins[0][1].ref.uris[0]))
        else:
            skipped.append(_other_pixels(source, task, f"{twins[0][1].ref.uris[0]!r}"))
    return Compared(new=tuple(new), renamed=frozenset(renamed), skipped=tuple(skipped))


def _repeated(staged: Sequence[Task]) -> set[str]:
    seen, twice = set[str](), set[str]()
    for task in staged:
        (twice if task.instance in seen else seen).add(task.instance)
    return twice


def _copy(source: str, task: Task, other: str) -> Skipped:
    remedy = "nothing is lost; leave one of them out with ingest.exclude if you would rather have the other"
    return refused(source, LeftOut(task.ref.uris[0], f"being {_COPY} {other!r}", remedy, keys=task.ref.keys))


def _changed(source: str, task: Task) -> Skipped:
    reason = "has changed since it was ingested; a store never rewrites a source"
    return refused(source, BadSource(task.ref.uris[0], reason, "ingest into a new store", keys=task.ref.keys))


def _other_pixels(source: str, task: Task, other: str) -> Skipped:
    reason = f"has the same SOPInstanceUIDs as {other}, but other pixels"
    remedy = "find out which of the two is right, and leave the other out with ingest.exclude"
    return refused(source, BadSource(task.ref.uris[0], reason, remedy, keys=task.ref.keys))
