"""The reader against plain slicing and against zarr-python, and every way in which files can be damaged."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dinodomain.errors import UserError
from dinodomain.store import ArrayWriter, StorePlan, array_record, build_store, open_store
from dinodomain.store.cache import Cache
from dinodomain.store.codec import MISSING, decode_index, encode_index, parse_layout
from dinodomain.store.pieces import outside_boxes
from dinodomain.store.reader import DirectArray, ZarrArray, open_array

DTYPES = ("uint8", "uint16", "int16", "float32")


def shard_of(store, row=0) -> Path:
    return next(path for path in sorted((store.path / store.row(row)["array"] / "c").rglob("*")) if path.is_file())


def read(store, start, extent, row=0):
    facts = store.row(row)
    out = np.full((len(facts["channels"]), *extent), 7, dtype=facts["dtype"])
    store.read_box(row, start, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ["fast", "small", "none"])
@pytest.mark.parametrize("shape", [(3, 70, 90), (1, 40, 40), (1, 20, 40, 50), (2, 20, 40, 50)])
def test_boxes_equal_plain_slicing_wherever_they_lie(tmp_path, make_pixels, plain_box, dtype, codec, shape):
    pixels = make_pixels(shape, dtype)
    store = build_store(tmp_path / "s", {"a": array_record(pixels)}, domain="made-up", plan=StorePlan(chunk=16, codec=codec))
    rng = np.random.default_rng(0)
    boxes = [((0,) * (len(shape) - 1), (16,) * (len(shape) - 1)), ((16,) * (len(shape) - 1), (32,) * (len(shape) - 1))]
    boxes += [(tuple(rng.integers(-30, 100, len(shape) - 1)), tuple(rng.integers(1, 60, len(shape) - 1))) for _ in range(12)]
    for start, extent in boxes:
        np.testing.assert_array_equal(read(store, start, extent), plain_box(pixels, start, extent))


@settings(max_examples=60, deadline=None)
@given(start=st.tuples(*[st.integers(-9, 30)] * 2), extent=st.tuples(*[st.integers(1, 30)] * 2), shape=st.tuples(*[st.integers(1, 25)] * 2))
def test_outside_boxes_cover_exactly_what_the_array_does_not(start, extent, shape):
    inside = np.ones(extent, bool)
    for box in outside_boxes(start, extent, shape):
        inside[box] = False
    rows, columns = (np.arange(n) + a for a, n in zip(start, extent))
    expected = ((rows >= 0) & (rows < shape[0]))[:, None] & ((columns >= 0) & (columns < shape[1]))
    np.testing.assert_array_equal(inside, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_images_come_back_from_their_slot(tmp_path, make_pixels, plain_box, dtype):
    images = {f"{i:03d}": make_pixels((1 + i % 2, 28, 30 + i), dtype, seed=i) for i in range(8)}
    store = build_store(tmp_path / "s", {k: array_record(v, layout="whole") for k, v in images.items()}, domain="made-up")
    for row, image in enumerate(images.values()):
        extent = store.row(row)["extent"]
        np.testing.assert_array_equal(read(store, (0, 0), extent, row), plain_box(image, (0, 0), extent))
        np.testing.assert_array_equal(store.valid_box(row, (0, 0), extent), [[0, size] for size in image.shape[1:]])


def test_the_valid_field_is_read_on_the_same_grid(tmp_path, make_pixels):
    pixels = make_pixels((2, 50, 60), "uint16")
    pixels[:, :10] = 0
    sources = {"a": array_record(pixels, nodata=0), "b": array_record(pixels + 1, nodata=0)}
    store = build_store(tmp_path / "s", sources, domain="made-up", plan=StorePlan(chunk=32))
    bits = np.full((32, 32), 9, np.uint8)
    assert store.read_valid(0, (0, 0), bits)
    np.testing.assert_array_equal(bits, (np.arange(32) < 10)[:, None] * np.ones(32))
    assert not store.read_valid(1, (0, 0), bits)
    assert not bits.any()


def test_valid_fields_of_stacks_belong_to_their_item(tmp_path, make_pixels):
    images = [make_pixels((1, 20, 20), "uint8", seed=i) for i in range(3)]
    images[1][:, 5, 6] = 0
    sources = {str(i): array_record(image, layout="whole", nodata=0) for i, image in enumerate(images)}
    store = build_store(tmp_path / "s", sources, domain="made-up")
    bits = np.empty((32, 32), np.uint8)
    counts = []
    for row in range(3):
        store.read_valid(row, (0, 0), bits)
        counts.append(int(bits.sum()))
    assert counts == [0, 1, 0]


def test_valid_box_says_where_real_pixels_are(tmp_path, make_pixels):
    store = build_store(tmp_path / "s", {"a": array_record(make_pixels((1, 100, 40), "uint8"))}, domain="made-up")
    np.testing.assert_array_equal(store.valid_box(0, (64, 0), (64, 64)), [[0, 36], [0, 40]])
    np.testing.assert_array_equal(store.valid_box(0, (-10, 50), (64, 64)), [[10, 64], [0, 0]])


def foreign_array(path: Path, pixels: np.ndarray, **options) -> None:
    array = zarr.create_array(store=str(path), shape=pixels.shape, dtype=pixels.dtype, **options)
    array[...] = pixels


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (2, 16, 16)},
        {"chunks": (2, 16, 16), "shards": (2, 32, 32)},
        {"chunks": (1, 24, 17), "compressors": None},
        {"chunks": (2, 16, 16), "shards": (2, 32, 32), "compressors": zarr.codecs.GzipCodec()},
        {"chunks": (2, 16, 16), "compressors": zarr.codecs.ZstdCodec(level=1)},
        {"chunks": (2, 16, 16), "serializer": zarr.codecs.BytesCodec(endian="big"), "fill_value": 9},
        {"chunks": (2, 16, 16), "shards": (2, 32, 32), "serializer": zarr.codecs.BytesCodec(endian="big")},
        {"chunks": (2, 16, 16), "shards": (2, 32, 32), "chunk_key_encoding": {"name": "default", "separator": "."}},
        {"chunks": (2, 16, 16), "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    ],
)
def test_foreign_codecs_and_grids_go_through_zarr_python_with_equal_results(tmp_path, make_pixels, plain_box, options):
    pixels = make_pixels((2, 50, 60), "uint16")
    pixels[:, :16, :16] = 9
    foreign_array(tmp_path / "a", pixels, **options)
    reader = open_array(tmp_path / "a", Cache(4))
    assert isinstance(reader, ZarrArray)
    for start, extent in (((0, 16, 16), (2, 16, 16)), ((0, -3, 40), (2, 20, 30)), ((0, 90, 0), (2, 8, 8)), ((0, -20, 0), (2, 5, 5))):
        out = np.full(extent, 7, np.uint16)
        reader.read(start, out)
        np.testing.assert_array_equal(out, plain_box(pixels, start[1:], extent[1:]))


def test_a_damaged_chunk_of_a_foreign_array_is_named(tmp_path, make_pixels):
    foreign_array(tmp_path / "a", make_pixels((2, 50, 60), "uint16"), chunks=(2, 16, 16), compressors=zarr.codecs.ZstdCodec(checksum=True))
    path = tmp_path / "a" / "c" / "0" / "1" / "1"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"/a: zarr-python cannot read it: .*; restore the file"):
        open_array(tmp_path / "a", Cache(4)).read((0, 0, 0), np.empty((2, 50, 60), np.uint16))


@pytest.mark.parametrize("shape", [(3, 70, 90), (20, 40, 50), (2, 20, 40, 50)])
@pytest.mark.parametrize("codec", ["fast", "none"])
def test_the_direct_reader_and_its_plain_twin_agree_on_any_box(tmp_path, make_pixels, shape, codec):
    pixels = make_pixels(shape, "int16")
    pixels[..., 16:32] = 0  # some chunks are not stored
    side = (16,) * (len(shape) - 1)
    lead = (shape[0],) if len(shape) == 3 and shape[0] == 3 else (16,) if len(shape) == 3 else (2,)
    outer = (lead[0], *(32 for _ in side))
    dims = tuple("abcd"[: len(shape)])
    with ArrayWriter.create(tmp_path / "a", shape=shape, dtype="int16", dims=dims, chunk=lead + side, shard=outer, codec=codec) as writer:
        writer.write((0,) * len(shape), pixels)
    fast, plain = open_array(tmp_path / "a", Cache(9)), ZarrArray(str(tmp_path / "a"), "a")
    assert isinstance(fast, DirectArray)
    rng = np.random.default_rng(5)
    for _ in range(60):
        start, extent = rng.integers(-25, 80, len(shape)), tuple(rng.integers(1, 45, len(shape)))
        ours, theirs = np.full(extent, 7, np.int16), np.full(extent, 8, np.int16)
        fast.read(tuple(start.tolist()), ours)
        plain.read(tuple(start.tolist()), theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_the_direct_reader_reads_shards_that_zarr_python_wrote(tmp_path, make_pixels, plain_box):
    pixels = make_pixels((2, 50, 60), "uint16")
    pixels[:, :32, :32] = 5  # a chunk of fill values is missing from the index
    blosc = zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=2)
    foreign_array(tmp_path / "a", pixels, chunks=(2, 16, 16), shards=(2, 32, 32), compressors=blosc, fill_value=5)
    reader = open_array(tmp_path / "a", Cache(4))
    assert isinstance(reader, DirectArray)
    for start, extent in (((0, 0, 0), (2, 16, 16)), ((0, 16, 16), (2, 50, 50)), ((0, 40, 48), (2, 16, 16))):
        out = np.full(extent, 7, np.uint16)
        reader.read(start, out)
        np.testing.assert_array_equal(out, plain_box(pixels, start[1:], extent[1:]))


def test_unknown_metadata_is_left_to_zarr_python(tmp_path, make_pixels):
    store = build_store(tmp_path / "s", {"a": array_record(make_pixels((1, 8, 8), "uint8"))}, domain="made-up")
    metadata = json.loads((store.path / store.row(0)["array"] / "zarr.json").read_bytes())
    assert parse_layout(metadata) is not None
    for path, value in (
        (("chunk_key_encoding", "configuration", "separator"), "."),
        (("chunk_grid", "name"), "rectangular"),
        (("data_type",), "int64"),
        (("fill_value",), "NaN"),
        (("codecs", 0, "configuration", "index_location"), "start"),
    ):
        changed = json.loads(json.dumps(metadata))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert parse_layout(changed) is None, path


def scene(tmp_path, make_pixels, codec="fast"):
    pixels = make_pixels((2, 64, 64), "uint16")
    return build_store(tmp_path / "s", {"a": array_record(pixels)}, domain="made-up", plan=StorePlan(chunk=32, codec=codec))


@pytest.mark.parametrize("codec", ["fast", "small", "none"])
def test_any_flipped_byte_of_a_chunk_is_found_and_named(tmp_path, make_pixels, codec):
    store = scene(tmp_path, make_pixels, codec)
    path = shard_of(store)
    good = path.read_bytes()
    for position in np.linspace(0, len(good) - 80, 12).astype(int):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(UserError, match=r"c/0/0/0: chunk \(0, \d, \d\) cannot be read: its checksum differs; restore the file"):
            read(open_store(store.path), (0, 0), (64, 64))


def test_a_flipped_byte_of_the_shard_index_is_found(tmp_path, make_pixels):
    store = scene(tmp_path, make_pixels)
    path = shard_of(store)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"c/0/0/0: the checksum of the shard index differs"):
        read(store, (0, 0), (8, 8))


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_shard_is_named(tmp_path, make_pixels, keep):
    store = scene(tmp_path, make_pixels)
    path = shard_of(store)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="c/0/0/0"):
        read(store, (0, 0), (8, 8))


def test_an_index_that_points_outside_the_file_is_refused(tmp_path, make_pixels):
    store = scene(tmp_path, make_pixels)
    path = shard_of(store)
    data = path.read_bytes()
    tail = 4 * 16 + 4
    index = decode_index(data[-tail:], (1, 2, 2)).copy()
    index[0, 1, 1] = (len(data) * 2, 100)
    path.write_bytes(data[:-tail] + encode_index(index))
    with pytest.raises(UserError, match="points outside the file"):
        read(store, (0, 0), (8, 8))


def test_a_missing_inner_chunk_is_fill_and_a_missing_shard_is_an_error(tmp_path, make_pixels):
    pixels = make_pixels((2, 64, 64), "uint16")
    pixels[:, 32:, 32:] = 0
    store = build_store(tmp_path / "s", {"a": array_record(pixels)}, domain="made-up", plan=StorePlan(chunk=32))
    path = shard_of(store)
    assert decode_index(path.read_bytes()[-68:], (1, 2, 2))[0, 1, 1].tolist() == [MISSING, MISSING]
    np.testing.assert_array_equal(read(store, (20, 20), (44, 44)), pixels[:, 20:, 20:])
    np.testing.assert_array_equal(read(store, (32, 32), (32, 32)), 0)
    path.unlink()
    with pytest.raises(UserError, match="the file is missing; restore the file"):
        read(open_store(store.path), (0, 0), (8, 8))


def test_reads_agree_in_threads(tmp_path, make_pixels, plain_box):
    pixels = make_pixels((2, 200, 200), "uint16")
    store = build_store(tmp_path / "s", {"a": array_record(pixels)}, domain="made-up", plan=StorePlan(chunk=32))
    starts = [tuple(start) for start in np.random.default_rng(0).integers(0, 150, (60, 2))]
    with ThreadPoolExecutor(4) as pool:
        boxes = list(pool.map(lambda start: read(store, start, (50, 50)), starts))
    for start, box in zip(starts, boxes):
        np.testing.assert_array_equal(box, plain_box(pixels, start, (50, 50)))


def test_few_open_shards_are_enough(tmp_path, make_pixels):
    sources = {str(i): array_record(make_pixels((1, 16, 16), "uint8", seed=i)) for i in range(6)}
    store = build_store(tmp_path / "s", sources, domain="made-up")
    store.arrays._shards = Cache(2)
    for row in [*range(6), *range(6)]:
        np.testing.assert_array_equal(read(store, (0, 0), (16, 16), row), make_pixels((1, 16, 16), "uint8", seed=row))


def test_a_folder_without_manifest_is_half_written(tmp_path, make_pixels):
    store = scene(tmp_path, make_pixels)
    (store.path / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"has no manifest.json: no store, or one that was never finished; give the folder of a finished store"
    ):
        open_store(store.path)
    staged = store.path.rename(tmp_path / "s.partial")
    with pytest.raises(UserError, match=r"never finished; run the same `dinodomain ingest` again"):
        open_store(staged)
    with pytest.raises(UserError, match="is no folder"):
        open_store(tmp_path / "nowhere")


def test_a_shard_that_the_disk_does_not_give_is_named(tmp_path, make_pixels):
    store = scene(tmp_path, make_pixels)
    shard = next(path for path in store.path.rglob("data/c/*/*/*"))
    shard.unlink()
    shard.mkdir()
    with pytest.raises(UserError, match=rf"{shard}: cannot be read \(Is a directory\); check its permissions"):
        read(store, (0, 0), (16, 16))


def test_another_format_is_refused(tmp_path, make_pixels):
    store = scene(tmp_path, make_pixels)
    path = store.path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(UserError, match="has store format 2; allowed: 1; upgrade dinodomain"):
        open_store(store.path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not a manifest"):
        open_store(store.path)


@pytest.mark.parametrize("name", ["index.parquet", "chunks.parquet", "lineage.json"])
def test_altered_tables_are_refused(tmp_path, make_pixels, name):
    store = scene(tmp_path, make_pixels)
    path = store.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: is missing or not what the manifest says"):
        open_store(store.path)


def test_plain_zarr_python_walks_the_store(tmp_path, make_pixels):
    pixels = make_pixels((2, 64, 64), "uint16")
    store = build_store(tmp_path / "s", {"a": array_record(pixels)}, domain="made-up")
    root = zarr.open_group(str(store.path), mode="r")
    np.testing.assert_array_equal(root[store.row(0)["array"]][:], pixels)
    assert list(root["scenes"].group_keys()) == [store.row(0)["array"].split("/")[1]]


def test_columns_and_channels(tmp_path, make_pixels):
    sources = {
        "a": array_record(make_pixels((2, 8, 8), "uint8"), channels=("red", "nir")),
        "b": array_record(make_pixels((1, 8, 8), "uint8"), channels=("vv",)),
    }
    store = build_store(tmp_path / "s", sources, domain="made-up")
    assert store.channels == ("red", "nir", "vv")
    assert store.column("channels").tolist() == [["red", "nir"], ["vv"]]
    assert store.column("source_id").tolist() == ["a", "b"]
    with pytest.raises(UserError, match="column: the index has no 'colour'"):
        store.column("colour")


def test_store_statistics_pool_training_pixels_in_physical_units(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.normal(mean, 1, (1, 60, 60)).astype(np.float32) for mean in (0, 10, 1000)]
    parts[0][0, :10] = -9999
    sources = {f"{i}": array_record(part, channels=("t1",), nodata=-9999) for i, part in enumerate(parts)}
    store = build_store(tmp_path / "s", sources, domain="made-up", holdout=("2",))
    expected = np.concatenate([parts[0][0, 10:].ravel(), parts[1].ravel()])
    found = store.stats()["t1"]
    assert found.mean == pytest.approx(expected.mean(), rel=1e-5)
    assert found.std == pytest.approx(expected.std(), rel=1e-5)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, (0.5, 99.5))), rel=1e-5)


def test_store_statistics_need_training_pixels(tmp_path, make_pixels):
    store = build_store(tmp_path / "s", {"a": array_record(make_pixels((1, 8, 8), "uint8"))}, domain="made-up", holdout=("a",))
    with pytest.raises(UserError, match="no valid pixels outside the audit holdout"):
        store.stats()
