"""Near-duplicates: is the same picture there twice, altered or not, in two splits or under two units?

Identical pixels by content hash; altered copies (other exposure, re-encoding) by nearness in two kinds of features at once, so that a
blind spot of one encoder is not a finding. "Near" is set from pairs of different units, so that an image without any copy is matched
by mistake in one of ten thousand cases. N rows, M null pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dinodomain.audit.evidence import About, Check, Evidence, Private, Result
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.probes.ridge import standardise
from dinodomain.probes.scores import Interval, wilson

ABOUT = About(
    name="duplicates", code="DUP", question="Q1", core=True, title="Is the same picture there more than once, across splits or units?",
    limits=(
        "Finds copies altered in exposure, noise or encoding; crops, mirror images and the same scene from elsewhere may pass.",
        "Neighbouring slices or overlapping tiles of one unit are not counted.",
    ),
    maps_to={"EU AI Act": ("Art. 10(3)", "Art. 15"), "NIST AI RMF": ("MEASURE 2.1",), "FDA GMLP": ("4",)},
)  # fmt: skip
FALSE_RATE = 1e-4  # per image, against all others
NULL_PAIRS = 200_000
TAIL = (0.002, 0.02)  # quantiles of null distances between which the tail's exponent is measured, in large sets
COPIES_PER_IMAGE = 4  # in small sets the quantiles move up, so that this many copies of every image do not reach them
_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """One kind of features, ready for distances.

    Attributes:
        rows: [N, E] of unit length.
        near: Chord distance below which two rows count as copies.
    """

    rows: np.ndarray
    near: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs of rows, first < second.

    Attributes:
        pairs: [P, 2] row numbers.
        identical: [P] whether the pixels are equal.
        recall: Share of planted copies found, with interval, or None where none were planted.
        kinds: Kinds of features used.
    """

    pairs: np.ndarray
    identical: np.ndarray
    recall: Interval | None
    kinds: tuple[str, ...]


def run(evidence: Evidence) -> list[Result]:
    """Lists copies across splits (or, without splits, across units) and the share of units they touch."""
    data = evidence.data
    found = match(data, seed=evidence.effort.seed)
    crossing, place = _crossing(data, found.pairs)
    share = _share(data, found.pairs[crossing])
    told = {
        "n_units": data.num_units, "n_images": len(data.units), "estimate": estimate_of(share, "share of units", "wilson"),
        "counts": _counts(found, crossing, place), "evidence": _evidence(found, place),
    }  # fmt: skip
    first, second = found.pairs[crossing].T
    listed = Private(
        name="duplicates",
        columns={"row": first.tolist(), "copy": second.tolist(), "identical": found.identical[crossing].tolist()},
    )
    return [_judge(found, crossing, place, share, told, evidence.lines), *([listed] if crossing.any() else [])]


def match(data: AuditSet, *, seed: int) -> Matches:
    """All copies between different images that are not of one unit within one split."""
    kinds = ("audited", *[kind for kind in ("pixels", "untrained") if kind in data.features][:1])
    keys = _keys(data)
    spaces = {kind: make_space(prepare(kind, data.features[kind]), keys, data.sources, seed) for kind in kinds}
    near = _near_pairs(list(spaces.values()), data.sources)
    same = np.empty((0, 2), np.int64) if data.content_hash is None else _identical(data.content_hash, data.sources)
    pairs = np.unique(np.concatenate([near, same]), axis=0)
    splits = data.splits()
    apart = keys[pairs[:, 0]] != keys[pairs[:, 1]]
    if splits is not None:
        apart |= splits[pairs[:, 0]] != splits[pairs[:, 1]]
    pairs = pairs[apart]
    equal = np.zeros(len(pairs), bool) if data.content_hash is None else data.content_hash[pairs[:, 0]] == data.content_hash[pairs[:, 1]]
    return Matches(pairs=pairs, identical=equal, recall=_recall(data, spaces), kinds=kinds)


def _keys(data: AuditSet) -> np.ndarray:
    """Unit per row; a row without one stands for itself."""
    return np.where(data.units != "", data.units, np.char.add("\0source ", data.sources.astype(str)))


def prepare(kind: str, features: np.ndarray) -> np.ndarray:
    """Pixels are taken relative to their own mean and deviation, so that another exposure does not hide a copy."""
    rows = np.asarray(features, np.float64)
    if kind != "pixels":
        return rows
    result: np.ndarray = (rows - rows.mean(axis=1, keepdims=True)) / np.maximum(rows.std(axis=1, keepdims=True), 1e-9)
    return result


def make_space(features: np.ndarray, keys: np.ndarray, sources: np.ndarray, seed: int) -> Space:
    """Standardises, scales to unit length and sets the distance that counts as near.

    Distances r of unrelated points with D degrees of freedom fall below r with a chance of c r^D, so two low quantiles give D, and D
    gives the distance whose chance is 1e-4 / N (Levina and Bickel 2004). The quantiles lie above what copies make up.
    """
    rows = _unit_length(standardise(np.asarray(features, np.float64))[0])
    distance = _null_distances(rows, keys, sources, seed)
    if not len(distance):
        return Space(rows=rows, near=0.0)
    tail = np.minimum(max(1.0, COPIES_PER_IMAGE / len(rows) / TAIL[0]) * np.array(TAIL), (0.05, 0.5))
    lower, upper = np.quantile(distance, tail)
    if lower <= 1e-6 or upper <= lower:
        return Space(rows=rows, near=0.0)  # collapsed features: unrelated images coincide, nothing can be told
    degrees = np.log(tail[1] / tail[0]) / np.log(upper / lower)
    return Space(rows=rows, near=float(lower * (FALSE_RATE / len(rows) / tail[0]) ** (1 / degrees)))


def _null_distances(rows: np.ndarray, keys: np.ndarray, sources: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng([seed, 0xD0B])
    a, b = generator.integers(0, len(rows), (2, min(NULL_PAIRS, len(rows) ** 2)))
    apart = (keys[a] != keys[b]) & (sources[a] != sources[b])
    a, b = a[apart], b[apart]
    pieces = [np.linalg.norm(rows[a[s : s + _BLOCK * 16]] - rows[b[s : s + _BLOCK * 16]], axis=1) for s in range(0, len(a), _BLOCK * 16)]
    return np.concatenate(pieces) if pieces else np.empty(0)


def _unit_length(rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return result


def _near_pairs(spaces: list[Space], sources: np.ndarray) -> np.ndarray:
    """Pairs of different images that are near in every space: [P, 2], first < second."""
    found = [np.empty((0, 2), np.int64)]
    if min(space.near for space in spaces) <= 0:
        return found[0]
    count = len(sources)
    for start in range(0, count, _BLOCK):
        near = np.ones((min(_BLOCK, count - start), count - start), bool)
        for space in spaces:
            near &= space.rows[start : start + _BLOCK] @ space.rows[start:].T > 1 - space.near**2 / 2
        first, second = np.nonzero(near)
        keep = (second > first) & (sources[first + start] != sources[second + start])
        found.append(np.stack([first[keep], second[keep]], axis=1) + start)
    return np.concatenate(found)


def _identical(hashes: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Pairs of different images with equal pixels; each image is paired with the first of its group only."""
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    second = np.arange(len(hashes))
    leader = first[group.reshape(-1)]
    keep = (leader != second) & (sources[leader] != sources[second]) & (hashes != "")
    return np.stack([leader[keep], second[keep]], axis=1)


def _recall(data: AuditSet, spaces: Mapping[str, Space]) -> Interval | None:
    if data.copies is None:
        return None
    found = np.ones(len(data.copies.rows), bool)
    for kind, space in spaces.items():
        copies = _unit_length(standardise(prepare(kind, data.features[kind]), prepare(kind, data.copies.features[kind]))[1])
        found &= np.linalg.norm(copies - space.rows[data.copies.rows], axis=1) < space.near
    return wilson(int(found.sum()), len(found))


def _crossing(data: AuditSet, pairs: np.ndarray) -> tuple[np.ndarray, str]:
    """[P] which pairs count, and between what."""
    splits = data.splits()
    if splits is None:
        return np.ones(len(pairs), bool), "units"
    return splits[pairs[:, 0]] != splits[pairs[:, 1]], "splits"


def _share(data: AuditSet, pairs: np.ndarray) -> Interval:
    keys = _keys(data)
    return wilson(len(np.unique(keys[pairs.reshape(-1)])), len(np.unique(keys)))


def _counts(found: Matches, crossing: np.ndarray, place: str) -> dict[str, int | str]:
    counts: dict[str, int | str] = {
        f"pairs across {place}": int(crossing.sum()), "of these identical": int((crossing & found.identical).sum()),
        "images in these pairs": len(np.unique(found.pairs[crossing])), "groups of copies": _groups(found.pairs[crossing]),
    }  # fmt: skip
    if place == "splits":
        counts["further pairs across units within a split"] = int((~crossing).sum())
    return counts


def _groups(pairs: np.ndarray) -> int:
    nodes, flat = np.unique(pairs, return_inverse=True)
    if not len(nodes):
        return 0
    a, b = flat.reshape(pairs.shape).T
    return int(connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(len(nodes), len(nodes))), directed=False)[0])


def _evidence(found: Matches, place: str) -> dict[str, Any]:
    recall = None if found.recall is None else {"value": found.recall.value, "low": found.recall.low, "high": found.recall.high}
    return {"between": place, "features": list(found.kinds), "false_rate": FALSE_RATE, "recall_on_altered_copies": recall}


def _judge(found: Matches, crossing: np.ndarray, place: str, share: Interval, told: dict[str, Any], lines: Thresholds) -> Finding:
    number, identical = int(crossing.sum()), int((crossing & found.identical).sum())
    if number:
        answer = f"Yes: {number} pairs of copies across {place}, {identical} of them identical, touch {share.value:.1%} of the units."
        sure = len(found.kinds) > 1 or identical == number
        verdict: Verdict = "FLAG" if sure and share.low > lines.duplicates_flag else "WARN"
        reason = "" if sure else "altered copies were seen by one encoder only; look at the pairs"
        action = f"Look at the pairs in private/duplicates.csv, keep one of each, and score again on {place} without copies."
        return ABOUT.finding(
            **told, verdict=verdict, answer=answer, reason=reason, reason_code="" if sure else "one_encoder", action=action
        )
    told["answer"] = "No copies were seen."
    if found.recall is None:
        reason = "no altered copies of these images could be made to measure what would have been found"
        remedy = "audit a checkpoint together with its store, so that copies can be made and embedded"
        return ABOUT.unknown("recall_unknown", reason, remedy, **told)
    if found.recall.value < lines.duplicates_recall:
        reason = f"only {found.recall.value:.0%} of deliberately altered copies of these images were found"
        remedy = "audit with a stronger encoder: this one moves copies as far apart as different images"
        return ABOUT.unknown("low_recall", reason, remedy, **told)
    told["answer"] = f"No copies across {place} were found; {found.recall.value:.0%} of deliberately altered copies would have been."
    return ABOUT.finding(**told, verdict="CLEAR_WITHIN_LIMITS")


def self_test() -> SelfTest:
    """Plants 20 copies with other exposure and noise among 150 made-up images, and none."""
    generator = np.random.default_rng(11)
    spectrum = 1 / (1 + np.hypot(*np.meshgrid(np.fft.fftfreq(16) * 16, np.fft.fftfreq(16) * 16))) ** 1.5
    images = np.fft.ifft2(np.fft.fft2(generator.normal(size=(150, 16, 16))) * spectrum).real.reshape(150, -1)
    copies = 0.8 * images[:20] + 0.1 * images.std() * (1 + generator.normal(size=(20, 256)))
    mixing = generator.normal(size=(256, 64)) / 16
    planted, clean = (_pairs_of(rows, mixing) for rows in (np.concatenate([images, copies]), images))
    recall = sum(tuple(pair) in {(i, i + 150) for i in range(20)} for pair in planted.tolist()) / 20
    return SelfTest(
        positive="pass" if recall >= 0.9 else "fail", negative="pass" if not len(clean) else "fail",
        detail=f"made-up images: {recall:.0%} of 20 planted copies found, {len(clean)} false pairs",
    )  # fmt: skip


def _pairs_of(images: np.ndarray, mixing: np.ndarray) -> np.ndarray:
    scaled = (images - images.mean(axis=1, keepdims=True)) / images.std(axis=1, keepdims=True)
    names = np.array([f"u{i}" for i in range(len(images))])
    features = {"audited": np.tanh(scaled @ mixing), "pixels": scaled}
    return match(AuditSet(features=features, units=names, content_hash=None, sources=np.arange(len(images))), seed=0).pairs


CHECK = Check(about=ABOUT, run=run, self_test=self_test)
