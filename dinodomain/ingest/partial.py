"""``STORE.partial``: where an ingest works, and how its result is moved into place.

    lock            held while an ingest runs
    work/           what a worker is writing; thrown away at the next start
    done/<id>.json  a window source that is complete: written after its arrays
    staged/<id>     a whole image that waits to be packed: its done record, pixels, bit field
    tree/           the arrays, and at the end index, chunk table, lineage and manifest: the store, or what is added to one
    commit.json     tree is complete and is being moved into an existing store

A new store is one rename. Adding to a store moves arrays first, then the tables, the manifest last; ``commit.json`` lets the next
run finish that. Nothing here knows what is in an array.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dinodomain.errors import UserError
from dinodomain.lineage import Json, canonical, sync_folder, write_json
from dinodomain.store.format import CHUNKS, INDEX, LINEAGE, MANIFEST

_REMEDIES = {
    errno.ENOSPC: "free space and run again: what is done is kept",
    errno.EDQUOT: "raise your quota and run again: what is done is kept",
    errno.EROFS: "choose a folder you may write to",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
}


@contextlib.contextmanager
def disk_errors(store: Path) -> Iterator[None]:
    """Turns a failure of the disk into one clear message."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and run again: what is done is kept")
        raise UserError("store", f"cannot write {error.filename or str(store)!r}: {error.strerror or error}", remedy=remedy) from error


@dataclass(frozen=True, slots=True)
class Partial:
    """Paths and moves of one ``STORE.partial``; picklable.

    Attributes:
        store: Folder of the store.
    """

    store: Path

    @property
    def root(self) -> Path:
        """``STORE.partial``."""
        return self.store.with_name(self.store.name + ".partial")

    @property
    def tree(self) -> Path:
        """What becomes the store, or is moved into it."""
        return self.root / "tree"

    @property
    def work(self) -> Path:
        """What a worker is writing at the moment."""
        return self.root / "work"

    def staged(self, stored: str) -> Path:
        """A whole image that waits to be packed."""
        return self.root / "staged" / stored

    def _done(self, stored: str) -> Path:
        return self.root / "done" / f"{stored}.json"

    def open(self) -> IO[bytes]:
        """Makes the folders, takes the lock and clears what a killed run was writing.

        Raises:
            UserError: Another ingest works on this store.
        """
        for name in ("done", "staged", "tree"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        lock = (self.root / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError("store", f"another ingest is writing {str(self.store)!r}", remedy="wait for it, or stop it") from None
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        return lock

    @contextlib.contextmanager
    def open_after_commit(self) -> Iterator[None]:
        """Holds the lock, and first finishes a move that a killed run had begun."""
        lock = self.open()
        with lock:
            if self.finish_commit():
                lock.close()
                with self.open():
                    yield
            else:
                yield

    def remove(self) -> None:
        """Throws the folder away."""
        shutil.rmtree(self.root)

    def workplace(self, stored: str) -> Path:
        """A fresh folder for one source of one process."""
        place = self.work / f"{stored}.{os.getpid()}"
        shutil.rmtree(place, ignore_errors=True)
        return place

    def keep_image(self, stored: str, record: Mapping[str, Json], pixels: np.ndarray, bits: np.ndarray | None) -> None:
        """Stages a whole image and its done record in one file. Not synced: its content hash is checked when it is packed."""
        self._done(stored).unlink(missing_ok=True)
        temporary = self.work / f"{stored}.{os.getpid()}"
        with open(temporary, "wb") as handle:
            handle.write(_line(record))
            np.save(handle, pixels, allow_pickle=False)
            np.save(handle, np.zeros(0, np.uint8) if bits is None else bits, allow_pickle=False)
        temporary.rename(self.staged(stored))

    def load_image(self, stored: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels and bit field of a staged image; ValueError or EOFError where the file lost its end."""
        with open(self.staged(stored), "rb") as handle:
            handle.readline()
            pixels, bits = np.load(handle, allow_pickle=False), np.load(handle, allow_pickle=False)
        return pixels, (bits if bits.size else None)

    def keep_folder(self, place: Path, folder: str, stored: str, record: Mapping[str, Json]) -> None:
        """Moves a finished folder to its place in the tree, and then says that its source is complete."""
        target = self.tree / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        self.forget(stored)
        shutil.rmtree(target, ignore_errors=True)
        place.rename(target)
        sync_folder(target.parent)
        write_json(self._done(stored), record)

    def read_done(self, stored: str) -> dict[str, Json] | None:
        """The done record of a source, or None."""
        try:
            if self._done(stored).exists():
                record: dict[str, Json] = json.loads(self._done(stored).read_bytes())
                return record
            with open(self.staged(stored), "rb") as handle:
                return _from_line(handle.readline())
        except (FileNotFoundError, ValueError):  # never written, or lost its end in a power cut
            return None

    def forget(self, stored: str) -> None:
        """Takes a done record back."""
        self._done(stored).unlink(missing_ok=True)
        self.staged(stored).unlink(missing_ok=True)

    def clear_tree(self, folders: set[str]) -> None:
        """Leaves only these source folders in the tree: no stacks, no tables, nothing of a source that is not wanted any more."""
        for name in ("stacks", INDEX, CHUNKS, LINEAGE, MANIFEST, "zarr.json"):
            _remove(self.tree / name)
        for top in ("scenes", "volumes"):
            for path in (self.tree / top).glob("*"):
                if f"{top}/{path.name}" not in folders:
                    _remove(path)
            with contextlib.suppress(OSError):  # not empty, or not there
                (self.tree / top).rmdir()

    def commit(self) -> None:
        """Makes the tree the store, or moves it into the store; then removes the folder."""
        if (self.store / MANIFEST).exists():
            write_json(self.root / "commit.json", {"merge": True})
            self._merge()
        else:
            self.tree.rename(self.store)
            sync_folder(self.store.parent)
        self.remove()

    def finish_commit(self) -> bool:
        """Finishes a move that was cut short; True if there was one."""
        if not (self.root / "commit.json").exists():
            return False
        self._merge()
        self.remove()
        return True

    def _merge(self) -> None:
        """Every step is a rename that is skipped once done, so that it can be cut short and repeated at any point."""
        if self.tree.exists():
            folders = [path for top in ("scenes/*", "volumes/*", "stacks/*/*") for path in sorted(self.tree.glob(top)) if path.is_dir()]
            for path in folders:
                target = self.store / path.relative_to(self.tree)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
                sync_folder(target.parent)
            for path in sorted(self.tree.rglob("zarr.json")):
                path.replace(self.store / path.relative_to(self.tree))
        for name in (LINEAGE, CHUNKS, INDEX, MANIFEST):
            if (self.tree / name).exists():
                (self.tree / name).replace(self.store / name)
        sync_folder(self.store)


def _line(record: Mapping[str, Json]) -> bytes:
    """A record as one line that can be checked."""
    body = canonical(record).encode()
    return hashlib.sha256(body).hexdigest().encode() + b" " + body + b"\n"


def _from_line(line: bytes) -> dict[str, Json]:
    own, _, body = line.rstrip(b"\n").partition(b" ")
    if hashlib.sha256(body).hexdigest().encode() != own:
        raise ValueError("the line is not what was written")
    record: dict[str, Json] = json.loads(body)
    return record


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
