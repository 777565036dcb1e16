"""Joining a CSV: by path, name, stem, folder or field; anything that is not clear is an error that lists the rows."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.ingest import join_labels
from dinodomain.ingest.join import match, read_table
from dinodomain.store import StorePlan, array_record, build_store, open_store

SOURCES = [
    {"path": "site1/p1/scan.nii.gz", "name": "scan.nii.gz", "stem": "scan", "folder": "p1", "PatientID": "A"},
    {"path": "site1/p2/other.nii.gz", "name": "other.nii.gz", "stem": "other", "folder": "p2", "PatientID": "B"},
    {"path": "site2/p2b/third.nii.gz", "name": "third.nii.gz", "stem": "third", "folder": "p2b", "PatientID": "B"},
]


def table(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "kind", "rows"),
    [
        (["site1/p1/scan.nii.gz", "site1/p2/other.nii.gz"], "path", {0: 0, 1: 1}),
        (["./site1/p1/scan.nii.gz"], "path", {0: 0}),
        (["site1\\p1\\scan.nii.gz"], "path", {0: 0}),
        (["dev/images/site1/p1/scan.nii.gz"], "path", {0: 0}),
        (["other.nii.gz", "scan.nii.gz"], "name", {1: 0, 0: 1}),
        (["p2/other.nii.gz"], "name", {1: 0}),
        (["third", "scan"], "stem", {2: 0, 0: 1}),
        (["p1", "p2", "p2b"], "folder", {0: 0, 1: 1, 2: 2}),
    ],
)
def test_a_value_may_name_a_source_in_several_ways(tmp_path, values, kind, rows):
    found = match(table(tmp_path, "id,y\n" + "".join(f"{value},1\n" for value in values)), "id", SOURCES)
    assert (found.kind, dict(found.rows)) == (kind, rows)


def test_a_column_named_like_a_field_joins_by_that_field_and_one_row_may_serve_many_sources(tmp_path):
    found = match(table(tmp_path, "PatientID,y\nB,1\nA,0\n"), "PatientID", SOURCES)
    assert (found.kind, dict(found.rows)) == ("PatientID", {1: 0, 2: 0, 0: 1})


def test_rows_that_match_nothing_are_listed_with_their_lines(tmp_path):
    text = "id,y\nscan,1\nghost,1\n,1\nthird,0\n"
    with pytest.raises(
        UserError, match=r"2 of 4 rows match no source by column 'id': 'ghost' \(line 3\), '' \(line 4\); allowed: the path, name"
    ):
        match(table(tmp_path, text), "id", SOURCES)


def test_a_long_list_of_rows_is_cut(tmp_path):
    with pytest.raises(UserError, match=r"'g9' \(line 11\) and 15 more"):
        match(table(tmp_path, "id\n" + "".join(f"g{number}\n" for number in range(25))), "id", SOURCES)


def test_two_rows_for_one_source_are_ambiguous(tmp_path):
    with pytest.raises(UserError, match=r"ambiguous by stem: 'scan' \(line 3: same source as line 2\)"):
        match(table(tmp_path, "id,y\nscan,1\nscan,0\n"), "id", SOURCES)


def test_a_name_of_several_sources_is_ambiguous_but_their_paths_are_not(tmp_path):
    sources = [{"path": f"{side}/x.png", "name": "x.png", "stem": "x", "folder": side} for side in ("a", "b")]
    with pytest.raises(UserError, match=r"ambiguous by name: 'x.png' \(line 2: 2 sources\).*choose a column that names each source once"):
        match(table(tmp_path, "id\nx.png\n"), "id", sources)
    assert dict(match(table(tmp_path, "id\nb/x.png\na/x.png\n"), "id", sources).rows) == {1: 0, 0: 1}


def test_a_missing_column_is_named_with_its_neighbours(tmp_path):
    with pytest.raises(UserError, match=r"has no column 'patient'; allowed: patients, y; did you mean 'patients'"):
        match(table(tmp_path, "patients,y\nscan,1\n"), "patient", SOURCES)


def test_rows_of_skipped_sources_are_no_error(tmp_path):
    found = match(table(tmp_path, "id\nscan\nbroken\n"), "id", SOURCES, [{"path": "broken.dcm", "name": "broken.dcm", "stem": "broken"}])
    assert (dict(found.rows), found.skipped) == ({0: 0}, (1,))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"id,id\n1,2\n", "columns twice: id"),
        (b"id,y\na,1,2\n", "line 2 with another number of values than the header"),
        (b"id\n\xff\xfe\n", "is not UTF-8"),
        (b'id,y\n"a"b,1\n', "line 2: "),
    ],
)
def test_a_table_that_is_broken_says_where(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_table(tmp_path / "t.csv")


def test_a_table_that_is_not_there_is_one_clear_message(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read_table(tmp_path / "t.csv")


def test_byte_order_mark_quotes_tabs_and_blank_lines_are_read(tmp_path):
    (tmp_path / "t.csv").write_bytes('\ufeffid,note\r\n\r\na,"x, y\nz"\r\n'.encode())
    assert read_table(tmp_path / "t.csv").rows == ({"id": "a", "note": "x, y\nz"},)
    assert read_table(tmp_path / "t.csv").lines == (4,)
    (tmp_path / "t.tsv").write_text("id\tnote\na\tx, y\n")
    assert read_table(tmp_path / "t.tsv").rows == ({"id": "a", "note": "x, y"},)


def test_labels_come_sorted_by_row_with_all_columns(tmp_path, run):
    run("generate:4", tmp_path / "store")
    (tmp_path / "y.csv").write_text("id,y,age\npattern00003,b,70\npattern00001,a,50\npattern00000,,40\n")
    labels = join_labels(open_store(tmp_path / "store"), tmp_path / "y.csv", "id", "y")
    assert labels.rows.tolist() == [1, 3]
    assert labels.rows.dtype == np.int64
    assert labels.values.tolist() == ["a", "b"]
    assert labels.columns["age"] == ["50", "70"]


def test_labels_by_a_field_serve_every_source_of_a_patient(tmp_path, run):
    run("generate:4", tmp_path / "store")
    (tmp_path / "y.csv").write_text("PatientID,y\nunit0001,sick\nunit0000,well\n")
    labels = join_labels(tmp_path / "store", tmp_path / "y.csv", "PatientID", "y")
    assert labels.values.tolist() == ["well", "well", "sick", "sick"]


def test_without_a_target_the_other_columns_come_alone(tmp_path, run):
    run("generate:2", tmp_path / "store")
    (tmp_path / "y.csv").write_text("id,site\npattern00001,X\n")
    labels = join_labels(tmp_path / "store", tmp_path / "y.csv", "id", None)
    assert (labels.rows.tolist(), labels.values.tolist(), labels.columns["site"]) == ([1], [""], ["X"])


def test_labels_join_a_store_that_was_built_without_ingest(tmp_path):
    records = {name: array_record(np.full((1, 8, 8), 7, np.uint8), layout="whole") for name in ("a", "b")}
    store = build_store(tmp_path / "store", records, domain="made-up", plan=StorePlan())
    (tmp_path / "y.csv").write_text("id,y\nb,1\n")
    assert join_labels(store, tmp_path / "y.csv", "id", "y").rows.tolist() == [1]


def test_a_target_that_is_not_a_column_is_refused(tmp_path, run):
    run("generate:2", tmp_path / "store")
    (tmp_path / "y.csv").write_text("id,label\npattern00001,X\n")
    with pytest.raises(UserError, match=r"target: .* has no column 'labels'; allowed: id, label; did you mean 'label'"):
        join_labels(tmp_path / "store", tmp_path / "y.csv", "id", "labels")


def test_rows_of_sources_that_ingest_skipped_are_left_out(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["a.npy"])
    (tmp_path / "in" / "b.npy").write_text("no array")
    run(tmp_path / "in", tmp_path / "store")
    (tmp_path / "y.csv").write_text("id,y\na,1\nb,0\n")
    assert join_labels(tmp_path / "store", tmp_path / "y.csv", "id", "y").values.tolist() == ["1"]


def test_an_empty_group_lists_its_lines(tmp_path, run):
    (tmp_path / "m.csv").write_text("id,patient\npattern00000,\npattern00001,B\n")
    with pytest.raises(UserError, match="column 'patient' is empty in 1 rows: line 2"):
        run("generate:2", tmp_path / "store", metadata=str(tmp_path / "m.csv"), group="patient")


def test_metadata_with_unknown_ids_stops_before_anything_is_written(tmp_path, run):
    (tmp_path / "m.csv").write_text("id,patient\nghost,A\n")
    with pytest.raises(UserError, match="match no source"):
        run("generate:2", tmp_path / "store", metadata=str(tmp_path / "m.csv"), group="patient")
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


TWO_ISSUERS = [
    {"path": "a", "PatientID": "1", "IssuerOfPatientID": "X", "AccessionNumber": "7"},
    {"path": "b", "PatientID": "1", "IssuerOfPatientID": "Y", "AccessionNumber": "7"},
    {"path": "c", "PatientID": "2", "AccessionNumber": "8"},
]


def test_one_id_of_two_issuers_asks_for_the_column_that_tells_them_apart(tmp_path):
    words = r"column 'PatientID' stands for several people: '1' \(line 2: 2 people\); add a column IssuerOfPatientID"
    with pytest.raises(UserError, match=words):
        match(table(tmp_path, "PatientID,y\n1,a\n2,b\n"), "PatientID", TWO_ISSUERS)
    found = match(table(tmp_path, "PatientID,y,IssuerOfPatientID\n1,a,Y\n1,b, X \n2,c,\n"), "PatientID", TWO_ISSUERS)
    assert dict(found.rows) == {1: 0, 0: 1, 2: 2}


def test_an_issuer_that_no_source_states_is_named_with_its_line(tmp_path):
    text = "PatientID,y,IssuerOfPatientID\n1,a,Y\n2,c,Z\n"
    with pytest.raises(UserError, match=r"1 of 2 rows name an IssuerOfPatientID that their sources do not state: 'Z' \(line 3\)"):
        match(table(tmp_path, text), "PatientID", TWO_ISSUERS)


def test_two_ids_known_to_be_one_person_are_one_person(tmp_path):
    found = match(table(tmp_path, "PatientID,y\n1,a\n"), "PatientID", TWO_ISSUERS, units=["Jane", "Jane", "2"])
    assert dict(found.rows) == {0: 0, 1: 0}
    with pytest.raises(UserError, match="several people"):
        match(table(tmp_path, "PatientID,y\n1,a\n"), "PatientID", TWO_ISSUERS, units=["Jane", "Joan", "2"])


def test_an_accession_number_of_two_people_is_ambiguous_and_the_issuer_helps_here_too(tmp_path):
    with pytest.raises(UserError, match=r"'AccessionNumber' stands for several people: '7' \(line 2: 2 people\)"):
        match(table(tmp_path, "AccessionNumber\n7\n"), "AccessionNumber", TWO_ISSUERS)
    found = match(table(tmp_path, "AccessionNumber,IssuerOfPatientID\n7,X\n"), "AccessionNumber", TWO_ISSUERS)
    assert dict(found.rows) == {0: 0}


@pytest.mark.parametrize(
    ("value", "meant"),
    [("48213", "'48213' would match as '0048213'"), ("48213.0", "'48213.0' would match as '0048213'")],
)
def test_a_lost_leading_zero_is_hinted_at_and_never_guessed(tmp_path, value, meant):
    def hashed(text):
        return f"#{text}"

    for hash_ in (str, hashed):
        sources = [{"path": "a", "PatientID": hash_("0048213")}]
        with pytest.raises(
            UserError, match=rf"lost leading zeros .or gained decimals. in a spreadsheet: {meant}; format that column as text"
        ):
            match(table(tmp_path, f"PatientID\n{value}\n"), "PatientID", sources, hash_=hash_)


def test_no_zeros_are_hinted_at_where_none_would_help(tmp_path):
    with pytest.raises(UserError, match="choose another column, or remove these rows"):
        match(table(tmp_path, "PatientID\n48214\n"), "PatientID", [{"path": "a", "PatientID": "0048213"}])


def test_blanks_and_nuls_around_ids_are_ignored(tmp_path):
    found = match(table(tmp_path, "PatientID\n\u00a0A \n"), "PatientID", [{"path": "a", "PatientID": "A\0"}])
    assert dict(found.rows) == {0: 0}


def test_a_dicom_field_that_no_source_has_is_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match=r"no source has a SOPInstanceUID .sources of a single image only."):
        match(table(tmp_path, "SOPInstanceUID\n1.2.3\n"), "SOPInstanceUID", SOURCES)


def test_semicolons_separate_where_there_is_no_comma(tmp_path):
    assert table(tmp_path, "id;note\na;x, y\n").rows == ({"id": "a", "note": "x, y"},)
    assert table(tmp_path, "id,note\na,x; y\n").rows == ({"id": "a", "note": "x; y"},)
