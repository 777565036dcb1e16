"""A store of a personal domain holds no clear name, in any byte; its secret lies beside it and another one is refused."""

from __future__ import annotations

import csv
import stat

import numpy as np
import pytest

from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import join_labels
from dinodomain.ingest.scrub import scrubbed
from dinodomain.ingest.secret import PUBLIC_KEY, find_secret, make_secret, read_secret
from dinodomain.lineage import fingerprint, pseudonym
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages

PERSONAL = SyntheticImages(personal=True)
NAMES = ("ROSENTHAL", "Kowalczyk", "MRN0048213", "Mertens", "19630117", "CONFIDENTIAL-SITE", "Oyelaran")


@pytest.fixture
def clinic(tmp_path, write_images):
    """Folders and files that carry names; good files, files a reader refuses, files that are none, and a CSV."""
    root = write_images(tmp_path / "CONFIDENTIAL-SITE", ["ROSENTHAL/Kowalczyk_scan.npy", "MRN0048213/Oyelaran.npy"])
    write_images(root, ["Mertens/19630117.npy"], (20, 24))
    (root / "Mertens" / "Kowalczyk.npy").write_text("no array")
    np.save(root / "Mertens" / "ROSENTHAL.npy", np.zeros((3, 4, 4), np.int64))
    (tmp_path / "Mertens.csv").write_text(
        "who,patient,sex\nROSENTHAL/Kowalczyk_scan.npy,Rosenthal-P,F\nMRN0048213/Oyelaran.npy,Oyelaran-P,M\n"
    )
    return root


def ingest_clinic(run, tmp_path, clinic, **plan):
    return run(clinic, tmp_path / "store", PERSONAL, metadata=str(tmp_path / "Mertens.csv"), join="who", group="patient", fields=("sex",),
               include=("*.npy",), exclude=("Oyelaran-excluded*",), **plan)  # fmt: skip


def found_names(root):
    """Names in any byte of any file, or in any path, below a folder; upper and lower case alike."""
    texts = [
        path.relative_to(root).as_posix().encode() + b"\0" + (path.read_bytes() if path.is_file() else b"") for path in root.rglob("*")
    ]
    joined = b"\n".join(texts).lower()
    return {name for name in (*NAMES, "Rosenthal-P", "Oyelaran-P", "excluded") if name.lower().encode() in joined}


def test_no_byte_of_the_store_holds_a_name(tmp_path, run, clinic):
    summary = ingest_clinic(run, tmp_path, clinic)
    assert summary.added == 2
    assert len(summary.skipped) == 3
    assert found_names(tmp_path / "store") == set()


def test_no_byte_of_the_working_folder_holds_a_name(tmp_path, run, clinic, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dinodomain.ingest.finalise.write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        ingest_clinic(run, tmp_path, clinic)
    assert (tmp_path / "store.partial" / "tree" / "index.parquet").exists()
    assert found_names(tmp_path / "store.partial") == set()


def test_the_same_search_finds_the_names_where_they_may_be(tmp_path, run, clinic):
    run(clinic, tmp_path / "open", SyntheticImages())
    assert {"ROSENTHAL", "Kowalczyk", "Mertens"} <= found_names(tmp_path / "open")


def test_clear_names_of_skipped_files_lie_beside_the_store_for_its_owner_only(tmp_path, run, clinic):
    ingest_clinic(run, tmp_path, clinic)
    path = tmp_path / "store.private" / "skipped.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert sorted(row["uri"] for row in rows) == ["Mertens/19630117.npy", "Mertens/Kowalczyk.npy", "Mertens/ROSENTHAL.npy"]
    assert {row["stored"] for row in rows} == {row["uri"] for row in open_store(tmp_path / "store").manifest["skipped"]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "store.private" / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "store.private").stat().st_mode) == 0o700


def test_ids_keys_and_units_are_pseudonyms_under_one_secret(tmp_path, run, clinic):
    ingest_clinic(run, tmp_path, clinic)
    secret = read_secret(tmp_path / "store.private" / "secret")
    store = open_store(tmp_path / "store")
    assert set(store.column("source_id")) == {
        pseudonym(secret, name) for name in ("ROSENTHAL/Kowalczyk_scan.npy", "MRN0048213/Oyelaran.npy")
    }
    assert set(store.column("unit")) == {pseudonym(secret, name) for name in ("Rosenthal-P", "Oyelaran-P")}
    assert set(store.column("key_stem")) == {pseudonym(secret, name) for name in ("Kowalczyk_scan", "Oyelaran")}
    assert store.manifest["secret_fingerprint"] == fingerprint(secret)


def test_labels_are_joined_by_clear_names(tmp_path, run, clinic):
    ingest_clinic(run, tmp_path, clinic)
    (tmp_path / "labels.csv").write_text("id,finding\nOyelaran,1\nKowalczyk_scan,0\n")
    labels = join_labels(tmp_path / "store", tmp_path / "labels.csv", "id", "finding")
    secret = read_secret(tmp_path / "store.private" / "secret")
    stems = open_store(tmp_path / "store").column("key_stem")
    assert dict(zip(stems[labels.rows], labels.values)) == {pseudonym(secret, "Oyelaran"): "1", pseudonym(secret, "Kowalczyk_scan"): "0"}


def test_without_its_secret_a_store_cannot_be_joined_or_added_to(tmp_path, run, clinic):
    ingest_clinic(run, tmp_path, clinic)
    (tmp_path / "labels.csv").write_text("id,finding\nOyelaran,1\n")
    (tmp_path / "store.private" / "secret").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"the secret of .* is missing"):
        join_labels(tmp_path / "store", tmp_path / "labels.csv", "id", "finding")
    with pytest.raises(UserError, match=r"the secret of .* is missing"):
        ingest_clinic(run, tmp_path, clinic)
    assert join_labels(
        tmp_path / "store", tmp_path / "labels.csv", "id", "finding", secret=str(tmp_path / "elsewhere")
    ).values.tolist() == ["1"]


def test_another_secret_is_refused(tmp_path, run, clinic):
    ingest_clinic(run, tmp_path, clinic)
    make_secret(tmp_path / "other")
    with pytest.raises(UserError, match=r"is not the one .* was made with"):
        ingest_clinic(run, tmp_path, clinic, secret=str(tmp_path / "other"))


def test_stores_that_share_a_secret_are_equal_byte_for_byte(tmp_path, run, clinic, snapshot):
    make_secret(tmp_path / "shared")
    for name in ("a", "b"):
        run(clinic, tmp_path / name, PERSONAL, secret=str(tmp_path / "shared"))
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert not (tmp_path / "a.private" / "secret").exists()


def test_stores_with_secrets_of_their_own_share_no_pseudonym(tmp_path, run):
    for name in ("a", "b"):
        run("generate:4", tmp_path / name, PERSONAL)
    a, b = (set(open_store(tmp_path / name).column("source_id")) for name in ("a", "b"))
    assert not a & b


def test_a_domain_with_public_ids_needs_no_secret_and_keeps_clear_ones(tmp_path, run):
    run("generate:2", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert not (tmp_path / "store.private").exists()
    assert store.column("source_id").tolist() == ["unit0000/pattern00000", "unit0000/pattern00001"]
    assert store.manifest["secret_fingerprint"] == fingerprint(PUBLIC_KEY)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("who",), "'who' identifies people"),
        (("patient",), "'patient' identifies people"),
        (("alias",), "repeats a name of its source .line 2."),
    ],
)
def test_a_copied_column_that_identifies_people_is_refused(tmp_path, run, clinic, fields, words):
    (tmp_path / "Mertens.csv").write_text(
        "who,patient,alias\nROSENTHAL/Kowalczyk_scan.npy,P1,Kowalczyk_scan\nMRN0048213/Oyelaran.npy,P2,x\n"
    )
    with pytest.raises(UserError, match=words):
        run(clinic, tmp_path / "store", PERSONAL, metadata=str(tmp_path / "Mertens.csv"), join="who", group="patient", fields=fields)


def test_the_name_of_a_folder_of_many_people_may_be_a_field_that_of_one_person_not(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["north/a.npy", "north/b.npy", "solo/c.npy"])
    (tmp_path / "m.csv").write_text("id,who,site\na,A,north\nb,B,north\n")
    settings = {"metadata": str(tmp_path / "m.csv"), "group": "who", "fields": ("site",)}
    run(tmp_path / "in", tmp_path / "store", PERSONAL, **settings)
    (tmp_path / "m.csv").write_text("id,who,site\na,A,north\nc,C,solo\n")
    with pytest.raises(UserError, match="'site' repeats a name"):
        run(tmp_path / "in", tmp_path / "other", PERSONAL, **settings)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("patient 'DOE JANE' has no spacing", "patient … has no spacing"),
        ("cannot open /data/doe/a.dcm: no such file", "cannot open … no such file"),
        ("DOE^JANE differs", "… differs"),
        ("born 19630117, slice 12 is missing", "born …, slice 12 is missing"),
        ("jane.dcm: no pixels", "….dcm: no pixels"),
        ("looks like a label map: JANE", "looks like a label map: …"),
        ("slices are 1.5 and 3.0 mm apart", "slices are 1.5 and 3.0 mm apart"),
    ],
)
def test_a_reason_loses_what_could_name_a_person_and_keeps_the_rest(text, kept):
    assert scrubbed(text, ("study/jane.dcm", "jane")) == kept


def test_a_secret_that_is_too_short_or_absent_is_refused(tmp_path):
    (tmp_path / "short").write_text("1234\n")
    with pytest.raises(UserError, match="holds 4 bytes; allowed: at least 16"):
        read_secret(tmp_path / "short")
    with pytest.raises(UserError, match="cannot read the secret"):
        find_secret(tmp_path / "store", str(tmp_path / "absent"), personal=True, known=None)


def test_a_secret_that_others_can_read_is_named_in_the_log(tmp_path, caplog):
    path = tmp_path / "secret"
    path.write_text("x" * 32)
    path.chmod(0o644)
    read_secret(path)
    assert "others can read the secret" in caplog.text


def test_strict_still_raises_with_the_clear_name_for_the_user(tmp_path, run, clinic):
    with pytest.raises(BadSource, match=r"Mertens/Kowalczyk.npy"):
        run(clinic, tmp_path / "store", PERSONAL, strict=True)
