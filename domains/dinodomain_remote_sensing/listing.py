"""What files a source has: a folder, one file, a text file of addresses, an ``s3://`` prefix, one remote file. Opens no raster.

Every kind comes as the same thing, relative POSIX paths and where each file lies, so that files are grouped into scenes in one way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dinodomain.errors import BadSource, UserError
from dinodomain_remote_sensing import vfs
from dinodomain_remote_sensing.remote import (
    UNKNOWN_SCHEMES,
    Stat,
    is_remote,
    listed,
    name_of,
    parent_of,
    shown,
    siblings,
    split_s3,
)

ALLOWED = "a folder, a file, a text file of addresses, s3://BUCKET/PREFIX, https://FILE, stac:URL?collections=..., torchgeo:CLASS?root=PATH"
COMMENT = "#"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a source.

    Attributes:
        name: What the source itself is called.
        files: Relative POSIX path to path or address, in the order of the source.
        stats: What a listing said of remote files, by address.
        missing: Addresses that lead nowhere.
    """

    name: str
    files: Mapping[str, str]
    stats: Mapping[str, Stat] = field(default_factory=dict)
    missing: tuple[BadSource, ...] = ()


def listing(source: str, suffixes: tuple[str, ...] = ()) -> Listing:
    """Lists a source.

    Args:
        source: Folder, file, text file of addresses or address.
        suffixes: Endings of raster files, lower case: an ``s3://`` address that ends so is one object, not a prefix.

    Raises:
        UserError: There is no such source.
    """
    for scheme, remedy in UNKNOWN_SCHEMES.items():
        if source.startswith(scheme):
            raise UserError("ingest.source", f"{scheme} is not read directly", allowed=ALLOWED, remedy=remedy)
    if source.startswith("s3://"):
        return _bucket(source, suffixes)
    if is_remote(source):
        archives = (_far_archive(source),) if vfs.is_archive(name_of(source)) else ()
        return Listing(name=name_of(source), files={name_of(source): source}, missing=archives)
    root = Path(source).expanduser()
    if root.is_dir():
        return _folder(root)
    if not root.is_file():
        raise UserError("ingest.source", f"{source} does not exist", allowed=ALLOWED)
    if vfs.is_archive(root.name):
        return _archive(root)
    return _list(root) if _is_list(root) else _file(root)


def _folder(root: Path) -> Listing:
    """Files and, as if they were folders, archives below a folder."""
    home = str(root.absolute())
    files: dict[str, str] = {}
    missing: list[BadSource] = []
    for path in _walk(root):
        try:
            inside = [f"{path}/{member}" for member in vfs.members(f"{home}/{path}")] if vfs.is_archive(path) else [path]
        except BadSource as damaged:
            missing.append(damaged)
            continue
        files |= {name: vfs.uri(home, name) for name in inside}
    return Listing(name=root.resolve().name or "scene", files=files, missing=tuple(missing))


def _archive(path: Path) -> Listing:
    place = str(path.absolute())
    try:
        return Listing(name=path.name, files={member: vfs.uri(place, member) for member in vfs.members(place)})
    except BadSource as damaged:
        return Listing(name=path.name, files={}, missing=(damaged,))


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(folder).relative_to(root)
        yield from ((base / name).as_posix() for name in sorted(names) if not name.startswith("."))


def _file(path: Path) -> Listing:
    """One file; others of its folder are listed behind it, for metadata beside a single file still belongs to it."""
    beside = sorted(name for name in os.listdir(path.parent) if name != path.name and not name.startswith("."))
    folder = path.parent.absolute()
    return Listing(name=path.parent.resolve().name or "scene", files={name: str(folder / name) for name in (path.name, *beside)})


def is_single(source: str, found: Listing) -> bool:
    """Whether the source is one file: the first of the listing, with its neighbours behind it."""
    return bool(found.files) and name_of(source) == next(iter(found.files)) and not Path(source).expanduser().is_dir()


def _bucket(source: str, suffixes: tuple[str, ...]) -> Listing:
    split_s3(source)
    single = bool(suffixes) and source.lower().endswith(suffixes)
    root = parent_of(source) if single else source.rstrip("/")
    found = dict(siblings(source) if single else listed(source))
    if single and source in found:
        found = {source: found[source]} | found
    visible = {address[len(root) + 1 :]: address for address in found if address != root and address.startswith(f"{root}/")}
    visible = {path: address for path, address in visible.items() if path and not _hidden(path)}
    if not visible or (single and source not in found):
        raise UserError("ingest.source", f"{source} holds nothing", allowed=ALLOWED, remedy="check bucket, prefix and AWS_ENDPOINT_URL")
    archives = tuple(_far_archive(address) for path, address in visible.items() if vfs.is_archive(path))
    return Listing(name=name_of(root), files=visible, stats=found, missing=archives)


def _far_archive(address: str) -> BadSource:
    """An archive on a server: none of its files can be told without fetching it."""
    return BadSource(shown(address), "an archive on a server is not looked into", "unpack it there, or copy it to a folder")


def _hidden(path: str) -> bool:
    return path.endswith("/") or any(part.startswith(".") for part in path.split("/"))


def _is_list(path: Path) -> bool:
    """A ``.txt`` file whose first line that says anything is an address or a path to something; product metadata is not."""
    if path.suffix.lower() not in (".txt", ".lst"):
        return False
    try:
        first = next(_lines(path), "")
    except UnicodeDecodeError:
        return False
    return is_remote(first) or first.startswith(tuple(UNKNOWN_SCHEMES)) or ("=" not in first and bool(first))


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig") as handle:
        for line in handle:
            text = line.strip()
            if text and not text.startswith(COMMENT):
                yield text


def _list(path: Path) -> Listing:
    """Addresses one a line; an ``s3://`` address with a slash at its end is a prefix."""
    files: dict[str, str] = {}
    stats: dict[str, Stat] = {}
    missing: list[BadSource] = []
    outside: list[Path] = []
    home = path.parent.absolute()
    for line in dict.fromkeys(_lines(path)):
        if line.startswith(tuple(UNKNOWN_SCHEMES)):
            scheme = line.partition("://")[0]
            missing.append(BadSource(shown(line), f"{scheme}:// is not read directly", UNKNOWN_SCHEMES[f"{scheme}://"]))
        elif line.startswith("s3://") and line.endswith("/"):
            found = dict(listed(line))
            stats |= found
            seen = [address for address in found if not _hidden(address[5:])]
            files |= {address.partition("://")[2]: address for address in seen}
            missing += [_far_archive(address) for address in seen if vfs.is_archive(address)]
        elif is_remote(line) and vfs.is_archive(name_of(line)):
            missing.append(_far_archive(line))
        elif is_remote(line):
            files[shown(line).partition("://")[2]] = line
        else:
            _local(home, line, files, outside, missing)
    files |= _opened(_outside(outside), missing)
    if not files and not missing:
        raise UserError("ingest.source", f"{path} lists no address", allowed="paths or addresses, one a line")
    return Listing(name=path.stem, files=dict(sorted(files.items())), stats=stats, missing=tuple(missing))


def _local(home: Path, line: str, files: dict[str, str], outside: list[Path], missing: list[BadSource]) -> None:
    place = Path(os.path.normpath(home / Path(line).expanduser()))
    if not place.is_file():
        missing.append(BadSource(str(place), "listed, but no file", "correct the line"))
    elif place.is_relative_to(home):
        files |= _opened({place.relative_to(home).as_posix(): str(place)}, missing)
    else:
        outside.append(place)


def _opened(files: Mapping[str, str], missing: list[BadSource]) -> dict[str, str]:
    """The same files, archives among them as if they were folders."""
    found: dict[str, str] = {}
    for path, place in files.items():
        try:
            inside = vfs.members(place) if vfs.is_archive(path) else None
        except BadSource as damaged:
            missing.append(damaged)
            continue
        found |= {path: place} if inside is None else {f"{path}/{member}": vfs.uri(place, member) for member in inside}
    return found


def _outside(places: Iterable[Path]) -> dict[str, str]:
    """Files elsewhere on this machine go by their path below the deepest folder that holds them all: no path of it is kept."""
    found = [str(place) for place in places]
    if not found:
        return {}
    common = os.path.commonpath([os.path.dirname(place) for place in found])
    return {os.path.relpath(place, common).replace(os.sep, "/"): place for place in found}
