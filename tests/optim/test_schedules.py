"""Schedules by hand."""

from __future__ import annotations

import math

import pytest

from dinodomain.errors import UserError
from dinodomain.optim import OptimPlan, Schedules, cosine, linear, scaled_lr


def test_the_rate_scales_with_the_root_of_the_batch():
    assert scaled_lr(1e-3, 256) == 1e-3
    assert scaled_lr(1e-3, 1024) == pytest.approx(2e-3)
    assert scaled_lr(1e-3, 64) == pytest.approx(5e-4)


def test_cosine_starts_ends_and_halves():
    assert cosine(1.0, 0.0, 0, 101) == 1.0
    assert cosine(1.0, 0.0, 50, 101) == pytest.approx(0.5)
    assert cosine(1.0, 0.0, 100, 101) == pytest.approx(0.0)
    assert cosine(1.0, 0.2, 25, 101) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)))
    assert cosine(1.0, 0.3, 500, 101) == pytest.approx(0.3)
    assert cosine(1.0, 0.3, 0, 1) == 1.0


def test_linear_is_a_line_and_then_constant():
    assert [linear(0.0, 1.0, step, 4) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert linear(0.0, 1.0, 0, 0) == 1.0


def test_the_rate_warms_up_peaks_and_falls_to_its_least():
    plan = OptimPlan(lr=1e-3, min_lr=1e-6, warmup=0.1)
    schedules = Schedules(plan, total_steps=100, batch=1024)
    rates = [schedules.at(step).lr for step in range(100)]
    assert rates[0] == pytest.approx(2e-3 / 11)
    assert rates[10] == max(rates) == pytest.approx(2e-3)
    assert rates[99] == pytest.approx(1e-6)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_decay_and_momentum_run_from_first_to_last_value():
    schedules = Schedules(OptimPlan(weight_decay=(0.04, 0.4), momentum=(0.99, 1.0)), total_steps=11, batch=256)
    assert schedules.at(0).weight_decay == pytest.approx(0.04)
    assert schedules.at(5).weight_decay == pytest.approx(0.22)
    assert schedules.at(10).weight_decay == pytest.approx(0.4)
    assert schedules.at(0).momentum == pytest.approx(0.99)
    assert schedules.at(10).momentum == 1.0


def test_the_last_layer_is_frozen_for_its_share():
    schedules = Schedules(OptimPlan(freeze_last_layer=0.2), total_steps=10, batch=256)
    assert [schedules.at(step).last_layer for step in range(4)] == [0.0, 0.0, 1.0, 1.0]


def test_a_least_rate_above_the_peak_never_raises_the_rate():
    schedules = Schedules(OptimPlan(lr=1e-5, min_lr=1e-3, warmup=0.0), total_steps=10, batch=256)
    assert schedules.at(9).lr == pytest.approx(1e-5)


def test_no_steps_and_no_samples_are_refused():
    with pytest.raises(UserError, match="steps: is 0; allowed: at least 1"):
        Schedules(OptimPlan(), total_steps=0, batch=8)
    with pytest.raises(UserError, match="batch: is 0"):
        Schedules(OptimPlan(), total_steps=1, batch=0)


def test_a_plan_reports_all_its_problems_at_once():
    with pytest.raises(UserError) as caught:
        OptimPlan(lr=0.0, momentum=(0.9, 1.1), layer_decay=0.0)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["optim.lr", "optim.momentum", "optim.layer_decay"]


def test_a_constant_schedule_warms_up_and_stays():
    plan = OptimPlan(lr=1e-3, warmup=0.2, schedule="constant", weight_decay=(0.04, 0.4), momentum=(0.99, 1.0))
    schedules = Schedules(plan, total_steps=10, batch=256)
    values = [schedules.at(step) for step in range(10)]
    assert [value.lr for value in values] == pytest.approx([1e-3 / 3, 2e-3 / 3] + [1e-3] * 8)
    assert {value.weight_decay for value in values} == {0.04}
    assert values[-1].momentum == 1.0


def test_the_backbone_rests_then_rises_then_follows():
    schedules = Schedules(OptimPlan(freeze_backbone=0.3, warmup=0.2), total_steps=10, batch=256)
    assert [schedules.at(step).backbone for step in range(7)] == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1])
    assert Schedules(OptimPlan(warmup=0.5), total_steps=10, batch=256).at(0).backbone == 1.0
