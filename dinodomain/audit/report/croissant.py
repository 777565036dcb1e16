"""The audit set as Croissant 1.0 metadata with its responsible-AI part (RAI 1.0), read back by the official parser before it is given.

The RAI fields are filled from what the audit counted and found; what nobody measured is left out rather than claimed.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from typing import Any

from dinodomain.audit.plan import decision_words
from dinodomain.audit.report.text import CANNOT
from dinodomain.errors import require

_CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject", "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
"""The context that the specification prescribes."""


def croissant(body: Mapping[str, Any]) -> bytes:
    """JSON-LD of the audit set.

    Args:
        body: ``audit.json`` as plain values.
    """
    data = body["data"]
    found = {
        "@context": _CONTEXT, "@type": "sc:Dataset", "name": f"audit set {data['digest'][:12]}",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "description": f"{data['n_images']} images of {data['n_units']} units, audited for {decision_words(body['decision'])}. The images "
        "are not part of this file.",
        "url": f"urn:sha256:{data['digest']}", "version": "1.0.0", "datePublished": body["created"][:10], **_licence(body), **_rai(body),
    }  # fmt: skip
    _check(found)
    return (json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _licence(body: Mapping[str, Any]) -> dict[str, Any]:
    declared = (body["plan"].get("declaration") or {}).get("licences", {}).get("data", ())
    return {"license": list(declared)} if declared else {"license": ["not stated"]}


def _rai(body: Mapping[str, Any]) -> dict[str, Any]:
    """Only what there is evidence for."""
    columns = body["data"]["columns"]
    missing = ", ".join(f"{item['name']} {100 * item['missing']:.0f} %" for item in columns)
    found: dict[str, Any] = {
        "rai:dataBiases": list(_told(body, ("Q2",), ("FLAG", "WARN"))),
        "rai:dataLimitations": [*_told(body, ("Q1", "Q2", "Q3", "Q4"), ("NOT_ASSESSABLE",)), *CANNOT],
        "rai:personalSensitiveInformation": [item["name"] for item in columns if item["name"] in _sensitive(body)],
        "rai:dataCollectionMissingData": missing,
        "rai:dataUseCases": list((body["plan"].get("declaration") or {}).get("intended_uses", ())),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value}


def _told(body: Mapping[str, Any], questions: tuple[str, ...], verdicts: tuple[str, ...]) -> Iterator[str]:
    for item in body["findings"]:
        if item["question"] in questions and item["verdict"] in verdicts:
            yield f"{item['id']}: {item['verdict'].replace('_', ' ')}. {item['answer']} {item['reason']}".strip()


def _sensitive(body: Mapping[str, Any]) -> set[str]:
    """Columns named as attributes."""
    return set(body["plan"].get("attributes", ()))


def _check(found: Mapping[str, Any]) -> None:
    """Reads it back with the parser of the specification's authors."""
    module = require("mlcroissant", extra="audit", wanted_by="audit.formats=[croissant]")
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of rdflib, which the parser reads JSON-LD with
            module.Dataset(jsonld=json.loads(json.dumps(found)))
    finally:
        logger.setLevel(before)
