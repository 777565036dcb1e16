"""What shaped the model: five rows of evidence, one for each thing that is said to: collection, curation, augmentations, domains, scale.

Collection and domains: what of how images were made can be read from the features, beyond pixels and an untrained encoder. Curation: what
was left out on the way. Augmentations: what each operation of the policy leaves of the features, of the task and of the leaks. Scale: task
and leaks over the backbones that the run kept. Descriptive: it warns where training made an attribute more readable. n images, E width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinodomain.audit.evidence import ENCODER, UNITS, About, Check, Evidence, Result
from dinodomain.audit.figures import Cell, Curves, Plot, Series, Table
from dinodomain.audit.finding import Finding, SelfTest
from dinodomain.audit.observe.scale import look_over_time
from dinodomain.audit.observe.views import Operated, look_through_operations, training_views
from dinodomain.audit.protocol.attribute import Attribute, read_attribute
from dinodomain.audit.protocol.leak import Effort, Reader, score_found, score_many
from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Interval, around, unit_weights

ABOUT = About(
    name="shape", code="SHAPE", question="Q1", title="What did collection, curation, augmentations, domains and scale do to the features?",
    limits=(
        "Describes one training; what another collection or policy would have given is not known from it.",
        "Operations are tried one at a time at their strongest; training mixes them.",
    ),
    maps_to={"EU AI Act": ("Art. 10(2)(b)", "Annex IV 2(a)"), "NIST AI RMF": ("MAP 4.1", "MEASURE 2.2"), "FUTURE-AI": ("Traceability 2",)},
)  # fmt: skip

ROWS = ("collection", "curation", "augmentations", "domains", "scale")
DRAWS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaped:
    """What was measured.

    Attributes:
        grown: Column to score beyond the untrained encoder, with interval.
        read: Column to the audited encoder's score.
        operations: Operation to what it leaves.
        under: Operation to column to the score of a probe of plain crops on altered ones; ``""`` is on plain crops.
        unread: Columns that could not be read: too few units, or one class.
        left_out: Reason to sources that were left out; None where nothing is recorded.
        over_time: Column to scores by step; None where the run kept no backbones.
        steps: Steps of ``over_time``, samples drawn until then.
    """

    grown: Mapping[str, Interval]
    read: Mapping[str, float]
    operations: Mapping[str, Operated] = field(default_factory=dict)
    under: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unread: Sequence[str] = ()
    left_out: Mapping[str, int] | None = None
    over_time: Mapping[str, Sequence[float]] | None = None
    steps: Sequence[int] = ()


def run(evidence: Evidence) -> list[Result]:
    """One finding with five rows."""
    observer = evidence.observer
    assert observer is not None, "needed"
    seed, numbers = evidence.effort.seed, observer.some(evidence.probed, evidence.effort.seed)
    asked = evidence.asked
    names = list(dict.fromkeys([*([asked.task] if asked.task else []), *asked.attributes, *asked.domains]))
    columns = {name: column for name in names if (column := _column(evidence, name, numbers)) is not None}
    audited, untrained = (evidence.data.features[kind][numbers] for kind in ("audited", "untrained"))
    now, before = ({name: _read(rows, column, evidence.effort) for name, column in columns.items()} for rows in (audited, untrained))
    operations = look_through_operations(observer, numbers, training_views(observer, evidence.record), seed)
    time = look_over_time(observer, numbers, observer.kept) if len(observer.kept) > 1 else None
    found = Shaped(
        grown={name: _above(now[name], before[name]) for name in columns},
        read={name: score for name, (score, _) in now.items()},
        operations=operations,
        under=_under(operations, columns, evidence.effort),
        unread=[name for name in names if name not in columns],
        left_out=None if evidence.trail is None or evidence.trail.kept is None else _left_out(evidence.trail.kept.skipped),
        over_time=None
        if time is None
        else {name: [_read(rows, column, evidence.effort)[0] for rows in time.values()] for name, column in columns.items()},
        steps=[] if time is None else [step * _batch(evidence) for step in time],
    )
    told = {"n_units": evidence.probed.num_units, "n_images": len(numbers)}
    return [finding(found, asked.task, asked.attributes, asked.domains, told)]


def _column(evidence: Evidence, name: str, numbers: np.ndarray) -> Attribute | None:
    """None where it cannot be read: too few units, or one class."""
    found = evidence.column_at(name, numbers)
    few = found.num_minor < MIN_UNITS or found.num_units < evidence.effort.folds
    return None if few or found.one_class else found


def _over_time(time: Mapping[int, np.ndarray], columns: Mapping[str, Attribute], effort: Effort) -> dict[str, list[float]]:
    return {name: [_read(rows, column, effort)[0] for rows in time.values()] for name, column in columns.items()}


def _reader(rows: np.ndarray, column: Attribute, effort: Effort) -> Reader:
    return Reader(rows[column.rows], column, grouped_folds(column.unit_index, column.values, effort.folds, effort.seed))


def _read(rows: np.ndarray, column: Attribute, effort: Effort) -> tuple[float, np.ndarray]:
    """Score and [B] scores under resampled units."""
    found = _reader(rows, column, effort).predict(column.values[None])[0]
    weights = unit_weights(column.unit_index, min(DRAWS, effort.bootstraps), effort.seed)
    return score_found(column, found, list(weights))


def _above(ours: tuple[float, np.ndarray], other: tuple[float, np.ndarray]) -> Interval:
    error, value = float(np.nanstd(ours[1] - other[1])), ours[0] - other[0]
    return around(value, error)


def _under(operations: Mapping[str, Operated], columns: Mapping[str, Attribute], effort: Effort) -> dict[str, dict[str, float]]:
    """Scores of probes of plain crops, on plain crops (``""``) and on those of each operation."""
    out: dict[str, dict[str, float]] = {}
    for operation, crops in operations.items():
        for name, column in columns.items():
            values = column.values[None]
            plain, altered = _reader(crops.plain, column, effort).altered(values, [crops.altered[column.rows]])
            out.setdefault("", {})[name] = float(score_many(column.kind, plain, values)[0])
            out.setdefault(operation, {})[name] = float(score_many(column.kind, altered, values)[0])
    return out


def _left_out(skipped: Sequence[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in skipped:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _batch(evidence: Evidence) -> int:
    plan = (evidence.record or {}).get("plan", {})
    return int(plan.get("loader", {}).get("batch", 1))


def finding(found: Shaped, task: str | None, attributes: Sequence[str], domains: Sequence[str], told: Mapping[str, Any]) -> Finding:
    """The five rows in words, tables and figures."""
    rows = {
        "collection": _collection(found, domains), "curation": _curation(found), "augmentations": _augmentations(found, task),
        "domains": _domains(found, domains), "scale": _scale(found),
    }  # fmt: skip
    missing = [name for name in ROWS if rows[name] is None]
    grown = [name for name in attributes if name in found.grown and found.grown[name].low > 0]
    told = {
        **told, "tables": (_rows_table(rows), *_tables(found)), "plots": _plots(found),
        "evidence": {"grown": {name: at.value for name, at in found.grown.items()}, "missing": missing},
    }  # fmt: skip
    if len(missing) == len(ROWS):
        return ABOUT.unknown("nothing_recorded", "no row has evidence", "audit a run of this package, and name columns", **told)
    answer = f"{len(ROWS) - len(missing)} of {len(ROWS)} rows have evidence" + (f"; none for {', '.join(missing)}" if missing else "")
    if grown:
        by = ", ".join(f"{name} by {found.grown[name].value:.2f}" for name in grown)
        return ABOUT.finding(
            **told, verdict="WARN", answer=f"{answer}. Training made attributes more readable than in an untrained encoder: {by}.",
            action="Decide whether that serves the use; the rows name what to change: sources, filters, operations, domains, length.",
            repeat="The same rows after training with the change.",
        )  # fmt: skip
    unread = [name for name in attributes if name in found.unread]
    if unread or not attributes:
        reason = f"{', '.join(unread)}: fewer than {MIN_UNITS} units in a class" if unread else "no attribute was named"
        code = "n_units" if unread else "no_attribute"
        return ABOUT.unknown(code, reason, "audit more units, or name columns with audit.attributes=[...]", **told, answer=f"{answer}.")
    return ABOUT.finding(**told, verdict="CLEAR_WITHIN_LIMITS", answer=f"{answer}. No attribute was shown to have become more readable.")


def _collection(found: Shaped, domains: Sequence[str]) -> str | None:
    known = [name for name in domains if name in found.read]
    return "; ".join(f"{name} is read with {found.read[name]:.2f} ({found.grown[name].value:+.2f} by training)" for name in known) or None


def _curation(found: Shaped) -> str | None:
    if found.left_out is None:
        return None
    total, most = sum(found.left_out.values()), next(iter(found.left_out.items()), None)
    return f"{total} sources were left out" + (f", most often because: {most[0]} ({most[1]})" if most else "")


def _augmentations(found: Shaped, task: str | None) -> str | None:
    if not found.operations:
        return None
    least = min(found.operations, key=lambda name: found.operations[name].kept)
    text = f"of {len(found.operations)} operations {least} changes the features most (similarity {found.operations[least].kept:.2f})"
    if task is not None and task in found.under.get("", {}):
        worst = min(found.operations, key=lambda name: found.under[name][task])
        text += f"; {task} is read with {found.under[worst][task]:.2f} instead of {found.under[''][task]:.2f} under {worst}"
    return text


def _domains(found: Shaped, domains: Sequence[str]) -> str | None:
    known = [name for name in domains if name in found.read]
    return None if not known else f"the features tell {', '.join(known)} apart; see the site and lodo checks for what that costs"


def _scale(found: Shaped) -> str | None:
    if not found.over_time:
        return None
    told = [f"{name} {scores[0]:.2f} to {scores[-1]:.2f}" for name, scores in found.over_time.items()]
    return f"from 0 to {found.steps[-1]} samples: {', '.join(told)}"


def _rows_table(rows: Mapping[str, str | None]) -> Table:
    told = tuple((name, rows[name] or "not measured") for name in ROWS)
    return Table(title="What shaped the model", columns=("what", "evidence"), rows=told)


def _tables(found: Shaped) -> list[Table]:
    out = []
    if found.operations:
        names = list(found.under.get("", {}))
        lines: list[tuple[Cell, ...]] = [("none", 1.0, 1.0, *(found.under.get("", {}).get(name) for name in names))]
        lines += [
            (name, crops.kept, crops.untrained, *(found.under.get(name, {}).get(column) for column in names))
            for name, crops in found.operations.items()
        ]
        columns = ("operation", "similarity kept", "untrained encoder", *(f"{name} read" for name in names))
        note = "Probes were fitted to plain crops of other units; each operation at its strongest."
        out.append(Table(title="What operations of the training's policy leave", columns=columns, rows=tuple(lines), note=note))
    if found.left_out:
        out.append(Table(title="Sources left out", columns=("reason", "sources"), rows=tuple(found.left_out.items())))
    return out


def _plots(found: Shaped) -> tuple[Plot, ...]:
    if not found.over_time:
        return ()
    series = tuple(Series(name=name, x=tuple(map(float, found.steps)), y=tuple(scores)) for name, scores in found.over_time.items())
    return (Curves(title="What is read as training goes on", x_axis="samples drawn", y_axis="score, .5 is chance", series=series),)


def self_test() -> SelfTest:
    """An attribute that training brought in, and one that the untrained encoder reads as well."""
    generator = np.random.default_rng(14)
    sign = np.repeat([0, 1], 60)
    plain = generator.normal(size=(120, 5))
    leaking = plain + 2.0 * sign[:, None] * (np.arange(5) == 0)
    column, effort = read_attribute("planted", sign, np.arange(120)), Effort(bootstraps=60, folds=3)
    grown = _above(_read(leaking, column, effort), _read(plain, column, effort))
    same = _above(_read(leaking, column, effort), _read(leaking, column, effort))
    return SelfTest(
        positive="pass" if grown.low > 0.1 else "fail", negative="pass" if same.low <= 0 <= same.high else "fail",
        detail=f"made-up training: {grown.value:+.2f} where it brought a sign in, {same.value:+.2f} where it did not",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(UNITS, ENCODER))
