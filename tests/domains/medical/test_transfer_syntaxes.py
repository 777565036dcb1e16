"""Every compressed transfer syntax: equal to the uncompressed original, to another decoder, and to what ITK's own GDCM reads."""

from __future__ import annotations

from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from dinodomain.errors import BadSource, MissingExtra
from dinodomain_medical import ct
from dinodomain_medical.dicom_header import read_header
from dinodomain_medical.dicom_pixels import decode

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
LOSSLESS = ("JPEGLSLossless", "JPEG2000Lossless", "RLELossless")
BY_GDCM = {
    "JPEGLossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "JPEGLosslessSV1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}


@pytest.fixture
def volumes():
    rng = np.random.default_rng(2)
    return {
        "int16": rng.integers(-1000, 2000, (3, 64, 64)).astype(np.int16),
        "uint16": rng.integers(0, 4000, (3, 64, 64)).astype(np.uint16),
    }


def compress_by_gdcm(path: Path, syntax: int) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def compress(path: Path, name: str) -> None:
    if name in BY_GDCM:
        compress_by_gdcm(path, BY_GDCM[name])
        return
    dataset = pydicom.dcmread(path)
    if name == "DeflatedExplicitVRLittleEndian":
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    else:
        dataset.compress(getattr(pydicom.uid, name), generate_instance_uid=False)
    dataset.save_as(path)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("name", [*LOSSLESS, *BY_GDCM, "DeflatedExplicitVRLittleEndian"])
def test_lossless_syntaxes_give_the_stored_values_back(tmp_path, volumes, write_series, open_one, full, name, dtype):
    paths = write_series(tmp_path / "s", volumes[dtype], BitsStored=12, HighBit=11)
    plain = open_one(ct, tmp_path / "s")
    for path in paths:
        compress(path, name)
        assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == getattr(pydicom.uid, name)
    record = open_one(ct, tmp_path / "s")
    np.testing.assert_array_equal(full(record), full(plain))
    assert record.fields["lossy"] is False


GREY = [
    "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm",
    "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "image_dfl.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", GREY)
def test_all_installed_decoders_agree_on_every_shipped_grey_file(name):
    frame = decode(SHIPPED / name)
    dataset = pydicom.dcmread(SHIPPED / name)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    for plugin in decoder.available_plugins or ("",):
        again = pydicom.dcmread(SHIPPED / name)
        again.pixel_array_options(decoding_plugin=plugin)
        # pydicom leaves unused high bits as they are decoded; ours are sign-extended from BitsStored.
        mask = (1 << dataset.BitsStored) - 1
        np.testing.assert_array_equal(frame.stored.astype(np.int64) & mask, again.pixel_array.astype(np.int64) & mask, err_msg=plugin)


@pytest.mark.parametrize("name", [*GREY, "JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_every_shipped_grey_file_equals_itk(name):
    """ITK applies slope and intercept and brings its own GDCM."""
    frame = decode(SHIPPED / name)
    oracle = sitk.GetArrayFromImage(sitk.ReadImage(str(SHIPPED / name), imageIO="GDCMImageIO")).squeeze()
    physical = frame.stored.astype(np.float64) * float(frame.slope) + float(frame.offset)
    np.testing.assert_array_equal(physical, oracle)


@pytest.mark.parametrize(
    ("name", "lossy"),
    [
        ("JPGExtended.dcm", True),
        ("JPEGLSNearLossless_16.dcm", True),
        ("JPEG2000.dcm", True),
        ("MR_small_jp2klossless.dcm", False),
        ("MR_small_RLE.dcm", False),
        ("CT_small.dcm", False),
    ],
)
def test_lossy_compression_is_a_field(name, lossy):
    assert read_header(SHIPPED / name).fields["lossy"] is lossy


def test_lossy_compression_of_the_past_is_remembered_after_decompression(tmp_path, slices, write_series, open_one):
    write_series(tmp_path / "s", slices, vary=lambda k: {"LossyImageCompression": "01" if k == 2 else "00"})
    assert open_one(ct, tmp_path / "s").fields["lossy"] is True


def test_a_decoder_for_high_throughput_jpeg2000_is_installed():
    """No encoder is at hand, so that its values are not compared here."""
    for name in ("HTJ2K", "HTJ2KLossless", "HTJ2KLosslessRPCL"):
        assert get_decoder(getattr(pydicom.uid, name)).is_available


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("name", [*LOSSLESS, *BY_GDCM])
def test_a_truncated_codestream_is_named_and_never_filled(tmp_path, volumes, write_dicom, name, share):
    """Some decoders fill the rest of the picture with zeros and say nothing; those are never asked."""
    path = write_dicom(tmp_path / "a", volumes["uint16"][0], Modality="CT", BitsStored=12, HighBit=11)
    compress(path, name)
    dataset = pydicom.dcmread(path)
    stream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([stream[: int(len(stream) * share)]])
    dataset.save_as(path)
    with pytest.raises(BadSource, match="cannot be decoded") as error:
        decode(path)
    assert error.value.uri == str(path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_truncated_lossy_jpeg_of_12_bits_is_refused(tmp_path, share):
    dataset = pydicom.dcmread(SHIPPED / "JPGExtended.dcm")
    stream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([stream[: int(len(stream) * share)]])
    dataset.save_as(tmp_path / "a")
    with pytest.raises(BadSource, match="cannot be decoded"):
        decode(tmp_path / "a")


def test_a_missing_decoder_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless).__class__, "available_plugins", ())
    with pytest.raises(MissingExtra, match=r"JPEG 2000.* needs python-gdcm"):
        decode(SHIPPED / "MR_small_jp2klossless.dcm")
