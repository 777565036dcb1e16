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
        ({"Modality": "CT"}, "left out by domain=xray (modality CT)"),
        ({"Modality": ""}, "no Modality is stated"),
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


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
@pytest.mark.parametrize("scaling", ["none", "rescale", "lut"])
def test_grey_is_turned_exactly_once_in_every_combination(frame, open_one, full, signed, bits, photometric, shape, scaling):
    """Turned if MONOCHROME1 or INVERSE says so, once if both do: the value that was smallest becomes the largest and back."""
    import pydicom

    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    values = np.array([[low, low + 1, low + 2], [high - 2, high - 1, high]]).astype(np.int16 if signed else np.uint16)
    tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape, "BitsStored": bits, "HighBit": bits - 1}
    top, expected = low + high, values.astype(np.int64)
    if scaling == "rescale":
        tags |= {"RescaleSlope": "3", "RescaleIntercept": "-7"}
    if scaling == "lut":
        lut = pydicom.Dataset()
        lut.LUTDescriptor = [3, low, 10]
        lut.LUTData = np.array([5, 600, 1000], dtype="<u2").tobytes()
        lut.ModalityLUTType = "US"
        tags["ModalityLUTSequence"] = pydicom.Sequence([lut])
        top, expected = 1023, np.array([[5, 600, 1000], [1000, 1000, 1000]])
    record = open_one(xray, frame(array=values, **tags))
    turned = photometric == "MONOCHROME1" or shape == "INVERSE"
    np.testing.assert_array_equal(full(record)[0], top - expected if turned else expected)
    assert record.stages.count("MONOCHROME1 inverted") == int(turned)
    contradict = (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE"))
    assert any("contradict" in text for text in record.warnings) == contradict


CLASS_DX, CLASS_RAW = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1"
CLASS_CR, CLASS_CAPTURE = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.7"


@pytest.mark.parametrize(
    ("modality", "stated", "sop_class", "quantity", "intent"),
    [
        ("DX", "FOR PRESENTATION", CLASS_DX, "FOR PRESENTATION", "FOR PRESENTATION"),
        ("DX", "FOR PROCESSING", CLASS_RAW, "FOR PROCESSING", "FOR PROCESSING"),
        ("DX", None, CLASS_DX, "FOR PRESENTATION", "FOR PRESENTATION"),
        ("DX", None, CLASS_RAW, "FOR PROCESSING", "FOR PROCESSING"),
        ("DX", None, "1.2.3", "presentation intent not stated", None),
        ("CR", None, CLASS_CR, "FOR PRESENTATION", None),
        ("CR", "FOR PROCESSING", CLASS_CR, "FOR PROCESSING", "FOR PROCESSING"),
    ],
)
def test_the_intent_is_the_quantity_and_what_is_not_stated_is_no_field(frame, found, modality, stated, sop_class, quantity, intent):
    (source,), _ = found(xray, frame(Modality=modality, PresentationIntentType=stated, SOPClassUID=sop_class))
    assert source.quantity == quantity
    assert xray.read(source).fields.get("intent") == intent


def test_an_intent_that_its_class_denies_is_a_warning(frame, open_one):
    record = open_one(xray, frame(PresentationIntentType="FOR PRESENTATION", SOPClassUID=CLASS_RAW))
    assert "its storage class FOR PROCESSING" in record.warnings[0]


def test_the_default_filter_takes_pictures_for_presentation_and_says_what_it_leaves_out(frame, tmp_path, found):
    frame("a.dcm", PresentationIntentType="FOR PRESENTATION", ImageType=["DERIVED", "PRIMARY", ""])
    frame("b.dcm", PresentationIntentType="FOR PROCESSING")
    frame("c.dcm", SOPClassUID=CLASS_RAW)
    frame("d.dcm", BurnedInAnnotation="YES")
    frame("e.dcm", SOPClassUID=CLASS_CAPTURE)
    frame("f.dcm", Modality="MG")
    frame("g.dcm", SamplesPerPixel=3, PhotometricInterpretation="RGB")
    frame("h.dcm", Modality="CR")
    sources, refused = found(xray, tmp_path, where=xray.default_select)
    assert [ref.source_id for ref in sources] == ["a.dcm", "h.dcm"]
    reasons = {item.uri.rpartition("/")[2]: (type(item).__name__, item.reason) for item in refused}
    assert {name: kind for name, (kind, _) in reasons.items()} == {
        "b.dcm": "LeftOut", "c.dcm": "LeftOut", "d.dcm": "LeftOut", "e.dcm": "LeftOut", "f.dcm": "LeftOut", "g.dcm": "BadSource",
    }  # fmt: skip
    assert "PresentationIntentType != 'FOR PROCESSING'" in reasons["b.dcm"][1]
    assert "BurnedInAnnotation" in reasons["d.dcm"][1]
    assert all(item.keys["PatientID"] == "P7" for item in refused)
    assert len(found(xray, tmp_path)[0]) == 6


def test_facts_and_identity_come_from_the_header(frame, tmp_path, found):
    path = frame("a.dcm", ViewPosition="PA", PresentationIntentType="FOR PRESENTATION", AcquisitionDate="20200304", IssuerOfPatientID="H")
    (source,), _ = found(xray, path)
    assert source.unit == "H\\P7"
    assert {"Modality": "DX", "ViewPosition": "PA", "bytes_out": 108, "NumberOfImages": 1}.items() <= source.facts.items()
    assert source.facts["bytes_in"] == path.stat().st_size
    assert xray.read(source).acquired == "2020-03-04"
    (copy,), _ = found(xray, path.rename(tmp_path / "other.dcm"))
    assert (copy.instance, copy.digest) == (source.instance, source.digest)


@pytest.mark.parametrize(
    "tags", [{"PresentationLUTShape": "INVERSE"}, {"ShutterShape": "CIRCULAR"}, {"ImagerPixelSpacing": [1, 1]}, {"ViewPosition": "AP"}]
)
def test_the_digest_follows_what_changes_the_meaning_of_an_image(frame, found, tags):
    uid = {"SOPInstanceUID": "1.2.3.4"}
    (first,), _ = found(xray, frame("a", **uid))
    (same,), _ = found(xray, frame("a", PatientName="Doe^Jane", **uid))
    (other,), _ = found(xray, frame("a", **uid, **tags))
    assert first.digest == same.digest != other.digest
    assert first.instance == other.instance


def valid_of(record):
    window = tuple(slice(0, size) for size in record.shape[1:])
    return np.zeros(record.shape[1:], np.uint8) if record.read_valid is None else record.read_valid(window)


def test_a_shutter_is_no_data_and_a_collimator_is_outside_the_body(frame, pixels, open_one, full):
    edges = ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")
    shutter = {f"Shutter{edge}": value for edge, value in zip(edges, (2, 8, 1, 5))}
    collimator = {f"Collimator{edge}": value for edge, value in zip(edges, (1, 9, 2, 6))}
    record = open_one(
        xray, frame(ShutterShape="RECTANGULAR", CollimatorShape="RECTANGULAR", ShutterPresentationValue=65535, **shutter, **collimator)
    )
    expected = np.zeros((6, 9), np.uint8)
    expected[:, [0, 8]] |= 1
    expected[5] |= 1
    expected[0] |= 8
    np.testing.assert_array_equal(valid_of(record), expected)
    np.testing.assert_array_equal(full(record)[0], pixels)
    assert record.stages == (
        "rectangular shutter -> validity (35.2% of the pixels)",
        "rectangular collimator -> validity (16.7% of the pixels)",
    )


def test_a_degenerate_shutter_is_a_warning_and_an_image_that_is_all_hidden_is_refused(frame, open_one):
    record = open_one(xray, frame(ShutterShape="CIRCULAR", CenterOfCircularShutter=[3, 3], RadiusOfCircularShutter=0))
    assert (record.read_valid, record.warnings) == (None, ("shutter ignored: a circle of radius 0",))
    with pytest.raises(BadSource, match="leave nothing of the image"):
        open_one(xray, frame(PixelPaddingValue=0, PixelPaddingRangeLimit=4095))


def test_a_circular_shutter_follows_the_spacing_of_rows(frame, open_one):
    shutter = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [3, 5], "RadiusOfCircularShutter": 2}
    wide = valid_of(open_one(xray, frame(PixelSpacing=[0.4, 0.2], **shutter)))
    assert (wide[:, 4] == 0).sum() == 3
    assert (wide[2] == 0).sum() == 5


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 2])
def test_padding_is_no_data_by_its_value_before_any_lut(frame, pixels, open_one, photometric, limit):
    import pydicom

    lut = pydicom.Dataset()
    lut.LUTDescriptor = [2, 0, 16]
    lut.LUTData = np.array([7, 9], dtype="<u2").tobytes()
    lut.ModalityLUTType = "US"
    padded = pixels | np.uint16(8)
    padded[0, :3] = 0, 1, 2
    tags = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": limit, "PhotometricInterpretation": photometric}
    for more in ({}, {"ModalityLUTSequence": pydicom.Sequence([lut])}):
        hidden = valid_of(open_one(xray, frame(array=padded, **tags, **more)))
        assert hidden[0, :3].tolist() == ([1, 0, 0] if limit is None else [1, 1, 1])
        assert hidden.sum() == hidden[0, :3].sum()


def test_overlay_planes_are_never_drawn(frame, pixels, open_one, full):
    """Both kinds: a plane of its own (6000,3000), and one in bit 15 of the pixels."""
    import pydicom

    path = frame(array=pixels | np.uint16(0x8000))
    dataset = pydicom.dcmread(path)
    for group, data in ((0x6000, b"\xff" * 8), (0x6002, None)):
        dataset.add_new((group, 0x0010), "US", 6)
        dataset.add_new((group, 0x0011), "US", 9)
        dataset.add_new((group, 0x0040), "CS", "G")
        dataset.add_new((group, 0x0050), "SS", [1, 1])
        dataset.add_new((group, 0x0100), "US", 1 if data else 16)
        dataset.add_new((group, 0x0102), "US", 0 if data else 15)
        if data:
            dataset.add_new((group, 0x3000), "OW", data)
    dataset.save_as(path)
    np.testing.assert_array_equal(full(open_one(xray, path))[0], pixels)


@pytest.mark.parametrize(
    ("tags", "spacing", "plane"),
    [
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2), "detector"),
        ({"PixelSpacing": [0.1, 0.2]}, (0.1, 0.2), "not stated"),
        ({"PixelSpacing": [0.1, 0.2], "ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2), "detector"),
        ({"PixelSpacing": [0.09, 0.18], "ImagerPixelSpacing": [0.1, 0.2]}, (0.09, 0.18), "patient"),
        ({"PixelSpacing": [0.1, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.1, 0.1), "patient"),
        ({"NominalScannedPixelSpacing": [0.1, 0.1]}, (0.1, 0.1), "film"),
    ],
)
def test_spacing_is_kept_with_the_plane_it_was_measured_in(frame, open_one, tags, spacing, plane):
    record = open_one(xray, frame(EstimatedRadiographicMagnificationFactor=1.5, **tags))
    assert (record.spacing, record.fields["spacing_plane"], record.fields["magnification"]) == (spacing, plane, 1.5)
    assert record.fields["spacing_type"] == next(iter(tags))


def test_pixels_that_are_not_square_without_spacing_are_a_warning(frame, open_one):
    record = open_one(xray, frame(PixelAspectRatio=[4, 3]))
    assert np.isnan(record.spacing).all()
    assert "PixelAspectRatio 4:3" in record.warnings[0]


def test_view_and_region_fall_back_to_their_codes(frame, open_one):
    import pydicom

    def coded(value, meaning):
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
        return pydicom.Sequence([item])

    codes = {"ViewCodeSequence": coded("399173006", "Jane Doe"), "AnatomicRegionSequence": coded("T-D3000", "x")}
    record = open_one(xray, frame(PatientOrientation=["P", "F"], Laterality="L", **codes))
    assert {"view": "LL", "body_part": "CHEST", "laterality": "L", "patient_orientation": "P\\F"}.items() <= record.fields.items()
    record = open_one(xray, frame(ViewPosition="AP", BodyPartExamined="HAND", PatientOrientation=["JANE", "DOE"], **codes))
    assert (record.fields["view"], record.fields["body_part"]) == ("AP", "HAND")
    assert "patient_orientation" not in record.fields
    assert "Jane" not in str(record.fields)


def test_every_code_means_in_snomed_what_it_is_taken_for():
    from pydicom.sr._snomed_dict import mapping

    from dinodomain_medical.projection import _REGION_CODES, _VIEW_CODES

    older = {"R-10214", "T-D3000", "T-D4000", "T-D6000"}  # retired codes, and regions whose newer code has another number
    for codes in (*_VIEW_CODES.values(), *_REGION_CODES.values()):
        first, *rest = codes
        for code in set(rest) - older:
            assert mapping["SRT"].get(code, first) in codes


def test_sixteen_bit_colour_and_alpha_are_refused_instead_of_losing_their_lower_byte(tmp_path, found):
    import struct
    import zlib

    def png(path, kind, bands):
        def chunk(name, body):
            return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

        rows = b"".join(b"\0" + np.full((4, bands), 300, ">u2").tobytes() for _ in range(3))
        head = struct.pack(">IIBBBBB", 4, 3, 16, kind, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))

    png(tmp_path / "rgb.png", 2, 3)
    png(tmp_path / "la.png", 4, 2)
    png(tmp_path / "grey.png", 0, 1)
    sources, refused = found(xray, tmp_path)
    assert [ref.source_id for ref in sources] == ["grey.png"]
    assert all("16 bits per band" in item.reason for item in refused)


def test_a_palette_of_greys_is_read_through_its_colours(tmp_path, open_one, full):
    indexes = np.random.default_rng(0).integers(0, 4, (6, 9)).astype(np.uint8)
    image = Image.fromarray(indexes, mode="L").convert("P")
    image.putdata(indexes.ravel().tolist())
    image.putpalette([value for grey in (200, 10, 90, 255) for value in (grey, grey, grey)])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(full(open_one(xray, tmp_path))[0], np.array([200, 10, 90, 255])[indexes])
