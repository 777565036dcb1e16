from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dinodomain.errors import BadSource, UserError
from dinodomain.types import Select
from dinodomain_medical import ct, mri, xray
from dinodomain_medical.sources import glob_matches, looks_like_label


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
