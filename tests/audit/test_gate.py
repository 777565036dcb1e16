"""The gate: passes, fails or stays undecided; waivers, regressions, age; policies are read strictly."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from dinodomain.audit import Asked, Policy, decide, read_policy, run_checks
from dinodomain.audit.gate import check_names, wanted_of
from dinodomain.audit.policy import Waiver
from dinodomain.errors import UserError

CHOSEN = ("overlap", "subgroups", "attribute", "membership", "declaration")
TODAY = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def report(make_set, quick):
    data = make_set(num_units=130, leak=3.0)
    found = run_checks(data, asked=Asked(attributes=("site",)), effort=quick, names=CHOSEN, subject={"weights": "ab" * 32}).report
    return found.model_copy(update={"created": "2026-05-30T12:00:00+00:00"})


def judged(report, *, now=TODAY, against=None, subject=None, **keys):
    """Judged by a policy under which the report counts as made."""
    policy = Policy(**keys)
    return decide(
        report.model_copy(update={"policy": {**policy.model_dump(mode="json"), "digest": policy.digest}}), policy, now=now, against=against,
        subject=subject,
    )  # fmt: skip


def waiver(finding: str, expires: date) -> Waiver:
    return Waiver(finding=finding, reason="known", owner="A. B.", expires=expires)


@pytest.mark.parametrize(("required", "code"), [("attribute/site", 1), ("overlap", 0), ("membership", 4), ("none_such", 4)])
def test_passes_fails_or_cannot_be_decided(report, required, code):
    assert judged(report, required=(required,)).code == code


def test_stale_foreign_and_differently_judged_reports_decide_nothing(report):
    other = judged(report, required=(), subject={"weights": "cd" * 32})
    assert other.code == 4
    assert "another weights" in other.undecided[0]
    assert any("days old" in line for line in judged(report, required=(), max_age_days=1).undecided)
    assert "counts for 30 days from 2026-05-30" in judged(report, required=(), max_age_days=30).conditions
    assert any("expected differ" in line for line in decide(report, Policy(expected={"site": "r"})).undecided)


def test_a_report_can_be_judged_by_a_policy_that_asks_for_more_but_not_for_less(report):
    made = Policy(required=("overlap",), fail_on=("FLAG",), max_age_days=10**6)
    under = report.model_copy(update={"policy": {**made.model_dump(mode="json"), "digest": made.digest}})
    more = decide(under, made.model_copy(update={"required": ("overlap", "subgroups", "attribute/site")}), now=TODAY)
    assert more.code == 1
    assert any("required differ from those" in line for line in more.conditions)
    for less in ({"required": ()}, {"fail_on": ()}, {"max_age_days": None}):
        found = decide(under, made.model_copy(update=less), now=TODAY)
        assert any(f"asks for less than the one that the report was made under: {next(iter(less))}" in line for line in found.undecided)
    assert decide(under, made.model_copy(update={"name": "mine", "set_by": "me"}), now=TODAY).code == 0


def test_a_waiver_in_force_keeps_a_finding_from_deciding_and_says_until_when(report):
    result = judged(report, required=("attribute", "membership"), waivers=(waiver("attribute", date(2026, 6, 1)),
                                                                            waiver("membership", date(2027, 1, 1))))  # fmt: skip
    assert result.code == 0
    assert len(result.waived) == 2
    assert "waived by A. B. until 2026-06-01: known" in result.waived[0]
    assert "the waiver of attribute/site by A. B. ends on 2026-06-01" in result.conditions


def test_an_expired_waiver_decides_nothing(report):
    result = judged(report, required=("attribute",), waivers=(waiver("attribute", date(2026, 5, 31)),))
    assert result.code == 1
    assert "a waiver expired on 2026-05-31" in result.failed[0]


def test_no_waiver_covers_a_check_that_failed_its_own_controls(report):
    broken = report.findings[0].model_copy(update={"verdict": "ERROR", "reason_code": "self_test"})
    changed = report.model_copy(update={"findings": (broken,)})
    assert judged(changed, required=(broken.check,), waivers=(waiver(broken.check, date(2030, 1, 1)),)).code == 4


def test_an_expected_attribute_makes_its_companions_mandatory(make_set, quick):
    data, policy = make_set(num_units=130, leak=3.0), Policy(expected={"site": "sites differ in anatomy"}, required=("attribute",))
    asked = Asked(attributes=("site",), strata=("sex",), task="sex")

    def judged_on(*names):
        return decide(run_checks(data, asked=asked, effort=quick, names=names, policy=policy).report, policy)

    alone = judged_on("attribute")
    assert alone.code == 4
    assert [line.partition(":")[0] for line in alone.undecided] == ["subgroups/site", "conditional/site", "use/site"]
    assert "site is expected to be encoded" in alone.undecided[0]
    more = judged_on("attribute", "conditional", "use")
    assert not any(line.startswith(("conditional", "use")) and "not in the report" in line for line in more.undecided)


def test_a_waiver_granted_afterwards_leaves_the_policy_the_same():
    assert Policy(waivers=(waiver("attribute", date(2030, 1, 1)),)).digest == Policy().digest
    assert Policy(expected={"sex": "anatomy"}).digest != Policy().digest


def test_regressions_count_what_was_not_flagged_before(report):
    calm = tuple(item.model_copy(update={"verdict": "WARN"}) if item.verdict == "FLAG" else item for item in report.findings)
    before = report.model_copy(update={"findings": calm})
    worse = judged(report, required=(), against=before)
    assert worse.code == 1
    assert "attribute/site" in worse.failed[0]
    assert judged(report, required=(), against=before, max_new_flags=1).code == 0
    assert judged(report, required=(), against=report).code == 0
    assert judged(report, required=(), max_new_flags=0).code == 4  # no earlier report
    elsewhere = before.model_copy(update={"subject": {**before.subject, "store": "another"}})
    assert "not comparable" in judged(report, required=(), against=elsewhere).undecided[0]


def test_withdrawn_units_count_only_where_a_finding_counted_them(report):
    assert judged(report, required=(), max_withdrawn=0).code == 4
    counted = report.findings[0].model_copy(update={"evidence": {"units_withdrawn": 3}})
    changed = report.model_copy(update={"findings": (counted,)})
    assert judged(changed, required=(), max_withdrawn=2).code == 1
    assert judged(changed, required=(), max_withdrawn=3).code == 0


def test_a_declared_expiry_in_the_past_decides_nothing(report):
    declared = {"living": {"expires": "2026-05-31"}}
    changed = report.model_copy(update={"plan": {**report.plan, "declaration": declared}})
    assert "expiry, 2026-05-31, has passed" in judged(changed, required=()).undecided[0]
    assert judged(changed, required=(), now=datetime(2026, 5, 31, tzinfo=UTC)).code == 0


DATA = {"provenance", "composition", "curation", "overlap", "duplicates", "text"}
FAILS = {"site", "lodo", "subgroups"}
LEAKS = {"attribute", "use", "dense", "shortcut", "maps", "reidentification", "membership"}
ENABLES = {"declaration", "capability"}


@pytest.mark.parametrize(
    ("decision", "needed"),
    [
        ("internal_use", DATA | ENABLES), ("release_weights", DATA | FAILS | LEAKS | ENABLES),
        ("publish_embeddings", DATA | LEAKS | ENABLES),
        ("deploy:triage", DATA | FAILS | LEAKS | ENABLES),
    ],
)  # fmt: skip
def test_every_decision_needs_the_core_checks_of_its_questions(report, decision, needed):
    assert set(wanted_of(report.model_copy(update={"decision": decision}), Policy())) == needed
    assert wanted_of(report, Policy(required=())) == ()


def test_a_finding_stays_asked_for_where_its_whole_check_is_and_no_new_flags_are_the_default(report):
    made = Policy(required=("attribute/site",))
    under = report.model_copy(update={"policy": {**made.model_dump(mode="json"), "digest": made.digest}})
    assert not decide(under, made.model_copy(update={"required": ("attribute",)}), now=TODAY).undecided
    loose = made.model_copy(update={"max_new_flags": 5})
    assert any("max_new_flags" in line for line in decide(under, loose, against=under, now=TODAY).undecided)


def test_reports_under_different_thresholds_are_not_compared(report):
    other = Policy(thresholds={"tau_flag": 0.95})
    before = report.model_copy(update={"policy": {**other.model_dump(mode="json"), "digest": other.digest}})
    assert any("made under another policy (thresholds" in line for line in judged(report, required=(), against=before).undecided)


def test_the_outcome_in_words_names_the_decision(report):
    passed = judged(report, required=()).outcome("release_weights", asked=True)
    assert passed.words == (
        "The audit meets what is asked for release of the weights, on conditions. Beside what is asked, 1 finding was flagged."
    )
    failed = judged(report, required=("attribute",)).outcome("deploy:triage", asked=False)
    assert failed.words == "The audit does not meet what is asked for deployment for triage: 1 finding stands against it."


def test_what_a_policy_does_not_ask_for_is_told_beside_the_outcome(report):
    flagged = report.model_copy(update={"findings": tuple(one.model_copy(update={"verdict": "FLAG"}) for one in report.findings[:1])})
    name = flagged.findings[0].id
    told = judged(flagged, required=("membership",), expected={"height": "why not"}, waivers=(
        Waiver(finding="attribute/height", reason="r", owner="o", expires=date(2027, 1, 1)),)).conditions  # fmt: skip
    for words in ("asks for membership only", f"flagged, but not asked for: {name}", "the waiver of attribute/height covers no finding",
                  "expects height, of which no finding speaks"):  # fmt: skip
        assert any(words in line for line in told), words


def test_a_policy_that_names_an_unknown_check_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'attribute'"):
        check_names(Policy(required=("atribute/sex",)), "gate p.yaml")
    with pytest.raises(UserError, match="did you mean 'subgroups'"):
        check_names(Policy(waivers=(waiver("SUBG", date(2030, 1, 1)),)), "gate p.yaml")
    check_names(Policy(required=("attribute/sex", "overlap")), "gate p.yaml")


def test_a_policy_file_is_read_strictly_with_all_problems_at_once(tmp_path: Path):
    good = tmp_path / "good.yaml"
    good.write_text(
        "name: ours\nrequired: [overlap]\nthresholds: {tau_flag: 0.8}\nexpected: {sex: anatomy}\n"
        "waivers: [{finding: overlap, reason: known, owner: me, expires: 2027-01-31}]\n"
    )
    policy = read_policy(good)
    assert policy.thresholds.tau_flag == 0.8
    assert policy.waivers[0].expires == date(2027, 1, 31)
    bad = tmp_path / "bad.yaml"
    bad.write_text("requird: [overlap]\nthresholds: {tau_flag: 7, tau: 1}\nwaivers: [{finding: overlap, ownr: me}]\n")
    with pytest.raises(UserError) as error:
        read_policy(bad)
    told = str(error.value)
    for words in ("requird: unknown key", "did you mean 'required'", "thresholds.tau_flag", "thresholds.tau: unknown key",
                  "waivers.0.ownr: unknown key", "did you mean 'owner'", "waivers.0.expires"):  # fmt: skip
        assert words in told
    with pytest.raises(UserError, match="No such file"):
        read_policy(tmp_path / "none.yaml")
