"""Ridge regression of many targets at once through fixed folds: one decomposition per fold serves them all.

The strength of each target's penalty is chosen inside the training rows by leaving out one unit at a time, in closed form, so a
permuted label passes exactly the procedure that the real one passed. Does not draw folds or score.
n rows, m training rows, d features, r rank, M targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.probes.folds import index_units

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Penalty per training row; features are standardised, so 1 shrinks an average direction by half."""

_COLUMNS = 256  # targets solved together: bounds the m x M buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A penalty, and what tells the errors on left-out units from the residuals of the fit to all; in float32.

    Attributes:
        penalty: In all.
        shrink: [r] what it leaves of each direction.
        single: [m] 1 / (1 - leverage) of rows that are a unit of their own, else 0; empty where none is.
        several: Positions of the units of each larger size, [G, size], and their (I - H)⁻¹, [G, size, size].
    """

    penalty: float
    shrink: np.ndarray
    single: np.ndarray
    several: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fold:
    """Decomposition x = u diag(s) vᵀ of the standardised training rows, and the held-out rows in the basis v.

    Attributes:
        train: [m] row numbers.
        test: [n - m] row numbers.
        u: [m, r].
        u32: The same in float32.
        s: [r].
        test_v: [n - m, r] standardised held-out rows times v.
        basis: [d, r] v, and what standardises rows before it: their mean and scale, [d].
        blocks: Positions within the training rows of the units of each size, [G, size] each.
        choices: The penalties to choose from.
    """

    train: np.ndarray
    test: np.ndarray
    u: np.ndarray
    u32: np.ndarray
    s: np.ndarray
    test_v: np.ndarray
    basis: tuple[np.ndarray, np.ndarray, np.ndarray]
    blocks: tuple[np.ndarray, ...]
    choices: tuple[_Choice, ...]

    def project(self, rows: np.ndarray) -> np.ndarray:
        """[k, d] rows, standardised as the training rows were, in the basis v: [k, r]."""
        v, mean, scale = self.basis
        result: np.ndarray = ((np.asarray(rows, np.float64) - mean) / scale) @ v
        return result


class FoldedRidge:
    """Out-of-fold ridge scores of any number of targets over the same features, units and folds.

    Args:
        features: [n, d].
        units: [n] unit ids.
        folds: [n] fold of each row; rows of fold -1 are only ever trained on, and their scores are NaN.
        penalties: Per training row, to choose from; a single one saves the choice, which is five sixths of the time.
    """

    def __init__(self, features: np.ndarray, units: np.ndarray, folds: np.ndarray, penalties: Sequence[float] = PENALTIES) -> None:
        unit_index = index_units(units)
        x = np.asarray(features, np.float64)
        self._folds = tuple(_decompose(x, unit_index, folds == fold, penalties) for fold in np.unique(folds[folds >= 0]))

    def scores(self, targets: np.ndarray, *, centre: bool = False) -> np.ndarray:
        """Predicts each row from the units outside its fold.

        Args:
            targets: [n, M].
            centre: Give each fold's predictions mean 0. A fold with more of a class leaves fewer of it to train on, so that plain
                predictions ranked across folds run against the truth: without any signal the AUROC averages .47, centred .50.

        Returns:
            [n, M] float64.
        """
        return self.altered(targets, (), centre=centre)[0]

    def altered(self, targets: np.ndarray, versions: Sequence[np.ndarray], *, centre: bool = False) -> list[np.ndarray]:
        """Predicts each row, and altered versions of it, by the same probe: that of the units outside its fold.

        Args:
            targets: [n, M].
            versions: Altered features, [n, d] each.
            centre: See ``scores``; altered rows are shifted as the plain ones of their fold are, so that only the alteration differs.

        Returns:
            [n, M] of the plain rows, then of each version.
        """
        out = [np.full(targets.shape, np.nan) for _ in range(1 + len(versions))]
        for fold in self._folds:
            rows = [fold.test_v, *(fold.project(version[fold.test]) for version in versions)]
            for start in range(0, targets.shape[1], _COLUMNS):
                columns = slice(start, start + _COLUMNS)
                slopes, mean = _fit(fold, np.asarray(targets[fold.train, columns], np.float64))
                shift = (rows[0] @ slopes).mean(axis=0) if centre else -mean
                for found, projected in zip(out, rows):
                    found[fold.test, columns] = projected @ slopes - shift
        return out


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Subtracts the training mean and divides by the training deviation; constant columns become 0."""
    mean, scale = _standards(train)
    return [(rows - mean) / scale for rows in (train, *others)]


def _standards(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[d] mean and deviation; the deviation of a constant column is infinite, so that it becomes 0."""
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    return mean, np.where(deviation > 1e-9 * np.maximum(1.0, np.abs(mean)), deviation, np.inf)


def _decompose(x: np.ndarray, unit_index: np.ndarray, held_out: np.ndarray, penalties: Sequence[float]) -> _Fold:
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    x_train, x_test = standardise(x[train], x[test])
    u, s, v = _thin(x_train)
    mean, scale = _standards(x[train])
    blocks = unit_blocks(unit_index[train])
    return _Fold(
        train=train, test=test, u=u, u32=u.astype(np.float32), s=s, test_v=x_test @ v, basis=(v, mean, scale), blocks=blocks,
        choices=_choices(u, s, blocks, np.array(penalties) * len(train)),
    )  # fmt: skip


def _choices(u: np.ndarray, s: np.ndarray, blocks: Sequence[np.ndarray], penalties: np.ndarray) -> tuple[_Choice, ...]:
    """With hat matrix H = u diag(shrink) uᵀ + 11ᵀ/m and residual e, the error on unit g of the fit without it is (I - H_gg)⁻¹ e_g.

    Source: Cook and Weisberg 1982, 2.2; the standardisation is kept.
    """
    shrink, count = np.square(s) / (np.square(s) + penalties[:, None]), len(u)
    alone = [rows[:, 0] for rows in blocks if rows.shape[1] == 1]  # one array, or none
    single = np.zeros((len(penalties), count if alone else 0), np.float32)
    for rows in alone:
        single[:, rows] = 1 / (1 - np.square(u[rows]) @ shrink.T - 1 / count).T
    several = [[(rows, _undo(u[rows], left, count)) for rows in blocks if rows.shape[1] > 1] for left in shrink]
    return tuple(
        _Choice(penalty=float(penalty), shrink=left.astype(np.float32), single=lone, several=tuple(joined))
        for penalty, left, lone, joined in zip(penalties, shrink, single, several)
    )


def _undo(u: np.ndarray, shrink: np.ndarray, count: int) -> np.ndarray:
    """[G, size, size] (I - H)⁻¹ of units of one size, from their rows [G, size, r]."""
    hat = (u * shrink) @ u.transpose(0, 2, 1) + 1 / count
    result: np.ndarray = np.linalg.inv(np.eye(u.shape[1]) - hat).astype(np.float32)
    return result


def _thin(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin singular value decomposition through the smaller Gram matrix; directions without variance are dropped."""
    tall = x.shape[0] >= x.shape[1]
    values, vectors = np.linalg.eigh(x.T @ x if tall else x @ x.T)
    keep = values > max(values[-1], 1e-300) * 1e-10
    s, vectors = np.sqrt(values[keep]), vectors[:, keep]
    return (x @ vectors / s, s, vectors) if tall else (vectors, s, x.T @ vectors / s)


def unit_blocks(unit_index: np.ndarray) -> tuple[np.ndarray, ...]:
    """Row positions of the units, gathered by unit size: one [G, size] array per size."""
    order = np.argsort(unit_index, kind="stable")
    _, starts, counts = np.unique(unit_index[order], return_index=True, return_counts=True)
    return tuple(order[starts[counts == size][:, None] + np.arange(size)] for size in np.unique(counts))


def _fit(fold: _Fold, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes [r, M] in the basis of the fold and means [M] of its training targets."""
    mean = targets.mean(axis=0)
    centred = targets - mean
    projected = fold.u.T @ centred
    slopes: np.ndarray = projected * (fold.s[:, None] / (np.square(fold.s)[:, None] + _chosen(fold, centred, projected)))
    return slopes, mean


def _chosen(fold: _Fold, centred: np.ndarray, projected: np.ndarray) -> np.ndarray:
    """[M] or [1] the penalty of each target, by the error on units left out."""
    penalties = np.array([choice.penalty for choice in fold.choices])
    if len(penalties) == 1:
        return penalties
    single = (centred.astype(np.float32), projected.astype(np.float32))  # errors are only compared: half the time of float64
    best: np.ndarray = penalties[np.argmin([_left_out_error(fold, choice, *single) for choice in fold.choices], axis=0)]
    return best


def _left_out_error(fold: _Fold, choice: _Choice, centred: np.ndarray, projected: np.ndarray) -> np.ndarray:
    """Sum of squared errors on each unit when the fit leaves it out, per target [M]."""
    residual = centred - fold.u32 @ (choice.shrink[:, None] * projected)
    total = np.zeros(centred.shape[1])
    for rows, undo in choice.several:
        left = (undo @ residual[rows]).reshape(-1, len(total))
        total += np.einsum("ik,ik->k", left, left)
    if len(choice.single):
        total += np.square(choice.single) @ np.square(residual, out=residual)
    return total
