"""One global order however it is shared out: processes, threads, ranks, and a run that stopped and goes on elsewhere."""

from __future__ import annotations

import collections
import itertools
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.loader.loader import order_digest
from dinodomain.store import StorePlan, array_record, build_store, open_store

STEPS = 7


@pytest.fixture(scope="session")
def mixed(images, tmp_path_factory):
    """The images of two buckets, and a second store of one of these and one of its own."""
    rng = np.random.default_rng(5)
    sizes = [(20, 31)] * 7 + [(100, 20)] * 5
    sources = {f"m{i:02d}": array_record(rng.integers(0, 255, (3, *size)).astype(np.uint8), layout="whole") for i, size in enumerate(sizes)}
    folder = tmp_path_factory.mktemp("mixed")
    build_store(folder / "second", sources, domain="made-up")
    path = folder / "mix.yaml"
    path.write_text(f"stores: [{{path: {images.path}, share: 1}}, {{path: second, share: 2}}]")
    return open_store(path, mixed=True)


@pytest.fixture(scope="session")
def dated(tmp_path_factory):
    """One place at four dates, and another at three."""
    rng = np.random.default_rng(6)
    sources = {}
    for i in range(7):
        affine = (10.0, 0, 0.0 if i < 4 else 5000.0, 0, -10.0, 0.0, 0, 0, 1)
        record = array_record(rng.integers(0, 4000, (2, 50, 60)).astype(np.uint16))
        sources[f"d{i}"] = replace(record, affine=affine, crs="one", acquired=f"2020-01-{10 + 3 * i}")
    return build_store(
        tmp_path_factory.mktemp("dated") / "store", sources, domain="made-up", units=dict.fromkeys(sources, ""), plan=StorePlan(chunk=16)
    )


CASES = {
    "plain": ("images", {}),
    "draws": ("images", {"draws": 2, "spread": 3}),
    "moved": ("scenes", {"aligned": False, "tile": 32}),
    "dates": ("dated", {"pairs": "dates", "dates": 3}),
    "mix": ("mixed", {}),
    "all": ("dated", {"pairs": "dates", "aligned": False, "draws": 4, "spread": 1}),
}


@pytest.fixture
def case(request):
    """Store and plan of a case by name, read where they are asked for."""

    def find(name):
        store, keys = CASES[name]
        return request.getfixturevalue(store), LoaderPlan(batch=8, workers=0, threads=0, **keys)

    return find


def drawn(store, plan, *, world=1, count=STEPS, state=None):
    """Per step, the samples of all ranks by their slot in the global batch, with every pixel."""
    found = [{} for _ in range(count)]
    for rank in range(world):
        loader = Loader(store, plan, seed=5, rank=rank, world=world)
        if state is not None:
            loader.load_state_dict(state)
        with closing(iter(loader)) as batches:
            for step, batch in zip(range(count), batches):
                samples, dates = batch.pixels.shape[:2]
                rows, origins = batch.rows.reshape(samples, dates).tolist(), batch.origins.reshape(samples, dates, -1).tolist()
                facts = zip(batch.tile_ids.tolist(), batch.epochs.tolist(), batch.draws.tolist(), rows, origins, batch.pixels.numpy())
                for slot, (*numbers, pixels) in zip(batch.slots.tolist(), facts):
                    assert slot not in found[step]
                    found[step][slot] = (numbers, pixels.tobytes())
    assert all(sorted(step) == list(range(plan.batch)) for step in found)
    return found


@pytest.mark.parametrize(("workers", "world"), [(1, 2), (2, 2), (4, 1)])
def test_reader_processes_and_ranks_never_change_the_order(case, workers, world):
    store, plan = case("plain")
    assert drawn(store, replace(plan, workers=workers, threads=1), world=world) == drawn(store, plan)


@pytest.mark.parametrize("name", CASES)
def test_whatever_is_drawn_is_shared_out_alike(case, name):
    store, plan = case(name)
    alone = drawn(store, plan)
    assert drawn(store, plan, world=2) == alone
    assert drawn(store, replace(plan, threads=2, prefetch=1), world=1) == alone
    if name != "plain":
        assert drawn(store, replace(plan, workers=2, threads=1)) == alone


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_at_any_step_with_another_number_of_ranks(case, name):
    store, plan = case(name)
    alone = drawn(store, plan)
    for step in (1, 2, 5):
        state = {**Loader(store, plan, seed=5).state_dict(), "step": step}
        assert drawn(store, replace(plan, threads=1), world=2, count=STEPS - step, state=state) == alone[step:]


def test_a_state_of_any_step_is_found_again_at_once(case):
    store, plan = case("all")
    state = {**Loader(store, plan, seed=5).state_dict(), "step": 10**12}
    assert drawn(store, plan, count=2, state=state, world=2) == drawn(store, plan, count=2, state=state)


def test_each_read_gives_its_draws_in_steps_of_their_own_and_is_marked_when_it_is_done_with(case):
    store, plan = case("draws")
    loader = Loader(store, plan, seed=5)
    seen, over = collections.defaultdict(list), set()
    for step, job in enumerate(itertools.islice(loader._jobs(0), 60)):
        first = 0
        for part in job.parts:
            assert part.key not in over, "a later step draws a part that was said to be done with"
            if part.last:
                over.add(part.key)
            draws = set(job.draws[first : first + len(part.rows)].tolist())
            first += len(part.rows)
            seen[part.key].append((step, *draws))
            assert part.rows.shape == (4, 1)
            assert part.starts.shape == (4, 1, 2)
    complete = {key: found for key, found in seen.items() if key in over}
    assert {tuple(number for _, number in found) for found in complete.values()} == {(0, 1), (0,)}
    early = [key for key, found in complete.items() if len(found) == 1]
    assert sorted(early) == [(bucket, group) for bucket in (0, 1) for group in range(3)]  # their other draw lies before step 0


def test_views_of_two_draws_of_a_tile_differ(case):
    from dinodomain.domain import ViewPolicy
    from dinodomain.views import ViewsPlan, draw

    store, plan = case("draws")
    kept = {}
    with closing(iter(Loader(store, plan, seed=5))) as batches:
        for batch in itertools.islice(batches, 20):
            params = draw(
                ViewPolicy(axes=("NS", "EW")), ViewsPlan(num_local=0), seed=0, tile_ids=batch.tile_ids, epochs=batch.epochs,
                draws=batch.draws, valid_box=batch.info.valid_box, spacing=batch.info.spacing, sources=(0,),
            )  # fmt: skip
            boxes = params.groups[0].boxes.reshape(2, 8, 2, 2).transpose(0, 1)
            for tile, epoch, number, box in zip(batch.tile_ids.tolist(), batch.epochs.tolist(), batch.draws.tolist(), boxes.tolist()):
                kept.setdefault((tile, epoch), {})[number] = box
    both = [found for found in kept.values() if len(found) == 2]
    assert len(both) > 20
    assert all(found[0] != found[1] for found in both)


def test_a_read_is_shared_by_all_ranks_or_refused():
    store, plan = None, LoaderPlan(batch=8, draws=2)
    with pytest.raises(
        UserError, match=r"loader.batch: 8 samples are 4 tiles for each of loader.draws=2, .* among 3 ranks; allowed: multiples of 6"
    ):
        Loader(store, plan, seed=0, world=3)


# What a state knows.


def test_the_digest_of_today_s_defaults_never_changes_because_runs_of_earlier_versions_resume(images):
    assert order_digest("store", "tiles", [1.0, 2.0], LoaderPlan()) == "125af2f4885a22100c5ebd26704d13e0f2cf33b5e2e696ce81ab6e9882ef2922"
    assert order_digest("store", "tiles", [1.0, 2.0], LoaderPlan(spread=9, dates=3, workers=3, prefetch=1)) == order_digest(
        "store", "tiles", [1.0, 2.0], LoaderPlan()
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plain", {"draws": 2}),
        ("draws", {"spread": 2}),
        ("draws", {"draws": 4}),
        ("moved", {"aligned": True}),
        ("moved", {"min_valid": 0.4}),
        ("dates", {"dates": 2}),
        ("dates", {"min_days": 3}),
        ("dates", {"pairs": "none"}),
    ],
)
def test_what_changes_the_order_changes_its_digest(case, name, change):
    store, plan = case(name)
    before, after = Loader(store, plan, seed=5), Loader(store, replace(plan, **change), seed=5)
    assert before.index_digest != after.index_digest
    with pytest.raises(UserError, match=r"changed since it was saved.*resume=force"):
        after.load_state_dict(before.state_dict())
    after.load_state_dict({**before.state_dict(), "step": 9}, changed=True)
    assert after.state_dict()["step"] == 9
    with pytest.raises(UserError, match="was saved with seed 5, now 6"):
        Loader(store, plan, seed=6).load_state_dict(before.state_dict(), changed=True)


# Mixes.


def test_stores_of_a_mix_meet_in_batches_of_their_common_bucket(mixed):
    loader = Loader(mixed, LoaderPlan(batch=8, workers=0, threads=0), seed=5)
    seen = collections.Counter()
    for step in range(300):
        draw = loader.order.at(step)
        owners = set(mixed.member[loader.tiles.rows[loader.tiles.members[draw.bucket][draw.tiles]]].tolist())
        seen[(loader.buckets[draw.bucket].extent, *sorted(owners))] += 1
    assert {key[0] for key in seen} == {(32, 32), (64, 32), (128, 32)}
    together = {key for key in seen if key[1:] == (0, 1)}
    assert {key[0] for key in together} == {(32, 32)}


def test_samples_of_each_store_and_unit_are_counted_as_drawn(mixed):
    loader = Loader(mixed, LoaderPlan(batch=8, draws=2, spread=3, workers=0, threads=0), seed=5)
    counted = [collections.Counter(), collections.Counter()]
    units, steps = mixed.column("unit"), 300
    for step in range(steps):
        draw = loader.order.at(step)
        for row in loader.tiles.rows[loader.tiles.members[draw.bucket][draw.tiles]].tolist():
            counted[mixed.member[row]][units[row]] += 1
        if step in (0, 6, 99):
            assert dict(loader.drawn_units(step + 1, store=1)) == counted[1]
            assert dict(loader.drawn_units(step + 1)) == counted[0] + counted[1]
    first, second = (sum(count.values()) for count in counted)
    assert second / first == pytest.approx(2, rel=0.01)
    late = loader.drawn_units(steps, since=100)
    assert sum(late.values()) == 200 * 8


def test_a_weight_that_leaves_a_store_nothing_is_refused(mixed):
    names = [bucket.name for bucket in Loader(mixed, LoaderPlan(batch=8), seed=0).buckets if bucket.extent != (64, 32)]
    with pytest.raises(UserError, match=r"stores\[1\]: has no tile to draw"):
        Loader(mixed, LoaderPlan(batch=8, weights=dict.fromkeys(names, 0.0)), seed=0)
    with pytest.raises(UserError, match=r"loader\.weights\.x: is no bucket.*\n.*loader\.weights\.y: is no bucket"):
        Loader(mixed, LoaderPlan(batch=8, weights={"x": 1.0, "y": 2.0}), seed=0)
