from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from dinodomain.errors import BadSource
from dinodomain_medical import xray
from dinodomain_medical.voi import TOP, window


@pytest.fixture
def pixels() -> np.ndarray:
    return np.arange(0, 4096, 13).astype(np.uint16)[:312].reshape(12, 26)


@pytest.fixture
def frame(tmp_path, pixels, write_dicom):
    def write(name="a", array=None, **tags):
        base = {"Modality": "CR", "PatientID": "P7", "BitsStored": 12, "HighBit": 11}
        return write_dicom(tmp_path / name, pixels if array is None else array, **(base | tags))

    return write


def lut(data, bits: int, first: int = 0, *, packed: bool = False) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(data), first, bits]
    kind = np.uint8 if packed else np.dtype("<u2")
    raw = np.asarray(data, dtype=kind).tobytes()
    item.add_new("LUTData", "OW", raw + b"\0" * (len(raw) % 2))
    return pydicom.Sequence([item])


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (500.5, 300), (-100, 50), (1000, 1), (3000, 2.5)])
def test_windows_equal_pydicom(pixels, function, centre, width):
    dataset = pydicom.Dataset()
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = centre, width, function
    dataset.BitsStored, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 16, 0, "MONOCHROME2"
    with np.errstate(over="ignore"):
        oracle = apply_windowing(pixels, dataset)  # 0..65535, the range of the 16 bits stored
    np.testing.assert_array_equal(window(pixels.astype(float), centre, width, function, "x"), np.rint(oracle))


def test_a_window_works_on_the_output_of_the_modality_lut(frame, pixels, open_one, full):
    path = frame(RescaleSlope="2", RescaleIntercept="-1000", WindowCenter=1000, WindowWidth=2000)
    record = open_one(xray, path, voi=True)
    np.testing.assert_array_equal(full(record)[0], window(pixels * 2.0 - 1000, 1000, 2000, "LINEAR", "x"))
    assert (record.dtype, record.scale, record.offset) == ("uint16", (1.0,), (0.0,))
    assert record.stages == (f"VOI window LINEAR 1000/2000 applied -> 0..{TOP}",)


def test_nothing_is_windowed_without_the_key(frame, pixels, open_one, full):
    record = open_one(xray, frame(WindowCenter=1000, WindowWidth=2000, VOILUTSequence=lut(range(10), 16)))
    np.testing.assert_array_equal(full(record)[0], pixels)
    assert record.stages == ()


def test_the_first_of_several_windows_is_taken_and_said(frame, pixels, open_one, full):
    record = open_one(xray, frame(WindowCenter=[1000, 50], WindowWidth=[2000, 9]), voi=True)
    np.testing.assert_array_equal(full(record)[0], window(pixels.astype(float), 1000, 2000, "LINEAR", "x"))
    assert "(the first of 2)" in record.stages[0]


@pytest.mark.parametrize(("bits", "packed"), [(16, False), (12, False), (8, False), (8, True)])
def test_a_voi_lut_comes_before_a_window_and_equals_pydicom(frame, open_one, full, bits, packed):
    table = (np.linspace(0, 1, 100) ** 2 * ((1 << bits) - 1)).astype(int)
    path = frame(VOILUTSequence=lut(table, bits, first=1000, packed=packed), WindowCenter=1, WindowWidth=2)
    record = open_one(xray, path, voi=True)
    stored = pydicom.dcmread(path).pixel_array
    np.testing.assert_array_equal(full(record)[0], table[(stored.astype(int) - 1000).clip(0, 99)])
    if not packed and bits != 8:  # pydicom reads 8-bit tables only where they are packed
        np.testing.assert_array_equal(full(record)[0], apply_voi_lut(stored, pydicom.dcmread(path)))
    assert record.dtype == ("uint8" if bits == 8 else "uint16")
    assert f"VOI LUT of 100 entries applied -> 0..{(1 << bits) - 1}" in record.stages


def test_a_modality_lut_and_a_voi_lut_follow_each_other(frame, open_one, full):
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    item = lut([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120], 16)
    item[0].ModalityLUTType = "US"
    path = frame(array=array, ModalityLUTSequence=item, VOILUTSequence=lut(range(0, 2000, 10), 16))
    dataset = pydicom.dcmread(path)
    oracle = apply_voi_lut(apply_modality_lut(array, dataset), dataset)
    record = open_one(xray, path, voi=True)
    np.testing.assert_array_equal(full(record)[0], oracle)
    assert [stage.split(" ")[0] for stage in record.stages] == ["modality", "VOI"]


def test_monochrome1_is_turned_after_the_window(frame, pixels, open_one, full):
    shown = window(pixels.astype(float), 1000, 2000, "LINEAR", "x")
    record = open_one(xray, frame(WindowCenter=1000, WindowWidth=2000, PhotometricInterpretation="MONOCHROME1"), voi=True)
    np.testing.assert_array_equal(full(record)[0], TOP - shown)
    assert [stage.split(" ")[0] for stage in record.stages] == ["VOI", "MONOCHROME1"]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"WindowCenter": 5, "WindowWidth": 0}, "a LINEAR window of centre 5 and width 0"),
        ({"WindowCenter": 5, "WindowWidth": 0.5}, "width 0.5"),
        ({"WindowCenter": 5, "WindowWidth": -3, "VOILUTFunction": "SIGMOID"}, "a SIGMOID window"),
        ({"WindowCenter": 5, "WindowWidth": 3, "VOILUTFunction": "CUBIC"}, "an unknown name"),
        ({"VOILUTSequence": lut([1, 2, 70], 6)}, "a VOI LUT that cannot be read"),
    ],
)
def test_a_window_that_cannot_be_applied_is_refused_by_name(frame, open_one, tags, reason):
    with pytest.raises(BadSource, match=reason) as error:
        open_one(xray, frame(**tags), voi=True)
    assert "repair the header" in error.value.remedy
    assert open_one(xray, frame(**tags)).stages == ()


def test_a_frame_without_window_is_kept_with_a_warning(frame, pixels, open_one, full):
    record = open_one(xray, frame(), voi=True)
    np.testing.assert_array_equal(full(record)[0], pixels)
    assert "no VOI LUT or window" in record.warnings[0]
