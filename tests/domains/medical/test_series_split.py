"""What makes one volume: series with echoes, maps, phases, gradients and acquisitions mixed, and headers that jitter."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.errors import BadSource
from dinodomain_medical import ct, mri

MR = {"Modality": "MR", "RescaleIntercept": 0}


def labels(sources) -> list[str]:
    return [source.source_id.partition(";")[2] for source in sources]


@pytest.fixture
def mixed(tmp_path, slices, write_series):
    """Several stacks of one series in one folder; each argument gives the tags of one stack, ``vary(k)`` those of its slices."""

    def write(*stacks, common=None, **options):
        for number, tags in enumerate(stacks):
            tags = dict(tags)
            vary = tags.pop("vary", lambda k: {})
            for path in write_series(
                tmp_path / f"part{number}", slices + np.uint16(number), vary=vary, **(MR | (common or {}) | tags), **options
            ):
                path.rename(tmp_path / f"{number}-{path.name}")
            (tmp_path / f"part{number}").rmdir()
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"EchoTime": 4.6}, {"EchoTime": 9.2}, ["echo=4.6", "echo=9.2"]),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}, ["b=0", "b=1000"]),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]},
            {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},
            ["component=M", "component=P"],
        ),
        ({"ComplexImageComponent": "REAL"}, {"ComplexImageComponent": "IMAGINARY"}, ["component=I", "component=R"]),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]}, {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]},
         ["kind=ADC", "kind=TRACEW"]),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "DIXON", "W"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "DIXON", "F"]}, ["kind=F", "kind=W"]),
        ({"InversionTime": 100.0}, {"InversionTime": 900.0}, ["inversion=100", "inversion=900"]),
        ({"FlipAngle": 5.0}, {"FlipAngle": 15.0}, ["flip=15", "flip=5"]),
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, ["acquisition=1", "acquisition=2"]),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "OTHER", "A"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "OTHER", "B"]},
         ["image=ORIGINAL,PRIMARY,OTHER,A", "image=ORIGINAL,PRIMARY,OTHER,B"]),
    ],
)  # fmt: skip
def test_pictures_of_different_kind_over_one_place_are_volumes_of_their_own(mixed, found, full, slices, first, second, expected):
    sources, refused = found(mri, mixed(first, second))
    assert not refused
    assert labels(sources) == expected
    assert [len(source.uris) for source in sources] == [5, 5]
    for source in sources:
        number = source.uris[0].rpartition("/")[2][0]
        np.testing.assert_array_equal(np.sort(full(mri.read(source)).ravel()), np.sort((slices + np.uint16(int(number))).ravel()))


@pytest.mark.parametrize(
    ("phases", "name"),
    [
        ([{"TemporalPositionIdentifier": k} for k in (1, 2, 3)], "time"),
        ([{"NominalPercentageOfCardiacPhase": k} for k in (0.0, 40.0, 70.0)], "phase"),
        ([{"vary": lambda k, t=t: {"TriggerTime": t + 3.0 * k}} for t in (20.0, 300.0, 600.0)], "moment"),
        ([{"vary": lambda k, t=t: {"AcquisitionTime": f"1015{t + k:02d}.5"}} for t in (10, 20, 30)], "moment"),
        ([{"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": [float(k == a) for k in range(3)]} for a in range(3)], "direction"),
    ],
    ids=["temporal position", "cardiac phase", "trigger time", "clock", "gradients"],
)
def test_repeats_over_time_are_one_4d_series_refused_unless_split(mixed, found, phases, name):
    folder = mixed(*phases)
    sources, refused = found(mri, folder)
    assert not sources
    assert [item.reason for item in refused] == [f"a 4-D series: 3 volumes of one place ({name})"]
    assert "ingest.frames=split" in str(refused[0])
    sources, refused = found(mri, folder, frames="split")
    assert not refused
    assert [{uri.rpartition("/")[2][0] for uri in source.uris} for source in sources] in ([{"0"}, {"1"}, {"2"}], [{"2"}, {"1"}, {"0"}])
    assert all(label.startswith(f"{name}=") for label in labels(sources))


def test_echoes_of_a_4d_series_are_told_apart_before_its_times(mixed, found):
    stacks = [{"EchoTime": echo, "TemporalPositionIdentifier": time} for echo in (4.6, 9.2) for time in (1, 2)]
    _, refused = found(mri, mixed(*stacks))
    assert [item.reason for item in refused] == ["a 4-D series: 2 volumes of one place (time)"] * 2
    assert [item.uri.partition(";")[2] for item in refused] == ["echo=4.6", "echo=9.2"]


def test_b_values_with_their_own_temporal_positions_are_no_time_series(mixed, found):
    sources, refused = found(
        mri, mixed({"DiffusionBValue": 0.0, "TemporalPositionIdentifier": 1}, {"DiffusionBValue": 800.0, "TemporalPositionIdentifier": 2})
    )
    assert (len(sources), refused) == (2, [])


def test_a_tube_voltage_splits_where_images_overlap(tmp_path, slices, write_series, found):
    for kvp in (80, 140):
        for path in write_series(tmp_path / str(kvp), slices + np.uint16(kvp), KVP=kvp):
            path.rename(tmp_path / f"{kvp}{path.name}")
    sources, refused = found(ct, tmp_path)
    assert not refused
    assert labels(sources) == ["kvp=140", "kvp=80"]


def test_two_stacks_side_by_side_are_told_apart_though_nothing_overlaps(tmp_path, slices, write_series, found):
    """Two acquisitions over different levels of the spine, 30 mm apart, under one UID."""
    for number, z in ((1, 0.0), (2, 40.0)):
        for path in write_series(tmp_path / str(number), slices, origin=(0, 0, z), AcquisitionNumber=number):
            path.rename(tmp_path / f"{number}{path.name}")
    sources, refused = found(ct, tmp_path)
    assert not refused
    assert labels(sources) == ["acquisition=1", "acquisition=2"]


def test_jitter_of_directions_spacing_and_echo_time_splits_nothing(tmp_path, slices, write_series, found):
    def vary(k):
        return {
            "PixelSpacing": [0.5 + 1e-5 * k, 0.75 - 1e-5 * k],
            "ImageOrientationPatient": [1, 1e-5 * k, 0, 0, 1, 0],
            "EchoTime": 4.6 + 1e-5 * k,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", f"NOTE{k % 2}"],
            "KVP": 120 + k % 2,
        }

    write_series(tmp_path / "s", slices, vary=vary)
    sources, refused = found(ct, tmp_path)
    assert (len(sources), refused) == (1, [])


def test_a_projection_between_the_slices_does_not_spoil_the_volume(mixed, found):
    place = [-10.0, -20.0, 31.3]
    folder = mixed(
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]},
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MIP"], "vary": lambda k: {"ImagePositionPatient": place}},
    )
    sources, refused = found(mri, folder)
    assert [len(source.uris) for source in sources] == [5]
    assert [item.reason for item in refused] == ["one slice is no volume"]


def test_mosaics_and_maps_that_are_no_hounsfield_units_are_refused(tmp_path, slices, write_series, found):
    write_series(tmp_path / "m", slices, Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"], SeriesInstanceUID="1.5")
    assert "a mosaic" in found(mri, tmp_path / "m")[1][0].reason
    write_series(tmp_path / "z", slices, RescaleType="Z_EFF", SeriesInstanceUID="1.6")
    assert found(ct, tmp_path / "z")[1][0].reason == "values are Z_EFF (RescaleType), not Hounsfield units"


def test_copies_of_one_image_are_counted_and_a_second_image_is_a_fault(tmp_path, slices, write_series, found):
    paths = write_series(tmp_path / "s", slices)
    for path in paths:
        (path.parent / f"again {path.name}").write_bytes(path.read_bytes())
    sources, refused = found(ct, tmp_path)
    assert (len(sources), refused) == (1, [])
    assert "5 duplicate slices dropped" in ct.read(sources[0]).stages
    write_series(tmp_path / "t", slices + np.uint16(9), SeriesInstanceUID="1.7")
    write_series(tmp_path / "u", slices, SeriesInstanceUID="1.7", ImageComments="other")
    for path in (tmp_path / "u").iterdir():
        path.rename(tmp_path / "t" / f"u{path.name}")
    with pytest.raises(BadSource, match="cannot be told apart"):
        ct.read(found(ct, tmp_path / "t")[0][0])
