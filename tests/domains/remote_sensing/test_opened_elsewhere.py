"""Real scenes, ingested and then opened as plain Zarr by xarray and rioxarray: values and place as rasterio reads the source's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from dinodomain.domain import find_domain
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.store import open_store

xarray = pytest.importorskip("xarray")
pytest.importorskip("rioxarray")

# rioxarray 0.19 multiplies affines with ``*``, which affine 3 announces to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


def ingested(source: Path, store: Path, domain: str, **plan):
    """The only new store of a source."""
    settings = {"workers": 0, **plan}
    ingest(
        IngestPlan(domain=domain, source=str(source), store=str(store), **settings),
        domain=find_domain(domain),
        progress=lambda done, total: None,
    )
    return open_store(store)


def opened(store, row: int = 0):
    """A scene as xarray finds it, a patch of a stack with its place from the index."""
    facts = store.row(row)
    group = xarray.open_zarr(store.path / facts["array"].rpartition("/")[0])
    if facts["item"] < 0:
        return group["data"]
    image = group["data"][facts["item"], :, : facts["shape"][1], : facts["shape"][2]]
    return image.rio.write_crs(facts["crs"]).rio.write_transform(rasterio.Affine(*facts["affine"][:6]))


def assert_placed(data, dataset) -> None:
    assert data.rio.crs == dataset.crs
    assert tuple(data.rio.transform()) == pytest.approx(tuple(dataset.transform), rel=1e-12)
    assert data.rio.bounds() == pytest.approx(tuple(dataset.bounds), rel=1e-12)
    assert (data.rio.height, data.rio.width) == dataset.shape


def test_a_sentinel2_scene_of_band_files(real_data, tmp_path):
    folder = real_data / "sat_multispectral" / "dev" / "oscd_dubai"
    store = ingested(folder, tmp_path / "s", "sentinel2", include=("date1/*",))
    data = opened(store)
    assert data.dtype == "uint16"
    assert data.sizes["band"] == 13
    for band in ("B02", "B03", "B04", "B08"):  # those of the finest grid; the others were resampled
        with rasterio.open(folder / "date1" / f"{band}.tif") as dataset:
            assert_placed(data, dataset)
            np.testing.assert_array_equal(data.sel(band=band), dataset.read(1))


def test_wavelengths_come_from_the_domain_by_the_names_of_bands(real_data, tmp_path):
    folder = real_data / "sat_multispectral" / "dev" / "oscd_dubai"
    data = opened(ingested(folder, tmp_path / "s", "sentinel2", include=("date1/*",)))
    channels = find_domain("sentinel2").channels
    data = data.assign_coords(wavelength_nm=("band", [channels[name].wavelength_nm for name in data.band.to_numpy()]))
    assert float(data.sel(band="B04").wavelength_nm) == pytest.approx(665, abs=2)
    assert data.wavelength_nm.notnull().all()


def test_a_landsat_scene_whose_reference_system_has_no_code(real_data, tmp_path):
    path = real_data / "sat_multispectral" / "dev" / "landsat7_nc" / "lsat7_2000_6band.tif"
    store = ingested(path.parent, tmp_path / "s", "landsat", include=(path.name,))
    data = opened(store)
    with rasterio.open(path) as dataset:
        assert_placed(data, dataset)
        assert data.rio.nodata == dataset.nodata == 0
        np.testing.assert_array_equal(data, dataset.read())
        valid = xarray.open_zarr(store.path / store.row(0)["array"].rpartition("/")[0])["valid"]
        assert_placed(valid, dataset)
        assert valid.attrs["flag_masks"][0] == 1
        np.testing.assert_array_equal((valid & 1) != 0, (dataset.read() == 0).any(axis=0))


def test_a_sentinel1_scene_in_decibels(real_data, tmp_path):
    path = real_data / "sat_multispectral" / "dev" / "sen1floods11_spain" / "Spain_7370579_S1Hand.tif"
    store = ingested(path.parent, tmp_path / "s", "sentinel1", include=(path.name,), sar="db")
    data = opened(store)
    assert tuple(data.band.to_numpy()) == ("VV", "VH")
    with rasterio.open(path) as dataset:
        assert_placed(data, dataset)
        values = dataset.read()
    np.testing.assert_array_equal(data, np.where(np.isfinite(values).all(axis=0), values, 0))


def test_a_small_scene_that_is_kept_in_a_stack(real_data, tmp_path):
    path = real_data / "sat_multispectral" / "dev" / "s2_boadella_timeseries" / "boadella_2020-01-18.tif"
    data = opened(ingested(path.parent, tmp_path / "s", "sentinel2", include=("boadella_2020-01-1*.tif",)), row=1)
    with rasterio.open(path) as dataset:
        assert_placed(data, dataset)
        np.testing.assert_array_equal(data, dataset.read())


def test_a_real_scene_becomes_a_geotiff_that_rasterio_reads_back(real_data, tmp_path):
    path = real_data / "sat_multispectral" / "dev" / "landsat7_nc" / "lsat7_2000_6band.tif"
    data = opened(ingested(path.parent, tmp_path / "s", "landsat", include=(path.name,)))
    data.assign_attrs(long_name=tuple(data.band.to_numpy())).rio.to_raster(tmp_path / "out.tif")
    with rasterio.open(path) as source, rasterio.open(tmp_path / "out.tif") as copy:
        assert (copy.crs, copy.transform, copy.nodata) == (source.crs, source.transform, source.nodata)
        assert copy.descriptions == tuple(data.band.to_numpy())
        np.testing.assert_array_equal(copy.read(), source.read())
