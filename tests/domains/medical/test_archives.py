from __future__ import annotations

import errno
import gzip
import io
import json
import multiprocessing
import shutil
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.store import open_store
from dinodomain.types import Select
from dinodomain_medical import archives, ct, mri, xray


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def study(tmp_path, slices, write_series, ct_volume, write_nifti):
    """A folder with a DICOM series, a NIfTI file and a picture."""
    folder = tmp_path / "study"
    write_series(folder / "se1", slices)
    write_nifti(folder / "x.nii.gz", ct_volume)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "p.png")
    return folder


def packed(folder, path, how="zip"):
    path.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if how == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder).as_posix())
    else:
        with tarfile.open(path, f"w:{how}") as archive:
            archive.add(folder, "./")
    return path


def tar_of(path, *members, content=b"x" * 700):
    with tarfile.open(path, "w") as archive:
        for member in members:
            if member.isreg():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(("name", "how"), [("a.zip", "zip"), ("a.tar", ""), ("a.tgz", "gz"), ("a.tar.xz", "xz"), ("a.bin", "bz2")])
def test_members_are_sources_below_the_name_of_their_archive(source, scratch, study, found, physical, name, how):
    packed(study, source / "deep" / name, how)
    sources, refused = found(ct, source, scratch=str(scratch))
    assert [one.source_id for one in sources] == [f"deep/{name}/se1", f"deep/{name}/x.nii.gz"]
    assert not refused
    series, file = sources
    assert file.keys == {"path": f"deep/{name}/x.nii.gz", "name": "x.nii.gz", "stem": "x", "folder": name}
    assert series.keys["path"] == f"deep/{name}/se1"
    assert all(uri.startswith(str(source / "deep" / name)) for one in sources for uri in one.uris)
    plain, _ = found(ct, study)
    for inside, outside in zip(sources, plain, strict=True):
        np.testing.assert_array_equal(physical(ct.read(inside)), physical(ct.read(outside)))


def test_an_archive_may_be_the_source_itself(source, scratch, study, found):
    path = packed(study, source / "a.zip")
    sources, _ = found(ct, path, scratch=str(scratch))
    assert [one.source_id for one in sources] == ["a.zip/se1", "a.zip/x.nii.gz"]
    (picture,), _ = found(xray, path, include=("*.png",), scratch=str(scratch))
    assert picture.source_id == "a.zip/p.png"
    assert xray.read(picture).shape == (1, 4, 4)


def test_globs_hold_inside_archives(source, scratch, study, found):
    packed(study, source / "a.zip")
    assert [one.source_id for one in found(mri, source, include=("*.nii.gz",), scratch=str(scratch))[0]] == ["a.zip/x.nii.gz"]
    assert [one.source_id for one in found(mri, source, exclude=("a.zip/x*", "*/se1/*"), scratch=str(scratch))[0]] == []
    assert found(mri, source, exclude=("*.zip",), scratch=str(scratch)) == ([], [])


def test_a_series_spread_over_archives_is_one_source(source, scratch, tmp_path, slices, write_series, found):
    paths = write_series(tmp_path / "series", slices)
    for number, path in enumerate(paths):
        with zipfile.ZipFile(source / f"{number}.zip", "w") as archive:
            archive.write(path, "IM")
    (one,), refused = found(ct, source, scratch=str(scratch))
    assert (one.source_id, refused) == ("./source", [])
    assert sorted(one.uris) == [str(source / f"{number}.zip" / "IM") for number in range(5)]
    assert ct.read(one).shape == (1, 5, 6, 8)


def test_a_worker_that_lacks_the_files_unpacks_them_again(source, scratch, study, found):
    packed(study, source / "a.zip")
    sources, _ = found(ct, source, scratch=str(scratch))
    shutil.rmtree(scratch / "archives")
    assert [ct.read(one).shape for one in sources] == [(1, 5, 6, 8), (1, 5, 6, 7)]


def test_refusals_while_reading_name_the_archive(source, scratch, study, found):
    path = packed(study, source / "a.zip")
    one, _ = found(ct, source, scratch=str(scratch))[0]
    damaged = scratch / "archives" / archives.digest_of_archive(path) / "files" / "se1" / "IM002"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    with pytest.raises(BadSource) as error:
        ct.read(one)
    assert error.value.uri == str(source / "a.zip" / "se1" / "IM002")
    assert str(scratch) not in str(error.value)


def test_a_half_unpacked_archive_is_never_taken_for_whole(source, scratch, study, found):
    path = packed(study, source / "a.zip")
    whole = found(ct, source, scratch=str(scratch))[0]
    folder = scratch / "archives" / archives.digest_of_archive(path)
    (folder / "complete").unlink()
    (folder / "files" / "se1" / "IM000").write_bytes(b"half")
    (folder / "files" / "left over.nii").write_bytes(b"of an older run")
    assert found(ct, source, scratch=str(scratch))[0] == whole
    assert json.loads((folder / "complete").read_text()) == []


def test_what_is_complete_is_used_again(source, scratch, study, found):
    path = packed(study, source / "a.zip")
    first = found(ct, source, scratch=str(scratch))[0]
    file = scratch / "archives" / archives.digest_of_archive(path) / "files" / "x.nii.gz"
    before = file.stat().st_mtime_ns, file.stat().st_ino
    assert found(ct, source, scratch=str(scratch))[0] == first
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before


def test_without_scratch_an_archive_gets_a_row_with_the_remedy(source, study, found):
    packed(study, source / "a.zip")
    sources, (row,) = found(ct, source)
    assert not sources
    assert row.reason == "an archive, and there is no folder to unpack it into"
    assert row.uri == str(source / "a.zip")


@pytest.mark.parametrize(
    "bad",
    [
        member("../out"),
        member("/abs"),
        member("a/../../out"),
        member("C:\\x"),
        member("dev", tarfile.CHRTYPE),
        member("p", tarfile.FIFOTYPE),
    ],
    ids=lambda info: info.name,
)
def test_an_unsafe_tar_is_refused_as_a_whole_and_writes_nothing_outside(source, scratch, found, bad):
    tar_of(source / "a.tar", member("good.nii"), bad)
    sources, (row,) = found(ct, source, scratch=str(scratch))
    assert not sources
    assert row.reason.startswith("an unsafe archive")
    assert {path.name for path in scratch.rglob("*") if path.is_file()} <= {f"{archives.digest_of_archive(source / 'a.tar')}.lock"}
    assert not (scratch.parent / "out").exists()


@pytest.mark.parametrize("name", ["../out.nii", "/out.nii", "..\\out.nii"])
def test_an_unsafe_zip_is_refused_as_a_whole(source, scratch, found, name):
    with zipfile.ZipFile(source / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    assert found(ct, source, scratch=str(scratch))[1][0].reason.startswith("an unsafe archive")


def test_links_are_rows_and_are_not_followed(source, scratch, found, study):
    path = source / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(study, "./")
        archive.addfile(member("link.nii", tarfile.SYMTYPE, "/etc/passwd"))
        archive.addfile(member("hard.nii", tarfile.LNKTYPE, "x.nii.gz"))
    for _ in range(2):  # the second time from what was kept
        sources, refused = found(ct, source, scratch=str(scratch))
        assert len(sources) == 2
        assert [row.uri for row in refused] == [str(path / "hard.nii"), str(path / "link.nii")]


def test_an_archive_that_unpacks_to_too_much_is_refused(source, scratch, found, monkeypatch):
    monkeypatch.setattr(archives, "SMALL_BYTES", 1 << 20)
    with zipfile.ZipFile(source / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", bytes(8 << 20))
    with tarfile.open(source / "b.tar.xz", "w:xz") as archive:
        info = tarfile.TarInfo("b.nii")
        info.size = 8 << 20
        archive.addfile(info, io.BytesIO(bytes(8 << 20)))
    _, refused = found(ct, source, scratch=str(scratch))
    assert [row.reason for row in refused] == ["unpacks to more than 250 times its size, as archives do that are made to fill a disk"] * 2
    monkeypatch.setattr(archives, "MAX_FILES", 1)
    packed_twice = tar_of(source / "c.tar", member("a"), member("b"))
    assert found(ct, packed_twice, scratch=str(scratch))[1][0].reason == "holds more than 1 files"


def test_a_disk_that_is_too_small_is_no_fault_of_the_archive(source, scratch, study, found, monkeypatch, tmp_path):
    path = packed(study, source / "a.zip")
    with monkeypatch.context() as small:
        small.setattr(archives.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        with pytest.raises(OSError, match=r"a.zip needs .* GB to be unpacked") as error:
            found(ct, source, scratch=str(scratch))
        assert error.value.errno == errno.ENOSPC
        with pytest.raises(UserError, match="free space and run again"):
            ingest(IngestPlan(domain="ct", source=str(path), store=str(tmp_path / "store"), workers=0))
    with monkeypatch.context() as full:
        full.setattr(archives._Target, "take", lambda *_: _raise(OSError(errno.ENOSPC, "no space")))
        with pytest.raises(OSError, match="no space"):
            found(ct, source, scratch=str(scratch))
    assert len(found(ct, source, scratch=str(scratch))[0]) == 2


def _raise(error):
    raise error


@pytest.mark.parametrize(("how", "cut"), [("", 0), ("gz", 30), ("xz", 30), ("bz2", 30), ("zip", 30)])
def test_a_truncated_archive_is_refused_as_a_whole(source, scratch, study, found, how, cut):
    path = packed(study, source / ("a.zip" if how == "zip" else f"a.tar.{how}".rstrip(".")), how)
    content = path.read_bytes()
    if how == "":  # just behind the last file, where only the empty blocks at the end are lost
        with tarfile.open(path) as archive:
            last = archive.getmembers()[-1]
        cut = len(content) - last.offset_data - -(-last.size // 512) * 512
    path.write_bytes(content[:-cut])
    sources, refused = found(ct, source, scratch=str(scratch))
    assert not sources
    assert "damaged archive" in refused[0].reason


def test_a_flipped_byte_in_a_zip_is_found(source, scratch, study, found):
    path = source / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(study / "x.nii.gz", "x.nii.gz")
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
    assert "damaged archive" in found(ct, source, scratch=str(scratch))[1][0].reason


def test_an_encrypted_zip_is_refused(source, scratch, found):
    path = source / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.nii", b"secret")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert found(ct, source, scratch=str(scratch))[1][0].reason == "an encrypted archive"


def test_archives_in_archives_and_other_kinds_get_rows(source, scratch, study, found, tmp_path):
    inner = packed(study, tmp_path / "inner" / "b.tgz", "gz")
    packed(inner.parent, source / "a.zip")
    (source / "c.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(600))
    (source / "d.gz").write_bytes(gzip.compress((study / "se1" / "IM000").read_bytes()))
    _, refused = found(ct, source, scratch=str(scratch))
    assert [row.reason for row in refused] == [
        "an archive inside an archive",
        "a 7z archive, which is not read",
        "a DICOM file compressed with gzip, which is not read",
    ]


def test_two_files_of_one_name_are_refused(source, scratch, found):
    tar_of(source / "a.tar", member("x.nii"), member("./x.nii"))
    tar_of(source / "b.tar", member("x"), member("x/y.nii"))
    reasons = [row.reason for row in found(ct, source, scratch=str(scratch))[1]]
    assert reasons == ["two files of one name in it", "a file and a folder of one name in it"]


def test_documents_and_compressed_single_files_are_no_archives(tmp_path, ct_volume, write_nifti):
    np.savez(tmp_path / "a.npz", ct_volume)
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", b"")
    write_nifti(tmp_path / "c.nii.gz", ct_volume)
    (tmp_path / "d").write_bytes(b"")
    (tmp_path / "e.gz").write_bytes(b"\x1f\x8b damaged")
    assert [archives.kind_of(path) for path in sorted(tmp_path.iterdir())] == [None] * 5


def test_nothing_is_unpacked_by_discovery_of_what_is_excluded(source, scratch, study):
    packed(study, source / "a.zip")
    assert not list(ct.discover(str(source), Select(exclude=("a.zip",), scratch=str(scratch))))
    assert not (scratch / "archives").exists()


def test_an_ingest_of_archives_stores_what_one_of_folders_does_and_leaves_nothing_unpacked(source, study, tmp_path):
    packed(study, source / "a.tar.xz", "xz")
    place = {"domain": "ct", "select": "all", "workers": 0}
    dry = ingest(IngestPlan(source=str(source), store=str(tmp_path / "dry"), dry_run=True, **place))
    assert (dry.added, len(dry.skipped)) == (2, 0)
    assert not (tmp_path / "dry").exists()
    for name, folder in (("packed", source), ("plain", study)):
        assert ingest(IngestPlan(source=str(folder), store=str(tmp_path / name), **place)).added == 2
    hashes = [sorted(open_store(tmp_path / name).index["content_hash"].to_pylist()) for name in ("packed", "plain")]
    assert hashes[0] == hashes[1]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    again = ingest(IngestPlan(source=str(source), store=str(tmp_path / "packed"), **place))
    assert (again.added, again.present) == (0, 2)


def test_a_real_series_is_the_same_from_a_tar_xz(real_data, source, scratch, found, full):
    folder = real_data / "medical_ingest" / "dev" / "ct_dicom_j2k"
    if not folder.is_dir():
        pytest.skip("without the DICOM series")
    packed(folder, source / "ct.tar.xz", "xz")
    (inside,), _ = found(ct, source, scratch=str(scratch))
    (outside,), _ = found(ct, folder)
    assert (inside.instance, inside.digest, inside.unit) == (outside.instance, outside.digest, outside.unit)
    np.testing.assert_array_equal(full(ct.read(inside)), full(ct.read(outside)))


def test_processes_that_want_one_archive_unpack_it_once(source, scratch, study):
    path = packed(study, source / "a.zip")
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=archives.unpack, args=(path, "zip", str(scratch), "a.zip")) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0, 0]
    files = archives.unpack(path, "zip", str(scratch), "a.zip").files
    assert {file.relative_to(files): file.read_bytes() for file in files.rglob("*") if file.is_file()} == {
        file.relative_to(study): file.read_bytes() for file in study.rglob("*") if file.is_file()
    }
