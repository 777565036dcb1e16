"""Out of scope: another kind of image is noticed, a look-alike is not and warns, controls hold, the policy is read strictly."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dinodomain.audit import AuditSet, Policy
from dinodomain.audit.checks import outlier
from dinodomain.audit.protocol.leak import Effort
from dinodomain.errors import UserError

POLICY = Policy(out_of_scope={"organ": ("brain",)})


def made(*, shift=0.0, num_units=400, brains=100, failing=True, seed=0):
    """Chests, and brains whose features lie ``shift`` away; on brains the task is told wrongly if ``failing``."""
    generator = np.random.default_rng(seed)
    brain, y = np.arange(num_units) < brains, generator.integers(0, 2, num_units)
    rows = generator.normal(size=(num_units, 6)) @ np.random.default_rng(9).normal(size=(6, 16))
    rows[:, 0] += 12.0 * np.where(brain & failing, 1 - y, y)
    rows[:, 8:] += shift * brain[:, None] * generator.normal(size=(num_units, 8))
    columns = {"organ": np.where(brain, "brain", "chest"), "finding": np.array(["no", "yes"])[y]}
    units = np.arange(num_units).astype(str)
    return AuditSet(features={"audited": rows}, units=units, content_hash=None, sources=np.arange(num_units), columns=columns)


def test_images_of_another_kind_are_noticed_and_errors_rise_with_the_alarm(found):
    (finding,) = found(made(shift=8.0), "outlier", task="finding", policy=POLICY)
    assert finding.verdict == "CLEAR_WITHIN_LIMITS"
    assert finding.estimate.low > 0.9
    assert finding.tables[0].rows[0][8] > 0
    assert (finding.self_test.positive, finding.self_test.negative) == ("pass", "pass")


def test_a_look_alike_warns(found):
    (finding,) = found(made(), "outlier", task="finding", policy=POLICY)
    assert finding.verdict == "WARN"
    assert finding.estimate.high < 0.8
    assert "brain stay below" in finding.reason


def test_errors_that_do_not_rise_with_the_alarm_warn_as_silent_failure(found):
    (finding,) = found(made(shift=8.0, failing=False), "outlier", task="finding", policy=POLICY)
    assert finding.verdict == "WARN"
    assert "not shown to rise" in finding.reason


def test_what_is_missing_is_said(found):
    assert found(made(shift=8.0), "outlier", policy=POLICY)[0].reason_code == "no_task"
    assert found(made(shift=8.0), "outlier", task="finding")[0].reason_code == "no_scope"
    (few,) = found(made(shift=8.0, brains=20), "outlier", task="finding", policy=POLICY)
    assert (few.verdict, few.reason_code, few.estimate) == ("NOT_ASSESSABLE", "n_units", None)


def test_a_column_that_is_not_there_is_an_error_that_lists_what_is(found):
    with pytest.raises(UserError, match=r"policy.out_of_scope: no column 'organs'; allowed: finding, organ"):
        found(made(), "outlier", policy=Policy(out_of_scope={"organs": ("brain",)}))


def test_distances_are_those_of_numpy():
    generator = np.random.default_rng(4)
    train, rows = generator.normal(size=(3000, 3)), generator.normal(size=(5, 3))
    (found,) = outlier.distances(train, rows)
    each = np.sort(np.linalg.norm(rows[:, None] - train, axis=2), axis=1)
    assert found["nearest neighbours"] == pytest.approx(each[:, outlier.NEIGHBOURS - 1])
    centred = rows - train.mean(axis=0)
    plain = np.sqrt(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(np.cov(train.T, bias=True)), centred))
    assert found["mahalanobis"] == pytest.approx(plain, rel=0.03)


def test_the_alarm_is_scored_like_scikit_learn_and_controls_notice_units_that_differ():
    data = made(shift=3.0)
    units, inside = np.arange(400), np.arange(400) >= 100
    fitted = outlier._half(units, inside, 0)
    alarms = outlier.raise_alarms(data.audited, units, inside, fitted, Effort(bootstraps=100))
    errors = outlier._errors(data, "finding", fitted)
    found = outlier._monitor(alarms, errors, units, inside & ~fitted, ~inside, "brain", Effort(bootstraps=100))
    rows = ~fitted
    assert found.told.value == pytest.approx(max(roc_auc_score(~inside[rows], scores[rows]) for scores in alarms.scores.values()))
    assert alarms.noise > outlier.NOISE_FOUND
    assert all(abs(value - 0.5) < 0.2 for value, _ in alarms.held.values())
    assert outlier.Alarms(scores={}, noise=0.5, held={"a": (0.9, 0.05)}).control.failed
