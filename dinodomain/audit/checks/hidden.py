"""Copies that no split sees: the same ground under another unit, sensor or row/path, by georeference; parts of a volume inside another.

Part of the duplicate check, beside what features and hashes find. S sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.checks.rescored import source_splits
from dinodomain.audit.evidence import About, Private, Result
from dinodomain.audit.figures import Table
from dinodomain.audit.finding import Finding, estimate_of
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.audit.trail.footprints import Ground, same_ground
from dinodomain.audit.trail.kept import Kept
from dinodomain.audit.trail.parts import MOST_VOLUMES, Part, find_parts
from dinodomain.errors import MissingExtra
from dinodomain.probes.scores import wilson

APART = ("sensor", "platform", "instrument", "path", "row", "wrs_path", "wrs_row", "orbit", "relative_orbit")
"""Fields by which two images of one place may differ although the ground is the same."""


def hidden(about: About, kept: Kept, data: AuditSet, lines: Thresholds) -> list[Result]:
    """Findings on ground and on parts, where the store has either.

    Args:
        about: The duplicate check.
        kept: What the store holds.
        data: The audited set, whose ``sources`` are rows of that store; says units and splits.
        lines: Thresholds.
    """
    places = Places(units=_units(kept, data), splits=source_splits(data, len(kept)))
    results: list[Result] = []
    try:
        ground = same_ground(kept)
    except MissingExtra as error:
        results.append(about.unknown("missing_extra", str(error), 'install it: pip install "dinodomain[remote-sensing]"', "ground"))
    else:
        if ground.placed > 1:
            results += _ground(about, kept, ground, places, lines)
    if kept.volumes is not None:
        results += _parts(about, kept, places)
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where each source belongs.

    Attributes:
        units: Of each source, all that its tiles lie in.
        splits: [S] as text, or None.
    """

    units: list[set[str]]
    splits: np.ndarray | None


def _units(kept: Kept, data: AuditSet) -> list[set[str]]:
    """Units as the audit takes them; as the store does for sources without an audited tile."""
    found: list[set[str]] = [set() for _ in range(len(kept))]
    for row, unit in zip(data.sources.tolist(), data.units.tolist()):
        found[row].add(str(unit))
    for row, unit in zip(kept.unit_rows.tolist(), kept.unit_names.tolist()):
        if not found[row] or found[row] == {""}:
            found[row].add(unit)
    return found


def _ground(about: About, kept: Kept, ground: Ground, places: Places, lines: Thresholds) -> list[Result]:
    units, splits, pairs = places.units, places.splits, ground.pairs
    other_unit = np.array([units[a].isdisjoint(units[b]) for a, b in pairs.tolist()], bool)
    across = other_unit if splits is None else np.array([splits[a] != splits[b] for a, b in pairs.tolist()], bool)
    touched = len(np.unique(pairs[across])) if across.any() else 0
    share = wilson(touched, ground.placed)
    place = "units" if splits is None else "splits"
    counts: dict[str, int | str] = {
        "pairs over the same ground": len(pairs), "of these by more than a quarter": int((ground.shares > 0.25).sum()),
        "of different units": int(other_unit.sum()), f"across {place}": int(across.sum()), f"sources in pairs across {place}": touched,
        **_differing(kept, pairs),
    }  # fmt: skip
    told: dict[str, Any] = {
        "title": f"Is the same ground in different {place}?", "n_units": kept.num_units, "n_images": ground.placed, "counts": counts,
        "estimate": estimate_of(share, f"share of sources whose ground is also in another of the {place}", "wilson"),
        "tables": (_shares(ground, across),),
    }  # fmt: skip
    columns = {
        "row": pairs[:, 0].tolist(), "other": pairs[:, 1].tolist(), "share": [round(float(one), 4) for one in ground.shares],
        "across": across.tolist(), "other_unit": other_unit.tolist(),
    }  # fmt: skip
    found = _ground_finding(about, told, int(across.sum()), touched, share.low > lines.duplicates_flag, place)
    return [found, *([Private(name="ground", columns=columns)] if len(pairs) else [])]


def _ground_finding(about: About, told: dict[str, Any], pairs: int, touched: int, sure: bool, place: str) -> Finding:
    if pairs:
        verdict: Verdict = "FLAG" if sure and place == "splits" else "WARN"
        among = f"{touched} of {told['n_images']} sources are in such a pair"
        answer = f"Yes: {pairs} pairs of sources show the same ground across {place}; {among}."
        action = (
            "Split by ground (group= a coarser cell, or ingest.cell), and score again; pairs are in ground.csv, kept beside the report."
        )
        repeat = f"No pair of footprints overlaps across {place}."
        return about.finding("ground", **told, verdict=verdict, answer=answer, action=action, repeat=repeat)
    answer = f"No: by georeference no two of {told['n_images']} sources overlap across {place}."
    return about.finding("ground", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _differing(kept: Kept, pairs: np.ndarray) -> dict[str, int | str]:
    """How many pairs differ in sensor or row/path, for the fields that the store has."""
    found: dict[str, int | str] = {}
    for name in APART:
        values = kept.groups.get(name)
        if values is None or not len(pairs):
            continue
        differ = sum(str(values[a]) != str(values[b]) for a, b in pairs.tolist())
        if differ:
            found[f"of different {name.replace('_', ' ')}"] = differ
    return found


def _shares(ground: Ground, across: np.ndarray) -> Table:
    edges = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01))
    rows = tuple(
        (f"{low:.0%} to {min(high, 1):.0%}", int(((ground.shares >= low) & (ground.shares < high)).sum()),
         int(((ground.shares >= low) & (ground.shares < high) & across).sum()))
        for low, high in edges
    )  # fmt: skip
    return Table(title="Overlap of footprints", columns=("share of the smaller", "pairs", "of these across"), rows=rows)


def _parts(about: About, kept: Kept, places: Places) -> list[Result]:
    assert kept.volumes is not None, "asked by the caller"
    volumes: Mapping[int, np.ndarray] = kept.volumes()
    if len(volumes) < 2:
        return []
    found, units, splits = find_parts(volumes), places.units, places.splits
    apart = [part for part in found if units[part.whole].isdisjoint(units[part.part])]
    split = [] if splits is None else [part for part in found if splits[part.whole] != splits[part.part]]
    told: dict[str, Any] = {
        "title": "Is a volume, or a part of it, inside another?", "n_units": kept.num_units, "n_images": len(volumes),
        "counts": {"volumes compared": len(volumes), "pairs with slices in common": len(found), "of different units": len(apart),
                   "across splits": len(split)},
        "evidence": {"slices": [part.slices for part in found], "offsets": [part.offset for part in found],
                     "correlations": [round(part.correlation, 4) for part in found]},
        "limits": (*about.limits, f"The first {MOST_VOLUMES} volumes are compared, along the first axis, over the whole field of view."),
    }  # fmt: skip
    if not found:
        answer = f"No: no run of slices of one of {len(volumes)} volumes was found in another."
        return [about.finding("parts", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)]
    verdict: Verdict = "FLAG" if apart or split else "WARN"
    answer = f"Yes: {len(found)} pairs share slices, {len(apart)} of them under different units; {_words(found[0])}."
    action = "Give both volumes one unit (ingest.group), or withdraw the part (parts.csv, kept beside the report), and score again."
    repeat = "No volume lies in another under a different unit."
    return [about.finding("parts", **told, verdict=verdict, answer=answer, action=action, repeat=repeat), _listed(kept, found)]


def _words(part: Part) -> str:
    way = ", in reverse" if part.flipped else ""
    return f"in the first, {part.slices} slices begin at slice {part.offset} of the other{way} (mean correlation {part.correlation:.3f})"


def _listed(kept: Kept, found: list[Part]) -> Private:
    names = kept.index["source_id"]
    return Private(
        name="parts",
        columns={
            "whole": [str(names[part.whole]) for part in found], "part": [str(names[part.part]) for part in found],
            "offset": [part.offset for part in found], "slices": [part.slices for part in found],
            "correlation": [round(part.correlation, 4) for part in found], "reversed": [part.flipped for part in found],
        },
    )  # fmt: skip
