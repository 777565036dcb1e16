"""A small store with two buckets, a held-out unit and tiles that are mostly empty."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dinodomain.loader.job import Job, Part
from dinodomain.store import Store, StorePlan, array_record, build_store
from dinodomain.store.format import extent_of
from dinodomain.store.schema import CHUNK_SCHEMA, INDEX_SCHEMA


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


@pytest.fixture(scope="session")
def made_up_store():
    """Makes a store that has tables but no arrays: enough for everything that decides what is read."""
    return _tables_only


def _tables_only(shapes, *, chunks, layouts="window", fraction=1.0, holdout=False, ndim=2, chunk_units=None, **columns):
    """One source per shape (C, (Z,) Y, X).

    ``chunks`` is one side per source; whole images have the extent of their slot. ``fraction`` and ``holdout`` are a value or one per row
    of the chunk table; other keywords are columns of the index.
    """
    num = len(shapes)
    layouts = [layouts] * num if isinstance(layouts, str) else layouts
    sides = [
        list(extent_of(shape[1:])) if layout == "whole" else [side] * ndim
        for shape, layout, side in zip(shapes, layouts, chunks, strict=True)
    ]
    cells = [np.indices([-(-a // b) for a, b in zip(shape[1:], side)]).reshape(ndim, -1).T for shape, side in zip(shapes, sides)]
    rows = np.repeat(np.arange(num), [len(part) for part in cells])
    given = {
        "source_id": [f"s{i:05d}" for i in range(num)],
        "array": [f"scenes/{i}/data" for i in range(num)],
        "item": [-1] * num,
        "layout": layouts,
        "channels": [[f"c{j}" for j in range(shape[0])] for shape in shapes],
        "dtype": ["uint16"] * num,
        "shape": [list(map(int, shape)) for shape in shapes],
        "extent": sides,
        "chunk": sides,
        "content_hash": [hashlib.sha256(str(i).encode()).hexdigest() for i in range(num)],
        # Dated scenes have ground cells for units, which the chunk table holds.
        "unit": [""] * num if "acquired" in columns else [f"u{i}" for i in range(num)],
        "holdout": [False] * num,
        **columns,
    }
    index = [pa.array(given[item.name], item.type) if item.name in given else pa.nulls(num, item.type) for item in INDEX_SCHEMA]
    chunk = [
        pa.array(rows, pa.int32()),
        pa.array([cell for part in cells for cell in part.tolist()], CHUNK_SCHEMA.field("chunk").type),
        pa.array(chunk_units if chunk_units is not None else [""] * len(rows), pa.string()),
        pa.array(np.broadcast_to(holdout, len(rows))),
        pa.array(np.broadcast_to(fraction, len(rows)).astype(np.float32)),
        pa.nulls(len(rows), pa.string()),
    ]
    return Store(
        Path("made-up"),
        {"digests": {"index.parquet": "", "chunks.parquet": ""}, "domain": "made-up", "ndim": ndim},
        pa.Table.from_arrays(index, schema=INDEX_SCHEMA),
        pa.Table.from_arrays(chunk, schema=CHUNK_SCHEMA),
        {},
    )


@pytest.fixture(scope="session")
def make_jobs():
    """Jobs of one bucket, made by hand: ``draws`` parts a job, each drawn again ``spread`` jobs later, ``dates`` images a sample."""

    def make(tiles, count, *, batch=8, draws=1, spread=2, dates=1, bucket=0, first=0):
        members, size = tiles.members[bucket], batch // draws

        def part(group, step):
            rng = np.random.default_rng(group)
            chosen = rng.choice(members, (size, dates))
            key, last = (bucket, group), step >= group + (draws - 1) * spread
            return Part(key=key, rows=tiles.rows[chosen], starts=tiles.starts[chosen], last=last), tiles.tile_ids[chosen[:, 0]]

        def job(step):
            parts, ids = zip(*[part(group, step) for j in range(draws) if (group := step - j * spread) >= 0])
            total = sum(len(found) for found in ids)
            numbers = np.arange(total, dtype=np.int64)
            return Job(bucket=bucket, parts=parts, tile_ids=np.concatenate(ids), epochs=numbers + step, draws=numbers % 3, slots=numbers)

        return (job(step) for step in range(first, count))

    return make
