"""Attackers of rising strength, each fitted on some rows and asked about others: ridge, logistic regression, neighbours, a small network.

Each chooses its setting inside the training rows, by unit, and says how well it did there. m training rows, q asked rows, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.leak import Reader, score_many
from dinodomain.audit.protocol.network import fit_network
from dinodomain.probes.knn import TEMPERATURE
from dinodomain.probes.ridge import standardise

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""C of the logistic regression, from strong to weak penalty."""

NEIGHBOURS = (5, 20, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Training rows.

    Attributes:
        x: [m, E] float32, standardised.
        about: The attribute on these rows.
        inner: [m] folds by unit inside them.
        seed: Decides the network's start.
    """

    x: np.ndarray
    about: Attribute
    inner: np.ndarray
    seed: int

    @property
    def targets(self) -> np.ndarray:
        """[m] class indices, or ranks of a number between 0 and 1."""
        return self.about.values if self.about.kind == "classes" else rankdata(self.about.values) / len(self.about.values)

    def score(self, predictions: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        """The leak's score of predictions for some training rows."""
        return float(score_many(self.about.kind, predictions[None], self.about.values[rows][None])[0])

    def tuned(self, fit: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Inner predictions of all settings.

        Args:
            fit: Training and asked row numbers to [settings, asked, ...] predictions.

        Returns:
            [settings, m, ...] predictions of rows by fits that did not see their units.
        """
        parts = [np.flatnonzero(self.inner == fold) for fold in np.unique(self.inner)]
        joined = np.concatenate([fit(np.setdiff1d(np.arange(len(self.inner)), part), part) for part in parts], axis=1)
        result: np.ndarray = joined[:, np.argsort(np.concatenate(parts))]
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an attacker says.

    Attributes:
        predictions: [q, C] or [q].
        inner: Its score inside the training rows.
        probabilities: Whether the predictions are probabilities of classes.
    """

    predictions: np.ndarray
    inner: float
    probabilities: bool = False


Rung = Callable[[Lesson, np.ndarray], Answer]


def ridge(lesson: Lesson, asked: np.ndarray) -> Answer:
    """The headline's probe: its own outer predictions are taken, here it only says how well it does inside the training rows."""
    inside = Reader(lesson.x, lesson.about, lesson.inner).score(lesson.about.values[None])[0]
    return Answer(predictions=asked, inner=float(inside))


def logistic(lesson: Lesson, asked: np.ndarray) -> Answer:
    """L2-logistic regression, C by the log-loss of inner folds."""
    classes, y = len(lesson.about.classes), lesson.targets

    def fit(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return _path(lesson.x[train], y[train], lesson.x[test], classes, STRENGTHS)

    inner = lesson.tuned(fit)
    losses = -np.log(np.maximum(inner[:, np.arange(len(y)), y], 1e-12)).mean(axis=1)
    best = int(np.argmin(losses))
    outside = _path(lesson.x, y, asked, classes, STRENGTHS[: best + 1])[-1]
    return Answer(predictions=outside, inner=lesson.score(inner[best]), probabilities=True)


def _path(x: np.ndarray, y: np.ndarray, asked: np.ndarray, classes: int, strengths: tuple[float, ...]) -> np.ndarray:
    """Probabilities [strengths, q, C] along rising C, each fit starting from the one before."""
    model = LogisticRegression(warm_start=True, max_iter=100, tol=1e-3)
    out = np.zeros((len(strengths), len(asked), classes))
    for place, strength in enumerate(strengths):
        with warnings.catch_warnings():  # weak penalties may not settle; they are then judged as they stand
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(x, y)
        out[place][:, model.classes_] = model.predict_proba(asked)
    return out


def neighbours(lesson: Lesson, asked: np.ndarray) -> Answer:
    """Cosine nearest neighbours, k by the score of inner folds."""
    inner = lesson.tuned(lambda train, test: _votes(lesson.x[train], lesson.about, lesson.targets[train], lesson.x[test]))
    scores = [lesson.score(found) for found in inner]
    best = int(np.argmax(scores))
    return Answer(predictions=_votes(lesson.x, lesson.about, lesson.targets, asked)[best], inner=scores[best])


def _votes(x: np.ndarray, about: Attribute, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[settings, q, C] vote shares or [settings, q] means of the k nearest, as ``probes.knn`` weighs them, every k from one search."""
    keys, queries = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (x, asked))
    similarity = queries @ keys.T
    near = np.argpartition(-similarity, min(NEIGHBOURS[-1], len(x)) - 1, axis=1)[:, : NEIGHBOURS[-1]]
    close = np.take_along_axis(similarity, near, axis=1)
    order = np.argsort(-close, axis=1)
    near, close = (np.take_along_axis(found, order, axis=1) for found in (near, close))
    weight = np.exp((close - close[:, :1]) / TEMPERATURE)
    votes = np.eye(len(about.classes))[y] if about.kind == "classes" else y[:, None]
    counts = [min(k, len(x)) for k in NEIGHBOURS]
    found = np.stack(
        [np.einsum("qk,qkc->qc", weight[:, :k], votes[near[:, :k]]) / weight[:, :k].sum(axis=1, keepdims=True) for k in counts]
    )
    return found if about.kind == "classes" else found[:, :, 0]


def network(lesson: Lesson, asked: np.ndarray) -> Answer:
    """One hidden layer of 256, mean of three starts, stopped early by the units of one inner fold."""
    watched = lesson.inner == lesson.inner.max()
    targets = lesson.targets
    classes = len(lesson.about.classes) if lesson.about.kind == "classes" else None
    fitted = fit_network(lesson.x[~watched], targets[~watched], lesson.x[watched], targets[watched], classes=classes, seed=lesson.seed)
    inner = lesson.score(fitted(lesson.x[watched]), watched.nonzero()[0])
    return Answer(predictions=fitted(asked), inner=inner)


RUNGS: Mapping[str, Rung] = {"ridge": ridge, "logistic": logistic, "neighbours": neighbours, "network": network}


def lesson_of(features: np.ndarray, about: Attribute, inner: np.ndarray, seed: int, asked: np.ndarray) -> tuple[Lesson, np.ndarray]:
    """Training rows and asked rows, both standardised by the training rows; float32, which is enough to rank and twice as fast."""
    x, other = (rows.astype(np.float32) for rows in standardise(np.asarray(features, np.float64), np.asarray(asked, np.float64)))
    return Lesson(x=x, about=about, inner=inner, seed=seed), other
