"""Radar: what the values are is stated, never guessed; stored are decibels; raw products are refused with what to do."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, reproject

from dinodomain.types import SHADOW_SNOW
from dinodomain_remote_sensing import sentinel1

PRODUCT = "S1A_IW_GRDH_1SDV_20171221T064238_20171221T064303_019797_021ACD_16F1"


def power(*shape, seed=0):
    return np.random.default_rng(seed).gamma(4.0, 0.02, shape).astype("float32")


def db(values):
    return 10 * np.log10(values.astype(float))


@pytest.mark.parametrize(
    ("description", "unit", "sar", "quantity"),
    [
        ("Sigma0_VV_db", "", "", "sigma0 dB"),
        ("VV", "dB", "", "backscatter of unstated calibration dB"),
        ("Gamma0_VV", "power", "", "gamma0 dB"),
        ("VV gamma0 RTC", "intensity", "", "gamma0 RTC dB"),
        ("VV", "", "gamma0_rtc_power", "gamma0 RTC dB"),
        ("VV", "", "rtc_gamma0_power", "gamma0 RTC dB"),
        ("Sigma0_VV", "", "power", "sigma0 dB"),
        ("VV Gamma nought", "amplitude", "", "gamma0 dB"),
    ],
)
def test_the_quantity_is_calibration_in_decibels(lab, description, unit, sar, quantity):
    path = lab.write(
        "a.tif", power(3, 3) - (1 if "dB" in (unit or description) else 0), per_band={"descriptions": (description,), "units": (unit,)}
    )
    (ref,) = lab.found(sentinel1, path, sar=sar)
    assert ref.quantity == quantity
    assert ref.facts["quantity"] == quantity


def test_power_amplitude_and_decibels_of_one_scene_store_the_same(lab):
    truth = power(2, 6, 6)
    stored = []
    for unit, values in (("power", truth), ("amplitude", np.sqrt(truth)), ("dB", db(truth).astype("float32"))):
        path = lab.write(f"{unit}/a.tif", values, per_band={"descriptions": ("Gamma0_VV", "Gamma0_VH"), "units": (unit,) * 2})
        (ref,) = lab.found(sentinel1, path)
        assert ref.quantity == "gamma0 dB"
        stored.append(lab.everything(sentinel1.read(ref)))
    np.testing.assert_allclose(stored[0], db(truth), atol=1e-5)
    np.testing.assert_allclose(stored[1], stored[0], atol=1e-5)
    np.testing.assert_allclose(stored[2], stored[0], atol=1e-5)


@pytest.mark.parametrize(("letters", "kind"), [("gpuned", "power"), ("gauned", "amplitude"), ("sdufem", "db")])
def test_product_names_of_hyp3_state_calibration_and_kind(lab, letters, kind):
    truth = power(4, 4)
    values = {"power": truth, "amplitude": np.sqrt(truth), "db": db(truth).astype("float32")}[kind]
    product = f"S1A_IW_20200101T054712_DVP_RTC30_G_{letters}_5AB3"
    for band in ("VV", "VH"):
        lab.write(f"{product}/{product}_{band}.tif", values, gsd=30)
    shadow = np.ones((4, 4), "uint8")
    shadow[0, 0], shadow[1, 1] = 9, 3
    lab.write(f"{product}/{product}_ls_map.tif", shadow, gsd=30)
    lab.write(f"{product}/{product}_inc_map.tif", values, gsd=30)
    (ref,) = lab.found(sentinel1)
    record = sentinel1.read(ref)
    assert ref.quantity == ("gamma0 RTC dB" if letters[0] == "g" else "sigma0 RTC dB")
    np.testing.assert_allclose(lab.everything(record)[0], db(truth), atol=1e-5)
    bits = lab.invalid(record)
    assert (bits[0, 0], np.count_nonzero(bits)) == (SHADOW_SNOW, 1)


def test_endings_of_file_names_are_statements(lab):
    for band in ("VV", "VH"):
        lab.write(f"S1A__IW___A_20150309T173017_{band}_gamma0-rtc_db.tif", db(power(4, 4)).astype("float32"))
    (ref,) = lab.found(sentinel1)
    assert ref.quantity == "gamma0 RTC dB"
    assert (ref.facts["orbit_direction"], ref.facts["mode"]) == ("ASCENDING", "IW")


def test_orbit_and_look_come_from_the_product_name_and_tags(lab):
    lab.write(f"{PRODUCT}_VV.tif", db(power(4, 4)).astype("float32"), tags={"PASS": "DESCENDING", "LOOK_DIRECTION": "right"})
    (ref,) = lab.found(sentinel1, sar="sigma0_db")
    expected = {
        "platform": "Sentinel-1A",
        "orbit": 19797,
        "relative_orbit": 125,
        "orbit_direction": "DESCENDING",
        "look_direction": "RIGHT",
    }
    assert {name: ref.facts[name] for name in expected} == expected
    assert ref.facts["acquired"] == "2017-12-21T06:42:38"


def test_statements_that_disagree_are_refused(lab):
    pixels = power(3, 3)
    both = lab.write("a/a_VV.tif", pixels, per_band={"units": ("dB",), "descriptions": ("power",)})
    assert "says both db and power" in lab.refusal(sentinel1, both)
    two = lab.write("b/b.tif", power(2, 3, 3), per_band={"descriptions": ("Sigma0_VV", "Gamma0_VH")})
    assert "different calibrations: gamma0, sigma0" in lab.refusal(sentinel1, two, sar="power")
    told = lab.write("c/c.tif", pixels, per_band={"descriptions": ("Sigma0_VV",)})
    assert "ingest.sar says gamma0" in lab.refusal(sentinel1, told, sar="gamma0_power")


def test_decibels_called_power_are_refused_not_dropped(lab):
    lab.write("a_VV.tif", np.array([[-12.0, 0.5], [2.0, 3.0]], "float32"))
    assert "are these decibels" in lab.refusal(sentinel1, sar="power")


def test_products_as_esa_ships_them_are_refused_with_the_remedy(lab):
    gcps = [rasterio.control.GroundControlPoint(row, column, 10 + column / 100, 50 - row / 100) for row in (0, 9) for column in (0, 9)]
    folder = f"{PRODUCT}.SAFE/measurement"
    for name in ("vv", "vh"):
        path = lab.folder / folder / f"s1a-iw-grd-{name}-20171221t064238-20171221t064303-019797-021acd-001.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = {"driver": "GTiff", "count": 1, "height": 10, "width": 10, "dtype": "uint16", "gcps": gcps, "crs": "EPSG:4326"}
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(lab.counts(1, 10, 10))
    for row in lab.found(sentinel1, sar="amplitude"):
        assert "raw GRD or SLC" in str(row)
        assert "SNAP" in str(row)
        assert "pyroSAR" in str(row)
    archive = lab.folder / "raw.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(path, f"{folder}/{path.name}")
    assert "raw GRD or SLC" in lab.refusal(sentinel1, archive)
    placed = lab.folder / "placed" / "a_VV.tif"
    placed.parent.mkdir()
    with rasterio.open(placed, "w", **{**profile, "dtype": "float32"}) as dataset:
        dataset.write(power(1, 10, 10))
    assert "ground control points" in lab.refusal(sentinel1, lab.folder / "placed", sar="power")


def test_scaled_integers_of_stated_decibels_are_read_and_others_are_raw(lab):
    pixels = np.array([[-1234, -2345], [-500, -1000]], "int16")
    path = lab.write("a/a_VV.tif", pixels, nodata=-32768, per_band={"units": ("dB",), "scales": (0.01,)})
    record = lab.only(sentinel1, path)
    assert record.scale == (0.01,)
    np.testing.assert_array_equal(lab.everything(record)[0], pixels)
    mean = 10 * np.log10((10 ** (pixels / 1000.0)).mean())
    assert lab.everything(lab.only(sentinel1, path, grid="20"))[0, 0, 0] * 0.01 == pytest.approx(mean, abs=0.006)
    assert "raw GRD or SLC" in lab.refusal(sentinel1, lab.write("b/b_VV.tif", lab.counts(2, 2)), sar="amplitude")


def test_border_zeros_of_all_polarisations_are_missing_and_of_one_are_not(lab):
    values = np.full((2, 2, 3), -12.0, "float32")
    values[:, 0, 0] = 0
    values[0, 1, 1] = 0
    names = {"descriptions": ("VV", "VH"), "units": ("dB", "dB")}
    np.testing.assert_array_equal(lab.invalid(lab.only(sentinel1, lab.write("a/a.tif", values, per_band=names))), [[1, 0, 0], [0, 0, 0]])
    # A file that says what its missing pixels hold means its zeros.
    declared = lab.only(sentinel1, lab.write("b/b.tif", values, per_band=names, nodata=float("nan")))
    assert not lab.invalid(declared).any()


@pytest.mark.parametrize(("grid", "method"), [("20", Resampling.average), ("25", Resampling.average), ("7", Resampling.bilinear)])
def test_every_resampling_acts_on_linear_power(lab, grid, method):
    truth = power(24, 24, seed=2)
    lab.write("a_VV.tif", db(truth).astype("float32"), nodata=float("nan"))
    record = lab.only(sentinel1, grid=grid, sar="db")
    ours = lab.everything(record)[0]
    theirs = np.zeros(ours.shape)
    reproject(truth.astype(float), theirs, src_transform=rasterio.Affine(10, 0, 600000, 0, -10, 5300040), src_crs="EPSG:32632",
              dst_transform=rasterio.Affine(*record.affine[:6]), dst_crs="EPSG:32632", resampling=method)  # fmt: skip
    np.testing.assert_allclose(ours[1:-1, 1:-1], db(theirs[1:-1, 1:-1]), atol=2e-3)
