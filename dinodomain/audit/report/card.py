"""The metadata head of the card: what the Hugging Face Hub reads of it, with measured findings as a ``model-index``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinodomain.audit.report.text import cell
from dinodomain.errors import require


def model_index(body: Mapping[str, Any]) -> str:
    """YAML between the dashes of a model card, without them.

    Args:
        body: ``audit.json`` as plain values.
    """
    yaml = require("yaml", extra="audit", wanted_by="the card of an audit")
    head: dict[str, Any] = {"library_name": "dinodomain", "tags": ["self-supervised", "audit"]}
    results = [_result(body, item) for item in body["findings"] if item["estimate"] and item["estimate"]["value"] is not None]
    if results:
        head["model-index"] = [{"name": _name(body), "results": results}]
    text: str = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)
    return text.rstrip()


def _name(body: Mapping[str, Any]) -> str:
    weights = body["subject"].get("weights") or body["subject"].get("features") or body["audit_id"]
    return f"encoder {str(weights)[:12]}"


def _result(body: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    estimate = item["estimate"]
    metric = {
        "name": cell(f"{item['id']} ({item['verdict'].replace('_', ' ')})"), "type": cell(estimate["metric"]),
        "value": round(float(estimate["value"]), 4),
    }  # fmt: skip
    data = f"audit set {body['data']['digest'][:12]}"
    return {
        "task": {"type": "image-feature-extraction", "name": cell(item["title"])}, "dataset": {"name": data, "type": "audit-set"},
        "metrics": [metric],
    }  # fmt: skip
