from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dinodomain.errors import BadSource
from dinodomain_medical import xray


@pytest.fixture
def pixels() -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 4096, (6, 9)).astype(np.uint16)
    values[0, 0], values[1, 2] = 0, 4095
    return values


@pytest.fixture
def frame(tmp_path, pixels, write_dicom):
    def write(name="a", array=None, **tags):
        base = {"Modality": "DX", "PatientID": "P7", "BitsStored": 12, "HighBit": 11}
        return write_dicom(tmp_path / name, pixels if array is None else array, **(base | tags))

    return write


def test_a_frame_keeps_stored_values_scale_and_patient(frame, pixels, found, full):
    path = frame(RescaleSlope="2", RescaleIntercept="-5", PixelSpacing=[0.2, 0.3], WindowCenter=10, WindowWidth=5, AccessionNumber="A1")
    (source,), _ = found(xray, path)
    record = xray.read(source)
    assert source.unit == source.keys["PatientID"] == "P7"
    assert source.keys["AccessionNumber"] == "A1"
    assert "SOPInstanceUID" in source.keys
    np.testing.assert_array_equal(full(record)[0], pixels)
    assert (record.channels, record.dtype, record.scale, record.offset) == (("xray",), "uint16", (2.0,), (-5.0,))
    assert (record.spacing, record.fields["spacing_type"], record.layout) == ((0.2, 0.3), "PixelSpacing", "whole")


def test_spacing_at_the_detector_is_used_and_named_where_there_is_no_other(frame, open_one):
    record = open_one(xray, frame(ImagerPixelSpacing=[0.1, 0.15]))
    assert (record.spacing, record.fields["spacing_type"]) == ((0.1, 0.15), "ImagerPixelSpacing")
    assert np.isnan(open_one(xray, frame("b")).spacing).all()


@pytest.mark.parametrize("shape", [None, "INVERSE"])
def test_monochrome1_is_turned_once(frame, pixels, open_one, full, shape):
    record = open_one(xray, frame(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape=shape))
    np.testing.assert_array_equal(full(record)[0], 4095 - pixels)
    assert record.stages == ("MONOCHROME1 inverted",)


def test_signed_monochrome1_stays_in_its_range(frame, open_one, full):
    values = np.array([[-2048, 2047], [0, 5]], dtype=np.int16)
    record = open_one(xray, frame(array=values, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(full(record)[0], [[2047, -2048], [-1, -6]])


def test_overlay_bits_above_bits_stored_are_masked_off(frame, pixels, open_one, full):
    record = open_one(xray, frame(array=pixels | np.uint16(0xA000)))
    np.testing.assert_array_equal(full(record)[0], pixels)


def test_bits_stored_at_the_top_are_shifted_down(frame, pixels, open_one, full):
    record = open_one(xray, frame(array=(pixels << np.uint16(4)), HighBit=15))
    np.testing.assert_array_equal(full(record)[0], pixels)


def test_a_modality_lut_sequence_is_applied(frame, open_one, full):
    import pydicom

    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4, 0, 16]
    lut.LUTData = np.array([100, 300, 700, 1500], dtype="<u2").tobytes()
    lut.ModalityLUTType = "US"
    values = np.array([[0, 1], [2, 3]], dtype=np.uint16)
    record = open_one(xray, frame(array=values, ModalityLUTSequence=pydicom.Sequence([lut])))
    np.testing.assert_array_equal(full(record)[0], [[100, 300], [700, 1500]])
    assert record.stages == ("modality LUT applied",)


def test_view_side_and_intent_are_kept_as_defined_terms_only(frame, open_one):
    record = open_one(xray, frame(ViewPosition="PA", ImageLaterality="FREE TEXT", PresentationIntentType="FOR PROCESSING"))
    assert record.fields["view"] == "PA"
    assert record.fields["intent"] == "FOR PROCESSING"
    assert "laterality" not in record.fields


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "CT"}, "modality CT is not read by domain 'xray'"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
    ],
)
def test_other_objects_are_refused_by_header(frame, found, tags, reason):
    sources, refused = found(xray, frame(**tags))
    assert not sources
    assert reason in refused[0].reason


def test_a_truncated_frame_is_named(frame, open_one):
    path = frame()
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadSource, match="truncated") as error:
        open_one(xray, path)
    assert error.value.uri == str(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pictures_keep_their_bits(tmp_path, pixels, open_one, full, suffix, dtype):
    values = (pixels // 16).astype(dtype) if dtype == np.uint8 else (pixels * np.uint16(15)).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    record = open_one(xray, tmp_path)
    assert record.dtype == np.dtype(dtype).name
    np.testing.assert_array_equal(full(record)[0], values)
    assert np.isnan(record.spacing).all()


def test_a_grey_jpeg_equals_pillow(tmp_path, pixels, open_one, full):
    Image.fromarray((pixels // 16).astype(np.uint8)).save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(full(open_one(xray, tmp_path))[0], np.asarray(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_equal_bands_are_reduced_to_one(tmp_path, pixels, open_one, full, mode):
    grey = (pixels // 16).astype(np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    record = open_one(xray, tmp_path)
    np.testing.assert_array_equal(full(record)[0], grey)
    assert record.read_valid is None
    expected = {
        "RGB": {"RGB: equal bands -> one"},
        "RGBA": {"RGBA: equal bands -> one", "alpha dropped"},
        "LA": {"alpha dropped"},
        "P": {"P: equal bands -> one"},
    }
    assert set(record.stages) == expected[mode]


def test_transparent_pixels_are_no_data(tmp_path, pixels, open_one):
    grey = (pixels // 16).astype(np.uint8)
    alpha = np.full_like(grey, 255)
    alpha[0, :3] = 0
    Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(tmp_path / "a.png")
    record = open_one(xray, tmp_path)
    np.testing.assert_array_equal(record.read_valid((slice(0, 6), slice(0, 9))), (alpha == 0).astype(np.uint8))


def test_coloured_pictures_are_refused(tmp_path, pixels, open_one):
    grey = (pixels // 16).astype(np.uint8)
    Image.fromarray(np.dstack([grey, grey, 255 - grey])).save(tmp_path / "a.png")
    with pytest.raises(BadSource, match="a coloured RGB picture"):
        open_one(xray, tmp_path)


def test_white_is_zero_is_turned_for_8_and_16_bits(tmp_path, pixels, open_one, full):
    eight = (pixels // 16).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "a.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(full(open_one(xray, tmp_path / "a.tif"))[0], np.asarray(Image.open(tmp_path / "a.tif")))


def test_exif_orientation_is_followed_and_said(tmp_path, pixels, open_one, full):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(pixels // 16).convert("L").save(tmp_path / "a.png", exif=exif)
    record = open_one(xray, tmp_path)
    np.testing.assert_array_equal(full(record)[0], np.asarray(Image.open(tmp_path / "a.png"))[::-1, ::-1])
    assert "turned upright by its EXIF orientation" in record.stages


def test_broken_and_several_frame_pictures_are_refused(tmp_path, pixels, found, open_one):
    Image.fromarray((pixels // 16).astype(np.uint8)).save(tmp_path / "frames.tif", save_all=True, append_images=[Image.new("L", (9, 6))])
    (tmp_path / "text.png").write_text("no picture")
    _, refused = found(xray, tmp_path)
    assert "2 frames" in refused[0].reason
    assert "not a readable picture" in refused[1].reason
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90)).astype(np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:-3000])
    with pytest.raises(BadSource, match="truncated or damaged"):
        open_one(xray, whole)
