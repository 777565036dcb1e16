"""Which files of a source are taken, under which keys and digest, and what a domain does with them. No pixels, no third-party package.

Globs are matched case-sensitively against relative POSIX paths; ``*`` also spans ``/``, ``**/`` matches no folder too, and a
glob without ``/`` is also matched against the bare file name. Hidden files (``.DS_Store``, ``._scan.nii``) are not sources.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from dinodomain.errors import BadSource
from dinodomain.types import Select, SourceRef
from dinodomain_medical.dicom_header import Header

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
    """File name without its suffix, and without both of ``.nii.gz``; a UID has no suffix."""
    if re.fullmatch(r"[0-9.]+", name):
        return name
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Headers of DICOM files that belong together: one series, or one file where each file is a source.

    Attributes:
        root: Folder that the source names.
        place: Path below it of the nearest folder that holds all the files, or of the file; ids begin with it.
        uri: How messages name that place.
        alone: Whether nothing else was gathered at that place, so that the place alone is an id.
        headers: Sorted by path.
        local: False where the headers came from a server: then nothing lies at their paths before the source is read.
    """

    root: Path
    place: str
    uri: str
    alone: bool
    headers: tuple[Header, ...]
    local: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """What a domain does with what is found; a path comes with its name below the root, which is where the name begins.

    Attributes:
        domain: Name of the domain, for messages.
        formats: What it reads, for messages.
        modalities: DICOM modalities it reads.
        file: Gives the source in one file that is no DICOM, a refusal, or None where it is nothing to the domain.
        dicom: Gives the sources made of gathered headers, each with its id.
        by_series: Whether headers are gathered by series, wherever their files lie, or come one by one.
        names: Keywords whose values each header must bring, for a header filter.
    """

    domain: str
    formats: str
    modalities: tuple[str, ...]
    file: Callable[[Path, Path, str], Item | None]
    dicom: Callable[[Gathered], Iterable[tuple[str, Item]]]
    by_series: bool
    names: tuple[str, ...] = ()
