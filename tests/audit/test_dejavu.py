"""Recall of a training image from its corner: found where it is planted, silent where it is not, undecided where nobody could know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dinodomain.audit import Asked, Effort, run_checks
from dinodomain.audit.checks import dejavu
from dinodomain.audit.observe.corners import look_at_corners

EFFORT = Effort(permutations=199, bootstraps=100)


@pytest.fixture(scope="module")
def shown(planted, tmp_path_factory):
    """An encoder, and its images of which a third of the units was reserved; the class is a coin."""
    observed = planted.observer(tmp_path_factory.mktemp("corners"), planted.glyph, num=180)
    data = planted.audit_set(observed)
    held = np.arange(180) % 3 == 0
    return observed, replace(data, features={**data.features, "untrained": data.audited}, holdout=held, members_known=True)


@pytest.fixture
def look(shown, monkeypatch):
    """The finding where corners of trained and of reserved units look like whole images of their class in so many cases."""

    def run(*, trained, reserved, blind=(0.0, 0.0), least=30):
        observed, data = shown
        monkeypatch.setattr(dejavu, "MIN_UNITS", least)
        coin = (data.columns["coin"] == "heads").astype(int)
        code = np.zeros_like(data.audited)
        code[np.arange(180), coin] = 1.0
        data = replace(data, features={**data.features, "audited": code, "untrained": code})

        def corners(_, numbers, width, seed):
            generator, out = np.random.default_rng(5), {}
            for name, rates in {"audited": (trained, reserved), "untrained": blind}.items():
                knows = generator.random(len(numbers)) < np.where(data.holdout[numbers], rates[1], rates[0])
                guess = np.where(knows, coin[numbers], generator.integers(0, 2, len(numbers)))
                out[name] = np.eye(width, dtype=np.float32)[guess]
            return out

        monkeypatch.setattr(dejavu, "look_at_corners", corners)
        asked = Asked(task="coin")
        return run_checks(data, asked=asked, effort=EFFORT, names=("dejavu",), observer=observed).report.findings[0]

    return run


def test_what_only_corners_of_trained_units_tell_is_memory(look):
    finding = look(trained=0.9, reserved=0.0)
    assert finding.verdict == "FLAG"
    assert finding.estimate.low > 0.05
    assert "of trained and" in finding.answer


def test_what_all_corners_tell_is_no_memory(look):
    finding = look(trained=0.6, reserved=0.6)
    assert finding.verdict == "NOT_ASSESSABLE"
    assert finding.reason_code == "low_power"
    assert finding.null.p > 0.05


def test_groups_that_an_untrained_encoder_tells_apart_prove_nothing(look):
    finding = look(trained=0.9, reserved=0.0, blind=(0.9, 0.0))
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "not_exchangeable")


def test_below_the_stated_number_of_units_nothing_is_said(look):
    finding = look(trained=0.9, reserved=0.0, least=61)
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "n_units")
    assert "60 trained and 60 reserved units" in finding.reason


def test_reserved_units_neither_answer_nor_do_those_that_are_asked_about(shown):
    observed, data = shown
    target = dejavu.read_column(data, "coin")
    evidence = type("Stub", (), {"probed": data, "observer": observed, "effort": EFFORT})()
    asked = dejavu.ask(evidence, target)
    assert not data.holdout[asked.gallery].any()
    assert not set(data.units[asked.gallery]) & set(data.units[asked.rows])
    assert asked.sides == (60, 60)


def test_the_difference_is_one_of_shares_by_units():
    told = np.array([1, 1, 0, 1, 0, 0, np.nan, 1])
    trained = np.array([True, True, True, True, False, False, False, False])
    found = dejavu.recall_of(told, trained, np.array([0, 0, 1, 2, 3, 4, 4, 5]), EFFORT)
    assert (found.trained, found.reserved) == (0.75, pytest.approx(1 / 3))
    assert found.more.value == pytest.approx(0.75 - 1 / 3)
    # Three of six units: the unit of two rows decides with how many the sides come out.
    assert set(np.round(found.null, 6)) <= {round(a / m - (4 - a) / (7 - m), 6) for m in (3, 4) for a in range(5)}


def test_a_corner_is_a_quarter_of_the_image_at_the_size_of_the_whole(shown):
    observed, data = shown
    found = look_at_corners(observed, np.array([3, 8]), data.audited.shape[1], 0)
    (image,) = [tile.pixels for tile in observed.show(np.array([8]))]
    halves = [image[:, :, y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
    with torch.no_grad():
        every = [observed.backbone.pool(observed.backbone.encode(F.interpolate(half, size=(32, 32), mode="bilinear"))) for half in halves]
    distances = [float((one[0] - torch.from_numpy(found["audited"][1])).abs().max()) for one in every]
    assert min(distances) < 1e-4
    assert sorted(distances)[1] > 1e-3


def test_a_corner_without_data_is_not_asked_about(shown, monkeypatch):
    observed, data = shown
    show = type(observed).show

    def without(self, numbers):
        for tile in show(self, numbers):
            yield replace(tile, valid=torch.zeros_like(tile.valid))

    monkeypatch.setattr(type(observed), "show", without)
    assert np.isnan(look_at_corners(observed, np.array([3]), data.audited.shape[1], 0)["audited"]).all()
