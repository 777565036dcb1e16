from __future__ import annotations

from fractions import Fraction

import numpy as np
import pydicom
import pytest

from dinodomain_medical.dicom_fields import READS
from dinodomain_medical.dicom_header import acquisition_fields, read_header
from dinodomain_medical.values import one_scale


def fields(**tags):
    dataset = pydicom.Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return acquisition_fields(dataset)


@pytest.mark.parametrize(
    ("tags", "years"),
    [
        ({"PatientAge": "045Y"}, 45),
        ({"PatientAge": "018M"}, 1),
        ({"PatientAge": "010D"}, 0),
        ({"PatientAge": "103Y"}, 90),
        ({"PatientBirthDate": "19800615", "StudyDate": "20200614"}, 39),
        ({"PatientBirthDate": "19800615", "StudyDate": "20200615"}, 40),
        ({"PatientBirthDate": "19010101", "StudyDate": "20200615"}, 90),
    ],
)
def test_age_is_in_whole_years_and_capped(tags, years):
    assert fields(**tags)["age_years"] == years


def test_only_the_allow_list_enters(tmp_path, write_dicom):
    """Names, dates, ids and free text are planted in fifty fields of every text-like kind; none of them comes out."""
    planted = {}
    for keyword in sorted(pydicom.datadict.keyword_dict):
        entry = pydicom.datadict.keyword_dict[keyword]
        kind = pydicom.datadict.dictionary_VR(entry)
        if kind in ("PN", "LO", "SH", "ST", "LT", "UT", "UC") and entry >> 16 in (0x08, 0x10, 0x18, 0x20, 0x32, 0x40):
            planted[keyword] = "SECRETNAME"
    allowed = {"Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "PatientID", "AccessionNumber"}
    planted = {keyword: value for keyword, value in planted.items() if keyword not in allowed}
    assert len(planted) > 50
    path = write_dicom(
        tmp_path / "a", np.zeros((4, 4), np.uint16), Modality="CT", StudyDate="20190203", PatientBirthDate="19800615", **planted
    )
    found = read_header(path).fields
    assert "SECRETNAME" not in repr(found)
    assert found["year"] == 2019
    assert "0203" not in repr(found)


def test_what_a_header_claims_of_identifying_pixels_enters_as_yes_or_no():
    found = fields(BurnedInAnnotation="YES", RecognizableVisualFeatures="NO")
    assert (found["burned_in_annotation"], found["recognizable_visual_features"]) == ("YES", "NO")
    assert fields(BurnedInAnnotation="DOE") == {}


def test_fields_keep_what_the_audit_asks_for():
    found = fields(
        PatientSex="F", Manufacturer="SIEMENS", ManufacturerModelName="Skyra", MagneticFieldStrength="3", KVP="120", SliceThickness="1.5",
        ConvolutionKernel=["Br38f", "3"], ContrastBolusAgent="Dr Doe's own mixture", AcquisitionDate="20210101",
    )  # fmt: skip
    assert found == {
        "sex": "F", "manufacturer": "SIEMENS", "model": "Skyra", "field_strength_t": 3.0, "kvp": 120.0, "kernel": "Br38f 3",
        "slice_thickness_mm": 1.5, "contrast": True, "year": 2021,
    }  # fmt: skip


def test_a_sex_outside_the_defined_terms_is_left_out():
    assert "sex" not in fields(PatientSex="JANE DOE")


def test_slopes_are_read_as_the_decimals_they_were_written_as(tmp_path, write_dicom):
    header = read_header(
        write_dicom(tmp_path / "a", np.zeros((4, 4), np.uint16), Modality="CT", RescaleSlope="0.1", RescaleIntercept="-1e3")
    )
    assert (header.slope, header.offset) == (Fraction(1, 10), Fraction(-1000))


def test_one_scale_is_exact_or_none():
    tenth = Fraction(1, 10)
    scale = one_scale([tenth, 3 * tenth], [Fraction(0), Fraction(1)], [(0, 100), (0, 100)])
    assert (scale.scale, scale.gain, scale.shift, scale.dtype) == (tenth, (1, 3), (0, 10), np.dtype("int16"))
    assert one_scale([Fraction("0.917"), Fraction("1.00231")], [Fraction(0)] * 2, [(0, 4095)] * 2) is None
    unsigned = one_scale([Fraction(1), Fraction(2)], [Fraction(0)] * 2, [(0, 30000)] * 2)
    assert unsigned.dtype == np.dtype("uint16")


def test_the_list_of_elements_that_fields_are_made_of_is_complete():
    """Slices that agree in these share one result, so that a forgotten one would give the fields of another slice."""
    asked = set()

    class Asked(pydicom.Dataset):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

    dataset = Asked()
    for tags in ({}, {"PatientBirthDate": "19800615", "StudyDate": "20200615"}):
        for name, value in tags.items():
            setattr(dataset, name, value)
        acquisition_fields(dataset)
    assert asked == set(READS)


def test_slices_that_differ_in_one_element_do_not_share_its_value(tmp_path, write_dicom):
    pixels = np.zeros((4, 4), np.uint16)
    first = write_dicom(tmp_path / "a", pixels, Modality="CT", SliceThickness="1.5", PatientSex="F")
    second = write_dicom(tmp_path / "b", pixels, Modality="CT", SliceThickness="2.5", PatientSex="F")
    headers = [read_header(path, ("SliceThickness",)) for path in (first, second, first)]
    assert [header.fields["slice_thickness_mm"] for header in headers] == [1.5, 2.5, 1.5]
    assert [header.values["SliceThickness"] for header in headers] == [1.5, 2.5, 1.5]
    assert [header.facts["SliceThickness"] for header in headers] == [1.5, 2.5, 1.5]
