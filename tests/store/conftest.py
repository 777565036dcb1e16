"""Made-up sources that compress like images and hold every stored dtype; servers on loopback that stores are uploaded to."""

from __future__ import annotations

import itertools
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinodomain.store import remote

KEY, SECRET = "AKIAPLANTEDKEY0000002", "wJalrXUtnFEMI-planted-secret-of-a-store"
NAMES = itertools.count()


def smooth(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Ramps plus noise."""
    rng = np.random.default_rng(seed)
    ramps = sum(np.linspace(0, 1 + axis, size).reshape((-1,) + (1,) * (len(shape) - 1 - axis)) for axis, size in enumerate(shape))
    noisy = ramps * 20 + rng.normal(0, 3, shape) + 40
    return (noisy - 60 if dtype == "int16" else noisy).astype(dtype)


@pytest.fixture
def make_pixels():
    return smooth


def plain_box(pixels: np.ndarray, start, extent) -> np.ndarray:
    """The slow twin of read_box: pad with zeros, then slice."""
    pads = [(0, 0)] + [(max(0, -a), max(0, a + n - size)) for a, n, size in zip(start, extent, pixels.shape[1:])]
    moved = [a + low for a, (low, _) in zip(start, pads[1:])]
    return np.pad(pixels, pads)[(slice(None), *(slice(a, a + n) for a, n in zip(moved, extent)))]


@pytest.fixture(name="plain_box")
def _plain_box():
    return plain_box


class Server:
    """An S3 server on loopback behind a proxy that counts, and fails where it is told to (``s3_server.py``)."""

    key, secret = KEY, SECRET

    def __init__(self, s3: str, proxy: str) -> None:
        self.s3, self.url = s3, proxy

    def plan(self, *pattern: str | None, match: str = "") -> None:
        """What befalls the requests whose path matches, in turn; counting begins anew."""
        self._ask("/_plan", json.dumps({"match": match, "pattern": pattern}).encode())

    def seen(self, match: str = "") -> list[str]:
        """Paths asked for since the last plan."""
        return [path for _, path, _ in self._ask("/_log")["log"] if match in path]

    def faults(self) -> list[str | None]:
        """What befell each request since the last plan."""
        return [fault for _, _, fault in self._ask("/_log")["log"]]

    def sent(self) -> int:
        """Bytes of answers since the last plan."""
        return int(self._ask("/_log")["sent"])

    def upload(self, folder: Path) -> str:
        """Copies a store into a new bucket; its URL."""
        bucket = f"stores{next(NAMES)}"
        self.put(f"{bucket}", None)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{bucket}/deep/store/{path.relative_to(folder).as_posix()}", path.read_bytes())
        self.plan()
        return f"s3://{bucket}/deep/store"

    def put(self, key: str, body: bytes | None, method: str = "PUT") -> None:
        # Any signature will do, but without one nothing is written over.
        signed = "AWS4-HMAC-SHA256 Credential=a/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=a"
        headers = {"Content-Type": "application/octet-stream", "Authorization": signed}
        request = urllib.request.Request(f"{self.s3}/{key.removeprefix('s3://')}", data=body, method=method, headers=headers)
        urllib.request.urlopen(request, timeout=30).close()

    def _ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data=body), timeout=30) as answer:
            return dict(json.loads(answer.read()))


@pytest.fixture(scope="session")
def s3_process(s3_addresses: dict[str, str]) -> Server:
    pytest.importorskip("obstore")
    return Server(**s3_addresses)


@pytest.fixture
def server(s3_process: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server that the environment names, with planted credentials and short pauses."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": s3_process.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.002)
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.01)
    s3_process.plan()
    return s3_process
