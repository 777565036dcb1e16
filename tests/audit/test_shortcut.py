"""Taking a region away: the probe that rests on it fails, the control of the same shape elsewhere does not, others stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinodomain.audit import Asked, Effort, run_checks
from dinodomain.audit.observe.replace import blurred, look_without, moved
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.leak import Reader
from dinodomain.probes.folds import grouped_folds

EFFORT = Effort(permutations=99, bootstraps=60, folds=3)


@pytest.fixture(scope="module")
def framed(planted, tmp_path_factory):
    return planted.observer(tmp_path_factory.mktemp("framed"), planted.framed, num=420)


@pytest.fixture(scope="module")
def found(planted, framed):
    asked = Asked(attributes=("sign", "coin"))
    data = planted.audit_set(framed)
    return run_checks(data, asked=asked, effort=EFFORT, names=("shortcut",), observer=framed).report.findings


def test_a_probe_that_rests_on_the_border_is_flagged(found):
    sign = found[0]
    assert sign.verdict == "FLAG"
    assert sign.used == "shown"
    assert "without the border" in sign.answer
    rows = {row[0]: row for row in sign.tables[0].rows}
    plain, without, elsewhere = rows["border"][3], rows["border"][4], rows["border"][6]
    assert plain > 0.95
    assert without < 0.65
    assert elsewhere > plain - 0.1


def test_a_probe_of_a_coin_rests_on_nothing(found):
    coin = found[1]
    assert coin.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert coin.used == "not_shown"


def test_a_sign_inside_the_image_is_no_shortcut_over_the_border(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=420)
    data = planted.audit_set(observed)
    report = run_checks(data, asked=Asked(task="sign"), effort=EFFORT, names=("shortcut",), observer=observed).report
    assert report.findings[0].verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")


def test_too_few_units_with_a_region_decide_nothing(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.framed, num=120)
    data = planted.audit_set(observed)
    report = run_checks(data, asked=Asked(attributes=("sign",)), effort=EFFORT, names=("shortcut",), observer=observed).report
    assert (report.findings[0].verdict, report.findings[0].reason_code) == ("NOT_ASSESSABLE", "n_units")


def test_only_the_region_changes_and_it_is_filled_from_around_it():
    pixels = torch.ones(1, 2, 16, 16)
    region = torch.zeros(1, 16, 16, dtype=torch.bool)
    region[0, 4:8, 4:8] = True
    pixels[:, :, 4:8, 4:8] = 9.0
    filled = blurred(pixels, region)
    torch.testing.assert_close(filled, torch.ones_like(pixels))
    volume = torch.ones(1, 1, 8, 16, 16)
    assert torch.equal(blurred(volume, torch.zeros(1, 8, 16, 16, dtype=torch.bool)), volume)


def test_the_control_has_the_shape_of_the_region_at_another_place():
    region = torch.zeros(3, 32, 32, dtype=torch.bool)
    region[:, :2] = True
    other = moved(region, torch.Generator().manual_seed(0))
    assert other.sum() == region.sum()
    assert not (other & region).any()


def test_features_without_patches_are_those_of_the_kept_ones(planted, framed):
    numbers = np.arange(4)
    plain = planted.audit_set(framed).audited[:4]
    removed = look_without(framed, numbers, plain, 0)["border"]
    assert removed.there.all()
    np.testing.assert_array_equal(removed.dropped, plain)  # a ring of two pixels covers no patch of 8 by half
    assert np.abs(removed.blurred[1] - plain[1]).max() > 1e-3


def test_altered_rows_go_through_the_probe_of_their_fold():
    generator = np.random.default_rng(0)
    rows, label = generator.normal(size=(80, 5)), np.arange(80) % 2
    attribute = read_attribute("x", label, np.arange(80))
    reader = Reader(rows, attribute, grouped_folds(np.arange(80), label, 4, 0))
    plain, same, other = reader.altered(label[None], [rows, rows + 1.0])
    np.testing.assert_allclose(plain, same)
    shift = (other - plain)[0, :, 1]
    assert len(np.unique(shift.round(9))) == 4  # one probe a fold
