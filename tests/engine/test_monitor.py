"""What the doctor finds in numbers: each failure by its name, step, cause and keys, and nothing in a healthy run."""

from __future__ import annotations

import math
import random

import pytest

from dinodomain.engine.folder import differing_keys
from dinodomain.engine.monitor import EVERY, GRACE, KEPT, WINDOW, Monitor, diagnose, examine
from dinodomain.engine.symptoms import SYMPTOMS

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
    return [{"step": start + step, **base, "loss": 9.0 - (start + step) / 1000, **values} for step in range(count)]


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


def kinds(found):
    return [finding.name for finding in found.findings]


def test_skipped_steps_starved_steps_and_dead_gradients_are_named():
    found = examine(rows(skipped=1, data_wait=0.08, grad_norm_backbone=0.0))
    assert kinds(found) == ["skipped", "vanished", "starved"]
    assert found.verdict == f"unstable (steps gave NaN or Inf and were skipped since step {GRACE}, and 2 more)"
    remedies = ["loader.workers", "loader.threads", "dinodomain doctor store=", "loader.draws=2", "faster disk", "store.codec=fast"]
    places = [found.findings[2].advice.index(remedy) for remedy in remedies]
    assert places == sorted(places), "cheapest first"
    assert "the gradient of backbone has vanished" in found.findings[1].text()


def test_the_monitor_tells_each_problem_once_and_again_after_it_passed():
    monitor = Monitor()
    bad, good = (rows(4 * WINDOW, start=GRACE, feature_std=value) for value in (0.0, 0.8))
    told = [monitor.observe({**row, "step": GRACE + place}) for place, row in enumerate(bad + good + bad)]
    assert [len(item) for item in told if item] == [1, 1]
    assert len(next(item for item in told if item)[0].splitlines()) == 1


def test_the_monitor_tells_a_skipped_step_at_once():
    monitor = Monitor(rows(WINDOW))
    assert "skipped" in monitor.observe({**rows(1)[0], "step": GRACE + WINDOW, "skipped": 1, "loss": None})[0]


def test_a_resumed_run_is_not_told_again_what_it_was_told():
    bad = rows(3 * WINDOW, feature_std=0.0)
    monitor = Monitor(bad)
    assert not any(monitor.observe({**bad[-1], "step": bad[-1]["step"] + 1 + place}) for place in range(2 * EVERY))


def test_the_monitor_keeps_few_rows_but_every_look():
    monitor = Monitor({**row, "watch_rankme": 9.0} if row["step"] % 500 == 0 else row for row in rows(20 * KEPT, start=0))
    held = [*monitor._older, *monitor._recent]
    assert len(held) < 3 * KEPT
    assert sum("watch_rankme" in row for row in held) == 20 * KEPT // 500


def test_a_short_run_is_not_judged_and_says_so():
    found = examine(rows(WINDOW - 1, feature_std=0.0))
    assert found.findings == ()
    assert found.verdict.startswith("too early to tell (19 steps")


def test_a_short_run_that_ended_in_nan_is_judged():
    found = examine([{**row, "loss": None} for row in rows(5, start=0, skipped=1)])
    assert kinds(found) == ["no loss", "skipped"]
    assert "not even the first step" in found.findings[1].cause


def test_a_run_without_rows_or_finite_losses_says_so():
    assert "no rows" in diagnose([])[0]
    assert "finite loss" in diagnose(rows(3, loss=None))[0]


def test_missing_steps_are_counted_and_do_not_make_a_run_ill():
    held = rows(2 * WINDOW)
    found = examine(held[:4] + held[6:] + held[12:14])
    assert kinds(found) == ["gaps"]
    assert found.findings[0].since == 204
    assert found.verdict == "healthy"


def test_the_step_where_it_began_is_told_to_the_row():
    held = rows(300, start=0) + rows(100, start=300, teacher_entropy=0.01, kl_to_uniform=FULL)
    assert examine(held).findings[0].since == 300


def test_what_has_passed_is_no_finding():
    held = rows(100, start=GRACE, feature_std=0.0) + rows(100, start=GRACE + 100)
    assert examine(held).verdict == "healthy"


@pytest.mark.parametrize(
    ("objective", "cause", "key"),
    [
        ({"centering": "none"}, "no centring (objective.centering=none)", ("objective.centering", "sinkhorn")),
        ({"centering": "softmax", "center_momentum": 0.999}, "moves too slowly", ("objective.center_momentum", 0.9)),
        ({"centering": "sinkhorn"}, "learning rate too high for sinkhorn", ("optim.lr", "0.001")),
    ],
)
def test_the_plan_names_the_cause_of_a_collapse(objective, cause, key):
    plan = {"objective": objective, "optim": {"lr": 3e-3}}
    found = examine(rows(teacher_entropy=0.01, kl_to_uniform=FULL), plan).findings[0]
    assert cause in found.cause
    assert found.keys[key[0]] == key[1]
    assert f"({key[0]}={key[1]}" in found.text()


def looks(name, values, every=50, **columns):
    """A run of falling loss with looks at the teacher."""
    held = [{**row, "loss": 4.0 - row["step"] / 500} for row in rows(every * len(values), start=0, **columns)]
    for number, value in enumerate(values, 1):
        held[number * every - 1][name] = value
        held[number * every - 1].setdefault("watch_rankme", 20.0)
    return held


def test_neighbours_that_get_worse_while_the_loss_falls_are_told_with_the_best_step():
    found = examine(looks("watch_knn", [0.3, 0.6, 0.8, 0.6, 0.6, 0.5]))
    assert kinds(found) == ["neighbours"]
    assert found.findings[0].since == 199
    assert "while the loss falls" in found.findings[0].numbers
    assert found.findings[0].keys == {"engine.steps": 150}
    assert examine(looks("watch_knn", [0.3, 0.6, 0.8, 0.6, 0.6, 0.79])).verdict == "healthy"


def test_dense_matching_that_falls_asks_for_gram_anchoring_unless_it_is_there():
    held = looks("watch_dense_match", [0.3, 0.5, 0.4, 0.4, 0.3])
    assert examine(held).findings[0].keys == {"gram.weight": 2, "gram.teacher": "drift"}
    assert examine(held).verdict.startswith("degrading (dense features get worse since step 149")
    assert "gram.size" in examine(held, {"gram": {"weight": 2.0}}).findings[0].keys


def test_a_rank_that_breaks_down_is_a_dimensional_collapse():
    assert kinds(examine(looks("watch_rankme", [20, 30, 35, 36, 12, 11]))) == ["rank"]
    assert examine(looks("watch_rankme", [20, 30, 35, 30, 28, 30])).verdict == "healthy"
    assert kinds(examine(looks("watch_rankme", [1.5, 1.2, 1.1, 1.1, 1.1, 1.1]))) == ["rank"]


def seen(own, rank, every=20, **columns):
    """A run of healthy steps with looks after the first step and every so often."""
    held = rows(every * (len(own) - 1), start=0, **columns)
    for number, (knn, value) in enumerate(zip(own, rank)):
        held[max(0, number * every - 1)] |= {
            "watch_knn_own": knn, "watch_rankme": value, "watch_effective_rank": value / 60, "watch_feature_std": value / 40,
        }  # fmt: skip
    return held


def test_features_below_those_of_the_untrained_network_are_told_with_an_absurd_rate_as_cause():
    """Numbers of a real run with a rate 300 times too high, and of a healthy one."""
    found = examine(seen([0.465, 0.31, 0.239, 0.282, 0.254], [34.6, 19.1, 20.2, 16.9, 16.4], lr=0.106))
    assert kinds(found) == ["worse"]
    assert "far too high (0.11" in found.findings[0].cause
    assert examine(seen([0.465, 0.479, 0.493, 0.465], [34.6, 36.4, 38.6, 38.9])).verdict == "healthy"


def test_features_that_are_still_those_of_the_untrained_network_are_told():
    found = examine(seen([0.465] * 5, [34.6, 34.6, 34.6, 34.61, 34.6], lr=3.5e-10))
    assert kinds(found) == ["unmoved"]
    assert (
        examine(seen([0.465] * 5, [34.6, 34.6, 34.6, 34.61, 34.6]), {"optim": {"freeze_backbone": 1.0}, "engine": {"steps": 500}}).verdict
        == "healthy"
    )


def test_after_an_absurd_rate_nothing_goes_on_from_the_weights():
    found = examine(
        rows(30, start=0) + rows(10, start=30, skipped=1, loss=None, lr=12.0), {"optim": {"lr": 50.0}, "engine": {"precision": "fp32"}}
    )
    finding = next(one for one in found.findings if one.name == "skipped")
    assert "start again in another folder" in finding.advice
    assert finding.keys == {"optim.lr": "0.001"}


def test_gradients_that_explode_or_lie_far_apart_are_told_by_sub_module():
    calm = rows(400, start=0, grad_norm_backbone=1.0, grad_norm_head=2.0, grad_norm_patch_embed=0.1)
    assert examine(calm).verdict == "healthy"
    wild = calm + rows(60, start=400, grad_norm_backbone=1.0, grad_norm_head=2.0, grad_norm_patch_embed=9.0)
    found = examine(wild).findings[0]
    assert (found.name, found.kind, found.keys) == ("exploding", "unstable", {"optim.patch_lr": 0.1})
    assert "patch_embed" in found.title
    assert kinds(examine(rows(300, start=0, grad_norm_backbone=1e-6, grad_norm_head=2.0))) == ["apart"]


def test_no_advice_asks_for_what_the_folder_of_the_run_refuses():
    """Whatever changes a key that is compared at a resume names another folder, or a backbone that is there already."""
    noise = random.Random(0)
    ill = [
        rows(skipped=1),
        looks("watch_dense_match", [0.3, 0.5, 0.4, 0.4, 0.3]),
        looks("watch_knn", [0.3, 0.6, 0.8, 0.6, 0.6, 0.5]),
        looks("watch_rankme", [20, 30, 35, 36, 12, 11]),
        rows(teacher_entropy=0.01, kl_to_uniform=FULL),
        rows(feature_std=0.0),
        rows(grad_norm_backbone=0.0),
        rows(300, grad_norm_backbone=1e-6, grad_norm_head=2.0),
        rows(3, loss=None),
        [{**row, "center_norm": 0.01 * math.exp(max(0, row["step"] - 300) / 50)} for row in rows(600, start=0)],
        [{**row, "loss": 9.0 + noise.gauss(0, 0.002), "lr": 1e-7} for row in rows(800, start=0)],
    ]
    for held in ill:
        (found, *_) = examine(held).findings
        assert differing_keys({}, found.keys), found.name
        assert "another folder" in found.advice, found.text()


def test_a_part_that_is_frozen_on_purpose_is_not_ill():
    held = rows(60, start=0, grad_norm_backbone=1.0, grad_norm_head=0.0)
    assert kinds(examine(held)) == ["vanished"]
    assert kinds(examine(held, {"optim": {"freeze_last_layer": 0.2}, "engine": {"steps": 1000}})) == []


def test_a_loss_that_does_not_move_is_stuck_and_one_that_came_to_rest_is_not():
    noise = random.Random(0)
    still = [{**row, "loss": 9.0 + noise.gauss(0, 0.002), "lr": 1e-7} for row in rows(800, start=0)]
    found = examine(still).findings[0]
    assert (found.name, found.keys["optim.lr"]) == ("still", "1e-06")
    rested = [{**row, "loss": 5.0 + 4 * math.exp(-row["step"] / 60) + noise.gauss(0, 0.002)} for row in rows(800, start=0)]
    assert examine(rested).verdict == "healthy"


def test_memory_that_creeps_up_is_told_and_a_resumed_run_begins_anew():
    leaking = [{**row, "memory": 2**30 + 2**20 * row["step"]} for row in rows(1400, start=0)]
    found = examine(leaking)
    assert found.verdict.startswith("leaking (memory creeps up since step 700")
    assert "1e+03 MiB in 1000 steps" in found.findings[0].numbers
    resumed = [{**row, "memory": 2**30 + 2**20 * (row["step"] % 400)} for row in rows(1400, start=0)]
    assert examine(resumed).verdict == "healthy"


def test_a_centre_that_grows_is_told():
    held = [{**row, "center_norm": 0.01 * math.exp(max(0, row["step"] - 300) / 50)} for row in rows(600, start=0)]
    assert kinds(examine(held)) == ["centre"]


def test_rows_of_another_version_without_any_known_column_are_healthy():
    assert examine([{"step": step, "loss": 5.0 - step / 100} for step in range(60)]).verdict == "healthy"


def test_every_symptom_looks_at_a_single_row_without_failing():
    assert [symptom.look for symptom in SYMPTOMS]
    assert examine([{"step": 0}]).findings[0].name == "no loss"


def test_a_few_prototypes_that_take_every_image_are_a_collapse_unless_the_batch_is_tiny():
    most = math.log(1024)
    values = {"max_entropy": most, "kl_to_uniform": most - math.log(3), "teacher_entropy": 0.2, "seconds": 0.1}
    found = examine(rows(samples_per_s=320.0, **values))
    assert found.verdict == f"collapsed (collapse to 3 prototypes since step {GRACE})"
    assert examine(rows(samples_per_s=40.0, **values)).verdict == "healthy"
    assert examine(rows(samples_per_s=320.0, **{**values, "kl_to_uniform": most - math.log(8)})).verdict == "healthy"


def test_a_teacher_that_fades_into_silence_is_uniform_before_its_features_are_flat():
    loud = rows(40, start=0, teacher_entropy=3.0, feature_std=0.8)
    quiet = rows(100, start=40, teacher_entropy=0.9999 * FULL, feature_std=0.3, kl_to_uniform=0.0)
    plan = {"objective": {"teacher_temperature": [1.0, 1.0], "student_temperature": 0.1}}
    found = examine(loud + quiet, plan).findings[0]
    assert (found.name, found.since) == ("uniform", 40)
    assert "no sharpening" in found.cause
    spread = examine(loud + [{**row, "feature_std": 0.7} for row in quiet]).findings[0]
    assert spread.name == "uniform"  # features fade after the teacher has fallen silent
