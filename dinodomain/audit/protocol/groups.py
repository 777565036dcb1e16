"""How well a task's probe serves the people of a group and everybody else: ranking, errors at one threshold, calibration.

Each group is compared with all other rows, never the best with the worst: between ten groups of equal truth the largest gap averages .12.
Decides no verdict. n rows, U units, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.task import by_unit, cut_point, out_of_fold, unit_counts
from dinodomain.probes.scores import Interval, around

METRICS = ("auroc", "sensitivity", "specificity")
BINS = 10
_SIMULATED = 50


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The task as the reference probe answers it, every row by a probe and a threshold that never saw its unit.

    Attributes:
        target: The task; class 1 is the finding.
        score: [n].
        called: [n] whether the score reaches the threshold of the other folds.
        chance: [n] probability, by a logistic curve fitted on the other folds (Platt 1999).
        threshold: Mean over folds.
        draws: [B, U] float32: how often each unit is drawn.
    """

    target: Attribute
    score: np.ndarray
    called: np.ndarray
    chance: np.ndarray
    threshold: float
    draws: np.ndarray

    @cached_property
    def truth(self) -> np.ndarray:
        """[n] whether the row has the finding."""
        result: np.ndarray = self.target.values == 1
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison.

    Attributes:
        values: Metric to value.
        calibration: Observed minus predicted share of the finding, with its interval.
        ece: Expected calibration error over ten bins of equal size.
        ece_floor: What a perfectly calibrated side of this size would show.
        positive: Units with the finding.
        negative: Units without.
    """

    values: Mapping[str, float]
    calibration: Interval
    ece: float
    ece_floor: float
    positive: int
    negative: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One group against the rest.

    Attributes:
        group: Its name.
        inside: The group.
        outside: The rest.
        values: Metric to inside minus outside.
        errors: Metric to the standard error of that.
        matched: AUROC gap with the rest weighted to the group's mix of finding and strata.
        matched_calibration: Difference in observed minus predicted share under the same weights.
    """

    group: str
    inside: Side
    outside: Side
    values: Mapping[str, float]
    errors: Mapping[str, float]
    matched: Interval
    matched_calibration: float

    @property
    def cell(self) -> int:
        """Fewest units with or without the finding on either side."""
        return min(self.inside.positive, self.inside.negative, self.outside.positive, self.outside.negative)

    def interval(self, metric: str) -> Interval:
        """95 %, normal."""
        return around(self.values[metric], self.errors[metric])

    @property
    def p(self) -> float:
        """Two-sided, that all three metrics are equal: Bonferroni's bound over the three."""
        each = (2 * norm.sf(abs(self.values[metric]) / max(self.errors[metric], 1e-12)) for metric in METRICS)
        return min(1.0, len(METRICS) * float(min(each)))

    def detectable(self, metric: str, alpha: float) -> float:
        """The gap that would be found in 80 % of samples like this at the corrected level."""
        return float((norm.isf(alpha / 2 / len(METRICS)) + norm.ppf(0.8)) * self.errors[metric])


def score_task(data: AuditSet, target: Attribute, effort: Effort) -> Scored:
    """Fits the reference probe through folds by unit; threshold and probabilities of each fold come from the others."""
    scores, folds = out_of_fold(data, target, effort)
    score, truth = scores[:, 1], target.values == 1
    called, chance, cuts = np.zeros(len(score), bool), np.empty(len(score)), []
    for fold in np.unique(folds):
        test = folds == fold
        cuts.append(cut_point(score[~test], truth[~test]))
        called[test] = score[test] >= cuts[-1]
        curve = LogisticRegression(C=1e4).fit(score[~test, None], truth[~test])
        chance[test] = curve.predict_proba(score[test, None])[:, 1]
    draws = unit_counts(target.num_units, effort.bootstraps, effort.seed).astype(np.float32)  # half the memory to pass over
    return Scored(target=target, score=score, called=called, chance=chance, threshold=float(np.mean(cuts)), draws=draws)


def cells(target: Attribute, *sides: np.ndarray) -> list[int]:
    """Units with and without the finding on each side [n] bool."""
    return [len(np.unique(target.unit_index[rows & (target.values == value)])) for rows in sides for value in (1, 0)]


def compare(scored: Scored, group: str, inside: np.ndarray, outside: np.ndarray, strata: np.ndarray) -> Gap:
    """One group against the rest, both with rows of either class.

    Args:
        scored: The task's answers.
        group: Name of the group.
        inside: [n] bool.
        outside: [n] bool.
        strata: [n] integers: rows that may be compared with each other.
    """
    shares = {side: _shares(scored, rows) for side, rows in (("in", inside), ("out", outside))}
    rank = {side: _ranking(scored, rows) for side, rows in (("in", inside), ("out", outside))}
    counts = cells(scored.target, inside, outside)
    sides = {
        "in": _side(scored, inside, rank["in"][0], shares["in"], counts[:2]),
        "out": _side(scored, outside, rank["out"][0], shares["out"], counts[2:]),
    }
    draws = {"auroc": rank["in"][1] - rank["out"][1]} | {name: shares["in"][name] - shares["out"][name] for name in METRICS[1:]}
    least = {"auroc": [0.5 / min(counts[:2]), 0.5 / min(counts[2:])]} | {
        name: [_floor(sides[side].values[name], counts[at + shift]) for side, shift in (("in", 0), ("out", 2))]
        for at, name in enumerate(METRICS[1:])
    }
    values = {name: sides["in"].values[name] - sides["out"].values[name] for name in METRICS}
    errors = {name: max(float(np.nanstd(draws[name])), float(np.linalg.norm(least[name]))) for name in METRICS}
    matched, calibration = _matched(scored, inside, outside, strata)
    return Gap(
        group=group, inside=sides["in"], outside=sides["out"], values=values, errors=errors, matched=matched,
        matched_calibration=calibration,
    )  # fmt: skip


def _floor(share: float, count: int) -> float:
    """Standard error of a share with one success and one failure added: not 0 where all were right (Agresti and Caffo 2000)."""
    pulled = (share * count + 1) / (count + 2)
    return float(np.sqrt(pulled * (1 - pulled) / (count + 2)))


def _ranking(scored: Scored, rows: np.ndarray, extra: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """AUROC of the rows and its draws [B]; ``extra`` [n] weighs rows besides.

    The draws resample the first-order (Hajek) projection: mean placement of the positives plus mean placement of the negatives minus the
    estimate, which needs sums per unit only. Source: DeLong et al. 1988; whole clusters, Obuchowski 1997.
    """
    truth, weights = scored.truth[rows], np.ones(int(rows.sum())) if extra is None else extra[rows]
    place = placements(scored.score[rows], truth, weights)
    columns = np.zeros((len(rows), 4))
    columns[rows] = np.stack([truth * place, truth, ~truth * place, ~truth], axis=1) * weights[:, None]
    total, sums = columns.sum(axis=0), _resampled(scored, columns)
    value = float(total[0] / total[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        draws: np.ndarray = sums[:, 0] / sums[:, 1] + sums[:, 2] / sums[:, 3] - value
        return value, draws


def _resampled(scored: Scored, columns: np.ndarray) -> np.ndarray:
    """Sums of columns [n, m] over the rows of the units drawn: [B, m]."""
    result: np.ndarray = (scored.draws @ by_unit(scored.target.unit_index, columns).astype(np.float32)).astype(np.float64)
    return result


def placements(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n] share of the other class that each row is ordered rightly against, ties half; its weighted mean over either class is the AUROC.

    Args:
        scores: [n].
        positive: [n] bool.
        weights: [n] non-negative.
    """
    _, at = np.unique(scores, return_inverse=True)
    ups, downs = (np.bincount(at, weights * side, minlength=int(at.max()) + 1) for side in (positive, ~positive))
    below, above = np.cumsum(downs) - downs / 2, ups.sum() - np.cumsum(ups) + ups / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = np.where(positive, below[at] / downs.sum(), above[at] / ups.sum())
        return result


def _shares(scored: Scored, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Draws [B] of sensitivity, specificity and observed minus predicted share."""
    truth, called, used = scored.truth, scored.called, rows
    columns = [truth & called & used, truth & used, ~truth & ~called & used, ~truth & used, (truth - scored.chance) * used, used]
    sums = _resampled(scored, np.stack(columns, axis=1).astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "sensitivity": sums[:, 0] / sums[:, 1], "specificity": sums[:, 2] / sums[:, 3], "calibration": sums[:, 4] / sums[:, 5],
        }  # fmt: skip


def _side(scored: Scored, rows: np.ndarray, ranking: float, shares: dict[str, np.ndarray], counts: list[int]) -> Side:
    truth, called, chance = scored.truth[rows], scored.called[rows], scored.chance[rows]
    values = {"auroc": ranking, "sensitivity": float(called[truth].mean()), "specificity": float((~called[~truth]).mean())}
    offset = around(float((truth - chance).mean()), float(np.nanstd(shares["calibration"])))
    simulated = np.random.default_rng([len(truth), 0xECE]).random((_SIMULATED, len(truth))) < chance
    return Side(
        values=values, calibration=offset,
        ece=float(calibration_error(chance, truth)),
        ece_floor=float(calibration_error(chance, simulated).mean()), positive=counts[0], negative=counts[1],
    )  # fmt: skip


def calibration_error(chance: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Expected calibration error: mean over ten bins of equal size of |observed - predicted| share. Source: Naeini et al. 2015.

    Args:
        chance: [n] predicted.
        truth: [..., n] whether it came true.

    Returns:
        [...].
    """
    order = np.argsort(chance, kind="stable")
    starts = np.unique(np.linspace(0, len(chance), BINS, endpoint=False).astype(int))
    off = np.add.reduceat((truth - chance)[..., order], starts, axis=-1)
    result: np.ndarray = np.abs(off).sum(axis=-1) / len(chance)
    return result


def reliability(scored: Scored, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean predicted and observed share of ten bins of equal size."""
    chance, truth = scored.chance[rows], scored.truth[rows]
    bins = [part for part in np.array_split(np.argsort(chance, kind="stable"), BINS) if len(part)]
    return tuple(float(chance[part].mean()) for part in bins), tuple(float(truth[part].mean()) for part in bins)


def matching_weights(cell: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """[n] weights that give the outside rows the inside rows' mix of cells; cells found on one side only weigh nothing.

    Args:
        cell: [n] integers.
        inside: [n] bool.
        outside: [n] bool.
    """
    ours, theirs = (np.bincount(cell[rows], minlength=int(cell.max()) + 1).astype(float) for rows in (inside, outside))
    both = (ours > 0) & (theirs > 0)
    share = np.where(both, ours / np.where(both, theirs, 1.0), 0.0)
    result: np.ndarray = np.where(inside, both[cell], np.where(outside, share[cell], 0.0))
    return result


def _matched(scored: Scored, inside: np.ndarray, outside: np.ndarray, strata: np.ndarray) -> tuple[Interval, float]:
    """AUROC gap and calibration gap with the rest weighted to the group's mix of finding and strata."""
    weights = matching_weights(2 * strata + scored.truth, inside, outside)
    offsets = []
    for rows in (inside, outside):
        total = float(weights[rows].sum())
        if min(weights[rows & scored.truth].sum(), weights[rows & ~scored.truth].sum()) == 0:
            return Interval(value=np.nan, low=np.nan, high=np.nan), np.nan
        offsets.append(float(((scored.truth - scored.chance) * weights)[rows].sum()) / total)
    (own, own_draws), (rest, rest_draws) = (_ranking(scored, rows, weights) for rows in (inside, outside))
    return around(own - rest, float(np.nanstd(own_draws - rest_draws))), offsets[0] - offsets[1]
