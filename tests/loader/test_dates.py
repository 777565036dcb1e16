"""Several dates of one place: the same ground by construction, on made-up scenes whose pixels know where they lie, and on real ones."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.loader import Loader, LoaderPlan, find_tiles
from dinodomain.loader.boxes import Boxes
from dinodomain.loader.dates import Anchors, Dates
from dinodomain.loader.grid import ChunkGrid
from dinodomain.store import StorePlan, array_record, build_store, open_store

PAIRS = LoaderPlan(pairs="dates")


def placed(pixels, *, top=0, left=0, day="2020-01-01", crs="one", layout="window"):
    """A record of 10 m pixels whose corner lies at (top, left) of a common grid."""
    affine = (10.0, 0, 10.0 * left, 0, -10.0, -10.0 * top, 0, 0, 1)
    return replace(array_record(pixels, layout=layout), affine=affine, crs=crs, acquired=day)


def ground(top, left, height, width, date):
    """[2, height, width] uint16: row and column of the common grid, the date in the highest bits of the first."""
    rows, columns = np.meshgrid(np.arange(top, top + height), np.arange(left, left + width), indexing="ij")
    return np.stack([rows + date * 1024, columns]).astype(np.uint16)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Crops of one orbit tile at four dates, and two of the same numbers in another map zone."""
    places = [(0, 0, 100, 90), (0, 0, 100, 90), (20, 10, 70, 70), (5, 30, 110, 60), (0, 0, 100, 90), (5, 30, 110, 60)]
    sources = {}
    for i, (top, left, height, width) in enumerate(places):
        pixels = ground(top, left, height, width, i)
        sources[f"s{i}"] = placed(pixels, top=top, left=left, day=f"2020-0{1 + i}-05", crs="one" if i < 4 else "two")
    return build_store(
        tmp_path_factory.mktemp("crops") / "store", sources, domain="made-up", units=dict.fromkeys(sources, ""), plan=StorePlan(chunk=16)
    )


@pytest.mark.parametrize("aligned", [True, False])
def test_a_batch_shows_one_place_at_different_dates(crops, aligned):
    plan = LoaderPlan(batch=24, tile=32, pairs="dates", dates=3, aligned=aligned, threads=0, workers=0)
    loader = Loader(crops, plan, seed=3)
    assert set(loader.tiles.rows) <= {0, 1, 2, 3}  # the other zone has but two dates
    seen = set()
    for batch in itertools.islice(loader, 3):
        assert batch.pixels.shape == (24, 3, 2, 32, 32)
        rows = batch.rows.reshape(24, 3).tolist()
        origins = batch.origins.reshape(24, 3, 2).numpy()
        for images, sources, starts in zip(batch.pixels.numpy(), rows, origins):
            assert len(set(sources)) == 3
            seen.add(tuple(sources))
            dates, lines = images[:, 0] // 1024, images[:, 0] % 1024
            real = (images[:, 1] > 0) | (lines > 0)
            assert all(set(dates[i][real[i]]) == {source} for i, source in enumerate(sources))
            own = real[0]
            assert own.any()
            for i in (1, 2):  # whatever the tile shows, the others show too
                np.testing.assert_array_equal(lines[i][own], lines[0][own])
                np.testing.assert_array_equal(images[i, 1][own], images[0, 1][own])
            assert (starts >= 0).all() or not aligned
    assert len(seen) > 6


def test_another_epoch_may_choose_other_dates(crops):
    tiles = find_tiles(crops, replace(PAIRS, tile=32))
    boxes = Boxes(crops, tiles, replace(PAIRS, tile=32), 0)
    rows = np.stack([boxes.of(np.arange(len(tiles)), np.full(len(tiles), epoch))[0] for epoch in range(30)])
    assert (rows[..., 0] == tiles.rows).all()
    choices = [len(set(rows[:, i, 1].tolist())) for i in range(len(tiles))]
    assert max(choices) == 3
    assert np.mean(choices) > 1.5


def test_partners_are_drawn_equally_often(made_up_store):
    num = 9
    columns = {"crs": ["one"] * num, "affine": [[10.0, 0, 0, 0, -10.0, 0]] * num}
    store = made_up_store([(1, 16, 16)] * num, chunks=[16] * num, acquired=[f"2020-01-{1 + i:02d}" for i in range(num)], **columns)
    tiles = find_tiles(store, PAIRS)
    rows, _ = Boxes(store, tiles, PAIRS, 1).of(np.zeros(4000, int), np.arange(4000))
    counts = np.bincount(rows[:, 1], minlength=num)
    assert counts[0] == 0
    assert ((counts[1:] - 500) ** 2 / 500).sum() < 24.3  # chi-square, 7 degrees of freedom, one in a thousand


def test_a_date_in_the_middle_does_not_cost_a_sample(made_up_store):
    """Days 0, 9, 10, 11, 20 with at least 10 days between: only 0, 10 and 20 make three."""
    days = [0, 9, 10, 11, 20]
    columns = {"crs": ["one"] * 5, "affine": [[10.0, 0, 0, 0, -10.0, 0]] * 5}
    store = made_up_store([(1, 16, 16)] * 5, chunks=[16] * 5, acquired=[f"2020-01-{1 + day:02d}" for day in days], **columns)
    plan = LoaderPlan(pairs="dates", dates=3, min_days=10)
    tiles = find_tiles(store, plan)
    assert tiles.rows.tolist() == [0, 2, 4]
    rows, _ = Boxes(store, tiles, plan, 0).of(np.repeat(np.arange(3), 50), np.tile(np.arange(50), 3))
    assert {tuple(sorted(found)) for found in rows.tolist()} == {(0, 2, 4)}


def test_tiles_are_listed_where_their_dates_are_valid_and_in_reach(made_up_store):
    columns = {"crs": ["one"] * 3, "affine": [[10.0, 0, 0, 0, -10.0, 0]] * 3, "acquired": ["2020-01-01", "2020-01-02", "2020-03-01"]}
    # Four chunks of 16 a side of 32, once cloudy in one quarter, once held out in another; the third is half as high.
    fraction = np.array([1, 1, 1, 1, 1, 0.1, 1, 1, 1, 1])
    held = np.arange(10) == 6
    store = made_up_store([(1, 32, 32), (1, 32, 32), (1, 16, 32)], chunks=[16] * 3, fraction=fraction, holdout=held, **columns)
    tiles = find_tiles(store, PAIRS)
    listed = set(zip(tiles.rows.tolist(), map(tuple, tiles.starts.tolist())))
    assert listed == {(0, (0, 0)), (0, (0, 16)), (0, (16, 16)), (1, (0, 0)), (1, (16, 16)), (2, (0, 0)), (2, (0, 16))}
    later = find_tiles(store, replace(PAIRS, min_days=30))
    assert set(zip(later.rows.tolist(), map(tuple, later.starts.tolist()))) == {
        (0, (0, 0)), (0, (0, 16)), (1, (0, 0)), (2, (0, 0)), (2, (0, 16)),
    }  # fmt: skip
    cleaner = find_tiles(store, replace(PAIRS, min_valid=0.05))
    assert set(cleaner.rows.tolist()) == {0, 1, 2}
    assert len(cleaner) == len(tiles) + 1


def test_only_chosen_rows_give_tiles_and_dates(crops):
    plan = replace(PAIRS, tile=32)
    tiles = find_tiles(crops, plan)
    left = tiles.of_rows([0, 1])
    assert set(left.rows) == {0, 1}
    rows, _ = Boxes(crops, left, plan, 0).of(np.arange(len(left)), np.zeros(len(left), int))
    assert set(rows.reshape(-1)) == {0, 1}
    assert left.digest != tiles.digest
    with pytest.raises(UserError, match="rows: none of the chosen sources has an eligible tile with 2 dates among them"):
        tiles.of_rows([1, 4])


def test_whole_images_of_one_place_are_dates_of_it(tmp_path):
    rng = np.random.default_rng(0)
    sources = {
        f"s{i}": placed(rng.integers(1, 255, (1, 28, 30)).astype(np.uint8), day=f"2020-01-0{1 + i}", layout="whole") for i in range(3)
    }
    sources["elsewhere"] = placed(rng.integers(1, 255, (1, 28, 30)).astype(np.uint8), left=500, layout="whole")
    store = build_store(tmp_path / "s", sources, domain="made-up", units=dict.fromkeys(sources, ""))
    tiles = find_tiles(store, PAIRS)
    assert store.column("source_id")[tiles.rows].tolist() == ["s0", "s1", "s2"]
    batch = next(iter(Loader(store, LoaderPlan(batch=3, pairs="dates", threads=0, workers=0), seed=0)))
    out = np.empty((1, 32, 32), np.uint8)
    for image, row in zip(batch.pixels.flatten(0, 1).numpy(), batch.rows.tolist()):
        store.read_box(row, (0, 0), out)
        np.testing.assert_array_equal(image, out)


def test_what_is_missing_is_said_source_by_source(made_up_store):
    here = [10.0, 0, 0, 0, -10.0, 0]
    affine = [here, here, here, None, [10.0, 0, 3.0, 0, -10.0, 0], [10.0, 0, 9e5, 0, -10.0, 0]]
    acquired = ["2020-01-01", "2020-01-02", None, "2020-01-01", "2020-01-01", "2020-01-01"]
    store = made_up_store([(1, 32, 32)] * 6, chunks=[16] * 6, crs=["one"] * 6, affine=affine, acquired=acquired)
    with pytest.raises(UserError) as caught:
        find_tiles(store, replace(PAIRS, min_days=7))
    assert str(caught.value) == (
        "loader.pairs: no tile has 2 dates at least 7 days apart (24 tiles with 1 date; of 6 sources 1 without an acquisition date; "
        "1 without a CRS or affine; 1 that no other overlaps in their CRS; 1 overlapped, but on no equal grid (pixel size, a fraction of a "
        "pixel, channels, dtype, stated unit) or by none with a date; 2 with partners that are too near in date, or there do not hold a "
        "whole tile, are not valid or are held out); ingest further dates on one grid (domain, ingest.bands, ingest.grid and ingest.crs "
        "alike), lower loader.dates, loader.min_days or loader.min_valid, or set loader.pairs=none"
    )
    with pytest.raises(UserError, match=r"no tile has 3 dates at least 1 days apart \(16 tiles with 1 date, 8 with 2 dates; "):
        find_tiles(store, LoaderPlan(pairs="dates", dates=3))


def test_the_packing_finds_as_many_dates_as_there_can_be(made_up_store):
    rng = np.random.default_rng(5)
    for _ in range(30):
        num, gap = int(rng.integers(2, 9)), int(rng.integers(0, 8))
        days = rng.integers(1, 29, num)
        columns = {"crs": ["one"] * num, "affine": [[10.0, 0, 0, 0, -10.0, 0]] * num}
        store = made_up_store([(1, 8, 8)] * num, chunks=[8] * num, acquired=[f"2020-01-{day:02d}" for day in days], **columns)
        dates = Dates.of(store, ChunkGrid.of(store), LoaderPlan(pairs="dates", dates=9, min_days=gap))
        anchors = Anchors(np.arange(num), np.zeros((num, 2), int), np.full((num, 2), 8), np.zeros(num, bool))
        found = dates._packed(anchors)
        for row in range(num):
            taken = [row, *dates.partners.rows[found[row][found[row] >= 0]].tolist()]
            assert len(set(taken)) == len(taken)
            assert all(abs(days[a] - days[b]) >= gap for a, b in itertools.combinations(taken, 2))
            assert len(taken) == most_dates(row, days.tolist(), gap)


def most_dates(row, days, gap):
    others = [other for other in range(len(days)) if other != row]
    return max(
        1 + size
        for size in range(len(days))
        for some in itertools.combinations(others, size)
        if all(abs(days[a] - days[b]) >= gap for a, b in itertools.combinations((row, *some), 2))
    )


@pytest.fixture(scope="module")
def reservoir(real_data, tmp_path_factory):
    """Four Sentinel-2 dates of one reservoir; on the second it was cloudy."""
    pytest.importorskip("rasterio")
    path = tmp_path_factory.mktemp("reservoir") / "store"
    source = real_data / "sat_multispectral" / "dev" / "s2_boadella_timeseries"
    ingest(IngestPlan(domain="sentinel2", source=str(source), store=str(path), workers=0, audit_holdout=0.0))
    return open_store(path)


def alike(one, two):
    return np.corrcoef(one.reshape(-1).astype(float), two.reshape(-1).astype(float))[0, 1]


def test_dates_of_a_real_reservoir_show_it_all(reservoir):
    plan = LoaderPlan(batch=6, pairs="dates", min_days=20, threads=0, workers=0)
    batch = next(iter(Loader(reservoir, plan, seed=0, rows=[0, 2, 3])))
    days = reservoir.column("acquired")[batch.rows.numpy()].reshape(6, 2).astype("datetime64[D]").astype(int)
    assert (np.abs(days[:, 0] - days[:, 1]) >= 20).all()
    for one, two in batch.pixels[:, :, batch.channels.index("B11")].numpy():
        assert alike(one, two) > 0.5
        assert alike(one, two) > alike(one, np.roll(two, (40, 40), axis=(0, 1))) + 0.3


def test_two_real_crops_of_one_pass_show_the_same_ground_whatever_their_corners(real_data, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    windows = pytest.importorskip("rasterio.windows")
    folder = real_data / "sat_multispectral" / "dev" / "landsat8_overlap"
    for i, path in enumerate(sorted(folder.glob("*.tif"))):
        window = windows.Window(23 * i, 41 * i, 400 - 60 * i, 400 - 50 * i)
        with rasterio.open(path) as dataset:
            left, top = dataset.transform.c + 30 * window.col_off, dataset.transform.f - 30 * window.row_off
            profile = {**dataset.profile, "width": window.width, "height": window.height}
            profile["transform"] = rasterio.Affine(30, 0, left, 0, -30, top)
            with rasterio.open(tmp_path / path.name, "w", **profile) as crop:
                crop.write(dataset.read(window=window))
                crop.descriptions = dataset.descriptions
    stored = tmp_path / "store"
    plan = StorePlan(chunk=64)
    ingest(IngestPlan(domain="landsat", source=str(tmp_path), store=str(stored), workers=0, audit_holdout=0.0, storage=plan))
    store = open_store(stored)
    plan = LoaderPlan(batch=16, pairs="dates", min_days=0, aligned=False, threads=0, workers=0)
    batch = next(iter(Loader(store, plan, seed=0)))
    rows, origins = batch.rows.numpy().reshape(16, 2), batch.origins.numpy().reshape(16, 2, 2)
    affine = np.array([store.row(row)["affine"] for row in range(2)]).reshape(2, 3, 3)
    corner = [affine[rows[:, i]] @ np.stack([origins[:, i, 1], origins[:, i, 0], np.ones(16)], axis=1)[:, :, None] for i in (0, 1)]
    np.testing.assert_allclose(corner[0], corner[1])
    assert (origins[:, 0] != origins[:, 1]).any()
    for images in batch.pixels.numpy():
        real = (images != 0).all(axis=(0, 1))
        assert alike(images[0][:, real], images[1][:, real]) > 0.95
