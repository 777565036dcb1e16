"""Acquisition changes: how much of a task's score is lost under noise, blur, exposure, compression ..., and do some groups lose more?

The probe is fitted to the images as they are, of other units, and sees the same images corrupted at five strengths.
n images, E width, L strengths, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from dinodomain.audit.evidence import ENCODER, TASK, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Curves, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.observe.corrupt import CORRUPTIONS, LEVELS, look_corrupted
from dinodomain.audit.protocol.attribute import MISSING, Attribute, read_attribute
from dinodomain.audit.protocol.leak import Effort, Reader, score_found
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, Verdict
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Z95, Interval, around, auroc, unit_weights

ABOUT = About(
    name="corruption", code="CORR", question="Q2", title="What does a probe lose when images are acquired differently?",
    limits=(
        "Made-up corruptions stand for real changes of devices; a real change can do more, or something else.",
        "One linear probe on frozen features; a model trained on corrupted images may lose less.",
    ),
    maps_to={"EU AI Act": ("Art. 15",), "NIST AI RMF": ("MEASURE 2.5", "MEASURE 2.6"), "FUTURE-AI": ("Robustness 1", "Robustness 3")},
)  # fmt: skip

MILD = 2
"""Strength at which a loss is warned of: what a routine change of protocol or weather does."""
MIN_CELL = 50
DRAWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How much more a group loses than the rest, over all strengths of a corruption.

    Attributes:
        corruption: Its name.
        group: Column and value.
        value: Mean loss of the group minus that of the rest.
        error: Its bootstrap standard error, over units.
    """

    corruption: str
    group: str
    value: float
    error: float

    @property
    def p(self) -> float:
        """One-sided, by the normal."""
        return float(norm.sf(self.value / max(self.error, 1e-12)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What was lost.

    Attributes:
        plain: Score of the images as they are.
        loss: Corruption to L intervals.
        drift: Corruption to [L] mean cosine distance of the features.
        gaps: Groups against the rest.
    """

    plain: float
    loss: Mapping[str, tuple[Interval, ...]]
    drift: Mapping[str, np.ndarray]
    gaps: tuple[Gap, ...]


def run(evidence: Evidence) -> list[Result]:
    """One finding for the task."""
    observer, task = evidence.observer, evidence.asked.task
    assert observer is not None, "needed"
    assert task is not None, "needed"
    numbers = observer.some(evidence.probed, evidence.effort.seed)
    attribute = evidence.column_at(task, numbers)
    told: dict[str, Any] = {"n_units": attribute.num_units, "n_minor": attribute.num_minor, "n_images": len(attribute.rows)}
    if attribute.num_minor < MIN_UNITS or attribute.num_units < evidence.effort.folds or len(attribute.classes) == 1:
        reason = f"{attribute.num_minor} units in the smaller class of {task}; {MIN_UNITS} are the least"
        return [ABOUT.unknown("n_units", reason, "audit more units", **told)]
    plain = evidence.data.audited[numbers]
    corrupted = look_corrupted(observer, numbers, plain.shape[1], evidence.effort.seed)
    groups = {name: evidence.data.columns[name][numbers][attribute.rows] for name in evidence.asked.attributes}
    found = measure(plain, corrupted, attribute, groups, evidence.effort)
    judge = lambda p, _: _finding(task, found, p, evidence.lines, told)  # noqa: E731
    return [Draft(p=tuple(gap.p for gap in found.gaps), judge=judge)]


def measure(
    plain: np.ndarray, corrupted: Mapping[str, np.ndarray], attribute: Attribute, groups: Mapping[str, np.ndarray], effort: Effort
) -> Losses:  # fmt: skip
    """Losses and gaps between groups.

    Args:
        plain: [n, E] features of the images as they are.
        corrupted: Corruption to [L, n, E].
        attribute: The task.
        groups: Column to one value for each of the task's rows.
        effort: Folds, resamples, seed.
    """
    rows = attribute.rows
    reader = Reader(plain[rows], attribute, grouped_folds(attribute.unit_index, attribute.values, effort.folds, effort.seed))
    weights = list(unit_weights(attribute.unit_index, min(DRAWS, effort.bootstraps), effort.seed))
    loss, drift, gaps, first = {}, {}, list[Gap](), 0.0
    for name, versions in corrupted.items():
        found = [part[0] for part in reader.altered(attribute.values[None], [level[rows] for level in versions])]
        (first, draws), *worse = (score_found(attribute, part, weights) for part in found)
        loss[name] = tuple(_interval(first - score, draws - drawn) for score, drawn in worse)
        drift[name] = _drift(plain[rows], versions[:, rows])
        gaps += _gaps(name, found, attribute, groups, weights)
    return Losses(plain=first, loss=loss, drift=drift, gaps=tuple(gaps))


def _interval(value: float, draws: np.ndarray) -> Interval:
    return around(value, float(np.nanstd(draws)))


def _drift(plain: np.ndarray, versions: np.ndarray) -> np.ndarray:
    """[L] mean over images of 1 - cosine similarity to the plain features."""
    lengths = np.linalg.norm(versions, axis=-1) * np.linalg.norm(plain, axis=-1)
    result: np.ndarray = 1 - ((versions * plain).sum(axis=-1) / np.maximum(lengths, 1e-12)).mean(axis=1)
    return result


def _gaps(
    name: str, found: list[np.ndarray], attribute: Attribute, groups: Mapping[str, np.ndarray], weights: list[np.ndarray]
) -> list[Gap]:
    if len(attribute.classes) != 2:
        return []
    out = []
    for column, values in groups.items():
        text = np.array([str(value).strip() for value in values])
        known = np.array([value.lower() not in MISSING for value in text])
        labels = np.unique(text[known])
        for label in labels if 2 <= len(labels) <= 20 else ():
            inside, outside = known & (text == label), known & (text != label)
            if _fewest(attribute, inside, outside) >= MIN_CELL:
                out.append(_gap(name, f"{column} {label}", found, attribute, (inside, outside), weights))
    return out


def _fewest(attribute: Attribute, *sides: np.ndarray) -> int:
    """Units with and without the task's finding on the side that has fewest."""
    return min(len(np.unique(attribute.unit_index[rows & (attribute.values == value)])) for rows in sides for value in (0, 1))


def _gap(
    name: str, group: str, found: list[np.ndarray], attribute: Attribute, sides: tuple[np.ndarray, np.ndarray], weights: list[np.ndarray]
) -> Gap:  # fmt: skip
    """Mean loss over strengths of the group minus that of the rest; resampled units are the same on both sides."""

    def losses(rows: np.ndarray, piece: np.ndarray) -> np.ndarray:
        scores = [auroc(part[rows, 1], attribute.values[rows], piece[:, rows]) for part in found]
        result: np.ndarray = scores[0] - np.mean(scores[1:], axis=0)
        return result

    value, draws = (
        np.concatenate([losses(sides[0], piece) - losses(sides[1], piece) for piece in pieces])
        for pieces in ([np.ones((1, len(attribute.values)))], weights)
    )
    return Gap(corruption=name, group=group, value=float(value[0]), error=float(np.nanstd(draws)))


def _finding(task: str, found: Losses, p: tuple[float, ...], lines: Thresholds, told: dict[str, Any]) -> Finding:
    mild = {name: losses[MILD - 1] for name, losses in found.loss.items()}
    worst = max(mild, key=lambda name: mild[name].low)
    at = mild[worst]
    told = {
        **told, "estimate": estimate_of(at, f"score lost under {worst}, strength {MILD} of {LEVELS}", "1.96 x SE of unit bootstrap"),
        "tables": (_table(found),), "plots": (_curves(task, found, lines),),
        "evidence": {"plain": found.plain, "gaps": [_told(gap, value) for gap, value in zip(found.gaps, p)]},
    }  # fmt: skip
    scores = f"under {worst} at strength {MILD} it loses {at.value:.2f} [{at.low:.2f}, {at.high:.2f}] of {found.plain:.2f}"
    uneven = [
        gap
        for gap, value in zip(found.gaps, p)
        if value <= lines.alpha and gap.value - Z95 * gap.error > 0 and gap.value > lines.corruption
    ]
    verdict: Verdict = "FLAG" if uneven else "WARN" if at.low > lines.corruption else "CLEAR_WITHIN_LIMITS"
    if verdict == "CLEAR_WITHIN_LIMITS" and max(interval.high for interval in mild.values()) > lines.corruption:
        reason = f"losses of {lines.corruption:.2f} at strength {MILD} are not ruled out"
        return ABOUT.unknown("wide_interval", reason, "audit more units", **told, answer=f"Undecided: {scores}.")
    if verdict == "CLEAR_WITHIN_LIMITS":
        return ABOUT.finding(**told, verdict=verdict, answer=f"Little at strength {MILD}: at most, {scores}.")
    more = f" {uneven[0].group} loses {uneven[0].value:.2f} more than the rest under {uneven[0].corruption}." if uneven else ""
    action = f"Add {worst} to the augmentations, or keep such images out of use."
    repeat = "The same curves after training with it."
    return ABOUT.finding(**told, verdict=verdict, answer=f"A probe for {task}: {scores}.{more}", action=action, repeat=repeat)


def _told(gap: Gap, p: float) -> dict[str, Any]:
    return {"corruption": gap.corruption, "group": gap.group, "gap": gap.value, "error": gap.error, "p_adjusted": p}


def _table(found: Losses) -> Table:
    lost, drift = found.loss, found.drift
    return Table(
        title="Score lost by strength",
        columns=("corruption", *(f"lost at {level}" for level in range(1, LEVELS + 1)), "drift at 1", f"drift at {LEVELS}"),
        rows=tuple((name, *(one.value for one in lost[name]), float(drift[name][0]), float(drift[name][-1])) for name in lost),
        note="Drift: mean of 1 - cosine similarity to the plain features.",
    )


def _curves(task: str, found: Losses, lines: Thresholds) -> Curves:
    levels = tuple(float(level) for level in range(1, LEVELS + 1))
    ends = {
        name: {end: tuple(getattr(one, end) for one in losses) for end in ("value", "low", "high")} for name, losses in found.loss.items()
    }
    series = tuple(Series(name=name, x=levels, y=at["value"], low=at["low"], high=at["high"]) for name, at in ends.items())
    warn = {"warn": lines.corruption}
    return Curves(title=f"What a probe for {task} loses", x_axis="strength", y_axis="score lost", series=series, lines=warn)


def self_test() -> SelfTest:
    """A corruption that wipes out what the probe reads, and one that changes nothing."""
    generator = np.random.default_rng(6)
    label = np.repeat([0, 1], 80)
    plain = generator.normal(size=(160, 5))
    plain[:, 0] += 2.5 * label
    wiped = np.stack([plain] * LEVELS)
    wiped[:, :, 0] = generator.normal(size=160)
    attribute = read_attribute("planted", label, np.arange(160))
    found = measure(plain, {"wiped": wiped, "same": np.stack([plain] * LEVELS)}, attribute, {}, Effort(bootstraps=60, folds=3))
    lost, kept = found.loss["wiped"][MILD - 1], found.loss["same"][MILD - 1]
    return SelfTest(
        positive="pass" if lost.low > 0.05 else "fail", negative="pass" if kept.value == 0 and kept.high == 0 else "fail",
        detail=f"made-up corruption: {lost.value:.2f} lost where it wipes, {kept.value:.2f} where it does nothing",
    )  # fmt: skip


def _most(evidence: Evidence) -> int:
    found = (len({str(value).strip().lower() for value in evidence.probed.columns[name]} - MISSING) for name in evidence.asked.attributes)
    return len(CORRUPTIONS) * sum(count for count in found if count <= 20)


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(TASK, UNITS, ENCODER), count=_most)
