"""What the header filter and ``one_per_acquisition`` take and leave, and what the rows say."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.domain import Filter
from dinodomain.errors import LeftOut, UserError
from dinodomain_medical import ct, mri, xray
from dinodomain_medical.selection import HeaderFilter, kernel_class

AXIAL_TYPE = ["ORIGINAL", "PRIMARY", "AXIAL"]


@pytest.fixture
def archive(tmp_path, slices, write_series):
    """Writes one series of CT per name, into a folder of its own; the arguments give the tags that differ."""

    def write(**series):
        for number, (name, tags) in enumerate(sorted(series.items())):
            write_series(tmp_path / name, slices + np.uint16(number), **({"SeriesInstanceUID": f"1.2.{number + 1}"} | tags))
        return tmp_path

    return write


def outcome(found, domain, folder, **select):
    """Names of series taken, and of those left out with their reasons; nothing may be refused."""
    sources, rows = found(domain, folder, **select)
    assert all(isinstance(row, LeftOut) for row in rows), [row.reason for row in rows]
    return [source.source_id for source in sources], {row.uri.rpartition("/")[2]: row.reason for row in rows}


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"ImageType": AXIAL_TYPE}, None),
        ({}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "fails 'LOCALIZER' not in ImageType"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, "fails 'DERIVED' not in ImageType"),
        ({"ImageType": ["ORIGINAL", "SECONDARY", "OTHER"]}, "fails 'SECONDARY' not in ImageType"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "SOPClassUID"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "SOPClassUID"),
        ({"Modality": "MR"}, "fails Modality == 'CT'"),
        ({"Modality": "SR"}, "fails Modality == 'CT'"),
        ({"PatientName": "Catphan^500"}, "a condition on PatientName"),
        ({"PatientName": "QA^daily"}, "a condition on PatientName"),
        ({"PatientName": "Qadir^Jane"}, None),
        ({"PatientID": "PHANTOM-3"}, "a condition on PatientID"),
        ({"StudyDescription": "Annual QC"}, "a condition on StudyDescription"),
        ({"ProtocolName": "quality assurance"}, "a condition on ProtocolName"),
        ({"ProtocolName": "Aqaba trauma"}, None),
        ({"QualityControlImage": "YES"}, "fails QualityControlImage != 'YES'"),
    ],
)
def test_the_default_of_ct_takes_original_primary_images_of_people(archive, found, tags, why):
    taken, left = outcome(found, ct, archive(s=tags), where=ct.default_select)
    if why is None:
        assert (taken, left) == (["s"], {})
        return
    assert not taken
    reason = left["s"]
    assert reason.startswith("left out by ingest.select: ")
    assert reason.endswith("(5 files)")
    assert why in reason
    for secret in ("Catphan^500", "daily", "PHANTOM-3", "Annual"):
        assert secret not in reason


@pytest.mark.parametrize(
    ("image_type", "is_taken"),
    [
        (["ORIGINAL", "PRIMARY", "M", "ND"], True),
        (["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], True),
        (["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"], True),
        (["DERIVED", "PRIMARY", "DIXON", "WATER"], True),
        (["DERIVED", "PRIMARY", "DIFFUSION", "FA"], False),
        (["DERIVED", "PRIMARY", "PROJECTION IMAGE"], False),
        (["DERIVED", "SECONDARY", "DIXON"], False),
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], False),
    ],
)
def test_the_default_of_mri_takes_diffusion_maps_and_dixon_parts_too(archive, found, image_type, is_taken):
    taken, left = outcome(found, mri, archive(s={"Modality": "MR", "ImageType": image_type}), where=mri.default_select)
    assert (taken == ["s"]) is is_taken is (not left)


@pytest.mark.parametrize("domain", [ct, mri])
def test_the_default_is_a_filter_that_a_user_can_print_and_edit(domain):
    assert Filter(domain.default_select).text == domain.default_select
    assert HeaderFilter(domain.default_select + " and SliceThickness <= 3").names[-1] == "StudyDescription"


def test_a_filter_acts_on_images_before_they_are_grouped(tmp_path, slices, write_series, found):
    """A localizer within a series leaves it, and the rest is one volume; the id does not depend on what is left out."""
    kinds = [["ORIGINAL", "PRIMARY", "LOCALIZER"], *[AXIAL_TYPE] * 4]
    write_series(tmp_path / "s", slices, vary=lambda k: {"ImageType": kinds[k], "ImagePositionPatient": [0, 0, 2.0 * k - (k == 0) * 9]})
    sources, rows = found(ct, tmp_path, where="'LOCALIZER' not in ImageType")
    assert [(source.source_id, len(source.uris)) for source in sources] == [("s", 4)]
    assert [row.reason for row in rows] == ["left out by ingest.select: fails 'LOCALIZER' not in ImageType (1 file)"]


def test_every_file_is_counted_once_and_there_is_one_row_per_series_and_reason(archive, found):
    folder = archive(
        a={"SliceThickness": 1.0}, b={"SliceThickness": 5.0}, c={"SliceThickness": 5.0, "KVP": 80}, d={"SliceThickness": 1.0, "KVP": 80}
    )
    sources, rows = found(ct, folder, where="SliceThickness <= 3 and KVP != 80")
    assert [source.source_id for source in sources] == ["a"]
    assert {(row.uri.rpartition("/")[2], row.reason) for row in rows} == {
        ("b", "left out by ingest.select: fails SliceThickness <= 3 (5 files)"),
        ("c", "left out by ingest.select: fails SliceThickness <= 3 (5 files)"),
        ("d", "left out by ingest.select: fails KVP != 80 (5 files)"),
    }
    assert all(row.keys["PatientID"] == "P1" for row in rows)


@pytest.mark.parametrize(
    ("where", "is_taken"),
    [
        ("SliceThickness <= 3", True),
        ("SliceThickness < 2.5", False),
        ("AcquisitionNumber == 4", True),
        ("Rows == 6 and Columns == 8", True),
        ("'AXIAL' in ImageType", True),
        ("'AX' in ImageType", False),
        ("ConvolutionKernel == 'B30f'", True),
        ("matches(ConvolutionKernel, '^B[123]')", True),
        ("EchoTime < 100", False),
        ("EchoTime == None", True),
        ("lower(Manufacturer) == 'siemens'", True),
        ("PatientAge >= '040Y'", True),
        ("len(ImageType) == 3", True),
        ("", True),
    ],
)
def test_values_are_numbers_words_or_lists(archive, found, where, is_taken):
    tags = {
        "SliceThickness": "2.5", "AcquisitionNumber": 4, "ImageType": AXIAL_TYPE, "ConvolutionKernel": "B30f", "Manufacturer": "SIEMENS",
        "PatientAge": "045Y",
    }  # fmt: skip
    assert (outcome(found, ct, archive(s=tags), where=where)[0] == ["s"]) is is_taken


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("SliceThicknes <= 3", "did you mean SliceThickness"),
        ("slicethickness <= 3", "did you mean SliceThickness"),
        ("Foo == 1", "'Foo' is no DICOM field"),
        ("ReferencedStudySequence == 1", "holds a sequence"),
        ("PixelData == 1", "holds a sequence or bytes"),
        ("SliceThickness <=", "is no expression"),
        ("SliceThickness < 'a'", "cannot be applied"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused_with_a_hint(archive, found, where, message):
    folder = archive(s={"SliceThickness": 1.0})
    with pytest.raises(UserError, match=message) as error:
        found(ct, folder, where=where)
    assert error.value.place == "ingest.select"


def reconstructions(**more):
    """Three reconstructions of one acquisition: soft and thin, soft and thick, sharp and thin."""
    common = {"AcquisitionNumber": 2, "AcquisitionTime": "101500", "FrameOfReferenceUID": "1.7"} | more
    return {
        "lung": common | {"ConvolutionKernel": "B70f", "SliceThickness": 1.0},
        "soft": common | {"ConvolutionKernel": "B30f", "SliceThickness": 5.0},
        "thin": common | {"ConvolutionKernel": "B31f", "SliceThickness": 1.0},
    }


def test_of_several_kernels_the_smooth_body_kernel_that_most_volumes_have_is_kept(archive, found):
    other = {"other": {"ConvolutionKernel": "B30f", "StudyInstanceUID": "1.9", "AcquisitionNumber": 1, "AcquisitionTime": "090000"}}
    taken, left = outcome(found, ct, archive(**reconstructions(), **other), one_per_acquisition="kernel")
    assert taken == ["other", "soft"]
    row = "left out by ingest.one_per_acquisition=kernel (5 files; kept: kernel B30f, 5 mm)"
    assert left == {"lung": row, "thin": row}


def test_of_several_thicknesses_the_smallest_is_kept_and_then_the_smoother(archive, found):
    taken, left = outcome(found, ct, archive(**reconstructions()), one_per_acquisition="thickness")
    assert taken == ["thin"]
    assert left["soft"] == "left out by ingest.one_per_acquisition=thickness (5 files; kept: kernel B31f, 1 mm)"


@pytest.mark.parametrize(
    "different",
    [
        {"StudyInstanceUID": "1.8"},
        {"FrameOfReferenceUID": "1.8"},
        {"AcquisitionNumber": 3},
        {"AcquisitionTime": "101900"},
        {"ContrastBolusAgent": "Ultravist"},
        {"KVP": 80},
        {"origin": (-10.0, -20.0, 300.0)},
        {"EchoTime": 9.0},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_what_was_acquired_apart_is_kept_apart(archive, found, different):
    """GE numbers acquisitions within each series: two phases of contrast share number and place, but not the time."""
    same = {"AcquisitionNumber": 2, "AcquisitionTime": "101500", "FrameOfReferenceUID": "1.7", "ConvolutionKernel": "STANDARD"}
    taken, left = outcome(found, ct, archive(a=same, b=same | different), one_per_acquisition="kernel")
    assert (taken, left) == (["a", "b"], {})


def test_without_a_statement_of_acquisition_nothing_is_left_out(archive, found):
    taken, left = outcome(
        found, ct, archive(a={"ConvolutionKernel": "B30f"}, b={"ConvolutionKernel": "B70f"}), one_per_acquisition="kernel"
    )
    assert (taken, left) == (["a", "b"], {})


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("B30f", 0), ("Br40d 3", 0), ("I31f", 0), ("Br36", 0), ("H31s", 1), ("Hr38", 1), ("B70f", 2), ("Bl57", 2), ("H60s", 2),
        ("STANDARD", 0), ("SOFT", 0), ("BONE", 2), ("BONEPLUS", 2), ("LUNG", 2), ("CHST", 2), ("B", 0), ("YC", 2), ("FC08", 0),
        ("FC21", 1), ("FC52", 2), ("", 1), ("SomethingElse", 1),
    ],
)  # fmt: skip
def test_kernels_of_four_makers_are_smooth_or_sharp(kernel, kind):
    assert kernel_class(kernel) == kind


@pytest.mark.parametrize("domain", [ct, mri, xray])
def test_other_modalities_of_a_mixed_archive_are_left_out_and_no_fault(tmp_path, slices, write_series, found, domain):
    for number, modality in enumerate(("CT", "MR", "DX", "SR", "PT")):
        write_series(tmp_path / modality, slices[: 1 if modality == "DX" else None], SeriesInstanceUID=f"1.2.{number}", Modality=modality)
    for where in (domain.default_select, ""):
        sources, rows = found(domain, tmp_path, where=where)
        assert len({source.facts["Modality"] for source in sources}) == len(sources) == 1
        assert all(isinstance(row, LeftOut) for row in rows), [row.reason for row in rows]
