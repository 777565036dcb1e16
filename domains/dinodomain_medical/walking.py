"""The walk through a source folder: sources and refusals sorted by id, whatever the folders are. Headers only.

DICOM files are known by content. Where a domain gathers them by series, the whole source is walked before the first item is
yielded, since any folder may hold the rest of a series; otherwise items are yielded as they are met. Not followed: hidden files,
and a linked folder that was walked already.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dinodomain.errors import BadSource
from dinodomain.types import Select
from dinodomain_medical.dicom_header import Header, is_dicom, read_header, read_headers
from dinodomain_medical.gathering import SeriesStore
from dinodomain_medical.sources import Gathered, Handlers, Item, glob_matches, is_selected

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_SLIDES = (".svs", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".bif", ".czi")


def walk(path: Path, select: Select, handlers: Handlers) -> Iterator[Item]:
    """Walks a folder, or takes one file, and yields sources and refusals sorted by id."""
    root = path.resolve() if path.is_dir() else path.resolve().parent
    start = "" if path.is_dir() else path.resolve().name
    with closing(SeriesStore(select.scratch)) as store:
        met = _Walk(root, select, handlers, store).run(start)
        if not handlers.by_series:
            yield from (item for _, item in met)
            return
        items = [*met]
        for gathered in store.gathered(root):
            items.extend(handlers.dicom(gathered))
        yield from _unique(sorted(items, key=lambda pair: pair[0]))


def _unique(items: list[tuple[str, Item]]) -> Iterator[Item]:
    last = None
    for key, item in items:
        if key == last and not isinstance(item, BadSource):
            reason = "two people or studies share one SeriesInstanceUID over the same folders"
            yield BadSource(item.uris[0], reason, "ingest their folders one by one", keys=item.keys)
        else:
            yield item
        last = key


@dataclass(slots=True)
class _Folder:
    """An opened folder: its names in order, and which of them are folders."""

    prefix: str
    names: list[str]
    folders: set[str]
    at: int = 0

    @property
    def key(self) -> str:
        return self.prefix + self.names[self.at]


class _Walk:
    """One walk: only names of the folders on the way to the current id are held, in a heap ordered by the next id of each."""

    def __init__(self, root: Path, select: Select, handlers: Handlers, store: SeriesStore) -> None:
        self.root, self.select, self.handlers, self.store = root, select, handlers, store
        self.heap: list[tuple[str, int, _Folder]] = []
        self.seen: set[tuple[int, int]] = set()
        self.single = False

    def run(self, start: str) -> Iterator[tuple[str, Item]]:
        if start:
            self.single = True
            yield from self._file(start)
            return
        yield from self._open("")
        while self.heap:
            key, _, folder = heapq.heappop(self.heap)
            name = folder.names[folder.at]
            folder.at += 1
            if folder.at < len(folder.names):
                self._push(folder)
            if name in folder.folders:
                yield from self._open(key)
            elif is_selected(key, self.select):
                yield from self._file(key)

    def _push(self, folder: _Folder) -> None:
        heapq.heappush(self.heap, (folder.key, id(folder), folder))

    def _open(self, relative: str) -> Iterator[tuple[str, Item]]:
        """All ids below a folder begin with its path, so that opening one never adds an id that is smaller than those given already."""
        path = self.root / relative
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in self.seen:
                return
            self.seen.add((status.st_dev, status.st_ino))
            folder = _listed(path, f"{relative}/" if relative else "")
        except OSError as error:
            yield relative, BadSource(str(path), f"a folder that cannot be listed ({error.strerror})", "give yourself the right to read it")
            return
        if folder.names:
            self._push(folder)

    def _file(self, relative: str) -> Iterator[tuple[str, Item]]:
        path = self.root / relative
        try:
            relative.encode()
            yield from self._looked_at(path, relative)
        except UnicodeEncodeError:
            shown = str(path).encode(errors="backslashreplace").decode()
            yield shown, BadSource(shown, "a file name that is not UTF-8", "rename it (for example with convmv)")
        except BadSource as refusal:
            yield relative, refusal
        except OSError as error:
            yield (
                relative,
                BadSource(str(path), f"cannot be read ({error.strerror})", "give yourself the right to read it, or copy it again"),
            )

    def _looked_at(self, path: Path, relative: str) -> Iterator[tuple[str, Item]]:
        item = self.handlers.file(self.root, path, relative)
        if item is not None:
            yield relative, item
        elif path.suffix.lower() in _SLIDES:
            raise slide_refusal(str(path))
        elif path.name == "DICOMDIR":
            return
        elif is_dicom(path):
            read = read_headers if self.handlers.by_series else _read_one
            for header in read(path, self.handlers.names):
                yield from self._dicom(header, relative)
        elif path.suffix.lower() in _DICOM_SUFFIXES or glob_matches(relative, self.select.include):
            raise BadSource(
                str(path), f"not a file that domain {self.handlers.domain!r} reads", f"give {self.handlers.formats} files, or exclude it"
            )

    def _dicom(self, header: Header, relative: str) -> Iterator[tuple[str, Item]]:
        if header.modality == "SM":
            raise slide_refusal(str(header.path))
        if self.handlers.by_series:
            self.store.add(header, relative, relative if self.single else relative.rpartition("/")[0])
            return
        one = Gathered(root=self.root, place=relative, uri=str(header.path), alone=True, headers=(header,))
        yield from self.handlers.dicom(one)


def _read_one(path: Path, names: Sequence[str]) -> list[Header]:
    return [read_header(path, names)]


def slide_refusal(uri: str) -> BadSource:
    """The row a whole-slide image gets."""
    return BadSource(uri, "a whole-slide image, which no domain here reads", "exclude it, or export tiles of it as PNG or TIFF")


def _listed(path: Path, prefix: str) -> _Folder:
    names, folders = [], set()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.add(entry.name)
            elif not entry.is_file():
                continue
            names.append(entry.name)
    return _Folder(prefix, sorted(names), folders)
