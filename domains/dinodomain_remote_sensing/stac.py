"""STAC items: from an API by search, from static catalogues, collections and item files. Finds items; ``stac_item`` reads them.

``stac:https://HOST/stac?collections=sentinel-2-l2a&bbox=...`` searches an API (pystac-client, with paging); an address or file that ends
in ``.json`` or ``.geojson`` is a static catalogue, a collection, an item or a collection of items, and is walked by its links.
"""

from __future__ import annotations

import difflib
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urljoin

from dinodomain.errors import BadSource, UserError, require
from dinodomain.types import Select
from dinodomain_remote_sensing import remote
from dinodomain_remote_sensing.place import area

PREFIX = "stac:"
KEYS = ("collections", "ids", "bbox", "datetime", "query", "filter", "limit", "max_items")
"""What a search may ask for, as the STAC API specification names it."""

MAX_DEPTH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One STAC item as JSON, and where it lies.

    Attributes:
        body: The item.
        address: Its own path or address; relative links begin there. Empty if it has none.
    """

    body: Mapping[str, Any]
    address: str


def is_stac(source: str) -> bool:
    """Whether a source is a STAC API or a static catalogue."""
    return source.startswith(PREFIX) or remote.name_of(source).lower().endswith((".json", ".geojson"))


def items(source: str, select: Select) -> Iterator[Item | BadSource]:
    """All items of a source.

    Raises:
        UserError: There is no such catalogue, or the search asks for something unknown.
    """
    address, _, query = source.removeprefix(PREFIX).partition("?")
    if source.startswith(PREFIX) and not is_stac(address):
        if not remote.is_remote(address):
            raise UserError("ingest.source", f"{source!r} is no address of an API", allowed="stac:https://HOST/PATH?collections=NAME")
        yield from _search(address, _parameters(query, select))
    else:
        yield from _walked(source.removeprefix(PREFIX))


def _parameters(query: str, select: Select) -> dict[str, Any]:
    """Arguments of a search; area and dates of the ingest narrow it where it says nothing of its own."""
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, _ in pairs:
        if name not in KEYS:
            near = difflib.get_close_matches(name, KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else None
            raise UserError("ingest.source", f"a STAC search has no {name!r}", allowed=", ".join(KEYS), remedy=hint)
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[name] = _parameter(name, value)
    if select.dates and "datetime" not in found:
        first, _, last = select.dates.partition("/")
        found["datetime"] = f"{first or '..'}/{last or '..'}"
    if select.aoi and "bbox" not in found:
        found["intersects"] = _intersects(select.aoi)
    return found


def _parameter(name: str, value: str) -> Any:
    try:
        if name in ("collections", "ids"):
            return [part.strip() for part in value.split(",") if part.strip()]
        if name == "bbox":
            numbers = [float(part) for part in value.split(",")]
            if len(numbers) not in (4, 6):
                raise ValueError("not four numbers")
            return numbers
        if name in ("limit", "max_items"):
            return int(value)
        if name in ("query", "filter") and value.lstrip().startswith("{"):
            return json.loads(value)
    except ValueError as error:
        raise UserError("ingest.source", f"{name}={value} of the STAC search cannot be read: {error}", remedy="correct it") from None
    return _query(value) if name == "query" else value


_OPERATORS = {">=": "gte", "<=": "lte", "<>": "neq", "=": "eq", ">": "gt", "<": "lt"}


def _query(text: str) -> dict[str, dict[str, str | float]]:
    """``eo:cloud_cover<20,platform=sentinel-2a`` as the query extension writes it; numbers as numbers."""
    found: dict[str, dict[str, str | float]] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^<>=\s]+)\s*(>=|<=|<>|=|>|<)\s*(.+?)\s*", part)
        if match is None:
            raise UserError("ingest.source", f"query={part} of the STAC search", allowed="PROPERTY<NUMBER, with <, <=, =, <>, >= or >")
        try:
            value: str | float = float(match[3])
        except ValueError:
            value = match[3]
        found.setdefault(match[1], {})[_OPERATORS[match[2]]] = value
    return found


def _intersects(aoi: str) -> Mapping[str, Any]:
    shapely = require("shapely", extra=remote.EXTRA, wanted_by="ingest.aoi")
    shape: Mapping[str, Any] = json.loads(shapely.to_geojson(area(aoi)))
    return shape


def _search(address: str, parameters: Mapping[str, Any]) -> Iterator[Item | BadSource]:
    client = require("pystac_client", extra=remote.EXTRA, wanted_by="a STAC API")
    urllib3 = require("urllib3", extra=remote.EXTRA, wanted_by="a STAC API")
    errors = (require("pystac_client.exceptions", extra=remote.EXTRA, wanted_by="a STAC API").APIError, OSError, KeyError, ValueError)
    retry = urllib3.Retry(
        total=8,
        connect=2,
        backoff_factor=remote.delay(),
        status_forcelist=(408, 429, 500, 502, 503, 504),
        allowed_methods=None,
        raise_on_status=False,
    )
    io = require("pystac_client.stac_api_io", extra=remote.EXTRA, wanted_by="a STAC API").StacApiIO(max_retries=retry, timeout=60)
    try:
        catalogue = client.Client.open(address, stac_io=io)
        _refuse_unknown(catalogue, parameters, address)
        for body in catalogue.search(**parameters).items_as_dicts():
            yield Item(body=body, address=_self(body) or f"{address.rstrip('/')}/collections/{body.get('collection', '')}/items/x")
    except UserError:
        raise
    except errors as error:
        problem = f"the STAC API {remote.shown(address)} does not answer as one: {_words(error)}"
        raise UserError("ingest.source", problem, remedy="check the address, in a browser too, and the network") from None


def _words(error: BaseException) -> str:
    """The first line of a message; of a chain of wrapped network errors the innermost, which says what happened."""
    line = (remote.quiet(str(error)).splitlines() or [""])[0]
    inner = re.findall(r"(?:Errno -?\d+\] |: )([A-Z][^:\[\]()\"']{5,})", line) if "Max retries exceeded" in line else []
    return (inner[-1] if inner else line)[:200] or type(error).__name__


def _refuse_unknown(catalogue: Any, parameters: Mapping[str, Any], address: str) -> None:
    """A server that does not know a filter would leave it out and answer with everything."""
    for name in ("query", "filter"):
        if name in parameters and not catalogue.conforms_to(name.upper()):
            problem = f"{remote.shown(address)} knows no {name!r}"
            raise UserError("ingest.source", problem, remedy="leave it out, and choose with ingest.max_cloud, ingest.dates, ingest.select")


def _self(body: Mapping[str, Any]) -> str:
    return next((str(link.get("href", "")) for link in body.get("links", ()) if link.get("rel") == "self"), "")


def _walked(address: str) -> Iterator[Item | BadSource]:
    """Items of a static catalogue, each file once; a link that leads nowhere is a refused row, a source that does is an error."""
    if not remote.is_remote(address):
        address = os.path.abspath(os.path.expanduser(address))
        if not os.path.isfile(address):
            raise UserError("ingest.source", f"{address} does not exist", allowed="a STAC catalogue, collection or item file")
    seen: set[str] = set()
    waiting = [(address, 0)]
    while waiting:
        place, depth = waiting.pop()
        if place in seen or depth > MAX_DEPTH:
            continue
        seen.add(place)
        try:
            body = _json(place)
        except BadSource as refusal:
            if place == address:
                raise
            yield refusal
            continue
        if body.get("type") in ("Feature", "FeatureCollection"):
            yield from _features(body, place)
        else:
            waiting += [(target, depth + 1) for target in _children(body, place)][::-1]


def _features(body: Mapping[str, Any], place: str) -> Iterator[Item]:
    if body["type"] == "Feature":
        yield Item(body=body, address=place)
    for feature in body.get("features", ()):
        # An item that was saved from a search knows where it came from; its relative links begin there.
        yield Item(body=feature, address=_self(feature) if remote.is_remote(_self(feature)) else place)


def _children(body: Mapping[str, Any], place: str) -> Iterator[str]:
    for link in body.get("links", ()):
        if link.get("rel") in ("child", "item", "items") and link.get("href"):
            yield resolved(place, str(link["href"]))


def _json(place: str) -> Mapping[str, Any]:
    try:
        body = json.loads(remote.read_bytes(place).decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadSource(place, f"is no JSON ({error})", "get it again") from None
    known = isinstance(body, dict) and ("stac_version" in body or body.get("type") == "FeatureCollection")
    if not known:
        raise BadSource(place, "is no STAC catalogue, collection or item", "check the address")
    return dict(body)


def resolved(base: str, href: str) -> str:
    """A link of a file as a path or an address.

    Raises:
        BadSource: A catalogue on a server points into this machine.
    """
    if href.startswith("file://"):
        href = href.removeprefix("file://")
        if remote.is_remote(base):
            raise BadSource(base, "points to a file of this machine", "use a catalogue that names addresses")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", href):
        return href
    if base.startswith("s3://"):
        bucket, key = remote.split_s3(base)
        folder = "" if href.startswith("/") else posixpath.dirname(key)
        return f"s3://{bucket}/{posixpath.normpath(posixpath.join(folder, href.lstrip('/')))}"
    if remote.is_remote(base):
        return urljoin(base, href)
    return os.path.normpath(os.path.join(os.path.dirname(base), href))
