"""The model, its base weights and its data as a CycloneDX 1.6 bill of materials, validated against the published schema.

Made with cyclonedx-python-lib; its object model has no model card yet, so measured findings travel as properties of the model.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from dinodomain.errors import UserError, require

_WANTED = "audit.formats=[mlbom]"


def bill_of_materials(body: Mapping[str, Any]) -> bytes:
    """JSON of the bill; equal reports give equal bytes.

    Args:
        body: ``audit.json`` as plain values.

    Raises:
        UserError: It does not follow the schema.
    """
    bom = require("cyclonedx.model.bom", extra="audit", wanted_by=_WANTED)
    output = require("cyclonedx.output.json", extra="audit", wanted_by=_WANTED)
    schema = require("cyclonedx.schema", extra="audit", wanted_by=_WANTED)
    validation = require("cyclonedx.validation.json", extra="audit", wanted_by=_WANTED)
    model, parts = _model(body), list(_parts(body))
    made = bom.Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, body["audit_id"]), components=parts)
    made.metadata.timestamp = datetime.fromisoformat(body["created"])
    made.metadata.component = model
    made.register_dependency(model, parts)
    text: str = output.JsonV1Dot6(made).output_as_string(indent=2)
    problem = validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise UserError("audit.formats", f"mlbom does not follow its schema: {str(problem)[:200]}", remedy="leave out mlbom")
    return (json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _model(body: Mapping[str, Any]) -> Any:
    weights = str(body["subject"].get("weights") or body["subject"].get("features") or body["data"]["digest"])
    module = _component()
    return module.Component(
        name=f"encoder {weights[:12]}", type=module.ComponentType.MACHINE_LEARNING_MODEL, bom_ref="model", hashes=_hash(weights),
        properties=list(_properties(body)),
    )  # fmt: skip


def _parts(body: Mapping[str, Any]) -> Iterator[Any]:
    """Audit set, store, and what is declared or recorded of base weights."""
    module = _component()
    data = module.ComponentType.DATA
    yield module.Component(name="audit set", type=data, bom_ref="audit-set", hashes=_hash(body["data"]["digest"]))
    if "store" in body["subject"]:
        yield module.Component(name="store", type=data, bom_ref="store", hashes=_hash(str(body["subject"]["store"])))
    for name, value in body["subject"].items():
        if name.startswith("weights_"):
            kind = module.ComponentType.MACHINE_LEARNING_MODEL
            yield module.Component(name=name.removeprefix("weights_"), type=kind, bom_ref=name, hashes=_hash(str(value)))


def _properties(body: Mapping[str, Any]) -> Iterator[Any]:
    module = require("cyclonedx.model", extra="audit", wanted_by=_WANTED)
    yield module.Property(name="dinodomain:audit_id", value=body["audit_id"])
    for item in body["findings"]:
        yield module.Property(name=f"dinodomain:finding:{item['id']}", value=f"{item['verdict']}: {item['answer']}")


def _hash(digest: str) -> list[Any]:
    module = require("cyclonedx.model", extra="audit", wanted_by=_WANTED)
    return [module.HashType(alg=module.HashAlgorithm.SHA_256, content=digest)] if len(digest) == 64 else []


def _component() -> Any:
    return require("cyclonedx.model.component", extra="audit", wanted_by=_WANTED)
