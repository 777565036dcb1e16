"""Bits to tell labels: none to gain from noise, few from features that tell them at once, and the sum by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dinodomain.audit.protocol import codelength as room
from dinodomain.audit.protocol.codelength import codelength


@pytest.fixture
def world():
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(400) % 2)
    noise = generator.normal(size=(400, 6))
    return y, noise, np.arange(400)


def test_noise_tells_nothing_and_a_plain_sign_nearly_all(world):
    y, noise, units = world
    shown = noise + 4.0 * y[:, None] * (np.arange(6) < 2)
    assert codelength(noise, y, units, 2, 0) == pytest.approx(1.0, abs=0.05)
    assert codelength(shown, y, units, 2, 0) < 0.3


def test_what_is_learned_from_fewer_labels_is_told_in_fewer_bits(world):
    y, noise, units = world
    plain = noise[:, :2] + 2.0 * y[:, None]
    # The same sign, spread thin among many directions: a probe of all rows reads both.
    generator = np.random.default_rng(1)
    hidden = np.concatenate([plain, 6 * generator.normal(size=(400, 120))], axis=1)
    assert codelength(plain, y, units, 2, 0) + 0.2 < codelength(hidden, y, units, 2, 0)


def test_the_code_is_that_of_growing_blocks_of_whole_units(world, monkeypatch):
    y, noise, _ = world
    units = np.repeat(np.arange(200), 2)
    monkeypatch.setattr(room, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(room, "STRENGTHS", (0.01,))
    place = np.random.default_rng([3, 0xC0DE]).permutation(200)[units]
    first = place < 100
    scale = StandardScaler().fit(noise[first])
    model = LogisticRegression(C=0.01, max_iter=200, tol=1e-3).fit(scale.transform(noise[first]), y[first])
    told = 0.99 * model.predict_proba(scale.transform(noise[~first])) + 0.005
    bits = first.sum() - np.log2(told[np.arange(200), y[~first]]).sum()
    assert codelength(noise, y, units, 2, 3) == pytest.approx(bits / 400)


def test_a_class_that_came_late_costs_much_and_not_without_end():
    y = np.r_[np.zeros(50, int), np.ones(50, int), np.full(3, 2)]
    found = codelength(np.random.default_rng(0).normal(size=(103, 3)), y, np.arange(103), 3, 0)
    assert 0.8 < found < np.log2(3) + 0.3
