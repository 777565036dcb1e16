"""A task probe fitted inside a domain against one fitted on as many units elsewhere: more units elsewhere would hide the loss.

Decides no verdict. n rows of the target, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.task import only_classes, scored, transferred, units_in
from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.audit.trail.groups import MAX_GROUPS
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Interval, around, unit_weights

_REPEATS = 2  # draws of the matched training units


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """One domain left out.

    Attributes:
        domain: Its name.
        inside: Score of a probe fitted inside the domain.
        outside: Score of a probe fitted on as many units of the others.
        everything: Score of a probe fitted on all units of the others.
        error: Standard error of inside minus outside, over units and draws of the training units.
        units: Units of the domain.
        fitted: Units each matched probe was fitted on.
    """

    domain: str
    inside: float
    outside: float
    everything: float
    error: float
    units: int
    fitted: int

    @property
    def interval(self) -> Interval:
        """Inside minus outside, 95 %."""
        value = self.inside - self.outside
        return around(value, self.error)

    @property
    def p(self) -> float:
        """Of no drop, one-sided, by the normal."""
        return float(norm.sf((self.inside - self.outside) / max(self.error, 1e-12)))


def shared_classes(target: Attribute, place: np.ndarray) -> tuple[Attribute, np.ndarray, list[str]]:
    """The task on the classes that two domains hold 30 units of, the domains of its rows, and the classes left out."""
    if target.kind == "number":
        return target, place, []
    names = np.unique(place[place != ""])
    held = [
        sum(units_in(target.unit_index, (place == one) & (target.values == code)) >= MIN_UNITS for one in names[:MAX_GROUPS])
        for code in range(len(target.classes))
    ]
    kept = [code for code, count in enumerate(held) if count >= 2]
    if len(kept) < 2 or len(kept) == len(held):
        return target, place, []
    dropped = [name for code, name in enumerate(target.classes) if code not in kept]
    return only_classes(target, kept), place[np.isin(target.values, kept)], dropped


def leave_out(features: np.ndarray, target: Attribute, here: np.ndarray, known: np.ndarray, name: str, effort: Effort) -> Drop:
    """Leaves one domain out; units that were also imaged there are nowhere trained on."""
    elsewhere = known & ~here & ~np.isin(target.unit_index, target.unit_index[here])
    inside, outside = np.flatnonzero(here), np.flatnonzero(elsewhere)
    found = [_matched(features, target, inside, outside, effort, effort.seed + repeat) for repeat in range(_REPEATS)]
    truth, units = target.values[inside], np.unique(target.unit_index[inside], return_inverse=True)[1]
    scores = np.array([[float(scored(target.kind, side, truth)[0]) for side in (own, other)] for own, other, _ in found])
    own, other, fitted = found[0]
    draws = [
        scored(target.kind, own, truth, piece) - scored(target.kind, other, truth, piece)
        for piece in unit_weights(units, effort.bootstraps, effort.seed)
    ]
    between = float(np.var(scores[:, 0] - scores[:, 1], ddof=1))
    mean = scores.mean(axis=0)
    full = transferred(features, target, outside, inside)
    return Drop(
        domain=name, inside=float(mean[0]), outside=float(mean[1]), everything=float(scored(target.kind, full, truth)[0]),
        error=float(np.sqrt(np.nanvar(np.concatenate(draws)) + between)), units=int(units.max()) + 1, fitted=fitted,
    )  # fmt: skip


def _matched(
    features: np.ndarray, target: Attribute, inside: np.ndarray, outside: np.ndarray, effort: Effort, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:  # fmt: skip
    """Out-of-fold scores of the domain's rows by probes fitted inside and outside it on equally many units, and that number."""
    folds = grouped_folds(target.unit_index[inside], target.values[inside], effort.folds, seed)
    generator = np.random.default_rng([seed, 0x10D0])
    shape = (len(inside), len(target.classes)) if target.kind == "classes" else (len(inside),)
    own, other, fitted = np.empty(shape), np.empty(shape), []
    for fold in range(effort.folds):
        test = folds == fold
        first, second = alike(target, inside[~test], outside, generator)
        own[test] = transferred(features, target, first, inside[test])
        other[test] = transferred(features, target, second, inside[test])
        fitted.append(len(np.unique(target.unit_index[first])))
    return own, other, round(float(np.mean(fitted)))


def alike(target: Attribute, first: np.ndarray, second: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions of as many units of each class on both sides; a unit counts for the class of its first row."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    by_class = [_units_by_class(target, rows) for rows in (first, second)]
    for code in by_class[0].keys() & by_class[1].keys():
        most = min(len(units[code]) for units in by_class)
        for side, units in zip(sides, by_class):
            side.append(generator.permutation(units[code])[:most])
    kept = [rows[np.isin(target.unit_index[rows], np.concatenate(side))] for rows, side in zip((first, second), sides)]
    return kept[0], kept[1]


def _units_by_class(target: Attribute, rows: np.ndarray) -> dict[int, np.ndarray]:
    units, at = np.unique(target.unit_index[rows], return_index=True)
    codes = target.values[rows][at] if target.kind == "classes" else np.zeros(len(units))
    return {int(code): units[codes == code] for code in np.unique(codes)}
