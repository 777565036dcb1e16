"""Ground cells as the units of scenes: chunks belong to the cell of their middle, those that touch a held-out one are held out."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.store import open_store
from dinodomain.store.cells import CellGrid, footprints
from dinodomain.testing import SyntheticImages

pyproj = pytest.importorskip("pyproj")
GRID = CellGrid(cell_m=20000.0)


def ingest_scenes(run, path, **plan):
    """Eight scenes side by side, 15.6 km each."""
    domain = SyntheticImages(layout="window", size=(64, 1560), epsg=32632, num_channels=1, dtype="uint16")
    run("generate:8", path, domain, storage=plan.pop("storage"), **plan)
    return open_store(path)


def test_chunks_of_scenes_have_cells_as_units_and_touching_ones_are_held_out(tmp_path, run):
    from dinodomain.store import StorePlan

    store = ingest_scenes(run, tmp_path / "store", storage=StorePlan(chunk=64), audit_holdout=0.5)
    held = set(store.manifest["holdout"]["units"])
    units, flags = store.chunks["unit"].to_pylist(), store.chunks["holdout"].to_numpy()
    assert store.column("unit").tolist() == [""] * 8
    assert 0 < len(held) < len(set(units))
    assert all(flag for unit, flag in zip(units, flags) if unit in held)
    neighbours = [unit for unit, flag in zip(units, flags) if flag and unit not in held]
    assert neighbours, "chunks within 2 km of a held-out cell are not trained on either"
    affines = store.column("affine")
    for row, cell, unit, flag in zip(*(store.chunks[name].to_pylist() for name in ("row", "chunk", "unit", "holdout"))):
        box = np.array([[64 * cell[0], 64 * cell[1], 64 * cell[0] + 64, min(64 * cell[1] + 64, 1560)]], float)
        boxes = footprints(store.row(row)["crs"], affines[row], box)
        assert unit == GRID.units(boxes)[0]
        assert flag == bool(held & set(GRID.touched(boxes)[0]))


def test_overlapping_scenes_of_two_zones_share_units(tmp_path, run):
    paths = []
    for epsg, x in ((32632, 941000.0), (32633, 500000.0)):
        path = tmp_path / "in" / f"{epsg}.npz"
        path.parent.mkdir(exist_ok=True)
        wkt = pyproj.CRS.from_epsg(epsg).to_wkt()
        lon, lat = pyproj.Transformer.from_crs("EPSG:4326", epsg, always_xy=True).transform(15.0, 48.0)
        affine = np.array([10.0, 0, lon, 0, -10.0, lat, 0, 0, 1])
        np.savez(path, pixels=np.full((1, 64, 64), 9, np.uint8), crs=wkt, affine=affine, spacing=np.array([10.0, 10.0]))
        paths.append((path, x))
    run(tmp_path / "in", tmp_path / "store", SyntheticImages(num_channels=1))
    store = open_store(tmp_path / "store")
    assert len(set(store.chunks["unit"].to_pylist())) == 1
    assert store.column("lon") == pytest.approx([15.0, 15.0], abs=0.01)
    assert store.column("unit").tolist() == ["", ""]


def test_a_group_given_by_the_user_goes_before_cells(tmp_path, run):
    (tmp_path / "meta.csv").write_text("id,site\npattern00000,A\npattern00001,B\n")
    domain = SyntheticImages(epsg=32632)
    run("generate:2", tmp_path / "store", domain, metadata=str(tmp_path / "meta.csv"), group="site")
    store = open_store(tmp_path / "store")
    assert store.chunks["unit"].to_pylist() == store.column("unit").tolist() == ["A", "B"]
