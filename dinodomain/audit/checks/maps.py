"""Attribution maps: may those of this encoder be believed where they point? Controls decide, and a map never flags anything by itself.

A probe is explained on images of units that did not fit it. The same maps are made with fresh weights, with noise, for probes of permuted
labels. What fails any control is printed as an illustration. n images, E width.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge

from dinodomain.audit.checks.shortcut import NAMED
from dinodomain.audit.evidence import ENCODER, UNITS, About, Check, Evidence, Need, Private, Result
from dinodomain.audit.figures import Cell, Table
from dinodomain.audit.finding import Finding, SelfTest
from dinodomain.audit.maps import Method
from dinodomain.audit.observe.explain import Controls, Direction, Explained, look_at_maps
from dinodomain.audit.protocol.attribute import Attribute, permuted
from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.audit.sanity import deletion, similarity
from dinodomain.probes.folds import grouped_folds

ABOUT = About(
    name="maps", code="XSAN", question="Q3", core=True, title="May attribution maps of this encoder be believed where they point?",
    limits=(
        "Maps that pass say where to look, never what a decision rests on: that is what the shortcut check measures.",
        "Maps of a few images, drawn at random; other images may have others.",
    ),
    maps_to={"EU AI Act": ("Art. 13",), "NIST AI RMF": ("MEASURE 2.9",), "FUTURE-AI": ("Explainability 1", "Explainability 2")},
)  # fmt: skip

METHODS: tuple[Method, ...] = ("integrated_gradients", "ablation")
EXPLAINED, STEPS, PROBES = 16, 32, 4
LEAST_REPEATED = 0.7
PENALTY = 1.0

CAPTUM = Need(
    there=lambda _: find_spec("captum") is not None, code="missing_extra", reason="captum is not installed",
    remedy='pip install "dinodomain[audit]"',
)  # fmt: skip


def run(evidence: Evidence) -> list[Result]:
    """One finding, and a picture that stays private."""
    observer = evidence.observer
    assert observer is not None, "needed"
    name = evidence.asked.task or evidence.asked.attributes[0]
    numbers = observer.some(evidence.probed, evidence.effort.seed)
    attribute = evidence.column_at(name, numbers)
    told: dict[str, Any] = {"n_units": attribute.num_units, "n_minor": attribute.num_minor}
    if len(attribute.classes) != 2 and attribute.kind == "classes":
        return [ABOUT.unknown("task_kind", f"{name} does not hold two classes or numbers", "name another column as audit.task", **told)]
    if attribute.num_minor < MIN_UNITS:
        reason = f"{attribute.num_minor} units in the smaller class of {name}; {MIN_UNITS} are the least for a probe"
        return [ABOUT.unknown("n_units", reason, "audit more units", **told)]
    found = _explained(evidence, attribute, numbers)
    picture = Private(name="maps", columns={"row": found.numbers.tolist()}, files={"maps.png": found.picture})
    return [_finding(name, found, {**told, "n_images": len(found.numbers)}), picture]


def _explained(evidence: Evidence, attribute: Attribute, numbers: np.ndarray) -> Explained:
    seed, rows = evidence.effort.seed, numbers[attribute.rows]
    folds = grouped_folds(attribute.unit_index, attribute.values, 5, seed)
    fitted, held = folds != 0, np.flatnonzero(folds == 0)
    chosen = np.random.default_rng([seed, 0x3A95]).permutation(held)[:EXPLAINED]
    values = np.concatenate([attribute.values[None], permuted(attribute, PROBES, seed)])
    probe, *unknowing = (direction(evidence.data.audited[rows[fitted]], one[fitted]) for one in values)
    assert evidence.observer is not None, "needed"
    return look_at_maps(evidence.observer, np.sort(rows[chosen]), probe, unknowing, METHODS, steps=STEPS, seed=seed)


def direction(features: np.ndarray, values: np.ndarray) -> Direction:
    """A ridge probe as one direction in the space of the features, of unit deviation on them."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 1e-9 * np.maximum(1.0, np.abs(mean)), spread, np.inf)
    fitted = Ridge(alpha=PENALTY * len(features)).fit((features - mean) / spread, values.astype(np.float64))
    weight = fitted.coef_ / spread
    scale = max(float(((features - mean) @ weight).std()), 1e-12)
    return Direction(weight=weight / scale, bias=float(-mean @ weight) / scale)


def failures(controls: Controls) -> list[str]:
    """Which controls the maps failed, in words."""
    blind = {name: np.array(values) for name, values in controls.permuted.items()}
    drawn = [name for name, values in blind.items() if abs(np.mean(values) - 1) > 2 * np.std(values, ddof=1) / np.sqrt(len(values)) + 0.1]
    tests = {
        f"changes too little when all weights are drawn anew (similarity {controls.randomised:.2f}, "
        f"different images {controls.between:.2f})": controls.randomised >= controls.between,
        f"does not hold under a little noise (similarity {controls.repeated:.2f})": controls.repeated < LEAST_REPEATED,
        f"orders patches no better than chance ({controls.deletion:+.2f})": controls.deletion <= 0,
        f"fits the changes of the score no better than its values at random places ({controls.infidelity:.2f})": controls.infidelity >= 1,
        f"points at the {', '.join(drawn)} for probes of permuted labels, too": bool(drawn),
        f"adds up for {controls.complete:.0%} of the images only": controls.complete < 0.9,
    }
    return [text for text, failed in tests.items() if failed]


def _finding(name: str, found: Explained, told: dict[str, Any]) -> Finding:
    failed = {method: failures(controls) for method, controls in found.controls.items()}
    good = [method.replace("_", " ") for method, problems in failed.items() if not problems]
    told = {
        **told,
        "tables": (_table(found.controls),),
        "evidence": {"explained": name, "failed": failed},
    }
    if good:
        answer = f"Maps of {' and '.join(good)} for {name} passed their controls: they may say where to look."
        return ABOUT.finding(**told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)
    method, problems = next(iter(failed.items()))
    answer = f"No: maps for {name} are illustrations, not evidence; that of {method.replace('_', ' ')} {problems[0]}."
    action = "Do not show maps of this encoder as an explanation; rely on replaced regions (check shortcut)."
    return ABOUT.finding(**told, verdict="WARN", answer=answer, reason_code="control_failed", reason="; ".join(problems), action=action,
                         repeat="The same controls after more training or with another method.")  # fmt: skip


def _table(controls: Mapping[Method, Controls]) -> Table:
    made = list(controls.values())
    names = ("complete", "randomised", "between", "repeated", "infidelity", "sensitivity", "deletion")
    rows: list[tuple[Cell, ...]] = [(name, *(getattr(found, name) for found in made)) for name in names]
    for region in sorted({region for found in made for region in found.enriched}):
        blind = (found.permuted.get(region, ()) for found in made)
        rows.append((f"mass on the {region} / its area", *(found.enriched.get(region) for found in made)))
        rows.append(("the same for permuted labels", *(float(np.mean(values)) if values else None for values in blind)))
    return Table(
        title="Controls of the maps", columns=("control", *(method.replace("_", " ") for method in controls)), rows=tuple(rows),
        note="randomised must stay below between; repeated at .7 or more; infidelity below 1; deletion above 0; permuted labels at 1.",
    )  # fmt: skip


def self_test() -> SelfTest:
    """A linear model, whose map is known, must pass; an edge detector, which knows no model, must fail."""
    generator = torch.Generator().manual_seed(2)
    images, fill = torch.rand(12, 1, 12, 12, generator=generator), torch.zeros(12, 1, 12, 12)
    weight, other = torch.randn(2, 1, 12, 12, generator=generator)
    patches = torch.arange(144).reshape(12, 12)
    maps, fresh = (images[:, 0] * values for values in (weight, other))
    edges = images[:, 0] - images[:, 0].roll(1, dims=-1)
    score = lambda given: (given * weight).flatten(1).sum(dim=1)  # noqa: E731
    faster = deletion(score, images, maps, patches, fill)
    changed, same = float(similarity(maps, fresh).mean()), float(similarity(edges, edges).mean())
    return SelfTest(
        positive="pass" if faster > 0.1 and changed < 0.5 else "fail", negative="pass" if same > 0.99 else "fail",
        detail=f"linear model: similarity to another's map {changed:.2f}, deletion {faster:+.2f}; edge detector: similarity {same:.2f}",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(NAMED, UNITS, ENCODER, CAPTUM))
