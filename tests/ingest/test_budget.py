"""A budget is never exceeded, starves no place, season or sensor, and hangs on seed and sources alone."""

from __future__ import annotations

import dataclasses
import random

import pytest

from dinodomain.errors import UserError
from dinodomain.ingest.budget import choose, season_of, strata_of
from dinodomain.store import open_store
from dinodomain.types import SourceRef

CELL_M = 20000.0


def scene(name, size, stratum):
    """Strata differ in place, date and sensor by turns."""
    facts = {
        "bytes_in": size,
        "lon": 5.0 + stratum // 3,
        "lat": 45.0,
        "acquired": f"2020-{1 + 3 * (stratum % 3):02d}-15",
        "platform": "S2A",
    }
    return SourceRef(source_id=name, uris=(name,), keys={}, unit=None, digest=name, facts=facts)


def scenes(seed, strata=6, most=30):
    draw = random.Random(seed)
    return [
        scene(f"{stratum}/{number}", draw.randint(1, 100), stratum) for stratum in range(strata) for number in range(draw.randint(1, most))
    ]


def spend(refs, budget, seed=0, present=()):
    return choose(refs, budget=budget, seed=seed, cell_m=CELL_M, present=present)


def covered(refs, choice):
    return {stratum for ref, stratum in zip(refs, strata_of(refs, CELL_M)) if ref.source_id in choice.chosen}


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_never_exceeded_and_nothing_that_fits_is_left(seed):
    refs, budget = scenes(seed), random.Random(seed).randint(0, 4000)
    choice, sizes = spend(refs, budget, seed), {ref.source_id: ref.facts["bytes_in"] for ref in refs}
    assert choice.spent == sum(sizes[name] for name in choice.chosen) <= budget
    left = [size for name, size in sizes.items() if name not in choice.chosen]
    assert all(size > budget - choice.spent for size in left)
    assert (choice.strata, choice.covered) == (6, len(covered(refs, choice)))


@pytest.mark.parametrize("seed", range(20))
def test_every_stratum_gets_a_source_as_long_as_the_smallest_ones_fit(seed):
    refs = scenes(seed, strata=9)
    least = {}
    for ref, stratum in zip(refs, strata_of(refs, CELL_M)):
        least[stratum] = min(least.get(stratum, 1000), ref.facts["bytes_in"])
    assert len(covered(refs, spend(refs, sum(least.values()), seed))) == len(least) == 9


@pytest.mark.parametrize("seed", range(20))
def test_sources_of_another_stratum_take_nobodys_place(seed):
    refs = scenes(seed, strata=5)
    budget = 1200
    more = [*refs, *(scene(f"other/{number}", 40 + number, 17) for number in range(50))]
    assert covered(refs, spend(refs, budget, seed)) < covered(more, spend(more, budget, seed))


@pytest.mark.parametrize("seed", range(10))
def test_the_choice_does_not_hang_on_the_order_in_which_sources_are_found(seed):
    refs = scenes(seed)
    shuffled = random.Random(seed + 1).sample(refs, len(refs))
    assert spend(refs, 900, seed) == spend(shuffled, 900, seed)


def test_another_seed_chooses_others():
    refs = scenes(1)
    assert spend(refs, 600, 0) == spend(refs, 600, 0)
    assert spend(refs, 600, 0).chosen != spend(refs, 600, 1).chosen


@pytest.mark.parametrize("seed", range(10))
def test_a_second_run_adds_nothing_and_a_larger_budget_only_adds(seed):
    refs = scenes(seed)
    first = spend(refs, 700, seed)
    assert spend(refs, 700, seed, present=first.chosen) == first
    assert spend(refs, 1400, seed, present=first.chosen).chosen > first.chosen


def test_strata_share_a_budget_evenly_however_many_sources_they_have():
    refs = [scene(f"rare/{n}", 10, 0) for n in range(20)] + [scene(f"common/{n}", 10, 1) for n in range(2000)]
    chosen = spend(refs, 300).chosen
    assert sum(name.startswith("rare") for name in chosen) == 15


def test_very_many_sources_are_chosen_from_in_a_moment():
    refs = [scene(f"{n:06d}", 1 + n % 7, n % 50) for n in range(20_000)]
    assert spend(refs, 30_000).covered == 50


@pytest.mark.parametrize(
    ("acquired", "lat", "season"),
    [
        ("2020-12-01", 50.0, "winter"), ("2021-02-28", 50.0, "winter"), ("2021-03-01", 50.0, "spring"), ("2021-08-31", 50.0, "summer"),
        ("2021-11-30", 50.0, "autumn"), ("2020-12-01", -30.0, "summer"), ("2021-03-01T10:00:00Z", -30.0, "autumn"),
        ("2021-06", -30.0, "winter"), ("2021-06", None, "summer"), ("", 50.0, ""), ("2021", 50.0, ""), ("2021-13-01", 50.0, ""),
    ],
)  # fmt: skip
def test_seasons_are_meteorological_and_turn_round_at_the_equator(acquired, lat, season):
    assert season_of(acquired, lat) == season


def test_a_source_that_states_no_size_is_refused_with_the_remedy():
    nameless = dataclasses.replace(scene("b", 1, 0), facts={})
    with pytest.raises(UserError, match="1 of 2 sources do not state how many bytes they take, 'b' among them; leave them out with"):
        spend([scene("a", 1, 0), nameless], 5)


def test_an_ingest_keeps_to_its_budget_and_lists_the_rest(tmp_path, run, archive, snapshot):
    summary = run("generate:8", tmp_path / "store", archive(), budget="21KB")  # each takes 6912 bytes
    assert (summary.added, summary.left_out) == (3, 5)
    assert summary.skipped[0].reason == "left out by ingest.budget=21KB"
    assert "left out by choice: 5\n  5 x left out by ingest.budget=21KB; raise ingest.budget to take more in" in summary.text()
    before = snapshot(tmp_path / "store")
    again = run("generate:8", tmp_path / "store", archive(), budget="21KB", strict=True)
    assert (again.added, again.present) == (0, 3)
    assert snapshot(tmp_path / "store") == before
    assert run("generate:8", tmp_path / "store", archive(), budget="35KB").added == 2
    assert len(open_store(tmp_path / "store").manifest["skipped"]) == 3


def test_jobs_of_an_array_choose_alike(tmp_path, run, archive, snapshot):
    run("generate:8", tmp_path / "whole", archive(), budget="28KB", seed=3)
    for shard in ("1/3", "2/3", "3/3"):
        run("generate:8", tmp_path / "store", archive(), budget="28KB", seed=3, shard=shard)
    assert len(list((tmp_path / "store.partial" / "staged").iterdir())) == 4
    run("generate:8", tmp_path / "store", archive(), budget="28KB", seed=3)
    assert snapshot(tmp_path / "whole") == snapshot(tmp_path / "store")
