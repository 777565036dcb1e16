"""Requests and bytes per tile from an S3 server (moto on loopback, behind a proxy that counts): the store against COGs and zarr-python.

Aligned tiles, each once, in random order; one tile is read beforehand, so that metadata and indexes are known. zarr-python reads the very
same store through obstore; rasterio and torchgeo read a COG of the same pixels through ``/vsis3/`` with the settings that GDAL recommends
for COGs on servers and a block cache of a ninth of the scene. Speed is not measured: moto would be most of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.store import Store, StorePlan, array_record, build_store, open_store
from readers.content import BANDS, ORIGIN, scenes, volumes
from readers.measure import Row, row
from readers.rasters import GDAL, KINDS, dataset_class, write

Start = tuple[int, ...]
Read = Callable[[Start], np.ndarray]
KEYS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
VSI = {
    **GDAL,
    "AWS_HTTPS": "NO",
    "AWS_VIRTUAL_HOSTING": "FALSE",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif",
}
"""GDAL's own advice for COGs on servers."""


class Server:
    """An S3 server in a process of its own; ``url`` is that of the counting proxy."""

    def __init__(self, script: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._input, self._output = self._child.stdin, self._child.stdout
        place = json.loads(self._output.readline())
        self._direct, self.url = str(place["s3"]), str(place["proxy"])

    def close(self) -> None:
        """Ends the process."""
        self._input.close()
        self._child.wait(timeout=30)
        self._output.close()

    def reset(self) -> None:
        """Counting begins anew."""
        self._ask("/_plan", json.dumps({"match": "", "pattern": []}).encode())

    def counted(self) -> tuple[int, int]:
        """Requests and bytes of answers since then."""
        found = self._ask("/_log")
        return len(found["log"]), int(found["sent"])

    def upload(self, folder: Path, bucket: str) -> str:
        """The files of a folder into a new bucket; its URL."""
        import boto3

        client = boto3.client("s3", endpoint_url=self._direct)
        client.create_bucket(Bucket=bucket)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.put_object(Bucket=bucket, Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
        return f"s3://{bucket}"

    def _ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data=body), timeout=30) as answer:
            return dict(json.loads(answer.read()))


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server that the environment names."""
    server = Server(Path(__file__).parents[2] / "tests/s3_server.py")
    before = dict(os.environ)
    os.environ.update(KEYS, AWS_ENDPOINT_URL=server.url, AWS_S3_ENDPOINT=server.url.removeprefix("http://"))
    try:
        yield server
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.close()


def our_reader(store: Store, extent: Start) -> Read:
    """Boxes of the store's only source."""
    slot = np.empty((len(store.channels), *extent), dtype=store.row(0)["dtype"])

    def read(start: Start) -> np.ndarray:
        store.read_box(0, start, slot)
        return slot

    return read


def zarr_reader(store: Store, url: str, server: Server, extent: Start) -> Read:
    """zarr-python over obstore, array kept open."""
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    client = S3Store(url.removeprefix("s3://"), endpoint=server.url, client_options={"allow_http": True})
    array = zarr.open_array(ObjectStore(client, read_only=True), path=store.row(0)["array"], mode="r")

    def read(start: Start) -> np.ndarray:
        box = tuple(slice(a, a + n) for a, n in zip(start, extent))
        found = np.asarray(array[(slice(None), *box)[-array.ndim :]])
        return found.reshape(-1, *extent)

    return read


def rasterio_reader(paths: Sequence[str], extent: Start) -> Read:
    """Windows of files that stay open: all bands in one, or each in its own."""
    import rasterio

    datasets = [rasterio.open(path) for path in paths]

    def read(start: Start) -> np.ndarray:
        where = tuple((a, a + n) for a, n in zip(start, extent))
        return np.concatenate([dataset.read(window=where) for dataset in datasets])

    return read


def torchgeo_reader(path: str, extent: Start) -> Read:
    """The same through a torchgeo dataset."""
    import pandas as pd

    dataset, time = dataset_class(KINDS[1])([path]), slice(pd.Timestamp.min, pd.Timestamp.max)

    def read(start: Start) -> np.ndarray:
        west, north = ORIGIN[0] + 10 * start[1], ORIGIN[1] - 10 * start[0]
        query = (slice(west, west + 10 * extent[1]), slice(north - 10 * extent[0], north), time)
        found: np.ndarray = dataset[query]["image"].numpy()
        return found

    return read


def counts(server: Server, read: Read, starts: Sequence[Start], extent: Start, pixels: np.ndarray) -> tuple[float, float]:
    """Requests and bytes per tile; every tile is compared with the array."""
    seen = []
    for number, start in enumerate(starts):
        found = read(start)
        np.testing.assert_array_equal(found, pixels[(slice(None), *(slice(a, a + n) for a, n in zip(start, extent)))])
        if number == 0:
            server.reset()
            continue
        seen.append(number)
    requests, sent = server.counted()
    return requests / len(seen), sent / len(seen)


def needed(store: Store, starts: Sequence[Start], extent: Start) -> float:
    """Mean bytes of the chunks that a tile lies in, as stored: what cannot be avoided."""
    from dinodomain.store.codec import decode_index, index_bytes, parse_layout

    folder = store.path / store.row(0)["array"]
    layout = parse_layout(json.loads((folder / "zarr.json").read_bytes()))
    assert layout is not None
    grid = layout.grid
    cells = tuple(outer // inner for outer, inner in zip(grid.shard, grid.chunk))
    lead, chunk = (0,) * (len(cells) - len(extent)), grid.chunk[-len(extent) :]
    indexes: dict[Start, np.ndarray] = {}
    total = 0
    for start in starts:
        for offset in np.ndindex(*(n // side for n, side in zip(extent, chunk))):
            cell = (*lead, *(a // side + i for a, side, i in zip(start, chunk, offset)))
            key = tuple(c // n for c, n in zip(cell, cells))
            if key not in indexes:
                data = folder.joinpath("c", *map(str, key)).read_bytes()[-index_bytes(cells) :]
                indexes[key] = decode_index(data, cells)
            total += int(indexes[key][tuple(c % n for c, n in zip(cell, cells))][1])
    return total / len(starts)


def grid_starts(shape: Start, side: int, count: int) -> list[Start]:
    """Aligned tiles, each once, in random order."""
    whole = list(np.ndindex(*(n // side for n in shape)))
    order = np.random.default_rng(0).permutation(len(whole))[:count]
    return [tuple(int(i) * side for i in whole[number]) for number in order]


def measure(quick: bool, work: Path) -> Iterator[Row]:
    """All rows."""
    with running() as server:
        yield from scene_rows(server, work, quick)
        yield from volume_rows(server, work, quick)


def scene_rows(server: Server, work: Path, quick: bool) -> Iterator[Row]:
    """A scene with the default chunk, tiles of one chunk."""
    import rasterio

    side, count, extent = (512, 4, (256, 256)) if quick else (2048, 33, (256, 256))
    (pixels,) = scenes(1, side)
    local = build_store(work / "scene", {"a": array_record(pixels)}, domain="bench")
    url = server.upload(local.path, "scenes")
    whole, split = (write(kind, work / f"cog{i}", iter([pixels])) for i, kind in enumerate(KINDS[1:3]))
    copies = [_vsi(server, folder, f"cogs{i}") for i, folder in enumerate((whole, whole, split))]
    readers: dict[str, Callable[[], Read]] = {
        "zarr-python and obstore": lambda: zarr_reader(local, url, server, extent),
        "rasterio, COG": lambda: rasterio_reader(copies[0], extent),
        "torchgeo, COG": lambda: torchgeo_reader(copies[1][0], extent),
        "rasterio, a COG per band": lambda: rasterio_reader(copies[2], extent),
    }
    given = f"scene 12x{side}x{side}, chunk 256, tile 256"
    small = pixels.nbytes // 9
    with rasterio.Env(**VSI, GDAL_CACHEMAX=small, CPL_VSIL_CURL_CACHE_SIZE=str(small)):
        yield from rows(server, local, url, readers, grid_starts(pixels.shape[1:], 256, count), extent, pixels, given, exact=True)


def _vsi(server: Server, folder: Path, bucket: str) -> list[str]:
    """Uploads files; how GDAL calls them, in the order of the bands."""
    server.upload(folder, bucket)
    names = sorted(path.name for path in folder.iterdir())
    if len(names) > 1:
        names.sort(key=lambda name: BANDS.index(name.removesuffix(".tif").rpartition("_")[2]))
    return [f"/vsis3/{bucket}/{name}" for name in names]


def volume_rows(server: Server, work: Path, quick: bool) -> Iterator[Row]:
    """Volumes with chunks for servers: tiles of one chunk and of eight."""
    shape = (128, 128, 256) if quick else (128, 256, 256)
    (voxels,) = volumes(1, shape)
    local = build_store(work / "volume", {"a": array_record(voxels[None])}, domain="bench", plan=StorePlan(chunk=64))
    url = server.upload(local.path, "volumes")
    for side in (64, 128):
        extent = (side,) * 3
        starts = grid_starts(shape, side, 4 if quick else 17)
        readers = {"zarr-python and obstore": lambda extent=extent: zarr_reader(local, url, server, extent)}
        given = f"volume {'x'.join(map(str, shape))}, chunk 64, tile {side}"
        yield from rows(server, local, url, readers, starts, extent, voxels[None], given, exact=side == 64)


def rows(
    server: Server,
    local: Store,
    url: str,
    readers: Mapping[str, Callable[[], Read]],
    starts: Sequence[Start],
    extent: Start,
    pixels: np.ndarray,
    given: str,
    *,
    exact: bool,
) -> Iterator[Row]:
    """Rows of one input; ``exact``: a tile is one chunk, so that one request is what it takes."""
    requests, sent = counts(server, our_reader(open_store(url), extent), starts, extent, pixels)
    least = needed(local, starts[1:], extent)
    yield row("requests per aligned tile", given, [requests], "one range each", [1.0], "requests", 1.0 if exact else None)
    yield row("bytes read per aligned tile", given, [sent / 1e6], "its chunks as stored", [least / 1e6], "MB", 1.3)
    for name, make in readers.items():
        theirs, bytes_ = counts(server, make(), starts, extent, pixels)
        yield row("requests per aligned tile", given, [requests], name, [theirs], "requests")
        yield row("bytes read per aligned tile", given, [sent / 1e6], name, [bytes_ / 1e6], "MB")


if __name__ == "__main__":
    sys.exit("run benchmarks/data_path.py --only remote")
