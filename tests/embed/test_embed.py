from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dinodomain.checkpoint import save_backbone
from dinodomain.embed import (
    EmbedPlan,
    embed,
    embed_store,
    load_features,
    load_record,
    load_tokens,
    network_input,
    pixel_features,
    save_features,
    sides_for,
)
from dinodomain.embed.tiles import area_mean, pool_features, token_weights
from dinodomain.errors import UserError
from dinodomain.loader import LoaderPlan, sweep
from dinodomain.model import Backbone, ModelPlan
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, SyntheticVolumes, tiny_store
from dinodomain.types import Features, Normalisation
from dinodomain.views import to_network

IMAGES = SyntheticImages(size=(32, 48), nodata=True)
SCENES = SyntheticImages(size=(80, 80), layout="window", epsg=32631)
VOLUMES = SyntheticVolumes(size=(32, 32, 32))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_store(tiny_store(tmp_path_factory.mktemp("store") / "images", domain=IMAGES, num=6))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return open_store(tiny_store(tmp_path_factory.mktemp("store") / "volumes", domain=VOLUMES, num=3))


def make_backbone(channels=("c0", "c1", "c2"), ndim=2, size=16, patch=8) -> Backbone:
    torch.manual_seed(0)
    count = len(channels)
    numbers = Normalisation(
        mode="source", channels=channels, low=(0.0,) * count, high=(1.0,) * count, mean=(0.5,) * count, std=(0.25,) * count
    )
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=patch, registers=1, drop_path=0.5, layer_scale=1.0)
    return Backbone.create(plan, ndim=ndim, image_size=size, normalisation=numbers, domain="synthetic")


def test_each_tile_becomes_one_row_in_index_order(images):
    table = embed_store(make_backbone(), images, IMAGES, batch=4)
    assert table.features.shape == (6, 32)
    assert table.features.dtype == np.float32
    assert table.rows.tolist() == list(range(6))
    assert table.content_hash.tolist() == images.column("content_hash").tolist()
    assert table.units.tolist() == images.column("unit").tolist()
    assert not table.columns["holdout"].any()


def test_features_do_not_depend_on_the_batch_nor_on_dropped_paths(images):
    backbone = make_backbone().train()
    first, second = (embed_store(backbone, images, IMAGES, batch=batch) for batch in (1, 6))
    np.testing.assert_allclose(first.features, second.features, atol=1e-5)
    assert backbone.training


def test_rows_choose_sources(images):
    table = embed_store(make_backbone(), images, IMAGES, rows=[4, 1])
    assert table.rows.tolist() == [1, 4]


def test_tokens_come_on_their_grid_under_content_hash_and_tile(images):
    table, tokens = embed_store(make_backbone(), images, IMAGES, tokens=True, pool="mean", size=32)
    assert len(tokens.tokens) == 6
    whole = int(np.flatnonzero(table.columns["valid_fraction"] == 1.0)[0])
    grid = tokens.of(table, whole)
    assert grid.shape == (2, 4, 16)  # 32 x 48 pixels in a 32 x 64 slot; the last column of patches is padding
    np.testing.assert_allclose(grid[:, :3].reshape(-1, 16).mean(0), table.features[whole], atol=2e-3)


def test_channels_the_backbone_does_not_know_are_refused(images):
    with pytest.raises(UserError, match=r"store: has the channels c0, c1, c2; allowed: a, b, c"):
        embed_store(make_backbone(("a", "b", "c")), images, IMAGES)


def test_the_order_of_a_stores_channels_is_free(images):
    backbone = make_backbone(("c2", "c0", "c1"))
    batch = next(sweep(images, LoaderPlan(batch=6)))
    pixels, _ = to_network(batch, to_float=IMAGES.to_float, normalisation=backbone.normalisation, size=(16, 16))
    plain, _ = to_network(batch, to_float=IMAGES.to_float, normalisation=make_backbone().normalisation, size=(16, 16))
    assert torch.equal(pixels, plain[:, [2, 0, 1]])
    assert embed_store(backbone, images, IMAGES).features.shape == (6, 32)


@pytest.mark.parametrize(("extent", "sides"), [((64, 64), (32, 32)), ((64, 32), (32, 16)), ((64, 4), (32, 8)), ((32, 96, 64), (8, 32, 24))])
def test_the_longest_side_gets_the_pretraining_size_and_the_others_keep_proportion(extent, sides):
    assert sides_for(extent, 32, 8) == sides


def test_each_side_is_a_multiple_of_its_own_patch():
    assert sides_for((32, 96, 64), 48, (2, 8, 16)) == (16, 48, 32)
    assert sides_for((28, 96, 70), 48, (2, 8, 16)) == (14, 48, 32)
    with pytest.raises(UserError, match=r"embed\.size: is 44; allowed: a multiple of the patch 8, for example 48"):
        sides_for((32, 96, 64), 44, (2, 8, 16))
    assert token_weights(torch.ones(2, 4, 16, 16, dtype=torch.bool), (2, 8, 16)).shape == (2, 4)


def test_a_size_that_patches_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"embed\.size: is 30; allowed: a multiple of the patch 8, for example 32"):
        sides_for((64, 64), 30, 8)


def test_patches_that_are_not_cubes_divide_each_side_by_their_own():
    assert sides_for((32, 96, 90), 48, (4, 16, 16)) == (16, 48, 48)
    assert sides_for((3, 96, 96), 48, (4, 16, 16)) == (4, 48, 48)
    assert sides_for((64, 32, 32), 36, (4, 16, 16)) == (36, 16, 16)  # the patch of the longest axis alone must divide it
    with pytest.raises(UserError, match=r"embed\.size: is 36; allowed: a multiple of the patch 16, for example 32"):
        sides_for((32, 64, 64), 36, (4, 16, 16))


def test_volumes_go_through_patches_that_are_not_cubes(volumes):
    backbone = make_backbone(volumes.channels, ndim=3, patch=(4, 8, 8))
    table, tokens = embed_store(backbone, volumes, VOLUMES, batch=2, tokens=True)
    assert table.features.shape == (3, 32)
    assert tokens.of(table, 0).shape == (4, 2, 2, 16)


def test_the_pixel_size_told_is_that_after_resizing_in_array_order(volumes):
    batch = next(sweep(volumes, LoaderPlan(batch=2)))
    told = network_input(make_backbone(volumes.channels, ndim=3), batch, VOLUMES, (8, 16, 32)).about
    assert tuple(batch.pixels.shape[3:]) == (96, 96, 96)  # volumes of 32 pixels, padded to the tile
    torch.testing.assert_close(told.spacing, batch.info.spacing * torch.tensor([12.0, 6.0, 3.0]))
    assert told.channels == ()


def test_pooling_leaves_invalid_patches_out():
    features = Features(
        cls=torch.zeros(2, 1), registers=torch.zeros(2, 0, 1), patches=torch.tensor([[[1.0], [5.0]], [[1.0], [5.0]]]), grid=(1, 2)
    )
    valid = torch.zeros(2, 2, 4, dtype=torch.bool)
    valid[0, :, :2] = True
    weights = token_weights(valid, 2)
    assert weights.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert pool_features(features, weights, "mean").flatten().tolist() == [1.0, 3.0]
    assert pool_features(features, weights, "cls+mean").shape == (2, 2)


def test_pooling_equals_the_backbones_own_where_all_is_valid():
    backbone = make_backbone().eval()
    x = torch.randn(2, 3, 16, 16)
    features = backbone.encode(x)
    ours = pool_features(features, torch.ones(2, 4), backbone.pooling).detach().numpy()
    np.testing.assert_allclose(ours, backbone.features(x), atol=1e-6)


def test_area_means_are_hand_derived():
    pixels = torch.arange(16.0).reshape(1, 1, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    assert area_mean(pixels, valid, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    valid[0, 0] = False
    valid[0, 2:, 2:] = False
    masked = area_mean(pixels * valid[:, None], valid, 2).flatten()
    torch.testing.assert_close(masked, torch.tensor([4.5, 6.5, 10.5, 0.0]))


def test_the_pixel_baseline_has_the_same_rows_as_the_features(images, volumes):
    pixels, features = pixel_features(images, IMAGES), embed_store(make_backbone(), images, IMAGES)
    assert pixels.features.shape == (6, 3 * 16 * 16)
    assert pixels.tile_ids.tolist() == features.tile_ids.tolist()
    cells = pixel_features(volumes, VOLUMES)
    assert cells.features.shape == (3, 8**3)
    assert np.isfinite(cells.features).all()


def test_volumes_are_embedded_by_window_tiles(volumes):
    table = embed_store(make_backbone(volumes.channels, ndim=3), volumes, VOLUMES, batch=2)
    assert table.features.shape == (3, 32)


def test_tiles_of_a_scene_carry_the_units_of_their_cells(tmp_path):
    store = open_store(tiny_store(tmp_path / "scenes", domain=SCENES, num=3))
    table = embed_store(make_backbone(store.channels), store, SCENES)
    assert len(table.rows) >= 3
    assert all(table.units)


def test_held_out_tiles_are_marked_and_can_be_left_out(tmp_path):
    store = open_store(tiny_store(tmp_path / "held", domain=IMAGES, num=24, audit_holdout=0.3))
    table = embed_store(make_backbone(), store, IMAGES)
    held = table.columns["holdout"]
    assert 0 < held.sum() < 24
    assert embed_store(make_backbone(), store, IMAGES, holdout="exclude").rows.tolist() == table.rows[~held].tolist()
    assert embed_store(make_backbone(), store, IMAGES, holdout="only").rows.tolist() == table.rows[held].tolist()


def test_tables_come_back_from_disk_with_every_bit(images, tmp_path):
    table, tokens = embed_store(make_backbone(), images, IMAGES, tokens=True)
    save_features(tmp_path, table, tokens=tokens, record={"kind": "features"})
    again = load_features(tmp_path)
    assert np.array_equal(table.features, again.features)
    for name in ("content_hash", "tile_ids", "rows", "units"):
        assert getattr(table, name).tolist() == getattr(again, name).tolist()
    for name, values in table.columns.items():
        np.testing.assert_array_equal(values, again.columns[name])
    back = load_tokens(tmp_path)
    assert all(np.array_equal(value, back.tokens[name]) for name, value in tokens.tokens.items())
    assert load_record(tmp_path) == {"kind": "features"}


def test_altered_and_half_written_features_are_refused_by_name(images, tmp_path):
    save_features(tmp_path, embed_store(make_backbone(), images, IMAGES))
    with pytest.raises(UserError, match=r"embed\.tokens=true"):
        load_tokens(tmp_path)
    path = tmp_path / "features.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"features\.parquet: is missing or does not match its digest"):
        load_features(tmp_path)
    with pytest.raises(UserError, match="not a readable parquet"):
        load_features(path)
    (tmp_path / "lineage.json").unlink()
    with pytest.raises(UserError, match=r"has no lineage\.json"):
        load_features(tmp_path)


def test_the_verb_writes_features_tokens_and_where_they_came_from(images, tmp_path):
    save_backbone(tmp_path / "b.safetensors", make_backbone(), history={"kind": "export", "digest": "abc"})
    plan = EmbedPlan(
        checkpoint=str(tmp_path / "b.safetensors"),
        store=str(images.path),
        out=str(tmp_path / "out"),
        tokens=True,
        device="cpu",
        loader=LoaderPlan(threads=0),
    )
    done = embed(plan, domain=IMAGES)
    record = load_record(tmp_path / "out")
    assert record["parents"] == {"checkpoint": "abc", "store": images.digest}
    assert record["counts"] == {"tiles": 6, "units": 3}
    assert str(tmp_path) not in json.dumps(record)
    assert "6 tiles, 32 features each" in done.text()
    assert done.as_json()["tiles"] == 6


def test_an_embed_plan_without_sense_is_refused():
    with pytest.raises(UserError, match=r"store: is empty.*\n.*embed\.batch: is 0"):
        EmbedPlan(checkpoint="a", store=" ", out="b", batch=0)


def test_keys_that_draw_samples_are_refused_where_every_tile_is_read_once(images):
    drawn = LoaderPlan(batch=4, draws=2, pairs="dates", aligned=False, weights={"a": 2.0})
    with pytest.raises(
        UserError, match=r"embed\.batch: is 0.*\n.*loader\.aligned.*\n.*loader\.draws: is 2.*\n.*loader\.pairs: is dates"
    ) as caught:
        EmbedPlan(checkpoint="a", store="b", out="c", batch=0, loader=drawn)
    assert "loader.weights" in str(caught.value)
    with pytest.raises(UserError, match=r"loader\.pairs: is dates where every tile is read once; allowed: none"):
        pixel_features(images, IMAGES, plan=LoaderPlan(pairs="dates"))
