"""Finds parts of the data with more errors in one half of the units, and measures them in the other.

Clusters join features and errors in the first half; in the second a row's cluster follows from its features alone, so that the search
cannot have seen what confirms it. n rows, U units, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import norm
from sklearn.cluster import KMeans

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.planting import whitened
from dinodomain.audit.protocol.task import by_unit, unit_counts
from dinodomain.probes.scores import Z95, Interval

MIN_SLICE = 30
CLUSTERS = (10, 25, 50)
MOST = 10  # candidates of each kind
SEEN_SHARE = 0.05  # of the units: the size of slice whose detection is stated
_SHARE, _ENOUGH = 0.02, 50  # a slice holds this share of the units, or this many
_OVERLAP = 0.8  # of rows: the same slice twice
_SEARCH_DRAWS = 200  # candidates are only ranked
_ERROR_WEIGHT = 2.0  # of the error beside one component of the features


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A candidate.

    Attributes:
        name: In words.
        rows: [n] bool, in both halves.
    """

    name: str
    rows: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Error rate of a slice over that of all other rows.

    Attributes:
        slice: Which.
        value: The ratio; half an error is added on both sides.
        error: Standard error of its logarithm, over units.
        inside: Error rate of the slice.
        outside: Error rate elsewhere.
        units: Units of the slice in the half that was tested.
    """

    slice: Slice
    value: float
    error: float
    inside: float
    outside: float
    units: int

    @property
    def interval(self) -> Interval:
        """95 %, normal on the logarithm."""
        half = np.exp(Z95 * self.error)
        return Interval(value=self.value, low=float(self.value / half), high=float(self.value * half))

    @property
    def p(self) -> float:
        """Of a ratio of 1, one-sided."""
        return float(norm.sf(np.log(self.value) / max(self.error, 1e-12)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """Errors of the task, and the half of each row.

    Attributes:
        target: The task.
        wrong: [n] bool.
        first: [n] bool: rows of the half that candidates come from.
        counts: [B, U] how often each unit is drawn.
    """

    target: Attribute
    wrong: np.ndarray
    first: np.ndarray
    counts: np.ndarray


def split(target: Attribute, wrong: np.ndarray, draws: int, seed: int) -> Halves:
    """Deals the units into two halves."""
    order = np.random.default_rng([seed, 0x51CE]).permutation(target.num_units)
    first = np.isin(target.unit_index, order[::2])
    return Halves(target=target, wrong=wrong, first=first, counts=unit_counts(target.num_units, draws, seed))


def search(features: np.ndarray, metadata: dict[str, np.ndarray], halves: Halves, seed: int) -> list[Slice]:
    """The candidates whose error ratio in the first half is the surest above 1, at most ten of each kind.

    Args:
        features: [n, E].
        metadata: Name to [n] text; "" is no value.
        halves: Errors and halves.
        seed: Decides where clusters start.
    """
    kept: list[Slice] = []
    for candidates in (_clusters(features, halves, seed), _conjunctions(metadata)):
        rated = [measure(one, halves, ~halves.first, _SEARCH_DRAWS) for one in candidates]
        rated = [one for one in rated if one.units >= _least(halves) and one.value > 1]
        chosen: list[Slice] = []
        for ratio in sorted(rated, key=lambda one: -one.interval.low):
            if len(chosen) < MOST and not any(_overlap(ratio.slice, other) > _OVERLAP for other in chosen):
                chosen.append(ratio.slice)
        kept += chosen
    return kept


def _least(halves: Halves) -> int:
    """Units a slice needs in the first half: 2 % or 50 of all are 1 % or 25 of a half; never fewer than 30."""
    return max(MIN_SLICE, min(_ENOUGH // 2, round(_SHARE * halves.target.num_units / 2)))


def _overlap(one: Slice, other: Slice) -> float:
    return float((one.rows & other.rows).sum() / max(1, (one.rows | other.rows).sum()))


def measure(one: Slice, halves: Halves, left_out: np.ndarray, draws: int | None = None) -> Ratio:
    """Error ratio of a slice in one half.

    Args:
        one: The slice.
        halves: Errors.
        left_out: [n] rows of the other half.
        draws: Of the bootstrap; None takes all.
    """
    inside, outside = one.rows & ~left_out, ~one.rows & ~left_out
    wrong, unit_index = halves.wrong, halves.target.unit_index
    columns = np.stack([inside & wrong, inside, outside & wrong, outside], axis=1).astype(np.float64)
    units = by_unit(unit_index, columns)
    total, drawn = units.sum(axis=0), halves.counts[:draws] @ units
    value, error = float(np.exp(_log_ratio(total))), float(np.std(_log_ratio(drawn)))
    half = total + 0.5  # with few errors the bootstrap sees too few values: never below the binomial's own (Walter 1975)
    floor = np.sqrt(max(0.0, 1 / half[0] - 1 / half[1]) + max(0.0, 1 / half[2] - 1 / half[3]))
    return Ratio(
        slice=one, value=value, error=max(error, float(floor), 1e-6), inside=float(total[0] / max(1.0, total[1])),
        outside=float(total[2] / max(1.0, total[3])), units=len(np.unique(unit_index[inside])),
    )  # fmt: skip


def _log_ratio(sums: np.ndarray) -> np.ndarray:
    """Log of the error ratio with half an error added on both sides (Walter 1975); sums [..., 4]."""
    result: np.ndarray = np.log((sums[..., 0] + 0.5) / (sums[..., 1] + 0.5)) - np.log((sums[..., 2] + 0.5) / (sums[..., 3] + 0.5))
    return result


def _clusters(features: np.ndarray, halves: Halves, seed: int) -> list[Slice]:
    """Groups of the first half by leading components and error; every row then joins the group whose centre in the features is nearest."""
    x = whitened(features, halves.target.unit_index)
    train = np.concatenate([x[halves.first], _ERROR_WEIGHT * halves.wrong[halves.first, None]], axis=1)
    out = []
    for k in CLUSTERS:
        if len(train) < 4 * k:
            continue
        centres = KMeans(k, n_init=1, random_state=seed).fit(train).cluster_centers_[:, :-1]
        nearest = (np.square(centres).sum(axis=1) - 2 * x @ centres.T).argmin(axis=1)
        out += [Slice(name=f"cluster {at + 1} of {k}", rows=nearest == at) for at in range(k)]
    return out


def _conjunctions(metadata: dict[str, np.ndarray]) -> list[Slice]:
    """One metadata value, or one of each of two columns."""
    single = {
        name: [(f"{name} {value}", column == value) for value in np.unique(column[column != ""])] for name, column in metadata.items()
    }
    out = [Slice(name=name, rows=rows) for values in single.values() for name, rows in values]
    for one, other in combinations(single, 2):
        out += [Slice(name=f"{a} and {b}", rows=ra & rb) for a, ra in single[one] for b, rb in single[other]]
    return out


def detectable(halves: Halves, alpha: float) -> float:
    """The error ratio that a slice of 5 % of the second half's units shows in 80 % of samples, were each unit one row."""
    second = halves.target.unit_index[~halves.first]
    units, rate = len(np.unique(second)) * SEEN_SHARE, max(float(halves.wrong.mean()), 1e-6)
    needed = norm.isf(alpha) + norm.ppf(0.8)
    for ratio in np.arange(1.1, 20.0, 0.1):
        if rate * ratio >= 1:
            break
        if np.log(ratio) >= needed * np.sqrt((1 - rate * ratio) / (units * rate * ratio)):
            return float(ratio)
    return float("inf")


def enrichment(one: Slice, metadata: dict[str, np.ndarray]) -> str:
    """The two metadata values that the slice holds most beyond the rest, in shares."""
    found = []
    for name, column in metadata.items():
        for value in np.unique(column[column != ""]):
            inside, outside = float(np.mean(column[one.rows] == value)), float(np.mean(column[~one.rows] == value))
            found.append((inside - outside, f"{name} {value} ({inside:.0%}, elsewhere {outside:.0%})"))
    best = sorted(found, reverse=True)[:2]
    return ", ".join(words for excess, words in best if excess > 0.1)
