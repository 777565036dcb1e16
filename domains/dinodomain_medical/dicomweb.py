"""Series of a DICOMweb server as sources: found by QIDO-RS and WADO-RS metadata, fetched by WADO-RS when they are read.

    source=dicomweb+https://HOST/PATH?ModalitiesInStudy=CT&StudyDate=20200101-20201231

The query holds QIDO-RS matching keys of studies and series; paging is ours. Only headers are asked for at discovery; they go through
the very code that files go through. A series is fetched as it is kept (any transfer syntax) into a folder of its own, which is removed
when it was read; what was fetched in part is never used. Environment and retries: ``dicomweb_http``. Ids are
``STUDY/SERIES`` (``STUDY/SERIES/INSTANCE`` where each image is a source).
"""

from __future__ import annotations

import difflib
import logging
import re
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from dinodomain.errors import BadSource, LeftOut, UserError, require
from dinodomain.types import FactValue, Select, SourceRef
from dinodomain_medical import multiframe
from dinodomain_medical.archives import rewritten
from dinodomain_medical.dicom_header import Header, header_of, quiet_pydicom, read_header
from dinodomain_medical.dicomweb_http import Rate, Refused, Server, rate_wanted
from dinodomain_medical.sources import Gathered, Handlers, Item, is_selected

SCHEME = "dicomweb+"

CONNECTIONS = 4
"""Studies that are asked for at once at discovery."""

PAGE = 200
"""Results asked for at once."""

_SURELY_ALL = 100
"""A page with fewer results than this, and than were asked for, is the last: no server known to us caps pages lower."""

_SERIES_KEYS = frozenset(
    {"Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "BodyPartExamined", "ProtocolName",
     "Laterality", "StationName", "Manufacturer", "ManufacturerModelName", "PerformedProcedureStepStartDate",
     "PerformedProcedureStepStartTime", "RequestAttributesSequence"}
)  # fmt: skip
_IMAGE_KEYS = frozenset(
    {"SOPInstanceUID", "SOPClassUID", "InstanceNumber", "ImageType", "SliceThickness", "ConvolutionKernel", "KVP", "Rows", "Columns",
     "NumberOfFrames", "PixelSpacing", "PresentationIntentType", "ViewPosition", "ImageLaterality"}
)  # fmt: skip
_PAGING = frozenset({"limit", "offset", "includefield"})
_UID = re.compile(r"[0-9A-Za-z._-]{1,128}")
_EXAMPLE = "dicomweb+https://HOST/PATH?ModalitiesInStudy=CT&StudyDate=20200101-20201231"
_PIXELS = ("7FE00010", "7FE00008", "7FE00009")
_log = logging.getLogger(__name__)

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A parsed source.

    Attributes:
        url: Base address of the service.
        studies: Matching keys of studies.
        series: Matching keys of series.
        fuzzy: The ``fuzzymatching`` key, or None.
    """

    url: str
    studies: Mapping[str, str | list[str]]
    series: Mapping[str, str | list[str]]
    fuzzy: bool | None

    def of(self, study: str, series: str = "", instance: str = "") -> str:
        """Name of a study, series or instance, which is its address behind ``dicomweb+``."""
        return f"{SCHEME}{self.url}/{_path(study, series, instance)}"


def _path(study: str, series: str = "", instance: str = "") -> str:
    return f"studies/{study}" + (f"/series/{series}" if series else "") + (f"/instances/{instance}" if instance else "")


def parse(source: str) -> Address:
    """Takes a source apart.

    Raises:
        UserError: It is no address of a service, holds credentials, or its query names what cannot be asked for.
    """
    parts = urlsplit(source.removeprefix(SCHEME))
    shown = f"{SCHEME}{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if parts.username is not None or parts.password is not None:
        remedy = "set DINODOMAIN_DICOMWEB_USER and DINODOMAIN_DICOMWEB_PASSWORD, or DINODOMAIN_DICOMWEB_TOKEN, in the environment instead"
        raise UserError("ingest.source", f"{shown!r} was given with credentials in it, where logs and shells keep them", remedy=remedy)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.fragment:
        raise UserError("ingest.source", f"{shown!r} is no address of a DICOMweb service", allowed=f"for example {_EXAMPLE}")
    studies: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    fuzzy: bool | None = None
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key == "fuzzymatching":
            fuzzy = value.lower() == "true"
        else:
            (series if _level(key) == "series" else studies).setdefault(key, []).append(value)
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/studies')}"
    return Address(url=url, studies=_plain(studies), series=_plain(series), fuzzy=fuzzy)


def _plain(keys: Mapping[str, list[str]]) -> dict[str, str | list[str]]:
    return {key: values[0] if len(values) == 1 else values for key, values in keys.items()}


def _level(key: str) -> str:
    """Whether a matching key is one of studies or of series."""
    if key in _PAGING:
        raise UserError("ingest.source", f"its query sets {key!r}", remedy="leave it out: all results are taken, page by page")
    datadict = require("pydicom.datadict", extra="medical", wanted_by="DICOM files")
    name = key.split(".")[0]
    keyword = (datadict.keyword_for_tag(int(name, 16)) or name) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else name
    if keyword == name and datadict.tag_for_keyword(name) is None and not re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        near = difflib.get_close_matches(name, [entry[4] for entry in datadict.DicomDictionary.values()], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"for example {_EXAMPLE}"
        raise UserError("ingest.source", f"its query names {name!r}, which is no DICOM keyword", remedy=hint)
    if keyword in _IMAGE_KEYS:
        remedy = f'filter it with ingest.select, for example ingest.select="{keyword} == ..."'
        raise UserError(
            "ingest.source", f"its query names {keyword!r}, a field of single images, which servers do not search by", remedy=remedy
        )
    return "series" if keyword in _SERIES_KEYS else "studies"


def discover(source: str, select: Select, handlers: Handlers) -> Iterator[Item]:
    """Lists a server, study by study in order of their ids.

    Raises:
        UserError: The address is none, or the server cannot be asked.
    """
    address = parse(source)
    with _Servers(address.url, Rate(rate_wanted(), select.scratch)) as servers:
        try:
            studies = _all_studies(servers.mine(), address)
        except Refused as refused:
            remedy = refused.remedy
            if refused.status == 404:
                remedy = "check the path: it is often /dicom-web, /dcm4chee-arc/aets/AET/rs, or /dicomweb"
            raise UserError("ingest.source", f"{SCHEME}{address.url}: {refused.problem}", remedy=remedy) from None
        _log.info("dicomweb: %d studies match", len(studies))
        lister = _Lister(address, select, handlers)
        ordered = sorted(studies, key=lambda uid: f"{uid}/")
        for items in servers.in_order(lambda study: lister.study(servers.mine(), study), ordered):
            yield from (item for _, item in sorted(items, key=lambda pair: pair[0]))


class _Servers:
    """One connection per thread, and work handed to them whose results come in order."""

    def __init__(self, url: str, rate: Rate) -> None:
        self._url, self._rate = url, rate
        self._local = threading.local()
        self._made: list[Server] = []
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="dicomweb")

    def __enter__(self) -> _Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for server in self._made:
            server.close()

    def mine(self) -> Server:
        if not getattr(self._local, "server", None):
            self._local.server = Server(self._url, self._rate)
            self._made.append(self._local.server)
        server: Server = self._local.server
        return server

    def in_order(self, work: Callable[[str], list[tuple[str, Item]]], names: Iterable[str]) -> Iterator[list[tuple[str, Item]]]:
        """Results in the order of names; a few are worked on ahead."""
        waiting: deque[Future[list[tuple[str, Item]]]] = deque()
        for name in names:
            waiting.append(self._pool.submit(work, name))
            if len(waiting) >= 2 * CONNECTIONS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _all_studies(server: Server, address: Address) -> set[str]:
    filters = dict(address.studies)

    def page(client: Any, offset: int) -> Any:
        return client.search_for_studies(limit=PAGE, offset=offset, fuzzymatching=address.fuzzy, search_filters=filters)

    return {uid for uid in _pages(server, page, "0020000D", lambda row: _value(row, "0020000D"), exhaust=True) if _UID.fullmatch(uid)}


def _pages(
    server: Server, page: Callable[[Any, int], Any], key: str, keep: Callable[[Mapping[str, Any]], Kept], *, exhaust: bool
) -> list[Kept]:
    """What is kept of all results of a search, each once: some servers ignore ``limit``, ``offset`` or both, some cap a page at less."""
    kept: list[Kept] = []
    known: set[str] = set()
    while True:
        offset = len(kept)
        found = server.ask(lambda client, offset=offset: page(client, offset))  # type: ignore[misc]
        new = {_value(row, key): row for row in found if _value(row, key) not in known}
        known.update(new)
        kept += map(keep, new.values())
        if not new or (not exhaust and len(found) < min(PAGE, _SURELY_ALL)):
            return kept


def _value(row: Mapping[str, Any], tag: str) -> str:
    values = (row.get(tag) or {}).get("Value") or [""]
    return str(values[0] if values[0] is not None else "").strip()


@dataclass(frozen=True, slots=True)
class _Lister:
    """Turns what a server tells of a study into sources and rows."""

    address: Address
    select: Select
    handlers: Handlers

    def study(self, server: Server, study: str) -> list[tuple[str, Item]]:
        filters = dict(self.address.series)

        def page(client: Any, offset: int) -> Any:
            return client.search_for_series(study, limit=PAGE, offset=offset, search_filters=filters)

        try:
            rows = _pages(server, page, "0020000E", lambda row: row, exhaust=False)
        except Refused as refused:
            return [(study, self._row(refused, self.address.of(study), "its series cannot be listed"))]
        return [pair for row in rows for pair in self._series(server, study, row)]

    def _series(self, server: Server, study: str, row: Mapping[str, Any]) -> Iterator[tuple[str, Item]]:
        uid, modality = _value(row, "0020000E"), _value(row, "00080060").upper()
        place, uri = f"{study}/{uid}", self.address.of(study, uid)
        if not _UID.fullmatch(uid):
            yield study, BadSource(self.address.of(study), "a series without SeriesInstanceUID", "repair it on the server")
            return
        if self.handlers.by_series and not is_selected(place, self.select):
            return
        if modality and modality not in self.handlers.modalities:
            why = "SM: whole-slide images are not read" if modality == "SM" else modality
            yield place, LeftOut(uri, f"domain={self.handlers.domain} (modality {why})", "ingest it with its own domain")
            return
        try:
            metadata = server.ask(lambda client: client.retrieve_series_metadata(study, uid))
            headers = self._headers(metadata, uri)
        except Refused as refused:
            yield place, self._row(refused, uri, "its metadata cannot be had")
        except BadSource as bad:
            yield place, bad
        else:
            yield from self._sources(study, uid, headers)

    def _row(self, refused: Refused, uri: str, what: str) -> BadSource:
        """A row for one series or study.

        Raises:
            UserError: Nothing else can be had from the server either.
        """
        if refused.everything:
            raise UserError("ingest.source", f"{SCHEME}{self.address.url}: {refused.problem}", remedy=refused.remedy)
        return BadSource(uri, f"{what}: {refused.problem}", refused.remedy)

    def _headers(self, metadata: Sequence[Mapping[str, Any]], uri: str) -> list[Header]:
        headers: list[Header] = []
        with quiet_pydicom():
            for instance in metadata:
                sop = _value(instance, "00080018")
                if not _UID.fullmatch(sop):
                    raise BadSource(uri, "an image without SOPInstanceUID", "repair it on the server")
                try:
                    headers += headers_of(instance, Path(sop), self.handlers.names, frames=self.handlers.by_series)
                except Exception as error:  # odd JSON makes pydicom raise whatever its converters meet
                    reason = f"its metadata cannot be understood ({type(error).__name__})"
                    raise BadSource(uri, reason, "export the series to files, and ingest those") from error
        if not headers:
            raise BadSource(uri, "a series without images", "exclude it, or wait until the server has received it")
        return sorted(headers, key=lambda header: (header.path, header.frame or 0))

    def _sources(self, study: str, uid: str, headers: list[Header]) -> Iterator[tuple[str, Item]]:
        place, uri = f"{study}/{uid}", self.address.of(study, uid)
        total = len({header.path for header in headers})
        if self.handlers.by_series:
            groups = [(place, uri, tuple(headers))]
        else:
            images = [(str(header.path), header) for header in headers]
            groups = [(f"{place}/{sop}", self.address.of(study, uid, sop), (header,)) for sop, header in images]
        for name, address, some in groups:
            if not is_selected(name, self.select):
                continue
            gathered = Gathered(root=Path(self._host()), place=name, uri=address, alone=True, headers=some, local=False)
            try:
                for key, item in self.handlers.dicom(gathered):
                    yield key, self._named(item, study, uid, total)
            except BadSource as bad:
                yield name, self._named(bad, study, uid, total)

    def _host(self) -> str:
        return urlsplit(self.address.url).hostname or "server"

    def _named(self, item: Item, study: str, uid: str, total: int) -> Item:
        """Paths, which were bare UIDs, as addresses."""
        if isinstance(item, BadSource):
            return rewritten(item, lambda text: self.address.of(study, uid, text) if _UID.fullmatch(text) and "." in text else text)
        facts: dict[str, FactValue] = {"requests": _requests(len(item.uris), total), "NumberOfSeriesRelatedInstances": total}
        uris = tuple(self.address.of(study, uid, sop) for sop in item.uris)
        return replace(item, uris=uris, facts={**item.facts, **facts})


def headers_of(instance: Mapping[str, Any], path: Path, names: Sequence[str], *, frames: bool) -> list[Header]:
    """Headers of one image in the DICOM JSON model (PS3.18 F), as ``dicom_header.read_headers`` gives those of its file.

    Prints of pixels are empty, and bytes are those of the uncompressed image.
    """
    pydicom = require("pydicom", extra="medical", wanted_by="DICOM files")
    light = {tag: element for tag, element in instance.items() if tag not in _PIXELS and "BulkDataURI" not in element}
    dataset = pydicom.Dataset.from_json(light, bulk_data_uri_handler=lambda *_: None)
    syntax = _value(instance, "00083002")
    if frames and multiframe.has_groups(dataset):
        made = [header_of(view, path, names=names, frame=number, syntax=syntax) for number, view in enumerate(multiframe.views(dataset))]
    else:
        made = [header_of(dataset, path, names=names, syntax=syntax)]
    return [replace(header, file_bytes=_bytes(header)) for header in made]


def _bytes(header: Header) -> int:
    return header.rows * header.columns * header.samples * max(header.bits // 8, 1) * header.frames


def _requests(wanted: int, total: int) -> int:
    """Whole series come at once, a small part of one image by image."""
    return 1 if 2 * wanted >= total else wanted


@contextmanager
def fetched(ref: SourceRef) -> Iterator[SourceRef]:
    """The source with its images in local files, which are removed afterwards.

    Raises:
        BadSource: They cannot be had as a whole, or the block raised one: its name is then that on the server.
    """
    scratch = ref.select.scratch
    folder = Path(tempfile.mkdtemp(prefix="dicomweb-", dir=scratch or None))
    try:
        base, study, series, instances = _split_uris(ref.uris)
        uri = f"{SCHEME}{base}/{_path(study, series)}"
        server = Server(base, Rate(rate_wanted(), scratch))
        try:
            _fetch(server, ref, folder, study, series, instances)
        except Refused as refused:
            raise BadSource(uri, f"cannot be fetched: {refused.problem}", refused.remedy) from None
        finally:
            server.close()
        yield replace(ref, uris=tuple(str(folder / instance) for instance in instances))
    except BadSource as bad:
        raise rewritten(bad, lambda text: text.replace(f"{folder}/", f"{uri}/instances/").replace(str(folder), uri)) from bad
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _split_uris(uris: Sequence[str]) -> tuple[str, str, str, list[str]]:
    base, rest = uris[0].removeprefix(SCHEME).rsplit("/studies/", 1)
    study, _, series, *_ = rest.split("/")
    return base, study, series, [uri.rsplit("/", 1)[1] for uri in uris]


def _fetch(server: Server, ref: SourceRef, folder: Path, study: str, series: str, instances: Sequence[str]) -> None:
    """Fetches the images of one source, each into a file named by its UID."""
    total = int(ref.facts.get("NumberOfSeriesRelatedInstances") or 0)  # type: ignore[arg-type]
    whole = _requests(len(instances), total) == 1 and total > 1
    incoming = folder / "incoming"
    incoming.mkdir()
    got: list[str] = []
    for path in [_path(study, series)] if whole else [_path(study, series, instance) for instance in instances]:
        for file in server.save_parts(path, incoming):
            sop = read_header(file).keys.get("SOPInstanceUID", "")
            if sop in got or not _UID.fullmatch(sop):
                raise Refused("the server sent one image twice, or one without SOPInstanceUID", "repair it on the server")
            got.append(sop)
            file.rename(folder / sop)
    missing = set(instances) - set(got)
    if missing:
        raise Refused(f"the server sent {len(got)} images, and {len(missing)} of {len(instances)} are missing", "list the server again")
    if whole and len(got) > total and len(instances) == total:
        raise Refused(f"the series had {total} images when it was listed and has {len(got)} now", "run again: it was still being received")
