from __future__ import annotations

import math

from dinodomain.engine.monitor import GRACE, WINDOW, Monitor, diagnose

FULL = math.log(64)


def rows(count=WINDOW, start=GRACE, **values):
    base = {
        "loss": 3.0,
        "teacher_entropy": 2.0,
        "kl_to_uniform": 0.1,
        "max_entropy": FULL,
        "feature_std": 0.8,
        "seconds": 0.1,
        "data_wait": 0.001,
    }
    return [{"step": start + step, **base, **values} for step in range(count)]


def test_a_healthy_run_has_no_findings():
    assert diagnose(rows()) == []


def test_one_prototype_taking_all_is_named_with_its_remedy():
    (text,) = diagnose(rows(teacher_entropy=0.01, kl_to_uniform=FULL - 0.01))
    assert "collapse to one prototype" in text
    assert "objective.centering=sinkhorn" in text


def test_a_uniform_teacher_with_flat_features_is_named_with_its_remedy():
    (text,) = diagnose(rows(teacher_entropy=FULL - 0.01, kl_to_uniform=0.01, feature_std=0.01))
    assert "uniform teacher" in text
    assert "objective.teacher_temperature" in text


def test_a_sharp_but_balanced_teacher_is_healthy():
    assert diagnose(rows(teacher_entropy=0.01, kl_to_uniform=0.01)) == []


def test_flat_features_of_a_fresh_network_are_no_collapse_but_those_after_spread_ones_are():
    flat = rows(start=WINDOW, feature_std=0.01)
    assert diagnose(flat) == []
    assert "gone flat" in diagnose(rows(start=0) + flat)[0]


def test_a_uniform_teacher_with_spread_features_is_no_collapse():
    assert diagnose(rows(teacher_entropy=FULL - 0.01, kl_to_uniform=0.01)) == []


def test_skipped_steps_starved_steps_and_dead_gradients_are_named():
    texts = diagnose(rows(skipped=1, data_wait=0.08, grad_norm_backbone=0.0))
    assert [text.split()[0] for text in texts] == ["20", "the", "the"]
    remedies = ["loader.workers", "loader.threads", "dinodomain doctor store=", "loader.draws=2", "faster disk", "store.codec=fast"]
    places = [texts[1].index(remedy) for remedy in remedies]
    assert places == sorted(places), "cheapest first"
    assert "gradient has vanished" in texts[2]


def test_the_monitor_tells_each_problem_once_and_again_after_it_passed():
    monitor = Monitor()
    bad, good = rows(3 * WINDOW, feature_std=0.0), rows(2 * WINDOW)
    told = [monitor.observe(row) for row in bad + good + bad]
    assert [len(item) for item in told if item] == [1, 1]


def test_a_short_run_is_not_judged():
    assert diagnose(rows(WINDOW - 1, feature_std=0.0)) == []


def test_a_run_without_rows_or_finite_losses_says_so():
    assert "no rows" in diagnose([])[0]
    assert "finite loss" in diagnose(rows(3, loss=None))[0]


def test_missing_steps_are_counted():
    held = rows()
    assert diagnose(held[:4] + held[6:]) == ["metrics.jsonl lacks 2 steps, the first is 204"]
