"""An ingest gives the same bytes however it runs, says what is wrong with bad input, and never loses the other files."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.ingest.partial import Partial
from dinodomain.lineage import Lineage, digest
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, SyntheticVolumes, read_source


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, run, snapshot):
    domain = SyntheticImages(layout="window", size=(70, 90), nodata=True)
    run("generate:5", tmp_path / "a", domain, workers=0)
    run("generate:5", tmp_path / "b", domain, workers=2)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_the_same_files_elsewhere_give_the_same_bytes(tmp_path, run, write_images, snapshot):
    for side in ("left", "right"):
        run(write_images(tmp_path / side / "in", ["a/1.npy", "b/2.npy"]), tmp_path / side / "store")
    assert snapshot(tmp_path / "left" / "store") == snapshot(tmp_path / "right" / "store")


def test_nothing_but_the_store_is_left_behind(tmp_path, run):
    run("generate:3", tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_volumes_and_images_are_read_back_exactly(tmp_path, run):
    domain = SyntheticVolumes(size=(33, 40, 20), num_channels=2, nodata=True)
    run("generate:2", tmp_path / "store", domain)
    store = open_store(tmp_path / "store")
    ref = next(iter(domain.discover("generate:1", IngestPlan(domain="x", source="x", store="x").as_select())))
    np.testing.assert_array_equal(read_source(store, 0), domain.read(ref).read((slice(0, 33), slice(0, 40), slice(0, 20))))
    assert store.has_valid(0)
    assert not store.has_valid(1)


def test_images_of_several_sizes_go_to_their_buckets(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["a.npy", "b.npy"], (3, 20, 24))
    write_images(tmp_path / "in", ["c.npy"], (3, 100, 24))
    write_images(tmp_path / "in", ["d.npy"], (1, 20, 24))
    run(tmp_path / "in", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert [Path(path).parts[1].split("-")[1:3] for path in store.column("array")] == [
        ["3ch", "32x32"],
        ["3ch", "32x32"],
        ["3ch", "128x32"],
        ["1ch", "32x32"],
    ]
    assert store.column("item").tolist() == [0, 1, 0, 0]
    assert [read_source(store, row)[0, 1, 1] for row in range(4)] == [10, 11, 10, 10]


def test_a_second_ingest_adds_arrays_and_rewrites_none(tmp_path, run, write_images, snapshot):
    run(write_images(tmp_path / "in", ["b.npy", "d.npy"]), tmp_path / "store")
    before = snapshot(tmp_path / "store")
    kept = (tmp_path / "in" / "b.npy").read_bytes()
    write_images(tmp_path / "in", ["a.npy", "b.npy", "c.npy"])
    (tmp_path / "in" / "b.npy").write_bytes(kept)
    summary = run(tmp_path / "in", tmp_path / "store")
    after = snapshot(tmp_path / "store")
    assert (summary.added, summary.present) == (2, 2)
    arrays = [name for name in before if name.startswith("stacks/")]
    assert all(before[name] == after[name] for name in arrays)
    store = open_store(tmp_path / "store")
    assert store.column("source_id").tolist() == ["a.npy", "b.npy", "c.npy", "d.npy"]
    assert [Path(path).parts[2] for path in store.column("array")] == ["0001", "0000", "0001", "0000"]
    assert [read_source(store, row)[0, 1, 1] for row in range(4)] == [10, 10, 12, 11]
    assert store.chunks["row"].to_pylist() == [0, 1, 2, 3]
    assert store.chunks["chunk"].to_pylist() == [[0], [0], [1], [1]]


def test_ingesting_the_same_again_changes_nothing(tmp_path, run, snapshot):
    run("generate:4", tmp_path / "store")
    before = snapshot(tmp_path / "store")
    summary = run("generate:4", tmp_path / "store")
    assert (summary.added, summary.present) == (0, 4)
    assert snapshot(tmp_path / "store") == before


def test_a_source_that_changed_is_skipped_and_the_store_keeps_the_old_one(tmp_path, run, write_images):
    run(write_images(tmp_path / "in", ["a.npy", "b.npy"]), tmp_path / "store")
    np.save(tmp_path / "in" / "a.npy", np.zeros((3, 20, 24), np.uint8))
    summary = run(tmp_path / "in", tmp_path / "store")
    assert "has changed since it was ingested" in summary.skipped[0].reason
    assert read_source(open_store(tmp_path / "store"), 0)[0, 1, 1] == 10


def test_bad_files_are_listed_with_their_reason_and_stop_nothing(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["good.npy"])
    write_images(tmp_path / "in", ["flat.npy"], (20, 24))
    np.save(tmp_path / "in" / "wide.npy", np.zeros((3, 8, 8), np.int64))
    np.save(tmp_path / "in" / "nan.npy", np.full((3, 8, 8), np.nan, np.float32))
    (tmp_path / "in" / "text.npy").write_text("hello")
    whole = (tmp_path / "in" / "good.npy").read_bytes()
    (tmp_path / "in" / "short.npy").write_bytes(whole[: len(whole) // 2])
    summary = run(tmp_path / "in", tmp_path / "store")
    reasons = {item.uri: item.reason for item in summary.skipped}
    assert summary.added == 1
    assert "has 2 axes" in reasons["flat.npy"]
    assert "int64 cannot be stored" in reasons["wide.npy"]
    assert "no valid pixel" in reasons["nan.npy"]
    assert "not a numpy file" in reasons["text.npy"]
    assert "cannot be read" in reasons["short.npy"]
    listed = open_store(tmp_path / "store").manifest["skipped"]
    assert [row["uri"] for row in listed] == sorted(reasons)
    assert all(row["remedy"] for row in listed)
    assert str(tmp_path) not in json.dumps(listed)


def test_a_mended_file_leaves_the_list_of_skipped_ones(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["a.npy"])
    (tmp_path / "in" / "b.npy").write_text("hello")
    run(tmp_path / "in", tmp_path / "store")
    write_images(tmp_path / "in", ["b.npy"])
    run(tmp_path / "in", tmp_path / "store")
    assert open_store(tmp_path / "store").manifest["skipped"] == []


def test_strict_stops_at_the_first_bad_file(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["a.npy"])
    write_images(tmp_path / "in", ["b.npy"], (20, 24))
    with pytest.raises(BadSource, match="has 2 axes"):
        run(tmp_path / "in", tmp_path / "store", strict=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crashing:
    """A domain whose decoder raises something of its own for one source, and kills its process for another."""

    inner: SyntheticImages = dataclasses.field(default_factory=SyntheticImages)
    name: str = "synthetic"
    ndim: int = 2
    layout: str = "whole"
    personal: bool = False
    extra: str = "dev"
    default_select: str = ""
    kill: str = ""

    @property
    def channels(self):
        return self.inner.channels

    def discover(self, source, select):
        return self.inner.discover(source, select)

    def read(self, ref):
        if ref.source_id.endswith("00001"):
            raise ZeroDivisionError("division by zero")
        if ref.source_id.endswith("00002") and self.kill:
            os._exit(7)
        return self.inner.read(ref)

    def to_float(self, pixels, info):
        raise NotImplementedError

    view_policy = probes = to_float


def test_a_decoder_that_raises_costs_its_source_only(tmp_path, run):
    summary = run("generate:4", tmp_path / "store", Crashing())
    assert summary.added == 3
    assert summary.skipped[0].reason == "cannot be read: ZeroDivisionError: division by zero"


def test_an_id_that_two_sources_share_is_refused_for_the_second(tmp_path, run):
    class Twice(SyntheticImages):
        def discover(self, source, select):
            for ref in SyntheticImages.discover(self, source, select):
                yield ref
                yield dataclasses.replace(ref, uris=("generate:9",))

    summary = run("generate:2", tmp_path / "store", Twice())
    assert summary.added == 2
    assert "is already that of 'generate:0'" in summary.skipped[0].reason


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "holds nothing that domain 'synthetic' reads"),
        (lambda path: None, "does not exist"),
    ],
)
def test_an_empty_or_missing_folder_is_an_error(tmp_path, run, make, words):
    make(tmp_path / "in")
    with pytest.raises(UserError, match=words):
        run(tmp_path / "in", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "store.partial").exists()


def test_globs_that_leave_nothing_are_named(tmp_path, run, write_images):
    with pytest.raises(UserError, match="include"):
        run(write_images(tmp_path / "in", ["a.npy"]), tmp_path / "store", include=("*.tif",))


def test_nothing_readable_lists_every_reason(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["a.npy"], (20, 24))
    (tmp_path / "in" / "b.npy").write_text("hello")
    with pytest.raises(UserError, match=r"none of the 2 sources(.|\n)*a.npy: has 2 axes(.|\n)*b.npy: is not a numpy file"):
        run(tmp_path / "in", tmp_path / "store")


def test_a_folder_that_is_no_store_is_left_alone(tmp_path, run):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a store"):
        run("generate:2", tmp_path / "store")
    assert (tmp_path / "store" / "thesis.txt").read_text() == "mine"


def test_other_settings_than_those_of_the_store_are_refused(tmp_path, run):
    run("generate:2", tmp_path / "store")
    with pytest.raises(UserError, match="made with cell=20000"):
        run("generate:2", tmp_path / "store", cell=5000.0)


def test_more_ground_cells_than_memory_should_hold_refuse_the_source(tmp_path, run, monkeypatch):
    monkeypatch.setattr("dinodomain.ingest.stage._MOST_CELLS", 3)
    with pytest.raises(UserError, match=r"touch .* ground cells of 50 m, more than 3; set ingest.cell to about"):
        run("generate:2", tmp_path / "store", SyntheticImages(layout="window", epsg=32632), cell=50.0)


def test_a_folder_that_cannot_be_written_is_one_clear_message(tmp_path, run, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot write .*Permission denied; choose a folder you may write to"):
        run("generate:2", tmp_path / "store")


def test_a_full_disk_keeps_what_is_staged(tmp_path, run, monkeypatch, snapshot):
    run("generate:4", tmp_path / "whole")
    calls, real = [], np.save

    def full(handle, array, **options):
        calls.append(1)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        real(handle, array, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(UserError, match="No space left on device; free space and run again"):
            run("generate:4", tmp_path / "store")
    assert len(list((tmp_path / "store.partial" / "staged").iterdir())) == 2
    run("generate:4", tmp_path / "store")
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")


def test_two_ingests_of_one_store_do_not_meet(tmp_path, run):
    with Partial(tmp_path / "store").open(), pytest.raises(UserError, match="another ingest is writing"):
        run("generate:2", tmp_path / "store")


def test_a_dry_run_writes_nothing_and_says_what_it_would_do(tmp_path, run, write_images):
    run(write_images(tmp_path / "in", ["a.npy"]), tmp_path / "store")
    write_images(tmp_path / "in", ["b.npy"])
    before = sorted(tmp_path.rglob("*"))
    summary = run(tmp_path / "in", tmp_path / "store", dry_run=True)
    assert "1 would be added, 1 already there" in summary.text()
    assert sorted(tmp_path.rglob("*")) == before


def test_lineage_and_manifest_say_what_the_store_was_made_from(tmp_path, run, write_images):
    (tmp_path / "meta.csv").write_text("id,scanner\na,x\nb,y\n")
    run(
        write_images(tmp_path / "in", ["a.npy", "b.npy"]),
        tmp_path / "store",
        metadata=str(tmp_path / "meta.csv"),
        fields=("scanner",),
        licence="CC0",
    )
    store = open_store(tmp_path / "store")
    body = {key: value for key, value in store.lineage.items() if key != "digest"}
    assert digest(body) == store.lineage["digest"]
    assert set(store.lineage["versions"]) == {"dinodomain", "numcodecs", "numpy", "zarr"}
    assert store.lineage["counts"]["sources"] == 2
    assert set(store.lineage["parents"]) == {"metadata"}
    assert str(tmp_path) not in json.dumps([store.lineage, store.manifest])
    assert json.loads(store.row(0)["fields"]) == {"instrument": "synthetic", "scanner": "x"}
    assert store.column("licence").tolist() == ["CC0", "CC0"]
    run(write_images(tmp_path / "in", ["a.npy", "b.npy", "c.npy"]), tmp_path / "store", licence="CC0")
    again = open_store(tmp_path / "store")
    assert again.lineage["history"] == [store.lineage]
    assert Lineage.__dataclass_fields__.keys() == body.keys()


def test_progress_is_told_for_every_source(tmp_path):
    seen = []
    domain = SyntheticImages()
    plan = IngestPlan(domain="synthetic", source="generate:3", store=str(tmp_path / "store"), workers=0)
    ingest(plan, domain=domain, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_log_gets_plain_lines(tmp_path, caplog):
    caplog.set_level("INFO")
    ingest(IngestPlan(domain="synthetic", source="generate:3", store=str(tmp_path / "store"), workers=0), domain=SyntheticImages())
    assert "ingest: 3 of 3 sources" in caplog.text


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"audit_holdout": 0.7}, "ingest.audit_holdout: is 0.7"),
        ({"cell": 10.0}, "50 to 1000000 metres"),
        ({"max_side": 4096}, "32 to 1024 pixels"),
        ({"workers": -1}, "0 .in this process."),
        ({"group": "patient"}, "set ingest.metadata=CSV"),
        ({"fields": ("age",)}, "set ingest.metadata=CSV"),
        ({"store": "s3://bucket/store"}, "is an address"),
        ({"source": " "}, "source: is required"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(plan, words):
    with pytest.raises(UserError, match=words):
        IngestPlan(**{"domain": "synthetic", "source": "in", "store": "out", **plan})
