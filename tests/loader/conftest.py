"""A small store with two buckets, a held-out unit and tiles that are mostly empty."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.store import StorePlan, array_record, build_store


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Twelve 2-channel scenes of several sizes in five units, chunk 16; unit u4 is held out; one scene is half nodata."""
    rng = np.random.default_rng(0)
    sources = {}
    for i in range(12):
        pixels = rng.integers(1, 4000, (2, 40 + i, 50)).astype(np.uint16)
        if i == 3:
            pixels[:, :, 16:] = 0
        sources[f"s{i:02d}"] = array_record(pixels, channels=("vv", "vh"), nodata=0, spacing=(10.0, 10.0))
    units = {name: f"u{int(name[1:]) % 5}" for name in sources}
    path = tmp_path_factory.mktemp("scenes") / "store"
    return build_store(path, sources, domain="made-up", units=units, holdout=("u4",), plan=StorePlan(chunk=16))


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Whole images in two buckets, 23 and 9 of them."""
    rng = np.random.default_rng(1)
    sizes = [(28, 30)] * 23 + [(60, 20)] * 9
    sources = {f"{i:03d}": array_record(rng.integers(0, 255, (3, *size)).astype(np.uint8), layout="whole") for i, size in enumerate(sizes)}
    return build_store(tmp_path_factory.mktemp("images") / "store", sources, domain="made-up")
