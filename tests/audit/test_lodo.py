"""Unseen domains: planted inversions, clean pseudo-domains, matched numbers of units, and the exact association in training."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.audit import AuditSet
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.shift import drawn, mix_curve
from dinodomain.audit.protocol.task import cramers_v, mean_interval
from dinodomain.audit.protocol.unseen import alike


def made(*, domains=4, inverted=(), per_domain=120, seed=0, shortcut=0.0):
    generator = np.random.default_rng(seed)
    count = domains * per_domain
    y, place = np.tile([0, 1], count // 2), np.repeat(np.arange(domains), per_domain)
    rows = generator.normal(size=(count, 8))
    rows[:, :3] += 1.2 * np.where(np.isin(place, inverted), 1 - y, y)[:, None]
    rows[:, 7] += shortcut * (place % 2)
    columns = {"scanner": np.array([f"s{at}" for at in place]), "finding": np.array(["no", "yes"])[y]}
    return AuditSet(
        features={"audited": rows}, units=np.arange(count).astype(str), content_hash=None, sources=np.arange(count), columns=columns
    )


def test_a_domain_with_inverted_contrast_is_flagged_and_named(found):
    (finding,) = found(made(inverted=(3,)), "lodo", domains=("scanner",), task="finding")
    assert finding.verdict == "FLAG"
    assert "s3" in finding.action
    drop = {row[0]: row[6] for row in finding.tables[0].rows}
    assert drop["s3"] > 0.5
    assert max(value for name, value in drop.items() if name != "s3") < 0.2


def test_pseudo_domains_lose_nothing(found):
    (finding,) = found(made(), "lodo", domains=("scanner",), task="finding")
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert finding.estimate.low < 0.02 < finding.estimate.high + 0.02
    assert all(row[1] == 120 and row[2] <= 100 for row in finding.tables[0].rows)


def test_fewer_than_four_domains_give_numbers_and_no_verdict(found):
    (finding,) = found(made(domains=3), "lodo", domains=("scanner",), task="finding")
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "generalisation")
    assert len(finding.tables[0].rows) == 3
    assert found(made(domains=3, inverted=(2,)), "lodo", domains=("scanner",), task="finding")[0].verdict == "FLAG"


def test_what_is_missing_is_said(found):
    assert found(made(domains=2, per_domain=50), "lodo", domains=("scanner",), task="finding")[0].reason_code == "confounded"
    assert found(made(), "lodo", domains=("scanner",))[0].reason_code == "no_task"
    assert found(made(), "lodo", task="finding")[0].reason_code == "no_domain"


def test_a_class_that_one_domain_alone_holds_is_left_out_and_named(found):
    data = made(domains=3)
    labels = data.columns["finding"].astype(object)
    labels[:60] = "third"
    data.columns["finding"] = labels
    (finding,) = found(data, "lodo", domains=("scanner",), task="finding")
    assert finding.reason_code == "generalisation"
    assert "third" in finding.limits[-1]


def test_both_probes_are_fitted_on_as_many_units_of_each_class_and_never_on_a_unit_seen_in_the_domain():
    y, units = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1, 1]), np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    target = read_attribute("y", y, units)
    first, second = alike(target, np.arange(5), np.arange(5, 10), np.random.default_rng(0))
    assert [sorted(target.values[side].tolist()) for side in (first, second)] == [[0, 1, 1], [0, 1, 1]]


def test_the_mean_drop_has_students_interval():
    at = mean_interval(np.array([0.1, 0.2, 0.3, 0.4]))  # sd .1291, se .06455, t(3) 3.1824
    assert (at.value, at.low, at.high) == pytest.approx((0.25, 0.25 - 0.20544, 0.25 + 0.20544), abs=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_training_has_the_stated_association_and_the_same_size(strength, flip):
    cells = np.repeat(np.arange(4), [80, 120, 160, 80])
    rows = drawn(cells, np.arange(len(cells)), strength, flip, np.random.default_rng(0))
    assert len(rows) == 160
    assert cramers_v(cells[rows] // 2, cells[rows] % 2, rows) == pytest.approx(strength, abs=1e-9)
    assert np.bincount(cells[rows] // 2).tolist() == [80, 80]


def test_the_score_falls_where_features_tell_the_domain_and_holds_where_they_do_not():
    effort = Effort(bootstraps=100)
    shifted, plain = (made(domains=2, per_domain=300, shortcut=one) for one in (6.0, 0.0))
    curves = []
    for data in (shifted, plain):
        target = read_attribute("finding", data.columns["finding"], data.units)
        curves.append(mix_curve(data.audited, target, data.columns["scanner"], effort))
    assert curves[0].drop.low > 0.02
    assert abs(curves[1].drop.value) < 0.03
    assert curves[0].scores[0] > curves[0].scores[-1] + 0.1
