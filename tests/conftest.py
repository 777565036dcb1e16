"""Fixtures shared by all rooms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans and scenes; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("DINODOMAIN_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()
    if not root.is_dir():
        pytest.skip("no real data: set DINODOMAIN_TEST_DATA")
    return root


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What ``fsync`` guards against is a loss of power, which no test brings about: a killed process loses nothing that it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def s3_addresses() -> Iterator[dict[str, str]]:
    """An S3 server on loopback, a process of its own (``s3_server.py``): ``s3`` serves, ``proxy`` counts and fails where it is told to."""
    pytest.importorskip("moto")
    script = Path(__file__).with_name("s3_server.py")
    child = subprocess.Popen([sys.executable, "-W", "ignore", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    yield json.loads(child.stdout.readline())
    child.stdin.close()
    child.wait(timeout=30)
    child.stdout.close()
