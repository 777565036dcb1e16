"""zip and tar archives (plain, gzip, bzip2, xz), known by content and unpacked once into the scratch folder of an ingest.

    SCRATCH/archives/<digest>/files/...     the members
    SCRATCH/archives/<digest>/complete      written last: what was refused; without it the folder is taken for half done and made anew

The digest is over the archive's path, size, time and both ends, so that a rerun after a kill finds what is complete. Only regular
files are unpacked. An archive with names that lead out of it, devices, encryption or damage is refused as a whole: none of it is
taken. Limits against archives made to fill a disk: ``MAX_BYTES``, ``MAX_FILES``, and ``MAX_RATIO`` beyond ``SMALL_BYTES``.
Not read: 7z, rar, zstd, and archives inside archives.
"""

from __future__ import annotations

import bz2
import copy
import errno
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal

from dinodomain.errors import BadSource
from dinodomain_medical.sources import Item

Kind = Literal["zip", "tar", "7z", "rar", "zstd", "gzip"]

MAX_BYTES = 2 << 40
"""Most bytes one archive may unpack to: 2 TiB."""

MAX_FILES = 5_000_000
"""Most files in one archive."""

MAX_RATIO, SMALL_BYTES = 250, 1 << 30
"""How many times its own size an archive may unpack to, once that is more than ``SMALL_BYTES`` (1 GiB)."""

_ENDS = 65536
_BLOCK = 1 << 20
_OTHERS: dict[bytes, Kind] = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar", b"\x28\xb5\x2f\xfd": "zstd"}
_OPENERS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": gzip.GzipFile,  # type: ignore[dict-item]  # they are files for all that is done here
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_DOCUMENTS = ("[Content_Types].xml", "mimetype", "META-INF/", "AndroidManifest.xml")
_DOCUMENT_SUFFIXES = (".npy", "/data.pkl")
_UNPACK = "unpack it yourself, and give that folder"
_CARE = "do not trust it; unpack it with care, and give that folder"
_AGAIN = "fetch it again, or unpack what can be read and give that folder"
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """An archive's members on disk.

    Attributes:
        files: Folder that holds them.
        refused: Members left in the archive: path inside it and why.
    """

    files: Path
    refused: tuple[tuple[str, str], ...]


def kind_of(path: Path) -> Kind | None:
    """What kind of archive a file is, by content; by name only where the content is damaged.

    Returns:
        None for all else, among it compressed single files and office documents.
    """
    with path.open("rb") as handle:
        head = handle.read(tarfile.BLOCKSIZE)
    name = path.name.lower()
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return None if _is_document(path) else "zip"
    for magic, kind in _OTHERS.items():
        if head.startswith(magic):
            return kind if re.search(r"\.(7z|rar|tzst|tar\.zst)$", name) else None
    block = _first_block(path, head)
    if _is_tar_block(block) or re.search(r"\.(tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))$", name):
        return "tar"
    if block is not head and block[128:132] == b"DICM":
        return "gzip"
    return "zip" if name.endswith(".zip") else None


def _is_document(path: Path) -> bool:
    """Many formats are zip files (spreadsheets, numpy and torch files); they are no archives of scans."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return not path.name.lower().endswith(".zip")
    return any(name.startswith(_DOCUMENTS) or name.endswith(_DOCUMENT_SUFFIXES) for name in names[:64])


def _first_block(path: Path, head: bytes) -> bytes:
    """The first block of what is inside, where the file is compressed."""
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        return head
    try:
        with opener(path) as handle:
            return handle.read(tarfile.BLOCKSIZE)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return b""


def _is_tar_block(block: bytes) -> bool:
    """Whether a block is a tar header: its checksum agrees (old archives have no magic word)."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def unpack(path: Path, kind: Kind, scratch: str, uri: str) -> Unpacked:
    """Unpacks an archive, or finds it unpacked; safe to be called by several processes at once.

    Args:
        path: The archive.
        kind: What ``kind_of`` said.
        scratch: Where to.
        uri: Its name in messages.

    Raises:
        BadSource: It is damaged, encrypted, unsafe, too large, of a kind that is not read, or there is no scratch folder.
        OSError: The disk is full.
    """
    if kind not in ("zip", "tar"):
        what = "a DICOM file compressed with gzip" if kind == "gzip" else f"a {kind} archive"
        raise BadSource(uri, f"{what}, which is not read", _UNPACK)
    if not scratch:
        raise BadSource(uri, "an archive, and there is no folder to unpack it into", _UNPACK)
    folder = Path(scratch) / "archives" / digest_of_archive(path)
    with _only_one(folder):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "files").mkdir(parents=True)
            try:
                refused = (_unzip if kind == "zip" else _untar)(path, _Target(folder=folder / "files", uri=uri, size=path.stat().st_size))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _complete(folder, refused)
    refused = json.loads((folder / "complete").read_text("utf-8"))
    return Unpacked(files=folder / "files", refused=tuple((name, reason) for name, reason in refused))


def digest_of_archive(path: Path) -> str:
    """Name of an archive's folder below ``SCRATCH/archives``."""
    total = hashlib.sha256()
    with path.open("rb") as handle:
        status = os.fstat(handle.fileno())
        head = handle.read(_ENDS)
        handle.seek(max(len(head), status.st_size - _ENDS))
        for part in (os.fsencode(path.resolve()), f"{status.st_size} {status.st_mtime_ns}".encode(), head, handle.read()):
            total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:32]


def _complete(folder: Path, refused: list[tuple[str, str]]) -> None:
    part = folder / "complete.part"
    with part.open("w", encoding="utf-8") as handle:
        json.dump(refused, handle)
        handle.flush()
        os.fsync(handle.fileno())
    part.rename(folder / "complete")


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One process unpacks, the others wait for it; a lock ends with its holder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(slots=True, kw_only=True)
class _Target:
    """Where members go, and how much may still come."""

    folder: Path
    uri: str
    size: int
    files: int = 0
    taken: int = 0
    names: set[str] = field(default_factory=set)

    def bad(self, reason: str, remedy: str = _UNPACK) -> BadSource:
        return BadSource(self.uri, reason, remedy)

    def take(self, count: int) -> None:
        self.taken += count
        if self.taken > MAX_BYTES:
            raise self.bad(f"unpacks to more than {MAX_BYTES >> 40} TiB")
        if self.taken > max(SMALL_BYTES, MAX_RATIO * self.size):
            raise self.bad(f"unpacks to more than {MAX_RATIO} times its size, as archives do that are made to fill a disk")

    def expect(self, count: int) -> None:
        """Refuses before anything is written what is known to be too much."""
        _Target(folder=self.folder, uri=self.uri, size=self.size).take(count)
        free = shutil.disk_usage(self.folder).free
        if count > free:
            reason = f"{self.uri} needs {count / 1e9:.1f} GB to be unpacked, and {free / 1e9:.1f} GB are free"
            raise OSError(errno.ENOSPC, reason, str(self.folder))

    def path(self, name: str) -> Path:
        """Where a member goes.

        Raises:
            BadSource: Its name leads out of the archive, cannot be a file's, or was there before.
        """
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise self.bad("an unsafe archive: a name in it leads out of it", _CARE)
        inner = "/".join(part for part in parts if part not in ("", "."))
        if not inner or inner in self.names:
            raise self.bad("two files of one name in it", "unpack it yourself, and keep the right one")
        self.names.add(inner)
        self.files += 1
        if self.files > MAX_FILES:
            raise self.bad(f"holds more than {MAX_FILES} files")
        return self.folder / inner

    def write(self, source: IO[bytes], path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("xb")
        except (FileExistsError, NotADirectoryError, ValueError) as error:
            raise self.bad("a file and a folder of one name in it") from error
        except OSError as error:
            raise self.stopped(error) from error
        with handle:
            while block := source.read(_BLOCK):
                self.take(len(block))
                try:
                    handle.write(block)
                except OSError as error:
                    raise self.stopped(error) from error

    def stopped(self, error: OSError) -> OSError | BadSource:
        return error if is_full(error) else self.bad(f"cannot be unpacked ({error.strerror})")


def is_full(error: OSError) -> bool:
    """Whether the disk has no room, which is no fault of a source."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _unzip(path: Path, target: _Target) -> list[tuple[str, str]]:
    refused: list[tuple[str, str]] = []
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if any(member.flag_bits & 0x1 for member in members):
                raise target.bad("an encrypted archive")
            target.expect(sum(member.file_size for member in members))
            for member in members:
                name = member.filename.replace("\\", "/")  # some writers on Windows keep its separator
                if stat.S_ISLNK(member.external_attr >> 16):
                    refused.append((name, "a link inside an archive"))
                    continue
                with archive.open(member) as source:
                    target.write(source, target.path(name))
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and is_full(error):
            raise
        raise target.bad(f"a damaged archive ({type(error).__name__})", _AGAIN) from error
    except (NotImplementedError, RuntimeError) as error:
        raise target.bad(f"an archive that cannot be unpacked here ({error})") from error
    return refused


def _untar(path: Path, target: _Target) -> list[tuple[str, str]]:
    refused: list[tuple[str, str]] = []
    try:
        with tarfile.open(path, "r:*", errorlevel=2) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else each is kept, and there may be a million
                if member.isdir():
                    continue
                if member.issym() or member.islnk():
                    refused.append((member.name, "a link inside an archive"))
                    continue
                _check_safe(member, target)
                source = archive.extractfile(member)
                assert source is not None, "a regular member has content"
                with source:
                    target.write(source, target.path(member.name))
            _check_end(archive, target)
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and is_full(error):
            raise
        raise target.bad(f"a damaged archive ({type(error).__name__})", _AGAIN) from error
    return refused


def _check_safe(member: tarfile.TarInfo, target: _Target) -> None:
    """The standard library's own judgement, beside that of ``_Target.path``."""
    if not member.isreg():
        raise target.bad("an unsafe archive: a device or pipe in it", _CARE)
    if sys.version_info >= (3, 11, 4):
        try:
            tarfile.data_filter(member, str(target.folder))
        except tarfile.FilterError as error:
            raise target.bad("an unsafe archive: a name in it leads out of it", _CARE) from error


def _check_end(archive: tarfile.TarFile, target: _Target) -> None:
    """An archive that was cut between two files lacks the empty block at its end; a compressed one is checked to its last byte."""
    assert archive.fileobj is not None, "an archive that was opened has a file"
    if archive.fileobj.tell() <= archive.offset:
        raise EOFError
    while block := archive.fileobj.read(_BLOCK):
        target.take(len(block))


class Names:
    """Unpacked files and the names they have inside their archive (``.../archive.zip/inner/file``), one made from the other.

    Sources carry the latter, so that a worker elsewhere can unpack again, and messages name what the user knows.

    Args:
        scratch: The scratch folder.
    """

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._known: dict[str, str] = {}
        folder = re.escape(str(Path(scratch) / "archives"))
        self._pattern = re.compile(rf"{folder}/[0-9a-f]{{32}}/files")

    def add(self, files: Path, uri: str) -> None:
        """Remembers where an archive was unpacked to."""
        self._known[str(files)] = uri

    def logical(self, item: Item) -> Item:
        """The same source or refusal, named by its archive."""
        if not self._known:
            return item
        return self.renamed(item) if isinstance(item, BadSource) else replace(item, uris=tuple(map(self._named, item.uris)))

    def renamed(self, bad: BadSource) -> BadSource:
        """The same refusal, named by its archive."""
        return rewritten(bad, self._named)

    def local(self, uri: str) -> str:
        """Where a file can be opened; its archive is unpacked again where that is not here."""
        path = Path(uri)
        if path.exists():
            return uri
        archive = next((parent for parent in path.parents if parent.is_file()), None)
        kind = None if archive is None else kind_of(archive)
        if archive is None or kind is None:
            return uri
        files = unpack(archive, kind, self._scratch, str(archive)).files
        self.add(files, str(archive))
        return str(files / path.relative_to(archive))

    def _named(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._known.get(match[0], match[0]), text)


def rewritten(bad: BadSource, change: Callable[[str], str]) -> BadSource:
    """The same refusal with other names in its texts."""
    twin = copy.copy(bad)
    twin.uri, twin.place, twin.reason, twin.problem = map(change, (bad.uri, bad.place, bad.reason, bad.problem))
    parts = [f"{twin.place}: {twin.problem}", *([bad.remedy] if bad.remedy else [])]
    twin.args = ("; ".join(parts),)
    return twin
