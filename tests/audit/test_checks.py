"""Each check finds what was planted, stays silent where nothing was, and says so where it cannot know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dinodomain.audit import Asked, Copies, Policy, run_checks
from dinodomain.audit.checks import CHECKS, attribute, duplicates
from dinodomain.audit.finding import SelfTest
from dinodomain.audit.observe.views import look_at_crops, training_views
from dinodomain.errors import Problems

BROKEN = SelfTest(positive="fail", negative="pass", detail="planted and not found")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.about.name)
def test_every_check_ships_controls_that_pass(check):
    found = check.self_test()
    assert (found.positive, found.negative) == ("pass", "pass")


def test_a_unit_in_two_splits_is_flagged_and_counted(make_set, found):
    data = make_set()
    split = data.columns["split"].copy()
    split[[0, 4]] = "test"
    (finding,) = found(replace(data, columns=data.columns | {"split": split}), "overlap")
    assert finding.verdict == "FLAG"
    assert finding.counts["units in two splits"] == 2
    assert finding.evidence["pairs"] == {"test & train": 2}


def test_disjoint_splits_are_clear_and_unknown_units_are_not(make_set, found):
    data = make_set()
    assert found(data, "overlap")[0].verdict == "CLEAR_WITHIN_LIMITS"
    units = data.units.copy()
    units[3] = ""
    (finding,) = found(replace(data, units=units), "overlap")
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "no_unit_key")


def test_identical_pixels_in_two_splits_are_flagged(make_set, found):
    data = make_set()
    hashes = data.content_hash.copy()
    hashes[-1] = hashes[0]
    assert found(replace(data, content_hash=hashes), "overlap")[0].verdict == "FLAG"


def test_without_a_split_overlap_is_not_assessable_and_with_one_value_not_applicable(make_set, found):
    data = make_set()
    assert found(replace(data, split=None), "overlap")[0].reason_code == "no_split"
    one = replace(data, columns=data.columns | {"split": np.full(len(data.units), "train")})
    assert found(one, "overlap")[0].verdict == "NOT_APPLICABLE"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_attribute_is_flagged_and_a_clean_one_never_is(make_set, found, seed):
    data = make_set(leak=3.0, seed=seed)
    site, sex, age = found(data, "attribute", attributes=("site", "sex", "age"))
    assert (site.verdict, site.encoded) == ("FLAG", True)
    assert site.baselines[1].name == "untrained"
    assert site.baselines[1].excess_low > 0.2
    for clean in (sex, age):
        assert clean.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
        assert clean.null.family == 3


def test_few_units_give_counts_only(make_set, found):
    (finding,) = found(make_set(num_units=50, leak=3.0), "attribute", attributes=("site",))
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "n_units")
    assert finding.estimate is None
    assert finding.counts["units with A"] == 25


def test_classes_below_ten_units_are_not_named(make_set, found):
    data = make_set(num_units=50)
    rare = np.where(np.arange(100) < 6, "rare", "common")
    (finding,) = found(replace(data, columns={"group": rare}, split=None), "attribute", attributes=("group",))
    assert finding.counts == {"units with common": 47, "classes of fewer than 10 units, not named": 1}


def test_a_column_that_names_everybody_is_refused_and_ages_of_few_are_a_quantity(make_set, found):
    data = make_set(num_units=12)
    names, ages = np.array([f"p{unit}" for unit in data.units]), np.array([f"{20 + int(unit[1:])}.5" for unit in data.units])
    with pytest.raises(Problems, match="so that they name somebody"):
        found(replace(data, columns={"patient": names}, split=None), "attribute", attributes=("patient",))
    (finding,) = found(replace(data, columns={"age": ages}, split=None), "attribute", attributes=("age",))
    assert "20.5" not in finding.model_dump_json()


def test_an_expected_attribute_is_softened_with_its_reason_never_dropped(make_set, found):
    data, policy = make_set(leak=3.0), Policy(expected={"site": "sites differ in anatomy"})
    (finding,) = found(data, "attribute", attributes=("site",), policy=policy)
    assert (finding.verdict, finding.reason_code) == ("WARN", "expected")
    assert "sites differ in anatomy" in finding.reason


def test_attributes_without_units_are_not_assessable(make_set, found):
    data = make_set()
    (finding,) = found(replace(data, units=np.full(len(data.units), "")), "attribute", attributes=("site",))
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "no_unit_key")


def test_tiles_of_one_source_are_one_unit_for_what_is_told_of_whole_sources(make_set, found):
    data = make_set()
    linked = np.array([f"source {index // 4}" for index in range(520)])
    (finding,) = found(replace(data, linked=linked), "attribute", attributes=("age",))
    assert (data.num_units, finding.n_units) == (260, 130)


def test_a_check_whose_control_fails_gives_error_whatever_the_numbers(make_set, quick, monkeypatch):
    data = make_set(leak=3.0)
    monkeypatch.setattr("dinodomain.audit.run.CHECKS", [replace(check, self_test=lambda: BROKEN) for check in CHECKS])
    findings = run_checks(data, asked=Asked(attributes=("site",), task="site"), effort=quick).report.findings
    assert {finding.verdict for finding in findings} == {"ERROR"}


def test_a_control_that_fails_on_the_real_features_takes_the_finding_back(make_set, quick, monkeypatch):
    finding = attribute.ABOUT.finding("site", verdict="FLAG", answer="Yes.", self_test=BROKEN, encoded=True)
    check = replace(attribute.CHECK, run=lambda evidence: [finding])
    monkeypatch.setattr("dinodomain.audit.run.CHECKS", [check])
    (told,) = run_checks(make_set(), asked=Asked(attributes=("site",)), effort=quick).report.findings
    assert (told.verdict, told.encoded, told.self_test.positive) == ("ERROR", None, "fail")


def test_tests_of_one_question_are_corrected_together_and_permutations_suffice(make_set, quick):
    names = tuple(f"a{i}" for i in range(8))
    generator = np.random.default_rng(0)
    columns = {name: generator.permutation(np.repeat(["x", "y"], 260)) for name in names}
    data = make_set(columns=columns, split=None)
    report = run_checks(data, asked=Asked(attributes=names), effort=quick, names=("attribute",)).report
    assert {finding.null.family for finding in report.findings} == {8}
    assert report.plan["permutations"] == 320
    assert all(finding.null.p_adjusted >= finding.null.p for finding in report.findings)


@pytest.fixture(scope="module")
def pictures():
    """150 smooth random images, and two views of them: a random projection and the pixels."""
    generator = np.random.default_rng(4)
    spectrum = 1 / (1 + np.hypot(*np.meshgrid(np.fft.fftfreq(16) * 16, np.fft.fftfreq(16) * 16))) ** 1.5
    images = np.fft.ifft2(np.fft.fft2(generator.normal(size=(150, 16, 16))) * spectrum).real.reshape(150, -1)
    mixing = generator.normal(size=(256, 48)) / 16

    def describe(rows):
        scaled = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
        return {"audited": np.tanh(scaled @ mixing), "pixels": rows}

    return images, describe, generator


def picture_set(make_set, images, describe, *, split):
    count = len(images)
    return make_set(
        features=describe(images),
        units=np.array([f"u{i}" for i in range(count)]),
        content_hash=np.array([f"h{i}" for i in range(count)]),
        sources=np.arange(count),
        columns={"split": split},
    )


def test_re_exposed_copies_across_splits_are_found_and_nothing_else(make_set, pictures, quick):
    images, describe, generator = pictures
    copies = 0.7 * images[:12] + 0.05 + 0.02 * images.std() * generator.normal(size=(12, 256))
    split = np.r_[np.full(150, "train"), np.full(12, "test")]
    audited = run_checks(
        picture_set(make_set, np.concatenate([images, copies]), describe, split=split), effort=quick, names=("duplicates",)
    )
    (finding,), (listed,) = audited.report.findings, audited.private
    assert finding.verdict == "FLAG"
    assert set(zip(listed.columns["row"], listed.columns["copy"])) == {(i, i + 150) for i in range(12)}
    assert finding.counts["groups of copies"] == 12


def test_without_copies_the_verdict_rests_on_the_recall_that_was_measured(make_set, pictures, found):
    images, describe, generator = pictures
    data = picture_set(make_set, images, describe, split=np.where(np.arange(150) < 100, "train", "test"))
    assert found(data, "duplicates")[0].reason_code == "recall_unknown"
    altered = 0.9 * images[:40] + 0.02 * images.std() * generator.normal(size=(40, 256))
    (clear,) = found(replace(data, copies=Copies(rows=np.arange(40), features=describe(altered))), "duplicates")
    assert clear.verdict == "CLEAR_WITHIN_LIMITS"
    assert clear.evidence["recall_on_altered_copies"]["value"] >= 0.9
    ruined = describe(generator.normal(size=(40, 256)))
    assert found(replace(data, copies=Copies(rows=np.arange(40), features=ruined)), "duplicates")[0].reason_code == "low_recall"


def test_tiles_of_one_image_and_images_of_one_unit_are_no_duplicates(make_set, pictures):
    images, describe, _ = pictures
    twice = np.concatenate([images, images])
    data = picture_set(make_set, twice, describe, split=np.full(300, "train"))
    assert duplicates.match(replace(data, sources=np.arange(300) % 150), seed=0).pairs.shape == (0, 2)
    assert duplicates.match(replace(data, units=np.array([f"u{i % 150}" for i in range(300)])), seed=0).pairs.shape == (0, 2)
    assert len(duplicates.match(data, seed=0).pairs) == 150


def test_collapsed_features_find_no_copies_and_say_that_nothing_would_be_found(make_set, pictures, found):
    images, describe, _ = pictures
    flat = describe(images) | {"audited": np.ones((150, 4))}
    data = replace(picture_set(make_set, images, describe, split=np.where(np.arange(150) < 100, "train", "test")), features=flat)
    copies = Copies(rows=np.arange(20), features={kind: rows[:20] for kind, rows in flat.items()})
    (finding,) = found(replace(data, copies=copies), "duplicates")
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "low_recall")


def test_membership_needs_units_reserved_before_training(make_set, found):
    data = make_set()
    assert found(data, "membership")[0].reason_code == "no_random_nonmembers"
    reserved = np.isin(data.units, [f"u{i}" for i in range(0, 260, 5)])
    assert found(replace(data, holdout=reserved), "membership")[0].reason_code == "members_unknown"


def test_membership_is_found_where_training_left_a_trace_and_only_there(make_set, found):
    data = make_set()
    reserved = np.isin(data.units, [f"u{i}" for i in range(0, 260, 3)])
    known = replace(data, holdout=reserved, members_known=True)
    assert found(known, "membership")[0].verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    traced = data.features | {"audited": data.audited + 6.0 * reserved[:, None] * (np.arange(24) < 6)}
    assert found(replace(known, features=traced), "membership")[0].verdict == "FLAG"
    both = traced | {"pixels": traced["audited"]}
    assert found(replace(known, features=both), "membership")[0].reason_code == "not_exchangeable"


def test_crops_of_tiles_are_asked_too_where_the_encoder_is_there(planted, tmp_path, quick):
    observed = planted.observer(tmp_path, planted.glyph, num=120)
    data = planted.audit_set(observed)
    known = replace(data, holdout=np.arange(120) % 3 == 0, members_known=True)
    (finding,) = run_checks(known, effort=quick, names=("membership",), observer=observed).report.findings
    assert [row[0] for row in finding.tables[0].rows] == ["features", "crops"]
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    statistics = look_at_crops(observed, np.arange(120), training_views(observed, None), 0)
    assert statistics["audited"].shape == (120, 3)
    assert (np.abs(statistics["audited"][:, :2]) <= 1).all()


def test_a_group_with_poor_labels_is_flagged_and_an_equal_one_is_not(make_set, found):
    generator = np.random.default_rng(0)
    data = make_set(num_units=600, leak=3.0)
    poor = (data.columns["sex"] == "F") & (generator.random(1200) < 0.4)
    noisy = np.where(poor, np.where(data.columns["site"] == "A", "B", "A"), data.columns["site"])
    data = replace(data, columns=data.columns | {"noisy": noisy})
    (flagged,) = found(data, "subgroups", task="noisy", attributes=("sex",))
    assert flagged.verdict == "FLAG"
    assert "AUROC of F" in flagged.answer
    (equal,) = found(data, "subgroups", task="site", attributes=("sex",))
    assert equal.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")


def test_subgroups_say_why_they_cannot_be_compared(make_set, found):
    assert found(make_set(num_units=60), "subgroups", task="site", attributes=("sex",))[0].reason_code == "n_units"
    assert found(make_set(), "subgroups", task="site")[0].reason_code == "no_attribute"
    assert found(make_set(), "subgroups", attributes=("sex",))[0].reason_code == "no_task"
    assert found(make_set(), "subgroups", task="age", attributes=("sex",))[0].reason_code == "task_kind"
