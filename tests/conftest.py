"""Fixtures shared by all rooms."""

from __future__ import annotations

import json
import math
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


class Killed(BaseException):
    """The process is no more; whoever in it still tries to touch the disk finds the same."""


class Death:
    """A context in which the process dies at its n-th operation on the disk; ``done`` lists the operations before that."""

    OPERATIONS = ("open", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync")
    error = Killed

    def __init__(self, number: float) -> None:
        self.number, self.done, self._patch = number, [], pytest.MonkeyPatch()

    def __enter__(self) -> Death:
        for name in self.OPERATIONS:
            self._patch.setattr(os, name, self._dying(name, getattr(os, name)))
        from safetensors import torch

        self._patch.setattr(torch, "save_file", self._dying("save_file", torch.save_file))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _dying(self, name, plain):
        def call(*args, **keys):
            if len(self.done) < self.number:
                self.done.append(name)
                return plain(*args, **keys)
            if name == "save_file" and self.number < math.inf:  # the file is torn, and only the first one
                plain(*args, **keys)
                os.truncate(args[1], 9)
            self.number = -1
            raise Killed

        return call


@pytest.fixture
def dies_at() -> type[Death]:
    """``with dies_at(n): ...`` kills this process, as far as the disk can tell, at its n-th operation; raises ``dies_at.error``."""
    return Death


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
