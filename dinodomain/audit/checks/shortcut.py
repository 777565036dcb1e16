"""Shortcuts: does a probe rest on the border, the background, clouds, missing data or burned-in text? Taking the region away decides.

A saliency map puts mass on a marker that says nothing as well as on one that says everything; the probe's score without the region does
not. What counts is the loss beyond that of taking away a region of the same shape elsewhere, against probes of permuted labels. The maps of
Captum locate and illustrate (check ``maps``), they never flag. n images, E width, K permutations, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.evidence import ENCODER, UNITS, About, Check, Draft, Evidence, Need, Result
from dinodomain.audit.figures import Bar, Forest, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.masks.regions import WORDS
from dinodomain.audit.observe.replace import Replaced, look_without
from dinodomain.audit.protocol.attribute import Attribute, permuted, read_attribute
from dinodomain.audit.protocol.joint import carried, joint_p
from dinodomain.audit.protocol.leak import Effort, Reader, score_many, weighted_score
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Interval, around, unit_weights

ABOUT = About(
    name="shortcut", code="SHORT", question="Q3", core=True, title="Does a probe rest on regions that it should not need?",
    limits=(
        "Regions are found by simple rules; what they miss was not taken away.",
        "A blur is no natural image: a loss can come from the blur itself, hence the control of the same shape elsewhere.",
        "One linear probe on frozen features; a fine-tuned model may rest on other things.",
    ),
    maps_to={
        "EU AI Act": ("Art. 13", "Annex IV 2(e)"), "NIST AI RMF": ("MEASURE 2.9", "MEASURE 2.13"), "FUTURE-AI": ("Explainability 2",),
    },
)  # fmt: skip

MIN_IMAGES_UNITS = 200
"""Units with the region that a verdict needs."""
DRAWS = 500

NAMED = Need(
    there=lambda evidence: bool(evidence.asked.attributes) or evidence.asked.task is not None, code="no_target",
    reason="neither a task nor an attribute was named, so there is no probe",
    remedy="name columns with audit.task=COLUMN or audit.attributes=[...]",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a probe loses without a region.

    Attributes:
        region: Its name.
        plain: Score of the images as they are.
        without: Score without the region.
        dropped: Score where the encoder never saw its patches.
        elsewhere: Score without the same shape elsewhere.
        excess: ``elsewhere`` minus ``without``, with interval.
        null: [K] what probes of permuted labels lose.
        units: Units with the region.
        share: Of the image.
    """

    region: str
    plain: float
    without: float
    dropped: float
    elsewhere: float
    excess: Interval
    null: np.ndarray
    units: int
    share: float


def run(evidence: Evidence) -> list[Result]:
    """A finding for the task and for each attribute."""
    assert evidence.observer is not None, "needed"
    numbers = evidence.observer.some(evidence.probed, evidence.effort.seed)
    plain = evidence.data.audited[numbers]
    regions = look_without(evidence.observer, numbers, plain, evidence.effort.seed)
    task = evidence.asked.task
    names = dict.fromkeys([*([task] if task is not None else []), *evidence.asked.attributes])
    return [_result(evidence, name, numbers, plain, regions) for name in names]


def _result(evidence: Evidence, name: str, numbers: np.ndarray, plain: np.ndarray, regions: Mapping[str, Replaced]) -> Result:
    attribute = evidence.column_at(name, numbers)
    told: dict[str, Any] = {
        "title": f"Does a probe for {name} rest on regions that it should not need?", "n_units": attribute.num_units,
        "n_minor": attribute.num_minor, "n_images": len(attribute.rows),
    }  # fmt: skip
    if attribute.one_class:
        return ABOUT.unknown("one_class", "the column holds fewer than two classes", "audit a set that holds both", name, **told)
    if attribute.num_minor < MIN_UNITS or attribute.num_units < evidence.effort.folds:
        reason = f"{attribute.num_minor} units in the smaller class; {MIN_UNITS} are the least for an estimate"
        return ABOUT.unknown("n_units", reason, "audit more units", name, **told)
    if not regions:
        reason = "no image has a border, background or marked region of its own"
        return ABOUT.finding(
            name, verdict="NOT_APPLICABLE", answer="There is nothing to take away.", reason_code="no_region", reason=reason, **told
        )
    losses = measure(plain, attribute, regions, evidence.effort)
    p = _joint(losses)
    return Draft(p=(min(p),), judge=lambda adjusted, family: _finding(name, losses, carried(p, adjusted[0], family), evidence.lines, told))


def _joint(losses: Sequence[Loss]) -> tuple[float, ...]:
    """Chance that probes of permuted labels lose as much, corrected over the regions."""
    found = joint_p(np.array([loss.excess.value for loss in losses]), np.column_stack([loss.null for loss in losses]))
    return tuple(map(float, found))


def measure(
    plain: np.ndarray, attribute: Attribute, regions: Mapping[str, Replaced], effort: Effort
) -> tuple[Loss, ...]:  # fmt: skip
    """What a probe loses without each region; the probe saw the images as they are, of other units.

    Args:
        plain: [n, E] features of the images as they are.
        attribute: What is read from them.
        regions: The same images without each region.
        effort: Folds, resamples, permutations, seed.
    """
    rows = attribute.rows
    folds = grouped_folds(attribute.unit_index, attribute.values, effort.folds, effort.seed)
    reader = Reader(plain[rows], attribute, folds)
    values = np.concatenate([attribute.values[None], permuted(attribute, effort.joint_permutations, effort.seed)])
    weights = list(unit_weights(attribute.unit_index, min(DRAWS, effort.bootstraps), effort.seed))
    return tuple(_loss(name, replaced, rows, reader, attribute, values, weights) for name, replaced in regions.items())


def _loss(
    name: str, replaced: Replaced, rows: np.ndarray, reader: Reader, attribute: Attribute, values: np.ndarray, weights: list[np.ndarray]
) -> Loss:  # fmt: skip
    versions = [getattr(replaced, kind)[rows] for kind in ("blurred", "dropped", "elsewhere")]
    found = reader.altered(values, versions)
    plain, without, dropped, elsewhere = (score_many(attribute.kind, part, values) for part in found)
    excess = elsewhere - without
    ours, control = ([weighted_score(attribute.kind, found[at][0], attribute.values, piece) for piece in weights] for at in (1, 3))
    error = max(float(np.nanstd(np.concatenate(control) - np.concatenate(ours))), float(excess[1:].std()))
    at = around(float(excess[0]), error)
    return Loss(
        region=name, plain=float(plain[0]), without=float(without[0]), dropped=float(dropped[0]), elsewhere=float(elsewhere[0]), excess=at,
        null=excess[1:], units=len(np.unique(attribute.unit_index[replaced.there[rows]])), share=replaced.share,
    )  # fmt: skip


def _finding(name: str, losses: tuple[Loss, ...], p: tuple[float, ...], lines: Thresholds, told: dict[str, Any]) -> Finding:
    usable = [(loss, value) for loss, value in zip(losses, p) if loss.units >= MIN_IMAGES_UNITS]
    worst, adjusted = max(usable or list(zip(losses, p)), key=lambda pair: pair[0].excess.low)
    told = {
        **told, "estimate": estimate_of(worst.excess, f"score lost without the {worst.region}, beyond the control", "1.96 x max(SE, SD)"),
        "tables": (_table(losses, p),), "plots": (_forest(name, losses, lines),),
        "evidence": {"excess": {loss.region: loss.excess.value for loss in losses},
                     "p_adjusted": {loss.region: value for loss, value in zip(losses, p)}},
    }  # fmt: skip
    region = WORDS.get(worst.region, worst.region)
    scores = (
        f"without the {region} the score is {worst.without:.2f} instead of {worst.plain:.2f} "
        f"({worst.elsewhere:.2f} without the same shape elsewhere)"
    )
    if not usable:
        most = max(loss.units for loss in losses)
        reason = f"{most} units have the commonest region; {MIN_IMAGES_UNITS} are needed"
        return ABOUT.unknown("n_units", reason, "audit more units", name, **told, answer=f"Undecided: {scores}.")
    if adjusted <= lines.alpha and worst.excess.low >= lines.region_warn:
        verdict = "FLAG" if worst.excess.low >= lines.region_flag else "WARN"
        action = f"Mask or crop the {region} before training and before use, and audit again."
        repeat = f"The same loss after the {region} was masked: it should not exceed that of the control."
        return ABOUT.finding(
            name, **told, verdict=verdict, answer=f"Yes: {scores}.", action=action, repeat=repeat, used="shown"
        )  # fmt: skip
    if all(loss.excess.high < lines.region_flag for loss, _ in usable):
        return ABOUT.finding(name, **told, verdict="CLEAR_WITHIN_LIMITS", answer=f"Not on these regions: {scores}.", used="not_shown")
    reason = f"losses of {lines.region_flag:.2f} are not ruled out for every region"
    return ABOUT.unknown("wide_interval", reason, "audit more units", name, **told, answer=f"Undecided: {scores}.", used="not_shown")


def _table(losses: tuple[Loss, ...], p: tuple[float, ...]) -> Table:
    return Table(
        title="Score of the probe on altered images",
        columns=("region", "share of image", "units", "as they are", "region blurred", "patches dropped", "same shape elsewhere", "p"),
        rows=tuple(
            (loss.region, loss.share, loss.units, loss.plain, loss.without, loss.dropped, loss.elsewhere, value)
            for loss, value in zip(losses, p)
        ),
        note="The probe was fitted to unaltered images of other units; p is corrected over the regions and over the question.",
    )  # fmt: skip


def _forest(name: str, losses: tuple[Loss, ...], lines: Thresholds) -> Forest:
    bars = [
        Bar(label=loss.region, value=loss.excess.value, low=loss.excess.low, high=loss.excess.high, n_units=loss.units) for loss in losses
    ]
    return Forest(
        title=f"What a probe for {name} loses without a region, beyond the same shape elsewhere", axis="score lost", rows=tuple(bars),
        lines={"warn": lines.region_warn, "flag": lines.region_flag},
    )  # fmt: skip


def self_test() -> SelfTest:
    """A probe that reads one feature which a made-up region carries, and one that reads another."""
    generator = np.random.default_rng(3)
    label = np.repeat([0, 1], 110)
    base = generator.normal(size=(220, 6))
    planted, clean = base.copy(), base.copy()
    planted[:, 0] += 2.5 * label
    clean[:, 3] += 2.5 * label
    found, silent = (_excess_of(rows, label) for rows in (planted, clean))
    return SelfTest(
        positive="pass" if min(_joint([found])) <= 0.02 and found.excess.low > 0.05 else "fail",
        negative="pass" if abs(silent.excess.value) < 0.05 else "fail",
        detail=f"made-up region: loss {found.excess.value:.2f} where it carries the label, {silent.excess.value:+.2f} where it does not",
    )  # fmt: skip


def _excess_of(rows: np.ndarray, label: np.ndarray) -> Loss:
    """The region decides feature 0; the control decides feature 5."""
    generator = np.random.default_rng(4)
    without, elsewhere = rows.copy(), rows.copy()
    without[:, 0], elsewhere[:, 5] = generator.normal(size=(2, len(rows)))
    replaced = Replaced(there=np.ones(len(rows), bool), blurred=without, elsewhere=elsewhere, dropped=without, share=0.1)
    attribute = read_attribute("planted", label, np.arange(len(label)))
    return measure(rows, attribute, {"made-up": replaced}, Effort(bootstraps=60, folds=3, joint_permutations=99))[0]


def _columns(evidence: Evidence) -> int:
    return len(evidence.asked.attributes) + (evidence.asked.task is not None)


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(NAMED, UNITS, ENCODER), count=_columns)
