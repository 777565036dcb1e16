"""What the writer leaves on disk: any Zarr reader opens it, equal input gives equal bytes, nothing half done passes for whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from dinodomain.errors import UserError
from dinodomain.lineage import content_hash, to_json
from dinodomain.store import (
    ArrayWriter,
    StorePlan,
    array_record,
    build_store,
    prepare_whole,
    write_scene,
    write_stack,
    write_volume,
    written_from_json,
)

DTYPES = ("uint8", "uint16", "int16", "float32")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ["fast", "small", "none"])
def test_zarr_python_reads_the_pixels_that_were_written(tmp_path, make_pixels, dtype, codec):
    scene, volume = make_pixels((3, 70, 90), dtype), make_pixels((1, 20, 30, 40), dtype)
    write_scene(tmp_path / "s", array_record(scene), StorePlan(chunk=32, codec=codec))
    write_volume(tmp_path / "v", array_record(volume), StorePlan(chunk=16, codec=codec))
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "s" / "data"), mode="r")[:], scene)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "v" / "0"), mode="r")[:], volume[0])


def test_the_metadata_says_the_type_size_of_the_shuffle_and_names_axes(tmp_path, make_pixels):
    write_scene(tmp_path, array_record(make_pixels((2, 40, 40), "uint16")), StorePlan())
    array = zarr.open_array(str(tmp_path / "data"), mode="r")
    blosc = array.metadata.codecs[0].codecs[1]
    assert (blosc.typesize, blosc.cname.value, blosc.clevel, blosc.shuffle.value) == (2, "lz4", 9, "shuffle")
    assert array.metadata.dimension_names == ("band", "y", "x")


@pytest.mark.parametrize(
    ("codec", "dtype", "spatial", "wanted"),
    [
        ("fast", "uint16", (40, 40), "shuffle"),
        ("fast", "uint8", (40, 40), "bitshuffle"),
        ("fast", "int16", (20, 20, 20), "bitshuffle"),
        ("small", "uint16", (40, 40), "shuffle"),
        ("small", "int16", (20, 20, 20), "shuffle"),
    ],
)
def test_each_kind_of_array_gets_the_filter_that_makes_it_smallest_and_says_so(tmp_path, make_pixels, codec, dtype, spatial, wanted):
    pixels = make_pixels((1, *spatial), dtype)
    write = write_scene if len(spatial) == 2 else write_volume
    written = write(tmp_path, array_record(pixels), StorePlan(codec=codec))
    array = zarr.open_array(str(tmp_path / written.array), mode="r")
    assert array.metadata.codecs[0].codecs[1].shuffle.value == wanted
    np.testing.assert_array_equal(np.asarray(array[:]).reshape(pixels.shape), pixels)


def test_a_scene_is_read_one_row_of_chunks_at_a_time(tmp_path, make_pixels):
    pixels = make_pixels((2, 100, 60), "uint16")
    seen = []

    def read(window):
        seen.append((window[0].start, window[0].stop))
        return pixels[(slice(None), *window)]

    written = write_scene(tmp_path, replace(array_record(pixels), read=read), StorePlan(chunk=32))
    assert seen == [(0, 32), (32, 64), (64, 96), (96, 100)]
    assert written.content_hash == content_hash(pixels, ("0", "1"))


def test_chunk_size_and_codec_leave_content_hash_and_statistics_alone(tmp_path, make_pixels):
    record = array_record(make_pixels((2, 100, 60), "float32"))
    plans = (StorePlan(chunk=16), StorePlan(chunk=64, codec="none"))
    one, two = (write_scene(tmp_path / str(i), record, plan) for i, plan in enumerate(plans))
    assert (one.content_hash, one.stats) == (two.content_hash, two.stats)
    assert one.digest != two.digest


def test_equal_input_gives_equal_bytes(tmp_path, make_pixels):
    sources = {f"s{i}": array_record(make_pixels((2, 300, 280), "uint16", seed=i), nodata=40) for i in range(2)}
    for name in ("a", "b"):
        build_store(tmp_path / name, sources, domain="made-up")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_large_scenes_span_shards(tmp_path, make_pixels):
    pixels = make_pixels((1, 2100, 2060), "uint8")
    write_scene(tmp_path, array_record(pixels), StorePlan())
    assert {path for path in files(tmp_path) if path.startswith("data/c/")} == {f"data/c/0/{y}/{x}" for y in (0, 1) for x in (0, 1)}
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "data"), mode="r")[:], pixels)


def test_chunks_of_fill_values_are_not_stored_but_negative_zero_is(tmp_path):
    pixels = np.zeros((1, 64, 64), np.float32)
    pixels[0, 40, 40] = -0.0
    write_scene(tmp_path, array_record(pixels), StorePlan(chunk=32))
    back = zarr.open_array(str(tmp_path / "data"), mode="r")[:]
    assert np.signbit(back[0, 40, 40])
    assert (tmp_path / "data/c/0/0/0").stat().st_size < 500


def test_the_valid_field_is_absent_where_everything_is_valid(tmp_path, make_pixels):
    pixels = make_pixels((2, 64, 64), "uint8")
    assert not write_scene(tmp_path / "a", array_record(pixels, nodata=255), StorePlan()).has_valid
    assert not (tmp_path / "a" / "valid").exists()
    pixels[:, 50:] = 255
    assert write_scene(tmp_path / "b", array_record(pixels, nodata=255), StorePlan(chunk=32)).has_valid
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "b" / "valid"), mode="r")[:], (np.arange(64) >= 50)[:, None] * np.ones(64))


def test_geozarr_attributes_place_a_raster(tmp_path, make_pixels):
    affine = (10.0, 0.0, 500000.0, 0.0, -10.0, 4000000.0, 0.0, 0.0, 1.0)
    record = replace(array_record(make_pixels((1, 30, 20), "uint8")), affine=affine, crs='PROJCRS["made up"]')
    write_scene(tmp_path, record, StorePlan())
    found = dict(zarr.open_group(str(tmp_path), mode="r").attrs)
    assert found["spatial:transform"] == list(affine[:6])
    assert found["spatial:bbox"] == [500000.0, 3999700.0, 500200.0, 4000000.0]
    assert found["proj:wkt2"] == record.crs
    assert found["dinodomain"]["affine"] == list(affine)


def test_ome_attributes_place_a_volume(tmp_path, make_pixels):
    affine = (0.5, 0, 0, -7, 0, 0.5, 0, -8, 0, 0, 3.0, -9, 0, 0, 0, 1)
    record = replace(array_record(make_pixels((1, 8, 20, 20), "int16"), spacing=(3.0, 0.5, 0.5)), affine=affine)
    write_volume(tmp_path, record, StorePlan())
    scale = zarr.open_group(str(tmp_path), mode="r").attrs["ome"]["multiscales"][0]
    assert [axis["name"] for axis in scale["axes"]] == ["z", "y", "x"]
    assert scale["axes"][0]["orientation"]["value"] == "inferior-to-superior"
    moves = scale["datasets"][0]["coordinateTransformations"]
    assert moves == [{"type": "scale", "scale": [3.0, 0.5, 0.5]}, {"type": "translation", "translation": [-9, -8, -7]}]


def test_unknown_spacing_leaves_valid_json_without_units(tmp_path, make_pixels):
    write_volume(tmp_path, array_record(make_pixels((1, 8, 8, 8), "uint8")), StorePlan())
    text = (tmp_path / "zarr.json").read_text()
    axes = json.loads(text, parse_constant=pytest.fail)["attributes"]["ome"]["multiscales"][0]["axes"]
    assert all("unit" not in axis for axis in axes)


def test_written_survives_json(tmp_path):
    pixels = np.full((1, 16, 16), 3, np.uint8)
    written = write_scene(tmp_path, array_record(pixels, nodata=3), StorePlan(chunk=8))
    back = written_from_json(json.loads(json.dumps(to_json(written))))
    assert np.isnan(back.stats.low[0])
    np.testing.assert_array_equal(back.valid_fraction, written.valid_fraction)
    assert (back.extent, back.chunk, back.stages, back.digest) == (written.extent, written.chunk, written.stages, written.digest)


def test_stacks_pad_items_and_keep_their_order(tmp_path, make_pixels):
    images = [make_pixels((3, 20 + i, 30), "uint8", seed=i) for i in range(50)]
    wholes = [prepare_whole(array_record(image, layout="whole")) for image in images]
    assert {whole.written.extent for whole in wholes} == {(32, 32), (64, 32), (128, 32)}
    packed = [whole for whole in wholes if whole.written.extent == (64, 32)]
    pairs = ((whole.pixels, whole.bits) for whole in packed)
    write_stack(tmp_path, pairs, count=len(packed), channels=("r", "g", "b"), extent=(64, 32), dtype="uint8")
    stack = zarr.open_array(str(tmp_path / "data"), mode="r")
    assert stack.shape == (len(packed), 3, 64, 32)
    for item, whole in enumerate(packed):
        height, width = whole.pixels.shape[1:]
        np.testing.assert_array_equal(stack[item, :, :height, :width], whole.pixels)
        assert not stack[item, :, height:].any()
        assert not stack[item, :, :, width:].any()
    assert not (tmp_path / "valid").exists()


def test_an_interrupted_array_has_no_metadata_and_no_temporary_files(tmp_path, make_pixels):
    pixels = make_pixels((1, 64, 64), "uint8")

    def read(window):
        if window[0].start:
            raise OSError("disk gone")
        return pixels[(slice(None), *window)]

    with pytest.raises(OSError, match="disk gone"):
        write_scene(tmp_path, replace(array_record(pixels), read=read), StorePlan(chunk=32))
    assert not files(tmp_path)


def test_a_block_off_the_grid_is_a_bug():
    writer = ArrayWriter.create(Path("unused"), shape=(10, 10), dtype="uint8", dims=("y", "x"), chunk=(4, 4), shard=(8, 8))
    with pytest.raises(AssertionError, match="off the chunk grid"):
        writer.write((2, 0), np.zeros((4, 4), np.uint8))


def test_a_dtype_that_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(UserError, match="dtype: float64 cannot be stored"):
        write_scene(tmp_path, array_record(np.zeros((1, 4, 4))), StorePlan())


def test_the_tables_hold_nan_for_the_unknown_and_are_sorted(tmp_path, make_pixels):
    sources = {name: array_record(make_pixels((1, 40, 40), "uint8", seed=i)) for i, name in enumerate("cab")}
    store = build_store(tmp_path / "s", sources, domain="made-up", holdout=("b",))
    table = pq.read_table(tmp_path / "s" / "index.parquet")
    assert table["source_id"].to_pylist() == ["a", "b", "c"]
    assert np.isnan(table["nodata"][0].as_py()[0])
    assert np.isnan(table["spacing"][0].as_py()).all()
    assert store.chunks["holdout"].to_pylist() == [False, True, False]
    assert store.chunks["chunk"].to_pylist() == [[0, 0]] * 3


def test_build_store_refuses_an_existing_folder_and_no_sources(tmp_path, make_pixels):
    record = array_record(make_pixels((1, 8, 8), "uint8"))
    with pytest.raises(UserError, match="exists already"):
        build_store(tmp_path, {"a": record}, domain="made-up")
    with pytest.raises(UserError, match="is empty"):
        build_store(tmp_path / "s", {}, domain="made-up")
