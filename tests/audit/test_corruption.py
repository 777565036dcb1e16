"""Corruptions: what they do to an image, that noise is an image's own, and what a probe and a group lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinodomain.audit import Asked, Effort, run_checks
from dinodomain.audit.checks.corruption import measure
from dinodomain.audit.observe.corrupt import CORRUPTIONS, LEVELS, applicable, look_corrupted
from dinodomain.audit.protocol.attribute import read_attribute

EFFORT = Effort(permutations=99, bootstraps=60, folds=3)


@pytest.fixture
def unit():
    return torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_moves_an_image_further_with_each_strength(unit, name):
    moved = [
        float((CORRUPTIONS[name](unit, level, torch.Generator().manual_seed(1)) - unit).abs().mean()) for level in range(1, LEVELS + 1)
    ]
    assert moved[0] > 0.002
    assert moved[0] < moved[-1] < 0.5
    assert CORRUPTIONS[name](unit, 3, torch.Generator().manual_seed(1)).shape == unit.shape


def test_smooth_corruptions_leave_a_flat_image_alone():
    flat = torch.full((2, 8, 16, 16), 0.4)
    for name in ("blur", "motion", "coarser pixels", "lost bands"):
        torch.testing.assert_close(CORRUPTIONS[name](flat, 3, torch.Generator()), flat)


def test_only_corruptions_that_an_image_can_have_are_applied():
    assert "lost bands" not in applicable(torch.zeros(1, 1, 8, 8))
    assert "jpeg" in applicable(torch.zeros(1, 1, 8, 8))
    assert "jpeg" not in applicable(torch.zeros(1, 12, 8, 8))
    assert "jpeg" not in applicable(torch.zeros(1, 1, 8, 8, 8))


def test_noise_of_an_image_does_not_depend_on_those_beside_it(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=12)
    width = planted.audit_set(observed).audited.shape[1]
    together, alone = (look_corrupted(observed, rows, width, 0)["noise"] for rows in (np.arange(12), np.array([7])))
    np.testing.assert_allclose(together[:, 7], alone[:, 0], atol=1e-5)


def test_a_task_on_fine_detail_is_lost_under_blur_and_a_coin_was_never_there(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=140)
    data = planted.audit_set(observed)
    report = run_checks(data, asked=Asked(task="sign"), effort=EFFORT, names=("corruption",), observer=observed).report
    (finding,) = report.findings
    assert finding.verdict == "WARN"
    rows = {row[0]: row for row in finding.tables[0].rows}
    assert rows["blur"][LEVELS] > 0.05
    assert finding.evidence["plain"] > 0.95


def test_a_group_that_loses_more_is_told_apart():
    generator = np.random.default_rng(0)
    label, group = np.tile([0, 1], 200), np.repeat(["a", "b"], 200)
    plain = generator.normal(size=(400, 5))
    plain[:, 0] += 2.5 * label
    wiped = np.stack([plain] * LEVELS)
    wiped[:, 200:, 0] = generator.normal(size=200) + 1.25
    found = measure(plain, {"veil": wiped}, read_attribute("x", label, np.arange(400)), {"clinic": group}, EFFORT)
    gaps = {gap.group: gap for gap in found.gaps}
    assert gaps["clinic b"].value > 0.2
    assert gaps["clinic b"].p < 1e-4
    assert gaps["clinic a"].p > 0.9
