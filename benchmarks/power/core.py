"""The statistical core on made-up features: false alarms at the stated level, and how often the 95 % interval holds the truth.

An attribute is read and judged as the attribute check does it, without planted leaks, which only tell CLEAR from NOT_ASSESSABLE. The truth
of a score is its mean over all seeds of that condition (.5 where nothing was planted): what a probe of so many units scores on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dinodomain.audit import AuditSet, Effort
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.leak import read_leaks
from dinodomain.audit.protocol.verdict import Thresholds, judge
from dinodomain.probes.scores import Interval, wilson
from power.scenario import FALSE

SEEDS = 400
COVERED = (0.92, 0.98)
UNITS, IMAGES, WIDTH = 240, 2, 32
SIZE = f"{UNITS} units x {IMAGES} images x {WIDTH} features"
EFFORT = Effort(permutations=199, bootstraps=200, attackers=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One kind of attribute and how far it moves the features.

    Attributes:
        level: Whether the images of a unit share its value.
        kind: Classes or a number.
        effect: Standard deviations that it moves each of 4 of 32 features by.
    """

    level: Literal["unit", "image"]
    kind: Literal["classes", "number"]
    effect: float

    @property
    def key(self) -> str:
        """What lines of the state are found by."""
        return f"core / {self.level}-level {self.kind} / {self.effect:g} SD"

    def outcome(self, seed: int) -> dict[str, Any]:
        """Score, interval, p value and verdict of one world."""
        data = self.world(seed)
        attribute = read_attribute("attribute", data.columns["attribute"], data.units)
        leak = read_leaks(data.features, attribute, replace(EFFORT, seed=seed))[0]["audited"]
        at = leak.interval
        verdict, _, _ = judge(at, leak.p, None, attribute.num_minor, thresholds=Thresholds())
        found = verdict in ("FLAG", "WARN")
        return {"value": at.value, "low": at.low, "high": at.high, "p": leak.p, "verdicts": [verdict], "found": found}

    def world(self, seed: int) -> AuditSet:
        """Units that differ among themselves, two images each, and an attribute that moves some features."""
        generator = np.random.default_rng([seed, 0xC0])
        index = np.repeat(np.arange(UNITS), IMAGES)
        own = generator.normal(size=(UNITS, WIDTH))[index] + generator.normal(size=(len(index), WIDTH))
        values = self._values(generator, index)
        standard = (values - values.mean()) / values.std()
        own[:, :4] += self.effect * standard[:, None]
        named = np.array(["a", "b"])[values.astype(int)] if self.kind == "classes" else values
        return AuditSet(
            features={"audited": own}, units=index.astype(str), content_hash=None, sources=np.arange(len(index)),
            columns={"attribute": named},
        )  # fmt: skip

    def _values(self, generator: np.random.Generator, index: np.ndarray) -> np.ndarray:
        """At the level of images, those of a unit are still more alike than those of two."""
        unit = generator.normal(size=UNITS)[index]
        image = 0.0 if self.level == "unit" else generator.normal(size=len(index))
        mixed = unit + image
        return mixed if self.kind == "number" else (mixed > np.median(mixed)).astype(float)


CONDITIONS = tuple(
    Condition(level=level, kind=kind, effect=effect)
    for level in ("unit", "image")
    for kind in ("classes", "number")
    for effect in (0.0, 0.2, 0.5)
)


def rows(condition: Condition, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the seeds of one condition say together."""
    truth = float(np.mean([one["value"] for one in found])) if condition.effect else 0.5
    held = wilson(sum(one["low"] <= truth <= one["high"] for one in found), len(found))
    told = [_row(condition, "coverage of the 95 % interval", held, list(COVERED), COVERED[0] <= held.value <= COVERED[1], found)]
    alarms, below = (wilson(sum(hit), len(found)) for hit in ([one["found"] for one in found], [one["p"] <= 0.05 for one in found]))
    if condition.effect:
        return [*told, _row(condition, "flagged or warned of", alarms, None, None, found)]
    return [
        _row(condition, "false alarms, flagged or warned of", alarms, FALSE, alarms.low <= FALSE, found),
        _row(condition, "p value at most .05", below, FALSE, below.low <= FALSE, found), *told,
    ]  # fmt: skip


def _row(
    condition: Condition, measure: str, at: Interval, target: Any, passed: bool | None, found: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    score = float(np.mean([one["value"] for one in found]))
    return {
        "measure": measure, "input": f"{condition.key}; {SIZE}",
        "ours": round(at.value, 4), "interval": [round(at.low, 4), round(at.high, 4)], "unit": "share of seeds", "target": target,
        "passed": passed, "seeds": len(found), "detail": f"mean score {score:.3f}", "check": "core",
    }  # fmt: skip
