"""The walk through a source folder: sources and refusals sorted by id, whatever the folders are. Headers only.

DICOM files and archives are known by content; an archive is walked like a folder of its name. Where a domain gathers DICOM by series,
the whole source is walked before the first item is yielded, since any folder may hold the rest of a series; otherwise items are
yielded as they are met. Of many files the headers are read ahead by other processes (``reading_ahead``); archives are unpacked by this
one. Not followed: hidden files, and a linked folder that was walked already. A DICOMDIR is an inventory: what it lists and nobody
finds gets a row.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dinodomain.errors import BadSource
from dinodomain.types import Select
from dinodomain_medical import dicomdir
from dinodomain_medical.archives import Kind, Names, is_full, kind_of, unpack
from dinodomain_medical.dicom_header import Header
from dinodomain_medical.gathering import PackedHeader, SeriesStore
from dinodomain_medical.reading_ahead import HeadersAhead, ReadFile, Told
from dinodomain_medical.sources import Gathered, Handlers, Item, glob_matches, is_selected

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_SLIDES = (".svs", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".bif", ".czi")
_ARCHIVE_NAME = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst)|7z|rar)$", re.IGNORECASE)
_NO_DICOM_NAME = re.compile(
    r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|raw|png|jpe?g|tiff?|svs|ndpi|scn|mrxs|zip|tar|tgz|gz|bz2|xz|zst|7z|rar|json|csv|txt|xml|pdf)$",
    re.IGNORECASE,
)  # only a guess of what need not be read ahead; the content decides
_RIGHTS = "give yourself the right to read it, or copy it again"


def walk(path: Path, select: Select, handlers: Handlers) -> Iterator[Item]:
    """Walks a folder, or takes one file, archive or DICOMDIR (its folder), and yields sources and refusals sorted by id."""
    path = path.resolve()
    root = path if path.is_dir() else path.parent
    start = "" if path.is_dir() or dicomdir.is_named(path.name) else path.name
    names = Names(select.scratch)
    with closing(SeriesStore(select.scratch)) as store, closing(_Walk(root, select, handlers, store, names)) as walked:
        met = walked.run(start)
        if not handlers.by_series:
            yield from (names.logical(item) for _, item in met)
            return
        items = [(key, names.logical(item)) for key, item in met]
        told = Told("series joined", "headers")
        for gathered in store.gathered(root):
            told.add(len(gathered.headers))
            items.extend((key, names.logical(item)) for key, item in handlers.dicom(gathered))
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
    """An opened folder.

    Attributes:
        root: What names of files are relative to: the source, or the top of an archive.
        path: Where it lies.
        prefix: How ids below it begin.
        names: Sorted names of its files and folders.
        folders: Which of them are folders.
        packed: Whether it lies in an archive.
        at: Next name.
    """

    root: Path
    path: Path
    prefix: str
    names: list[str]
    folders: set[str]
    packed: bool
    at: int = 0

    @property
    def key(self) -> str:
        return self.prefix + self.names[self.at]


@dataclass(frozen=True, slots=True)
class _File:
    """A file met; attributes as in ``_Folder``, and its id."""

    root: Path
    path: Path
    relative: str
    packed: bool


_Refused = tuple[str, BadSource]
_Met = _File | _Refused


class _Listing:
    """Files below a folder in order of their ids; only names of the folders on the way to the current one are held.

    Args:
        seen: Folders that were listed already, by device and inode; added to.
    """

    def __init__(self, seen: set[tuple[int, int]]) -> None:
        self.seen = seen
        self.heap: list[tuple[str, int, _Folder]] = []  # ordered by the next id of each folder

    def below(self, root: Path, path: Path, relative: str, *, packed: bool) -> Iterator[_Met]:
        """The files below a folder whose own id is given, and refusals of folders that cannot be listed."""
        yield from self._open(root, path, relative, packed=packed)
        while self.heap:
            key, _, folder = heapq.heappop(self.heap)
            name = folder.names[folder.at]
            folder.at += 1
            if folder.at < len(folder.names):
                self._push(folder)
            if name in folder.folders:
                yield from self._open(folder.root, folder.path / name, key, packed=folder.packed)
            else:
                yield _File(folder.root, folder.path / name, key, folder.packed)

    def _push(self, folder: _Folder) -> None:
        heapq.heappush(self.heap, (folder.key, id(folder), folder))

    def _open(self, root: Path, path: Path, relative: str, *, packed: bool) -> Iterator[_Refused]:
        """All ids below a folder begin with its path, so that opening one never adds an id that is smaller than those given already."""
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in self.seen:
                return
            self.seen.add((status.st_dev, status.st_ino))
            names, folders = _listed(path)
        except OSError as error:
            yield relative, BadSource(str(path), f"a folder that cannot be listed ({error.strerror})", _RIGHTS)
            return
        if names:
            self._push(_Folder(root, path, f"{relative}/" if relative else "", names, folders, packed))


class _Walk:
    """One walk: the files of the source, merged by id with those of each archive from where it is met."""

    def __init__(self, root: Path, select: Select, handlers: Handlers, store: SeriesStore, names: Names) -> None:
        self.root, self.select, self.handlers, self.store, self.names = root, select, handlers, store, names
        read = ReadFile(names=tuple(handlers.names), by_series=handlers.by_series)
        self.headers: HeadersAhead[_Met] = HeadersAhead(read, select.workers, self._probably_read)
        self.streams: list[tuple[str, int, _Met, Iterator[_Met]]] = []  # a heap by id of what comes next in each
        self.seen: set[tuple[int, int]] = set()
        self.start = ""

    def close(self) -> None:
        self.headers.close()

    def run(self, start: str) -> Iterator[tuple[str, Item]]:
        self.start = start
        first = [_File(self.root, self.root / start, start, False)] if start else self._below(self.root, self.root, "", packed=False)
        self._advance(iter(first))
        while self.streams:
            _, _, met, stream = heapq.heappop(self.streams)
            if isinstance(met, _File):
                yield from self._met(met)
            else:
                yield met
            self._advance(stream)

    def _below(self, root: Path, path: Path, relative: str, *, packed: bool) -> Iterator[_Met]:
        return self.headers.ahead(_Listing(self.seen).below(root, path, relative, packed=packed))

    def _advance(self, stream: Iterator[_Met]) -> None:
        met = next(stream, None)
        if met is not None:
            key = met.relative if isinstance(met, _File) else met[0]
            heapq.heappush(self.streams, (key, id(stream), met, stream))

    def _probably_read(self, met: _Met) -> Path | None:
        """What ``_looked_at`` will ask the headers of, as far as names tell."""
        if not isinstance(met, _File) or _NO_DICOM_NAME.search(met.path.name) or dicomdir.is_named(met.path.name):
            return None
        return met.path if is_selected(met.relative, self.select) else None

    def _met(self, file: _File) -> Iterator[tuple[str, Item]]:
        try:
            file.relative.encode()
            if is_selected(file.relative, self.select):
                yield from self._looked_at(file)
            elif _ARCHIVE_NAME.search(file.path.name) and not glob_matches(file.relative, self.select.exclude):
                kind = kind_of(file.path)  # the globs are for what is in it
                if kind is not None:
                    yield from self._archive(file, kind)
        except UnicodeEncodeError:
            shown = str(file.path).encode(errors="backslashreplace").decode()
            yield shown, BadSource(shown, "a file name that is not UTF-8", "rename it (for example with convmv)")
        except BadSource as refusal:
            yield file.relative, refusal
        except OSError as error:
            if is_full(error):
                raise
            yield file.relative, BadSource(str(file.path), f"cannot be read ({error.strerror})", _RIGHTS)

    def _looked_at(self, file: _File) -> Iterator[tuple[str, Item]]:
        path = file.path
        item = self.handlers.file(file.root, path, file.relative)
        if item is not None:
            yield file.relative, item
        elif path.suffix.lower() in _SLIDES:
            raise slide_refusal(str(path))
        elif dicomdir.is_named(path.name):
            yield from dicomdir.missing(path, file.relative, self.select)
        elif (headers := self.headers.of(path)) is not None:
            for header in headers:
                yield from self._dicom(header, file)
        elif (kind := kind_of(path)) is not None:
            yield from self._archive(file, kind)
        elif path.suffix.lower() in _DICOM_SUFFIXES or glob_matches(file.relative, self.select.include):
            reason = f"not a file that domain {self.handlers.domain!r} reads"
            raise BadSource(str(path), reason, f"give {self.handlers.formats} files, or exclude it")

    def _archive(self, file: _File, kind: Kind) -> Iterator[tuple[str, Item]]:
        if file.packed:
            raise BadSource(str(file.path), "an archive inside an archive", "unpack the outer one, and give that folder")
        uri = str(self.root / file.relative)
        unpacked = unpack(file.path, kind, self.select.scratch, uri)
        self.names.add(unpacked.files, uri)
        for name, reason in unpacked.refused:
            key = f"{file.relative}/{name}"
            if is_selected(key, self.select):
                yield key, BadSource(f"{uri}/{name}", reason, "unpack the archive, and give that folder")
        self._advance(self._below(unpacked.files, unpacked.files, file.relative, packed=True))

    def _dicom(self, header: Header | PackedHeader, file: _File) -> Iterator[tuple[str, Item]]:
        if header.modality == "SM":
            raise slide_refusal(str(file.path))
        if isinstance(header, PackedHeader):
            alone = file.relative == self.start
            self.store.add(header, file.relative, file.relative if alone else file.relative.rpartition("/")[0])
            return
        one = Gathered(root=self.root, place=file.relative, uri=str(self.root / file.relative), alone=True, headers=(header,))
        yield from self.handlers.dicom(one)


def slide_refusal(uri: str) -> BadSource:
    """The row a whole-slide image gets."""
    return BadSource(uri, "a whole-slide image, which no domain here reads", "exclude it, or export tiles of it as PNG or TIFF")


def _listed(path: Path) -> tuple[list[str], set[str]]:
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
    return sorted(names), folders
