"""The benchmark of an accelerator explains itself, and its part on views runs on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinodomain.views import ViewsPlan, matmul

ROOT = Path(__file__).parents[2]


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import accelerator as module

    return module


def test_help_names_the_parts():
    command = [sys.executable, str(ROOT / "benchmarks/accelerator.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "views, read, step or small" in shown


def test_views_on_a_cpu_give_rates_and_launches(accelerator, monkeypatch):
    small = ("small", (3, 80, 80), torch.uint8, accelerator.PLANE, ViewsPlan(global_size=32, local_size=16), 2, 1)
    tiny = ("tiny step", 32, 1, 2, 2, 0.3, (3, 80, 80), torch.uint8, accelerator.PLANE, ViewsPlan(global_size=32, local_size=16))
    monkeypatch.setattr(accelerator, "INPUTS", (small,))
    monkeypatch.setattr(accelerator, "STEPS", (tiny,))
    monkeypatch.setattr(accelerator, "PROTOTYPES", 64)
    rows = {found["measure"]: found["ours"] for found in accelerator.views(1, True, "cpu")}
    assert set(rows) == {"views, source on the device", "launches of a batch of views", "views' share of a step"}
    assert all(value > 0 for value in rows.values())
    assert accelerator._kinds("cuda") == (False, True)
    with accelerator.products(False):
        assert matmul.SPLIT is False
    assert matmul.SPLIT is True
