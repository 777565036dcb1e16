"""Differential exclusion: a filter keyed on a group is found, a random one is not, and what cannot be known is said."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import fisher_exact

from dinodomain.audit import Asked, Effort, run_checks
from dinodomain.audit.checks.curation import operations_of, retention
from dinodomain.audit.trail import Kept, Left, Trail

QUICK = Effort(permutations=199, bootstraps=100)
SIZE = 200


def make_kept(**changes: object) -> Kept:
    names = np.array([f"s{row:03d}" for row in range(SIZE)], dtype=object)
    settings = {
        "digest": "d", "domain": "made up", "ndim": 2, "personal": False, "index": {}, "unit_rows": np.arange(SIZE),
        "unit_names": names.astype(str), "groups": {"site": np.array(["A", "B"] * (SIZE // 2), dtype=object)}, "held_units": frozenset(),
        "held_sources": np.zeros(SIZE, bool), "eligible_sources": np.ones(SIZE, bool), "eligible_units": frozenset(names),
    }  # fmt: skip
    return Kept(**(settings | changes))


@pytest.fixture
def run(make_set):
    def call(kept: Kept | None, **more: object) -> SimpleNamespace:
        trail = Trail(kept=kept, **more)
        audited = run_checks(make_set(), asked=Asked(domains=("site",)), effort=QUICK, names=("curation",), trail=trail)
        return SimpleNamespace(**{item.id.split("/")[-1]: item for item in audited.report.findings})

    return call


def lost(count: int, site: str, kind: str = "refused") -> tuple[Left, ...]:
    return tuple(Left(reason="torn", kind=kind, groups={"site": site} if site else {}) for _ in range(count))


def test_no_exclusion_is_clear(run):
    assert run(make_kept()).site.verdict == "CLEAR_WITHIN_LIMITS"


def test_a_filter_on_one_group_is_flagged_and_an_even_one_is_not(run):
    found = run(make_kept(skipped=lost(150, "B"), groups_of_skipped=True)).site
    assert found.verdict == "FLAG"
    assert "refused at ingest: B kept 0.40" in found.answer
    assert found.estimate.high < 0.5
    even = run(make_kept(skipped=lost(5, "A") + lost(5, "B"), groups_of_skipped=True)).site
    assert even.verdict == "CLEAR_WITHIN_LIMITS"


def test_a_milder_filter_is_warned_of(run):
    assert run(make_kept(skipped=lost(60, "B", "left out"), groups_of_skipped=True)).site.verdict == "WARN"


def test_too_few_valid_pixels_in_one_group_are_found(run):
    eligible = ~((np.arange(SIZE) % 2 == 1) & (np.arange(SIZE) < 140))
    assert "too few valid pixels: B" in run(make_kept(eligible_sources=eligible)).site.answer


def test_a_random_holdout_is_not_blamed(run):
    held = np.random.default_rng(0).random(SIZE) < 0.05
    assert run(make_kept(held_sources=held, eligible_sources=~held)).site.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")


def test_groups_of_what_is_gone_cannot_be_known_and_that_is_said(run):
    found = run(make_kept(skipped=lost(20, ""), withdrawn_sources=3))
    assert (found.site.verdict, found.site.reason_code) == ("NOT_ASSESSABLE", "missing_column")
    assert found.withdrawn.verdict == "NOT_ASSESSABLE"
    assert run(None).curation.reason_code == "no_store"


def test_few_units_are_not_judged(run):
    kept = make_kept(skipped=lost(9, "rare"), groups_of_skipped=True)
    rare = kept.groups["site"].copy()
    rare[:3] = "rare"
    assert run(replace(kept, groups={"site": rare})).site.verdict == "NOT_ASSESSABLE"


def test_the_ratio_by_hand_and_its_p_value_beside_fishers():
    units = np.arange(160).astype(str)
    values = np.repeat(["a", "b"], 80)
    kept = np.concatenate([np.ones(60), np.zeros(20), np.ones(75), np.zeros(5)])
    (first, second), few = retention("stage", units, values, kept, 2000, 0)
    assert not few
    assert first.ratio.value == pytest.approx((60 / 80) / (75 / 80))
    error = np.sqrt((1 - 0.75) / 60 + (1 - 0.9375) / 75)  # Katz: (1 - p) / (n p) for each side
    assert np.log(first.ratio.high / first.ratio.value) == pytest.approx(1.96 * error, rel=1e-3)
    assert first.p == second.p
    assert first.p == pytest.approx(fisher_exact([[60, 20], [75, 5]]).pvalue, abs=0.004)


def test_sources_of_one_unit_are_one_observation():
    values = np.repeat(["a", "b"], 400)
    kept = np.concatenate([np.zeros(40), np.ones(360), np.ones(400)])
    units = np.repeat(np.arange(80), 10).astype(str)
    (one, _), _ = retention("stage", units, values, kept, 199, 0)
    (naive, _), _ = retention("stage", np.arange(800).astype(str), values, kept, 199, 0)
    assert one.inside == 40
    assert one.p > 0.05 > naive.p


def test_random_filters_rarely_look_different():
    generator = np.random.default_rng(5)
    units, values = np.arange(120).astype(str), np.repeat(["a", "b"], 60)
    p = [retention("s", units, values, (generator.random(120) > 0.2).astype(float), 199, seed)[0][0].p for seed in range(60)]
    assert np.mean(np.array(p) <= 0.05) <= 0.12


def test_view_operations_are_listed_from_the_record(run):
    policy = {"augment": True, "policy": {"flip": {"LR": 0.5}, "rotation": None, "quarter_turns": False, "local_scale": [0.05, 0.32]}}
    assert [row[0] for row in operations_of(policy)] == ["flip", "crop (local_scale)"]
    found = run(make_kept(), policy=policy).view_policy
    assert found.verdict == "WARN"
    assert found.tables[0].rows[0][1] == "LR 0.5"
    assert run(make_kept(), policy={"augment": False}).view_policy.verdict == "CLEAR_WITHIN_LIMITS"
    assert run(make_kept()).view_policy.reason_code == "no_lineage"
