"""Index rows kept as columns give the table that rows kept as dictionaries would."""

from __future__ import annotations

import math

import pyarrow.parquet as pq
import pytest

from dinodomain.ingest import index_rows
from dinodomain.ingest.index_rows import IndexRows, merged, together
from dinodomain.store.tables import write_index, write_index_table


def row(number, **keys):
    return {
        "source_id": f"s{number:03d}", "layout": "whole",
        "channels": ["c0"], "dtype": "uint8", "shape": [1, 5, 7], "extent": [32, 32],
        "chunk": [32, 32], "spacing": [math.nan, 1.0], "affine": None,
        "scale": [1.0], "offset": [0.0], "fields": "{}", "stages": [], **keys,
    }  # fmt: skip


def late(count):
    return {"array": ["a"] * count, "item": list(range(count)), "holdout": [False] * count}


def built(rows):
    kept = IndexRows()
    for one in rows:
        kept.add(one)
    return kept.finish(late(len(rows)))


def whole(rows):
    return [{**one, "array": "a", "item": number, "holdout": False} for number, one in enumerate(rows)]


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_columns_are_written_as_the_rows_would_be(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(index_rows, "_ROWS", batch)
    rows = [row(number, **({"key_PatientID": f"p{number}"} if number % 2 else {"key_name": "n"})) for number in range(7)]
    write_index(tmp_path / "rows", whole(rows))
    write_index_table(tmp_path / "columns", merged(built(rows), None))
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "columns").read_bytes()


def test_rows_of_a_store_pass_unchanged_between_new_ones(tmp_path):
    old, new = [row(number, key_StudyInstanceUID="1.2") for number in (1, 4)], [row(number, key_PatientID="p") for number in (0, 2, 5)]
    write_index(tmp_path / "old", whole(old))
    table = merged(built(new), pq.read_table(tmp_path / "old"))
    assert table["source_id"].to_pylist() == ["s000", "s001", "s002", "s004", "s005"]
    assert table["item"].to_pylist() == [0, 0, 1, 1, 2]
    assert table["key_PatientID"].to_pylist() == ["p", None, "p", None, "p"]
    write_index(tmp_path / "rows", table.to_pylist())
    write_index_table(tmp_path / "columns", table)
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "columns").read_bytes()


def test_names_sort_by_code_point_as_they_do_elsewhere():
    names = ["\U0001f600", "z", "ä", "Z", "\uffee", "a"]
    table = merged(built([{**row(0), "source_id": name} for name in names]), None)
    assert table["source_id"].to_pylist() == sorted(names)


def test_no_rows_are_a_table_too():
    assert IndexRows().finish({}).num_rows == 0
    assert together([IndexRows().finish({}), built([row(1)])]).num_rows == 1
