"""Bad input through the command line: one clear message and exit code 2, or a skipped row beside what could be read. Never a traceback."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dinodomain import cli
from dinodomain.checkpoint import save_backbone
from dinodomain.domain import installed_domains
from dinodomain.model import Backbone, ModelPlan
from dinodomain.store import open_store
from dinodomain.types import Normalisation

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
rasterio = pytest.importorskip("rasterio")
pytest.importorskip("pyproj")


def nifti(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), path)


def hounsfield(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 500, shape).astype(np.int16)


def slice_of_ct(path: Path, number: int, *, series: str = "1.2.3", seed: int = 0) -> None:
    """One axial slice of 12 bits, 2 mm apart from the next."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{seed}.{number}"
    tags = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "Modality": "CT", "PatientID": "P1",
        "StudyInstanceUID": "1.2", "SeriesInstanceUID": series, "Rows": 8, "Columns": 8, "SamplesPerPixel": 1, "BitsAllocated": 16,
        "PhotometricInterpretation": "MONOCHROME2", "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, "PixelSpacing": [1, 1],
        "RescaleSlope": 1, "RescaleIntercept": -1024, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 2 * number], "InstanceNumber": number + 1,
    }  # fmt: skip
    dataset = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in tags.items():
        setattr(dataset, name, value)
    pixels = np.random.default_rng([seed, number]).integers(0, 1500, (8, 8)).astype(np.uint16)
    dataset.add_new("PixelData", "OW", pixels.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def geotiff(path: Path, pixels: np.ndarray, *, crs: str | None = "EPSG:32632", east: float = 600000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": rasterio.Affine(10, 0, east, 0, -10, 5300040)}
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as dataset:
        dataset.write(pixels)
        dataset.descriptions = ("B02", "B03", "B04")
        dataset.units = ("reflectance",) * 3


def reflectance(fill: float = 0.2) -> np.ndarray:
    noise = np.random.default_rng(1).uniform(0, 0.1, (3, 40, 40)).astype(np.float32)
    return noise + np.float32(fill)


def truncated_dicom(folder: Path) -> None:
    slice_of_ct(folder / "cut" / "IM0.dcm", 0)
    slice_of_ct(folder / "cut" / "IM1.dcm", 1)
    whole = (folder / "cut" / "IM1.dcm").read_bytes()
    (folder / "cut" / "IM1.dcm").write_bytes(whole[:-100])


def text_as_nifti(folder: Path) -> None:
    (folder / "notes.nii.gz").write_text("these are my notes")


def four_dimensional(folder: Path) -> None:
    nifti(folder / "fmri.nii.gz", hounsfield(6, 6, 6, 5))


def two_series_in_one(folder: Path) -> None:
    for number in range(3):
        slice_of_ct(folder / "mixed" / f"A{number}.dcm", number, seed=1)
        slice_of_ct(folder / "mixed" / f"B{number}.dcm", number, seed=2)


def nan_nifti(folder: Path) -> None:
    pixels = hounsfield(6, 6, 6).astype(np.float32)
    pixels[2:4] = np.nan
    nifti(folder / "broken.nii.gz", pixels)


@dataclass(frozen=True)
class Bad:
    """A source that must be refused: who reads it, how it is made, the reason, and a good neighbour."""

    domain: str
    make: Callable[[Path], None]
    reason: str
    good: Callable[[Path], None]


def good_ct(folder: Path) -> None:
    nifti(folder / "good.nii.gz", hounsfield(8, 8, 8))


def good_scene(folder: Path) -> None:
    geotiff(folder / "good.tif", reflectance())


SOURCES = {
    "truncated DICOM": Bad("ct", truncated_dicom, "truncated", good_ct),
    "text named .nii.gz": Bad("ct", text_as_nifti, "not a readable NIfTI file", good_ct),
    "4-D NIfTI": Bad("ct", four_dimensional, "4-D with 5 frames", good_ct),
    "two DICOM series in one": Bad("ct", two_series_in_one, "two series that cannot be told apart", good_ct),
    "NaN in a NIfTI": Bad("ct", nan_nifti, "72 of 216 values are NaN or infinite", good_ct),
    "GeoTIFF without CRS": Bad(
        "sentinel2", lambda folder: geotiff(folder / "nowhere.tif", reflectance(), crs=None), "GeoTIFF without CRS", good_scene
    ),
    "GeoTIFF of NaN": Bad("sentinel2", lambda folder: geotiff(folder / "nan.tif", reflectance(np.nan)), "no valid pixel", good_scene),
}


def ingest(domain: str, source: Path, store: Path, *words: str) -> int:
    return cli.main(["ingest", f"domain={domain}", f"source={source}", f"store={store}", "ingest.workers=0", *words])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one message of a command that the user got wrong."""
    out, err = capsys.readouterr()
    assert code == 2, err
    assert "Traceback" not in out + err
    assert out == ""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("ingest: "))  # how far it got


@pytest.mark.parametrize("bad", SOURCES.values(), ids=SOURCES)
def test_a_bad_source_alone_exits_2_with_its_reason_and_a_remedy(bad, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    bad.make(tmp_path / "in")
    err = refused(capsys, ingest(bad.domain, tmp_path / "in", tmp_path / "store"))
    assert "none of the 1 sources" in err
    assert bad.reason in err
    assert len(err.strip().splitlines()) == 2
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("bad", SOURCES.values(), ids=SOURCES)
def test_a_bad_source_beside_a_good_one_becomes_a_skipped_row(bad, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    bad.make(tmp_path / "in")
    bad.good(tmp_path / "in")
    code = ingest(bad.domain, tmp_path / "in", tmp_path / "store", "--json")
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "Traceback" not in err
    assert (json.loads(out)["added"], len(json.loads(out)["skipped"])) == (1, 1)
    (row,) = open_store(tmp_path / "store").manifest["skipped"]
    assert bad.reason in row["reason"]
    assert row["remedy"]


@pytest.mark.parametrize("bad", SOURCES.values(), ids=SOURCES)
def test_strict_stops_at_the_bad_source(bad, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    bad.make(tmp_path / "in")
    bad.good(tmp_path / "in")
    assert bad.reason in refused(capsys, ingest(bad.domain, tmp_path / "in", tmp_path / "store", "ingest.strict=true"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("domain", installed_domains())
def test_an_empty_folder_is_said_to_hold_nothing(domain, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    err = refused(capsys, ingest(domain, tmp_path / "in", tmp_path / "store"))
    assert err.startswith(f"source: {str(tmp_path / 'in')!r} holds nothing that domain {domain!r} reads")
    err = refused(capsys, ingest(domain, tmp_path / "nowhere", tmp_path / "store"))
    assert "does not exist" in err


def test_an_unknown_domain_is_refused_with_the_known_ones(tmp_path, capsys):
    err = refused(capsys, ingest("sentinel", tmp_path, tmp_path / "store"))
    assert "domain: unknown domain 'sentinel'" in err
    assert "sentinel2" in err
    assert len(err.strip().splitlines()) == 1


def test_a_misspelt_key_is_refused_before_anything_is_read(tmp_path, capsys):
    err = refused(capsys, ingest("ct", tmp_path / "nowhere", tmp_path / "store", "ingest.max_sied=512"))
    assert err.strip() == "ingest.max_sied: unknown key; did you mean 'ingest.max_side'?"


def below_a_file(tmp_path: Path) -> Path:
    """A place where no folder can be made, by any user."""
    (tmp_path / "file").write_text("mine")
    return tmp_path / "file" / "below"


def test_a_store_that_cannot_be_written_exits_2(tmp_path, capsys):
    good_ct(tmp_path / "in")
    err = refused(capsys, ingest("ct", tmp_path / "in", below_a_file(tmp_path)))
    assert err.startswith("store: ")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_refuses_the_last_move_exits_2_and_names_it(number, tmp_path, capsys, monkeypatch):
    good_ct(tmp_path / "in")

    def refuse(*places, **options):
        raise OSError(number, os.strerror(number), str(places[-1]))

    monkeypatch.setattr("os.replace", refuse)
    err = refused(capsys, ingest("ct", tmp_path / "in", tmp_path / "store"))
    assert os.strerror(number) in err
    assert len(err.strip().splitlines()) == 1
    monkeypatch.undo()
    assert ingest("ct", tmp_path / "in", tmp_path / "store") == 0, "what was staged is taken up again"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Sixteen scenes as a store, their labels, and an untrained backbone for them."""
    root = tmp_path_factory.mktemp("files")
    rows = ["id,label,site"]
    for number in range(16):
        geotiff(root / "in" / f"s{number}" / f"scene{number}.tif", reflectance(0.1 + 0.3 * (number % 2)), east=500000 + 3000 * number)
        rows.append(f"scene{number},{'ab'[number % 2]},{'xy'[number // 8]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    assert ingest("sentinel2", root / "in", root / "store", "ingest.cell=1000") == 0
    channels = open_store(root / "store").channels
    numbers = {name: (value,) * 3 for name, value in {"low": 0.0, "high": 1.0, "mean": 0.5, "std": 0.25}.items()}
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=8, registers=1)
    normalisation = Normalisation(mode="domain", channels=channels, **numbers)
    backbone = Backbone.create(plan, ndim=2, image_size=16, normalisation=normalisation, domain="sentinel2")
    save_backbone(root / "backbone.safetensors", backbone)
    return {"store": root / "store", "labels": root / "labels.csv", "checkpoint": root / "backbone.safetensors"}


SMALL = ("recipe=tiny", "engine.steps=1", "engine.device=cpu", "engine.trackers=[]", "loader.batch=4", "loader.workers=0",
         "model.dim=16", "model.depth=1", "model.heads=2", "views.global_size=16", "views.local_size=8")  # fmt: skip
WRITING = {
    "pretrain": ("domain=sentinel2", "store={store}", *SMALL),
    "views": ("store={store}",),
    "inspect": ("store={store}",),
    "probe": ("checkpoint={checkpoint}", "store={store}", "labels={labels}", "target=label", "probe.bootstraps=100", "probe.folds=2"),
    "finetune": ("checkpoint={checkpoint}", "store={store}", "labels={labels}", "target=label", "finetune.steps=1"),
    "audit": (
        "checkpoint={checkpoint}",
        "store={store}",
        "audit.permutations=99",
        "audit.bootstraps=100",
        "audit.copies=0",
        "audit.checks=[provenance]",
    ),
    "embed": ("checkpoint={checkpoint}", "store={store}"),
    "export": ("checkpoint={checkpoint}", "format=safetensors", "waive_audit='a test; the suite'"),
}


def words_for(verb: str, files: dict[str, Path], out: Path) -> list[str]:
    return [verb, *(word.format(**files) for word in WRITING[verb]), f"out={out}"]


@pytest.mark.parametrize("verb", WRITING)
def test_an_output_below_a_regular_file_is_named_in_every_verb(verb, files, tmp_path, capsys):
    err = refused(capsys, cli.main(words_for(verb, files, below_a_file(tmp_path))))
    assert str(tmp_path / "file") in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("verb", WRITING)
def test_a_full_disk_exits_2_in_every_verb(verb, files, tmp_path, capsys, monkeypatch):
    def refuse(*places, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(places[-1]))

    monkeypatch.setattr("os.replace", refuse)
    err = refused(capsys, cli.main(words_for(verb, files, tmp_path / "out")))
    assert os.strerror(errno.ENOSPC) in err


MISSING = {
    "pretrain": ("domain=ct", "store={no}", "out={new}"),
    "views": ("store={no}", "out={new}"),
    "inspect": ("store={no}",),
    "probe": ("checkpoint={no}", "store={store}", "labels={no}.csv", "target=label"),
    "finetune": ("checkpoint={no}", "store={store}", "labels={no}.csv", "target=label", "out={new}"),
    "audit": ("checkpoint={no}", "store={store}", "out={new}"),
    "embed": ("checkpoint={no}", "store={store}", "out={new}"),
    "export": ("checkpoint={no}", "out={new}"),
    "doctor": ("run={no}",),
}


@pytest.mark.parametrize("verb", MISSING)
def test_an_input_that_is_not_there_is_named_in_every_verb(verb, files, tmp_path, capsys):
    words = [word.format(store=files["store"], no=tmp_path / "no", new=tmp_path / "new") for word in MISSING[verb]]
    err = refused(capsys, cli.main([verb, *words]))
    assert str(tmp_path / "no") in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", MISSING)
def test_a_file_in_place_of_a_folder_is_named_in_every_verb(verb, files, tmp_path, capsys):
    (tmp_path / "no").write_text("not what it should be")
    words = [word.format(store=files["store"], no=tmp_path / "no", new=tmp_path / "new") for word in MISSING[verb]]
    assert str(tmp_path / "no") in refused(capsys, cli.main([verb, *words]))
