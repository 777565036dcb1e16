"""Several dates of one place from sources to a trained backbone: made-up series, and Sentinel-2 over a reservoir."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinodomain.engine import pretrain
from dinodomain.engine.look import ViewsFigurePlan, draw_figure
from dinodomain.errors import UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.loader import LoaderPlan
from dinodomain.store import StorePlan, open_store
from dinodomain.testing import SyntheticImages
from dinodomain.views import ViewsPlan

SERIES = SyntheticImages(layout="window")
DAYS = ("2020-01-10", "2020-04-20", "2021-08-05")
SMALL = ViewsPlan(global_size=16, local_size=8, num_local=2)


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    """Four places of 64 x 64 pixels at three dates, each date darker than the one before."""
    crs = pytest.importorskip("pyproj").CRS.from_epsg(32631).to_wkt()
    folder, rng = tmp_path_factory.mktemp("series"), np.random.default_rng(0)
    for place in range(4):
        ground = rng.integers(100, 200, (3, 64, 64))
        for number, day in enumerate(DAYS):
            affine = np.array([10.0, 0, 500_000 + 50_000 * place, 0, -10.0, 5_000_000, 0, 0, 1])
            np.savez(folder / f"place{place}-{day}.npz", pixels=(ground - 40 * number).astype(np.uint8), affine=affine, crs=crs,
                     spacing=[10.0, 10.0], acquired=day)  # fmt: skip
    plan = IngestPlan(domain="synthetic", source=str(folder), store=str(folder / "store"), workers=0, audit_holdout=0.0,
                      storage=StorePlan(chunk=32))  # fmt: skip
    ingest(plan, domain=SERIES, progress=lambda done, total: None)
    return folder / "store"


def pairs(plan, store: Path | str, **loader):
    return replace(plan, store=str(store), loader=replace(plan.loader, pairs="dates", workers=0, **loader))


def measured(run):
    measured = ("seconds", "data_wait", "samples_per_s", "memory")
    return [{name: value for name, value in row.items() if name not in measured} for row in run.metrics()]


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


def test_a_run_on_pairs_of_dates_resumes_bit_equal_and_learns_from_other_pixels_than_one_on_single_dates(tiny_plan, series, tmp_path):
    plan = pairs(tiny_plan(tmp_path / "whole"), series)
    whole = measured(pretrain(plan, domain=SERIES))
    assert all(np.isfinite(row["loss"]) and not row["skipped"] for row in whole)
    half = replace(plan, out=str(tmp_path / "half"), checkpoint=replace(plan.checkpoint, every=4))

    class Stopped(BaseException):
        pass

    class Stopper:
        def begin(self, plan: object) -> None:
            pass

        def figures(self, step: int, files: object) -> None:
            pass

        def log(self, step: int, values: object) -> None:
            if step == 6:
                raise Stopped

        def close(self) -> None:
            pass

    with pytest.raises(Stopped):
        pretrain(half, domain=SERIES, trackers=[Stopper()])
    assert measured(pretrain(half, domain=SERIES)) == whole
    single = replace(plan, out=str(tmp_path / "single"), loader=replace(plan.loader, pairs="none"))
    assert measured(pretrain(single, domain=SERIES))[0]["loss"] != whole[0]["loss"]


def test_reader_processes_and_three_dates_change_nothing_and_work(tiny_plan, series, tmp_path):
    one, two = (pairs(tiny_plan(tmp_path / name), series, dates=3, **keys) for name, keys in (("a", {}), ("b", {"threads": 2})))
    two = replace(two, loader=replace(two.loader, workers=2))
    three = replace(one, views=replace(one.views, num_local=3)), replace(two, views=replace(two.views, num_local=3))
    assert measured(pretrain(three[0], domain=SERIES)) == measured(pretrain(three[1], domain=SERIES))
    with pytest.raises(UserError, match=r"loader\.dates: is 3, of which the crops show 2"):
        pretrain(replace(one, out=str(tmp_path / "c")), domain=SERIES)


def test_the_figure_shows_both_dates_of_every_place(series, tmp_path):
    keys = {"store": str(series), "num": 2, "views": SMALL}
    pair = draw_figure(ViewsFigurePlan(out=str(tmp_path / "pair"), loader=LoaderPlan(pairs="dates"), **keys), domain=SERIES)
    one = draw_figure(ViewsFigurePlan(out=str(tmp_path / "one"), **keys), domain=SERIES)
    assert pair.note == "2 places at 2 dates, 2 global of 16x16, 2 local of 8x8; normalised by domain"
    assert one.note.startswith("2 tiles, ")
    with Image.open(pair.files[0]) as wide, Image.open(one.files[0]) as narrow:
        assert wide.size[0] - narrow.size[0] == 190, "one column more"


def test_sentinel_2_over_a_reservoir_trains_on_pairs_of_dates_and_is_drawn(real_data, tiny_plan, tmp_path):
    pytest.importorskip("rasterio")
    source = real_data / "sat_multispectral" / "dev" / "s2_boadella_timeseries"
    store = tmp_path / "store"
    ingest(IngestPlan(domain="sentinel2", source=str(source), store=str(store), workers=0, audit_holdout=0.0, storage=StorePlan(chunk=64)))
    opened = open_store(store)
    assert opened.column("acquired").tolist() == ["2020-01-13", "2020-01-18", "2020-02-02", "2020-06-21"]
    base = pairs(tiny_plan(tmp_path / "run"), store, min_days=4)
    plan = replace(base, domain="sentinel2", engine=replace(base.engine, steps=3))
    rows = pretrain(plan).metrics()
    assert [row["skipped"] for row in rows] == [0, 0, 0]
    assert all(np.isfinite(row["loss"]) for row in rows)
    figure = draw_figure(
        ViewsFigurePlan(store=str(store), out=str(tmp_path / "figure"), num=3, bands=("B04", "B03", "B02"), loader=plan.loader, views=SMALL)
    )
    assert figure.note.startswith("3 places at 2 dates")
    with Image.open(figure.files[0]) as picture:
        assert np.asarray(picture.convert("L")).std() > 10
