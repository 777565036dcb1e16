"""The probe ladder: what a chance guess, plain pixels, a linear probe and stronger attackers read through the same folds.

P0 is the prior (.5 by construction), P1 pixels (``nuisance.py``), P2 ridge (the headline, because its null takes one factorisation for
all permutations) and logistic regression, P3 neighbours, P4 a small network. The attacker is, in each outer fold, whichever of P2 to P4
did best *inside* the training rows; what it then scores outside is reported beside the headline and can only make a verdict worse.
n rows of the ladder, F outer folds, C classes, B draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from dinodomain.audit.protocol.attribute import Attribute, within
from dinodomain.audit.protocol.leak import Effort, Leak, interval_of, narrow, score_found
from dinodomain.audit.protocol.measures import beyond_chance, usable_bits
from dinodomain.audit.protocol.rungs import RUNGS, Answer, lesson_of
from dinodomain.probes.folds import grouped_folds, turns
from dinodomain.probes.scores import Interval, around, unit_weights

MAX_ROWS = 6000  # the attackers see at most so many rows, spread over the units
INNER_FOLDS = 3
_DRAWS = 500
ATTACKER = "attacker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Climbed:
    """A rung's outcome.

    Attributes:
        value: Score of its out-of-fold predictions.
        draws: [B] under resampled units.
        interval: 95 %, from the larger of its bootstrap's and the headline null's deviation.
        inner: Mean score inside the training rows; None for the attacker, which has none of its own.
    """

    value: float
    draws: np.ndarray
    interval: Interval
    inner: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """All rungs on one kind of features.

    Attributes:
        rungs: By name, ``attacker`` last.
        chosen: In how many outer folds each rung was the attacker.
        gain: Attacker minus headline, paired.
        bits: Usable information of the logistic probe, per row; None for numbers.
        balanced: Its balanced accuracy, 0 at chance and 1 perfect; None for numbers.
        num_rows: n.
    """

    rungs: Mapping[str, Climbed]
    chosen: Mapping[str, int]
    gain: Interval
    bits: Interval | None
    balanced: float | None
    num_rows: int

    @property
    def attacker(self) -> Climbed:
        """Whoever did best inside the training rows, fold by fold."""
        return self.rungs[ATTACKER]


def climb(
    features: np.ndarray,
    attribute: Attribute,
    headline: Leak,
    folds: np.ndarray,
    effort: Effort,
    *,
    names: Sequence[str] = tuple(RUNGS),
    max_rows: int = MAX_ROWS,
) -> Ladder:
    """Runs the rungs through the headline's outer folds.

    Args:
        features: [N, E] of the attribute's rows.
        attribute: What is read.
        headline: The ridge leak of the same features, whose null gives the least width of every interval.
        folds: [N] of the headline.
        effort: Draws and seed.
        names: Rungs to run; logistic regression is passed over for numbers.
        max_rows: Most rows.
    """
    rows = spread_rows(attribute.unit_index, max_rows, effort.seed)
    part = within(attribute, rows)
    used = [name for name in names if name != "logistic" or attribute.kind == "classes"]
    answers = _answers(narrow(features)[rows], part, headline.predictions[rows], folds[rows], used, effort.seed)
    joined = {name: _joined([fold[name] for fold in answers], folds[rows]) for name in used}
    best = [max(used, key=lambda name, fold=fold: fold[name].inner) for fold in answers]  # type: ignore[misc]
    joined[ATTACKER] = _joined([fold[name] for fold, name in zip(answers, best)], folds[rows])
    inner = {name: float(np.mean([fold[name].inner for fold in answers])) for name in used}
    weights = list(unit_weights(part.unit_index, min(_DRAWS, effort.bootstraps), effort.seed))
    rungs = {name: _climbed(found, part, headline, weights, inner.get(name)) for name, found in joined.items()}
    bits, balanced = _information(answers, part, folds[rows], weights)
    gain = _gain(rungs[ATTACKER], _climbed(headline.predictions[rows], part, headline, weights, None))
    return Ladder(rungs=rungs, chosen=dict(Counter(best)), gain=gain, bits=bits, balanced=balanced, num_rows=len(rows))


def spread_rows(unit_index: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many rows, drawn so that no unit has a second row before every unit has one."""
    if len(unit_index) <= most:
        return np.arange(len(unit_index))
    shuffled = np.random.default_rng([seed, 0x1ADD]).permutation(len(unit_index))
    return np.sort(shuffled[np.argsort(turns(unit_index[shuffled]), kind="stable")[:most]])


def _answers(
    x: np.ndarray, part: Attribute, headline: np.ndarray, folds: np.ndarray, names: Sequence[str], seed: int
) -> list[dict[str, Answer]]:  # fmt: skip
    """What every rung says of each outer fold; ridge repeats the headline."""
    out = []
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        about = within(part, train)
        inner = _inner(about, folds[train], seed)
        lesson, asked = lesson_of(x[train], about, inner, seed + int(fold), x[test])
        out.append({name: RUNGS[name](lesson, headline[test] if name == "ridge" else asked) for name in names})
    return out


def _inner(about: Attribute, folds: np.ndarray, seed: int) -> np.ndarray:
    """Inner folds of training rows: the other outer folds, joined to three; drawn anew where there are not two of them."""
    place = np.unique(folds, return_inverse=True)[1].reshape(-1)
    return place % INNER_FOLDS if place.max() > 0 else grouped_folds(about.unit_index, about.values, 2, seed)


def _joined(answers: Sequence[Answer], folds: np.ndarray) -> np.ndarray:
    """Predictions of all folds as ranks within each, since scales differ between folds and rungs: [n, C] or [n]."""
    out = np.empty((len(folds), *answers[0].predictions.shape[1:]))
    for fold, answer in zip(np.unique(folds), answers):
        rows = folds == fold
        out[rows] = (rankdata(answer.predictions, axis=0) - 0.5) / rows.sum()
    return out


def _climbed(found: np.ndarray, part: Attribute, headline: Leak, weights: Sequence[np.ndarray], inner: float | None) -> Climbed:
    value, draws = score_found(part, found, weights)
    interval = interval_of(value, float(np.nanstd(draws)), float(np.std(headline.null)), headline.num_minor)
    return Climbed(value=value, draws=draws, interval=interval, inner=inner)


def _gain(ours: Climbed, headline: Climbed) -> Interval:
    return around(ours.value - headline.value, float(np.nanstd(ours.draws - headline.draws)))


def _information(
    answers: Sequence[Mapping[str, Answer]], part: Attribute, folds: np.ndarray, weights: Sequence[np.ndarray]
) -> tuple[Interval | None, float | None]:  # fmt: skip
    """Bits and balanced accuracy of the logistic probe."""
    if not all("logistic" in fold for fold in answers):
        return None, None
    found = np.empty((len(folds), len(part.classes)))
    for fold, answer in zip(np.unique(folds), answers):
        found[folds == fold] = answer["logistic"].predictions
    value = float(usable_bits(found, part.values, np.ones((1, len(found))))[0])
    error = float(np.nanstd(np.concatenate([usable_bits(found, part.values, piece) for piece in weights])))
    return around(value, error), beyond_chance(found, part.values)
