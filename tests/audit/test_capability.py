"""Label costs: hand-made curves give hand-made ratios; a planted attribute saves labels; a risk without a proxy stays open."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.audit import AuditSet, Policy
from dinodomain.audit.checks.capability import risk_of, weigh
from dinodomain.audit.checks.declaration import completed
from dinodomain.audit.evidence import Asked, Evidence
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.shots import Curve, Saving, as_classes, curves, labels_needed, saving, sizes_for
from dinodomain.audit.protocol.verdict import Thresholds
from dinodomain.probes.scores import Interval


def curve(*scores: float, sizes=(1, 10, 100)) -> Curve:
    return Curve(sizes=sizes, scores=np.tile(scores, (4, 1)))


def test_labels_are_counted_on_a_logarithmic_axis():
    assert labels_needed((1, 10, 100), np.array([0.5, 0.6, 0.8]), 0.7) == pytest.approx(10**1.5)
    assert labels_needed((1, 10, 100), np.array([0.7, 0.6, 0.8]), 0.7) == 1
    assert labels_needed((1, 10, 100), np.array([0.5, 0.6, 0.65]), 0.7) == 100
    assert labels_needed((1, 10, 100), np.array([0.5, 0.8, 0.7]), 0.8) == pytest.approx(10)  # a dip costs no labels


def test_a_ratio_of_curves_by_hand():
    found = saving(curve(0.7, 0.8, 0.9), curve(0.5, 0.6, 0.7), seed=0)
    assert found is not None
    assert found.score == pytest.approx(0.7)
    assert found.ratio.value == found.ratio.low == found.ratio.high == pytest.approx(100)
    assert not found.bound


def test_an_encoder_that_stays_near_chance_gives_a_bound_and_two_give_nothing():
    found = saving(curve(0.6, 0.8, 0.9), curve(0.5, 0.5, 0.5), seed=0)
    assert found is not None
    assert found.bound
    assert found.ratio.value == pytest.approx(100)
    assert saving(curve(0.5, 0.55, 0.59), curve(0.5, 0.5, 0.5), seed=0) is None


def test_curves_rise_with_a_planted_attribute_and_stay_at_chance_without():
    generator = np.random.default_rng(0)
    labels, units = np.repeat(np.arange(100) % 2, 2), np.repeat(np.arange(100), 2).astype(str)
    noise = generator.normal(size=(200, 10))
    column = read_attribute("x", labels, units)
    found = curves({"audited": noise + 3 * labels[:, None], "untrained": generator.normal(size=(200, 10))}, column, seed=0, draws=6)
    assert found["audited"].sizes == (1, 5, 10)
    assert found["audited"].mean[-1] > 0.95
    assert np.all(np.abs(found["untrained"].mean - 0.5) < 0.1)
    again = curves({"audited": noise + 3 * labels[:, None]}, column, seed=0, draws=6)
    assert np.array_equal(again["audited"].scores, found["audited"].scores)


def test_numbers_are_cut_at_their_median_and_sizes_need_twice_the_units():
    column = as_classes(read_attribute("age", np.linspace(20, 80, 60), np.arange(60).astype(str)))
    assert column.classes == ("lower half", "upper half")
    assert np.bincount(column.values).tolist() == [30, 30]
    assert column.num_minor == 30
    assert sizes_for(column) == (1, 5, 10)


@pytest.mark.parametrize(
    ("low", "high", "prohibited", "verdict"),
    [(11, 20, True, "FLAG"), (11, 20, False, "WARN"), (3, 20, True, "WARN"), (0.8, 1.5, False, "CLEAR_WITHIN_LIMITS"),
     (1, 5, False, "NOT_ASSESSABLE")],
)  # fmt: skip
def test_verdicts_follow_the_interval_and_the_declaration(low, high, prohibited, verdict):
    gained = Saving(ratio=Interval(value=(low + high) / 2, low=low, high=high), score=0.7, bound=False)
    assert weigh(gained, Thresholds(), prohibited=prohibited)[0] == verdict


@pytest.mark.parametrize(("name", "risk"), [("sex", "R2"), ("patient_age", "R2"), ("finding", ""), ("ship", "R3"), ("stage", "")])
def test_columns_bear_on_the_risk_that_the_policy_names(make_set, name, risk):
    data = make_set(num_units=20)
    policy = Policy(risks={"ship": "R3"})
    assert risk_of(Evidence(data=data, probed=data, asked=Asked(), policy=policy, effort=Effort()), name) == risk


@pytest.fixture(scope="module")
def findings(make_set, quick):
    """Findings on a set whose audited features show sex at once, with a declaration that prohibits R2."""
    from dinodomain.audit import run_checks

    data = make_set(num_units=260)
    sex = (data.columns["sex"] == "F").astype(float)
    shown = data.features["untrained"] + 8 * sex[:, None] * (np.arange(24) < 4)
    data = AuditSet(
        features={"audited": shown, "untrained": data.features["untrained"], "generic": shown}, units=data.units, content_hash=None,
        sources=data.sources, columns=data.columns,
    )  # fmt: skip
    asked = Asked(attributes=("sex", "site"), declaration=completed().model_dump(mode="json"))
    return {item.id: item for item in run_checks(data, asked=asked, effort=quick, names=("capability",)).report.findings}


def test_a_cheap_reading_of_a_prohibited_attribute_is_flagged(findings):
    sex = findings["capability/sex"]
    assert sex.verdict == "FLAG"
    assert sex.estimate.low > 10
    assert sex.evidence["risk"] == "R2"
    assert [row[0] for row in sex.tables[0].rows] == ["audited", "untrained", "generic"]
    assert sex.tables[0].rows[2][-1].startswith("1 [")  # the generic encoder here is the audited one


def test_a_risk_without_a_proxy_stays_open_and_other_columns_are_printed(findings):
    for risk in ("R1", "R3", "R4"):
        assert findings[f"capability/{risk}"].reason_code == "no_proxy"
    assert "capability/R2" not in findings
    assert findings["capability/other"].verdict == "NOT_APPLICABLE"


def test_too_few_units_give_no_ratio(found, make_set):
    by_id = {item.id: item for item in found(make_set(num_units=30), "capability", attributes=("sex", "age"))}
    assert by_id["capability/sex"].reason_code == by_id["capability/age"].reason_code == "n_units"
    assert by_id["capability/R2"].verdict == "NOT_ASSESSABLE"


def test_without_an_untrained_encoder_nothing_is_said(found, make_set):
    data = make_set(num_units=60)
    alone = make_set(num_units=60, features={"audited": data.audited})
    (finding,) = found(alone, "capability", attributes=("sex",))
    assert finding.reason_code == "needs_encoder"
