"""Numbers of different kinds share a store only if the user says so, and before any pixel is read."""

from __future__ import annotations

import dataclasses
import json

import pytest

from dinodomain.errors import UserError
from dinodomain.store import open_store


def level(numbers, name="level", values=("L1C", "L2A")):
    """Patterns whose number lies in ``numbers`` are Level 1C."""

    def change(ref):
        value = values[int(ref.source_id[-5:]) not in numbers]
        return dataclasses.replace(ref, quantity=f"{value} reflectance", facts={**ref.facts, name: value})

    return change


def unread(ref, record):
    raise AssertionError("a pixel is read")


def test_two_quantities_are_refused_with_counts_and_a_filter_that_tells_them_apart(tmp_path, run, archive):
    with pytest.raises(UserError) as told:
        run("generate:5", tmp_path / "store", archive(level({0}), unread))
    assert told.value.place == "ingest.mix"
    assert "'L1C reflectance' (1 new), 'L2A reflectance' (4 new)" in str(told.value)
    assert "keep 'L2A reflectance' with ingest.select=\"level == 'L2A'\"" in str(told.value)
    assert "or set ingest.mix=true" in str(told.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"ingest\.mix"):
        run("generate:5", tmp_path / "store", archive(level({0}), unread), dry_run=True)


def test_mix_takes_both_and_the_store_keeps_which_is_which(tmp_path, run, archive):
    run("generate:5", tmp_path / "store", archive(level({0})), mix=True)
    store = open_store(tmp_path / "store")
    assert store.manifest["quantities"] == {"L1C reflectance": 1, "L2A reflectance": 4}
    assert [json.loads(text)["quantity"][:3] for text in store.column("fields")] == ["L1C", "L2A", "L2A", "L2A", "L2A"]


def test_an_existing_store_decides_what_may_be_added(tmp_path, run, archive):
    run("generate:3", tmp_path / "store", archive(level({})))
    with pytest.raises(UserError, match=r"'L1C reflectance' \(2 new\), 'L2A reflectance' \(3 in the store\).*level != 'L1C'"):
        run("generate:5", tmp_path / "store", archive(level({3, 4}), unread))
    assert run("generate:5", tmp_path / "store", archive(level({})), mix=False).added == 2
    assert run("generate:7", tmp_path / "store", archive(level({5, 6})), mix=True).added == 2
    assert open_store(tmp_path / "store").manifest["quantities"] == {"L1C reflectance": 2, "L2A reflectance": 5}
    assert run("generate:7", tmp_path / "store", archive(level({5, 6}))).present == 7  # nothing is added, so nothing is refused


def test_sources_without_a_quantity_never_conflict(tmp_path, run, archive):
    def some(ref):
        return dataclasses.replace(ref, quantity="" if ref.source_id.endswith("0") else "HU")

    run("generate:3", tmp_path / "store", archive(some))
    assert open_store(tmp_path / "store").manifest["quantities"] == {"HU": 2}
    run("generate:3", tmp_path / "plain")
    assert open_store(tmp_path / "plain").manifest["quantities"] == {}


def test_where_no_fact_tells_them_apart_the_remedy_says_so(tmp_path, run, archive):
    def unsaid(ref):
        return dataclasses.replace(level({0})(ref), facts={})

    with pytest.raises(UserError, match=r"an ingest.select expression on a field that tells them apart, or with ingest.include"):
        run("generate:2", tmp_path / "store", archive(unsaid, unread))


def test_the_fact_that_the_quantity_itself_repeats_is_named_first(tmp_path, run, archive):
    def two(ref):
        ref = level({0})(ref)
        return dataclasses.replace(ref, facts={"a_site": "north" if ref.quantity[:3] == "L1C" else "south", **ref.facts})

    with pytest.raises(UserError, match="level == 'L2A'"):
        run("generate:3", tmp_path / "store", archive(two, unread))
