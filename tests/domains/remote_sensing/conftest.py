"""Tiny rasters made on the spot, and short ways to find and read them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinodomain.errors import BadSource
from dinodomain.types import Record, Select, SourceRef
from dinodomain_remote_sensing import RasterDomain

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("pyproj")

UTM = "EPSG:32632"
ORIGIN = (600000.0, 5300040.0)


class Lab:
    """A folder to write rasters into, and what a domain makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        name: str,
        pixels: np.ndarray,
        *,
        crs: str | None = UTM,
        gsd: float = 10.0,
        transform: Any = None,
        tags: Mapping[str, str] | None = None,
        colours: Sequence[str] = (),
        per_band: Mapping[str, Sequence[Any]] | None = None,
        **profile: Any,
    ) -> Path:
        """Writes [y, x] or [band, y, x]; ``per_band`` sets descriptions, units, scales, offsets."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cube = pixels if pixels.ndim == 3 else pixels[None]
        place = transform if transform is not None else rasterio.Affine(gsd, 0, ORIGIN[0], 0, -gsd, ORIGIN[1])
        shape = {"count": len(cube), "height": cube.shape[1], "width": cube.shape[2], "dtype": cube.dtype.name}
        with rasterio.open(path, "w", **{"driver": "GTiff", **shape, "crs": crs, "transform": place, **profile}) as dataset:
            dataset.write(cube)
            if colours:
                dataset.colorinterp = [rasterio.enums.ColorInterp[colour] for colour in colours]
            for attribute, values in (per_band or {}).items():
                setattr(dataset, attribute, tuple(values))
            dataset.update_tags(**(tags or {}))
        return path

    def found(self, domain: RasterDomain, source: Path | None = None, **select: Any) -> list[SourceRef | BadSource]:
        return list(domain.discover(str(source or self.folder), Select(**select)))

    def only(self, domain: RasterDomain, source: Path | None = None, **select: Any) -> Record:
        """The one record of a source."""
        (ref,) = self.found(domain, source, **select)
        if isinstance(ref, BadSource):
            raise ref
        return domain.read(ref)

    def refusal(self, domain: RasterDomain, source: Path | None = None, **select: Any) -> str:
        """Why the one source cannot be had."""
        (ref,) = self.found(domain, source, **select)
        if isinstance(ref, BadSource):
            return str(ref)
        with pytest.raises(BadSource) as caught:
            self.everything(domain.read(ref))
        return str(caught.value)

    @staticmethod
    def everything(record: Record) -> np.ndarray:
        return record.read(tuple(slice(0, side) for side in record.shape[1:]))

    @staticmethod
    def invalid(record: Record) -> np.ndarray:
        assert record.read_valid is not None
        return record.read_valid(tuple(slice(0, side) for side in record.shape[1:]))

    @staticmethod
    def counts(*shape: int, dtype: str = "uint16", first: int = 1) -> np.ndarray:
        """Distinct numbers, none of them 0."""
        return np.arange(first, first + int(np.prod(shape))).astype(dtype).reshape(shape)


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Apart from ``tmp_path``, which the conformance suite expects to be empty."""
    return Lab(tmp_path_factory.mktemp("lab") / "source")


KEY, SECRET = "AKIAPLANTEDKEY0000001", "wJalrXUtnFEMI-planted-secret"


class Server:
    """An S3 server on loopback behind a proxy that fails where it is told to (``s3_server.py``)."""

    def __init__(self, s3: str, proxy: str) -> None:
        self.s3, self.url, self.key, self.secret = s3, proxy, KEY, SECRET

    def plan(self, *pattern: str | None, match: str = "") -> None:
        """What befalls the requests whose path matches, in turn; counting begins anew."""
        self._ask("/_plan", json.dumps({"match": match, "pattern": pattern}).encode())

    def seen(self) -> tuple[list[tuple[str, str, str | None]], int]:
        """Requests (method, path, fault) and bytes sent since the last plan."""
        body = self._ask("/_log")
        return [tuple(entry) for entry in body["log"]], body["sent"]

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """All files below a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._put(f"/{bucket}/{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def _put(self, path: str, body: bytes | None) -> None:
        request = urllib.request.Request(self.s3 + path, data=body, method="PUT", headers={"Content-Type": "application/octet-stream"})
        urllib.request.urlopen(request, timeout=30).close()

    def make(self, bucket: str) -> None:
        """Makes an empty bucket."""
        self._put(f"/{bucket}", None)

    def _ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data=body), timeout=30) as answer:
            return dict(json.loads(answer.read()))


@pytest.fixture(scope="session")
def s3_process(s3_addresses: dict[str, str]) -> Server:
    return Server(**s3_addresses)


@pytest.fixture
def server(s3_process: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server that the environment names, with planted credentials and short pauses."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_process.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "GDAL_HTTP_RETRY_DELAY": "0.01",
    }.items():
        monkeypatch.setenv(name, value)
    s3_process.plan()
    return s3_process
