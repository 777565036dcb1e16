"""Places: can it be told from the features where on earth an image was taken, better than from season, sensor and plain pixels?

Held-out blocks of 100 km with a buffer of 50 km: next to a training scene any landscape gives its place away, and random splits of maps
are up to 40 % too optimistic (spatial k-fold cross-validation, arXiv 2005.14263).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinodomain.audit.evidence import UNITS, About, Check, Evidence, Result
from dinodomain.audit.figures import Bar, Curves, Forest, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.nuisance import with_statistics
from dinodomain.audit.protocol.places import Places, off_by, place
from dinodomain.audit.protocol.verdict import MIN_UNITS, MIN_UNITS_FOR_CLEAR, Thresholds, Verdict
from dinodomain.audit.trail.groups import text_of
from dinodomain.probes.scores import Interval, around, unit_weights

ABOUT = About(
    name="geolocation", code="GEOL", question="Q3", title="Can it be told from the features where an image was taken?",
    limits=(
        "Two probes on pooled features; a matcher against reference imagery places more.",
        "Holds for places at least 50 km from every training image.",
    ),
    maps_to={"EU AI Act": ("Art. 10(5)",), "GDPR": ("Art. 35",), "NIST AI RMF": ("MEASURE 2.10",), "FUTURE-AI": ("General 2",)},
)  # fmt: skip
RADII_KM = (25, 200, 750)
NEAR_KM = 200
MIN_BLOCKS = 10
_SILENT = "Whether places can be read was not measured."
_MONTHS = slice(5, 7)
_MOST_LEVELS = 50


def run(evidence: Evidence) -> list[Result]:
    """One finding."""
    data = evidence.probed
    rows, lon, lat = _placed(data)
    if not len(rows):
        return [
            ABOUT.finding(verdict="NOT_APPLICABLE", answer="Not asked.", reason_code="no_places", reason="no image has a place on earth")
        ]
    units = len(np.unique(data.units[rows]))
    told: dict[str, Any] = {"n_units": units, "n_images": len(rows), "answer": _SILENT}
    if units < MIN_UNITS:
        return [ABOUT.unknown("n_units", f"{units} units have a place; {MIN_UNITS} are the least", "audit more places", **told)]
    places = place(lon, lat, data.units[rows], evidence.effort.folds, evidence.effort.seed)
    if (blocks := int(places.blocks.max()) + 1) < MIN_BLOCKS:
        reason = f"the images lie in {blocks} blocks of 100 km; {MIN_BLOCKS} are the least"
        return [ABOUT.unknown("n_blocks", reason, "audit images of more regions", **told)]
    baseline, of = _baseline(data, rows, evidence.asked.domains)
    errors = {"audited encoder": off_by(data.audited[rows], places), "baseline": off_by(baseline, places)}
    if "untrained" in data.features:
        errors["untrained encoder"] = off_by(data.features["untrained"][rows], places)
    told["evidence"] = {"baseline": of, "blocks": blocks}
    return [_finding(errors, places, told, evidence)]


def _placed(data: AuditSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a place, their longitude and latitude in degrees."""
    if not {"lon", "lat"} <= set(data.columns):
        return np.empty(0, np.int64), np.empty(0), np.empty(0)
    words = [text_of(data.columns[name]) for name in ("lon", "lat")]
    rows = np.flatnonzero((words[0] != "") & (words[1] != ""))
    lon, lat = (found[rows].astype(np.float64) for found in words)
    return rows, lon, lat


def _baseline(data: AuditSet, rows: np.ndarray, domains: tuple[str, ...]) -> tuple[np.ndarray | None, list[str]]:
    """What gives a place away without an encoder: month, domains and pixels; nothing of it leaves the densest place."""
    parts, of = [], []
    months = np.array([word[_MONTHS] for word in text_of(data.columns["acquired"])[rows]]) if "acquired" in data.columns else np.array([])
    for name, words in [("month", months), *((name, text_of(data.columns[name])[rows]) for name in domains)]:
        levels = np.unique(words)
        if 2 <= len(levels) <= _MOST_LEVELS:
            parts.append((words[:, None] == levels).astype(np.float64))
            of.append(name)
    if "pixels" in data.features:
        parts.append(with_statistics(data.features["pixels"][rows]))
        of.append("pixels")
    return (np.concatenate(parts, axis=1), of) if parts else (None, ["the densest place"])


def _within(errors: np.ndarray, radius: float, weights: list[np.ndarray]) -> tuple[float, np.ndarray]:
    hit = (errors <= radius).astype(np.float64)
    return float(hit.mean()), np.concatenate([piece @ hit / piece.sum(axis=1) for piece in weights])


def _normal(value: float, draws: np.ndarray) -> Interval:
    return around(value, float(draws.std()))


def _finding(errors: dict[str, np.ndarray], places: Places, told: dict[str, Any], evidence: Evidence) -> Finding:
    lines, protected = evidence.lines, evidence.policy.protected_places
    weights = list(unit_weights(places.blocks, evidence.effort.bootstraps, evidence.effort.seed))
    ours, base = (_within(errors[name], NEAR_KM, weights) for name in ("audited encoder", "baseline"))
    over = _normal(ours[0] - base[0], ours[1] - base[1])
    table, forest = _shares(errors, weights)
    told = {
        **told, "tables": (table,), "plots": (forest, _curves(errors)),
        "estimate": estimate_of(over, f"share within {NEAR_KM} km minus that of the baseline", "1.96 x SE of block bootstrap"),
    }  # fmt: skip
    score = f"{ours[0]:.0%} are placed within {NEAR_KM} km, {base[0]:.0%} by {' and '.join(told['evidence']['baseline'])}"
    verdict, code, reason = _verdict(over, told["n_units"], lines, protected)
    acting = verdict in ("FLAG", "WARN")
    words = {"FLAG": "Yes", "WARN": "Yes", "CLEAR_WITHIN_LIMITS": "Not by these probes"}.get(verdict, "Undecided")
    return ABOUT.finding(
        **told | {"answer": f"{words}: {score}."}, verdict=verdict, reason_code=code, reason=reason, encoded=acting or None,
        action="Decide whether the places are to be protected; if so, publish no features of single images." if acting else "",
        repeat=f"After the change, no more within {NEAR_KM} km than the baseline places." if acting else "",
        remedy="audit more places" if verdict == "NOT_ASSESSABLE" else "",
    )  # fmt: skip


def _verdict(over: Interval, units: int, lines: Thresholds, protected: bool) -> tuple[Verdict, str, str]:
    if over.low > lines.place_warn:
        return ("FLAG", "protected_places", "the policy protects the places of these images") if protected else ("WARN", "", "")
    if over.high >= lines.place_warn:
        return "NOT_ASSESSABLE", "wide_interval", f"an excess of {lines.place_warn:.0%} is not ruled out"
    if units < MIN_UNITS_FOR_CLEAR:
        return "NOT_ASSESSABLE", "n_units", f"{units} units with a place; {MIN_UNITS_FOR_CLEAR} are needed to clear"
    return "CLEAR_WITHIN_LIMITS", "", ""


def _shares(errors: dict[str, np.ndarray], weights: list[np.ndarray]) -> tuple[Table, Forest]:
    rows, bars = [], []
    for name, off in errors.items():
        found = [_normal(*_within(off, radius, weights)) for radius in RADII_KM]
        rows.append((name, f"{np.nanmedian(off):,.0f}", *(str(at) for at in found)))
        at = found[RADII_KM.index(NEAR_KM)]
        bars.append(Bar(label=name, value=at.value, low=at.low, high=at.high))
    columns = ("features", "median km", *(f"within {radius} km" for radius in RADII_KM))
    forest = Forest(title="How many are placed", axis=f"share within {NEAR_KM} km of the true place", rows=tuple(bars))
    return Table(title="Places", columns=columns, rows=tuple(rows)), forest


def _curves(errors: dict[str, np.ndarray]) -> Curves:
    radii = np.geomspace(10, 10_000, 40)
    series = [
        Series(name=name, x=tuple(radii.tolist()), y=tuple(float((off <= radius).mean()) for radius in radii))
        for name, off in errors.items()
    ]
    return Curves(title="Placed within", x_axis="distance (km)", y_axis="share of images", series=tuple(series), x_log=True)


def self_test() -> SelfTest:
    """Features that hold the coordinates, and features that do not."""
    generator = np.random.default_rng(2)
    lon, lat = generator.uniform(-20, 20, 200), generator.uniform(30, 50, 200)
    places = place(lon, lat, np.arange(200), 5, 0)
    noise = generator.normal(size=(200, 6))
    marked = noise.copy()
    marked[:, :3] = places.vectors + 0.002 * noise[:, :3]
    planted, clean = (float((off_by(rows, places) <= NEAR_KM).mean()) for rows in (marked, noise))
    return SelfTest(
        positive="pass" if planted > 0.5 else "fail", negative="pass" if clean < 0.15 else "fail",
        detail=f"made-up places: {planted:.0%} within {NEAR_KM} km with planted coordinates, {clean:.0%} without",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(UNITS,))
