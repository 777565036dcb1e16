from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from dinodomain.errors import BadSource, UserError
from dinodomain.types import Select
from dinodomain_medical import ct, mri, xray
from dinodomain_medical.sources import glob_matches, looks_like_label, stem_of


@pytest.fixture
def archive(tmp_path, ct_volume, slices, write_nifti, write_series):
    for name in ("b/x_T1w.nii.gz", "b/x_seg.nii.gz", "b.nii", "a b/y.nii", "a/z.nii.gz", "labelsTr/case.nii.gz", "b/w_mask.nii"):
        write_nifti(tmp_path / name, ct_volume)
    write_series(tmp_path / "a" / "dicom", slices)
    write_series(tmp_path / "b", slices, SeriesInstanceUID="1.5")
    write_series(tmp_path, slices, SeriesInstanceUID="1.6")
    (tmp_path / "b" / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.nii").write_text("resource fork")
    return tmp_path


def test_ids_come_sorted_and_unique_whatever_the_folders(archive, found):
    sources, refused = found(ct, archive)
    ids = [source.source_id for source in sources]
    assert ids == sorted(ids)
    assert ids == [f"./{archive.name}", "a b/y.nii", "a/dicom", "a/z.nii.gz", "b", "b.nii", "b/x_T1w.nii.gz"]
    assert [item.uri.removeprefix(str(archive)) for item in refused] == ["/b/w_mask.nii", "/b/x_seg.nii.gz", "/labelsTr/case.nii.gz"]


def test_label_maps_are_refused_in_a_row_and_taken_only_when_named(archive, found):
    _, refused = found(ct, archive)
    assert all("looks like a label map" in item.reason for item in refused)
    broad, rows = found(ct, archive, include=("*.nii.gz",))
    assert [source.source_id for source in broad] == ["a/z.nii.gz", "b/x_T1w.nii.gz"]
    assert len(rows) == 2
    named, rows = found(ct, archive, include=("b/*_seg.nii.gz",))
    assert [source.source_id for source in named] == ["b/x_seg.nii.gz"]
    assert not rows
    _, rows = found(ct, archive, exclude=("*_seg.nii.gz", "labelsTr/*", "*_mask.nii"))
    assert not rows


def test_a_glob_may_name_paths_names_and_any_depth():
    assert glob_matches("a/b/c.nii", ["*.nii"])
    assert glob_matches("c.nii", ["**/*.nii"])
    assert glob_matches("a/b/c.nii", ["a/**/c.nii"])
    assert glob_matches("a/b/c.nii", ["c.*"])
    assert not glob_matches("a/b/C.nii", ["c.*"])
    assert looks_like_label("x_dlmuse_seg.nii.gz", Select())
    assert not looks_like_label("x_segment_T1w.nii.gz", Select())


def test_dicom_files_are_selected_one_by_one(tmp_path, slices, write_series, found):
    write_series(tmp_path / "s", slices)
    (source,), _ = found(ct, tmp_path, exclude=("s/IM004",))
    assert len(source.uris) == 4


def test_a_file_that_was_asked_for_but_is_not_readable_gets_a_row(archive, found, any_domain):
    sources, refused = found(any_domain, archive, include=("b/notes.txt",))
    assert not sources
    assert f"not a file that domain '{any_domain.name}' reads" in refused[0].reason


def test_an_empty_dcm_file_gets_a_row(tmp_path, found, any_domain):
    (tmp_path / "a.dcm").write_bytes(b"")
    if any_domain.name != "none":
        assert len(found(any_domain, tmp_path)[1]) == 1


def test_a_missing_source_is_a_user_error(tmp_path, any_domain):
    with pytest.raises(UserError, match="does not exist") as error:
        list(any_domain.discover(str(tmp_path / "nowhere"), Select()))
    assert not isinstance(error.value, BadSource)


def test_one_file_is_a_source_of_its_own(archive, found):
    (source,), _ = found(ct, archive / "a" / "z.nii.gz")
    assert source.source_id == "z.nii.gz"
    assert source.keys == {"path": "z.nii.gz", "name": "z.nii.gz", "stem": "z", "folder": "a"}
    assert source.unit is None


def test_digest_sees_changed_voxels_and_not_a_moved_root(tmp_path, ct_volume, write_nifti, found):
    first = found(ct, write_nifti(tmp_path / "a" / "s.nii.gz", ct_volume).parent)[0][0].digest
    assert found(ct, write_nifti(tmp_path / "b" / "s.nii.gz", ct_volume).parent)[0][0].digest == first
    changed = ct_volume.copy()
    changed[0, 0, 0] += 1
    assert found(ct, write_nifti(tmp_path / "c" / "s.nii.gz", changed).parent)[0][0].digest != first
    assert found(ct, write_nifti(tmp_path / "d" / "t.nii.gz", ct_volume).parent)[0][0].digest != first


def test_discovery_of_single_images_streams(tmp_path):
    """The first source is there before later folders are even listed."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name / "s.png")
    items = xray.discover(str(tmp_path), Select())
    assert next(items).source_id == "a/s.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "b" / "late.png")
    assert [item.source_id for item in items] == ["b/late.png", "b/s.png"]


def test_a_folder_linked_into_itself_is_walked_once(tmp_path, ct_volume, write_nifti, found):
    write_nifti(tmp_path / "a" / "s.nii", ct_volume)
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(found(mri, tmp_path)[0]) == 1


def test_pictures_are_no_volumes_and_volumes_no_pictures(tmp_path, ct_volume, write_nifti, found):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    write_nifti(tmp_path / "b.nii", ct_volume)
    assert [source.source_id for source in found(mri, tmp_path)[0]] == ["b.nii"]
    assert [source.source_id for source in found(xray, tmp_path)[0]] == ["a.png"]


def test_a_series_with_each_file_in_a_folder_of_its_own_is_one_source(tmp_path, slices, write_series, found, physical):
    for number, path in enumerate(write_series(tmp_path / "flat", slices)):
        (tmp_path / "study" / "series" / f"{number}").mkdir(parents=True)
        path.rename(tmp_path / "study" / "series" / f"{number}" / "file")
    (one,), refused = found(ct, tmp_path)
    assert (one.source_id, refused, len(one.uris)) == ("study/series", [], 5)
    assert one.keys["folder"] == "series"
    np.testing.assert_array_equal(physical(ct.read(one)).shape, (5, 6, 8))


def test_series_shuffled_over_folders_are_told_apart_by_their_uids(tmp_path, slices, write_series, found, physical):
    """As in the storage of a server, where folders are parts of hashes."""
    for uid in ("1.5", "1.6"):
        for number, path in enumerate(write_series(tmp_path / uid, slices + int(uid[-1]), SeriesInstanceUID=uid)):
            (tmp_path / "store" / f"{number % 3}").mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / "store" / f"{number % 3}" / f"{uid}-{number}")
    sources, refused = found(ct, tmp_path)
    assert ([one.source_id for one in sources], refused) == (["store#1.5", "store#1.6"], [])
    for one, uid in zip(sources, (5, 6), strict=True):
        assert physical(ct.read(one)).max() == slices.max() + uid - 1024


def test_a_flat_folder_of_many_series_gives_each_its_id(tmp_path, slices, write_series, found):
    for number in range(3):
        for path in write_series(tmp_path / f"s{number}", slices, SeriesInstanceUID=f"1.{number}", PatientID=f"P{number}"):
            path.rename(tmp_path / f"{number}{path.name}")
    sources, _ = found(ct, tmp_path)
    assert [one.source_id for one in sources] == [f"./{tmp_path.name}#1.{number}" for number in range(3)]
    assert [one.unit for one in sources] == ["P0", "P1", "P2"]


def test_parts_of_different_patients_are_never_joined(tmp_path, slices, write_series, found):
    """A careless anonymiser gives everybody the same SeriesInstanceUID."""
    write_series(tmp_path / "a", slices[:3], PatientID="A")
    write_series(tmp_path / "b", slices[3:], PatientID="B", origin=(-10.0, -20.0, 36.0))
    sources, refused = found(ct, tmp_path)
    assert ([(one.source_id, one.unit) for one in sources], refused) == ([("a", "A"), ("b", "B")], [])


def test_an_incomplete_copy_is_joined_and_its_slices_dropped_as_duplicates(tmp_path, slices, write_series, found):
    for path in write_series(tmp_path / "a", slices):
        if path.name in ("IM001", "IM002"):
            (tmp_path / "b").mkdir(exist_ok=True)
            (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    (one,), refused = found(ct, tmp_path)
    assert (one.source_id, refused) == (f"./{tmp_path.name}", [])
    assert ct.read(one).shape == (1, 5, 6, 8)


def test_a_file_with_a_name_that_is_no_text_and_one_that_may_not_be_read_get_rows(tmp_path, ct_volume, write_nifti, found):
    write_nifti(tmp_path / "good.nii", ct_volume)
    (tmp_path / os.fsdecode(b"\xff.nii")).write_bytes(b"x")
    sources, refused = found(mri, tmp_path)
    assert [one.source_id for one in sources] == ["good.nii"]
    assert [row.reason for row in refused] == ["a file name that is not UTF-8"]
    assert refused[0].uri.isascii()


@pytest.mark.parametrize("name", ["a.svs", "b.NDPI"])
def test_whole_slide_images_are_refused_by_name(tmp_path, found, any_domain, name):
    (tmp_path / name).write_bytes(b"II*\0")
    assert "whole-slide" in found(any_domain, tmp_path)[1][0].reason


def test_slide_microscopy_in_dicom_is_refused_as_such(tmp_path, slices, write_dicom, found, any_domain):
    write_dicom(tmp_path / "a", slices[0], Modality="SM")
    assert "whole-slide" in found(any_domain, tmp_path)[1][0].reason


@pytest.mark.parametrize("address", ["dimse://host:104/AET", "s3://bucket/scans", "https://host/dicom-web", "ftp://host/scan.nii"])
def test_addresses_that_are_not_read_say_what_is(any_domain, address):
    with pytest.raises(UserError, match="dicomweb") as error:
        list(any_domain.discover(address, Select()))
    assert not isinstance(error.value, BadSource)


def test_uids_as_file_names_keep_all_their_parts():
    assert stem_of("1.2.840.113619.2.55") == "1.2.840.113619.2.55"
    assert stem_of("a.b.dcm") == "a.b"


def test_headers_wait_on_disk_and_leave_nothing_behind(tmp_path, slices, write_series, found):
    write_series(tmp_path / "in" / "a", slices)
    (tmp_path / "scratch").mkdir()
    items = ct.discover(str(tmp_path / "in"), Select(scratch=str(tmp_path / "scratch")))
    next(items)
    items.close()
    assert list((tmp_path / "scratch").iterdir()) == []
