"""Aliases of one patient become one unit before anything is hashed, and stay it; dates move with the patient."""

from __future__ import annotations

import dataclasses
from datetime import date

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.ingest.dates import NO_DATE, shifted
from dinodomain.ingest.patients import apply, read_patient_map
from dinodomain.ingest.secret import make_secret, read_secret
from dinodomain.lineage import MOST_SHIFT_DAYS, date_shift, pseudonym
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages
from dinodomain.types import Select, SourceRef


class Clinic(SyntheticImages):
    """Images whose folder is ``ISSUER_ID`` or ``ID``, and whose date is the middle of their stem, as DICOM files would say."""

    def discover(self, source, select):
        for ref in SyntheticImages.discover(self, source, select):
            issuer, _, patient = ref.keys["folder"].rpartition("_")
            keys = {**ref.keys, "PatientID": f" {patient}\0", "IssuerOfPatientID": issuer, "AccessionNumber": f"ACC-{ref.keys['stem']}"}
            yield dataclasses.replace(ref, unit=f"{issuer}\\{patient} " if issuer else patient, keys={k: v for k, v in keys.items() if v})

    def read(self, ref):
        found = ref.keys["stem"].partition("@")[2]
        return dataclasses.replace(SyntheticImages.read(self, ref), acquired=found or None)


CLINIC = Clinic(personal=True)


def ref(name, unit):
    return SourceRef(source_id=name, uris=(name,), keys={}, unit=unit, digest="")


def units(tmp_path, text, *given):
    (tmp_path / "map.csv").write_text(text)
    return [found.unit for found in apply(read_patient_map(tmp_path / "map.csv"), [ref(str(n), unit) for n, unit in enumerate(given)])]


@pytest.mark.parametrize(
    ("text", "given", "wanted"),
    [
        ("PatientID,Patient\nA,P\nB,P\n", ["A", "B", "C", None], ["P", "P", "C", None]),
        ("PatientID,Patient\n A \0,P\n", ["A"], ["P"]),
        ("PatientID,Patient\nA,P\n", ["X\\A"], ["P"]),
        ("PatientID,Patient,IssuerOfPatientID\nA,P,X\nA,Q,Y\n", ["X\\A", "Y\\A", "Z\\A", "A"], ["P", "Q", "Z\\A", "A"]),
        ("PatientID,Patient,IssuerOfPatientID\nA,P,X\nA,Q,\n", ["X\\A", "Y\\A"], ["P", "Q"]),
        ("PatientID,Patient\nA,B\nB,C\n", ["A", "B", "C"], ["C", "C", "C"]),
        ("PatientID,Patient\nA,B\nB,B\n", ["A", "B"], ["B", "B"]),
        ("PatientID,Patient,IssuerOfPatientID\nA,B,X\nB,C,X\nB,D,Y\n", ["X\\A", "X\\B", "Y\\B"], ["C", "C", "D"]),
        ("PatientID,Patient\n007,P\n", ["7", "007"], ["7", "P"]),
        ("PatientID;Patient\nA;P\n", ["A"], ["P"]),
        ("PatientID,Patient\nghost,P\n", ["A"], ["A"]),
    ],
)
def test_ids_lead_to_their_person(tmp_path, text, given, wanted):
    assert units(tmp_path, text, *given) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PatientID,Patient\nA,P\nB,P\nA,Q\n", r"lines 2 and 4: 'A' is mapped to 'P' and to 'Q'; give each id one person"),
        ("PatientID,Patient\nA,B\nB,C\nC,A\n", r"circle: 'A' \(line 2\), 'B' \(line 3\), 'C' \(line 4\)"),
        ("PatientID,Patient\nA,\n,P\n", "line 2: Patient is empty, line 3: PatientID is empty"),
        ("PatientID,Patient\nX\\A,P\n", "line 2: a backslash"),
        ("PatientID,Person\nA,P\n", "no column 'Patient'"),
        ("PatientID,Patient,IssuerOfPatientID\nA,B,\nB,C,X\n", "line 2: 'B' is an id of a stated issuer"),
    ],
)
def test_a_map_that_is_not_clear_is_refused_with_its_lines(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        units(tmp_path, text, "A")


def test_the_same_row_twice_is_no_error(tmp_path):
    assert units(tmp_path, "PatientID,Patient\nA,P\nA,P\n", "A") == ["P"]


def test_a_row_without_issuer_for_ids_of_two_issuers_asks_for_the_column(tmp_path):
    with pytest.raises(UserError, match=r"stand for several people: 'A' \(line 2: 2 issuers\); add a column IssuerOfPatientID"):
        units(tmp_path, "PatientID,Patient\nA,P\n", "X\\A", "Y\\A")


def test_a_person_named_like_an_id_of_an_issuer_needs_a_row_of_its_own(tmp_path):
    with pytest.raises(UserError, match="'B' of issuer 'X' is the name of a person, but has no row of its own"):
        units(tmp_path, "PatientID,Patient,IssuerOfPatientID\nA,B,X\n", "X\\A", "X\\B")
    assert units(tmp_path, "PatientID,Patient,IssuerOfPatientID\nA,B,X\nB,B,X\n", "X\\A", "X\\B") == ["B", "B"]


@pytest.fixture
def archive(tmp_path, write_images):
    return write_images(tmp_path / "in", ["X_1/a@2019-03-01.npy", "X_1/b@2019-03-11.npy", "Y_1/c@2019-03-01.npy", "2/d@2020-07-01.npy"])


def stored(store):
    return {tuple(row[name] for name in ("unit", "acquired")) for row in store.index.to_pylist()}


def test_the_unit_is_the_hash_of_issuer_and_id_and_the_id_alone_stays_joinable(tmp_path, run, archive):
    run(archive, tmp_path / "store", CLINIC)
    store, secret = open_store(tmp_path / "store"), read_secret(tmp_path / "store.private" / "secret")
    assert set(store.column("unit")) == {pseudonym(secret, unit) for unit in ("X\\1", "Y\\1", "2")}
    assert set(store.column("key_PatientID")) == {pseudonym(secret, patient) for patient in ("1", "2")}


def test_the_map_makes_one_unit_of_two_ids_and_leaves_the_ids_joinable(tmp_path, run, archive):
    (tmp_path / "map.csv").write_text("PatientID,Patient,IssuerOfPatientID\n1,Jane,X\n2,Jane,\n")
    run(archive, tmp_path / "store", CLINIC, patient_map=str(tmp_path / "map.csv"))
    store, secret = open_store(tmp_path / "store"), read_secret(tmp_path / "store.private" / "secret")
    assert sorted(store.column("unit")) == sorted([pseudonym(secret, "Jane")] * 3 + [pseudonym(secret, "Y\\1")])
    assert sorted(store.column("key_PatientID")) == sorted([pseudonym(secret, "1")] * 3 + [pseudonym(secret, "2")])


def test_a_domain_without_patients_refuses_a_map_and_a_crosswalk(tmp_path, run):
    (tmp_path / "map.csv").write_text("PatientID,Patient\nA,P\n")
    with pytest.raises(UserError, match="knows no patients"):
        run("generate:2", tmp_path / "store", patient_map=str(tmp_path / "map.csv"))
    with pytest.raises(UserError, match="keeps clear ids"):
        run("generate:2", tmp_path / "store", crosswalk=True)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (None, "PatientID,Patient\n2,Jane\n", "sources of '2' lie under another unit.*same ingest.patient_map"),
        ("PatientID,Patient\n2,Jane\n", None, "was made with a patient map, and this ingest has none"),
        ("PatientID,Patient\n2,Jane\n", "PatientID,Patient\n2,Joan\n", "sources of '2' lie under another unit"),
        (None, "PatientID,Patient,IssuerOfPatientID\n1,Jane,X\n", r"sources of 'X\\\\1' lie under another unit"),
    ],
)
def test_a_later_ingest_may_not_move_a_patient(tmp_path, run, archive, write_images, first, second, words):
    def keys(text):
        if text is None:
            return {}
        (tmp_path / "map.csv").write_text(text)
        return {"patient_map": str(tmp_path / "map.csv")}

    run(archive, tmp_path / "store", CLINIC, **keys(first))
    write_images(archive, ["2/e.npy"])
    for dry_run in (True, False):
        with pytest.raises(UserError, match=words):
            run(archive, tmp_path / "store", CLINIC, dry_run=dry_run, **keys(second))


def test_a_map_that_grew_is_welcome(tmp_path, run, archive, write_images):
    (tmp_path / "map.csv").write_text("PatientID,Patient\n2,Jane\n")
    run(archive, tmp_path / "store", CLINIC, patient_map=str(tmp_path / "map.csv"))
    write_images(archive, ["3/e.npy"])
    (tmp_path / "map.csv").write_text("PatientID,Patient\n2,Jane\n3,Jane\n")
    run(archive, tmp_path / "store", CLINIC, patient_map=str(tmp_path / "map.csv"))
    assert len(set(open_store(tmp_path / "store").column("unit"))) == 3


def test_intervals_of_a_patient_survive_and_days_do_not(tmp_path, run, archive):
    make_secret(tmp_path / "secret")
    for name in ("one", "two"):
        run(archive, tmp_path / name, CLINIC, secret=str(tmp_path / "secret"))
    secret, store = read_secret(tmp_path / "secret"), open_store(tmp_path / "one")
    assert stored(store) == stored(open_store(tmp_path / "two"))
    moved = {row["key_stem"]: date.fromisoformat(row["acquired"]) for row in store.index.to_pylist()}
    a, b, c, d = (moved[pseudonym(secret, stem)] for stem in ("a@2019-03-01", "b@2019-03-11", "c@2019-03-01", "d@2020-07-01"))
    assert (b - a).days == 10
    assert (a - date(2019, 3, 1)).days == date_shift(secret, "X\\1")
    assert (c - date(2019, 3, 1)).days == date_shift(secret, "Y\\1")
    assert (d - date(2020, 7, 1)).days == date_shift(secret, "2")
    assert set(store.chunks["acquired"].to_pylist()) == {day.isoformat() for day in (a, b, c, d)}


def test_two_ids_of_one_person_move_alike(tmp_path, run, archive):
    (tmp_path / "map.csv").write_text("PatientID,Patient,IssuerOfPatientID\n1,Jane,X\n2,Jane,\n")
    run(archive, tmp_path / "store", CLINIC, patient_map=str(tmp_path / "map.csv"))
    secret = read_secret(tmp_path / "store.private" / "secret")
    store = open_store(tmp_path / "store")
    days = sorted(date.fromisoformat(acquired) for unit, acquired in stored(store) if unit == pseudonym(secret, "Jane"))
    assert [(day - days[0]).days for day in days] == [0, 10, (date(2020, 7, 1) - date(2019, 3, 1)).days]


def test_a_source_of_nobody_moves_with_the_group_that_the_csv_gives_it_or_alone(tmp_path, run, write_images):
    class Nobody(Clinic):
        def discover(self, source, select):
            return (dataclasses.replace(ref, unit=None) for ref in Clinic.discover(self, source, select))

    source = write_images(tmp_path / "in", ["a@2019-03-01.npy", "b@2019-03-01.npy"])
    (tmp_path / "m.csv").write_text("id,who\na@2019-03-01,Jane\n")
    run(source, tmp_path / "store", Nobody(personal=True), metadata=str(tmp_path / "m.csv"), group="who")
    secret = read_secret(tmp_path / "store.private" / "secret")
    moved = {(date.fromisoformat(row["acquired"]) - date(2019, 3, 1)).days for row in open_store(tmp_path / "store").index.to_pylist()}
    assert moved == {date_shift(secret, "Jane"), date_shift(secret, "b@2019-03-01.npy")}


def test_a_public_domain_keeps_its_dates(tmp_path, run, archive):
    run(archive, tmp_path / "store", Clinic())
    assert sorted(open_store(tmp_path / "store").column("acquired")) == ["2019-03-01", "2019-03-01", "2019-03-11", "2020-07-01"]


def test_shifts_fill_the_half_year_on_both_sides_evenly_and_are_never_none():
    found = np.array([date_shift(b"key", str(patient)) for patient in range(20000)])
    assert (found.min(), found.max()) == (-MOST_SHIFT_DAYS, MOST_SHIFT_DAYS)
    assert 0 not in found
    counts = np.bincount(found + MOST_SHIFT_DAYS)
    assert np.delete(counts, MOST_SHIFT_DAYS).std() < 1.3 * np.sqrt(20000 / 364)
    assert [date_shift(b"other", str(patient)) for patient in range(9)] != found[:9].tolist()


@pytest.mark.parametrize(
    ("acquired", "wanted"),
    [
        ("2020-02-28", "2020-03-01"),
        ("2020-02-28T23:59:58.5+02:00", "2020-03-01"),
        ("2020-02-28 10:00", "2020-03-01"),
        ("20200228", "2020-03-01"),
        ("2020", None),
        ("2020-02", None),
        ("", None),
        (None, None),
    ],
)
def test_a_date_moves_and_loses_its_time_of_day(acquired, wanted):
    record = dataclasses.replace(SyntheticImages().read(next(SyntheticImages().discover("generate:1", Select()))), acquired=acquired)
    assert shifted(record, 2).acquired == wanted
    assert shifted(record, 0).acquired == acquired


@pytest.mark.parametrize("acquired", ["2020-02-30", "yesterday", "01/02/2020", "9999-12-31"])
def test_what_is_no_date_is_dropped_with_a_warning_that_does_not_repeat_it(acquired):
    record = dataclasses.replace(SyntheticImages().read(next(SyntheticImages().discover("generate:1", Select()))), acquired=acquired)
    moved = shifted(record, 2)
    assert moved.acquired is None
    assert moved.warnings == (NO_DATE,)


def test_work_staged_for_one_person_is_not_taken_for_another(tmp_path, run, archive, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    make_secret(tmp_path / "secret")
    with monkeypatch.context() as patch:
        patch.setattr("dinodomain.ingest.finalise.write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            run(archive, tmp_path / "store", CLINIC, secret=str(tmp_path / "secret"))
    (tmp_path / "map.csv").write_text("PatientID,Patient\n2,Jane\n")
    for name in ("store", "afresh"):
        run(archive, tmp_path / name, CLINIC, secret=str(tmp_path / "secret"), patient_map=str(tmp_path / "map.csv"))
    assert stored(open_store(tmp_path / "store")) == stored(open_store(tmp_path / "afresh"))
