"""The benchmark of the data path runs from end to end on real pixels, and its table tells wins from losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readers.measure as module

    return module


@pytest.mark.slow
def test_every_part_compares_all_readers_with_the_pixels_and_states_its_targets(tmp_path, real_data):
    for package in ("rasterio", "torchgeo", "monai", "torchio", "moto", "boto3", "obstore"):
        pytest.importorskip(package)
    out = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks/data_path.py"), "--quick", "--json", str(out)]
    only = ("tiles", "rasters", "volumes", "remote")
    environment = {**os.environ, "DINODOMAIN_TEST_DATA": str(real_data)}
    done = subprocess.run([*command, "--only", *only], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())
    assert {tuple(sorted(row)) for row in rows} == {
        ("input", "measure", "ours", "peer", "peer_value", "ratio", "rounds", "target", "unit"),
    }
    peers = {row["peer"] for row in rows if row["target"]}
    assert {
        "np.memmap",
        "zarr-python",
        "torchgeo RandomGeoSampler",
        "MONAI CacheDataset",
        "MONAI PersistentDataset",
        "one range each",
    } <= peers
    assert [row["ours"] for row in rows if row["peer"] == "one range each" and row["target"]] == [1.0, 1.0]


def test_a_ratio_is_the_median_of_the_rounds_own_ratios(measure):
    # Rounds of a busy machine: ratios 5, 1.25 and 9; the quotient of the medians would be 2.
    found = measure.row("m", "i", [10.0, 20.0, 90.0], "p", [2.0, 16.0, 10.0], "tiles/CPU-s", 1.5)
    assert (found["ours"], found["peer_value"], found["ratio"]) == (20.0, 10.0, 5.0)
    assert measure.met(found)


@pytest.mark.parametrize(("unit", "ratio", "reached"), [("samples/CPU-s", 0.5, False), ("requests", 0.5, True), ("MB", 1.5, False)])
def test_targets_of_rates_are_lower_bounds_and_of_costs_upper_bounds(measure, unit, ratio, reached):
    found = measure.row("m", "i", [ratio], "p", [1.0], unit, 1.0)
    assert measure.met(found) is reached
    assert ("MISSED" in measure.line(found)) is not reached


def test_a_row_without_a_target_is_neither_reached_nor_missed(measure):
    assert measure.met(measure.row("m", "i", [0.0], "p", [0.0], "MB")) is None
