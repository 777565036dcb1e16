"""Two encoders on the same rows: the same folds, the same permutations, the same resampled units, so that differences are paired.

Decides no verdict about a model; says better, worse, no difference shown or not comparable, quantity by quantity. n rows, B draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.stats import norm

from dinodomain.audit.evidence import Evidence
from dinodomain.audit.figures import Bar, Forest, Table
from dinodomain.audit.protocol.attribute import MIN_CLASS_UNITS, Attribute, within
from dinodomain.audit.protocol.codelength import codelength
from dinodomain.audit.protocol.ladder import MAX_ROWS, spread_rows
from dinodomain.audit.protocol.leak import Leak, excess, read_leaks
from dinodomain.audit.protocol.task import read_column, units_in
from dinodomain.audit.trail.groups import grouped
from dinodomain.probes.scores import Z95, Interval, around, auroc, unit_weights

_NONE = Interval(value=float("nan"), low=float("nan"), high=float("nan"))
Word = Literal["better", "worse", "no difference shown", "not comparable"]
MIN_CELL = 50  # units with and without the finding that each side of a gap needs, as in the check of subgroups


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One quantity of both encoders.

    Attributes:
        name: What was measured, in words.
        kind: ``task`` (more is better), ``leak`` (less is better) or ``gap`` (the size of a gap between groups; less is better).
        ours: Of the audited encoder.
        other: Of the one it is compared with.
        change: Ours minus other, with its 95 % interval.
        n_units: Units it rests on.
        bits: Codelength of the column in bits a row, by ours and by the other; None for gaps and numbers.
        why_not: Why it cannot be compared; empty where it can.
    """

    name: str
    kind: Literal["task", "leak", "gap"]
    ours: float = float("nan")
    other: float = float("nan")
    change: Interval = field(default=_NONE)
    n_units: int = 0
    bits: tuple[float, float] | None = None
    why_not: str = ""

    @property
    def harm(self) -> Interval:
        """The change turned so that more is worse."""
        if self.kind != "task":
            return self.change
        return Interval(value=-self.change.value, low=-self.change.high, high=-self.change.low)

    @property
    def p(self) -> float:
        """Two-sided, by the normal."""
        error = (self.change.high - self.change.low) / (2 * Z95)
        return float(2 * norm.sf(abs(self.change.value) / max(error, 1e-12)))

    def word(self, p_adjusted: float, alpha: float) -> Word:
        """The comparison in words."""
        if self.why_not:
            return "not comparable"
        if p_adjusted > alpha:
            return "no difference shown"
        return "worse" if self.harm.value > 0 else "better"

    def no_worse(self, margin: float) -> bool:
        """Whether harm beyond the margin is ruled out (non-inferiority)."""
        return not self.why_not and self.harm.high < margin


def differences(evidence: Evidence, other: str) -> tuple[Difference, ...]:
    """The task's score, every attribute's leak and the largest gap of the task between groups of each attribute, on the probed rows.

    Args:
        evidence: With ``features[other]`` of the same rows.
        other: Kind of the other encoder's features.
    """
    return (*_of_task(evidence, other), *(_leak(evidence, other, name) for name in evidence.asked.attributes))


def count(evidence: Evidence) -> int:
    """Tests at most."""
    return len(evidence.asked.attributes) * (2 if evidence.asked.task else 1) + bool(evidence.asked.task)


def _read(evidence: Evidence, other: str, name: str) -> tuple[Attribute, dict[str, Leak] | None]:
    """Both encoders' readings through the same folds and draws; None where the column does not allow any."""
    data = evidence.probed
    column = read_column(data, name)
    if column.num_minor < MIN_CLASS_UNITS or column.one_class:
        return column, None
    features = {"audited": data.audited, other: data.features[other]}
    return column, read_leaks(features, column, evidence.effort)[0]


def _paired(evidence: Evidence, other: str, column: Attribute, leaks: Mapping[str, Leak], what: Difference) -> Difference:
    """Both values, their paired difference, and what it takes to tell the column by either encoder."""
    ours, theirs = leaks["audited"], leaks[other]
    change = excess(ours, theirs)
    bits = _bits(evidence, other, column) if column.kind == "classes" else None
    return replace(what, ours=ours.value, other=theirs.value, change=change, n_units=column.num_units, bits=bits)


def _bits(evidence: Evidence, other: str, column: Attribute) -> tuple[float, float]:
    seed = evidence.effort.seed
    part = within(column, spread_rows(column.unit_index, MAX_ROWS, seed))
    rows = (evidence.probed.features[kind][part.rows] for kind in ("audited", other))
    ours, theirs = (codelength(one, part.values, part.unit_index, len(part.classes), seed) for one in rows)
    return ours, theirs


def _leak(evidence: Evidence, other: str, name: str) -> Difference:
    column, leaks = _read(evidence, other, name)
    told = f"{name} read from the features"
    if leaks is None:
        return Difference(name=told, kind="leak", n_units=column.num_units, why_not=f"{column.num_minor} units in the smaller class")
    return _paired(evidence, other, column, leaks, Difference(name=told, kind="leak"))


def _of_task(evidence: Evidence, other: str) -> Iterator[Difference]:
    task = evidence.asked.task
    if task is None:
        return
    column, leaks = _read(evidence, other, task)
    told = f"score of {task}"
    if leaks is None:
        yield Difference(name=told, kind="task", n_units=column.num_units, why_not=f"{column.num_minor} units in the smaller class")
        return
    yield _paired(evidence, other, column, leaks, Difference(name=told, kind="task"))
    ours, theirs = leaks["audited"], leaks[other]
    if column.kind == "classes" and len(column.classes) == 2:
        yield from (_gap(evidence, column, ours, theirs, name) for name in evidence.asked.attributes)


def _gap(evidence: Evidence, target: Attribute, ours: Leak, theirs: Leak, name: str) -> Difference:
    """Change of the gap of the group that falls behind most with the other encoder: chosen there, so that our noise does not choose it."""
    told = f"gap of {target.name} between groups of {name}"
    words = grouped(evidence.probed.columns[name])[target.rows]
    known = words != ""
    sides = {str(group): (words == group, known & (words != group)) for group in np.unique(words[known])}
    usable = {group: pair for group, pair in sides.items() if _cell(target, *pair) >= MIN_CELL}
    if len(sides) < 2 or not usable:
        return Difference(
            name=told, kind="gap", n_units=target.num_units, why_not=f"no group has {MIN_CELL} units of each class on both sides"
        )
    weights = list(unit_weights(target.unit_index, evidence.effort.bootstraps, evidence.effort.seed))
    whole = [np.ones((1, len(words)))]
    group = min(usable, key=lambda name: float(_fall(theirs, target, usable[name], whole)[0]))
    found = [_fall(leak, target, usable[group], draw) for leak in (ours, theirs) for draw in (whole, weights)]
    now, before = abs(float(found[0][0])), abs(float(found[2][0]))
    error = float(np.nanstd(np.abs(found[1]) - np.abs(found[3])))
    change = around(now - before, error)
    return Difference(name=f"{told} ({group})", kind="gap", ours=now, other=before, change=change, n_units=target.num_units)


def _fall(leak: Leak, target: Attribute, sides: tuple[np.ndarray, np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """AUROC within a group minus AUROC of the rest, under each weighting [B]."""
    scores = leak.predictions[:, 1]
    inside, outside = (
        np.concatenate([auroc(scores[rows], target.values[rows], piece[:, rows]) for piece in weights]) for rows in sides
    )  # fmt: skip
    result: np.ndarray = inside - outside
    return result


def _cell(target: Attribute, *sides: np.ndarray) -> int:
    return min(units_in(target.unit_index, rows & (target.values == value)) for rows in sides for value in (0, 1))


def table(found: Sequence[Difference], words: Sequence[Word], other: str, margin: float, ours: str = "audited") -> Table:
    """Every quantity with both values."""
    rows = tuple(
        (item.name, _number(item.ours), _number(item.other), _number(item.change.value), _number(item.change.low),
         _number(item.change.high), *(item.bits or (None, None)), item.n_units, word + (f": {item.why_not}" if item.why_not else ""),
         "yes" if item.no_worse(margin) else "not shown")
        for item, word in zip(found, words)
    )  # fmt: skip
    columns = ("quantity", ours, other, f"{ours} minus {other}", "low", "high", f"bits, {ours}", f"bits, {other}", "units",
               f"{ours} is", f"no worse by {margin:g}")  # fmt: skip
    note = (
        "Less is better for what is read from the features and for gaps; more is better for the task. Bits a row: what it takes to tell "
        "the column to somebody who has the features (Voita and Titov 2020); fewer means easier to learn."
    )
    return Table(title=f"{ours.capitalize()} and {other} encoder on the same rows", columns=columns, rows=rows, note=note)


def forest(found: Sequence[Difference], other: str, margin: float, ours: str = "audited") -> Forest:
    """Every comparable quantity, turned so that right is worse."""
    rows = tuple(
        Bar(label=item.name, value=item.harm.value, low=item.harm.low, high=item.harm.high, n_units=item.n_units)
        for item in found
        if not item.why_not
    )
    axis = f"{ours} against {other}: right of 0 is worse"
    return Forest(title=f"Change against the {other} encoder", axis=axis, rows=rows, lines={"equal": 0.0, "margin": margin})


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
