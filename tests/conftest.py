"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
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
