"""Two encoders on the same rows: a planted difference is found, none between equals; trade-offs are no wins; the margin is honoured."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.audit import Asked, AuditSet, Policy
from dinodomain.audit.checks.difference import ABOUT, judge, made_up
from dinodomain.audit.compare import Difference, differences
from dinodomain.audit.evidence import Evidence
from dinodomain.audit.protocol.leak import Effort
from dinodomain.probes.scores import Interval


def difference(kind, value, half, name="x", **keys) -> Difference:
    return Difference(
        name=name, kind=kind, ours=0.7, other=0.7 - value, change=Interval(value=value, low=value - half, high=value + half), **keys
    )


def judged(*found: Difference):
    return judge(found, [item.p for item in found if not item.why_not], "previous", ABOUT, Policy())


def test_more_is_better_for_a_task_and_worse_for_a_leak():
    task, leak = difference("task", 0.1, 0.02), difference("leak", 0.1, 0.02)
    assert task.word(0.01, 0.05) == "better"
    assert leak.word(0.01, 0.05) == "worse"
    assert leak.word(0.2, 0.05) == "no difference shown"
    assert difference("leak", 0.1, 0.02, why_not="few").word(0.01, 0.05) == "not comparable"
    assert (task.harm.low, task.harm.high) == pytest.approx((-0.12, -0.08))


def test_a_p_value_by_hand():
    assert difference("task", 0.0196, 0.0196).p == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        ((difference("task", -0.1, 0.02),), "FLAG", "Yes: worse"),
        ((difference("leak", 0.03, 0.02),), "WARN", "Yes: worse"),
        ((difference("task", 0.0, 0.01), difference("leak", -0.1, 0.02)), "CLEAR_WITHIN_LIMITS", "better in x"),
        ((difference("task", 0.0, 0.05),), "NOT_ASSESSABLE", "Undecided"),
        ((difference("task", -0.1, 0.02), difference("leak", -0.2, 0.02)), "FLAG", "A trade-off, not a gain"),
    ],
)
def test_verdicts(found, verdict, words):
    finding = judged(*found)
    assert finding.verdict == verdict
    assert words in finding.answer


def test_what_cannot_be_compared_is_never_clear():
    finding = judged(difference("task", 0.0, 0.01), difference("leak", 0.0, 0.01, name="rare", why_not="3 units in the smaller class"))
    assert finding.verdict == "NOT_ASSESSABLE"
    assert "rare" in finding.reason
    assert "not comparable: 3 units" in finding.tables[0].rows[1][-2]


def test_a_planted_leak_of_one_encoder_is_found_and_equals_are_not():
    (planted,), (clean,) = (differences(made_up(worse=worse), "previous") for worse in (True, False))
    assert planted.change.low > 0.1
    assert clean.change.low < 0 < clean.change.high


def test_the_same_features_differ_by_nothing():
    made = made_up(worse=True)
    same = {"audited": made.data.audited, "previous": made.data.audited}
    data = AuditSet(features=same, units=made.data.units, content_hash=None, sources=made.data.sources, columns=made.data.columns)
    (found,) = differences(Evidence(data=data, probed=data, asked=made.asked, policy=made.policy, effort=made.effort), "previous")
    assert (found.change.value, found.change.low, found.change.high) == (0, 0, 0)


def with_gap(*, worse: bool) -> Evidence:
    """A task that the audited encoder shows poorly for one group, or both encoders equally well for all."""
    generator = np.random.default_rng(4)
    truth, group = np.tile([0, 1], 200), np.repeat([0, 1], 200)
    base = generator.normal(size=(400, 8))
    other = base + 2.0 * truth[:, None] * (np.arange(8) < 2)
    ours = base + 2.0 * (truth * (1 - group * worse))[:, None] * (np.arange(8) < 2)
    data = AuditSet(
        features={"audited": ours, "previous": other + 0.01 * generator.normal(size=other.shape)}, units=np.arange(400).astype(str),
        content_hash=None, sources=np.arange(400), columns={"truth": truth, "group": np.where(group, "b", "a")},
    )  # fmt: skip
    asked = Asked(task="truth", attributes=("group",))
    return Evidence(data=data, probed=data, asked=asked, policy=Policy(), effort=Effort(permutations=99, bootstraps=200))


def test_gaps_between_groups_are_compared_too():
    planted, clean = ({item.kind: item for item in differences(with_gap(worse=worse), "previous")} for worse in (True, False))
    assert planted["gap"].harm.low > 0.1
    assert "group" in planted["gap"].name
    assert abs(clean["gap"].change.value) < 0.02


def test_without_another_encoder_nothing_is_compared(found, make_set):
    for name, kind in (("difference", "previous"), ("inherit", "finetuned")):
        (finding,) = found(make_set(num_units=40), name, attributes=("sex",))
        assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", f"no_{kind}")
        assert f"audit.{kind}=CHECKPOINT" in finding.remedy


def test_a_fine_tuned_encoder_that_leaks_more_is_warned_about(found, make_set):
    data = make_set(num_units=200, leak=0.0)
    leaking = data.audited + 6.0 * (data.columns["site"] == "A").astype(float)[:, None] * (np.arange(24) < 4)
    features = {"audited": data.audited, "finetuned": leaking}
    (finding,) = found(make_set(num_units=200, features=features, columns=data.columns), "inherit", attributes=("site",))
    assert finding.verdict == "WARN"
    assert "site read from the features" in finding.answer
    assert finding.tables[0].columns[1] == "fine-tuned"
