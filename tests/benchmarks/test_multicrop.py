"""The multi-crop table: every peer makes the same views, a missing one says so, memory is what a batch takes, agreement is in units."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("input_name", ["RGB uint8 384^2", "12-band uint16 256^2"])
def test_every_installed_peer_makes_two_large_and_eight_small_views_of_every_image(benchmarks, monkeypatch, input_name):
    pytest.importorskip("albumentations")
    pytest.importorskip("torchvision")
    multicrop = benchmarks("multicrop")
    case = next(case for case in multicrop.CASES if case.name == input_name)
    images = case.images(True, None)
    made = {}
    for peer in case.peers:
        module = peer.build.split(".")[0]
        if module not in ("torchvision_v2", "albumentations_cv2"):
            continue
        peers = benchmarks(f"peers.{module}")
        monkeypatch.setattr(peers, "collate", lambda done, name=peer.name: made.update({name: done}) or len(done))
        assert peer.pipeline(images)(1) == len(images.pixels)
    assert len(made) == 2
    for done in made.values():
        shapes = [tuple(view.shape) for view in done[0]]
        assert shapes == [(images.channels, 224, 224)] * 2 + [(images.channels, 96, 96)] * 8
        assert all(view.dtype == torch.float32 for view in done[0])


def test_a_peer_that_is_missing_gets_a_row_that_says_so_and_no_ratio(benchmarks):
    multicrop = benchmarks("multicrop")
    peer = multicrop.Peer(name="someone", build="nowhere.rgb", note="", target=2.0)
    case = multicrop.Case(
        name="tiny", images=lambda quick, data: None, policies={"ours": multicrop.PLANE}, plan=multicrop.ViewsPlan(), peers=(peer,)
    )
    images = multicrop.Images(pixels=torch.zeros(1, 3, 64, 64, dtype=torch.uint8), low=0.0, high=255.0, kind="synthetic")
    _, missing = multicrop.build(case, images)
    found = multicrop._row("multi-crop", "tiny", "samples/CPU-s", peer, {"ours": [3.0]}, missing, peer.target)
    assert found["ratio"] is None
    assert found["peer_value"].startswith("not installed")


def test_peak_memory_is_what_a_batch_takes_beyond_its_images(benchmarks):
    memory = benchmarks("peers.memory")
    if not memory.measurable():
        pytest.skip("this system keeps no peak that can be reset")

    def run(turn: int) -> int:
        np.ones(40_000_000, np.uint8)
        return 4

    assert 9 < memory.peak_megabytes(run, 3) < 14


def test_a_difference_is_in_physical_units_and_after_the_clip(benchmarks):
    agreement = benchmarks("agreement")
    images = agreement.Images(pixels=torch.zeros(1, 1, 2, 2), low=0.0, high=10000.0, kind="synthetic")
    apart = agreement.Difference()
    apart.add(np.array([100.0, -50.0]), np.array([103.0, -20.0]), images, 1e-4)
    apart.add(np.array([5.0, 5.0]), np.array([5.0, 5.0]), images, 1e-4)
    assert apart.largest == pytest.approx(3e-4)
    assert apart.rms == pytest.approx(1.5e-4)


def test_others_agree_with_the_renderers_on_made_up_images(benchmarks):
    for package in ("torchvision", "PIL"):
        pytest.importorskip(package)
    agreement = benchmarks("agreement")
    source = agreement.Source(name="tiny", load=lambda data: _floats(agreement), unit="dB", scale=1.0, bound=0.05, sides=(16, 32))
    rows = list(agreement.compare(source, 3, torch.device("cpu"), None))
    assert {(row["renderer"], row["peer"]) for row in rows} >= {("Matmul", "torchvision"), ("Banded", "PIL"), ("Resize", "float64 twin")}
    assert all(row["holds"] for row in rows)


def _floats(agreement):
    pixels = agreement.content.smooth(1, 2, (64, 80), -50, 10, torch.float32)
    return agreement.Images(pixels=pixels, low=-50.0, high=10.0, kind="synthetic")
