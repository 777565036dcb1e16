"""Which tiles are held, that looking changes nothing, and that every measure says what its plain twin says."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dinodomain.engine import measures
from dinodomain.engine.build import build
from dinodomain.engine.drift import FILE, Drift
from dinodomain.engine.held import MOST, hold
from dinodomain.engine.plan import WatchPlan
from dinodomain.engine.watch import NAMES, Watcher, share_of
from dinodomain.errors import UserError
from dinodomain.loader import LoaderPlan, Tiles, find_tiles
from dinodomain.loader.tiles import Bucket
from dinodomain.store import open_store

PLAIN = LoaderPlan()


def made_tiles(units=40, each=16, side=32):
    """Sources of ``each`` tiles in a row; one unit each."""
    rows = np.repeat(np.arange(units), each)
    place = np.tile(np.arange(each), units)
    return Tiles(
        buckets=(Bucket(name="b", dtype="uint8", channels=("c",), extent=(side, side)),),
        rows=rows,
        starts=np.stack([np.zeros_like(place), place * side], axis=1),
        bucket=np.zeros(len(rows), np.int64),
        tile_ids=np.arange(len(rows), dtype=np.int64) * 7919 + 13,
        units=np.array([f"u{row}" for row in rows]),
        valid_fraction=np.ones(len(rows), np.float32),
    )


def test_held_tiles_are_of_as_many_units_as_possible_and_leave_training():
    tiles = made_tiles()
    held = hold(tiles, 128, seed=0, loader=PLAIN)
    assert not held.trained
    assert len(held.tiles) == math.floor(MOST * len(tiles)) == 32
    assert len(set(held.tiles.units)) == 32
    assert not set(held.tiles.tile_ids) & set(held.left.tile_ids)
    assert len(held.left) + len(held.tiles) == len(tiles)
    assert "32 tiles of 32 units" in held.reason


def test_the_group_depends_on_seed_and_tiles_only():
    tiles = made_tiles()
    first, again, other = (hold(tiles, 20, seed=seed, loader=PLAIN).tiles.tile_ids.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert hold(tiles, 20, seed=0, loader=PLAIN).left.digest == hold(tiles, 20, seed=0, loader=PLAIN).left.digest != tiles.digest


def test_what_would_show_pixels_of_a_held_tile_goes_too():
    tiles = made_tiles(units=400)
    moved = hold(tiles, 20, seed=0, loader=LoaderPlan(aligned=False))
    for row, start in zip(moved.tiles.rows, moved.tiles.starts):
        left = moved.left.starts[moved.left.rows == row]
        assert (np.abs(left - start).max(axis=1) >= 48).all(), "reads move by half a tile"
    copied = replace(tiles, tile_ids=np.where(tiles.rows >= 200, tiles.tile_ids - 200 * 16 * 7919, tiles.tile_ids))
    held = hold(copied, 20, seed=0, loader=PLAIN)
    assert not set(held.tiles.tile_ids) & set(held.left.tile_ids)
    assert len(copied) - len(held.left) == 2 * len(held.tiles)


def test_few_tiles_are_measured_on_and_trained_on():
    tiles = made_tiles(units=4)
    held = hold(tiles, 24, seed=0, loader=PLAIN)
    assert held.trained
    assert held.left is tiles
    assert len(held.tiles) == 24
    assert "trained on, too" in held.reason


def test_no_bucket_is_emptied_and_an_undrawn_one_is_not_watched():
    tiles = made_tiles(units=60)
    small = (tiles.rows >= 58).astype(np.int64)
    two = replace(tiles, bucket=small, buckets=(tiles.buckets[0], replace(tiles.buckets[0], name="s")))
    held = hold(two, 200, seed=0, loader=PLAIN)
    lost = [len(a) - len(b) for a, b in zip(two.members, held.left.members)]
    assert lost == [math.floor(MOST * len(members)) for members in two.members]
    assert not hold(two, 200, seed=0, loader=LoaderPlan(weights={"s": 0.0})).tiles.bucket.any()


def test_off_is_off():
    tiles = made_tiles()
    held = hold(tiles, 0, seed=0, loader=PLAIN)
    assert (held.tiles, held.left) == (None, tiles)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_tiles_equally_and_each_counts_once(world):
    tiles = made_tiles(units=1, each=10)
    tiles = replace(tiles, bucket=np.array([0] * 7 + [1] * 3), buckets=tiles.buckets * 2)
    shares = [share_of(tiles, rank, world) for rank in range(world)]
    assert len({len(mine) for mine, _ in shares}) == 1
    assert sorted(place for mine, owned in shares for place in mine[owned]) == list(range(10))


def test_rankme_and_effective_rank_are_those_of_known_matrices():
    eye = torch.eye(8)
    assert measures.rankme(eye) == pytest.approx(8, rel=1e-4)
    assert measures.rankme(torch.ones(8, 8)) == pytest.approx(1, abs=1e-3)
    assert measures.rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel=1e-4
    )
    assert measures.effective_rank(torch.ones(8, 4) + 5) == 0.0
    assert measures.effective_rank(eye - eye.mean(0)) == pytest.approx(1.0, abs=1e-4)
    spread = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert measures.effective_rank(spread + 100) == pytest.approx(measures.effective_rank(spread), rel=1e-3), "an offset is no rank"


def test_neighbours_of_clear_cases():
    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    assert measures.own_neighbour(rows, rows * 3) == 1.0
    assert measures.own_neighbour(rows, rows.roll(1, 0)) == 0.0
    labels = torch.tensor([0, 0, 1, 1, 0, 1])
    features = torch.nn.functional.one_hot(labels, 2).float() + 0.01 * torch.arange(6)[:, None]
    assert measures.labelled_neighbours(features, labels, torch.arange(6)) == 1.0
    only_own = torch.tensor([0, 0, 1, 1, 0, 1])  # every class is one unit: nobody else can be asked
    assert math.isnan(measures.labelled_neighbours(features, labels, only_own))


def test_dense_matches_agree_with_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    n, grid = 2, (3, 4)
    first, second = (torch.randn(n, 12, 5, generator=generator) for _ in range(2))
    valid = torch.rand(n, 12, generator=generator) > 0.3
    index = torch.randint(-1, 12, (n, 12), generator=generator)
    position = torch.rand(n, 12, 2, generator=generator) * 3
    close = counted = 0
    for tile in range(n):
        for token in range(12):
            if index[tile, token] < 0:
                continue
            counted += 1
            best = max((torch.cosine_similarity(first[tile, token], second[tile, q], 0).item(), q) for q in range(12) if valid[tile, q])[1]
            close += all(abs(a - b) <= 1 for a, b in zip(divmod(best, 4), position[tile, token].tolist()))
    assert measures.dense_matches(first, second, valid, index, position, grid).sum(0).tolist() == [close, counted]


def test_similarities_and_their_correlation_agree_with_numpy():
    generator = torch.Generator().manual_seed(0)
    patches, valid = torch.randn(2, 5, 8, generator=generator), torch.ones(2, 5, dtype=torch.bool)
    valid[0, 2] = False
    now = measures.patch_similarity(patches, valid)
    then = measures.patch_similarity(patches + 0.5 * torch.randn(2, 5, 8, generator=generator), valid)
    assert torch.isnan(now[0]).sum() == 4
    assert now[1, 0] == pytest.approx(torch.cosine_similarity(patches[1, 0], patches[1, 1], 0).item(), rel=1e-5)
    expected = np.mean([np.corrcoef(a[~np.isnan(a)], b[~np.isnan(b)])[0, 1] for a, b in zip(now.numpy(), then.numpy())])
    assert measures.mean_correlation(now, then) == pytest.approx(expected, rel=1e-5)
    assert math.isnan(measures.mean_correlation(torch.ones(1, 4), torch.ones(1, 4)))


def test_class_tokens_like_patches_and_long_patches_are_seen():
    patches = torch.ones(1, 4, 3)
    assert measures.class_to_patches(torch.ones(1, 3), patches, torch.ones(1, 4)).item() == pytest.approx(1.0)
    norms = torch.cat([torch.linspace(1, 2, 98), torch.tensor([30.0, 40.0])])
    assert measures.outlier_share(norms) == pytest.approx(0.02)


def test_drift_is_from_the_first_look_and_survives_a_restart(tmp_path):
    generator = torch.Generator().manual_seed(0)
    first, later = (torch.rand(3, 10, generator=generator) for _ in range(2))
    drift = Drift(tmp_path, "tiles")
    assert drift.since_first(first, 10) == pytest.approx(0.0, abs=1e-9)
    moved = drift.since_first(later, 20)
    assert moved > 0.1
    assert Drift(tmp_path, "tiles").since_first(later, 20) == moved, "a resumed run compares with the same"
    assert Drift(tmp_path, "others").since_first(later, 20) == pytest.approx(0.0, abs=1e-9)
    (tmp_path / FILE).write_bytes(b"torn")
    assert Drift(tmp_path, "tiles").since_first(later, 20) == pytest.approx(0.0, abs=1e-9)


@pytest.fixture(scope="module")
def setup(tiny_plan, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("watch") / "run"
    out.mkdir()
    return build(replace(tiny_plan(out), watch=WatchPlan(tiles=16, every=5)), domain=images)


def test_a_look_tells_all_numbers_twice_alike_and_changes_nothing(setup):
    training, watcher = setup.training, setup.watcher
    before = (torch.get_rng_state(), [value.clone() for value in training.pair.state_dict().values()], training.pair.student.training)
    first = watcher.look(training)
    assert first == watcher.look(training)
    assert set(first) == set(NAMES) - {"watch_knn"}
    assert all(0 <= first[name] <= 1 for name in ("watch_knn_own", "watch_dense_match", "watch_effective_rank", "watch_outliers"))
    assert 1 <= first["watch_rankme"] <= 16
    assert first["watch_dense_drift"] == pytest.approx(0, abs=1e-6)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(a, b) for a, b in zip(training.pair.state_dict().values(), before[1]))
    assert training.pair.student.training is before[2]
    assert not training.pair.teacher.backbone.vit.norm._forward_pre_hooks


def test_features_that_forget_the_image_are_seen(setup):
    norm = setup.training.pair.teacher.backbone.vit.norm
    weight = norm.weight.data.clone()
    try:
        norm.weight.data.zero_()
        norm.bias.data.fill_(1.0)
        seen = setup.watcher.look(setup.training)
    finally:
        norm.weight.data.copy_(weight)
        norm.bias.data.zero_()
    assert seen["watch_rankme"] == pytest.approx(1, abs=0.01)
    assert seen["watch_effective_rank"] == 0
    assert seen["watch_feature_std"] < 1e-3
    assert seen["watch_cls_patch"] == pytest.approx(1)


def test_what_every_rank_is_told_travels_on_the_host(setup, monkeypatch):
    """Numbers are float64, which not every device has; this rank is not the one that measures."""
    monkeypatch.setattr("dinodomain.engine.watch.parallel.rank", lambda: 1)
    monkeypatch.setattr(setup.watcher, "_see", lambda training: {"cls": torch.zeros(2, 4, device="meta")})
    assert setup.watcher.look(setup.training) == dict.fromkeys(NAMES, 0.0)


def test_a_tile_that_only_another_rank_cannot_read_ends_the_look_here_too(setup, monkeypatch):
    """Else this rank would wait for the other for ever; both have asked each other once per batch by then."""
    asked = []
    monkeypatch.setattr("dinodomain.engine.saver.any_rank", lambda failed, device: asked.append(failed) or len(asked) == 2)
    with pytest.raises(UserError, match=r"watch\.tiles: another process failed here"):
        setup.watcher.look(setup.training)
    assert asked == [False, False]


def test_a_look_at_nan_says_nothing_instead_of_failing(setup):
    norm = setup.training.pair.teacher.backbone.vit.norm
    norm.bias.data.fill_(math.nan)
    try:
        assert setup.watcher.look(setup.training) == {}
    finally:
        norm.bias.data.zero_()


def test_it_is_due_every_so_often_and_at_the_end(setup):
    assert [step for step in range(1, 11) if setup.watcher.due(step)] == [1, 5, 10]


def labelled(setup, tmp_path, values, target="kind"):
    store = setup.store
    names = store.column("source_id")
    path = tmp_path / "labels.csv"
    path.write_text(f"id,{target}\n" + "".join(f"{name},{value}\n" for name, value in zip(names, values)))
    plan = replace(setup.training.plan, watch=WatchPlan(tiles=16, labels=str(path), target=target))
    return Watcher(store, SimpleNamespace(tiles=setup.watcher.tiles), plan, tmp_path)


def test_labels_make_the_neighbours_an_accuracy(setup, tmp_path):
    num = len(setup.store.column("source_id"))
    seen = labelled(setup, tmp_path, [index % 2 for index in range(num)]).look(setup.training)
    assert "watch_knn" in seen
    assert seen["watch_knn_own"] == setup.watcher.look(setup.training)["watch_knn_own"]


def test_labels_that_are_no_classes_or_too_few_are_refused(setup, tmp_path):
    num = len(setup.store.column("source_id"))
    with pytest.raises(UserError, match=r"watch\.target"):
        labelled(setup, tmp_path, [index + 0.5 for index in range(num)])
    with pytest.raises(UserError, match=r"watch\.labels"):
        labelled(setup, tmp_path, ["a", "b"] + [""] * (num - 2))


def test_a_volume_is_watched_too(tiny_plan, volumes, volume_store, tmp_path):
    plan = replace(tiny_plan(tmp_path), store=str(volume_store), watch=WatchPlan(tiles=4))
    setup = build(plan, domain=volumes)
    assert len(setup.watcher.tiles) == len(find_tiles(open_store(str(volume_store)), plan.loader))
    assert "watch_dense_match" in setup.watcher.look(setup.training)
