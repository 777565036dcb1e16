"""Discovery: sorted, picklable references; refusals as rows; labels kept out."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dinodomain.errors import BadSource, LeftOut, UserError
from dinodomain.types import SourceRef
from dinodomain_remote_sensing import aerial, hyperspectral, landsat, sentinel1, sentinel2

B2 = {"descriptions": ("B02",)}


def test_references_are_sorted_by_id_and_carry_keys(lab):
    for name in ("b/x_2020-02-02.tif", "a-b/y.tif", "a/z.tif"):
        lab.write(name, lab.counts(2, 2), per_band=B2)
    refs = lab.found(sentinel2)
    assert [ref.source_id for ref in refs] == ["a-b/y.tif", "a/z.tif", "b/x_2020-02-02.tif"]
    assert refs[2].keys == {"path": "b/x_2020-02-02.tif", "name": "x_2020-02-02.tif", "stem": "x_2020-02-02", "folder": "b"}
    assert refs[2].unit is None


def test_a_folder_may_hold_several_scenes(lab):
    for scene in ("S2A_20200113", "S2B_20200118"):
        for band in ("B02", "B8A"):
            lab.write(f"place/{scene}_{band}.tif", lab.counts(2, 2))
    refs = lab.found(sentinel2)
    assert [ref.source_id for ref in refs] == ["place#S2A_20200113", "place#S2B_20200118"]
    assert refs[0].keys["name"] == "S2A_20200113"
    assert [sentinel2.read(ref).acquired for ref in refs] == ["2020-01-13", "2020-01-18"]
    assert [len(ref.uris) for ref in refs] == [2, 2]


def test_a_scene_folder_may_be_the_source_itself(lab):
    lab.write("scene/B02.tif", lab.counts(2, 2))
    lab.write("scene/B03.tif", lab.counts(2, 2))
    (ref,) = lab.found(sentinel2, lab.folder / "scene")
    assert ref.source_id == "scene"


def test_references_and_domains_cross_processes_and_a_changed_file_changes_the_digest(lab):
    path = lab.write("a.tif", lab.counts(2, 2), per_band=B2)
    (ref,) = lab.found(sentinel2)
    assert pickle.loads(pickle.dumps(ref)) == ref
    assert pickle.loads(pickle.dumps(sentinel2)).read(ref).channels == ("B02",)
    (again,) = lab.found(sentinel2)
    assert again.digest == ref.digest
    lab.write("a.tif", lab.counts(2, 2, first=5), per_band=B2)
    (changed,) = lab.found(sentinel2, path)
    assert changed.digest != ref.digest


def test_globs_choose_files_and_folders(lab):
    for name in ("a/x.tif", "b/x.tif", "b/y.tif"):
        lab.write(name, lab.counts(2, 2), per_band=B2)
    assert [ref.source_id for ref in lab.found(sentinel2, include=("b",))] == ["b/x.tif", "b/y.tif"]
    assert [ref.source_id for ref in lab.found(sentinel2, include=("**/x.tif",), exclude=("a/*",))] == ["b/x.tif"]


@pytest.mark.parametrize("name", ["change_mask.tif", "Spain_LabelHand.tif", "x_water.tif", "labels/x.tif"])
def test_label_rasters_are_refused_rows_unless_named(lab, name):
    lab.write(name, lab.counts(2, 2), per_band=B2)
    (row,) = lab.found(sentinel2, include=("*.tif",))
    assert isinstance(row, BadSource)
    assert "looks like a label raster; labels never enter a store" in str(row)
    (ref,) = lab.found(sentinel2, include=(name,))
    assert isinstance(ref, SourceRef)


def test_one_bad_file_does_not_stop_the_others(lab):
    lab.write("a.tif", lab.counts(4, 2, 2))
    lab.write("b.tif", lab.counts(2, 2), per_band=B2)
    bad, good = lab.found(sentinel2)
    assert isinstance(bad, BadSource)
    assert isinstance(good, SourceRef)


def test_other_files_are_passed_over(lab):
    lab.write("a.tif", lab.counts(2, 2), per_band=B2)
    for name in ("a.json", "points.gpkg", "notes.txt", ".hidden.tif"):
        (lab.folder / name).write_text("{}")
    assert len(lab.found(sentinel2)) == 1


@pytest.mark.parametrize("domain", [sentinel2, sentinel1, landsat, aerial, hyperspectral], ids=lambda domain: domain.name)
def test_a_source_that_does_not_exist_is_the_users_error(domain, tmp_path: Path, lab):
    with pytest.raises(UserError, match="does not exist"):
        lab.found(domain, tmp_path / "nowhere")


def test_importing_the_package_loads_neither_torch_nor_rasterio():
    code = "import sys, dinodomain_remote_sensing; assert not {'torch', 'rasterio', 'pyproj', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_channel_is_known_and_its_range_sensible():
    for domain in (sentinel2, sentinel1, landsat, aerial):
        for channel in domain.channels.values():
            assert channel.low < channel.high
            assert 0 <= channel.mean <= 1
            assert 0 < channel.std <= 0.5
            assert channel.wavelength_nm


def test_nadir_optics_have_eight_symmetries_and_radar_none():
    for domain in (sentinel2, landsat, aerial, hyperspectral):
        policy = domain.view_policy()
        assert policy.axes == ("NS", "EW")
        assert set(policy.flip) == {"NS", "EW"}
        assert policy.quarter_turns
        # Broad bands of a sensor vary apart, always by gain; exposure changes all colours, and optics a whole spectrum together.
        apart = policy.gain is not None or policy.jitter.per_channel
        assert apart == (domain in (sentinel2, landsat))
    assert not sentinel1.view_policy().flip
    assert not sentinel1.view_policy().quarter_turns


@pytest.mark.parametrize("domain", [sentinel2, sentinel1, landsat, aerial, hyperspectral], ids=lambda domain: domain.name)
def test_a_filter_knows_the_fields_of_its_sensor_and_no_others(domain, lab):
    lab.folder.mkdir()
    for name in (*domain.sensor.facts, "acquired", "bands", "gsd", "crs", "lon", "quantity"):
        assert lab.found(domain, where=f"{name} is None") == []
    with pytest.raises(UserError, match=r"ingest\.select.*did you mean 'num_bands'"):
        lab.found(domain, where="numbands > 3")


def test_a_scene_is_left_out_by_what_it_is(lab):
    lab.write("a.tif", lab.counts(13, 4, 4))
    lab.write("b.tif", lab.counts(2, 2), per_band=B2)
    rows = lab.found(sentinel2, where="num_bands >= 12 and gsd <= 10 and crs == 'EPSG:32632'")
    assert [getattr(row, "source_id", None) for row in rows] == ["a.tif", None]
    assert isinstance(rows[1], LeftOut)
    assert str(rows[1]).startswith(f"{lab.folder / 'b.tif'}: left out by ingest.select=num_bands")
