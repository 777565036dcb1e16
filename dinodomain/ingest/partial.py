"""``STORE.partial``: where an ingest works, and how its result is moved into place.

    lock            held while an ingest runs: by one that finishes the store alone, or by any number of jobs that only stage their share
    shards/<job>    held by the one run of that job
    work/           what a worker is writing; thrown away at the next start (``work/<job>`` by the next run of that job)
    scratch/        what a domain unpacks or fetches
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
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dinodomain.errors import UserError
from dinodomain.lineage import Json, canonical, sync_folder, to_json, write_json
from dinodomain.store.codec import crc32c
from dinodomain.store.format import CHUNKS, INDEX, LINEAGE, MANIFEST, PENDING

_REMEDIES = {
    errno.ENOSPC: "free space and run again: what is done is kept",
    errno.EDQUOT: "raise your quota and run again: what is done is kept",
    errno.EFBIG: "raise the largest file size that is allowed (ulimit -f, or the file system's) and run again: what is done is kept",
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
        job: Name of the job of a job array, for example ``2-of-8``; empty for a run that finishes the store.
    """

    store: Path
    job: str = ""

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
        """What a worker is writing at the moment; jobs that run side by side keep apart."""
        return self.root / "work" / self.job

    @property
    def scratch(self) -> Path:
        """Where a domain unpacks or fetches files; jobs that run side by side keep apart."""
        return self.root / "scratch" / self.job

    @property
    def _commit(self) -> Path:
        return self.root / "commit.json"

    def staged(self, stored: str) -> Path:
        """A whole image that waits to be packed."""
        return self.root / "staged" / stored

    def _done(self, stored: str) -> Path:
        return self.root / "done" / f"{stored}.json"

    def open(self) -> contextlib.ExitStack:
        """Makes the folders, takes the locks and clears what a killed run was writing.

        Returns:
            Holds the locks until it is closed.

        Raises:
            UserError: Another ingest works on this store, or an interrupted run must be finished before jobs may stage.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(self._lock("lock", shared=bool(self.job)))
            if self.job:
                if self._commit.exists() or (self.store / PENDING).exists():
                    remedy = "run it once without ingest.shard, then start the jobs again"
                    raise UserError("ingest.shard", f"an interrupted run has yet to finish {str(self.store)!r}", remedy=remedy)
                held.enter_context(self._lock(f"shards/{self.job}", shared=False))
            for name in ("done", "staged", "tree"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            for left in (self.work, *(self.root.parent.glob(f".{glob.escape(self.root.name)}.*.old"))):
                shutil.rmtree(left, ignore_errors=True)
            self.work.mkdir(parents=True, exist_ok=True)
            return held.pop_all()

    def _lock(self, name: str, *, shared: bool) -> IO[bytes]:
        """Takes a lock that is still in its place: a run that finishes the store removes the folder, locks and all."""
        path = self.root / name
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock = path.open("ab")
            except FileNotFoundError:  # removed between the two lines
                continue
            try:
                fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._busy(lock, name) from None
            if _is_at(lock, path):
                return lock
            lock.close()

    def _busy(self, lock: IO[bytes], name: str) -> UserError:
        """Says who holds a lock."""
        with lock:
            if name != "lock":
                return UserError("ingest.shard", f"job {self.job} is running already", remedy="wait for it, or stop it")
            if self.job:
                problem = f"another ingest is finishing {str(self.store)!r}, or withdraws from it"
                return UserError("ingest.shard", problem, remedy="wait for it, then start the jobs again")
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return UserError("store", f"another ingest is writing {str(self.store)!r}", remedy="wait for it, or stop it")
            problem = f"jobs with ingest.shard are still staging for {str(self.store)!r}"
            return UserError("store", problem, remedy="wait until all of them are done, or stop them")

    @contextlib.contextmanager
    def open_after_commit(self) -> Iterator[None]:
        """Holds the lock, and first finishes a move that a killed run had begun."""
        with self.open() as held:
            if self.finish_commit():
                held.close()
                with self.open():
                    yield
            else:
                yield

    def remove(self) -> None:
        """Throws the folder away. Moved aside first: a job that starts meanwhile begins a new one."""
        aside = self.root.with_name(f".{self.root.name}.{secrets.token_hex(4)}.old")
        self.root.rename(aside)
        shutil.rmtree(aside)

    def forget_all(self) -> None:
        """Throws away whatever is staged, unpacked or fetched."""
        for name in ("done", "staged", "tree", "scratch"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(mode=0o700 if name == "scratch" else 0o777)  # what is unpacked has its clear names

    def remove_if_unused(self) -> None:
        """Throws the folder away where nothing is staged or fetched; other jobs may have just begun to."""
        kept = (path for name in ("done", "staged", "tree", "scratch") for path in (self.root / name).rglob("*") if path.is_file())
        if not self.job and not self._commit.exists() and self.root.exists() and next(kept, None) is None:
            self.remove()

    def _fresh(self, stored: str) -> Path:
        """A path that nobody else works at, on this machine or another."""
        return self.work / f"{stored}.{secrets.token_hex(8)}"

    def workplace(self, stored: str) -> Path:
        """A fresh folder for one source; two workers, even on two machines, never share one."""
        return self._fresh(stored)

    def keep_image(self, stored: str, record: Mapping[str, Json], pixels: np.ndarray, bits: np.ndarray | None) -> None:
        """Stages a whole image and its done record in one file. Not synced: its checksum is looked at when it is packed."""
        self._done(stored).unlink(missing_ok=True)
        temporary = self._fresh(stored)
        with open(temporary, "wb") as handle:
            handle.write(_line(record))
            np.save(_Plain(handle), pixels, allow_pickle=False)
            bits = np.zeros(0, np.uint8) if bits is None else bits
            np.save(_Plain(handle), bits, allow_pickle=False)
            handle.write(_checksum(pixels, bits))
        temporary.rename(self.staged(stored))

    def load_image(self, stored: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels and bit field of a staged image; ValueError or EOFError where the file is not what was written."""
        with open(self.staged(stored), "rb") as handle:
            handle.readline()
            pixels, bits = np.load(handle, allow_pickle=False), np.load(handle, allow_pickle=False)
            if handle.read() != _checksum(pixels, bits):
                raise ValueError("the checksum differs")
        return pixels, (bits if bits.size else None)

    def keep_folder(self, place: Path, folder: str, stored: str, record: Mapping[str, Json]) -> None:
        """Moves a finished folder to its place in the tree, and then says that its source is complete.

        Where a worker that was thought dead, or another job, was first with the very same, its result stays.
        """
        target = self.tree / folder
        if target.is_dir() and self.read_done(stored) == to_json(record):
            shutil.rmtree(place)
            return
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
            write_json(self._commit, {"merge": True})
            self._merge()
        else:
            self.tree.rename(self.store)
            sync_folder(self.store.parent)
        self.remove()

    def finish_commit(self) -> bool:
        """Finishes a move that was cut short; True if there was one."""
        if not self._commit.exists():
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


class _Plain:
    """A file that numpy does not take for one: writing to a real file, it hides why the disk refused."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.write = handle.write


def _is_at(handle: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _checksum(pixels: np.ndarray, bits: np.ndarray) -> bytes:
    """crc32c of both, 16 hex digits."""
    return b"".join(f"{crc32c(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data):08x}".encode() for part in (pixels, bits))


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
