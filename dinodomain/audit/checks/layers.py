"""Layers: which output of the encoder leaks least for the same use? Every block, its class token and its mean patch are read alike.

Informative: it recommends, it never flags. The recommended layer reads the task within a hundredth of the best and the attribute less than
the released one, by an interval from resampled units. n images, E width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from dinodomain.audit.evidence import ATTRIBUTES, ENCODER, UNITS, About, Check, Evidence, Result
from dinodomain.audit.figures import Curves, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.observe.layers import look_at_layers
from dinodomain.audit.protocol.attribute import MIN_CLASS_UNITS, Attribute, read_attribute
from dinodomain.audit.protocol.leak import Effort, Reader, score_found
from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Z95, Interval, around, unit_weights

ABOUT = About(
    name="layers", code="LAYER", question="Q3", title="Which output of the encoder leaks least for the same use?",
    limits=("Linear probes on pooled outputs; other uses of a layer may read more.",),
    maps_to={"NIST AI RMF": ("MEASURE 2.10", "MANAGE 3.2"), "FUTURE-AI": ("General 2",)},
)  # fmt: skip

EQUAL = 0.01
GAIN = 0.05  # what another output must surely not leak less for the last block to be the best one
"""Score by which a task may be worse on a layer that is recommended."""
DRAWS = 300
METHOD = "SE of unit bootstrap, over all outputs at once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A column read from every layer.

    Attributes:
        value: Layer to score.
        draws: Layer to [B] scores under the same resampled units.
    """

    value: Mapping[str, float]
    draws: Mapping[str, np.ndarray]

    def below(self, layer: str, released: str) -> Interval:
        """Score of the released layer minus that of another, paired; the interval holds for all layers together (Bonferroni)."""
        error = float(np.nanstd(self.draws[released] - self.draws[layer]))
        found = self.value[released] - self.value[layer]
        return around(found, error * float(norm.isf(0.025 / max(1, len(self.value) - 1))) / Z95)

    def shows(self, layer: str) -> bool:
        """Whether a layer shows the column at all: the lower end of its own interval lies above chance."""
        return around(self.value[layer], float(np.nanstd(self.draws[layer]))).low > 0.5


def run(evidence: Evidence) -> list[Result]:
    """A finding for each attribute."""
    assert evidence.observer is not None, "needed"
    numbers = evidence.observer.some(evidence.probed, evidence.effort.seed)
    layers = look_at_layers(evidence.observer, numbers)
    task = evidence.asked.task
    served = None if task is None else _usable(evidence, task, numbers)
    use = None if served is None else read(layers, served, evidence.effort)
    return [_result(evidence, name, numbers, layers, use) for name in evidence.asked.attributes]


def _usable(evidence: Evidence, name: str, numbers: np.ndarray) -> Attribute | None:
    found = evidence.column_at(name, numbers)
    few = found.num_minor < MIN_UNITS or found.num_units < evidence.effort.folds
    return None if few or found.one_class else found


def _result(evidence: Evidence, name: str, numbers: np.ndarray, layers: Mapping[str, np.ndarray], use: Read | None) -> Finding:
    attribute = _usable(evidence, name, numbers)
    title = {"title": f"Which output leaks {name} least?"}
    if attribute is None:
        reason = f"fewer than {MIN_CLASS_UNITS} units in a class"
        return ABOUT.unknown("n_units", reason, "audit more units of the smaller class", name, **title)
    leak = read(layers, attribute, evidence.effort)
    told = {**title, "n_units": attribute.num_units, "n_minor": attribute.num_minor, "n_images": len(attribute.rows)}
    return finding(name, leak, use, told)


def read(layers: Mapping[str, np.ndarray], attribute: Attribute, effort: Effort) -> Read:
    """One column from all layers, through the same folds and resampled units.

    Args:
        layers: Name to [n, E].
        attribute: What is read.
        effort: Folds, resamples, seed.
    """
    folds = grouped_folds(attribute.unit_index, attribute.values, effort.folds, effort.seed)
    weights = list(unit_weights(attribute.unit_index, min(DRAWS, effort.bootstraps), effort.seed))
    value, draws = {}, {}
    for name, rows in layers.items():
        found = Reader(rows[attribute.rows], attribute, folds).predict(attribute.values[None])[0]
        value[name], draws[name] = score_found(attribute, found, weights)
    return Read(value=value, draws=draws)


def finding(name: str, leak: Read, use: Read | None, told: Mapping[str, object]) -> Finding:
    """The recommendation, or that there is none."""
    *_, released = leak.value
    fit = [layer for layer in leak.value if use is None or use.value[layer] >= max(use.value.values()) - EQUAL]
    least = min(fit or [released], key=lambda layer: leak.value[layer])
    better = leak.below(least, released)
    told = {
        **told, "estimate": estimate_of(better, f"score for {name} of the last block minus that of {least}", METHOD),
        "tables": (_table(name, leak, use),), "plots": (_curves(name, leak, use),), "evidence": {"least": least, "released": released},
    }  # fmt: skip
    serving = "" if use is None else " and serves the task as well"
    if least != released and better.low > 0 and leak.shows(released):
        return ABOUT.finding(
            name, **told, verdict="WARN",
            answer=f"{least} reads {name} with {leak.value[least]:.2f} instead of {leak.value[released]:.2f}{serving}.",
            action=f"Consider releasing {least} instead of the last block.", repeat="The attribute check on features of that layer.",
        )  # fmt: skip
    if not leak.shows(released):
        reason = f"the last block was not shown to leak {name} ({leak.value[released]:.2f})"
        return ABOUT.finding(
            name, **told, verdict="NOT_APPLICABLE", answer="There is no leak to choose by.", reason_code="no_leak", reason=reason
        )
    answer = f"No output that serves as well was shown to leak {name} less than the last block ({leak.value[released]:.2f})."
    if better.high >= GAIN:
        reason = f"that {least} leaks {GAIN:.2f} less is not ruled out"
        return ABOUT.unknown("wide_interval", reason, "audit more units", name, **told, answer=f"Undecided: {answer}")
    return ABOUT.finding(name, **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _table(name: str, leak: Read, use: Read | None) -> Table:
    rows = tuple((layer, leak.value[layer], None if use is None else use.value[layer]) for layer in leak.value)
    return Table(title="Scores by layer", columns=("output", name, "task"), rows=rows)


def _curves(name: str, leak: Read, use: Read | None) -> Curves:
    series = []
    for label, found in ((name, leak), ("task", use)):
        for part in ("class", "patches") if found is not None else ():
            assert found is not None, "chosen"
            layers = [layer for layer in found.value if layer.endswith(part)]
            blocks = tuple(float(layer.split()[1].rstrip(",")) for layer in layers)
            series.append(Series(name=f"{label}, {part}", x=blocks, y=tuple(found.value[layer] for layer in layers)))
    return Curves(title=f"What is read after each block: {name}", x_axis="block", y_axis="score, .5 is chance", series=tuple(series))


def self_test() -> SelfTest:
    """A leak that is added at the second of three made-up layers, and none."""
    generator = np.random.default_rng(12)
    sign = np.repeat([0, 1], 60)
    base = generator.normal(size=(120, 5))
    leaking = base + 2.5 * sign[:, None] * (np.arange(5) == 0)
    attribute = read_attribute("planted", sign, np.arange(120))
    effort = Effort(bootstraps=60, folds=3)
    planted = read({"block 1, class": base, "block 2, class": leaking, "block 3, class": leaking}, attribute, effort)
    clean = read({"block 1, class": base, "block 2, class": base}, attribute, effort)
    step = planted.value["block 2, class"] - planted.value["block 1, class"]
    even = clean.below("block 1, class", "block 2, class")
    return SelfTest(
        positive="pass" if step > 0.2 else "fail", negative="pass" if even.value == 0 else "fail",
        detail=f"made-up layers: {step:+.2f} where a leak was added, {even.value:+.2f} where none was",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(ATTRIBUTES, UNITS, ENCODER))
