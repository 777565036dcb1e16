"""How much more often one group's units keep their sources than others do, with interval and a p value by permuting units. n sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.audit.trail.groups import as_groups
from dinodomain.probes.scores import Z95, Interval

_PERMUTED = 200  # permutations at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """One group at one stage.

    Attributes:
        stage: Of the trail.
        group: Value of the column.
        ratio: Kept share of its units over that of the others, with interval.
        p: Of the difference, by permutation of units.
        inside: Units of the group.
        outside: All others.
        kept: Mean share kept inside.
    """

    stage: str
    group: str
    ratio: Interval
    p: float
    inside: int
    outside: int
    kept: float


def retention(
    stage: str, units: np.ndarray, values: np.ndarray, kept: np.ndarray, permutations: int, seed: int
) -> tuple[list[Retention], bool]:  # fmt: skip
    """Retention of each group against the rest.

    Args:
        stage: Its name.
        units: [n] unit of each source.
        values: [n] group of each source.
        kept: [n] 1 where it stayed.
        permutations: Of units.
        seed: Decides them.

    Returns:
        Groups of at least 30 units with as many outside, and whether there were smaller ones.
    """
    groups = as_groups(values)
    known = groups != ""
    pairs, place = np.unique(np.stack([units[known], groups[known]]), axis=1, return_inverse=True)
    total = np.bincount(place.reshape(-1))
    share = np.bincount(place.reshape(-1), weights=kept[known]) / total
    own = pairs[1]
    found, few = [], False
    for label in np.unique(own):
        inside = own == label
        if min(inside.sum(), (~inside).sum()) < MIN_UNITS:
            few = True
            continue
        ratio, p = _ratio(share[inside], share[~inside]), _permuted(share, inside, permutations, seed)
        found.append(
            Retention(
                stage=stage, group=str(label), ratio=ratio, p=p, inside=int(inside.sum()), outside=int((~inside).sum()),
                kept=float(share[inside].mean()),
            )
        )  # fmt: skip
    return found, few


def _ratio(inside: np.ndarray, outside: np.ndarray) -> Interval:
    """Ratio of two means with a log-normal interval; where one side kept nothing, half a unit is added to both."""
    means = [float(side.mean()) for side in (inside, outside)]
    errors = [float(side.var() / len(side)) for side in (inside, outside)]
    if min(means) == 0:
        means = [(float(side.sum()) + 0.5) / (len(side) + 1) for side in (inside, outside)]
        errors = [mean * (1 - mean) / (len(side) + 1) for mean, side in zip(means, (inside, outside))]
    value = means[0] / means[1]
    spread = Z95 * float(np.sqrt(sum(error / mean**2 for error, mean in zip(errors, means))))
    return Interval(value=value, low=value * float(np.exp(-spread)), high=value * float(np.exp(spread)))


def _permuted(share: np.ndarray, inside: np.ndarray, permutations: int, seed: int) -> float:
    """Share of permutations whose difference of means is as large: (1 + #) / (1 + K)."""
    generator = np.random.default_rng([seed, 0xC03E])
    count, seen, done = int(inside.sum()), 0, 0
    centred = share - share.mean()
    observed = abs(float(centred[inside].mean())) - 1e-12
    while done < permutations:
        size = min(_PERMUTED, permutations - done)
        drawn = generator.permuted(np.broadcast_to(centred, (size, len(centred))), axis=1)[:, :count].mean(axis=1)
        seen += int((np.abs(drawn) >= observed).sum())
        done += size
    return (1 + seen) / (1 + permutations)
