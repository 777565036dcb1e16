"""Raster datasets of torchgeo that lie on disk: ``torchgeo:CLASS?root=PATH&key=value``.

torchgeo knows which files of a folder belong to a dataset and what their bands are called; the pixels are read by our own reader, at full
resolution and in their own grid. Nothing is downloaded. Only classes that torchgeo itself exports are looked at.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from dinodomain.domain import quiet
from dinodomain.errors import BadSource, UserError, require
from dinodomain.types import Select
from dinodomain_remote_sensing import vfs
from dinodomain_remote_sensing.files import grouped, is_quality, is_raster
from dinodomain_remote_sensing.listing import listing
from dinodomain_remote_sensing.sensor import Candidate, Sensor
from dinodomain_remote_sensing.stated import Stated, StatedBand

PREFIX = "torchgeo:"
EXTRA = "torchgeo"
PLACE = "ingest.source"
OURS = frozenset({"self", "paths", "root", "transforms", "cache", "download", "checksum", "crs", "res"})
"""Arguments of a dataset that are not the user's here: where it lies is ``root``, and what it does to pixels is not asked for."""


def is_torchgeo(source: str) -> bool:
    """Whether a source names a dataset class."""
    return source.startswith(PREFIX)


def torchgeo_candidates(source: str, select: Select, sensor: Sensor) -> list[Candidate | BadSource]:
    """Candidates of a dataset, sorted by source id; ids are those of the folder ingested as it is.

    Raises:
        UserError: There is no such class, it is no raster dataset, or its files are not there.
        MissingExtra: torchgeo is not installed.
    """
    name, _, query = source.removeprefix(PREFIX).partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    root = parameters.pop("root", "")
    if not root or not Path(root).expanduser().is_dir():
        raise UserError(PLACE, f"{source!r} names no folder that exists", allowed=f"{PREFIX}{name or 'CLASS'}?root=PATH")
    root = os.path.abspath(os.path.expanduser(root))
    kind = _class(name)
    dataset = _made(kind, root, parameters)
    files = _files(dataset)
    lost = [path for path in sorted(files) if not os.path.isfile(path)] if "bands" in parameters else []
    found = listing(root)

    def belongs(path: str) -> bool:
        return found.files[path] in files or not is_raster(found, path, sensor) or is_quality(path, sensor)

    items = grouped(replace(found, files={path: found.files[path] for path in found.files if belongs(path)}), select, sensor)
    remedy = "copy it there, or leave the band out of bands="
    missing = [BadSource(path, f"a band file that torchgeo's {kind.__name__} expects is not there", remedy) for path in lost]
    return [*(_named(item, kind, sensor) for item in items), *found.missing, *missing]


def _class(name: str) -> Any:
    datasets = require("torchgeo.datasets", extra=EXTRA, wanted_by=f"source {PREFIX}{name}")
    names = [item for item in datasets.__all__ if inspect.isclass(getattr(datasets, item))]
    rasters = [item for item in names if issubclass(getattr(datasets, item), datasets.RasterDataset)]
    if name in rasters and name != "RasterDataset":
        kind = getattr(datasets, name)
        if not kind.is_image:
            raise UserError(PLACE, f"torchgeo's {name} holds masks; labels never enter a store", remedy="ingest the dataset of its images")
        return kind
    if name in names and issubclass(getattr(datasets, name), datasets.NonGeoDataset):
        remedy = "ingest the folder of its images (source=PATH) with ingest.metadata=CSV for its labels"
        raise UserError(PLACE, f"torchgeo's {name} has no georeference of its own (NonGeoDataset)", remedy=remedy)
    near = difflib.get_close_matches(name, rasters, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "ingest its folder: source=PATH"
    raise UserError(PLACE, f"torchgeo has no raster dataset {name!r}", allowed="a subclass of torchgeo.datasets.RasterDataset", remedy=hint)


def _made(kind: Any, root: str, parameters: Mapping[str, str]) -> Any:
    known = inspect.signature(kind.__init__).parameters
    own = {key: value for key, value in known.items() if key not in OURS and value.kind is not inspect.Parameter.VAR_KEYWORD}
    arguments: dict[str, Any] = {key: _argument(kind, key, text, own) for key, text in parameters.items()}
    arguments["paths" if "paths" in known else "root"] = root
    if "download" in known:
        arguments["download"] = False
    missing = require("torchgeo.datasets.errors", extra=EXTRA, wanted_by="torchgeo datasets").DatasetNotFoundError
    rasterio = require("rasterio.errors", extra="remote-sensing", wanted_by="torchgeo datasets")
    try:
        with quiet(rasterio.NotGeoreferencedWarning):
            return kind(**arguments)
    except missing:
        remedy = "check root; nothing is downloaded"
        raise UserError(PLACE, f"{root!r} holds no file of torchgeo's {kind.__name__}", remedy=remedy) from None
    except (AssertionError, TypeError, ValueError, RuntimeError, OSError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            PLACE, f"torchgeo's {kind.__name__} refuses {root!r}: {words}", remedy="check root and the other arguments"
        ) from None


def _argument(kind: Any, key: str, text: str, own: Mapping[str, inspect.Parameter]) -> Any:
    """A value in the type that the constructor says: lists by commas, numbers and truth values as such."""
    if key not in own:
        near = difflib.get_close_matches(key, own, n=1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise UserError(PLACE, f"torchgeo's {kind.__name__} has no {key!r}", allowed=", ".join(["root", *own]), remedy=hint)
    wanted = str(own[key].annotation)
    if re.search(r"Sequence|Iterable|list|tuple", wanted):
        return [part.strip() for part in text.split(",")]
    if "bool" in wanted:
        return text.lower() in ("true", "yes", "1")
    try:
        return int(text) if "int" in wanted else float(text) if "float" in wanted else text
    except ValueError:
        raise UserError(PLACE, f"{key}={text!r} is no number", allowed=wanted) from None


def _files(dataset: Any) -> frozenset[str]:
    """All files of a dataset; of datasets with a file per band torchgeo lists one of them."""
    pattern = re.compile(dataset.filename_regex, re.VERBOSE)
    found = [str(path) for path in dataset.files if pattern.match(os.path.basename(str(path)))]
    if dataset.separate_files:
        found = [str(dataset._update_filepath(band, path)) for path in found for band in dataset.bands]
    return frozenset(os.path.abspath(path) for path in found)


def _named(candidate: Candidate, kind: Any, sensor: Sensor) -> Candidate:
    """A stack whose bands the class names, in file order."""
    codes = [sensor.code(band) for band in kind.all_bands]
    if kind.separate_files or not codes or not all(codes) or len(candidate.rasters) != 1 or candidate.label:
        return candidate
    bands = tuple(StatedBand(code=code) for code in codes if code)
    return replace(candidate, stated=Stated(item=vfs.stem_of(candidate.rasters[0]), bands={candidate.rasters[0]: bands}))
