"""Buckets and servers: an S3 server on loopback, a proxy before it that fails on purpose, and stores equal to those of local files."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.types import SourceRef
from dinodomain_remote_sensing import aerial, remote, sentinel2

pytest.importorskip("obstore")

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "localhost"])
NAMES = itertools.count()


@pytest.fixture
def bucket(server) -> str:
    """A fresh bucket's name."""
    name = f"scenes{next(NAMES)}"
    server.make(name)
    return name


def fill(lab, side: int = 300) -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(1, 10000, (3, side, side)).astype("uint16")
    noise[:, : side // 8] = 0
    tiled = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    lab.write("x/wide_2020-02-02.tif", noise, per_band={"descriptions": ("B02", "B03", "B04")}, **tiled)
    for band, gsd, k in (("B02", 10, 1), ("B05", 20, 2), ("B01", 60, 6)):
        lab.write(f"scene/T32VPH_20200113T103641_{band}.tif", noise[0][: side // k, : side // k], gsd=gsd, **tiled)
    lab.write("y/stack.tif", noise[0, 40:80, :40], per_band={"descriptions": ("B02",)})


def stored(source: str | Path, store: Path, secret: Path, **more: object) -> dict[str, bytes]:
    """Ingests; file contents by relative path."""
    ingest(IngestPlan(domain="sentinel2", source=str(source), store=str(store), secret=str(secret), workers=0, **more), domain=sentinel2)
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n")
    path.chmod(0o600)
    return path


def test_a_bucket_gives_the_store_of_a_folder_but_for_the_digests_of_sources(lab, server, bucket, secret, tmp_path):
    fill(lab)
    server.upload(lab.folder, bucket, "a")
    local, far = stored(lab.folder, tmp_path / "local", secret), stored(f"s3://{bucket}/a", tmp_path / "far", secret)
    assert local.keys() == far.keys()
    differ = {name for name in local if local[name] != far[name]}
    # A server tells the version of a file by its tag, a disk by its ends: the one column differs, and what is derived from its bytes.
    assert differ <= {"index.parquet", "manifest.json", "lineage.json"}
    near, there = (pq.read_table(tmp_path / name / "index.parquet").drop_columns(["source_digest"]) for name in ("local", "far"))
    assert repr(near.to_pylist()) == repr(there.to_pylist())  # NaN equals NaN
    assert near["source_id"].to_pylist() == ["scene", "x/wide_2020-02-02.tif", "y/stack.tif"]


def test_a_store_of_a_failing_server_is_byte_identical_and_holds_no_key(lab, server, bucket, secret, tmp_path, caplog):
    fill(lab)
    server.upload(lab.folder, bucket, "a")
    calm = stored(f"s3://{bucket}/a", tmp_path / "calm", secret)
    faults = ("503", "reset", "short", "429", "short")
    server.plan(*itertools.chain(*((None, None, fault) for fault in faults)))
    stormy = stored(f"s3://{bucket}/a", tmp_path / "stormy", secret)
    assert {fault for _, _, fault in server.seen()[0]} == {None, "503", "reset", "short", "429"}
    assert stormy == calm
    everything = b"".join(stormy.values()) + caplog.text.encode()
    assert server.secret.encode() not in everything
    assert server.key.encode() not in everything


def test_a_scene_is_read_about_once(lab, server, bucket, secret, tmp_path):
    fill(lab, side=1100)
    server.upload(lab.folder, bucket, "a")
    size = sum(path.stat().st_size for path in lab.folder.rglob("*.tif"))
    server.plan()
    stored(f"s3://{bucket}/a", tmp_path / "store", secret)
    requests, sent = server.seen()
    assert sent < 1.15 * size
    assert len(requests) < 80
    told = sum(ref.facts["requests"] for ref in lab.found(sentinel2, f"s3://{bucket}/a"))
    assert 0.5 < told / len(requests) < 2
    assert sum(ref.facts["bytes_in"] for ref in lab.found(sentinel2, f"s3://{bucket}/a")) == size


@pytest.mark.parametrize(("code", "words"), [("403", "the server refuses access (403)"), ("404", "not on the server (404)")])
def test_what_is_forbidden_or_gone_is_one_refused_row(lab, server, bucket, code, words):
    fill(lab)
    server.upload(lab.folder, bucket, "a")
    server.plan(code, match="/stack.tif$")
    rows = lab.found(sentinel2, f"s3://{bucket}/a")
    assert [type(row) for row in rows] == [SourceRef, SourceRef, BadSource]
    assert rows[2].reason == words
    assert rows[2].uri == f"s3://{bucket}/a/y/stack.tif"
    assert server.secret not in str(rows[2])


def test_a_bucket_that_is_not_there_or_closed_is_one_clear_error(lab, server, bucket):
    lab.write("a.tif", lab.counts(2, 2), per_band={"descriptions": ("B02",)})
    server.upload(lab.folder, bucket, "a")
    with pytest.raises(UserError, match=r"s3://nowhere/x.*not on the server"):
        lab.found(sentinel2, "s3://nowhere/x")
    with pytest.raises(UserError, match="holds nothing"):
        lab.found(sentinel2, f"s3://{bucket}/nothing")
    server.plan("403")
    with pytest.raises(UserError, match=r"refuses access \(403\); set AWS_ACCESS_KEY_ID") as caught:
        lab.found(sentinel2, f"s3://{bucket}/a")
    assert server.secret not in str(caught.value)


def test_a_transfer_that_never_works_is_a_refused_row(lab, server, bucket, monkeypatch):
    lab.write("a.tif", lab.counts(2, 2), per_band={"descriptions": ("B02",)})
    server.upload(lab.folder, bucket, "a")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    server.plan("reset", match="tif$")
    (row,) = lab.found(sentinel2, f"s3://{bucket}/a")
    assert isinstance(row, BadSource)
    assert "the server did not answer" in row.reason


def test_one_object_of_a_bucket_is_a_source_and_masks_beside_it_count(lab, server, bucket):
    rasterio = pytest.importorskip("rasterio")
    path = lab.write("a.tif", lab.counts(8, 8), per_band={"descriptions": ("B02",)})
    mask = np.full((8, 8), 255, np.uint8)
    mask[:3] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert path.with_name("a.tif.msk").exists()
    server.upload(lab.folder, bucket, "a")
    for source in (f"s3://{bucket}/a/a.tif", f"s3://{bucket}/a"):
        (ref,) = lab.found(sentinel2, source)
        assert ref.source_id == "a.tif"
        record = sentinel2.read(ref)
        np.testing.assert_array_equal(lab.invalid(record) != 0, mask == 0)


def test_addresses_of_a_list_make_scenes_and_signatures_stay_secret(lab, server, bucket):
    fill(lab)
    server.upload(lab.folder, bucket, "a")
    lab.write("near/n.tif", lab.counts(4, 4), per_band={"descriptions": ("B02",)})
    base = f"{server.url}/{bucket}/a/scene/T32VPH_20200113T103641"
    lines = [f"{base}_B02.tif?X-Amz-Signature=planted", f"{base}_B05.tif?X-Amz-Signature=planted", f"s3://{bucket}/a/x/", "# not this"]
    lines += ["near/n.tif", "near/gone.tif", f"{server.url}/{bucket}/a/none.tif?sig=planted", "gs://b/x.tif"]
    place = lab.folder / "list.txt"
    place.write_text("\n".join(lines))
    rows = lab.found(sentinel2, place)
    host = server.url.removeprefix("http://")
    refs = [row for row in rows if isinstance(row, SourceRef)]
    assert [ref.source_id for ref in refs] == [
        f"{host}/{bucket}/a/scene",
        "near/n.tif",
        f"{bucket}/a/x/wide_2020-02-02.tif",
    ]
    refused = {row.uri.rpartition("/")[2]: row.reason for row in rows if isinstance(row, BadSource)}
    assert refused.keys() == {"gone.tif", "none.tif", "x.tif"}
    assert refused["none.tif"] == "not on the server (404)"
    assert refused["gone.tif"] == "listed, but no file"
    assert not any("planted" in f"{row!r}{row}" for row in rows)
    scene = sentinel2.read(refs[0])
    local = lab.only(sentinel2, lab.folder / "scene", bands=("B02", "B05"))
    np.testing.assert_array_equal(lab.everything(scene), lab.everything(local))
    np.testing.assert_array_equal(lab.everything(sentinel2.read(refs[1]))[0], lab.counts(4, 4))


def test_a_product_name_is_no_list_and_other_schemes_have_a_remedy(lab, tmp_path):
    with pytest.raises(UserError, match=r"gs:// is not read directly.*https:// addresses"):
        lab.found(sentinel2, "gs://bucket/x")
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    assert lab.found(sentinel2, empty) == []


def test_a_picture_on_a_server_is_turned_upright_too(lab, server, bucket):
    image = pytest.importorskip("PIL.Image")
    lab.folder.mkdir(parents=True)
    picture = image.fromarray(lab.counts(16, 24, 3, dtype="uint8"))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(lab.folder / "p.jpg", exif=exif)
    server.upload(lab.folder, bucket, "a")
    near, far = lab.only(aerial), lab.only(aerial, f"s3://{bucket}/a")
    assert near.shape == far.shape == (3, 24, 16)
    np.testing.assert_array_equal(lab.everything(near), lab.everything(far))


def test_messages_lose_queries_passwords_and_keys(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUt")
    text = "GET https://me:pw@h/a.tif?sig=abc failed for wJalrXUt at '/vsicurl/https://h/b.tif?token=1'"
    assert remote.quiet(text) == "GET https://h/a.tif failed for ... at '/vsicurl/https://h/b.tif'"
    assert remote.shown("https://me:pw@h/a.tif?sig=abc#x") == "https://h/a.tif"
    assert remote.shown("s3://b/a?b#c.tif") == "s3://b/a?b#c.tif"
    assert remote.shown("/data/scan (1)/a?.tif") == "/data/scan (1)/a?.tif"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({}, {"AWS_VIRTUAL_HOSTING": "TRUE", "AWS_NO_SIGN_REQUEST": "NO"}),
        ({"AWS_NO_SIGN_REQUEST": "yes"}, {"AWS_NO_SIGN_REQUEST": "YES"}),
        ({"AWS_ENDPOINT_URL": "http://h:9000"}, {"AWS_S3_ENDPOINT": "h:9000", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}),
        ({"AWS_S3_ENDPOINT": "h:9000", "AWS_HTTPS": "NO"}, {"AWS_S3_ENDPOINT": "h:9000", "AWS_HTTPS": "NO"}),
        ({"AWS_S3_ENDPOINT": "data.lpdaac.example"}, {"AWS_S3_ENDPOINT": "data.lpdaac.example", "AWS_HTTPS": "YES"}),
        ({"AWS_ENDPOINT_URL": "https://h", "AWS_VIRTUAL_HOSTING": "TRUE"}, {"AWS_VIRTUAL_HOSTING": "TRUE"}),
        ({"AWS_DEFAULT_REGION": "eu-west-3"}, {"AWS_REGION": "eu-west-3"}),
    ],
)
def test_the_usual_variables_reach_gdal(monkeypatch, tmp_path, names, expected):
    from rasterio.env import getenv

    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_S3_ENDPOINT", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with remote.environment("s3://bucket/key"):
        options = getenv()
    assert {name: options.get(name) for name in expected} == expected
    assert options["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"


def test_windows_never_come_from_overviews(lab):
    rasterio = pytest.importorskip("rasterio")
    full = lab.counts(512, 512)
    path = lab.write("a.tif", full, per_band={"descriptions": ("B02",)}, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.average)
    for level in (0, 1):
        with rasterio.open(path, "r+", OVERVIEW_LEVEL=level) as coarse:  # an overview that would be noticed
            assert coarse.width == 256 >> level
    record = lab.only(sentinel2)
    assert record.shape == (1, 512, 512)
    np.testing.assert_array_equal(lab.everything(record)[0], full)


def test_an_archive_on_a_server_is_told_of_and_a_local_one_in_a_list_is_opened(lab, server, bucket, tmp_path):
    pixels = lab.counts(3, 8, 8, dtype="uint8")
    lab.write("x/a.tif", pixels)
    with zipfile.ZipFile(lab.folder / "x/b.zip", "w") as archive:
        archive.write(lab.folder / "x/a.tif", "b.tif")
    server.upload(lab.folder, bucket, "p")
    listed = tmp_path / "list.txt"
    for source in (f"s3://{bucket}/p", f"{server.url}/{bucket}/p/x/b.zip"):
        refusals = [row for row in lab.found(aerial, source) if isinstance(row, BadSource)]
        assert [str(row.reason) for row in refusals] == ["an archive on a server is not looked into"]
    listed.write_text(f"s3://{bucket}/p/\n{lab.folder}/x/b.zip\ngs://b/c.tif\n")
    ids = {row.source_id if isinstance(row, SourceRef) else str(row.reason) for row in lab.found(aerial, listed)}
    assert ids == {f"{bucket}/p/x/a.tif", "b.zip/b.tif", "an archive on a server is not looked into", "gs:// is not read directly"}


def test_a_server_that_is_not_there_is_said_soon(lab, server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BadSource, match=r"no connection to http://127.0.0.1:9 \(Connection refused\)"):
        lab.found(aerial, "s3://b/p")
    with pytest.raises(UserError, match="does not answer as one: Connection refused"):
        lab.found(sentinel2, "stac:http://127.0.0.1:9/v1?collections=x")
