"""Results go back to the hospital's own ids through a table that lies beside the store, never in it."""

from __future__ import annotations

import csv
import dataclasses
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dinodomain
from dinodomain.errors import BadSource, UserError
from dinodomain.ingest.crosswalk import crosswalk_file, map_back
from dinodomain.ingest.private import read_private_table, write_private_table
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages


class Clinic(SyntheticImages):
    """Images that carry DICOM keys; two ids of one patient lie in folders 1 and 2."""

    def discover(self, source, select):
        for ref in SyntheticImages.discover(self, source, select):
            if isinstance(ref, BadSource):
                yield ref
                continue
            patient = ref.keys["folder"]
            keys = {**ref.keys, "PatientID": patient, "StudyInstanceUID": f"1.2.{patient}", "AccessionNumber": f"A{ref.keys['stem']}"}
            yield dataclasses.replace(ref, keys=keys, unit=patient)


CLINIC = Clinic(personal=True)


@pytest.fixture
def clinic(tmp_path, run, write_images):
    source = write_images(tmp_path / "in", ["1/a.npy", "1/b.npy", "2/c.npy", "3/d, e.npy"])
    (tmp_path / "map.csv").write_text("PatientID,Patient\n1,Jane\n2,Jane\n")
    run(source, tmp_path / "store", CLINIC, crosswalk=True, patient_map=str(tmp_path / "map.csv"))
    return source


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_it_lies_beside_the_store_for_its_owner_only(tmp_path, clinic):
    path = crosswalk_file(tmp_path / "store")
    assert path == tmp_path / "store.private" / "crosswalk.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(row["StudyInstanceUID"] == f"1.2.{row['PatientID']}" for row in rows(path))
    assert {(row["PatientID"], row["path"]) for row in rows(path)} == {
        ("1", "1/a.npy"), ("1", "1/b.npy"), ("2", "2/c.npy"), ("3", "3/d, e.npy")
    }  # fmt: skip
    assert not [file for file in (tmp_path / "store").rglob("*") if file.is_file() and b"1/a.npy" in file.read_bytes()]


def test_without_the_key_there_is_none_and_a_later_ingest_makes_it_without_reading_pixels(tmp_path, run, write_images, monkeypatch):
    source = write_images(tmp_path / "in", ["1/a.npy"])
    run(source, tmp_path / "store", CLINIC)
    assert not crosswalk_file(tmp_path / "store").exists()
    monkeypatch.setattr(Clinic, "read", None)
    run(source, tmp_path / "store", CLINIC, crosswalk=True)
    assert [row["path"] for row in rows(crosswalk_file(tmp_path / "store"))] == ["1/a.npy"]


def test_later_ingests_add_to_it_whether_they_ask_or_not(tmp_path, run, clinic, write_images):
    write_images(tmp_path / "more", ["4/f.npy"])
    run(tmp_path / "more", tmp_path / "store", CLINIC, patient_map=str(tmp_path / "map.csv"))
    found = rows(crosswalk_file(tmp_path / "store"))
    assert len(found) == 5
    store = open_store(tmp_path / "store")
    assert {row["source_id"]: row["unit"] for row in found} == dict(zip(store.column("source_id"), store.column("unit")))


def test_predictions_get_clear_columns_beside_the_stored_ids(tmp_path, clinic):
    store = open_store(tmp_path / "store")
    lines = ["source_id,prediction", *(f"{source_id},{number}" for number, source_id in enumerate(store.column("source_id")))]
    (tmp_path / "predictions.csv").write_text("\n".join(lines))
    done = dinodomain.inspect(store=str(tmp_path / "store"), crosswalk=str(tmp_path / "predictions.csv"), out=str(tmp_path / "out"))
    path = tmp_path / "out" / "predictions.clear.csv"
    assert (done.table, done.rows, done.by) == (str(path), 4, "source_id")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = {row["source_id"]: row for row in rows(crosswalk_file(tmp_path / "store"))}
    for number, row in enumerate(rows(path)):
        assert row["prediction"] == str(number)
        assert {name: row[name] for name in ("path", "PatientID", "AccessionNumber")} == {
            name: known[row["source_id"]][name] for name in ("path", "PatientID", "AccessionNumber")
        }
    assert str(path) in done.text()


def test_results_by_unit_get_every_id_of_the_patient(tmp_path, clinic):
    units = sorted(set(open_store(tmp_path / "store").column("unit")))
    pq.write_table(pa.table({"unit": units, "risk": [0.1, 0.2]}), tmp_path / "risk.parquet")
    map_back(tmp_path / "store", tmp_path / "risk.parquet", tmp_path / "out")
    found = pq.read_table(tmp_path / "out" / "risk.clear.parquet").to_pylist()
    assert sorted(row["PatientID"] for row in found) == ["1;2", "3"]
    assert [row["risk"] for row in found] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source_id,y\nffff,1\n", r"1 values of source_id are not in the crosswalk: 'ffff' \(row 1\)"),
        ("id,y\na,1\n", "neither a column source_id nor unit; allowed: id, y"),
        ("unit,PatientID\na,1\n", "already has columns PatientID"),
    ],
)
def test_a_table_that_cannot_be_mapped_says_why(tmp_path, clinic, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        map_back(tmp_path / "store", tmp_path / "t.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clear_names_never_go_into_the_store_and_a_missing_crosswalk_says_how_to_make_one(tmp_path, run, clinic, write_images):
    (tmp_path / "t.csv").write_text("source_id\nx\n")
    with pytest.raises(UserError, match="must not hold clear names"):
        map_back(tmp_path / "store", tmp_path / "t.csv", tmp_path / "store" / "results")
    run(write_images(tmp_path / "other", ["1/a.npy"]), tmp_path / "plain", CLINIC)
    with pytest.raises(UserError, match=r"no crosswalk at .*ingest.crosswalk=true"):
        map_back(tmp_path / "plain", tmp_path / "t.csv", tmp_path / "out")


def test_names_that_are_not_utf8_survive_a_private_table(tmp_path):
    name = b"K\xf6ln.dcm".decode("utf-8", "surrogateescape")
    write_private_table(tmp_path / "new" / "t.csv", ("a", "b"), [{"a": name, "b": 'x, "y"\nz'}, {"a": "c"}])
    assert read_private_table(tmp_path / "new" / "t.csv") == [{"a": name, "b": 'x, "y"\nz'}, {"a": "c", "b": ""}]
    assert b"K\xf6ln" in (tmp_path / "new" / "t.csv").read_bytes()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_skipped_files_of_several_ingests_keep_their_clear_names(tmp_path, run, write_images):
    source = write_images(tmp_path / "in", ["1/a.npy"])
    (source / "1" / "x.npy").write_text("none")
    run(source, tmp_path / "store", CLINIC)
    more = write_images(tmp_path / "more", ["2/b.npy"])
    (more / "2" / "y.npy").write_text("none")
    run(more, tmp_path / "store", CLINIC)
    listed = read_private_table(tmp_path / "store.private" / "skipped.csv")
    assert sorted(row["uri"] for row in listed) == ["1/x.npy", "2/y.npy"]
    assert {row["stored"] for row in listed} == {row["uri"] for row in open_store(tmp_path / "store").manifest["skipped"]}
