"""Patch tokens: where in the image can an attribute be read, and does the place hold it itself or did attention bring it there?

One probe for each place and for each background region, permuted by unit and corrected over all of them. The same map is read from tokens
that were computed without any other patch: what only the full tokens show was imported by attention. Registers and the class token are left
out; tokens of unusual length, which hold global information in networks without registers (Darcet et al. 2024), are counted apart.
n images, P places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.evidence import ATTRIBUTES, ENCODER, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Heat
from dinodomain.audit.finding import Finding, Localised, SelfTest, estimate_of
from dinodomain.audit.masks.regions import WORDS
from dinodomain.audit.observe.tokens import TokenSet, look_at_tokens
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.attribute import Attribute, permuted, read_attribute
from dinodomain.audit.protocol.joint import carried, joint_p
from dinodomain.audit.protocol.leak import Effort, Leak, Reader, read_leak
from dinodomain.audit.protocol.leakmap import LeakMap, filled, read_map, read_values
from dinodomain.audit.protocol.verdict import MIN_UNITS, MIN_UNITS_FOR_CLEAR, Thresholds, Verdict, by_policy
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Interval, unit_weights

ABOUT = About(
    name="dense", code="DENSE", question="Q3", core=True, title="Where in the image do patch tokens carry sensitive attributes?",
    limits=(
        "One linear probe for each place of images that share a size; objects that move show weakly in such a map.",
        "A place that carries an attribute is not yet a place that a decision uses: see the shortcut check.",
        "Tokens of unusual length hold global information; a peak there is not a place.",
    ),
    maps_to={
        "EU AI Act": ("Art. 13", "Annex IV 2(e)"), "NIST AI RMF": ("MEASURE 2.9", "MEASURE 2.10"), "FUTURE-AI": ("Explainability 1",),
    },
)  # fmt: skip

BACKGROUND = ("border", "background", "invalid", "cloud", "text", "user")
"""Regions from which nothing about a person or place should be readable, as far as a set has them."""

DRAWS = 200
LEAST_KNOWN = 0.5
"""Share of the images in which a place must have data, and a region must be."""
SPREAD = 0.5
"""Share of all places that must stand out for a leak to be everywhere, not somewhere."""
Z80 = 0.84
"""Deviations beyond what stands out from which on 80 % are found."""
LONG = 6.0
"""Median absolute deviations above the median from which a token's length is unusual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One attribute, read from tokens.

    Attributes:
        attribute: What, on the images that have tokens.
        embedded: [P] scores of the embedded patches, before any block.
        maps: ``alone`` and ``full``.
        regions: Leak of the mean token of each background region.
        usable: [P] places with enough data.
        long: Share of tokens of unusual length.
    """

    attribute: Attribute
    embedded: np.ndarray
    maps: Mapping[str, LeakMap]
    regions: Mapping[str, Leak]
    usable: np.ndarray
    long: float

    @property
    def p(self) -> tuple[float, ...]:
        """Of each place, then of each region; corrected over all of them."""
        full, behind = self.maps["full"], self.regions.values()
        value = np.concatenate([full.value, [leak.value for leak in behind]])
        return tuple(map(float, joint_p(value, np.column_stack([full.null, *(leak.null for leak in behind)]))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A reading with p values corrected over the question.

    Attributes:
        reading: What was read.
        places: [P] p of each place.
        regions: p of each background region.
        level: Of each test of the question, so that all together keep theirs.
    """

    reading: Reading
    places: np.ndarray
    regions: Mapping[str, float]
    level: float

    @classmethod
    def of(cls, reading: Reading, p: tuple[float, ...], level: float) -> Found:
        """From all p values in the order of ``Reading.p``."""
        count = len(reading.usable)
        return cls(reading=reading, places=np.array(p[:count]), regions=dict(zip(reading.regions, p[count:])), level=level)


def run(evidence: Evidence) -> list[Result]:
    """A finding for each attribute."""
    assert evidence.observer is not None, "needed"
    numbers = evidence.observer.some(evidence.probed, evidence.effort.seed, evidence.observer.most_tokens)
    tokens = look_at_tokens(evidence.observer, numbers, evidence.effort.seed)
    return [_result(evidence, tokens, name) for name in evidence.asked.attributes]


def _result(evidence: Evidence, tokens: TokenSet, name: str) -> Result:
    attribute = evidence.column_at(name, tokens.numbers)
    told = {"title": f"Where do patch tokens carry {name}?", "n_units": attribute.num_units, "n_minor": attribute.num_minor,
            "n_images": len(attribute.rows)}  # fmt: skip
    if attribute.one_class:
        return ABOUT.unknown("one_class", "the images with tokens hold fewer than two classes", "audit a set that holds both", name, **told)
    if attribute.num_minor < MIN_UNITS or attribute.num_units < evidence.effort.folds:
        reason = f"{attribute.num_minor} units in the smaller class; {MIN_UNITS} are the least for an estimate"
        return ABOUT.unknown("n_units", reason, "audit more units of the smaller class", name, **told)
    if not (tokens.known[attribute.rows].mean(axis=0) >= LEAST_KNOWN).any():
        return ABOUT.unknown("no_data", "no place has data in half of the images", "audit tiles with more data", name, **told)
    reading = read(tokens, attribute, evidence.effort)
    p, grid, policy, level = reading.p, tokens.grid, evidence.policy, evidence.alpha("Q3")

    def judge(adjusted: tuple[float, ...], family: int) -> Finding:
        return _finding(Found.of(reading, carried(p, adjusted[0], family), level), grid, policy, told)

    return Draft(p=(min(p),), judge=judge)


def read(tokens: TokenSet, attribute: Attribute, effort: Effort) -> Reading:
    """Maps and background regions of one attribute.

    Args:
        tokens: Of the images whose rows the attribute has.
        attribute: What is read.
        effort: Folds, permutations and seed.
    """
    rows, count = attribute.rows, effort.joint_permutations
    folds = grouped_folds(attribute.unit_index, attribute.values, effort.folds, effort.seed)
    shuffled = permuted(attribute, count, effort.seed)
    weights = list(unit_weights(attribute.unit_index, min(DRAWS, effort.bootstraps), effort.seed))
    known = tokens.known[rows]
    usable = known.mean(axis=0) >= LEAST_KNOWN
    seen = {kind: filled(values[rows], known) for kind, values in tokens.tokens.items()}
    counts = {"alone": min(DRAWS, count), "full": count}  # a p value is told of the full tokens only
    maps = {kind: read_map(seen[kind], usable, attribute, folds, shuffled[:most], weights) for kind, most in counts.items()}
    embedded = read_values(seen["embedded"], usable, attribute, folds)
    regions = {
        name: read_leak(Reader(_meant(means[rows]), attribute, folds), attribute, shuffled, weights)
        for name, means in tokens.regions.items()
        if name in BACKGROUND and _there(means[rows]).mean() >= LEAST_KNOWN
    }
    told = {"regions": regions, "usable": usable, "long": _unusual(tokens.norms[rows][known])}
    return Reading(attribute=attribute, embedded=embedded, maps=maps, **told)


def _there(means: np.ndarray) -> np.ndarray:
    """[n] which images have the region."""
    result: np.ndarray = ~np.isnan(means[:, 0])
    return result


def _meant(means: np.ndarray) -> np.ndarray:
    """[n, E] mean tokens of a region; images without it get the mean of those that have it."""
    return np.where(_there(means)[:, None], means, means[_there(means)].mean(axis=0))


def _unusual(norms: np.ndarray) -> float:
    """Share of tokens longer than the median by six median absolute deviations."""
    middle = np.median(norms)
    return float((norms > middle + LONG * np.median(np.abs(norms - middle))).mean())


def _finding(found: Found, grid: tuple[int, ...], policy: Policy, told: dict[str, Any]) -> Finding:
    reading, lines, name, full = found.reading, policy.thresholds, found.reading.attribute.name, found.reading.maps["full"]
    place, peak = _place(full.peak, grid), full.peak
    value, half = float(full.value[peak]), float(full.reach * full.error[peak])
    at = Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))
    localised, special = where(reading, float(found.places.min()), lines), name in policy.special_category
    method = "simultaneous over all places: max-T of unit permutations"
    told = {
        **told, "estimate": estimate_of(at, f"{reading.attribute.metric} at {place}", method), "plots": (_heat(found, grid, lines),),
        "localised": localised, "evidence": _evidence(found, place, lines), "special_category": special,
    }  # fmt: skip
    verdict, code, reason = _verdict(found, at, lines)
    final, why, words = by_policy(verdict, name, special=special, expected=policy.expected.get(name))
    verdict, code, reason = (final, why, words) if why else (verdict, code, reason)
    scores = f"{at.value:.2f} [{at.low:.2f}, {at.high:.2f}] at {place}"
    if verdict == "NOT_ASSESSABLE":
        return ABOUT.unknown(code, reason, "audit more units", name, **told, answer=f"Undecided: {scores}.")
    if verdict == "CLEAR_WITHIN_LIMITS":
        return ABOUT.finding(name, **told, verdict=verdict, answer=f"At no place by this probe: {scores}.", encoded=False)
    return ABOUT.finding(
        name, **told, verdict=verdict, reason_code=code, reason=reason, encoded=True,
        answer=f"Yes, {_WORDS[localised]}: {scores}{_behind(found, lines)}.",
        action=f"Look at the map of {name}, and replace the region (check shortcut) to learn whether a task uses it.",
        repeat="The same map on images without the region shows whether anything else carries it.",
    )  # fmt: skip


_WORDS: Mapping[Localised, str] = {
    "local": "at places that hold it themselves", "imported": "at places to which attention brought it",
    "global": "everywhere, as a property of the whole image", "none": "but at no single place", "unknown": "at an unclear place",
}  # fmt: skip


def where(reading: Reading, p: float, lines: Thresholds) -> Localised:
    """Whether what was found sits at places, was brought to them, or is everywhere.

    A place holds an attribute itself where its token, computed alone, has at least half of the full token's distance from chance. Attention
    spreads what one place holds over many full tokens, so that these alone never make a leak global.
    """
    full, alone = reading.maps["full"], reading.maps["alone"]
    if p > lines.alpha:
        return "none"
    if (alone.p[reading.usable] <= lines.alpha).mean() >= SPREAD:
        return "global"
    share = (alone.value[full.peak] - 0.5) / max(float(full.value[full.peak]) - 0.5, 1e-9)
    return "local" if share >= 0.5 else "imported"


def _verdict(found: Found, at: Interval, lines: Thresholds) -> tuple[Verdict, str, str]:
    """The verdict, reason code and reason; the last two empty where it speaks for itself."""
    full, minor, shown = found.reading.maps["full"], found.reading.attribute.num_minor, float(found.places.min()) <= lines.alpha
    carrying = {name: found.reading.regions[name] for name, p in found.regions.items() if p <= lines.alpha}
    if behind := [WORDS.get(name, name) for name, leak in carrying.items() if leak.interval.low >= lines.background_flag]:
        return "FLAG", "background", f"{', '.join(behind)} by itself tells it"
    if shown and at.low >= lines.tau_flag:
        return "FLAG", "", ""
    if minor < MIN_UNITS_FOR_CLEAR:
        return "NOT_ASSESSABLE", "n_units", f"{minor} units in the smaller class; {MIN_UNITS_FOR_CLEAR} are needed for any verdict but FLAG"
    if shown or carrying:
        return "WARN", "", ""
    least = float(np.nanmax(0.5 + (full.needed(found.level) + Z80) * full.error))
    if least > lines.mdl_max:
        reason = f"a leak at one place would have to reach {least:.2f} to be found in 80 %; {lines.mdl_max:.2f} is asked for"
        return "NOT_ASSESSABLE", "low_power", reason
    return "CLEAR_WITHIN_LIMITS", "", ""


def _behind(found: Found, lines: Thresholds) -> str:
    told = [f"{WORDS.get(name, name)} {found.reading.regions[name].value:.2f}" for name, p in found.regions.items() if p <= lines.alpha]
    return f"; background regions by themselves: {', '.join(told)}" if told else ""


def _place(index: int, grid: tuple[int, ...]) -> str:
    """A place in words: patch row and column, after the slice in a volume, counted from 1."""
    found = np.unravel_index(index, grid)
    names = ("slice", "row", "column")[-len(grid) :]
    return ", ".join(f"{name} {int(at) + 1} of {size}" for name, at, size in zip(names, found, grid))


def _heat(found: Found, grid: tuple[int, ...], lines: Thresholds) -> Heat:
    """Maps of the three kinds and what attention adds; of a volume the largest value along its first axis."""
    reading, alone, full = found.reading, found.reading.maps["alone"], found.reading.maps["full"]
    panels = {"embedded patch": reading.embedded, "token alone": alone.value, "token in full": full.value}
    flat = {name: _flat(values, grid) for name, values in panels.items()}
    marked = {"token alone": alone.p <= lines.alpha, "token in full": found.places <= lines.alpha}
    return Heat(
        title=f"Where {reading.attribute.name} is read (outlined: more than chance allows anywhere)", axis="score by place, .5 is chance",
        panels={name: _rows(values) for name, values in flat.items()}, low=0.5, high=1.0,
        marked={name: tuple(map(tuple, (_flat(values.astype(float), grid) > 0).tolist())) for name, values in marked.items()},
    )  # fmt: skip


def _flat(values: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    shaped = values.reshape(grid)
    if len(grid) == 2:
        return shaped
    result: np.ndarray = np.where(np.isnan(shaped), -np.inf, shaped).max(axis=0)
    return np.where(np.isinf(result), np.nan, result)


def _rows(values: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if np.isnan(value) else round(float(value), 4) for value in row) for row in values)


def _evidence(found: Found, place: str, lines: Thresholds) -> dict[str, Any]:
    reading, full, alone = found.reading, found.reading.maps["full"], found.reading.maps["alone"]
    regions = [(name, reading.regions[name], p) for name, p in found.regions.items()]
    return {
        "peak": place, "p_adjusted": float(found.places.min()), "alone_at_peak": float(alone.value[full.peak]),
        "full_at_peak": float(full.value[full.peak]), "context_import": float(full.value[full.peak] - alone.value[full.peak]),
        "places_that_stand_out": int((found.places <= lines.alpha).sum()),
        "places_that_stand_out_alone": int((alone.p <= lines.alpha).sum()),
        "places": int(reading.usable.sum()), "tokens_of_unusual_length": reading.long,
        "background": {
            name: {"score": leak.value, "low": leak.interval.low, "high": leak.interval.high, "p_adjusted": p} for name, leak, p in regions
        },
    }  # fmt: skip


def self_test() -> SelfTest:
    """Plants a sign into one of nine places of made-up tokens, and none."""
    generator = np.random.default_rng(8)
    sign = np.repeat([0, 1], 60)
    clean = generator.normal(size=(120, 9, 6))
    planted = clean.copy()
    planted[:, 4, 0] += 3.0 * sign
    found, silent = (joint_p(made.value, made.null) for made in (_map_of(values, sign) for values in (planted, clean)))
    return SelfTest(
        positive="pass" if found[4] == found.min() <= 0.02 else "fail", negative="pass" if silent.min() > 0.02 else "fail",
        detail=f"made-up tokens: planted p = {found[4]:.3f} at its place, clean p = {silent.min():.3f}",
    )  # fmt: skip


def _map_of(tokens: np.ndarray, sign: np.ndarray) -> LeakMap:
    attribute = read_attribute("planted", sign, np.arange(len(sign)))
    folds = grouped_folds(attribute.unit_index, attribute.values, 3, 0)
    weights = list(unit_weights(attribute.unit_index, 30, 0))
    return read_map(tokens, np.ones(tokens.shape[1], bool), attribute, folds, permuted(attribute, 99, 0), weights)


CHECK = Check(
    about=ABOUT, run=run, self_test=self_test, needs=(ATTRIBUTES, UNITS, ENCODER),
    count=lambda evidence: len(evidence.asked.attributes),
)  # fmt: skip
