"""Overlap: does a unit, or the very same picture, lie in two splits? Counting, no statistics: every row is looked at.

A patient in train and test lets a model be praised for recognising the patient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinodomain.audit.evidence import About, Check, Evidence, Private, Result
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.probes.scores import wilson

ABOUT = About(
    name="overlap", code="DUP", question="Q1", core=True, title="Do splits share units or identical images?",
    limits=(
        "Sees units only as far as their ids tell them apart: one person under two ids passes.",
        "Identical means equal pixels; altered copies are the duplicate check's business.",
    ),
    maps_to={"EU AI Act": ("Art. 10(3)", "Art. 15"), "NIST AI RMF": ("MEASURE 2.1",), "FDA GMLP": ("4",)},
)  # fmt: skip


def run(evidence: Evidence) -> list[Result]:
    """Counts units and identical images that lie in more than one split."""
    data = evidence.data
    splits = data.splits()
    told: dict[str, Any] = {"n_units": data.num_units, "n_images": len(data.units)}
    if splits is None:
        return [_without_splits(data, told)]
    known = data.units != ""
    shared = shared_keys(data.units, splits)
    rows = np.isin(data.units, shared) & known
    copies = np.array([]) if data.content_hash is None else shared_keys(data.content_hash, splits)
    counts = {"units in two splits": len(shared), "images of these units": int(rows.sum()), "identical images in two splits": len(copies)}
    told |= {
        "evidence": {"splits": _sizes(splits), "pairs": _pairs(data.units[known], splits[known])},
        "counts": counts, "estimate": estimate_of(wilson(len(shared), max(1, data.num_units)), "share of units", "wilson"),
    }  # fmt: skip
    listed = Private(name="overlap", columns={"row": np.flatnonzero(rows).tolist(), "unit": data.units[rows].tolist()})
    return [_judge(data, told, len(shared), len(copies)), *([listed] if rows.any() else [])]


def _judge(data: AuditSet, told: dict[str, Any], units: int, copies: int) -> Finding:
    if units or copies:
        answer = f"Yes: {units} of {data.num_units} units and {copies} identical images lie in more than one split."
        action = "Keep each unit in one split and score again; scores on these splits are too high."
        return ABOUT.finding(**told, verdict="FLAG", answer=answer, action=action)
    if not data.units_known:
        missing = int((data.units == "").sum())
        remedy = "give the column that names the patient or place (group=COLUMN)"
        answer = "No overlap was seen, but not every image has a unit."
        return ABOUT.unknown("no_unit_key", f"{missing} images have no unit id", remedy, **told, answer=answer)
    return ABOUT.finding(**told, verdict="CLEAR_WITHIN_LIMITS", answer=f"No: none of {data.num_units} units lies in two splits.")


def _without_splits(data: AuditSet, told: dict[str, Any]) -> Finding:
    if data.split is None:
        reason = "no column says which split an image belongs to"
        return ABOUT.unknown("no_split", reason, "name it with audit.split=COLUMN", **told, answer="There is no split to check.")
    reason = f"column {data.split!r} holds one value"
    return ABOUT.finding(
        **told, verdict="NOT_APPLICABLE", answer="All images lie in one split.", reason_code="one_split", reason=reason
    )  # fmt: skip


def shared_keys(keys: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """The distinct keys that occur with more than one split; empty keys and empty splits count as unknown."""
    known = (keys != "") & (splits != "")
    pairs = np.unique(np.stack([keys[known].astype(str), splits[known].astype(str)]), axis=1)
    found, times = np.unique(pairs[0], return_counts=True)
    return found[times > 1]


def _sizes(splits: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(splits, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts)}


def _pairs(units: np.ndarray, splits: np.ndarray) -> dict[str, int]:
    """Shared units per pair of splits."""
    sets = {str(name): set(units[splits == name].tolist()) for name in np.unique(splits) if name != ""}
    names = sorted(sets)
    return {f"{a} & {b}": len(sets[a] & sets[b]) for i, a in enumerate(names) for b in names[i + 1 :]}


def self_test() -> SelfTest:
    """Plants one shared unit among forty, and none."""
    units = np.array([f"u{i // 2}" for i in range(80)])
    clean = np.where(np.arange(80) < 60, "train", "test")
    planted = clean.copy()
    planted[0] = "test"
    found, silent = shared_keys(units, planted).tolist() == ["u0"], len(shared_keys(units, clean)) == 0
    return SelfTest(
        positive="pass" if found else "fail", negative="pass" if silent else "fail", detail="one shared unit planted among 40; none"
    )


CHECK = Check(about=ABOUT, run=run, self_test=self_test)
