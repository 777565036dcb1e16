"""The minimum detectable leak: random labels planted along random directions of the real features, at rising strength.

"Nothing found" means nothing until it is known what would have been found. The features stay untouched: a label is drawn so that it
depends on a random direction of the leading principal components (all whitened, so that weak components count as much as strong ones).
The label is constant on each unit where the real one is, else as alike within units.
The oracle is the score of that direction itself. n rows, U units, R runs, k components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.leak import Reader, score_many
from dinodomain.probes.ridge import standardise

STRENGTHS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
"""Correlation of the latent label with the direction; 0 is the clean control, 1 the strongest plant."""

DETECTION = 0.8
RUNS = 50
MAX_COMPONENTS = 50
_FALSE_ALARM_LEVEL = 0.05
_CLOSE = 1e-3  # of the shares of planted classes to the real ones
_FALSE_ALARM_BOUND = 0.002  # a clean control fails when its alarm count has less than this chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What planted leaks would have been found.

    Attributes:
        mdl: Smallest oracle score found in 80 % of runs (and at every higher strength), or None if none was.
        oracle: Mean oracle score per strength.
        detected: Share of runs found per strength.
        strengths: The planted strengths.
        alarm_rate: Share of unplanted labels with p <= .05.
        clean: Whether that share is one that chance would give.
        components: Principal components the directions span.
    """

    mdl: float | None
    oracle: tuple[float, ...]
    detected: tuple[float, ...]
    strengths: tuple[float, ...]
    alarm_rate: float
    clean: bool
    components: int

    @property
    def positive(self) -> bool:
        """Whether the strongest plant was found."""
        return self.detected[-1] >= DETECTION


def plant(
    reader: Reader, features: np.ndarray, attribute: Attribute, null: np.ndarray, *, alpha: float, seed: int, runs: int = RUNS
) -> Sensitivity:
    """Plants labels of the attribute's shape and counts how often they are found at the corrected level.

    Args:
        reader: Reads labels from ``features`` through the folds of the real attribute.
        features: [n, E] of the attribute's rows.
        attribute: Gives kind, class shares and units.
        null: [K] scores of permuted values; planted labels have the same shares and so share this null.
        alpha: Level after correction for multiplicity.
        seed: Decides directions and noise.
        runs: Plants per strength.
    """
    directions = whitened(features, attribute.unit_index)
    generator = np.random.default_rng([seed, 0x91A27])
    oracle, detected, alarm_rate = [], [], 0.0
    for strength in STRENGTHS:
        drawn = [_draw(directions, attribute, strength, generator) for _ in range(runs)]
        labels = np.stack([values for values, _ in drawn])
        p = p_values(reader.score(labels), null)
        oracle.append(float(np.mean([score for _, score in drawn])))
        detected.append(float(np.mean(p <= alpha)))
        if strength == 0.0:
            alarm_rate = float(np.mean(p <= _FALSE_ALARM_LEVEL))
    from_here = np.flatnonzero(np.minimum.accumulate(np.array(detected)[::-1])[::-1] >= DETECTION)
    mdl = oracle[from_here[0]] if len(from_here) and from_here[0] > 0 else None
    return Sensitivity(
        mdl=mdl, oracle=tuple(oracle), detected=tuple(detected), strengths=STRENGTHS, alarm_rate=alarm_rate,
        clean=_plausible(alarm_rate, runs), components=directions.shape[1],
    )  # fmt: skip


def p_values(scores: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(1 + null scores that reach it) / (1 + K), per score."""
    reached = len(null) - np.searchsorted(np.sort(null), scores, side="left")
    return (1 + reached) / (1 + len(null))


def whitened(features: np.ndarray, unit_index: np.ndarray) -> np.ndarray:
    """The leading principal components of the rows, unit variance each: [n, k], k at most 50 and a tenth of the units."""
    (x,) = standardise(np.asarray(features, np.float64))
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    k = max(2, min(MAX_COMPONENTS, (int(unit_index.max()) + 1) // 10, int((values > values[-1] * 1e-8).sum())))
    k = min(k, len(values))
    result: np.ndarray = x @ (vectors[:, -k:] / np.sqrt(np.maximum(values[-k:], 1e-300)))
    return result


def _draw(directions: np.ndarray, attribute: Attribute, strength: float, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """One planted label [n] and the score of an oracle that knows the direction."""
    columns = len(attribute.classes) if len(attribute.classes) > 2 else 1
    axes = np.linalg.qr(generator.normal(size=(directions.shape[1], min(columns, directions.shape[1]))))[0]
    rows = directions @ np.pad(axes, ((0, 0), (0, columns - axes.shape[1])))
    if attribute.level == "unit":
        sizes = np.bincount(attribute.unit_index)
        signal = np.stack([np.bincount(attribute.unit_index, column) / sizes for column in rows.T], axis=1)
        noise = generator.normal(size=signal.shape)
        latent = _latent(signal, noise, strength)
        values = _cut(latent, attribute)[attribute.unit_index]
    else:
        values = _cut(_latent(rows, _row_noise(attribute, columns, generator), strength), attribute)
    oracle = rows if columns > 1 else (rows[:, 0] if attribute.kind == "number" else np.concatenate([-rows, rows], axis=1))
    return values, float(score_many(attribute.kind, oracle[None], values[None])[0])


def _latent(signal: np.ndarray, noise: np.ndarray, strength: float) -> np.ndarray:
    spread = signal.std(axis=0)
    result: np.ndarray = strength * (signal - signal.mean(axis=0)) / np.where(spread > 0, spread, 1.0) + np.sqrt(1 - strength**2) * noise
    return result


def _row_noise(attribute: Attribute, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Noise [n, columns] that makes planted labels of one unit as alike as the real ones: their null then has the same width."""
    alike = float(np.clip(likeness(attribute), 0, 1))
    if attribute.kind == "classes":
        alike = float(np.sin(np.pi / 2 * alike))  # correlation of normals whose signs correlate so (Sheppard 1899)
    shared = generator.normal(size=(attribute.num_units, columns))[attribute.unit_index]
    result: np.ndarray = np.sqrt(alike) * shared + np.sqrt(1 - alike) * generator.normal(size=shared.shape)
    return result


def likeness(attribute: Attribute) -> float:
    """Mean correlation of two rows of one unit (pairwise intraclass correlation, Fisher 1925); 0 without units of several rows.

    Where units of many rows lie far from the middle it may pass 1.
    """
    values = attribute.values
    coded = values[:, None] == np.arange(len(attribute.classes)) if attribute.kind == "classes" else values[:, None]
    z = coded - coded.mean(axis=0)
    sizes = np.bincount(attribute.unit_index)
    pairs = float((sizes * (sizes - 1)).sum())
    sums = np.stack([np.bincount(attribute.unit_index, column) for column in z.T], axis=1)
    variance = float(np.square(z).sum()) / len(z)
    return 0.0 if pairs == 0 or variance == 0 else float(np.square(sums).sum() - np.square(z).sum()) / pairs / variance


def _cut(latent: np.ndarray, attribute: Attribute) -> np.ndarray:
    """Latent values [U or n, 1 or C] as the attribute's values, with its class shares."""
    if attribute.kind == "number":
        return latent[:, 0]
    shares = np.bincount(attribute.values, minlength=len(attribute.classes)) / len(attribute.values)
    if latent.shape[1] == 1:
        ranks = latent[:, 0].argsort().argsort()
        minor = int(np.clip(round(shares[1] * len(latent)), 1, len(latent) - 1))
        return (ranks >= len(latent) - minor).astype(np.int64)
    shift = np.zeros(len(shares))
    for _ in range(50):  # fixed point: raise classes that come out too rarely
        got = np.bincount((latent + shift).argmax(axis=1), minlength=len(shares)) / len(latent)
        if np.abs(got - shares).max() < _CLOSE:
            break
        shift += 0.5 * (np.log(shares + 1e-3) - np.log(got + 1e-3))
    result: np.ndarray = (latent + shift).argmax(axis=1)
    return result


def _plausible(alarm_rate: float, runs: int) -> bool:
    return bool(binom.sf(round(alarm_rate * runs) - 1, runs, _FALSE_ALARM_LEVEL) >= _FALSE_ALARM_BOUND)
