"""The audit holdout: by unit, by secret, decided once, and never moved by a later ingest."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.ingest.holdout import Holdout, decide
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages

KEY = b"k" * 32


@pytest.mark.parametrize(
    ("units", "share"),
    [(0, 0.0), (1, 0.0), (299, 0.0), (300, 0.1), (600, 0.05), (1500, 0.02), (100_000, 0.02)],
)
def test_the_rule_is_two_per_cent_or_thirty_units_up_to_a_tenth(units, share):
    assert decide(units, None).share == pytest.approx(share)


def test_too_few_units_say_how_many_it_takes():
    assert decide(40, None).reason == "40 units are too few: 30 units may be at most 10%, which takes 300 units"


def test_a_share_set_by_the_user_is_taken_as_it_is():
    assert decide(10, 0.3).share == 0.3
    assert decide(10_000, 0.0).share == 0.0


def test_the_share_of_held_out_units_is_what_was_asked_for():
    rule = Holdout(share=0.1, reason="")
    held = rule.held(KEY, [f"unit{number}" for number in range(5000)])
    assert len(held) == pytest.approx(500, abs=4 * np.sqrt(5000 * 0.1 * 0.9))


def test_a_larger_share_holds_out_a_superset():
    units = [f"unit{number}" for number in range(300)]
    assert set(Holdout(share=0.1, reason="").held(KEY, units)) < set(Holdout(share=0.3, reason="").held(KEY, units))


def test_another_secret_holds_out_other_units():
    units = [f"unit{number}" for number in range(300)]
    rule = Holdout(share=0.2, reason="")
    assert rule.held(KEY, units) != rule.held(b"other" * 8, units)


def test_index_chunks_and_manifest_agree(tmp_path, run):
    run("generate:60", tmp_path / "store", audit_holdout=0.3)
    store = open_store(tmp_path / "store")
    held = set(store.manifest["holdout"]["units"])
    assert 0 < len(held) < store.manifest["holdout"]["num_units"] == 30
    assert [unit in held for unit in store.column("unit")] == store.column("holdout").tolist() == store.chunks["holdout"].to_pylist()


def test_all_sources_of_a_unit_share_its_flag(tmp_path, run):
    run("generate:60", tmp_path / "store", SyntheticImages(per_unit=5), audit_holdout=0.4)
    store = open_store(tmp_path / "store")
    flags = {unit: set(store.column("holdout")[store.column("unit") == unit]) for unit in set(store.column("unit"))}
    assert all(len(found) == 1 for found in flags.values())
    assert set.union(*flags.values()) == {True, False}


def test_a_later_ingest_moves_nobody_and_follows_the_rule_of_the_store(tmp_path, run):
    run("generate:40", tmp_path / "store", audit_holdout=0.3)
    before = open_store(tmp_path / "store")
    run("generate:80", tmp_path / "store", audit_holdout=0.0)  # a share given later changes nothing
    after = open_store(tmp_path / "store")
    flags = dict(zip(after.column("source_id"), after.column("holdout")))
    assert all(flags[name] == flag for name, flag in zip(before.column("source_id"), before.column("holdout")))
    assert after.manifest["holdout"]["share"] == 0.3
    assert after.column("holdout")[40:].any()


def test_a_store_begun_without_holdout_stays_without(tmp_path, run):
    run("generate:10", tmp_path / "store")
    run("generate:20", tmp_path / "store", audit_holdout=0.5)
    assert open_store(tmp_path / "store").manifest["holdout"]["share"] == 0.0


def test_a_source_without_unit_is_its_own(tmp_path, run, write_images):
    run(write_images(tmp_path / "in", ["a.npy", "b.npy", "p/c.npy", "p/d.npy"]), tmp_path / "store")
    assert open_store(tmp_path / "store").column("unit").tolist() == ["a.npy", "b.npy", "p", "p"]


def test_a_group_column_gives_the_unit_and_sources_without_a_row_keep_their_own(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["a.npy", "b.npy", "p/c.npy"])
    (tmp_path / "meta.csv").write_text("id,patient\na,X\nb,X\n")
    summary = run(tmp_path / "in", tmp_path / "store", metadata=str(tmp_path / "meta.csv"), group="patient")
    assert open_store(tmp_path / "store").column("unit").tolist() == ["X", "X", "p"]
    assert summary.without_row == ("p/c.npy",)
    assert "1 sources have no row in the metadata: p/c.npy" in summary.text()


def test_statistics_of_the_store_leave_the_holdout_out(tmp_path, run, write_images):
    write_images(tmp_path / "in", [f"{number:02d}.npy" for number in range(40)], (1, 8, 8))
    run(tmp_path / "in", tmp_path / "store", audit_holdout=0.3)
    store = open_store(tmp_path / "store")
    kept = [np.load(tmp_path / "in" / name) for name, held in zip(store.column("source_id"), store.column("holdout")) if not held]
    assert store.stats()["c0"].mean == pytest.approx(np.mean(kept))
