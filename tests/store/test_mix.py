"""Mix files and the store they make: what is refused, what is held out, what is read, what is counted."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.lineage import digest
from dinodomain.store import StorePlan, array_record, build_store, open_store
from dinodomain.store.cells import CellGrid, chunk_boxes, footprints
from dinodomain.store.mix import open_mix, read_mix
from dinodomain.testing import SyntheticImages, tiny_store


def images(count, seed, *, shape=(1, 20, 24), level=0.0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return {f"s{seed}-{i:02d}": array_record((rng.normal(level, 1, shape)).astype(dtype), layout="whole") for i in range(count)}


def write(folder, text, name="mix.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def amend(store, **manifest):
    """Adds to a store's manifest what ingest would have written there."""
    path = store.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **manifest}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two small stores of whole images, a and b."""
    folder = tmp_path_factory.mktemp("pair")
    build_store(folder / "a", images(6, 1), domain="made-up")
    build_store(folder / "b", images(4, 2, level=5.0), domain="made-up", units={"s2-00": "x", "s2-01": "x"})
    return folder


@pytest.fixture
def two(pair, tmp_path):
    """A mix of copies of them, 3:1."""
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    return write(tmp_path, "stores: [{path: a, share: 3}, {path: b, share: 1}]")


# The file.


def test_relative_paths_are_relative_to_the_file_and_shares_are_normalised(tmp_path):
    mix = read_mix(write(tmp_path, "stores: [{path: a, share: 3}, {path: /b/c, share: 1}, {path: s3://k/d, share: 4}]"))
    assert mix.locations == (str(tmp_path / "a"), "/b/c", "s3://k/d")
    assert mix.shares == (0.375, 0.125, 0.5)


def test_everything_that_is_wrong_in_a_file_is_said_at_once_with_its_place(tmp_path):
    entries = ["{path: a, share: 0}", "{path: b, shares: 1}", "{path: ./a, share: .inf}", "7", "{share: true}"]
    path = write(tmp_path, "\n- ".join(["store: 1\ndistinct_units: maybe\nstores:", *entries]))
    with pytest.raises(UserError) as error:
        read_mix(path)
    lines = str(error.value).replace(str(path), "F").splitlines()
    number = "allowed: a finite number above 0; shares need not sum to 1"
    folder = "allowed: the folder or URL of a store; relative to this file"
    assert lines == [
        "F: store: unknown key; did you mean 'stores'?",
        "F: distinct_units: is 'maybe'; allowed: true or false",
        f"F: stores[0].share: is 0; {number}",
        "F: stores[1].shares: unknown key; did you mean 'share'?",
        f"F: stores[1].share: is missing; {number}",
        f"F: stores[2].share: is inf; {number}",
        "F: stores[3]: is 7; allowed: {path: FOLDER_OR_URL, share: NUMBER}",
        f"F: stores[4].path: is missing; {folder}",
        f"F: stores[4].share: is True; {number}",
        f"F: stores[2].path: '{tmp_path}/a' is also stores[0]; name it once, with the sum of the shares",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stores: [", "is not YAML"),
        ("- a\n", "lists no stores"),
        ("stores: []", r"stores: is \[\]; allowed: a list"),
        ("{}", "stores: is missing"),
    ],
)
def test_a_file_without_stores_is_refused_with_what_one_looks_like(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_mix(write(tmp_path, text))
    assert "{path: A, share: 0.7}" in str(error.value)


def test_a_verb_that_takes_one_store_refuses_a_mix_and_a_missing_file_is_said(two, tmp_path):
    with pytest.raises(UserError, match="lists several stores, and one is wanted here; give one of them"):
        open_store(two)
    assert len(open_store(two, mixed=True)) == 10
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read: No such file"):
        open_store(tmp_path / "none.yaml", mixed=True)


# The stores together.


def test_stores_that_cannot_be_opened_are_all_named_and_mixes_do_not_nest(two, tmp_path):
    path = write(tmp_path, "stores: [{path: a, share: 1}, {path: none, share: 1}, {path: mix.yaml, share: 1}]", "outer.yaml")
    with pytest.raises(UserError) as error:
        open_mix(path)
    first, second = str(error.value).splitlines()
    assert "stores[1].path" in first
    assert "none: is no folder" in first
    assert "stores[2].path" in second
    assert "is a mix itself; list its stores here" in second


def test_other_domains_and_other_axes_are_refused_together(tmp_path):
    build_store(tmp_path / "a", images(1, 1), domain="ct")
    build_store(tmp_path / "b", images(1, 2, shape=(1, 8, 8, 8)), domain="mri")
    with pytest.raises(UserError, match=r"different domain \(.*a: ct, .*b: mri\).*\n.*different ndim \(.*a: 2, .*b: 3\)"):
        open_mix(write(tmp_path, "stores: [{path: a, share: 1}, {path: b, share: 1}]"))


def test_a_source_in_two_stores_is_refused_by_name(tmp_path):
    build_store(tmp_path / "a", images(8, 1), domain="made-up")
    build_store(tmp_path / "b", {**images(7, 1), **images(2, 3)}, domain="made-up")
    with pytest.raises(UserError, match=r"hold 7 sources of equal pixels: s1-00, .*s1-04 and 2 more \(ids of .*b\); take them out of one"):
        open_mix(write(tmp_path, "stores: [{path: a, share: 1}, {path: b, share: 1}]"))


def test_people_that_nobody_can_tell_apart_are_refused_unless_the_user_vouches_for_them(two, tmp_path):
    stores = [open_store(tmp_path / name) for name in "ab"]
    for store, fingerprint in zip(stores, ("1111", "2222")):
        amend(store, personal=True, secret_fingerprint=fingerprint)
    with pytest.raises(UserError, match=r"different secrets.*ingest them with one ingest\.secret=FILE, or write `distinct_units: true`"):
        open_mix(two)
    two.write_text(two.read_text() + "\ndistinct_units: true\n")
    assert open_mix(two).lineage["plan"]["distinct_units"] is True
    two.write_text(two.read_text().replace("true", "false"))
    amend(stores[1], personal=True, secret_fingerprint="1111")
    assert open_mix(two).manifest["personal"] is True


# What is read.


def test_a_mix_reads_what_its_stores_read(two, tmp_path):
    mixed = open_mix(two)
    parts = [open_store(tmp_path / name) for name in "ab"]
    assert mixed.member.tolist() == [0] * 6 + [1] * 4
    assert mixed.shares == (0.75, 0.25)
    own = [(store, row) for store in parts for row in range(len(store))]
    for row, (store, at) in enumerate(own):
        one, other = np.empty((1, 32, 32), np.float32), np.empty((1, 32, 32), np.float32)
        mixed.read_box(row, (0, 0), one)
        store.read_box(at, (0, 0), other)
        np.testing.assert_array_equal(one, other)
        assert mixed.row(row)["source_id"] == store.row(at)["source_id"]
    assert mixed.chunks["row"].to_pylist() == list(range(10))
    assert (mixed.domain, mixed.ndim, mixed.channels) == ("made-up", 2, ("0",))


def test_members_that_list_other_key_columns_are_joined(tmp_path):
    tiny_store(tmp_path / "a", num=2)
    tiny_store(tmp_path / "b", num=2, domain=SyntheticImages(dtype="uint16"))
    build_store(tmp_path / "c", images(2, 5), domain="synthetic")
    mixed = open_mix(write(tmp_path, "stores: [{path: a, share: 1}, {path: b, share: 1}, {path: c, share: 1}]"))
    assert "key_PatientID" in mixed.index.column_names
    assert mixed.column("key_PatientID")[-1] is None


def test_the_digest_covers_stores_and_shares_and_not_where_they_lie(two, tmp_path):
    first = open_mix(two).digest
    assert open_mix(two).digest == first
    (tmp_path / "elsewhere").mkdir()
    for name in "ab":
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = write(tmp_path / "elsewhere", "stores: [{path: a, share: 0.75}, {path: b, share: 0.25}]")
    assert open_mix(moved).digest == first
    assert open_mix(write(tmp_path / "elsewhere", "stores: [{path: a, share: 2}, {path: b, share: 1}]")).digest != first


def test_the_lineage_holds_every_store_with_its_share_and_its_own_record(two, tmp_path):
    record = dict(open_mix(two).lineage)
    parts = [open_store(tmp_path / name) for name in "ab"]
    assert record["kind"] == "mix"
    assert record["plan"]["stores"] == [
        {"store": store.digest, "share": share, "held_by_others": 0} for store, share in zip(parts, (0.75, 0.25))
    ]
    assert record["history"] == [store.lineage for store in parts]
    assert str(tmp_path) not in json.dumps(record)
    assert record.pop("digest") == digest(record)


def test_statistics_are_those_of_pixels_drawn_with_the_shares(two, tmp_path):
    mixed, parts = open_mix(two), [open_store(tmp_path / name) for name in "ab"]
    pools = [np.concatenate([read(store, row) for row in range(len(store))]) for store in parts]
    mean = 0.75 * pools[0].mean() + 0.25 * pools[1].mean()
    found = mixed.stats()["0"]
    assert found.mean == pytest.approx(mean, rel=1e-6)
    square = 0.75 * (pools[0] ** 2).mean() + 0.25 * (pools[1] ** 2).mean()
    assert found.std == pytest.approx(np.sqrt(square - mean**2), rel=1e-6)
    repeated = np.concatenate([np.tile(pools[0], 2), pools[1]])  # 6 and 4 images: twice the first weighs three to one
    assert found.low == np.percentile(repeated, 0.5, method="inverted_cdf")
    assert found.high == np.percentile(repeated, 99.5, method="inverted_cdf")


def read(store, row):
    out = np.empty((1, 32, 32), np.float32)
    store.read_box(row, (0, 0), out)
    return out[:, :20, :24].reshape(-1).astype(np.float64)


# What is held out.


def test_a_unit_held_out_of_one_store_is_held_out_of_all(tmp_path):
    build_store(tmp_path / "a", images(4, 1), domain="made-up", units={"s1-00": "p", "s1-01": "q"}, holdout=("p",))
    build_store(tmp_path / "b", images(4, 2), domain="made-up", units={"s2-00": "p", "s2-01": "p", "s2-02": "q"})
    mixed = open_mix(write(tmp_path, "stores: [{path: a, share: 1}, {path: b, share: 1}]"))
    assert mixed.column("holdout").tolist() == [True, False, False, False, True, True, False, False]
    assert mixed.chunks["holdout"].to_pylist() == mixed.column("holdout").tolist()
    assert open_store(tmp_path / "b").column("holdout").any() == np.False_
    assert [one["held_by_others"] for one in mixed.lineage["plan"]["stores"]] == [0, 2]


def ground(path, dtype, **plan):
    """Six scenes side by side, 15.6 km each."""
    pytest.importorskip("pyproj")
    domain = SyntheticImages(layout="window", size=(64, 1560), epsg=32632, num_channels=1, dtype=dtype)
    return tiny_store(path, domain=domain, num=6, storage=StorePlan(chunk=128), **plan)


@pytest.fixture(scope="module")
def held_ground(tmp_path_factory):
    return ground(tmp_path_factory.mktemp("ground") / "a", "uint16", audit_holdout=0.5)


@pytest.mark.parametrize(("share", "cell"), [(0.0, 20000.0), (0.0, 7000.0), (0.5, 20000.0)])
def test_ground_held_out_of_one_store_is_held_out_of_all_with_the_belt_around_it(held_ground, tmp_path, share, cell):
    shutil.copytree(held_ground, tmp_path / "a")
    ground(tmp_path / "b", "int16", audit_holdout=share, cell=cell)
    alone = [open_store(tmp_path / name) for name in "ab"]
    mixed = open_mix(write(tmp_path, "stores: [{path: a, share: 1}, {path: b, share: 1}]"))
    held = [set(store.manifest["holdout"]["units"]) for store in alone]
    assert held[0]
    expected = [flag for store in alone for flag in touched(store, held[0] | held[1])]
    before = np.concatenate([store.chunks["holdout"].to_numpy() for store in alone])
    flags = mixed.chunks["holdout"].to_numpy()
    np.testing.assert_array_equal(flags, before | np.array(expected))
    assert flags.sum() > before.sum() or share == 0.5
    rows = mixed.chunks["row"].to_numpy()
    whole = [bool(flags[rows == row].all()) for row in range(len(mixed))]
    assert mixed.column("holdout").tolist() == whole


def touched(store, held):
    """Whether each chunk of a store touches one of the cells or the belt around it, chunk by chunk."""
    grids = {name: CellGrid(cell_m=float(name.partition("/")[0].removeprefix("cell"))) for name in held}
    for row in range(len(store)):
        facts = store.row(row)
        for box in chunk_boxes(facts["shape"][1:], facts["chunk"]):
            place = footprints(facts["crs"], facts["affine"], box[None])
            yield any(name in grid.touched(place)[0] for name, grid in grids.items())


@pytest.mark.allow_hosts(["127.0.0.1", "localhost"])
def test_a_store_behind_a_url_is_mixed_with_one_in_a_folder(two, tmp_path, server):
    far = write(tmp_path, f"stores: [{{path: a, share: 3}}, {{path: '{server.upload(tmp_path / 'b')}', share: 1}}]", "far.yaml")
    near, mixed = open_mix(two), open_mix(far)
    assert mixed.digest == near.digest
    for row in range(len(near)):
        np.testing.assert_array_equal(read(mixed, row), read(near, row))
    assert mixed.stats() == near.stats()
    missing = write(
        tmp_path, f"stores: [{{path: a, share: 3}}, {{path: '{server.upload(tmp_path / 'a')}/none', share: 1}}]", "missing.yaml"
    )
    with pytest.raises(UserError, match=r"stores\[1\]\.path: s3://\S+/none: has no manifest\.json"):
        open_mix(missing)
