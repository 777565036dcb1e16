"""Missing pixels are known, stored as a stated number, and never taken for values."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from dinodomain.errors import UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain_remote_sensing import aerial, landsat, sentinel1, sentinel2
from dinodomain_remote_sensing.pixels import SceneReader

TWO = {"descriptions": ("B02", "B03")}


def test_dn_zero_of_all_bands_makes_a_pixel_invalid_and_of_one_does_not(lab):
    """Products that clip at 0 hold zeros in single bands over dark water (B09 of a calm sea)."""
    pixels = lab.counts(2, 2, 2)
    pixels[:, 0, 1] = 0
    pixels[1, 1, 1] = 0
    record = lab.only(sentinel2, lab.write("a.tif", pixels, per_band=TWO))
    np.testing.assert_array_equal(lab.invalid(record), [[0, 1], [0, 0]])
    assert lab.invalid(record).dtype == np.uint8
    assert record.nodata == (None, None)  # a zero alone tells nothing; the valid field does
    np.testing.assert_array_equal(lab.everything(record), pixels)


def test_nan_is_stored_as_zero_and_marked(lab):
    pixels = np.array([[[1.0, np.nan], [-3.0, 0.0]]], "float32")
    record = lab.only(sentinel1, lab.write("a_VV.tif", pixels, nodata=float("nan")), sar="db")
    np.testing.assert_array_equal(lab.everything(record)[0], [[1, 0], [-3, 0]])
    np.testing.assert_array_equal(lab.invalid(record), [[0, 1], [0, 0]])
    assert record.nodata == (None,)


def test_a_declared_value_of_floating_point_is_marked(lab):
    record = lab.only(sentinel1, lab.write("a_VV.tif", np.array([[-9999.0, -3.0]], "float32"), nodata=-9999.0), sar="db")
    np.testing.assert_array_equal(lab.everything(record), [[[0.0, -3.0]]])
    np.testing.assert_array_equal(lab.invalid(record), [[1, 0]])


def test_a_source_without_a_valid_pixel_is_refused_by_the_ingest_with_its_causes(lab, tmp_path):
    lab.write("a/a_VV.tif", np.full((2, 2), np.nan, "float32"))
    lab.write("b/b.tif", np.zeros((2, 2, 2), "uint16"), per_band=TWO)
    for domain, folder in ((sentinel1, "a"), (sentinel2, "b")):
        plan = IngestPlan(domain=domain.name, source=str(lab.folder / folder), store=str(tmp_path / folder), sar="db", workers=0)
        with pytest.raises(UserError, match="holds no valid pixel: everywhere NaN or nodata"):
            ingest(plan, domain=domain)


def test_opening_a_scene_decodes_no_pixel(lab, monkeypatch):
    lab.write("b.tif", np.zeros((2, 2, 2), "uint16"), per_band=TWO)
    (ref,) = lab.found(sentinel2)
    monkeypatch.setattr(SceneReader, "_decoded", lambda *_, **__: pytest.fail("decoded"))
    sentinel2.read(ref)


def test_infinite_values_are_refused_even_after_valid_ones(lab):
    pixels = np.zeros((2, 2), "float32")
    pixels[1, 1] = np.inf
    assert "infinite" in lab.refusal(sentinel1, lab.write("a/a_VV.tif", pixels), sar="db")
    assert "beyond float32" in lab.refusal(sentinel1, lab.write("b/b_VV.tif", np.full((2, 2), 1e300)), sar="db")


def test_alpha_is_validity_and_never_a_channel(lab):
    pixels = lab.counts(4, 2, 2, dtype="uint8")
    pixels[3] = [[255, 0], [128, 255]]
    record = lab.only(aerial, lab.write("a.tif", pixels, photometric="RGB", alpha="YES"))
    assert record.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(lab.everything(record), pixels[:3])
    np.testing.assert_array_equal(lab.invalid(record), [[0, 1], [0, 0]])


def test_a_mask_inside_the_file_is_validity(lab):
    path = lab.write("a.tif", lab.counts(3, 2, 2, dtype="uint8"), photometric="RGB")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.array([[255, 255], [0, 255]], "uint8"))
    np.testing.assert_array_equal(lab.invalid(lab.only(aerial, path)), [[0, 0], [1, 0]])


def test_a_source_that_cannot_miss_pixels_has_no_valid_field(lab):
    assert lab.only(aerial, lab.write("a.tif", lab.counts(3, 2, 2, dtype="uint8"), photometric="RGB")).read_valid is None


def test_validity_of_a_coarse_band_is_replicated(lab):
    fine = lab.counts(4, 4)
    fine[:2] = 0
    lab.write("B02.tif", fine)
    lab.write("B05.tif", np.array([[1, 0], [1, 1]], "uint16"), gsd=20)
    np.testing.assert_array_equal(lab.invalid(lab.only(sentinel2)), [[0, 0, 1, 1]] * 2 + [[0] * 4] * 2)


def test_a_declared_value_of_any_band_makes_a_pixel_invalid(lab):
    pixels = lab.counts(2, 1, 3)
    pixels[0, 0, 1] = 60000
    np.testing.assert_array_equal(lab.invalid(lab.only(sentinel2, lab.write("a.tif", pixels, per_band=TWO, nodata=60000))), [[0, 1, 0]])


def test_both_zero_and_the_declared_value_are_missing(lab):
    lab.write("LT05_L1TP_224063_19880814_B1.TIF", np.array([[0, 255, 7]], "uint8"), nodata=255)
    record = lab.only(landsat)
    np.testing.assert_array_equal(lab.invalid(record), [[1, 1, 0]])
    assert record.nodata == (255.0,)


def test_a_file_cut_short_is_refused(lab):
    path = lab.write("a.tif", lab.counts(2, 300, 300), per_band=TWO)
    path.write_bytes(path.read_bytes()[:-200000])
    assert "cannot be decoded" in lab.refusal(sentinel2) or "not a readable raster" in lab.refusal(sentinel2)


def test_text_named_tif_is_refused(lab):
    lab.folder.mkdir()
    (lab.folder / "a.tif").write_text("not a raster")
    assert "not a readable raster" in lab.refusal(sentinel2)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32"])
def test_integers_are_stored_as_they_are(lab, dtype):
    pixels = lab.counts(2, 3, 3, dtype=dtype)
    record = lab.only(sentinel2, lab.write("a.tif", pixels, per_band=TWO))
    assert record.dtype == dtype
    np.testing.assert_array_equal(lab.everything(record), pixels)


def test_files_are_opened_once_per_record(lab, monkeypatch):
    record = lab.only(sentinel2, lab.write("a.tif", lab.counts(2, 64, 64), per_band=TWO))
    opened = []
    whole = rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda *a, **k: (opened.append(a), whole(*a, **k))[1])
    for row in range(0, 64, 16):
        record.read((slice(row, row + 16), slice(0, 64)))
    assert len(opened) == 1
