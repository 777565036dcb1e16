"""The properties verb on made-up stores: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from dinodomain.checkpoint import save_backbone
from dinodomain.errors import Problems, UserError
from dinodomain.loader import LoaderPlan
from dinodomain.model import Backbone, ModelPlan
from dinodomain.properties import NAMES, Number, PropertiesPlan, PropertiesReport, properties
from dinodomain.properties.masks import _read
from dinodomain.properties.report import measured
from dinodomain.properties.scene import Scene
from dinodomain.store import StorePlan, open_store
from dinodomain.testing import SyntheticImages, SyntheticVolumes, read_source, tiny_labels, tiny_store
from dinodomain.types import Normalisation

IMAGES, VOLUMES = SyntheticImages(size=(32, 32)), SyntheticVolumes(size=(32, 32, 32))


def backbone_for(domain: SyntheticImages | SyntheticVolumes, **plan: object) -> Backbone:
    names = tuple(domain.channels)
    low, high = (tuple(getattr(domain.channels[name], end) for name in names) for end in ("low", "high"))
    numbers = Normalisation(mode="domain", channels=names, low=low, high=high, mean=(0.45,) * len(names), std=(0.2,) * len(names))
    torch.manual_seed(3)
    settings = {"dim": 24, "depth": 2, "heads": 2, "patch": 4, "registers": 1, **plan}
    return Backbone.create(ModelPlan(**settings), ndim=domain.ndim, image_size=16, normalisation=numbers, domain=domain.name)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A store of images, labels, masks, and a backbone."""
    root = tmp_path_factory.mktemp("properties")
    store = open_store(tiny_store(root / "store", domain=IMAGES))
    tiny_labels(root / "labels.csv")
    save_backbone(root / "backbone.safetensors", backbone_for(IMAGES))
    rows = ["id,mask"]
    for row in range(len(store)):
        pixels = read_source(store, row)
        np.save(root / f"mask{row}.npy", pixels[0] > np.median(pixels[0]))
        rows.append(f"{str(store.row(row)['source_id']).rpartition('/')[2]},mask{row}.npy")
    (root / "masks.csv").write_text("\n".join(rows) + "\n")
    return root


def plan_of(root: Path, **keys: object) -> PropertiesPlan:
    base = PropertiesPlan(
        checkpoint=str(root / "backbone.safetensors"), store=str(root / "store"), out=str(root / "out"), num=2, crops=4, regions=3,
        loader=LoaderPlan(threads=0),
    )  # fmt: skip
    return replace(base, **keys)


@pytest.fixture(scope="module")
def report(made) -> PropertiesReport:
    plan = plan_of(made, labels=str(made / "labels.csv"), target="label", join="id", masks=str(made / "masks.csv"), notice="made up")
    return properties(plan, domain=IMAGES)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> PropertiesReport:
    root = tmp_path_factory.mktemp("volumes")
    tiny_store(root / "store", domain=VOLUMES, num=4)
    save_backbone(root / "backbone.safetensors", backbone_for(VOLUMES, position="rope", rope_unit="physical", rope_length=8.0))
    return properties(plan_of(root, num=2, crops=3, size=16, loader=LoaderPlan(threads=0, tile=32)), domain=VOLUMES)


def numbers(report: PropertiesReport) -> dict[str, Number]:
    return {f"{item.name}: {told.name}": told for item in report.properties for told in item.numbers}


def test_every_property_is_told_with_a_figure_or_with_why_not(report):
    assert tuple(item.name for item in report.properties) == NAMES
    for item in report.properties:
        assert bool(item.why_not) != bool(item.figures)
        for figure in item.figures:
            assert (Path(report.out) / figure).read_bytes()[:4] == b"\x89PNG"
            assert f"({figure})" in (Path(report.out) / "properties.md").read_text()
    assert "images, and slices are those of volumes" in report.find("slices").why_not
    assert "no two dates" in report.find("dates").why_not


def test_every_number_stands_beside_the_untrained_network(report):
    for told in numbers(report).values():
        assert {"pretrained", "random_init"} <= set(told.values)
    table = report.text()
    assert "untrained encoder" in table
    assert "not possible" in table
    assert table.startswith("made up")


def test_what_is_written_is_what_was_returned(report):
    body = json.loads((Path(report.out) / "properties.json").read_text())
    assert body == json.loads(json.dumps(report.as_json()))
    assert set(body["lineage"]["parents"]) == {"checkpoint", "store"}


def test_masks_and_labels_give_numbers_of_their_own(report):
    found = numbers(report)
    # The masks are the brighter half of two-toned images, which any grouping of patches finds.
    for name in ("components: overlap with masks", "regions: mask: best group", "regions: mask: cut"):
        assert found[name].values["pixels"][0] == 1.0
    read = found["attention: on the mask"]
    assert read.chance == pytest.approx(0.5, abs=0.1)
    assert read.values["random_init"][0] == pytest.approx(read.chance, abs=0.02), "it reads everywhere alike"
    assert found["retrieval: same label: nearest"].chance == pytest.approx(0.2, abs=0.1)  # 4 classes, own unit left out


def test_a_volume_has_slices_and_needs_no_two_dates(volumes):
    assert not volumes.find("slices").why_not
    assert "not registered" in volumes.find("dates").why_not
    cycle = volumes.find("slices").numbers[0]
    assert cycle.name == "left after there and back"
    assert cycle.values["pixels"][0] > 0.5, "the region was cut from them"
    assert "raw pixels are least alike" in volumes.find("slices").words


def test_masks_of_volumes_are_carried_and_judged_against_leaving_them_where_they_are(tmp_path):
    store = open_store(tiny_store(tmp_path / "store", domain=VOLUMES, num=2))
    save_backbone(tmp_path / "backbone.safetensors", backbone_for(VOLUMES))
    rows = ["id,mask"]
    for row in range(len(store)):
        pixels = read_source(store, row)
        np.save(tmp_path / f"mask{row}.npy", pixels[0] > np.median(pixels[0]))
        rows.append(f"{str(store.row(row)['source_id']).rpartition('/')[2]},mask{row}.npy")
    (tmp_path / "masks.csv").write_text("\n".join(rows) + "\n")
    plan = plan_of(tmp_path, masks=str(tmp_path / "masks.csv"), only=("slices",), size=32, loader=LoaderPlan(threads=0, tile=32))
    found = properties(plan, domain=VOLUMES).find("slices")
    told = found.numbers[0]
    assert (told.name, told.chance_name) == ("overlap with masks", "left where it is")
    assert "the slice that holds most of it" in found.words
    assert told.chance is not None
    assert told.chance < 0.6
    assert told.values["pixels"][0] == 1.0, "two tones"


def test_places_are_found_again_at_another_date(made, tmp_path):
    crs = pytest.importorskip("pyproj").CRS.from_epsg(32631).to_wkt()
    rng, source = np.random.default_rng(0), tmp_path / "source"
    source.mkdir()
    for place in range(2):
        ground = rng.integers(60, 200, (3, 16, 16)).repeat(2, axis=1).repeat(2, axis=2)
        for number, day in enumerate(("2020-01-10", "2020-04-20")):
            affine = np.array([10.0, 0, 500_000 + 50_000 * place, 0, -10.0, 5_000_000, 0, 0, 1])
            np.savez(source / f"{place}-{number}.npz", pixels=(ground - 40 * number).astype(np.uint8), affine=affine, crs=crs,
                     spacing=[10.0, 10.0], acquired=day)  # fmt: skip
    series = SyntheticImages(layout="window")
    tiny_store(tmp_path / "store", domain=series, source=str(source), audit_holdout=0.0, storage=StorePlan(chunk=32))
    plan = plan_of(made, store=str(tmp_path / "store"), out=str(tmp_path / "out"), only=("dates",), num=2, size=32)
    found = numbers(properties(plan, domain=series))["dates: found"]
    assert found.values["pixels"][0] == 1.0, "the same ground, darker: raw patches less their mean are alike"
    # Crops of 6x6 patches that overlap by 4x4: along an axis 2, 3, 3 and 3 of 6 patches lie within one of the true one.
    assert found.chance == pytest.approx((11 / 24) ** 2)


def test_one_unit_has_no_neighbours_of_other_units(made, tmp_path):
    lonely = SyntheticImages(size=(32, 32), per_unit=20)
    tiny_store(tmp_path / "store", domain=lonely, num=4)
    plan = plan_of(made, store=str(tmp_path / "store"), out=str(tmp_path / "out"), only=("retrieval",))
    found = properties(plan, domain=lonely)
    assert "1 unit" in found.find("retrieval").why_not
    assert "Not possible" in (tmp_path / "out" / "properties.md").read_text()


def test_the_same_seed_gives_the_same_numbers(made, tmp_path):
    runs = [properties(plan_of(made, out=str(tmp_path / name), only=("regions",)), domain=IMAGES) for name in "ab"]
    assert numbers(runs[0]) == numbers(runs[1])
    figures = [(tmp_path / name / "regions.png").read_bytes() for name in "ab"]
    assert figures[0] == figures[1]


def test_crops_of_a_tile_lie_where_correspond_says(made):
    scene = Scene(plan_of(made, size=32), IMAGES)
    for pair in scene.pairs:
        first, second = (picture.pixels.mean(axis=0) for picture in (pair.first, pair.second))
        patches = [part.reshape(8, 4, 8, 4).mean(axis=(1, 3)).ravel() for part in (first, second)]
        seen = pair.index >= 0
        shuffled = np.roll(pair.index[seen], 5)
        true = np.abs(patches[0][seen] - patches[1][pair.index[seen]]).mean()
        assert true < 0.7 * np.abs(patches[0][seen] - patches[1][shuffled]).mean()


def test_raw_patches_are_in_the_order_of_the_networks_tokens(made):
    scene = Scene(plan_of(made, num=1), IMAGES)
    tile = scene.tiles[0]
    patch = scene.backbone.patch[0]
    rows, columns = tile.grid
    place = 1 * columns + 2
    want = tile.pixels[:, patch : 2 * patch, 2 * patch : 3 * patch]
    np.testing.assert_array_equal(tile.seen["pixels"].tokens[place], want.ravel())
    assert tile.seen["pretrained"].tokens.shape[0] == rows * columns


def test_intervals_are_over_units_and_gains_are_paired():
    values = {"pretrained": np.array([1.0, 1.0, 3.0, 5.0, 9.0]), "random_init": np.array([0.0, 0.0, 2.0, 4.0, np.nan])}
    told = measured("n", "m", values, units=list("aabcd"))
    assert told.values["pretrained"][0] == pytest.approx(3.0)  # a, b, c; d has no twin
    assert told.gain is not None
    assert told.gain == pytest.approx((1.0, 1.0, 1.0))
    low, high = stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([1.0, 3.0, 5.0]))
    assert told.values["pretrained"][1:] == pytest.approx((low, high))
    assert (told.count, told.verdict) == (3, "+1 (1 to 1) over untrained: better")
    assert measured("n", "m", values, better="lower").verdict.endswith("worse")


@pytest.mark.parametrize(
    ("keys", "place"),
    [({"only": ("atention",)}, "only"), ({"num": 0}, "num"), ({"labels": "x.csv"}, "labels"), ({"bands": ("a", "b")}, "bands")],
)
def test_what_cannot_work_is_refused(keys, place):
    with pytest.raises(Problems) as raised:
        PropertiesPlan(checkpoint="c", store="s", out="o", **keys)
    assert place in str(raised.value)


def test_a_size_that_patches_do_not_divide_and_a_mask_of_another_size_are_refused(made, tmp_path):
    with pytest.raises(UserError, match="multiple of the patch 4"):
        properties(plan_of(made, size=18), domain=IMAGES)
    np.save(tmp_path / "m.npy", np.ones((5, 5)))
    (tmp_path / "masks.csv").write_text("id,mask\n" + "\n".join(f"pattern{n:05d},m.npy" for n in range(12)) + "\n")
    with pytest.raises(UserError, match="5x5 pixels, the image in the store 32x32"):
        properties(plan_of(made, masks=str(tmp_path / "masks.csv"), out=str(tmp_path / "out")), domain=IMAGES)


def test_a_mask_in_geotiff_is_read_as_it_is_and_not_as_bands_of_a_sensor(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    truth = np.zeros((20, 30), np.uint8)
    truth[5:, :7] = 1
    about = {
        "driver": "GTiff",
        "height": 20,
        "width": 30,
        "dtype": "uint8",
        "crs": "EPSG:32631",
        "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6),
    }
    for count, name in ((1, "one.tif"), (2, "two.tif")):
        with rasterio.open(tmp_path / name, "w", count=count, **about) as file:
            file.write(np.stack([truth] * count))
    np.testing.assert_array_equal(_read(str(tmp_path / "one.tif"), IMAGES), truth > 0)
    with pytest.raises(UserError, match="holds 2 bands; allowed: a mask of one band"):
        _read(str(tmp_path / "two.tif"), IMAGES)
