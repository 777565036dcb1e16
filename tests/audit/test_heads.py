"""Profiles of heads: a face that stands, one that was removed, what is no head; on made-up volumes and on real brain scans."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dinodomain.audit.trail.heads import look, made_up, read_heads
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.store import open_store


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (1.5, 1.0, 1.0), (6.0, 1.5, 1.5)])
def test_a_face_is_told_at_any_spacing(spacing):
    for face, state in ((True, "stands"), (False, "removed")):
        volume = ndimage.zoom(made_up(face=face), [3.0 / side for side in spacing], order=1)
        assert look(volume, spacing).state == state


def test_air_below_tissue_may_have_any_value():
    hounsfield = 10.0 * made_up(face=True) - 1000.0
    assert look(hounsfield, (3.0, 3.0, 3.0)).state == "stands"


@pytest.mark.parametrize("padding", [-1024.0, -2048.0, -3024.0, np.nan])
def test_padding_around_the_field_of_a_scanner_counts_as_air(padding):
    for face, state in ((True, "stands"), (False, "removed")):
        volume = 10.0 * made_up(face=face) - 1000.0 + np.random.default_rng(0).normal(0, 15, (80, 80, 60)).astype(np.float32)
        _, y, x = np.indices(volume.shape)
        volume[(y - 40) ** 2 + (x - 30) ** 2 > 38**2] = padding
        assert look(volume, (3.0, 3.0, 3.0)).state == state


def test_thin_and_empty_volumes_are_no_heads():
    assert look(np.ones((2, 50, 50), np.float32), (1.0, 1.0, 1.0)).state == "no head"
    assert look(np.full((20, 20, 20), np.nan, np.float32), (3.0, 3.0, 3.0)).state == "no head"


def test_a_head_that_is_cut_off_decides_nothing():
    volume = made_up(face=True)
    assert look(volume[45:], (3.0, 3.0, 3.0)).state == "undecided"  # nose and mouth lie outside
    assert look(volume[:60], (3.0, 3.0, 3.0)).state == "no head"  # the top lies outside


def test_a_board_behind_a_head_hides_nothing():
    volume = made_up(face=True)
    wide = np.pad(volume, ((0, 0), (0, 0), (10, 10)), constant_values=float(volume.min()))
    back = int(np.flatnonzero((wide > wide.mean()).any(axis=(0, 2)))[0])
    wide[:, back : back + 2, 3:77] = volume.max()  # 222 mm
    assert look(wide, (3.0, 3.0, 3.0)).state == "undecided"


def test_other_things_are_no_heads():
    assert look(np.zeros((40, 40, 40), np.float32), (3.0, 3.0, 3.0)).state == "no head"
    chest = np.full((60, 80, 120), -1000.0, np.float32)
    chest[:, 10:70, 5:115] = 40.0
    assert look(chest, (3.0, 3.0, 3.0)).state == "no head"
    globe = ((np.indices((110, 110, 110)) - 55) ** 2).sum(axis=0) < 50**2  # 300 mm wide
    assert look(globe.astype(np.float32), (3.0, 3.0, 3.0)).state == "no head"


def test_real_heads_show_their_faces_and_their_brains_alone_do_not(real_data, tmp_path):
    folder = real_data / "ixi_t1_2mm" / "dev"
    if not folder.is_dir():
        pytest.skip("no IXI here")
    plan = IngestPlan(domain="mri", source=str(folder), store=str(tmp_path / "store"), workers=0, include=("IXI0*/*_T1w.nii.gz",))
    ingest(plan, progress=lambda done, total: None)
    store = open_store(tmp_path / "store")
    found = read_heads(store, np.arange(len(store)))
    assert {head.state for head in found.values()} == {"stands"}
    for labels in sorted(folder.glob("*/*dlmuse_seg.nii.gz"))[:3]:
        scan, brain = (_canonical(path) for path in (labels.with_name(labels.name.replace("dlmuse_seg", "T1w")), labels))
        alone = scan * ndimage.binary_dilation(ndimage.binary_fill_holes(brain > 0), iterations=2)
        assert look(alone, (2.0, 2.0, 2.0)).state == "removed"


def _canonical(path):
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, np.float32).transpose(2, 1, 0)
