"""Stores on a server: the pixels and tables of the local store, one request a tile, and clear errors for whatever a server can do."""

from __future__ import annotations

import http.server
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from dinodomain.errors import MissingExtra, UserError
from dinodomain.store import StorePlan, array_record, build_store, open_store, remote
from dinodomain.store.open_arrays import OpenArrays, is_remote

pytest.importorskip("obstore")

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "localhost"])


def scene(tmp_path: Path, make_pixels, *, shape=(3, 300, 260), chunk=64, nodata=None, codec="fast"):
    pixels = make_pixels(shape, "uint16")
    if nodata is not None:
        pixels[:, :70, :90] = nodata
    record = array_record(pixels, nodata=nodata) if nodata is not None else array_record(pixels)
    return build_store(tmp_path / "s", {"a": record}, domain="made-up", plan=StorePlan(chunk=chunk, codec=codec)), pixels


def shard_key(store, name="data") -> str:
    return f"{store.row(0)['array'].rpartition('/')[0]}/{name}/c/0/0/0"


def box(store, start, extent, row=0):
    facts = store.row(row)
    out = np.full((len(facts["channels"]), *extent), 7, dtype=facts["dtype"])
    store.read_box(row, start, out)
    return out


@pytest.mark.parametrize("shape", [(3, 150, 130), (1, 40, 50, 45), (2, 40, 50, 45)])
@pytest.mark.parametrize("codec", ["fast", "none"])
def test_any_box_equals_that_of_the_local_store(tmp_path, server, make_pixels, plain_box, shape, codec):
    store, pixels = scene(tmp_path, make_pixels, shape=shape, chunk=16, nodata=0, codec=codec)
    far = open_store(server.upload(store.path))
    assert far.digest == store.digest
    rng = np.random.default_rng(0)
    for _ in range(12):
        start, extent = tuple(rng.integers(-30, 140, len(shape) - 1)), tuple(rng.integers(1, 60, len(shape) - 1))
        np.testing.assert_array_equal(box(far, start, extent), plain_box(pixels, start, extent))
        ours, theirs = np.full(extent, 9, np.uint8), np.full(extent, 9, np.uint8)
        assert far.read_valid(0, start, ours) == store.read_valid(0, start, theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_stacks_come_back_and_cost_no_request_where_all_pixels_are_valid(tmp_path, server, make_pixels):
    images = {f"{i}": make_pixels((1, 28, 30), "uint8", seed=i) for i in range(5)}
    local = build_store(tmp_path / "s", {k: array_record(v, layout="whole") for k, v in images.items()}, domain="made-up")
    far = open_store(server.upload(local.path))
    server.plan()
    bits = np.full((32, 32), 9, np.uint8)
    assert not any(far.read_valid(row, (0, 0), bits) for row in range(5))
    assert not bits.any()
    assert server.seen() == []
    for row in range(5):
        np.testing.assert_array_equal(box(far, (0, 0), (28, 30), row), images[str(row)])


def test_an_aligned_tile_is_one_request_of_just_its_bytes(tmp_path, server, make_pixels):
    store, pixels = scene(tmp_path, make_pixels)
    far = open_store(server.upload(store.path))
    box(far, (0, 0), (64, 64))
    assert len(server.seen("zarr.json")) == 1
    server.plan()
    cells = [(y, x) for y in range(4) for x in range(4)]
    for y, x in cells:
        np.testing.assert_array_equal(box(far, (y * 64, x * 64), (64, 64)), pixels[:, y * 64 : y * 64 + 64, x * 64 : x * 64 + 64])
    assert len(server.seen()) == len(cells)
    assert server.sent() < (store.path / shard_key(store)).stat().st_size


def test_many_boxes_are_in_flight_together_and_indexes_are_read_once(tmp_path, server, make_pixels, plain_box):
    sources = {str(i): array_record(make_pixels((1, 100, 100), "uint16", seed=i)) for i in range(6)}
    store = build_store(tmp_path / "s", sources, domain="made-up", plan=StorePlan(chunk=32))
    far = open_store(server.upload(store.path))
    server.plan()
    arrays = OpenArrays(requests=8)
    addresses = pickle.loads(pickle.dumps([far.address(row, (32 * k, 0)) for row in range(6) for k in range(3)]))
    assert all(is_remote(location) for location, _ in addresses)
    outs = [np.empty((1, 32, 32), np.uint16) for _ in addresses]
    arrays.read_many(zip(addresses, outs))
    asked = server.seen()
    assert len([path for path in asked if path.endswith("zarr.json")]) == 6
    assert len(asked) == 6 + 6 + 18
    for i, out in enumerate(outs):
        np.testing.assert_array_equal(out, make_pixels((1, 100, 100), "uint16", seed=i // 3)[:, 32 * (i % 3) : 32 * (i % 3) + 32, :32])
    arrays.close()


def test_near_chunks_come_with_one_request_and_far_ones_apart(tmp_path, server, make_pixels, monkeypatch):
    store, pixels = scene(tmp_path, make_pixels)
    far = open_store(server.upload(store.path))
    box(far, (0, 0), (64, 64))
    for gap, expected in ((2**20, 1), (0, 3)):  # rows of chunks lie one after the other
        monkeypatch.setattr("dinodomain.store.ranges.GAP", gap)
        server.plan()
        np.testing.assert_array_equal(box(far, (30, 30), (140, 70)), pixels[:, 30:170, 30:100])
        assert len(server.seen()) == expected


def test_local_and_remote_boxes_mix(tmp_path, server, make_pixels):
    store, pixels = scene(tmp_path, make_pixels)
    far = open_store(server.upload(store.path))
    outs = [np.zeros((3, 64, 64), np.uint16) for _ in range(2)]
    far.arrays.read_many([(far.address(0, (64, 64)), outs[0]), (store.address(0, (64, 64)), outs[1])])
    np.testing.assert_array_equal(outs[0], pixels[:, 64:128, 64:128])
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "reset", "short"])
def test_a_server_that_fails_now_and_then_changes_no_pixel(tmp_path, server, make_pixels, fault):
    store, pixels = scene(tmp_path, make_pixels)
    url = server.upload(store.path)
    server.plan(fault, None)
    far = open_store(url)
    np.testing.assert_array_equal(box(far, (0, 0), (300, 260)), pixels)
    np.testing.assert_array_equal(box(far, (5, 5), (64, 64)), pixels[:, 5:69, 5:69])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("503", "503 Service Unavailable, after 3 retries"),
        ("429", "429 Too Many Requests, after 3"),
        ("reset", "Connection reset"),
        ("short", ""),
    ],
)
def test_retries_end_in_an_error_with_object_chunk_and_what_was_said(tmp_path, server, make_pixels, fault, said, monkeypatch):
    monkeypatch.setattr(remote.Objects.__init__, "__defaults__", (3,))
    store, _ = scene(tmp_path, make_pixels)
    far = open_store(server.upload(store.path))
    box(far, (0, 0), (64, 64))
    server.plan(fault)
    with pytest.raises(
        UserError, match=rf"{re.escape(far.location)}/{shard_key(store)}: chunk \(0, 1, 2\) cannot be read: .*{said}"
    ) as caught:
        box(far, (64, 128), (64, 64))
    assert len(server.seen()) == 4
    assert server.key not in str(caught.value)
    assert server.secret not in str(caught.value)


def test_what_is_refused_says_which_variables_to_set_and_tells_no_key(tmp_path, server, make_pixels):
    store, _ = scene(tmp_path, make_pixels)
    url = server.upload(store.path)
    server.plan("403")
    with pytest.raises(UserError, match=r"the server refuses access \(403 Forbidden\); set AWS_ACCESS_KEY_ID") as caught:
        open_store(url)
    assert server.secret not in str(caught.value)


def test_who_may_not_list_can_still_open_a_store(tmp_path, server, make_pixels):
    store, _ = scene(tmp_path, make_pixels)
    url = server.upload(store.path)
    server.plan("403", match="withdrawal")
    assert open_store(url).digest == store.digest


def test_a_store_that_is_not_there_is_named(server):
    with pytest.raises(UserError, match=r"s3://nowhere/at/all: has no manifest.json: no store, .* finished; check the bucket and the path"):
        open_store("s3://nowhere/at/all")


@pytest.mark.parametrize("endpoint", ["nonsense", "127.0.0.1:9000", "http://", "ftp://host"])
def test_an_endpoint_that_is_no_address_is_named(server, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match=rf"AWS_ENDPOINT_URL: '{endpoint}' is no address; allowed: https://HOST or http://HOST:PORT"):
        open_store("s3://bucket/store")


def test_an_http_address_that_is_none_is_one_message():
    with pytest.raises(UserError, match=r"https://ex ample: its address is not valid \(invalid .*\); check it for blanks"):
        open_store("https://ex ample/store")


@pytest.mark.parametrize(("endpoint", "url"), [("http://127.0.0.1:99999", "s3://a/b"), ("http://a b", "s3://a/b"), ("", "s3://Tri al/b")])
def test_an_address_at_which_the_client_panics_is_one_message(server, monkeypatch, endpoint, url):
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match=rf"{url}/.*: its address is not valid \(.*\); check it for blanks"):
        open_store(url)


def test_a_server_that_is_not_there_is_told_within_seconds(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the server did not answer as it should .*Connection refused.*check the network"):
        open_store("s3://bucket/store")


def test_tables_that_hold_are_those_of_a_withdrawal(tmp_path, server, make_pixels):
    store, _ = scene(tmp_path, make_pixels)
    url = server.upload(store.path)
    for name in ("manifest.json", "index.parquet", "chunks.parquet", "lineage.json"):
        server.put(f"{url}/withdrawal/{name}", (store.path / name).read_bytes())
    server.put(f"{url}/manifest.json", b"{}")
    assert open_store(url).digest == store.digest


def test_altered_tables_are_refused(tmp_path, server, make_pixels):
    store, _ = scene(tmp_path, make_pixels)
    url = server.upload(store.path)
    server.put(f"{url}/index.parquet", (store.path / "index.parquet").read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"index.parquet: is missing or not what the manifest says"):
        open_store(url)


@pytest.mark.parametrize("same_size", [True, False])
def test_an_object_replaced_while_it_is_open_is_an_error(tmp_path, server, make_pixels, same_size):
    store, _ = scene(tmp_path, make_pixels)
    far = open_store(server.upload(store.path))
    box(far, (0, 0), (64, 64))
    good = (store.path / shard_key(store)).read_bytes()
    server.put(f"{far.location}/{shard_key(store)}", good[:100] + b"\0" + good[101:] if same_size else good[: len(good) // 2])
    with pytest.raises(
        UserError, match=r"chunk \(0, 3, 3\) cannot be read: the object was replaced while it was open; open the store again"
    ):
        box(far, (192, 192), (64, 64))
    server.put(f"{far.location}/{shard_key(store)}", None, "DELETE")
    with pytest.raises(UserError, match=r"chunk \(0, 3, 3\) cannot be read: the object was removed while it was open"):
        box(far, (192, 192), (64, 64))
    with pytest.raises(UserError, match=r"c/0/0/0: the object is missing"):
        box(open_store(far.location), (0, 0), (64, 64))


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_object_is_named(tmp_path, server, make_pixels, keep):
    store, _ = scene(tmp_path, make_pixels)
    far, good = open_store(server.upload(store.path)), (store.path / shard_key(store)).read_bytes()
    server.put(f"{far.location}/{shard_key(store)}", good[: int(len(good) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="c/0/0/0"):
        box(far, (0, 0), (64, 64))


@pytest.mark.parametrize(
    ("position", "words"), [(100, r"chunk \(0, 0, 0\) cannot be read: its checksum differs"), (-20, "shard index differs")]
)
def test_a_flipped_byte_is_found_on_every_read(tmp_path, server, make_pixels, position, words):
    store, _ = scene(tmp_path, make_pixels)
    data = bytearray((store.path / shard_key(store)).read_bytes())
    data[position] ^= 1
    far = open_store(server.upload(store.path))
    server.put(f"{far.location}/{shard_key(store)}", bytes(data))
    for _ in range(2):
        with pytest.raises(UserError, match=f"c/0/0/0: .*{words}"):
            box(far, (0, 0), (64, 64))


def test_threads_agree_and_read_an_index_once(tmp_path, server, make_pixels):
    store, pixels = scene(tmp_path, make_pixels)
    far = open_store(server.upload(store.path))
    server.plan()
    starts = [tuple(start) for start in np.random.default_rng(0).integers(0, 200, (24, 2))]
    with ThreadPoolExecutor(4) as pool:
        boxes = list(pool.map(lambda start: box(far, start, (50, 50)), starts))
    for (y, x), found in zip(starts, boxes):
        np.testing.assert_array_equal(found, pixels[:, y : y + 50, x : x + 50])
    assert len(server.seen("zarr.json")) == 1


@pytest.mark.parametrize(
    "options", [{"chunks": (2, 16, 16)}, {"chunks": (2, 16, 16), "shards": (2, 32, 32), "compressors": None, "fill_value": 3}]
)
def test_other_layouts_on_a_server_go_through_zarr_python(tmp_path, server, make_pixels, options, plain_box):
    pixels = make_pixels((2, 50, 60), "uint16")
    zarr.create_array(store=str(tmp_path / "a"), shape=pixels.shape, dtype=pixels.dtype, **options)[...] = pixels
    url = server.upload(tmp_path / "a")
    for start, extent in (((0, 0), (16, 16)), ((-3, 40), (20, 30)), ((90, 0), (8, 8))):
        out = np.full((2, *extent), 7, np.uint16)
        OpenArrays().read((url, (0, *start)), out)
        np.testing.assert_array_equal(out, plain_box(pixels, start, extent))


def test_what_needs_a_folder_says_so(tmp_path, server, make_pixels):
    far = open_store(server.upload(scene(tmp_path, make_pixels)[0].path))
    with pytest.raises(UserError, match=rf"{far.location}: lies on a server; this needs the store in a folder.*; copy it to a disk"):
        _ = far.path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ftp://host/store", "no address that can be read; allowed: a folder, or s3://BUCKET"),
        ("https://me:hush@host/store", "https://host/store: carries a user or a password"),
        ("https://host/store?sig=hush", "https://host/store: carries a query"),
        (Path("s3://bucket/store"), "a URL that has lost a slash"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_without_their_secrets(given, words):
    with pytest.raises(UserError, match=words) as caught:
        open_store(given)
    assert "hush" not in str(caught.value)


def test_a_file_url_is_a_folder(tmp_path, make_pixels):
    store, pixels = scene(tmp_path, make_pixels)
    found = open_store(f"file://{store.path}")
    assert found.path == store.path
    np.testing.assert_array_equal(box(found, (0, 0), (64, 64)), pixels[:, :64, :64])


def test_without_obstore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(MissingExtra, match=r'a store on a server needs obstore: pip install "dinodomain\[cloud\]"'):
        open_store("s3://bucket/store")


def test_profiles_give_keys_and_region(tmp_path, monkeypatch):
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_SKIP_SIGNATURE",
        "AWS_NO_SIGN_REQUEST",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-north-1\n[profile sso]\nsso_session = x\n")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = AKIA\naws_secret_access_key = hush\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert remote._s3() == {"region": "eu-north-1", "access_key_id": "AKIA", "secret_access_key": "hush"}
    monkeypatch.setenv("AWS_PROFILE", "sso")
    with pytest.raises(UserError, match=r"AWS_PROFILE: 'sso' holds no keys; eval .*export-credentials --profile sso"):
        remote._s3()
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert remote._s3() == {"skip_signature": True}


def test_azure_gives_an_index_though_it_knows_no_suffixes(tmp_path, server, make_pixels, monkeypatch):
    import obstore
    from obstore.exceptions import NotSupportedError

    store, pixels = scene(tmp_path, make_pixels)
    far, get = open_store(server.upload(store.path)), obstore.get

    def without_suffixes(client, key, options=None):
        if options and isinstance(options.get("range"), dict):
            raise NotSupportedError("suffix")
        return get(client, key, options=options)

    monkeypatch.setattr(obstore, "get", without_suffixes)
    np.testing.assert_array_equal(box(far, (0, 0), (64, 64)), pixels[:, :64, :64])


class _Files(http.server.SimpleHTTPRequestHandler):
    """A plain web server that knows ranges, as nginx does."""

    ranges, tags = True, True

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, span = path.read_bytes(), self.headers.get("Range")
        self.send_response(206 if span and self.ranges else 200)
        if self.tags:
            self.send_header("ETag", f'W/"{len(data)}"')
        self.send_header("Last-Modified", "Tue, 01 Oct 2024 10:00:00 GMT")
        if span and self.ranges:
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", span).groups()
            low, high = (int(first), min(int(last) + 1, len(data))) if first else (max(0, len(data) - int(last)), len(data))
            self.send_header("Content-Range", f"bytes {low}-{high - 1}/{len(data)}")
            data = data[low:high]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def web(tmp_path):
    handler = type("Files", (_Files,), {})
    files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: handler(*args, directory=str(tmp_path)))
    threading.Thread(target=files.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{files.server_address[1]}", handler
    files.shutdown()
    files.server_close()


@pytest.mark.parametrize("tags", [True, False])
def test_a_plain_web_server_serves_a_store(tmp_path, web, make_pixels, tags):
    url, handler = web
    handler.tags = tags
    _, pixels = scene(tmp_path / "a folder", make_pixels)
    far = open_store(f"{url}/a%20folder/s/")
    np.testing.assert_array_equal(box(far, (10, 10), (200, 200)), pixels[:, 10:210, 10:210])
    np.testing.assert_array_equal(box(far, (64, 64), (64, 64)), pixels[:, 64:128, 64:128])


def test_a_web_server_without_ranges_is_named(tmp_path, web, make_pixels):
    url, handler = web
    handler.ranges = False
    scene(tmp_path, make_pixels)
    with pytest.raises(UserError, match="does not serve parts of files"):
        box(open_store(f"{url}/s"), (0, 0), (64, 64))
