"""Many looks as one test: level over all of them, order, and what a correction over others makes of each."""

from __future__ import annotations

import numpy as np

from dinodomain.audit.protocol.joint import carried, joint_p, standing


def test_the_smallest_of_many_looks_at_nothing_keeps_the_level():
    """1,000 worlds of 196 looks that differ in how far chance takes them: p at most .05 in 5 %, 99 % of such counts below 6.7 %."""
    generator = np.random.default_rng(0)
    scales = np.linspace(0.5, 3.0, 196)
    found = []
    for _ in range(1000):
        looks = generator.normal(size=(200, 196)) * scales
        found.append(joint_p(looks[0], looks[1:]).min())
    assert 0.033 <= np.mean(np.array(found) <= 0.05) <= 0.067


def test_one_look_alone_has_its_plain_p_value():
    null = np.arange(99.0)[:, None]
    assert joint_p(np.array([97.0]), null)[0] == 3 / 100
    assert joint_p(np.array([-1.0]), null)[0] == 1.0


def test_without_any_value_nothing_stands_out():
    assert joint_p(np.array([np.nan]), np.full((99, 1), np.nan))[0] == 1.0


def test_a_look_without_a_value_takes_no_part():
    generator = np.random.default_rng(1)
    null = generator.normal(size=(99, 3))
    null[:, 1] = np.nan
    value = np.array([5.0, np.nan, 0.1])
    found = joint_p(value, null)
    assert found[0] == 0.01
    assert found[1] == 1.0
    np.testing.assert_array_equal(found[[0, 2]], joint_p(value[[0, 2]], null[:, [0, 2]]))
    assert np.isnan(standing(np.vstack([value, null]))[0, 1])


def test_the_others_are_corrected_over_the_question_and_never_below_the_smallest():
    assert carried((0.02, 0.01, 0.4), 0.03, 3) == (0.06, 0.03, 1.0)
    assert carried((0.02, 0.045), 0.02, 2) == (0.02, 0.09)  # Holm leaves the last of a question as it is, not its other looks
    assert carried((0.011, 0.01), 0.5, 3) == (0.5, 0.5)
