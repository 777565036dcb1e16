"""Writes the report bundle: ``audit.json`` (validated), then page, card and further formats from that file alone, then the sums of all.

Measures nothing and reads nothing but the report.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from dinodomain.audit.chain import NAME, write_chain
from dinodomain.audit.evidence import Private
from dinodomain.audit.finding import Report, check_report, read_report
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.report import text
from dinodomain.audit.report.bom import bill_of_materials
from dinodomain.audit.report.card import model_index
from dinodomain.audit.report.cells import check_places, ground_cells
from dinodomain.audit.report.croissant import croissant
from dinodomain.audit.report.junit import junit
from dinodomain.audit.report.page import context
from dinodomain.audit.sign import PUBLIC, SIGNATURE
from dinodomain.errors import require
from dinodomain.lineage import digest_file, write_bytes, write_json
from dinodomain.show.audit import draw_plot

FILES: Mapping[str, str] = {
    "datasheet": "datasheet.md", "croissant": "croissant.json", "mlbom": "mlbom.cdx.json", "junit": "junit.xml", "cells": "cells.gpkg",
}  # fmt: skip
"""Further formats and their files."""

LIBRARIES: Mapping[str, Sequence[str]] = {
    "cells": ("geopandas", "shapely"), "croissant": ("mlcroissant",), "mlbom": ("cyclonedx",),
}  # fmt: skip
"""Formats to what they are written with, where that is not always there."""

_ALWAYS = ("audit.json", "audit.html", "card.md")
_BUNDLE = (*_ALWAYS, NAME, *FILES.values())
_STALE = (*_BUNDLE, "SHA256SUMS", SIGNATURE, PUBLIC, "audit.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the report lies.

    Attributes:
        json: The record.
        html: One page, self-contained.
        card: The same in short, as a model card.
        sums: sha256 of the others.
    """

    json: Path
    html: Path
    card: Path
    sums: Path


def write_report(
    report: Report, folder: Path, private: Sequence[Private] = (), *, chain: Sequence[Mapping[str, Any]] = (), formats: Sequence[str] = (),
    data: AuditSet | None = None,
) -> Paths:  # fmt: skip
    """Writes the bundle into ``folder``; ``audit.json`` is checked against the published schema before anything is drawn.

    Args:
        report: The record.
        folder: Made if absent; what an earlier audit left there goes.
        private: Tables for ``private/``, which only its owner may read.
        chain: The chain of audits up to this one, of which the bundle keeps a copy.
        formats: Further files, by the keys of ``FILES``.
        data: The audited rows, for ``cells``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = report.as_json()
    check_report(body, "audit.json")
    for name in _STALE:
        (folder / name).unlink(missing_ok=True)
    _write_private(folder / "private", private)
    if chain:
        write_chain(folder / NAME, chain)
    write_json(folder / "audit.json", body)
    makers: dict[str, Callable[[], bytes]] = {
        "datasheet": lambda: rendered("datasheet.md.j2", body, folder / "audit.json"), "croissant": lambda: croissant(body),
        "mlbom": lambda: bill_of_materials(body), "junit": lambda: junit(body),
    }  # fmt: skip
    for name in formats:
        if name == "cells":
            ground_cells(body, data, private, folder / FILES[name])
        else:
            write_bytes(folder / FILES[name], makers[name]())
    return draw_report(folder / "audit.json")


def check_formats(formats: Sequence[str], data: AuditSet) -> None:
    """Refuses formats that cannot be written, before the audit's work is done.

    Raises:
        UserError: The rows have no places for ``cells``.
        MissingExtra: A library is not installed.
    """
    for name in formats:
        for package in LIBRARIES.get(name, ()):
            require(package, extra="audit", wanted_by=f"audit.formats=[{name}]")
    if "cells" in formats:
        check_places(data)


def _write_private(folder: Path, tables: Sequence[Private]) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    if not tables:
        return
    folder.mkdir(mode=0o700)
    for table in tables:
        written = io.StringIO()
        writer = csv.writer(written)
        writer.writerow(table.columns)
        writer.writerows(zip(*table.columns.values(), strict=True))
        write_bytes(folder / f"{table.name}.csv", written.getvalue().encode())
        for name, content in table.files.items():
            write_bytes(folder / name, content)


def draw_report(source: Path) -> Paths:
    """Draws page and card beside an ``audit.json`` and sums up all files of the bundle."""
    read_report(source)
    body = json.loads(source.read_text("utf-8"))
    paths = Paths(
        json=source, html=source.with_name("audit.html"), card=source.with_name("card.md"), sums=source.with_name("SHA256SUMS")
    )  # fmt: skip
    write_bytes(paths.html, rendered("audit.html.j2", body, source))
    write_bytes(paths.card, rendered("card.md.j2", body, source))
    held = sorted(name for name in _BUNDLE if source.with_name(name).is_file())
    write_bytes(paths.sums, "".join(f"{digest_file(source.with_name(name))}  {name}\n" for name in held).encode())
    return paths


def rendered(template: str, body: Mapping[str, Any], source: Path) -> bytes:
    """A template filled from the record."""
    told = context(body, digest_file(source)) | {"index": model_index(body)}
    return _environment().get_template(template).render(told).encode()


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("dinodomain.audit.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": text.number, "cell": text.cell, "cell_text": text.cell_text, "words": text.words, "plot": draw_plot,
        "sentence": text.sentence, "anchor": text.anchor,
    }  # fmt: skip
    return made
