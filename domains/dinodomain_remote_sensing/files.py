"""Finds files and groups them into candidates by name alone, sorted by source id. Opens nothing.

Grouping: one file per band (``*_B02.tif``, ``B8A.tif``, ``*_B4_10m.jp2``) with one prefix in one folder is one scene; a ``.SAFE``
product is one scene per granule; every other raster is a source of its own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from dinodomain.errors import BadSource
from dinodomain.types import Select
from dinodomain_remote_sensing import safe, vfs
from dinodomain_remote_sensing.listing import Listing, is_single, listing
from dinodomain_remote_sensing.remote import shown
from dinodomain_remote_sensing.sensor import Candidate, Sensor

DEFAULT_EXCLUDE = ("*mask*", "*label*", "*_water*")
"""File names (any case) that look like labels. Such files become skipped rows; an ``include`` pattern that names them (``*_water.tif``, or
the very path) takes them in."""

LABEL_FOLDERS = frozenset({"label", "labels", "mask", "masks", "annotation", "annotations"})
"""Folder names below the source that hold nothing but labels."""

QUALITY = re.compile(
    r"(?:^|_)(?:BQA|QA|QA_PIXEL|QA_RADSAT|SR_QA_AEROSOL|ST_(?:QA|ATRAN|CDIST|DRAD|EMIS|EMSD|TRAD|URAD)|SR_(?:CLOUD_QA|ATMOS_OPACITY)|"
    r"[VS][AZ]A|SCL|TCI|AOT|WVP|CLD|SNW|PVI|QA60|MSK_[A-Z]+(?:_B\d[0-9A])?)(?:_\d+m)?$",
    re.IGNORECASE,
)
"""Stems of rasters that come with a scene and are no channels: quality bits, angles, classifications, pictures."""

WORLD_FILES = (".tfw", ".tifw", ".jgw", ".pgw", ".wld", ".j2w", ".prj")

_MTL = re.compile(r"_MTL\.(?:txt|json|xml)$", re.IGNORECASE)
_ENMAP = re.compile(r"-METADATA\.XML$", re.IGNORECASE)


def is_text(name: str) -> bool:
    """Whether a file name is that of product metadata that some sensor reads."""
    return any(pattern.search(name) for pattern in (_MTL, _ENMAP, safe.PRODUCT_FILE, safe.GRANULE_FILE))


def candidates(source: str, select: Select, sensor: Sensor) -> list[Candidate | BadSource]:
    """All candidates below a source, sorted by source id; behind them what is listed but not there.

    Args:
        source: A folder, a file, a text file of addresses, or an address.
        select: Globs; matched against relative POSIX paths and the folders above them.
        sensor: Its suffixes and band file names.

    Raises:
        UserError: The source does not exist.
    """
    found = listing(source, sensor.suffixes)
    if is_single(source, found):
        # Metadata beside a single file still belongs to it.
        kept = _of_single(found, next(iter(found.files)), sensor)
        found = replace(found, files={path: uri for path, uri in found.files.items() if path in kept})
    return [*grouped(found, select, sensor), *found.missing]


def _of_single(found: Listing, first: str, sensor: Sensor) -> set[str]:
    """A single file, what GDAL reads with it, and of the metadata and masks in its folder those that are its own."""
    stem = vfs.stem_of(first)
    match = sensor.band_file.match(stem) if sensor.band_file else None
    product = _product(match["prefix"] if match else stem)
    texts = [path for path in found.files if is_text(path)]
    named = {path for path in texts if _belongs(path, "", stem)}
    # Metadata without a product's name is that of the folder: of a lone raster, or of the scene that a band belongs to.
    rasters = [path for path in found.files if "/" not in path and is_raster(found, path, sensor) and not is_quality(path, sensor)]
    shared = {path for path in texts if not _MTL.search(path) and not _ENMAP.search(path)} if match or len(rasters) == 1 else set()
    lone = set(texts) if not named and (match or len(rasters) == 1) else set()
    masks = {path for path in found.files if is_quality(path, sensor) and "/" not in path and _prefix_of(path, sensor) == product}
    sides = {name for path in (first, *masks) for name in _beside(path)}
    return {first} | named | shared | lone | masks | sides


def grouped(found: Listing, select: Select, sensor: Sensor) -> list[Candidate]:
    """The candidates that files make by their names, sorted by source id."""
    return sorted(_grouped(found, select, sensor), key=lambda item: item.source_id)


def _taken(paths: Iterable[str], select: Select) -> list[str]:
    kept = []
    for path in paths:
        wanted = not select.include or is_text(path.rpartition("/")[2]) or any(matches(path, glob) for glob in select.include)
        if wanted and not any(matches(path, glob) for glob in select.exclude):
            kept.append(path)
    return kept


def matches(path: str, glob: str) -> bool:
    """Whether a glob matches a relative POSIX path or one of the folders above it; ``*`` crosses folders, ``**/`` may be empty."""
    glob = glob.removesuffix("/")
    forms = {glob, glob.removeprefix("**/")}
    pieces = path.split("/")
    above = ("/".join(pieces[:n]) for n in range(len(pieces), 0, -1))
    return any(fnmatchcase(name, form) for name in above for form in forms)


def is_label(path: str, select: Select) -> bool:
    """Whether a relative path looks like a label raster that nobody asked for by name."""
    *folders, name = path.lower().split("/")
    if not (LABEL_FOLDERS & set(folders) or any(fnmatchcase(name, glob) for glob in DEFAULT_EXCLUDE)):
        return False
    return not any(matches(path, glob) and _names_labels(glob) for glob in select.include)


def _names_labels(glob: str) -> bool:
    literal = not any(sign in glob for sign in "*?[")
    return literal or any(word in glob.lower() for word in ("mask", "label", "_water", "annotation"))


def _grouped(found: Listing, select: Select, sensor: Sensor) -> Iterator[Candidate]:
    taken = _taken(found.files, select)
    texts = [path for path in taken if is_text(path.rpartition("/")[2])]
    # Quality rasters belong to their scene even where a glob names only its bands.
    quality = [path for path in found.files if is_quality(path, sensor)]
    scenes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    alone: dict[str, list[str]] = defaultdict(list)
    for path in taken:
        home, stem = _home(found.name, path), vfs.stem_of(path)
        if home is None or not is_raster(found, path, sensor) or path in quality:
            continue
        match = sensor.band_file.match(stem) if sensor.band_file else None
        if (sensor.band_file and QUALITY.search(stem)) or (sensor.quality_file and sensor.quality_file.search(stem)):
            continue
        if is_label(path, select):
            yield replace(_candidate(found, path, home, [path], [], []), label=True)
        elif match is not None:
            scenes[home][match["prefix"]].append(path)
        else:
            alone[home].append(path)
    for home, by_prefix in scenes.items():
        yield from _scenes(found, home, by_prefix, texts, quality)
    for home, paths in alone.items():
        for path in paths:
            single = len(paths) == 1 and home not in scenes
            own = [text for text in texts if _belongs(text, home, vfs.stem_of(path)) or (single and _folder(text) == home)]
            masks = [name for name in quality if _folder(name) == home and _prefix_of(name, sensor) == _product(vfs.stem_of(path))]
            yield _candidate(found, path, home, [path], own, masks)


def is_raster(found: Listing, path: str, sensor: Sensor) -> bool:
    """A raster by its suffix; of ENVI also a file without one, beside its header."""
    lower = path.lower()
    return lower.endswith(sensor.suffixes) or (".bsq" in sensor.suffixes and "." not in vfs.name_of(path) and f"{path}.hdr" in found.files)


def is_quality(path: str, sensor: Sensor) -> bool:
    """Whether a path is that of a quality raster or outline."""
    return sensor.quality_file is not None and sensor.quality_file.search(vfs.stem_of(path)) is not None and _is_mask_format(path, sensor)


def _is_mask_format(path: str, sensor: Sensor) -> bool:
    return path.lower().endswith((*sensor.suffixes, ".gml"))


def _prefix_of(path: str, sensor: Sensor) -> str:
    """The name of the scene that a quality raster belongs to."""
    assert sensor.quality_file is not None
    return _product(sensor.quality_file.sub("", vfs.stem_of(path)))


def _product(stem: str) -> str:
    """What the files of one product share: EnMAP names its image, others name nothing more."""
    return re.sub(r"-SPECTRAL_IMAGE$", "", stem, flags=re.IGNORECASE).rstrip("_-. ")


def _scenes(found: Listing, home: str, by_prefix: dict[str, list[str]], texts: list[str], quality: list[str]) -> Iterator[Candidate]:
    base, product, alone = _scene_id(found, home), _safe_root(found.name, home), len(by_prefix) == 1
    for prefix, rasters in by_prefix.items():
        own = [text for text in texts if (_folder(text) in (home, product) if alone else _belongs(text, home, prefix))]
        masks = [path for path in quality if _owns(found, home, prefix, path, alone)]
        yield _candidate(found, base if alone else f"{base}#{prefix.rstrip('_-. ')}", home, rasters, own, masks)


def _owns(found: Listing, home: str, prefix: str, path: str, alone: bool) -> bool:
    """Whether a quality raster is a scene's: of its granule, or of its folder and, where that holds several scenes, its name."""
    if ".SAFE/GRANULE/" in f"{found.name}/{path}":
        return path.startswith(f"{home}/") if home else True
    stem = vfs.stem_of(path)
    return _folder(path) == home and (alone or stem.startswith(prefix.rstrip("_-. ") + "_"))


def _candidate(
    found: Listing, source_id: str, home: str, rasters: Sequence[str], texts: Sequence[str], quality: Sequence[str]
) -> Candidate:
    first = found.files[rasters[0]]
    shown_first = vfs.shown(shown(first))
    sides = {name for path in (*rasters, *quality) for name in _beside(path) if name in found.files}
    files = {found.files[path] for path in (*rasters, *texts, *quality, *sides)}
    return Candidate(
        source_id=source_id,
        rasters=tuple(sorted(found.files[path] for path in rasters)),
        texts=tuple(sorted(found.files[path] for path in texts)),
        folder=shown_first[: len(shown_first) - len(rasters[0]) + len(home)].rstrip("/"),
        stats={uri: found.stats[uri] for uri in sorted(files) if uri in found.stats},
        sidecars=tuple(sorted(found.files[name] for name in sides)),
        quality=tuple(sorted(found.files[path] for path in quality)),
    )


def _beside(path: str) -> tuple[str, ...]:
    """Names of the masks, metadata, headers and world files that GDAL would look for beside a raster."""
    stem = path.rpartition(".")[0] or path
    return (f"{path}.msk", f"{path}.aux.xml", f"{path}.hdr", f"{stem}.hdr", *(f"{stem}{ending}" for ending in WORLD_FILES))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _belongs(text: str, home: str, stem: str) -> bool:
    """Whether a metadata file that carries a product's name belongs to a raster or scene of that name in the same folder."""
    name = vfs.name_of(text)
    product = _ENMAP.sub("", _MTL.sub("", name))
    return product != name and _folder(text) == home and stem.startswith(product)


def _home(name: str, path: str) -> str | None:
    """The folder whose files make scenes: the granule of a SAFE product, else the file's own; None for a product's side files."""
    full = f"{name}/{path}"
    granule = re.match(r"(.*\.SAFE/GRANULE/[^/]+)/IMG_DATA/", full)
    if granule is not None:
        return granule[1][len(name) + 1 :]
    product = re.match(r"(.*\.SAFE)/measurement/", full)
    if product is not None:
        return product[1][len(name) + 1 :]
    return None if re.search(r"\.SAFE/(?:GRANULE|DATASTRIP|AUX_DATA|HTML|rep_info|annotation|preview)/", full) else _folder(path)


def _safe_root(name: str, home: str) -> str | None:
    """Relative path of the SAFE product around a granule; empty where the source itself is the product."""
    full = f"{name}/{home}"
    if ".SAFE/GRANULE/" not in full:
        return None
    return full[: full.index(".SAFE/GRANULE/") + 5][len(name) + 1 :]


def _scene_id(found: Listing, home: str) -> str:
    """The scene folder's relative path; the product's where it has one granule; the source itself goes by its own name."""
    safe = _safe_root(found.name, home)
    if safe is not None:
        inside = f"{safe}/GRANULE/".lstrip("/")
        granules = {path[len(inside) :].partition("/")[0] for path in found.files if path.startswith(inside)}
        home = safe if len(granules) == 1 else home
    return home or found.name
