"""Files by the path that GDAL opens: local ones, and members of zip and tar archives, which are never unpacked.

A member of an archive is ``/vsizip/{ARCHIVE}/MEMBER`` or ``/vsitar/{ARCHIVE}/MEMBER``; paths that lists and messages show have neither
prefix nor braces (``scenes/a.zip/S2A.SAFE/MTD_MSIL2A.xml``). A path is text throughout, so that an address does as well as a local file.
"""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from functools import lru_cache

from dinodomain.errors import BadSource
from dinodomain_remote_sensing import remote

ARCHIVES = (".zip", ".tar")
"""Suffixes of archives that are looked into. A compressed tar has no random access; it must be unpacked first."""

HEAD_BYTES = 65536
"""How much of each end of a file enters its print: TIFF directories lie at the beginning (COG) or at the end."""

_MEMBER = re.compile(r"^/vsi(?P<kind>zip|tar)/\{(?P<archive>.*)\}/(?P<member>.+)$")


def is_archive(name: str) -> bool:
    """Whether a file is an archive that is looked into, by its name."""
    return name.lower().endswith(ARCHIVES)


def members(path: str) -> list[str]:
    """Names of the files in a local archive, sorted; hidden ones are left out.

    Raises:
        BadSource: It is damaged, or encrypted.
    """
    try:
        if path.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            if any(entry.flag_bits & 1 for entry in entries):
                raise BadSource(path, "an encrypted archive", "unpack it with its password")
            names = [entry.filename for entry in entries if not entry.is_dir()]
        else:
            with tarfile.open(path, "r:") as archive_:
                names = [entry.name.removeprefix("./") for entry in archive_ if entry.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise BadSource(path, f"not a readable archive ({error})", "copy it again") from None
    shown = (name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")))
    return sorted(shown)


def uri(root: str, relative: str) -> str:
    """What GDAL opens for a path below a root, archives along the way included.

    Args:
        root: Folder, or a prefix that GDAL knows (``/vsis3/bucket/key``).
        relative: POSIX path below it, in which an archive is like a folder.
    """
    full = f"{root.rstrip('/')}/{relative}" if relative else root
    parts = full.split("/")
    for n in range(1, len(parts)):
        archive = "/".join(parts[:n])
        if is_archive(archive) and not os.path.isdir(archive):  # a folder may well be called "a.zip"
            return f"/vsi{archive[-3:].lower()}/{{{archive}}}/{'/'.join(parts[n:])}"
    return full


def split(path: str) -> tuple[str, str] | None:
    """(archive, member) of a path into an archive, else None."""
    match = _MEMBER.match(path)
    return None if match is None else (match["archive"], match["member"])


def shown(path: str) -> str:
    """A path as a person knows it: an archive is like a folder."""
    inside = re.match(r"^/vsi(?:zip|tar)/\{(.*)\}(.*)$", path)
    return path if inside is None else inside[1] + inside[2]


def name_of(path: str) -> str:
    """Last part of a path or an address."""
    return remote.name_of(path)


def stem_of(path: str) -> str:
    """Last part of a path without its suffix."""
    return os.path.splitext(name_of(path))[0]


def read_bytes(path: str) -> bytes:
    """The whole of a small file (metadata).

    Raises:
        BadSource: It cannot be read.
    """
    inside = split(path)
    try:
        if inside is None:
            return remote.read_bytes(path)
        if path.startswith("/vsizip/"):
            with zipfile.ZipFile(inside[0]) as archive:
                return archive.read(inside[1])
        with tarfile.open(inside[0], "r:") as archive_:
            handle = archive_.extractfile(_tar_entry(archive_, inside[1]))
            assert handle is not None
            return handle.read()
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, OSError) as error:
        raise BadSource(path, f"cannot be read ({error})", "copy it again") from None


def _tar_entry(archive: tarfile.TarFile, member: str) -> tarfile.TarInfo:
    return next(entry for entry in archive if entry.name.removeprefix("./") == member)


def size(path: str) -> int:
    """Bytes of a file, uncompressed; 0 where that is not known without a request."""
    inside = split(path)
    if inside is not None:
        return _catalogue(inside[0], _stamp(inside[0]))[inside[1]][0]
    if remote.is_remote(path):
        return 0
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def prints(path: str) -> bytes:
    """What tells a changed file: its size with both ends, in a zip its size and CRC-32, on a server its size and version tag.

    Raises:
        BadSource: It cannot be read.
    """
    inside = split(path)
    try:
        if inside is not None and path.startswith("/vsizip/"):
            return "{}\0{}".format(*_catalogue(inside[0], _stamp(inside[0]))[inside[1]]).encode()
        if inside is not None:
            length, start = _catalogue(inside[0], _stamp(inside[0]))[inside[1]]
            return _ends(inside[0], start, length)
        if remote.is_remote(path):
            return remote.stat(path).prints()
        return _ends(path, 0, os.stat(path).st_size)
    except (KeyError, OSError) as error:
        raise BadSource(path, f"cannot be read ({error})", "copy it again") from None


def _ends(path: str, start: int, length: int) -> bytes:
    with open(path, "rb") as handle:
        handle.seek(start)
        parts = [f"{length}\0".encode(), handle.read(min(length, HEAD_BYTES))]
        if length > HEAD_BYTES:
            handle.seek(start + max(HEAD_BYTES, length - HEAD_BYTES))
            parts.append(handle.read(min(HEAD_BYTES, length - HEAD_BYTES)))
    return b"".join(parts)


def _stamp(archive: str) -> tuple[int, int]:
    state = os.stat(archive)
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=8)
def _catalogue(archive: str, stamp: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 (zip) or place (tar) of every member; read once while the archive stays as it is."""
    if archive.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            return {entry.filename: (entry.file_size, entry.CRC) for entry in opened.infolist()}
    with tarfile.open(archive, "r:") as opened_:
        return {entry.name.removeprefix("./"): (entry.size, entry.offset_data) for entry in opened_}
