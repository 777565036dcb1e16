"""Fixtures of the ingest tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dinodomain.ingest import IngestPlan, ingest
from dinodomain.testing import SyntheticImages


class Archive(SyntheticImages):
    """Patterns whose headers a test may change: ``change(ref)`` gives a ref, a BadSource or a LeftOut; ``record(ref, record)`` a record."""

    __slots__ = ("change", "record")

    def __init__(self, change: Callable = lambda ref: ref, record: Callable = lambda ref, record: record, **settings) -> None:
        super().__init__(**settings)
        object.__setattr__(self, "change", change)
        object.__setattr__(self, "record", record)

    def discover(self, source, select) -> Iterator:
        return (self.change(ref) for ref in super().discover(source, select))

    def read(self, ref):
        return self.record(ref, super().read(ref))


@pytest.fixture
def archive():
    """Makes a domain of patterns whose headers a test may change."""
    return Archive


@pytest.fixture
def snapshot():
    """Every file below a folder with its bytes, so that two stores can be compared."""

    def take(root: Path) -> dict[str, bytes]:
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    return take


@pytest.fixture
def run():
    """Ingests in this process, quietly."""

    def call(source, store, domain=None, **plan):
        domain = SyntheticImages() if domain is None else domain
        settings = {"workers": 0, **plan}
        plan = IngestPlan(domain=domain.name, source=str(source), store=str(store), **settings)
        return ingest(plan, domain=domain, progress=lambda done, total: None)

    return call


@pytest.fixture
def write_images():
    """Writes small images, each a constant of its own."""

    def write(folder: Path, names, shape=(3, 20, 24)) -> Path:
        for number, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full(shape, 10 + number, np.uint8)
            pixels[..., 0, 0] = 200 - number
            np.save(path, pixels)
        return folder

    return write


class Crash(BaseException):
    """Stands for a power cut: nothing catches it."""


class Countdown:
    """Lets so many renames pass, and crashes at the next; a rename is what makes every step of an ingest count."""

    def __init__(self, monkeypatch, left: int) -> None:
        self.left = left
        for owner, name in ((Path, "rename"), (Path, "replace"), (os, "replace")):
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))

    def _wrap(self, real):
        def call(*args):
            if self.left == 0:
                raise Crash
            self.left -= 1
            return real(*args)

        return call


@pytest.fixture
def crash_everywhere(monkeypatch):
    """Crashes an attempt at its first, second ... rename, each time on a fresh copy, and lets ``check`` look; until one gets through."""

    def everywhere(attempt, reset, check) -> int:
        for left in range(200):
            reset()
            with monkeypatch.context() as patch:
                Countdown(patch, left)
                try:
                    attempt()
                except Crash:
                    pass
                else:
                    return left
            check(left)
        raise AssertionError("it never ends")

    return everywhere
