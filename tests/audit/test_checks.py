"""Each check finds what was planted, stays silent where nothing was, and says so where it cannot know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dinodomain.audit import Copies
from dinodomain.audit.checks import attribute, duplicates, membership, overlap, subgroups
from dinodomain.audit.finding import SelfTest
from dinodomain.audit.protocol.verdict import Thresholds

LINES = Thresholds()
BROKEN = SelfTest(positive="fail", negative="pass", detail="planted and not found")


@pytest.mark.parametrize("check", [attribute, duplicates, overlap, subgroups])
def test_every_check_ships_controls_that_pass(check):
    found = check.self_test()
    assert (found.positive, found.negative) == ("pass", "pass")


def test_a_unit_in_two_splits_is_flagged_and_counted(make_set):
    data = make_set()
    split = data.columns["split"].copy()
    split[[0, 4]] = "test"
    finding = overlap.overlap(replace(data, columns=data.columns | {"split": split}))
    assert finding.verdict == "FLAG"
    assert finding.counts["units in two splits"] == 2
    assert finding.evidence["pairs"] == {"test & train": 2}


def test_disjoint_splits_are_clear_and_unknown_units_are_not(make_set):
    data = make_set()
    assert overlap.overlap(data).verdict == "CLEAR_WITHIN_LIMITS"
    units = data.units.copy()
    units[3] = ""
    finding = overlap.overlap(replace(data, units=units))
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "no_unit_key")


def test_identical_pixels_in_two_splits_are_flagged(make_set):
    data = make_set()
    hashes = data.content_hash.copy()
    hashes[-1] = hashes[0]
    assert overlap.overlap(replace(data, content_hash=hashes)).verdict == "FLAG"


def test_without_a_split_overlap_is_not_assessable_and_with_one_value_not_applicable(make_set):
    data = make_set()
    assert overlap.overlap(replace(data, split=None)).reason_code == "no_split"
    one = replace(data, columns=data.columns | {"split": np.full(len(data.units), "train")})
    assert overlap.overlap(one).verdict == "NOT_APPLICABLE"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_attribute_is_flagged_and_a_clean_one_never_is(make_set, quick, seed):
    data = make_set(leak=3.0, seed=seed)
    site, sex, age = attribute.attributes(data, ("site", "sex", "age"), effort=quick, thresholds=LINES)
    assert site.verdict == "FLAG"
    assert site.baselines[1].name == "untrained"
    assert site.baselines[1].excess_low > 0.2
    for clean in (sex, age):
        assert clean.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
        assert clean.null.family == 3


def test_few_units_give_counts_only(make_set, quick):
    (finding,) = attribute.attributes(make_set(num_units=50, leak=3.0), ("site",), effort=quick, thresholds=LINES)
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "n_units")
    assert finding.estimate is None
    assert finding.counts["units with A"] == 25


def test_cells_below_ten_units_are_not_printed(make_set, quick):
    data = make_set(num_units=50)
    rare = np.where(np.arange(100) < 6, "rare", "common")
    (finding,) = attribute.attributes(replace(data, columns={"group": rare}, split=None), ("group",), effort=quick, thresholds=LINES)
    assert finding.counts["units with rare"] == "< 10"


def test_an_expected_attribute_is_softened_with_its_reason_never_dropped(make_set, quick):
    data = make_set(leak=3.0)
    (finding,) = attribute.attributes(data, ("site",), effort=quick, thresholds=LINES, expected={"site": "sites differ in anatomy"})
    assert (finding.verdict, finding.reason_code) == ("WARN", "expected")
    assert "sites differ in anatomy" in finding.reason


def test_attributes_without_units_are_not_assessable(make_set, quick):
    data = make_set()
    (finding,) = attribute.attributes(replace(data, units=np.full(len(data.units), "")), ("site",), effort=quick, thresholds=LINES)
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "no_unit_key")


def test_a_check_whose_control_fails_gives_error_whatever_the_numbers(make_set, quick, monkeypatch):
    data = make_set(leak=3.0)
    for module in (attribute, duplicates, overlap, membership, subgroups):
        monkeypatch.setattr(module, "self_test", lambda: BROKEN)
    findings = [
        overlap.overlap(data),
        duplicates.duplicates(data, thresholds=LINES),
        *attribute.attributes(data, ("site",), effort=quick, thresholds=LINES),
        membership.membership(data, effort=quick, thresholds=LINES),
        *subgroups.subgroups(data, "site", ("sex",), effort=quick, thresholds=LINES),
    ]
    assert {finding.verdict for finding in findings} == {"ERROR"}


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


def test_re_exposed_copies_across_splits_are_found_and_nothing_else(make_set, pictures):
    images, describe, generator = pictures
    copies = 0.7 * images[:12] + 0.05 + 0.02 * images.std() * generator.normal(size=(12, 256))
    split = np.r_[np.full(150, "train"), np.full(12, "test")]
    finding = duplicates.duplicates(picture_set(make_set, np.concatenate([images, copies]), describe, split=split), thresholds=LINES)
    assert finding.verdict == "FLAG"
    assert {tuple(pair["rows"]) for pair in finding.evidence["pairs"]} == {(i, i + 150) for i in range(12)}
    assert finding.counts["groups of copies"] == 12


def test_without_copies_the_verdict_rests_on_the_recall_that_was_measured(make_set, pictures):
    images, describe, generator = pictures
    data = picture_set(make_set, images, describe, split=np.where(np.arange(150) < 100, "train", "test"))
    assert duplicates.duplicates(data, thresholds=LINES).reason_code == "recall_unknown"
    altered = 0.9 * images[:40] + 0.02 * images.std() * generator.normal(size=(40, 256))
    with_copies = replace(data, copies=Copies(rows=np.arange(40), features=describe(altered)))
    clear = duplicates.duplicates(with_copies, thresholds=LINES)
    assert clear.verdict == "CLEAR_WITHIN_LIMITS"
    assert clear.evidence["recall_on_altered_copies"]["value"] >= 0.9
    ruined = describe(generator.normal(size=(40, 256)))
    assert (
        duplicates.duplicates(replace(data, copies=Copies(rows=np.arange(40), features=ruined)), thresholds=LINES).reason_code
        == "low_recall"
    )


def test_tiles_of_one_image_and_images_of_one_unit_are_no_duplicates(make_set, pictures):
    images, describe, _ = pictures
    twice = np.concatenate([images, images])
    data = picture_set(make_set, twice, describe, split=np.full(300, "train"))
    assert duplicates.match(replace(data, sources=np.arange(300) % 150), seed=0).pairs.shape == (0, 2)
    assert duplicates.match(replace(data, units=np.array([f"u{i % 150}" for i in range(300)])), seed=0).pairs.shape == (0, 2)
    assert len(duplicates.match(data, seed=0).pairs) == 150


def test_collapsed_features_find_no_copies_and_say_that_nothing_would_be_found(make_set, pictures):
    images, describe, _ = pictures
    flat = describe(images) | {"audited": np.ones((150, 4))}
    data = replace(picture_set(make_set, images, describe, split=np.where(np.arange(150) < 100, "train", "test")), features=flat)
    finding = duplicates.duplicates(
        replace(data, copies=Copies(rows=np.arange(20), features={k: v[:20] for k, v in flat.items()})), thresholds=LINES
    )
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "low_recall")


def test_membership_needs_units_reserved_before_training(make_set, quick):
    data = make_set()
    assert membership.membership(data, effort=quick, thresholds=LINES).reason_code == "no_random_nonmembers"
    reserved = np.isin(data.units, [f"u{i}" for i in range(0, 260, 5)])
    assert membership.membership(replace(data, holdout=reserved), effort=quick, thresholds=LINES).reason_code == "members_unknown"


def test_membership_is_found_where_training_left_a_trace_and_only_there(make_set, quick):
    data = make_set()
    reserved = np.isin(data.units, [f"u{i}" for i in range(0, 260, 3)])
    known = replace(data, holdout=reserved, members_known=True)
    clean = membership.membership(known, effort=quick, thresholds=LINES)
    assert clean.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    traced = data.features | {"audited": data.audited + 6.0 * reserved[:, None] * (np.arange(24) < 6)}
    found = membership.membership(replace(known, features=traced), effort=quick, thresholds=LINES)
    assert found.verdict == "FLAG"
    both = traced | {"pixels": traced["audited"]}
    assert membership.membership(replace(known, features=both), effort=quick, thresholds=LINES).reason_code == "not_exchangeable"


def test_a_group_with_poor_labels_is_flagged_and_an_equal_one_is_not(make_set, quick):
    generator = np.random.default_rng(0)
    data = make_set(num_units=600, leak=3.0)
    poor = (data.columns["sex"] == "F") & (generator.random(1200) < 0.4)
    noisy = np.where(poor, np.where(data.columns["site"] == "A", "B", "A"), data.columns["site"])
    data = replace(data, columns=data.columns | {"noisy": noisy})
    (flagged,) = subgroups.subgroups(data, "noisy", ("sex",), effort=quick, thresholds=LINES)
    assert flagged.verdict == "FLAG"
    assert "AUROC of F" in flagged.answer
    (equal,) = subgroups.subgroups(data, "site", ("sex",), effort=quick, thresholds=LINES)
    assert equal.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")


def test_subgroups_say_why_they_cannot_be_compared(make_set, quick):
    data = make_set(num_units=60)
    assert subgroups.subgroups(data, "site", ("sex",), effort=quick, thresholds=LINES)[0].reason_code == "n_units"
    assert subgroups.subgroups(make_set(), "site", (), effort=quick, thresholds=LINES)[0].reason_code == "no_groups"
    assert subgroups.subgroups(make_set(), "age", ("sex",), effort=quick, thresholds=LINES)[0].reason_code == "task_kind"
