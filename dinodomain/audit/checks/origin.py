"""Origin: can the data set that an image comes from be named from the features, better than from plain pixels?

"Name that dataset" (Torralba and Efros 2011). A signature that pixels show as well belongs to the data; what the features add, the encoder
has learnt to tell apart. Where a task is named, the same once more on rows with equal shares of its classes in every data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dinodomain.audit.evidence import UNITS, About, Check, Draft, Evidence, Need, Result
from dinodomain.audit.figures import Bar, Forest, Heat, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of, null_of
from dinodomain.audit.protocol.attribute import Attribute, counted, read_attribute, within
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort, Leak, excess, read_leaks
from dinodomain.audit.protocol.nuisance import with_statistics
from dinodomain.audit.protocol.task import baselines, read_column
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, Verdict
from dinodomain.audit.trail.groups import text_of
from dinodomain.probes.scores import Interval

ABOUT = About(
    name="origin", code="ORIG", question="Q1", title="Can the data set an image comes from be named from its features?",
    limits=(
        "One attacker: a ridge probe on pooled features.",
        "Data sets may differ in what they show; a signature is no proof of a shortcut.",
    ),
    maps_to={"EU AI Act": ("Art. 10(2)(f)",), "NIST AI RMF": ("MAP 2.3", "MEASURE 2.5"), "FUTURE-AI": ("Universality 3",)},
)  # fmt: skip
METHOD = "1.96 x max(SE of paired unit bootstrap, SD of paired unit-permutation null)"
_SILENT = "Whether the encoder tells data sets apart was not measured."

ORIGIN = Need(
    there=lambda evidence: evidence.policy.origin_column in evidence.data.columns, code="no_origin",
    reason="no column names the data set that each image comes from",
    remedy="add a column dataset, or name one in the policy (origin_column)",
)  # fmt: skip
PIXELS = Need(
    there=lambda evidence: "pixels" in evidence.data.features, code="no_pixels",
    reason="pixels were not seen, so signatures of the data cannot be told from those of the encoder",
    remedy="audit a checkpoint with its store",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """The data sets told apart.

    Attributes:
        origin: The column.
        leaks: By kind of features.
        matched: Excess over pixels on rows with equal class shares; None without a task or with too few units.
        matched_units: Units of those rows.
    """

    origin: Attribute
    leaks: Mapping[str, Leak]
    matched: Interval | None = None
    matched_units: int = 0


def run(evidence: Evidence) -> list[Result]:
    """One finding."""
    data, name = evidence.probed, evidence.policy.origin_column
    origin = read_column(data, name)
    told: dict[str, Any] = {"n_units": origin.num_units, "n_minor": origin.num_minor, "n_images": len(origin.rows)}
    told["counts"] = counted(origin.units_per_class, "units of")
    if origin.kind != "classes" or len(origin.classes) + len(origin.dropped) < 2:
        reason = f"{name} names one data set" if origin.kind == "classes" else f"{name} holds numbers"
        return [ABOUT.finding(**told, verdict="NOT_APPLICABLE", answer="Not asked.", reason_code="one_origin", reason=reason)]
    if origin.num_minor < MIN_UNITS or len(origin.classes) < 2:
        reason = f"{origin.num_minor} units in the smallest data set; {MIN_UNITS} are the least for an estimate"
        return [ABOUT.unknown("n_units", reason, "audit more units of it", **told, answer=_SILENT)]
    found = name_them(data, origin, evidence.asked.task, evidence.effort)
    judge = lambda p, family: _finding(found, p[0], family, evidence.lines, told)  # noqa: E731
    return [Draft(p=(found.leaks["audited"].p,), judge=judge)]


def name_them(data: AuditSet, origin: Attribute, task: str | None, effort: Effort) -> Named:
    """Reads the data set from every kind of features, then again on class-matched rows where a task is named."""
    kinds = {name: data.features[name] for name in ("audited", "pixels", "untrained") if name in data.features}
    kinds["pixels"] = with_statistics(kinds["pixels"])
    leaks, _ = read_leaks(kinds, origin, effort)
    found = Named(origin=origin, leaks=leaks)
    if task is None:
        return found
    part = _class_matched(origin, text_of(np.asarray(data.columns[task])[origin.rows]), effort.seed)
    if part is None:
        return found
    again, _ = read_leaks({name: kinds[name] for name in ("audited", "pixels")}, part, effort)
    return replace(found, matched=excess(again["audited"], again["pixels"]), matched_units=part.num_units)


def _class_matched(origin: Attribute, labels: np.ndarray, seed: int) -> Attribute | None:
    """The rows of units drawn so that every class of the task has as many units in each data set; None below 30 units of a data set."""
    generator = np.random.default_rng([seed, 0x0419])
    kept = np.zeros(len(labels), bool)
    for label in np.unique(labels[labels != ""]):
        units = [np.unique(origin.unit_index[(labels == label) & (origin.values == code)]) for code in range(len(origin.classes))]
        most = min(len(found) for found in units)
        for code, found in enumerate(units):
            kept |= (labels == label) & (origin.values == code) & np.isin(origin.unit_index, generator.permutation(found)[:most])
    if not kept.any():
        return None
    part = within(origin, kept)
    counts = [len(np.unique(part.unit_index[part.values == code])) for code in range(len(part.classes))]
    return part if min(counts) >= MIN_UNITS else None


def _finding(found: Named, p: float, family: int, lines: Thresholds, told: dict[str, Any]) -> Finding:
    leak, over = found.leaks["audited"], excess(found.leaks["audited"], found.leaks["pixels"])
    null = null_of("unit-level permutation", leak.null, leak.p, p, family)
    matched = None if found.matched is None else [found.matched.value, found.matched.low, found.matched.high]
    told = {
        **told, "estimate": estimate_of(over, "auroc minus that of pixels", METHOD), "null": null, "baselines": baselines(found.leaks),
        "tables": (_table(found),), "plots": (_forest(found), _confusion(found.origin, leak.predictions)),
        "evidence": {"auroc": leak.value, "class_matched_excess": matched, "class_matched_units": found.matched_units},
    }  # fmt: skip
    beyond = f"{over.value:+.2f} [{over.low:+.2f}, {over.high:+.2f}]"
    score = f"{leak.value:.2f} from the features, {found.leaks['pixels'].value:.2f} from pixels, {beyond}"
    verdict, code, reason = _verdict(over, p, lines)
    acting = verdict == "WARN"
    words = {"WARN": "Yes, beyond pixels", "CLEAR_WITHIN_LIMITS": "Not beyond pixels"}.get(verdict, "Undecided")
    return ABOUT.finding(
        **told, verdict=verdict, answer=f"{words}: {score}.", reason_code=code, reason=reason, encoded=acting or None,
        action="Score the task across data sets (lodo), and balance them in training." if acting else "",
        repeat="After the change, an excess over pixels whose interval ends below the line." if acting else "",
        remedy="audit more units" if verdict == "NOT_ASSESSABLE" else "",
    )  # fmt: skip


def _verdict(over: Interval, p: float, lines: Thresholds) -> tuple[Verdict, str, str]:
    if p <= lines.alpha and over.low > lines.origin_warn:
        return "WARN", "", ""
    if over.high < lines.origin_warn:
        return "CLEAR_WITHIN_LIMITS", "", ""
    return "NOT_ASSESSABLE", "wide_interval", f"an excess of {lines.origin_warn:.2f} over pixels is neither shown nor ruled out"


def _table(found: Named) -> Table:
    rows = [
        (name, str(leak.interval), None if name == "audited" else str(excess(found.leaks["audited"], leak)))
        for name, leak in found.leaks.items()
    ]
    if found.matched is not None:
        rows.append((f"classes matched, {found.matched_units} units", "", str(found.matched)))
    return Table(title="Naming the data set", columns=("features", "AUROC", "audited minus these"), rows=tuple(rows))


def _forest(found: Named) -> Forest:
    bars = [
        Bar(label=name, value=leak.interval.value, low=leak.interval.low, high=leak.interval.high, n_units=found.origin.num_units)
        for name, leak in found.leaks.items()
    ]
    low, high = np.percentile(found.leaks["audited"].null, [2.5, 97.5])
    return Forest(title="Naming the data set", axis="AUROC, mean over data sets", rows=tuple(bars), band=(float(low), float(high)))


def _confusion(origin: Attribute, predictions: np.ndarray) -> Heat:
    """Share of each data set's rows (down) that are taken for each (across)."""
    told = predictions.argmax(axis=1)
    names = origin.classes
    rows = []
    for code in range(len(names)):
        mine = told[origin.values == code]
        rows.append(tuple(float((mine == other).mean()) for other in range(len(names))))
    title = f"Taken for (across) of (down): {', '.join(names)}"
    return Heat(title=title, axis="share of the data set's images", panels={"": tuple(rows)}, low=0.0, high=1.0, centre=1 / len(names))


def self_test() -> SelfTest:
    """A signature that only the features show, and one that pixels show as well."""
    generator = np.random.default_rng(12)
    labels = np.array(["a", "b"])[np.arange(160) % 2]
    marked = generator.normal(size=(160, 8)) + 1.2 * (labels == "b")[:, None] * (np.arange(8) < 2)
    plain = generator.normal(size=(160, 8))
    origin = read_attribute("dataset", labels, np.arange(160))
    effort = Effort(permutations=99, bootstraps=100)
    planted, clean = (_over(marked, pixels, origin, effort) for pixels in (plain, marked))
    return SelfTest(
        positive="pass" if planted.low > 0.05 else "fail", negative="pass" if clean.low <= 0.05 else "fail",
        detail=f"made-up data sets: excess {planted.value:+.2f} with a planted signature, {clean.value:+.2f} where pixels show it as well",
    )  # fmt: skip


def _over(rows: np.ndarray, pixels: np.ndarray, origin: Attribute, effort: Effort) -> Interval:
    leaks, _ = read_leaks({"audited": rows, "pixels": pixels}, origin, effort)
    return excess(leaks["audited"], leaks["pixels"])


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(ORIGIN, PIXELS, UNITS), count=lambda _: 1)
