"""Near-duplicates: is the same picture there twice, altered or not, in two splits or under two units?

Identical pixels by content hash; altered copies (other exposure, re-encoding) by nearness in two kinds of features at once, so that a
blind spot of one encoder is not a finding, or by nearness of pixels together with perceptual hashes of the image as shown
(``observe/hashes.py``). "Near" is set from pairs of different units, so that an image without any copy is matched
by mistake in one of ten thousand cases. N rows, M null pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dinodomain.audit.checks.hidden import hidden
from dinodomain.audit.checks.rescored import score_change, test_split
from dinodomain.audit.evidence import About, Check, Evidence, Private, Result
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.observe.altered import AlteredDomain
from dinodomain.audit.observe.hashes import Hashes, agree, alike, coarse, hash_images, near_hashes
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.near import FALSE_RATE, Space, make_space, near_pairs, prepare, unit_length
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.errors import MissingExtra
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
PAIRS = 16_384  # compared at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Perceptual hashes.

    Attributes:
        images: Of all rows.
        altered: Of the altered copies, in their order; None where none were made.
    """

    images: Hashes
    altered: Hashes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs of rows, first < second.

    Attributes:
        pairs: [P, 2] row numbers.
        identical: [P] whether the pixels are equal.
        hashed: [P] whether perceptual hashes of the shown images agree, too.
        recall: Share of planted copies found, with interval, or None where none were planted.
        kinds: Kinds of features used.
    """

    pairs: np.ndarray
    identical: np.ndarray
    hashed: np.ndarray
    recall: Interval | None
    kinds: tuple[str, ...]


def run(evidence: Evidence) -> list[Result]:
    """Lists copies across splits (or, without splits, across units) and the share of units they touch."""
    data, observer, trail = evidence.data, evidence.observer, evidence.trail
    looked, lacking = _looked(evidence)
    found = match(data, seed=evidence.effort.seed, looked=looked)
    crossing, place = _crossing(data, found.pairs)
    splits = data.splits()
    of = "units" if splits is None or test_split(splits) is None else f"units of split {test_split(splits)}"
    share = _share(data, found.pairs[crossing])
    told = {
        "n_units": data.num_units, "n_images": len(data.units), "estimate": estimate_of(share, f"share of {of}", "wilson"),
        "counts": _counts(found, crossing, place), "evidence": {**_evidence(found, place), "hashes": lacking or (observer is not None)},
    }  # fmt: skip
    first, second = found.pairs[crossing].T
    listed = Private(
        name="duplicates",
        columns={
            "row": first.tolist(), "copy": second.tolist(), "identical": found.identical[crossing].tolist(),
            "hashes_agree": found.hashed[crossing].tolist(),
        },
    )  # fmt: skip
    results: list[Result] = [_judge(found, crossing, place, share, told, evidence.lines), *([listed] if crossing.any() else [])]
    if place == "splits" and crossing.any() and evidence.asked.task is not None:
        results.append(score_change(ABOUT, evidence, found.pairs[crossing]))
    if trail is not None and trail.kept is not None:
        results += hidden(ABOUT, trail.kept, data, evidence.lines)
    return results


def _looked(evidence: Evidence) -> tuple[Looked | None, str]:
    """Hashes of all images and of the altered copies, and why there are none to be had."""
    observer, copies = evidence.observer, evidence.data.copies
    if observer is None:
        return None, ""
    try:
        images = hash_images(observer, np.arange(len(evidence.data.units)))
    except MissingExtra as error:
        return None, str(error)
    altered = None if copies is None else hash_images(observer, copies.rows, AlteredDomain(observer.frozen.domain, evidence.effort.seed))
    return Looked(images=images, altered=altered), ""


def match(data: AuditSet, *, seed: int, looked: Looked | None = None) -> Matches:
    """All copies between different images that are not of one unit within one split.

    Args:
        data: The audited set.
        seed: Decides the pairs from which "near" is set.
        looked: Perceptual hashes; pairs that agree count where thumbnails are nearer than those of different units, too.
    """
    kinds = ("audited", *[kind for kind in ("pixels", "untrained") if kind in data.features][:1])
    keys = _keys(data)
    spaces = {kind: make_space(prepare(kind, data.features[kind]), keys, data.sources, seed) for kind in kinds}
    near = near_pairs(list(spaces.values()), data.sources)
    same = np.empty((0, 2), np.int64) if data.content_hash is None else _identical(data.content_hash, data.sources)
    pictures = None if looked is None else make_space(prepare("pixels", coarse(looked.images.thumbnails)), keys, data.sources, seed)
    hashed = np.empty((0, 2), np.int64) if looked is None or pictures is None else _confirmed(looked.images, pictures, data.sources)
    pairs = np.unique(np.concatenate([near, same, hashed]), axis=0)
    splits = data.splits()
    apart = keys[pairs[:, 0]] != keys[pairs[:, 1]]
    if splits is not None:
        apart |= splits[pairs[:, 0]] != splits[pairs[:, 1]]
    pairs = pairs[apart]
    equal = np.zeros(len(pairs), bool) if data.content_hash is None else data.content_hash[pairs[:, 0]] == data.content_hash[pairs[:, 1]]
    agree = np.isin(_numbers(pairs, len(keys)), _numbers(hashed, len(keys)))
    return Matches(pairs=pairs, identical=equal, hashed=agree, recall=_recall(data, spaces, looked, pictures), kinds=kinds)


def _numbers(pairs: np.ndarray, count: int) -> np.ndarray:
    """[P] one number per pair."""
    result: np.ndarray = pairs[:, 0] * count + pairs[:, 1]
    return result


def _confirmed(images: Hashes, pictures: Space, sources: np.ndarray) -> np.ndarray:
    """[P, 2] pairs of different images that agree by hash and thumbnail, and lie nearer than unrelated images do."""
    pairs = near_hashes(images.bits)
    pairs = pairs[sources[pairs[:, 0]] != sources[pairs[:, 1]]]
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), PAIRS):
        part = pairs[start : start + PAIRS]
        distance = np.linalg.norm(pictures.rows[part[:, 0]] - pictures.rows[part[:, 1]], axis=1)
        kept.append(part[distance < pictures.near])
    near = np.concatenate(kept)
    result: np.ndarray = near[alike(images, images, near)]
    return result


def _keys(data: AuditSet) -> np.ndarray:
    """Unit per row; a row without one stands for itself."""
    return np.where(data.units != "", data.units, np.char.add("\0source ", data.sources.astype(str)))


def _identical(hashes: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Pairs of different images with equal pixels; each image is paired with the first of its group only."""
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    second = np.arange(len(hashes))
    leader = first[group.reshape(-1)]
    keep = (leader != second) & (sources[leader] != sources[second]) & (hashes != "")
    return np.stack([leader[keep], second[keep]], axis=1)


def _recall(data: AuditSet, spaces: Mapping[str, Space], looked: Looked | None, pictures: Space | None) -> Interval | None:
    """Share of altered copies that either way finds."""
    if data.copies is None:
        return None
    found = np.ones(len(data.copies.rows), bool)
    for kind, space in spaces.items():
        copies = unit_length(standardise(prepare(kind, data.features[kind]), prepare(kind, data.copies.features[kind]))[1])
        found &= np.linalg.norm(copies - space.rows[data.copies.rows], axis=1) < space.near
    if looked is not None and looked.altered is not None and pictures is not None:
        found |= _seen(looked.images, looked.altered, data.copies.rows, pictures)
    return wilson(int(found.sum()), len(found))


def _seen(images: Hashes, altered: Hashes, rows: np.ndarray, pictures: Space) -> np.ndarray:
    """[c] whether each altered copy would be told by hash and thumbnail."""
    alike = agree(altered, Hashes(bits=images.bits[:, rows], thumbnails=images.thumbnails[rows]))
    everything, copies = (prepare("pixels", coarse(one.thumbnails)) for one in (images, altered))
    placed = unit_length(standardise(everything, copies)[1])
    result: np.ndarray = alike & (np.linalg.norm(placed - pictures.rows[rows], axis=1) < pictures.near)
    return result


def _crossing(data: AuditSet, pairs: np.ndarray) -> tuple[np.ndarray, str]:
    """[P] which pairs count, and between what."""
    splits = data.splits()
    if splits is None:
        return np.ones(len(pairs), bool), "units"
    return splits[pairs[:, 0]] != splits[pairs[:, 1]], "splits"


def _share(data: AuditSet, pairs: np.ndarray) -> Interval:
    """Share of units in some pair: of the test split where there is one, for that is what scores are told of; else of all."""
    keys, rows, splits = _keys(data), np.unique(pairs), data.splits()
    tested = None if splits is None else test_split(splits)
    counted = np.ones(len(keys), bool) if splits is None or tested is None else splits == tested
    return wilson(len(np.unique(keys[rows[counted[rows]]])), len(np.unique(keys[counted])))


def _counts(found: Matches, crossing: np.ndarray, place: str) -> dict[str, int | str]:
    counts: dict[str, int | str] = {
        f"pairs across {place}": int(crossing.sum()), "of these identical": int((crossing & found.identical).sum()),
        "of these with agreeing hashes": int((crossing & found.hashed).sum()),
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
        touched = f"{share.value:.1%} of the {told['estimate'].metric.removeprefix('share of ')}"
        answer = f"Yes: {number} pairs of copies across {place}, {identical} of them identical, touch {touched}."
        sure = len(found.kinds) > 1 or bool((found.identical | found.hashed)[crossing].all())
        verdict: Verdict = "FLAG" if sure and share.low > lines.duplicates_flag else "WARN"
        reason = "" if sure else "altered copies were seen by one encoder only; look at the pairs"
        action = (
            f"Look at the pairs in duplicates.csv (kept beside the report), keep one of each, and score again on {place} without copies."
        )
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
