"""Walking a source folder: which files are taken, in what order, under which keys and digest. No pixels, no third-party package.

Globs are matched case-sensitively against relative POSIX paths; ``*`` also spans ``/``, ``**/`` matches no folder too, and a
glob without ``/`` is also matched against the bare file name. Hidden files (``.DS_Store``, ``._scan.nii``) are not sources.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from dinodomain.errors import BadSource, UserError
from dinodomain.types import Select, SourceRef

DEFAULT_EXCLUDE = ("*_seg.*", "*_seg-*", "*dlmuse_seg*", "*_mask.*", "*label*", "labelsTr/*", "labelsTs/*", "*/labelsTr/*", "*/labelsTs/*")
"""Names that are usually label maps: refused with a row, never dropped in silence, and taken only if an include glob says so itself."""

_HEAD_BYTES, _TAIL_BYTES = 65536, 4096

Item = SourceRef | BadSource


def glob_matches(relative: str, patterns: Iterable[str]) -> bool:
    """Whether a relative POSIX path matches one of the globs."""
    name = PurePosixPath(relative).name
    return any(
        fnmatchcase(relative, pattern)
        or (pattern.startswith("**/") and fnmatchcase(relative, pattern[3:]))
        or ("/" not in pattern and fnmatchcase(name, pattern))
        for pattern in patterns
    )


def is_selected(relative: str, select: Select) -> bool:
    """Whether the user's selection takes the file."""
    return (not select.include or glob_matches(relative, select.include)) and not glob_matches(relative, select.exclude)


def looks_like_label(relative: str, select: Select) -> bool:
    """Whether a file matches ``DEFAULT_EXCLUDE``, and no include glob that matches it names label maps itself.

    ``include=["*.nii.gz"]`` therefore brings no label map in; ``include=["*_seg.nii.gz"]`` does.
    """
    if not glob_matches(relative, DEFAULT_EXCLUDE):
        return False
    return not any(glob_matches(relative, [glob]) and glob_matches(glob, DEFAULT_EXCLUDE) for glob in select.include)


def label_refusal(path: Path) -> BadSource:
    """The row a suspected label map gets."""
    return BadSource(
        str(path),
        "looks like a label map by its name; labels never enter a store",
        "exclude it with ingest.exclude, or, if it is an image, include it explicitly with ingest.include=[its name]",
    )


def stem_of(name: str) -> str:
    """File name without its suffix, and without both of ``.nii.gz``."""
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem


def keys_of(root: Path, relative: str) -> dict[str, str]:
    """What a CSV may join on: relative path, name, stem and nearest folder of a file below ``root``."""
    path = PurePosixPath(relative)
    return {"path": relative, "name": path.name, "stem": stem_of(path.name), "folder": path.parent.name or root.name}


def folder_keys(root: Path, relative: str) -> dict[str, str]:
    """The same for a source that is a whole folder: name, stem and folder are the folder's own name."""
    name = PurePosixPath(relative).name or root.name
    return {"path": relative or root.name, "name": name, "stem": name, "folder": name}


def digest_of(root: Path, paths: Sequence[Path]) -> str:
    """sha256 over relative names, sizes, and the first 64 KiB and last 4 KiB of each file.

    The head holds every header; the tail holds the checksum of a gzip file, so that changed voxels of equal size are seen there.
    """
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            head = handle.read(_HEAD_BYTES)
            handle.seek(max(len(head), size - _TAIL_BYTES))
            parts = (path.relative_to(root).as_posix().encode(), str(size).encode(), head, handle.read())
        for part in parts:
            total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


@dataclass(frozen=True, slots=True)
class Handlers:
    """What a domain does with what the walk meets; a path comes with its name relative to the root.

    Attributes:
        file: Gives the source in one file, a refusal, or None where the file is left to ``folder`` or to nobody.
        folder: Gives the sources made of several files of one folder, under ids that begin with the folder's relative path.
    """

    file: Callable[[Path, Path, str], Item | None]
    folder: Callable[[Path, str, Sequence[Path]], Iterable[tuple[str, Item]]]


def walk(source: str, select: Select, handlers: Handlers) -> Iterator[Item]:
    """Walks a folder, or takes one file, and yields sources and refusals sorted by id.

    Only the folders on the way to the current id are held in memory: every entry is an event in a heap, and an event that is
    expanded (a folder) only ever adds events with larger ids, since all ids below a folder begin with its path.

    Raises:
        UserError: The source does not exist.
    """
    path = Path(source)
    if path.is_dir():
        root = path.resolve()
        yield from _Walk(root, select, handlers).run("", root)
    elif path.is_file():
        root = path.resolve().parent
        yield from _Walk(root, select, handlers).single(path.resolve())
    else:
        raise UserError("ingest.source", f"{source!r} does not exist", remedy="give a folder or a file")


class _Walk:
    """State of one walk: the heap of events, and the folders seen (a linked folder may contain itself)."""

    def __init__(self, root: Path, select: Select, handlers: Handlers) -> None:
        self.root, self.select, self.handlers = root, select, handlers
        self.heap: list[tuple[str, int, Path | Item]] = []
        self.ties = itertools.count()
        self.seen: set[tuple[int, int]] = set()

    def push(self, key: str, value: Path | Item) -> None:
        heapq.heappush(self.heap, (key, next(self.ties), value))

    def run(self, key: str, start: Path) -> Iterator[Item]:
        self.push(key, start)
        while self.heap:
            key, _, value = heapq.heappop(self.heap)
            if not isinstance(value, Path):
                yield value
            elif value.is_dir():
                self.open_folder(key, value)
            else:
                item = self.handlers.file(self.root, value, key)
                if item is not None:
                    yield item

    def single(self, path: Path) -> Iterator[Item]:
        item = self.handlers.file(self.root, path, path.name)
        if item is not None:
            yield item
            return
        yield from (found for _, found in self.handlers.folder(self.root, path.name, [path]))

    def open_folder(self, relative: str, folder: Path) -> None:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in self.seen:
            return
        self.seen.add((status.st_dev, status.st_ino))
        prefix = f"{relative}/" if relative else ""
        files: list[Path] = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                self.push(prefix + entry.name, Path(entry.path))
            elif entry.is_file() and is_selected(prefix + entry.name, self.select):
                files.append(Path(entry.path))
                self.push(prefix + entry.name, Path(entry.path))
        for key, item in self.handlers.folder(self.root, relative, files):
            self.push(key, item)
