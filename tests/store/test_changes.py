"""Files of a store that change while it is open: an error that names the file and the chunk, and never pixels of the wrong file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.lineage import write_json
from dinodomain.store import Store, StorePlan, array_record, build_store, open_store, shard
from dinodomain.store.load import load_tables
from dinodomain.store.rewrite import clear_items

KINDS = ("scene", "volume", "stack")


def made(tmp_path: Path, make_pixels, kind: str, name: str = "s", seed: int = 0, codec="fast"):
    shape = {"scene": (2, 96, 96), "volume": (1, 40, 40, 40), "stack": (1, 60, 60)}[kind]
    sources = {}
    for i in range(3 if kind == "stack" else 1):
        pixels = np.maximum(make_pixels(shape, "uint16", seed=seed + i), 1)
        pixels[..., :9] = 0
        sources[str(i)] = array_record(pixels, nodata=0, layout="whole" if kind == "stack" else "window")
    store = build_store(tmp_path / name, sources, domain="made-up", plan=StorePlan(chunk=None if kind == "stack" else 16, codec=codec))
    for path in store.path.rglob("?"):  # as if it had been made yesterday
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 86400 * 10**9))
    return store


def reader(store, field: str) -> Callable[[], np.ndarray]:
    """Reads everything that the first source has."""
    facts = store.row(0)
    extent = tuple(facts["extent"])

    def read() -> np.ndarray:
        if field == "valid":
            out = np.full(extent, 7, np.uint8)
            assert store.read_valid(0, (0,) * len(extent), out)
        else:
            out = np.full((facts["shape"][0], *extent), 7, np.uint16)
            store.read_box(0, (0,) * len(extent), out)
        return out

    return read


def shard_of(store, field: str) -> Path:
    folder = (store.path / store.row(0)["array"]).parent
    name = "valid" if field == "valid" else store.row(0)["array"].rpartition("/")[2]
    return next(path for path in sorted((folder / name / "c").rglob("*")) if path.is_file())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    with open(path, "r+b") as handle:
        byte = handle.read(1)
        handle.seek(0)
        handle.write(bytes([byte[0] ^ 1]))


def replace(path: Path) -> None:
    shutil.copy2(path, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def attempt(read: Callable[[], np.ndarray], path: Path, right: list[np.ndarray]) -> str:
    """What is wrong with a read that may only give right pixels or the error of a file; "" if nothing is."""
    try:
        found = read()
    except UserError as error:
        return "" if str(path) in str(error) else str(error)
    return "" if any(np.array_equal(found, pixels) for pixels in right) else "wrong pixels"


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"the file was truncated from \d+ to \d+ bytes while it was open"),
    "flipped": (flip, "the file was written to while it was open"),
    "replaced": (replace, "the file was replaced by another while it was open"),
    "removed": (Path.unlink, "the file was removed while it was open"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("field", ["data", "valid"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_changes_while_it_is_mapped_is_named(tmp_path, make_pixels, kind, field, change):
    store = made(tmp_path, make_pixels, kind)
    read, path = reader(store, field), shard_of(store, field)
    read()
    CHANGES[change][0](path)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{path}: chunk \([0-9, ]+\) cannot be read: {CHANGES[change][1]}; open the store again"):
            read()


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - {"truncated"}))  # which may end the process; see below
@pytest.mark.parametrize("field", ["data", "valid"])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_give_right_pixels_or_the_error(tmp_path, make_pixels, kind, field, change):
    store = made(tmp_path, make_pixels, kind)
    read, path = reader(store, field), shard_of(store, field)
    good, changed = read(), threading.Event()

    def often(_: int) -> set[str]:
        early = {attempt(read, path, [good]) for _ in range(20)}
        changed.wait(10)
        return early | {attempt(read, path, []) for _ in range(20)}

    with ThreadPoolExecutor(3) as pool:
        said = pool.map(often, range(3))
        CHANGES[change][0](path)
        changed.set()
        assert set().union(*said) == {""}


def test_rewriting_in_place_over_and_over_never_gives_a_mixture(tmp_path, make_pixels):
    stores = [made(tmp_path, make_pixels, "volume", str(seed), seed, codec="none") for seed in (0, 50)]
    whole = [reader(store, "data")() for store in stores]
    path, versions, stop = shard_of(stores[0], "data"), [shard_of(store, "data").read_bytes() for store in stores], threading.Event()
    assert len(versions[0]) == len(versions[1])  # so each chunk of either is right by its checksum

    def rewrite() -> None:
        turn = 0
        while not stop.wait(0.03):
            turn += 1
            with open(path, "r+b") as handle:
                handle.write(versions[turn % 2])

    writer = threading.Thread(target=rewrite)
    writer.start()
    said = {attempt(lambda: reader(open_store(stores[0].path), "data")(), path, whole) for _ in range(30)}
    stop.set()
    writer.join()
    assert said == {""}


def test_a_change_in_the_tick_of_the_last_one_is_found_by_checksum(tmp_path, make_pixels, monkeypatch):
    monkeypatch.setattr(shard, "_COARSE_NS", 10**15)
    store = made(tmp_path, make_pixels, "scene")
    read, path = reader(store, "data"), shard_of(store, "data")
    read()
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="its checksum differs"):
        read()


def test_a_file_that_was_only_linked_or_made_read_only_is_read_on(tmp_path, make_pixels):
    store = made(tmp_path, make_pixels, "scene")
    read, path = reader(store, "data"), shard_of(store, "data")
    good = read()
    os.link(path, tmp_path / "backup")
    path.chmod(0o400)
    np.testing.assert_array_equal(read(), good)


def test_a_missing_valid_field_is_an_error_and_not_a_field_of_valid_pixels(tmp_path, make_pixels):
    store = made(tmp_path, make_pixels, "scene")
    shutil.rmtree(shard_of(store, "valid").parents[3])
    with pytest.raises(UserError, match=r"valid: holds no zarr.json"):
        reader(open_store(store.path), "valid")()


def test_a_half_finished_withdrawal_is_told_apart(tmp_path, make_pixels):
    store = made(tmp_path, make_pixels, "stack")
    read = reader(store, "data")
    read()
    shutil.copytree(store.path, tmp_path / "tables", ignore=lambda *_: {"stacks"})
    shutil.copytree(tmp_path / "tables", store.path / "withdrawal")
    clear_items((store.path / store.row(0)["array"]).parent, [1])
    with pytest.raises(UserError, match=r"the file was replaced by another while it was open; sources are being withdrawn from this store"):
        read()


def test_shards_that_are_opened_after_a_withdrawal_are_refused_and_after_an_ingest_are_not(tmp_path, make_pixels):
    store = made(tmp_path, make_pixels, "stack")
    second = open_store(store.path)
    write_json(store.path / "manifest.json", {**store.manifest, "counts": {"sources": 9}})
    reader(second, "data")()  # sources were added: what was there is as it was
    third = open_store(store.path)
    write_json(store.path / "manifest.json", {**store.manifest, "withdrawn": [{"date": "2024-01-01"}]})
    with pytest.raises(UserError, match=r"s: sources were withdrawn from this store while it was open; open it again"):
        reader(third, "data")()
    reader(open_store(store.path), "data")()


def test_a_withdrawal_holds_from_when_its_tables_are_there_and_a_store_opened_since_is_the_one_it_leaves(tmp_path, make_pixels):
    store = made(tmp_path, make_pixels, "stack")
    before = open_store(store.path)
    shutil.copytree(store.path, tmp_path / "tables", ignore=lambda *_: {"stacks"})
    write_json(tmp_path / "tables/manifest.json", {**store.manifest, "withdrawn": [{"date": "2024-01-01"}]})
    shutil.copytree(tmp_path / "tables", store.path / "withdrawal")
    with pytest.raises(UserError, match=r"s: sources were withdrawn from this store while it was open"):
        reader(before, "data")()
    since = open_store(store.path)
    shutil.move(store.path / "withdrawal/manifest.json", store.path / "manifest.json")
    reader(since, "data")()


def test_a_withdrawal_between_the_tables_and_the_first_look_is_noticed(tmp_path, make_pixels):
    store = made(tmp_path, make_pixels, "stack")
    tables = load_tables(str(store.path))
    write_json(store.path / "manifest.json", {**store.manifest, "withdrawn": [{"date": "2024-01-01"}]})
    with pytest.raises(UserError, match=r"s: sources were withdrawn"):
        reader(Store(store.path, *tables), "data")()


def test_a_file_cut_short_in_the_middle_of_a_read_ends_a_process_at_worst(tmp_path, make_pixels):
    """What the docstring of ``shard`` admits: a signal or the error, never pixels."""
    store = made(tmp_path, make_pixels, "scene")
    script = f"""
        import os, numpy as np
        from dinodomain.errors import UserError
        from dinodomain.store import open_store, shard
        store = open_store({str(store.path)!r})
        out = np.empty((2, 96, 96), np.uint16)
        store.read_box(0, (0, 0), out)
        plain = shard.put
        def put(*args, **keys):
            os.truncate({str(shard_of(store, "data"))!r}, 0)
            plain(*args, **keys)
        shard.put = put
        try:
            store.read_box(0, (0, 0), out)
        except UserError:
            raise SystemExit(2)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode in (-7, 2)
