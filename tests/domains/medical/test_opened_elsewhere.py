"""Real scans, ingested and then opened as plain Zarr: an OME-Zarr validator takes them, and voxels and place are those nibabel reads."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr

from dinodomain.domain import find_domain
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.store import open_store

models = pytest.importorskip("ome_zarr_models")


def ingested(source: Path, store: Path, domain: str, **plan):
    settings = {"workers": 0, **plan}
    ingest(
        IngestPlan(domain=domain, source=str(source), store=str(store), **settings),
        domain=find_domain(domain),
        progress=lambda done, total: None,
    )
    return open_store(store)


def as_nifti(store, row: int = 0) -> nib.Nifti1Image:
    """A volume in physical values with its affine, from the Zarr group alone."""
    group = zarr.open_group(str(store.path / store.row(row)["array"].rpartition("/")[0]), mode="r")
    own = group.attrs["dinodomain"]
    values = group["0"][:].T * own["scale"][0] + own["offset"][0]
    return nib.Nifti1Image(values, np.reshape(own["affine"], (4, 4)))


def assert_valid_ome(store, row: int = 0) -> None:
    """The validator takes the group, and its scale and translation are those of the affine."""
    facts = store.row(row)
    image = models.open_ome_zarr(zarr.open_group(str(store.path / facts["array"].rpartition("/")[0]), mode="r"), version="0.5")
    (scale,) = image.attributes.ome.multiscales
    moves = {move.type: getattr(move, move.type) for move in scale.datasets[0].coordinateTransformations}
    affine = np.reshape(facts["affine"], (4, 4))
    np.testing.assert_allclose(moves["scale"][::-1], nib.affines.voxel_sizes(affine), rtol=1e-6)
    np.testing.assert_array_equal(moves["translation"][::-1], affine[:3, 3])
    assert [(axis.name, axis.unit) for axis in scale.axes] == [(name, "millimeter") for name in "zyx"]


CASES = {
    "ct": ("ct", "medical_ingest/dev/ct_nifti/ts_example_ct.nii.gz"),
    "ct turned": ("ct", "medical_ingest/dev/ct_nifti/ts_pulmonary_crop.nii.gz"),
    "mr, PSR": ("mri", "ixi_t1_2mm/dev/IXI013-HH-1212/IXI013-HH-1212_T1w.nii.gz"),
    "mr oblique": ("mri", "medical_ingest/dev/mr_spine/t2.nii.gz"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_real_volume_is_the_image_that_nibabel_loads(real_data, tmp_path, case):
    domain, name = CASES[case]
    path = real_data / name
    store = ingested(path.parent, tmp_path / "s", domain, include=(path.name,))
    assert_valid_ome(store)
    ours, source = as_nifti(store), nib.as_closest_canonical(nib.load(path))
    np.testing.assert_allclose(ours.affine, source.affine, atol=1e-4)
    np.testing.assert_allclose(ours.get_fdata(), source.get_fdata(), rtol=1e-6, atol=1e-6)
    assert nib.aff2axcodes(ours.affine) == ("R", "A", "S")


def test_a_dicom_series_lies_where_its_segmentation_lies(real_data, tmp_path):
    folder = real_data / "medical_ingest" / "dev" / "ct_dicom_j2k"
    store = ingested(folder, tmp_path / "s", "ct")
    assert_valid_ome(store)
    segmentation = nib.as_closest_canonical(nib.load(folder.parent / "ct_dicom_j2k_seg.nii.gz"))
    ours = as_nifti(store)
    np.testing.assert_allclose(ours.affine, segmentation.affine, atol=1e-3)
    assert ours.shape == segmentation.shape
    inside = ours.get_fdata()[np.asarray(segmentation.dataobj) > 0]
    assert -100 < np.median(inside) < 200  # Hounsfield units of organs


def test_nothing_that_other_readers_are_given_names_a_person(real_data, tmp_path):
    source = real_data / "ixi_t1_2mm" / "dev"
    store = ingested(source, tmp_path / "s", "mri", include=("IXI0*/*_T1w.nii.gz",))
    names = [folder.name for folder in source.iterdir() if folder.is_dir()]
    for path in (store.path / "volumes").rglob("zarr.json"):
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if name in text or name.partition("-")[0] in text]
        assert str(real_data) not in text
