"""Slices: planted corners are found and confirmed on other units, errors at random are not, ratios by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.audit import AuditSet
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.slicing import Slice, detectable, enrichment, measure, search, split
from dinodomain.audit.protocol.verdict import holm


def made(num_units=1600, *, poor=0.45, base=0.1, seed=0):
    """A task that the features tell but where ``corner`` is true, there labels are often wrong."""
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(num_units, 8)), np.arange(num_units) % 2
    corner = (x[:, 5] > 1.0) if poor is not None else np.zeros(num_units, bool)
    wrong = generator.random(num_units) < np.where(corner, poor or 0.0, base)
    x[:, 0] += 8.0 * y
    columns = {"finding": np.where(wrong, 1 - y, y), "scanner": np.where(corner & (generator.random(num_units) < 0.9), "old", "new")}
    return AuditSet(
        features={"audited": x}, units=np.arange(num_units).astype(str), content_hash=None, sources=np.arange(num_units), columns=columns
    ), corner  # fmt: skip


def halves_of(wrong, seed=0, draws=200):
    return split(read_attribute("y", wrong.astype(int), np.arange(len(wrong))), wrong, draws, seed)


def test_a_planted_slice_is_flagged_and_described(found):
    (finding,) = found(made()[0], "slices", task="finding", strata=("scanner",))
    assert finding.verdict == "FLAG"
    assert finding.estimate.low > 2
    assert "scanner old" in finding.answer or "scanner old" in str(finding.evidence["confirmed"])


def test_a_planted_slice_is_found_without_metadata(found):
    (finding,) = found(made(poor=0.6)[0], "slices", task="finding")
    assert finding.verdict in ("FLAG", "WARN")
    assert "cluster" in finding.answer


def test_equal_errors_confirm_nothing(found):
    (finding,) = found(made(poor=None)[0], "slices", task="finding", strata=("scanner",))
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")


def test_random_errors_are_confirmed_in_few_runs():
    x, alarms = np.random.default_rng(1).normal(size=(500, 6)), 0
    for seed in range(30):
        wrong = np.random.default_rng(seed).random(500) < 0.2
        halves = halves_of(wrong, seed, 60)
        p = [measure(one, halves, halves.first).p for one in search(x, {}, halves, seed)]
        alarms += bool(p) and min(holm(p)) <= 0.05
    assert alarms <= 4  # P(more) < .02 at 5 %


def test_what_is_missing_is_said(found):
    assert found(made(150)[0], "slices", task="finding")[0].reason_code == "n_units"
    assert found(made(400)[0], "slices")[0].reason_code == "no_task"


def test_the_ratio_by_hand():
    wrong = np.r_[np.repeat([True, False], [20, 30]), np.repeat([True, False], [15, 135])]
    halves = halves_of(wrong, draws=4000)
    ratio = measure(Slice(name="first", rows=np.arange(200) < 50), halves, np.zeros(200, bool))
    assert (ratio.inside, ratio.outside, ratio.units) == (0.4, 0.1, 50)
    assert ratio.value == pytest.approx((20.5 / 50.5) / (15.5 / 150.5))
    assert ratio.error == pytest.approx(np.sqrt(1 / 20.5 - 1 / 50.5 + 1 / 15.5 - 1 / 150.5), rel=0.12)


def test_the_detectable_ratio_falls_with_units_and_enrichment_names_what_is_frequent():
    few, many = (detectable(halves_of(np.arange(count) % 5 == 0), 0.005) for count in (1000, 8000))
    assert 1.3 < many < few
    rows = np.arange(100) < 20
    assert enrichment(Slice(name="s", rows=rows), {"site": np.where(rows, "A", "B")}) == "site A (100%, elsewhere 0%)"
