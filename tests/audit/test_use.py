"""Erasure is what its authors published, and use is shown where it was planted and only there."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dinodomain.audit import Policy
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.erasure import fit_eraser
from dinodomain.audit.protocol.experiments import joint, slope_of
from dinodomain.audit.protocol.reliance import NULLS, _odds, closings, erase, left_over, smallest_cells
from dinodomain.audit.protocol.task import read_column
from dinodomain.audit.protocol.verdict import Thresholds
from dinodomain.probes.scores import unit_weights


@pytest.fixture(scope="module")
def concept():
    generator = np.random.default_rng(0)
    z = np.eye(3)[generator.integers(0, 3, 500)]
    return generator.normal(size=(500, 12)) @ generator.normal(size=(12, 12)) + z @ generator.normal(size=(3, 12)), z


def test_erasure_equals_the_closed_form_of_its_paper(concept):
    torch = pytest.importorskip("torch")
    erasure = pytest.importorskip("concept_erasure")
    x, z = concept
    theirs = erasure.LeaceFitter.fit(torch.from_numpy(x), torch.from_numpy(z), shrinkage=False, constrain_cov_trace=False, svd_tol=1e-6)
    # they divide by n - 1: no matter, the projection is free of scale
    np.testing.assert_allclose(fit_eraser(x, z, shrink=False)(x), theirs.eraser(torch.from_numpy(x)).numpy(), atol=1e-8)


@pytest.mark.parametrize("shrink", [False, True])
def test_after_erasure_no_linear_probe_reads_the_concept_and_the_mean_stays(concept, shrink):
    x, z = concept
    clean = fit_eraser(x, z, shrink=shrink)(x)
    np.testing.assert_allclose((clean - clean.mean(axis=0)).T @ (z - z.mean(axis=0)), 0, atol=1e-8)
    np.testing.assert_allclose(clean.mean(axis=0), x.mean(axis=0), atol=1e-10)
    assert np.linalg.matrix_rank(x - clean) == 2
    plain, erased = (LogisticRegression(max_iter=500).fit(rows, z.argmax(axis=1)).score(rows, z.argmax(axis=1)) for rows in (x, clean))
    assert plain > erased
    assert erased < z.mean(axis=0).max() + 0.02


def test_an_erased_constant_changes_nothing():
    x = np.random.default_rng(1).normal(size=(50, 4))
    np.testing.assert_allclose(fit_eraser(x, np.ones((50, 1)))(x), x, atol=1e-9)


def test_the_gap_is_the_average_odds_difference_by_hand():
    inside = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    truth = np.array([[1, 1, 0, 0, 1, 1, 0, 0]])
    called = np.array([[1, 1, 1, 0, 1, 0, 0, 0]])
    assert _odds(called, inside, truth)[0] == pytest.approx(0.5 * ((1.0 - 0.5) + (0.5 - 0.0)))


def planted(make_set, *, uses, count=900, seed=0, noise=3.0):
    """A finding from content that is hard to see and, where ``uses``, from sex, which the features show plainly."""
    generator = np.random.default_rng(seed)
    sex, content = np.arange(count) % 2, generator.normal(size=count)
    truth = (content + (1.4 if uses else 0.0) * (sex - 0.5) + 0.3 * generator.normal(size=count) > 0).astype(int)
    features = generator.normal(size=(count, 6))
    features[:, 0] = content + noise * features[:, 0]
    features[:, 1] += 2.0 * sex
    columns = {"sex": np.array(["F", "M"])[sex], "finding": truth.astype(str), "age": 50 + 10 * sex + generator.normal(size=count)}
    return make_set(
        features={"audited": features}, units=np.arange(count).astype(str), content_hash=None, sources=np.arange(count), columns=columns,
        split=None,
    )  # fmt: skip


def test_a_finding_made_of_content_and_attribute_is_shown_to_use_it(make_set, found):
    (finding,) = found(planted(make_set, uses=True), "use", attributes=("sex",), task="finding")
    assert (finding.verdict, finding.used, finding.encoded) == ("FLAG", "shown", True)
    assert "erasing sex closes" in finding.answer
    (gap,) = finding.evidence["gaps"]
    assert gap["before"] > 0.3
    assert abs(gap["after"]) < gap["before"] / 2
    assert finding.evidence["task_auroc"][1] < finding.evidence["task_auroc"][0]
    assert [plot.kind for plot in finding.plots] == ["forest", "curves"]
    assert finding.evidence["slope"]["tested"] is False


def test_where_sex_is_plain_but_unrelated_only_the_offered_shortcut_speaks(make_set, found):
    (finding,) = found(planted(make_set, uses=False), "use", attributes=("sex",), task="finding")
    assert finding.used == "not_shown"
    assert finding.encoded is True
    assert finding.evidence["injection"]["drop"][1] > Thresholds().injected_flag
    assert finding.verdict == "FLAG"
    assert "It would be, where offered" in finding.answer


def test_encoded_and_not_used_is_a_full_answer(make_set, found):
    generator = np.random.default_rng(3)
    sex, truth = np.arange(1600) % 2, (np.arange(1600) // 2) % 2
    features = generator.normal(size=(1600, 4))
    features[:, 0] += 4.0 * truth
    features[:, 1] += 0.8 * sex
    columns = {"sex": np.array(["F", "M"])[sex], "finding": truth.astype(str)}
    data = make_set(
        features={"audited": features}, units=np.arange(1600).astype(str), content_hash=None, sources=np.arange(1600), columns=columns,
        split=None,
    )  # fmt: skip
    (finding,) = found(data, "use", attributes=("sex",), task="finding", policy=Policy(thresholds=Thresholds(injected_flag=0.2)))
    assert (finding.verdict, finding.used, finding.encoded) == ("CLEAR_WITHIN_LIMITS", "not_shown", True)
    assert finding.answer.startswith("Encoded, use not shown")
    assert finding.evidence["after_erasure"][1] < 0.6 < finding.evidence["encoding"][1]


def test_false_alarms_of_closing_gaps_keep_the_level(make_set):
    """Twelve findings without the attribute: more than two p values below .05 have a chance of 2 %."""
    alarms = 0
    for seed in range(12):
        data = planted(make_set, uses=False, count=400, seed=seed, noise=2.0)
        task, groups = joint(data, read_column(data, "finding"), "sex")
        weights = list(unit_weights(task.unit_index, 50, 0))
        folds = task.unit_index % 5
        (gap,) = closings(erase(data.audited, task, groups, folds, 0, nulls=60), task, groups, folds, weights, 50)
        alarms += gap.p <= 0.05
    assert alarms <= 2


def test_null_labels_keep_units_whole():
    units = np.repeat(np.arange(60), 2)
    task, groups = (read_attribute(name, values[units], units) for name, values in (("t", np.arange(60) % 2), ("g", np.arange(60) // 30)))
    found = erase(np.random.default_rng(0).normal(size=(120, 5)), task, groups, units % 3, 0)
    assert found.null_truth.shape == (NULLS, 120)
    np.testing.assert_array_equal(found.null_truth[:, ::2], found.null_truth[:, 1::2])


def test_a_slope_needs_five_fine_tuned_versions(make_set):
    data = planted(make_set, uses=True, count=300)
    generator = np.random.default_rng(4)
    versions = {f"finetuned_{i}": data.audited + i * generator.normal(size=data.audited.shape) for i in range(5)}
    more = make_set(
        features=dict(data.features) | versions, units=data.units, content_hash=None, sources=data.sources, columns=data.columns
    )
    task, groups = joint(more, read_column(more, "finding"), "sex")
    slope = slope_of(more, task, groups, task.unit_index % 5)
    assert slope["tested"] is True
    assert slope["slope"] > 0
    assert slope_of(data, task, groups, task.unit_index % 5)["why"] == "0 of 5 fine-tuned versions were given"


def test_it_says_why_it_cannot_tell(make_set, found):
    data = planted(make_set, uses=True, count=60)
    code = lambda **asked: found(data, "use", **asked)[0].reason_code  # noqa: E731
    assert code(attributes=("sex",)) == "no_task"
    assert code(task="finding") == "no_attribute"
    assert code(task="age", attributes=("sex",)) == "task_kind"
    assert code(task="finding", attributes=("finding",)) == "is_task"
    assert code(task="finding", attributes=("sex",)) == "n_units"


def test_what_one_half_leaves_over_is_not_summed_with_what_the_other_takes_away():
    """One linear shift in 300 units: each half of the training units by itself leaves little of it (measured .6)."""
    generator = np.random.default_rng(0)
    sex = np.repeat(["F", "M"], 150)
    rows = generator.normal(size=(300, 16))
    rows[sex == "M", 0] += 1.5
    data = AuditSet(
        features={"audited": rows}, units=np.arange(300).astype(str), content_hash=None, sources=np.arange(300),
        columns={"sex": sex, "task": np.where(generator.random(300) > 0.5, "yes", "no")},
    )  # fmt: skip
    task, groups = joint(data, read_column(data, "task"), "sex")
    folds = np.arange(300) % 5
    found = erase(rows, task, groups, folds, 0, nulls=3)
    left = left_over(found, groups, 0.02, list(unit_weights(task.unit_index, 30, 0)))
    assert found.left.shape == (2, 300, 2)
    assert left.value < 0.68  # their sum reads it with .8


def test_groups_that_are_too_small_to_test_leave_it_open():
    task = SimpleNamespace(values=np.array([0, 1] * 60), unit_index=np.arange(120))
    groups = SimpleNamespace(classes=("a", "b", "c"), values=np.repeat([0, 1, 2], [60, 50, 10]))
    assert smallest_cells(task, groups) == {"a": 30, "b": 25, "c": 5}
