"""Real scans and photographs through the real domains: counts, units, orientation, and joins by the columns that their tables have."""

from __future__ import annotations

import pytest

from dinodomain.domain import find_domain
from dinodomain.ingest import join_labels
from dinodomain.ingest.pictures import picture_of
from dinodomain.store import open_store


def test_brain_scans_are_joined_by_subject_and_shown_from_below(tmp_path, run, real_data):
    pytest.importorskip("nibabel")
    source = real_data / "ixi_t1_2mm" / "dev"
    run(source, tmp_path / "store", find_domain("mri"), include=("IXI0*/*_T1w.nii.gz",))
    store = open_store(tmp_path / "store")
    assert 0 < len(store) <= 12
    picture = picture_of(store, 0)
    assert picture.sides == ("R", "L", "A", "P")
    # A head is longer than it is wide, and mirror-symmetric to within noise.
    middle = picture.pixels > 0.1
    assert middle.any(axis=1).sum() > middle.any(axis=0).sum()
    lines = (source / "subjects.csv").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(("subject_id", "IXI0"))]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    labels = join_labels(store, tmp_path / "labels.csv", "subject_id", "sex")
    assert len(labels.rows) == len(store)
    assert set(labels.values) <= {"M", "F"}


def test_photographs_are_joined_by_the_paths_of_their_table(tmp_path, run, real_data):
    pytest.importorskip("rasterio")
    source = real_data / "ucmerced_rgb128" / "dev"
    run(source, tmp_path / "store", find_domain("aerial"), include=("beach/*.jpg",))
    store = open_store(tmp_path / "store")
    table = (source / "labels.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([table[0], *(line for line in table if line.startswith("dev/beach/"))]) + "\n")
    labels = join_labels(store, tmp_path / "labels.csv", "file", "label")
    assert len(labels.rows) == len(store) > 20
    assert set(labels.values) == {"beach"}
