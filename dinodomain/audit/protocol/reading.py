"""An attribute measured: read from every kind of features, against planted leaks and stronger attackers. Judges nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.ladder import Ladder, climb
from dinodomain.audit.protocol.leak import Effort, Leak, Reader, read_leaks
from dinodomain.audit.protocol.nuisance import with_statistics
from dinodomain.audit.protocol.planting import Sensitivity, plant
from dinodomain.audit.protocol.task import read_column
from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.probes.folds import grouped_folds

_RANDOM = 20  # random labels for the selectivity


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An attribute measured, before correction and verdict.

    Attributes:
        attribute: What was read.
        leaks: Leak per kind of features; empty where there were too few units.
        sensitivity: What planted leaks would have been found, or None.
        ladders: Stronger attackers per kind; empty where none were asked for.
        again: The headline's score through other folds; None where none were asked for.
        random: Mean score of labels dealt to units at random, what a probe makes of nothing.
    """

    attribute: Attribute
    leaks: Mapping[str, Leak]
    sensitivity: Sensitivity | None
    ladders: Mapping[str, Ladder] = field(default_factory=dict)
    again: float | None = None
    random: float | None = None

    @property
    def selectivity(self) -> float | None:
        """Score minus that of a random label per unit. Source: Hewitt and Liang 2019."""
        return None if self.random is None else self.leaks["audited"].value - self.random


def measure(data: AuditSet, name: str, *, effort: Effort, alpha: float) -> Reading:
    """Reads one column from every kind of features and plants leaks of its shape into the audited ones."""
    attribute = read_column(data, name)
    if _too_few(attribute) or attribute.num_units < effort.folds:
        return Reading(attribute=attribute, leaks={}, sensitivity=None)
    leaks, reader = read_leaks(kinds_of(data), attribute, effort)
    sensitivity = plant(reader, data.audited[attribute.rows], attribute, leaks["audited"].null, alpha=alpha, seed=effort.seed)
    return Reading(attribute=attribute, leaks=leaks, sensitivity=sensitivity)


def kinds_of(data: AuditSet) -> dict[str, np.ndarray]:
    """Audited features and the baselines there are; pixels with their statistics."""
    found = {name: data.features[name] for name in ("audited", "pixels", "untrained") if name in data.features}
    return found | ({"pixels": with_statistics(found["pixels"])} if "pixels" in found else {})


def climbed(reading: Reading, data: AuditSet, effort: Effort) -> Reading:
    """The reading with stronger attackers on every kind of features, other folds and random labels."""
    attribute = reading.attribute
    kinds = kinds_of(data) if effort.attackers else {}
    folds, others = (grouped_folds(attribute.unit_index, attribute.values, effort.folds, effort.seed + more) for more in (0, 1))
    ladders = {name: climb(rows[attribute.rows], attribute, reading.leaks[name], folds, effort) for name, rows in kinds.items()}
    reader = Reader(data.audited[attribute.rows], attribute, others)
    generator = np.random.default_rng([effort.seed, 0x5E1])
    _, first = np.unique(attribute.unit_index, return_index=True)
    # Where rows of a unit differ, the first of each may all be alike: a row of any unit then.
    own = attribute.values[first] if attribute.level == "unit" else generator.permutation(attribute.values)[: len(first)]
    dealt = np.stack([generator.permutation(own)[attribute.unit_index] for _ in range(_RANDOM)])
    scores = reader.score(np.concatenate([attribute.values[None], dealt]))
    return replace(reading, ladders=ladders, again=float(scores[0]), random=float(scores[1:].mean()))


def _too_few(attribute: Attribute) -> bool:
    return attribute.one_class or attribute.num_minor < MIN_UNITS
