"""Outside its scope: would a monitor on the features notice images that the encoder is not meant for, and do errors rise with its alarm?

Two monitors that need no labels, fitted on half of the units in scope: distance to the k nearest of them (Sun et al. 2022) and Mahalanobis
distance with a shrunken covariance (Lee et al. 2018; Ledoit and Wolf 2004). The policy declares what is out of scope, before any result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from dinodomain.audit.evidence import UNITS, About, Check, Evidence, Need, Result
from dinodomain.audit.figures import Bar, Forest, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import printed
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.task import read_column, units_in
from dinodomain.audit.protocol.verdict import MIN_UNITS, MIN_UNITS_FOR_CLEAR, Thresholds, Verdict
from dinodomain.audit.trail.groups import text_of
from dinodomain.errors import UserError
from dinodomain.probes.folds import index_units
from dinodomain.probes.ridge import FoldedRidge, standardise
from dinodomain.probes.scores import Z95, Interval, around, auroc, spearman, unit_weights

ABOUT = About(
    name="outlier", code="OOD", question="Q2", title="Would images out of scope be noticed?",
    limits=(
        "Two monitors on pooled features; images that nobody declared out of scope were not tried.",
        "An alarm says that an image is unlike the others, not that an answer about it is wrong.",
    ),
    maps_to={
        "EU AI Act": ("Art. 15", "Annex IV 3"), "NIST AI RMF": ("MEASURE 2.5", "MEASURE 2.6"), "FUTURE-AI": ("Robustness 1",),
    },
)  # fmt: skip
NEIGHBOURS = 10
NOISE_FOUND = 0.99
_NOISE_SPREAD = 3.0  # of the noise rows over that of the features
_CONTROL_SE = 3.3  # p = .001: units in scope that look foreign to each other
_MONITORS = ("nearest neighbours", "mahalanobis")
DECLARED = Need(
    there=lambda evidence: bool(evidence.policy.out_of_scope), code="no_scope", reason="the policy declares nothing as out of scope",
    remedy="list it in the policy: out_of_scope: {COLUMN: [VALUE, ...]}",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitored:
    """One declared value, seen by the better of two monitors.

    Attributes:
        value: Of the column.
        units: That have it.
        monitor: Name of the monitor that tells it better.
        told: AUROC of out of scope against units in scope that no monitor was fitted on.
        missed: Share of out-of-scope rows below the score that passes 95 % of rows in scope (false positive rate at 95 % recall).
        silent: Spearman correlation of alarm and task error over both, or None without a task that holds there.
    """

    value: str
    units: int
    monitor: str
    told: Interval
    missed: float
    silent: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """Alarm scores of all rows by both monitors, and the controls.

    Attributes:
        scores: Monitor to [n].
        noise: AUROC of noise rows, the lower of both monitors.
        held: AUROC of one half of the unseen units in scope against the other, by monitor, and its standard error.
    """

    scores: dict[str, np.ndarray]
    noise: float
    held: dict[str, tuple[float, float]]

    @property
    def control(self) -> SelfTest:
        """Whether noise is noticed and units in scope are alike."""
        alike = all(abs(value - 0.5) <= _CONTROL_SE * error for value, error in self.held.values())
        told = ", ".join(f"{name} {value:.2f}" for name, (value, _) in self.held.items())
        return SelfTest(
            positive="pass" if self.noise > NOISE_FOUND else "fail", negative="pass" if alike else "fail",
            detail=f"noise was told with AUROC {self.noise:.3f}, unseen units in scope with {told}",
        )  # fmt: skip


def run(evidence: Evidence) -> list[Result]:
    """A finding per declared column."""
    unknown = [name for name in evidence.policy.out_of_scope if name not in evidence.probed.columns]
    if unknown:
        allowed = ", ".join(sorted(evidence.probed.columns)) or "none: give a CSV with labels="
        raise UserError("policy.out_of_scope", f"no column {', '.join(map(repr, unknown))}", allowed=allowed)
    return [_of_column(evidence, name, values) for name, values in evidence.policy.out_of_scope.items()]


def _of_column(evidence: Evidence, name: str, values: tuple[str, ...]) -> Finding:
    data = evidence.probed
    words, units = text_of(data.columns[name]), index_units(data.label_units)
    inside = (words != "") & ~np.isin(words, values)
    counts = {one: units_in(units, words == one) for one in values}
    usable = [one for one, count in counts.items() if count >= MIN_UNITS]
    told: dict[str, Any] = {
        "title": f"Would images out of scope by {name} be noticed?", "n_units": units_in(units, words != ""),
        "n_minor": min(counts.values(), default=0), "n_images": int((words != "").sum()),
        "counts": {"units in scope": printed(units_in(units, inside))} | {f"units of {one}": printed(n) for one, n in counts.items()},
    }  # fmt: skip
    if units_in(units, inside) < MIN_UNITS_FOR_CLEAR or not usable:
        reason = f"{MIN_UNITS_FOR_CLEAR} units in scope and {MIN_UNITS} of a declared value are the least"
        return ABOUT.unknown("n_units", reason, "audit more of them", name, **told)
    fitted = _half(units, inside, evidence.effort.seed)
    alarms = raise_alarms(data.audited, units, inside, fitted, evidence.effort)
    errors = _errors(data, evidence.asked.task, fitted)
    found = [_monitor(alarms, errors, units, inside & ~fitted, words == one, one, evidence.effort) for one in usable]
    return _finding(name, found, alarms, len(usable) == len(values), evidence, told)


def _half(units: np.ndarray, inside: np.ndarray, seed: int) -> np.ndarray:
    """[n] rows of half of the units that are in scope with all their rows: the monitors' training rows."""
    pure = np.setdiff1d(units[inside], units[~inside])
    drawn = np.random.default_rng([seed, 0x0D0]).permutation(pure)[: len(pure) // 2]
    result: np.ndarray = np.isin(units, drawn)
    return result


def raise_alarms(features: np.ndarray, units: np.ndarray, inside: np.ndarray, fitted: np.ndarray, effort: Effort) -> Alarms:
    """Fits both monitors and scores all rows and noise.

    Args:
        features: [n, E].
        units: [n] integers.
        inside: [n] rows in scope.
        fitted: [n] those that the monitors are fitted on.
        effort: Draws, seed.
    """
    train, rows = standardise(np.asarray(features[fitted], np.float64), np.asarray(features, np.float64))
    generator = np.random.default_rng([effort.seed, 0x015E])
    noise = generator.normal(size=(min(500, len(train)), train.shape[1])) * _NOISE_SPREAD
    scores, of_noise = distances(train, rows, noise)
    unseen = inside & ~fitted
    half = np.isin(units, generator.permutation(np.unique(units[unseen]))[::2])
    held, least = {}, 1.0
    for name in _MONITORS:
        both, is_noise = np.concatenate([scores[name][unseen], of_noise[name]]), np.repeat([0, 1], [int(unseen.sum()), len(noise)])
        least = min(least, float(auroc(both, is_noise, np.ones((1, len(both))))[0]))
        at = _told(scores[name][unseen], half[unseen], units[unseen], effort)
        held[name] = (at.value, (at.high - at.low) / 2 / Z95)
    return Alarms(scores=scores, noise=least, held=held)


def distances(train: np.ndarray, *others: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Alarm of each row by both monitors fitted on the training rows [m, E]."""
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(train))).fit(train)
    cloud = LedoitWolf().fit(train)
    return [
        {_MONITORS[0]: nearest.kneighbors(rows)[0][:, -1], _MONITORS[1]: np.sqrt(np.maximum(cloud.mahalanobis(rows), 0.0))}
        for rows in others
    ]


def _told(scores: np.ndarray, positive: np.ndarray, units: np.ndarray, effort: Effort) -> Interval:
    value = float(auroc(scores, positive, np.ones((1, len(scores))))[0])
    draws = [auroc(scores, positive, piece) for piece in unit_weights(index_units(units), effort.bootstraps, effort.seed)]
    half = Z95 * float(np.nanstd(np.concatenate(draws)))
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _errors(data: AuditSet, task: str | None, fitted: np.ndarray) -> np.ndarray | None:
    """[n] how far a probe fitted on the training rows is from the truth, NaN where that is unknown; None without a task to fit."""
    target = None if task is None else read_column(data, task)
    if target is None or target.kind != "classes" or len(target.classes) < 2:
        return None
    train = fitted[target.rows]
    if min(np.bincount(target.values[train], minlength=len(target.classes))) < MIN_UNITS:
        return None
    wanted = (target.values[:, None] == np.arange(len(target.classes))).astype(np.float64)
    shares = FoldedRidge(data.audited[target.rows], target.unit_index, np.where(train, -1, 0)).scores(wanted)
    out = np.full(len(data.units), np.nan)
    out[target.rows] = 1 - shares[np.arange(len(shares)), target.values]
    return out


def _monitor(
    alarms: Alarms, errors: np.ndarray | None, units: np.ndarray, unseen: np.ndarray, outside: np.ndarray, value: str, effort: Effort
) -> Monitored:  # fmt: skip
    rows = unseen | outside
    each = {name: _told(alarms.scores[name][rows], outside[rows], units[rows], effort) for name in _MONITORS}
    best = max(each, key=lambda name: each[name].value)
    scores = alarms.scores[best]
    missed = float(np.mean(scores[outside] <= np.quantile(scores[unseen], 0.95)))
    silent = None
    if errors is not None and units_in(units, outside & np.isfinite(errors)) >= MIN_UNITS:
        known = rows & np.isfinite(errors)
        silent = _agreement(scores[known], errors[known], units[known], effort)
    return Monitored(value=value, units=units_in(units, outside), monitor=best, told=each[best], missed=missed, silent=silent)


def _agreement(scores: np.ndarray, errors: np.ndarray, units: np.ndarray, effort: Effort) -> Interval:
    value = float(spearman(scores, errors, np.ones((1, len(scores))))[0])
    draws = [spearman(scores, errors, piece) for piece in unit_weights(index_units(units), effort.bootstraps, effort.seed)]
    return around(value, float(np.nanstd(np.concatenate(draws))))


def _finding(name: str, found: list[Monitored], alarms: Alarms, complete: bool, evidence: Evidence, told: dict[str, Any]) -> Finding:
    lines, worst = evidence.lines, min(found, key=lambda one: one.told.high)
    verdict, code, reason = _verdict(found, complete, lines)
    told |= {
        "estimate": estimate_of(worst.told, f"auroc of {worst.value} against unseen units in scope", "1.96 x SE of unit bootstrap"),
        "tables": (_table(name, found),), "plots": (_forest(name, found, lines),), "self_test": alarms.control,
    }  # fmt: skip
    answer = "; ".join(_sentence(one) for one in found)
    warned = verdict == "WARN"
    return ABOUT.finding(
        name, **told, verdict=verdict, reason_code=code, reason=reason, answer=f"{answer[0].upper()}{answer[1:]}.",
        remedy="name a task whose labels hold out of scope too, or audit more units" if verdict == "NOT_ASSESSABLE" else "",
        action="Do not rely on these features to notice images out of scope: check the input by other means." if warned else "",
        repeat="The AUROC of a monitor on other layers or tokens." if warned else "",
    )  # fmt: skip


def _verdict(found: list[Monitored], complete: bool, lines: Thresholds) -> tuple[Verdict, str, str]:
    unseen = [one.value for one in found if one.told.high < lines.outlier_warn]
    silent = [one.value for one in found if one.silent is not None and one.silent.low <= 0]
    if unseen or silent:
        parts = [f"{', '.join(unseen)} stay below {lines.outlier_warn:.2f}"] if unseen else []
        parts += [f"errors on {', '.join(silent)} were not shown to rise with the alarm"] if silent else []
        return "WARN", "", "; ".join(parts)
    if any(one.silent is None for one in found):
        return "NOT_ASSESSABLE", "no_task", "errors out of scope are unknown, so silent failure was not looked at"
    if not complete:
        return "NOT_ASSESSABLE", "n_units", f"some declared values have fewer than {MIN_UNITS} units"
    if all(one.told.low >= lines.outlier_warn for one in found):
        return "CLEAR_WITHIN_LIMITS", "", ""
    return "NOT_ASSESSABLE", "wide_interval", f"intervals reach below {lines.outlier_warn:.2f}"


def _sentence(one: Monitored) -> str:
    at = one.told
    words = f"{one.value} is told from scope with AUROC {at.value:.2f} [{at.low:.2f}, {at.high:.2f}] by {one.monitor}"
    if one.silent is None:
        return words
    return f"{words}, alarm and error correlate {one.silent.value:+.2f} [{one.silent.low:+.2f}, {one.silent.high:+.2f}]"


def _table(name: str, found: list[Monitored]) -> Table:
    rows = tuple(
        (
            one.value, one.units, one.monitor, one.told.value, one.told.low, one.told.high, one.missed,
            *((None,) * 3 if one.silent is None else (one.silent.value, one.silent.low, one.silent.high)),
        )
        for one in found
    )  # fmt: skip
    heads = (name, "units", "monitor", "AUROC", "low", "high", "missed at 5 % alarms", "alarm with error", "low ", "high ")
    return Table(title="Out-of-scope images by the better of two monitors", columns=heads, rows=rows, note="Both monitors were tried.")


def _forest(name: str, found: list[Monitored], lines: Thresholds) -> Forest:
    bars = tuple(Bar(label=one.value, value=one.told.value, low=one.told.low, high=one.told.high, n_units=one.units) for one in found)
    marks = {"chance": 0.5, "asked for": lines.outlier_warn}
    return Forest(title=f"Out of scope by {name}", axis="AUROC of the alarm", rows=bars, lines=marks)


def self_test() -> SelfTest:
    """Noise against made-up units in scope, and one half of these against the other."""
    rows = np.random.default_rng(6).normal(size=(300, 6)) @ np.random.default_rng(7).normal(size=(6, 16))
    inside, fitted = np.ones(300, bool), np.arange(300) < 150
    return raise_alarms(rows, np.arange(300), inside, fitted, Effort(bootstraps=100)).control


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(DECLARED, UNITS))
