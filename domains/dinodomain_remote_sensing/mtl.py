"""Metadata of a Landsat product (MTL): as text, JSON or XML, all three with the same groups and keys.

Collection 2 ships all three beside the bands; they say the same, so the first of text, JSON, XML is read.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from typing import Any

from dinodomain.errors import BadSource
from dinodomain_remote_sensing import vfs

_NAME = re.compile(r"^(?P<product>.*)_MTL\.(?P<kind>txt|json|xml)$", re.IGNORECASE)
_ORDER = ("txt", "json", "xml")


def read_mtl_of(texts: Sequence[str], uri: str) -> dict[str, str] | None:
    """Reads the MTL among the metadata files of one scene.

    Args:
        texts: Metadata files.
        uri: The scene, named in errors.

    Returns:
        Values without quotes by ``KEY`` (first occurrence) and by ``GROUP.KEY``, or None where there is no MTL.

    Raises:
        BadSource: There are those of several products, or it is no MTL.
    """
    found = {path: match for path in texts if (match := _NAME.match(vfs.name_of(path)))}
    if not found:
        return None
    if len({match["product"].upper() for match in found.values()}) > 1:
        names = ", ".join(vfs.name_of(path) for path in found)
        raise BadSource(uri, f"several MTL files: {names}", "leave one out with ingest.exclude")
    return read_mtl(min(found, key=lambda path: _ORDER.index(found[path]["kind"].lower())))


def read_mtl(path: str) -> dict[str, str]:
    """Reads one MTL file.

    Returns:
        See ``read_mtl_of``.

    Raises:
        BadSource: It is not one.
    """
    data = vfs.read_bytes(path)
    kind = path.rpartition(".")[2].lower()
    try:
        entries = {"txt": _text, "json": _json, "xml": _xml}[kind](data)
        facts: dict[str, str] = {}
        for group, key, value in entries:
            facts.setdefault(key, value)
            facts[f"{group}.{key}"] = value
    except (ValueError, ElementTree.ParseError) as error:
        raise BadSource(path, f"not an MTL file ({error})", "copy it again") from None
    if not facts:
        raise BadSource(path, f"not an MTL {kind}", "copy it again")
    return facts


def _text(data: bytes) -> Iterator[tuple[str, str, str]]:
    groups: list[str] = []
    for line in data.decode("ascii", errors="replace").replace("\0", "").splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            groups.append(value)
        elif key == "END_GROUP" and groups:
            groups.pop()
        elif equals:
            yield groups[-1] if groups else "", key, value.strip('"')


def _json(data: bytes) -> Iterator[tuple[str, str, str]]:
    def inside(group: str, body: Any) -> Iterator[tuple[str, str, str]]:
        if not isinstance(body, dict):
            raise ValueError("its groups are no objects")
        for key, value in body.items():
            if isinstance(value, dict):
                yield from inside(key, value)
            else:
                yield group, key, str(value)

    return inside("", json.loads(data))


def _xml(data: bytes) -> Iterator[tuple[str, str, str]]:
    if b"<!ENTITY" in data or b"<!DOCTYPE" in data[:2048]:
        raise ValueError("entities of its own")
    for group in ElementTree.fromstring(data).iter():
        for element in group:
            if not len(element):
                yield group.tag, element.tag, (element.text or "").strip().strip('"')
