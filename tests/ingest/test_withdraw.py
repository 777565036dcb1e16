"""Withdrawn units are gone at once for readers, then from every byte of the store; all others stay as they were, also after a kill."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import importlib
import json
import shutil

import numpy as np
import pytest
import zarr

import dinodomain
from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import IngestPlan, withdraw
from dinodomain.ingest.join import join_labels
from dinodomain.ingest.partial import Partial
from dinodomain.ingest.secret import read_secret
from dinodomain.ingest.withdraw import finish_withdrawal, is_pending
from dinodomain.lineage import pseudonym
from dinodomain.store import open_store
from dinodomain.store.format import StorePlan
from dinodomain.store.rewrite import folder_digest
from dinodomain.testing import SyntheticImages

TODAY = datetime.date(2026, 3, 4)
PLAIN = SyntheticImages(size=(40, 48), nodata=True)


class Clinic(SyntheticImages):
    """Two images a patient, every other one a scene; one cannot be read."""

    def read(self, ref):
        number = int(ref.source_id[-2:])
        if number == 9:
            raise BadSource(ref.uris[0], "refused for the test", "none")
        return dataclasses.replace(SyntheticImages.read(self, ref), layout="window" if number % 2 else "whole")


CLINIC = Clinic(size=(40, 48), nodata=True, personal=True)


def listed(tmp_path, *values, column="id"):
    path = tmp_path / "gone.csv"
    path.write_text("\n".join([column, *values]) + "\n")
    return path


def take(tmp_path, *values, column="PatientID", store="store", **plan):
    return withdraw(IngestPlan(store=str(tmp_path / store), withdraw=str(listed(tmp_path, *values, column=column)), join=column, **plan),
                    today=TODAY)  # fmt: skip


def pixels_of(store):
    """Decoded pixels and validity of every source, by id."""
    found = {}
    for row in range(len(store)):
        shape = store.row(row)["shape"]
        out, bits = np.zeros(shape, np.uint8), np.zeros(shape[1:], np.uint8)
        store.read_box(row, (0,) * len(shape[1:]), out)
        store.read_valid(row, (0,) * len(shape[1:]), bits)
        found[store.row(row)["source_id"]] = (out, bits)
    return found


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(a, b) for key in one for a, b in zip(one[key], other[key]))


@pytest.fixture
def clinic(tmp_path, run):
    run("generate:24", tmp_path / "store", CLINIC, audit_holdout=0.3, crosswalk=True)
    return tmp_path / "store"


def unit_id(store, unit):
    return pseudonym(read_secret(store.with_name("store.private") / "secret"), unit)


def test_the_whole_unit_goes_and_everything_else_stays(tmp_path, clinic):
    before = open_store(clinic)
    pixels, gone = pixels_of(before), {unit_id(clinic, "unit0003"), unit_id(clinic, "unit0006")}
    found = take(tmp_path, "unit0003", "unit0006")
    assert (found.sources, found.units, found.rows, found.known, found.joined_by) == (4, 2, 2, 0, "PatientID")

    after = open_store(clinic)
    assert repr(after.index.to_pylist()) == repr([row for row in before.index.to_pylist() if row["unit"] not in gone])
    assert same(pixels_of(after), {key: value for key, value in pixels.items() if key in set(after.column("source_id"))})
    units = [after.row(row)["unit"] for row in after.chunks["row"].to_pylist()]
    assert after.chunks["unit"].to_pylist() == units
    kept = [row for row in before.chunks.to_pylist() if row["unit"] not in gone]
    strip = [{key: value for key, value in row.items() if key != "row"} for row in kept]
    assert [{key: value for key, value in row.items() if key != "row"} for row in after.chunks.to_pylist()] == strip
    assert after.digest != before.digest
    assert not (tmp_path / "store.partial").exists()


def test_the_manifest_says_what_went_and_its_digests_hold(tmp_path, clinic):
    before = open_store(clinic).manifest
    gone = unit_id(clinic, "unit0003")
    take(tmp_path, "unit0003")
    store = open_store(clinic)
    manifest = store.manifest
    assert manifest["withdrawn"] == [{"date": "2026-03-04", "sources": 2, "units": 1}]
    assert manifest["withdrawn_units"] == [gone]
    assert manifest["counts"]["sources"] == before["counts"]["sources"] - 2 == len(store)
    assert manifest["counts"]["units"] == before["counts"]["units"] - 1 == manifest["holdout"]["num_units"]
    assert manifest["holdout"]["units"] == [unit for unit in before["holdout"]["units"] if unit != gone]
    assert manifest["holdout"]["share"] == before["holdout"]["share"]
    assert {folder: folder_digest(clinic / folder) for folder in manifest["arrays"]} == manifest["arrays"]
    assert sorted(manifest["arrays"]) == sorted(
        str(path.relative_to(clinic)) for top in ("scenes/*", "stacks/*/*") for path in clinic.glob(top) if path.is_dir()
    )
    assert store.lineage["history"][0]["counts"]["sources"] == before["counts"]["sources"]
    take(tmp_path, "unit0005")
    assert [event["sources"] for event in open_store(clinic).manifest["withdrawn"]] == [2, 2]


@pytest.mark.parametrize("codec", ["fast", "small", "none"])
def test_no_byte_of_what_went_is_left(tmp_path, run, snapshot, codec):
    """Chunks as they were stored, raw lines of pixels, decoded arrays of any reader, and every name."""
    store = tmp_path / "store"
    run("generate:24", store, CLINIC, crosswalk=True, storage=StorePlan(codec=codec))
    opened = open_store(store)
    gone = unit_id(store, "unit0003")
    rows = [row for row in range(len(opened)) if opened.row(row)["unit"] == gone]
    assert {opened.row(row)["layout"] for row in rows} == {"window", "whole"}
    lost = [pixels_of(opened)[opened.row(row)["source_id"]][0] for row in rows]
    # Only the withdrawn ones hold their own first line: a search that finds nothing now found it before.
    lines = [image[0, 20].tobytes() for image in lost]
    ids = {opened.row(row)[name] for row in rows for name in ("source_id", "key_path", "key_name", "source_digest", "content_hash")}
    names = {value.encode() for value in ids} | {b"unit0003", b"pattern00006", b"pattern00007"}
    chunks = stored_chunks(opened, rows)
    before = b"\0".join([*snapshot(store).values(), *snapshot(tmp_path / "store.private").values()])
    assert all(chunk in before for chunk in chunks)
    assert codec != "none" or all(line in before for line in lines)
    assert b"pattern00006" in before

    take(tmp_path, "unit0003")
    after = b"\0".join([*snapshot(store).values(), *snapshot(tmp_path / "store.private").values(),
                        *(str(path).encode() for path in store.rglob("*"))])  # fmt: skip
    assert not [chunk for chunk in chunks if chunk in after]
    assert not [line for line in lines if line in after]
    tables = repr([open_store(store).index.to_pylist(), open_store(store).chunks.to_pylist()]).encode()
    assert not [name for name in names if name in after or name in tables]
    for path in store.glob("stacks/*/0*"):
        data, valid = zarr.open_array(str(path / "data"), mode="r")[:], zarr.open_array(str(path / "valid"), mode="r")[:]
        kept_items = {row["item"] for row in open_store(store).index.to_pylist() if row["array"].startswith(str(path.relative_to(store)))}
        for item in range(len(data)):
            assert data[item].any() == (item in kept_items)
            assert item in kept_items or not valid[item].any()


def stored_chunks(store, rows):
    """The encoded chunks that hold pixels of these rows."""
    found = []
    for row in rows:
        array, item = store.path / store.row(row)["array"], store.row(row)["item"]
        shards = sorted(path for path in (array / "c").rglob("*") if path.is_file())
        per_chunk = json.loads((array / "zarr.json").read_bytes())["codecs"][0]["configuration"]["chunk_shape"][0]
        for shard in shards:
            data = shard.read_bytes()
            grid = json.loads((array / "zarr.json").read_bytes())
            cells = [outer // inner for outer, inner in zip(grid["chunk_grid"]["configuration"]["chunk_shape"],
                                                           grid["codecs"][0]["configuration"]["chunk_shape"])]  # fmt: skip
            index = np.frombuffer(data[-16 * int(np.prod(cells)) - 4 : -4], "<u8").reshape(-1, 2)
            for cell, (offset, length) in enumerate(index.tolist()):
                if length < 2**63 and (item < 0 or cell == item // per_chunk):
                    found.append(data[offset : offset + length])
    assert found
    return found


def test_items_keep_their_numbers_and_other_chunks_their_bytes(tmp_path, clinic):
    before = {row["source_id"]: (row["array"], row["item"]) for row in open_store(clinic).index.to_pylist()}
    chunks = stored_chunks(open_store(clinic), range(len(before)))
    take(tmp_path, "unit0000")
    store = open_store(clinic)
    assert all(before[row["source_id"]] == (row["array"], row["item"]) for row in store.index.to_pylist())
    assert sum(chunk in set(chunks) for chunk in stored_chunks(store, range(len(store)))) > 0


def test_a_store_opened_before_reads_no_more_and_one_opened_again_reads_what_is_left(tmp_path, run):
    run("generate:8", tmp_path / "store", PLAIN)
    old = open_store(tmp_path / "store")
    pixels = pixels_of(old)
    take(tmp_path, "unit0001")
    with pytest.raises(UserError, match=r"chunk .* cannot be read: the file was (removed|replaced by another) while it was open"):
        pixels_of(old)  # its mappings outlive the files: a training stops instead of going on with them
    again = open_store(tmp_path / "store")
    assert set(again.column("unit")) == {"unit0000", "unit0002", "unit0003"}
    assert same(pixels_of(again), {key: value for key, value in pixels.items() if not key.startswith("unit0001")})


@pytest.mark.parametrize("reference", ["unit0001/pattern00002", "pattern00002", "unit0001"])
def test_a_row_may_name_one_source_by_path_name_or_folder_and_takes_its_unit(tmp_path, run, reference):
    run("generate:8", tmp_path / "store", PLAIN)
    found = take(tmp_path, reference, column="id")
    assert (found.sources, found.units) == (2, 1)
    assert "unit0001" not in set(open_store(tmp_path / "store").column("unit"))


def test_a_following_ingest_does_not_bring_them_back(tmp_path, run, snapshot, clinic):
    take(tmp_path, "unit0003", "unit0004")
    before = snapshot(clinic)
    for _ in range(2):
        summary = run("generate:24", clinic, CLINIC, audit_holdout=0.3, crosswalk=True)
        kept_out = [item for item in summary.skipped if "unit was withdrawn" in item.reason]
        assert (summary.found, summary.added, summary.present, len(kept_out)) == (24, 0, 20, 4)
        assert kept_out[0].reason == "left out by ingest: unit was withdrawn from this store"
        assert kept_out[0].remedy == "it stays out of this store; only a new store can take it"
        assert snapshot(clinic) == before
    dry = run("generate:24", clinic, CLINIC, audit_holdout=0.3, dry_run=True)
    assert (dry.added, sum("unit was withdrawn" in item.reason for item in dry.skipped)) == (0, 4)
    added = run("generate:30", clinic, CLINIC, audit_holdout=0.3)
    assert (added.added, len(open_store(clinic))) == (6, 26)
    assert not is_named(clinic, "pattern00006", "unit0003")


def is_named(store, *names):
    secret = read_secret(store.with_name("store.private") / "secret")
    folders = (store, store.with_name("store.private"))
    everything = b"\0".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())
    index = str(open_store(store).index.to_pylist()).encode()
    forms = [form for name in names for form in (name.encode(), pseudonym(secret, name).encode())]
    return [form for form in forms if form in everything.replace(unit_id(store, "unit0003").encode(), b"") or form in index]


def test_the_same_patient_under_new_files_is_kept_out_too(tmp_path, run, write_images):
    source = write_images(tmp_path / "source", ["ann/a.npy", "bob/b.npy", "cyd/c.npy"])
    people = SyntheticImages(personal=True)
    run(source, tmp_path / "store", people)
    take(tmp_path, "ann", column="id")
    shutil.move(source / "ann" / "a.npy", source / "ann" / "renamed.npy")
    summary = run(source, tmp_path / "store", people)
    assert [(item.uri, item.reason) for item in summary.skipped] == [
        ("ann/renamed.npy", "left out by ingest: unit was withdrawn from this store")
    ]
    assert len(open_store(tmp_path / "store")) == 2


def test_the_same_files_are_kept_out_where_the_group_is_no_longer_given(tmp_path, run, write_images):
    source = write_images(tmp_path / "source", ["a.npy", "b.npy", "c.npy"])
    (tmp_path / "people.csv").write_text("id,who\na,ann\nb,bob\nc,ann\n")
    people = SyntheticImages(personal=True)
    run(source, tmp_path / "store", people, metadata=str(tmp_path / "people.csv"), group="who")
    assert take(tmp_path, "a", column="id").sources == 2
    summary = run(source, tmp_path / "store", people)
    assert (summary.present, summary.added, len(summary.skipped)) == (1, 0, 2)


def test_a_list_may_grow_and_be_given_again(tmp_path, clinic, snapshot):
    take(tmp_path, "unit0003")
    before = snapshot(clinic)
    again = take(tmp_path, "unit0003")
    assert (again.sources, again.known, again.rows) == (0, 1, 0)
    assert snapshot(clinic) == before
    grown = take(tmp_path, "unit0003", "unit0005")
    assert (grown.sources, grown.known, grown.rows) == (2, 1, 1)


def test_clear_names_and_skipped_entries_beside_and_in_the_store_go(tmp_path, clinic):
    private = tmp_path / "store.private"
    assert len(open_store(clinic).manifest["skipped"]) == 1
    assert len((private / "crosswalk.csv").read_text().splitlines()) == 24
    found = take(tmp_path, "unit0004")  # the unreadable source 9 is theirs as well
    assert (found.sources, found.skipped) == (1, 1)
    assert open_store(clinic).manifest["skipped"] == []
    assert open_store(clinic).manifest["counts"]["skipped_by_reason"] == {}
    assert len((private / "crosswalk.csv").read_text().splitlines()) == 23
    assert list(csv.DictReader((private / "skipped.csv").read_text().splitlines())) == []
    assert not any(b"unit0004" in path.read_bytes() for path in private.iterdir())


def test_a_ground_cell_stays_and_only_the_named_scenes_go(tmp_path, run, snapshot):
    scenes = SyntheticImages(layout="window", size=(64, 64), epsg=32632)
    run("generate:8", tmp_path / "store", scenes, cell=2000.0, audit_holdout=0.3)
    before = open_store(tmp_path / "store")
    pixels = pixels_of(before)
    assert set(before.column("unit")) == {""}
    found = take(tmp_path, "pattern00002", column="id")
    after = open_store(tmp_path / "store")
    assert (found.sources, len(after)) == (1, 7)
    lost = set(before.chunks["unit"].to_pylist()) - set(after.chunks["unit"].to_pylist())
    assert found.units == len(lost) == len(after.manifest["withdrawn_units"])
    assert same(pixels_of(after), {key: value for key, value in pixels.items() if not key.endswith("00002")})
    bytes_before = snapshot(tmp_path / "store")
    assert run("generate:8", tmp_path / "store", scenes, cell=2000.0).present == 7
    assert snapshot(tmp_path / "store") == bytes_before


@pytest.mark.parametrize("number", [0, 8])
def test_a_later_ingest_after_a_withdrawal_takes_new_stack_numbers(tmp_path, run, number):
    run("generate:8", tmp_path / "store", PLAIN)
    take(tmp_path, *(f"unit000{index}" for index in range(3)))
    run("generate:16", tmp_path / "store", PLAIN)
    store = open_store(tmp_path / "store")
    assert len(store) == 10
    assert {row["array"].split("/")[2] for row in store.index.to_pylist()} == {"0000", "0001"}
    assert {folder: folder_digest(store.path / folder) for folder in store.manifest["arrays"]} == store.manifest["arrays"]


def test_nothing_would_be_left_is_an_error_that_changes_nothing(tmp_path, run, snapshot):
    run("generate:4", tmp_path / "store", PLAIN)
    before = snapshot(tmp_path / "store")
    with pytest.raises(UserError, match=r"withdraw: .* names every source of .*; nothing would be left; delete the store instead"):
        take(tmp_path, "unit0000", "unit0001")
    with pytest.raises(UserError, match=r"ingest\.join: .*1 of 2 rows match no source by column 'PatientID': 'nobody' \(line 3\)"):
        take(tmp_path, "unit0000", "nobody")
    with pytest.raises(UserError, match=r"has no column 'PatientId'.*did you mean 'PatientID'"):
        withdraw(
            IngestPlan(store=str(tmp_path / "store"), withdraw=str(listed(tmp_path, "unit0000", column="PatientID")), join="PatientId")
        )
    with pytest.raises(UserError, match="is no folder"):
        take(tmp_path, "unit0000", store="nowhere")
    assert not (tmp_path / "nowhere.partial").exists()
    assert snapshot(tmp_path / "store") == before


def test_without_the_secret_nothing_is_withdrawn(tmp_path, clinic, snapshot):
    (tmp_path / "store.private" / "secret").rename(tmp_path / "elsewhere")
    before = snapshot(clinic)
    with pytest.raises(UserError, match=r"the secret of .* is missing"):
        take(tmp_path, "unit0003")
    assert snapshot(clinic) == before
    assert take(tmp_path, "unit0003", secret=str(tmp_path / "elsewhere")).sources == 2


def test_staged_work_of_an_unfinished_ingest_goes_with_it(tmp_path, run):
    """It may hold more of the same unit."""
    run("generate:4", tmp_path / "store", PLAIN)
    run("generate:8", tmp_path / "store", PLAIN, shard="1/1")
    assert list((tmp_path / "store.partial" / "staged").iterdir())
    take(tmp_path, "unit0001")
    assert not (tmp_path / "store.partial").exists()


def test_no_withdrawal_while_an_ingest_or_a_job_runs(tmp_path, run):
    run("generate:4", tmp_path / "store", PLAIN)
    for job in ("", "1-of-2"):
        with Partial(tmp_path / "store", job).open(), pytest.raises(UserError, match=r"another ingest|jobs with ingest\.shard"):
            take(tmp_path, "unit0001")


def test_a_crash_at_every_step_is_finished_by_the_next_withdrawal_or_ingest(tmp_path, run, snapshot, crash_everywhere):
    """From the first rename that counts on, readers see the remaining rows and nothing else."""
    first, store, seen = tmp_path / "first", tmp_path / "store", []
    run("generate:12", first, CLINIC, audit_holdout=0.3, crosswalk=True)
    names = ("", ".private")

    def reset():
        for name in (*names, ".partial"):
            shutil.rmtree(tmp_path / f"store{name}", ignore_errors=True)
        for name in names:
            shutil.copytree(tmp_path / f"first{name}", tmp_path / f"store{name}")

    def whole():
        return snapshot(store) | {f"private/{name}": data for name, data in snapshot(tmp_path / "store.private").items()}

    reset()
    old = pixels_of(open_store(store))
    take(tmp_path, "unit0003")
    wanted, remaining = whole(), pixels_of(open_store(store))
    assert len(old) - len(remaining) == 2

    def check(left):
        opened = open_store(store)
        begun = is_pending(store) or len(opened) == len(remaining)
        seen.append(begun)
        assert same(pixels_of(opened), remaining if begun else old), f"after a crash at rename {left}"
        if left % 2 and begun:
            run("generate:12", store, CLINIC, audit_holdout=0.3, crosswalk=True)
        else:
            take(tmp_path, "unit0003")
        assert whole() == wanted, f"after a crash at rename {left}"
        assert not (tmp_path / "store.partial").exists()

    assert crash_everywhere(lambda: take(tmp_path, "unit0003"), reset, check) > 8
    assert seen == sorted(seen)
    assert set(seen) == {False, True}


def test_a_crash_between_deletions_is_finished(tmp_path, run, snapshot, monkeypatch):
    run("generate:12", tmp_path / "store", CLINIC)
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    shutil.copytree(tmp_path / "store.private", tmp_path / "other.private")
    take(tmp_path, "unit0002", store="other")
    real = shutil.rmtree

    def half(path, *args, **options):
        if "scenes" in str(path):
            next(path for path in sorted(path.rglob("*")) if path.is_file()).unlink()
            raise KeyboardInterrupt
        real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            take(tmp_path, "unit0002")
    assert len(open_store(tmp_path / "store")) == 9
    found = take(tmp_path, "unit0002")
    assert (found.finished, found.known) == (True, 1)
    assert found.text().startswith("an interrupted withdrawal was finished first\n")
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "other")


def test_a_job_does_not_start_before_an_interrupted_withdrawal_is_finished(tmp_path, run, monkeypatch):
    run("generate:4", tmp_path / "store", PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.import_module("dinodomain.ingest.withdraw"), "clear_items", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        with pytest.raises(KeyboardInterrupt):
            take(tmp_path, "unit0001")
    with pytest.raises(UserError, match=r"an interrupted run has yet to finish"):
        run("generate:8", tmp_path / "store", PLAIN, shard="1/2")
    partial = Partial(tmp_path / "store")
    with partial.open():
        assert finish_withdrawal(partial)
        assert not finish_withdrawal(partial)


def test_a_damaged_shard_stops_the_withdrawal_of_pixels_and_says_so(tmp_path, run):
    run("generate:4", tmp_path / "store", PLAIN)
    shard = next(path for path in (tmp_path / "store" / "stacks").rglob("c/0/**/*") if path.is_file() and "data" in str(path))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(UserError, match=r"chunk .* cannot be read: its checksum differs"):
        take(tmp_path, "unit0001")
    assert len(open_store(tmp_path / "store")) == 2
    shard.write_bytes(whole)
    assert take(tmp_path, "unit0001").finished


def test_the_command_says_what_it_did_and_the_api_reads_like_it(tmp_path, run):
    run("generate:8", tmp_path / "store", PLAIN)
    path = listed(tmp_path, "unit0001", column="who")
    found = dinodomain.ingest(store=str(tmp_path / "store"), withdraw=str(path), join="who")
    assert found.text().splitlines() == [
        "2 sources of 1 units withdrawn for 1 rows of the list",
        "6 sources of 3 units remain",
        "restart trainings that use this store; checkpoints, features, copies and backups made before are as they were",
        f"store: {tmp_path / 'store'}",
    ]
    assert found.as_json()["sources"] == 2
    assert found.date == datetime.date.today().isoformat()


def test_a_withdrawal_needs_no_domain_and_takes_none(tmp_path):
    with pytest.raises(UserError, match="give store and withdraw only"):
        IngestPlan(store="a", withdraw="b", domain="ct")


def test_a_spreadsheet_that_still_names_a_withdrawn_patient_joins(tmp_path, clinic):
    (tmp_path / "labels.csv").write_text("PatientID,sex\nunit0003,F\nunit0004,M\n")
    take(tmp_path, "unit0003")
    labels = join_labels(clinic, tmp_path / "labels.csv", "PatientID", "sex")
    assert set(labels.values) == {"M"}
    (tmp_path / "labels.csv").write_text("PatientID,sex\nunit0003,F\nunit9999,M\n")
    with pytest.raises(UserError, match=r"1 of 2 rows match no source by column 'PatientID': 'unit9999'"):
        join_labels(clinic, tmp_path / "labels.csv", "PatientID", "sex")
