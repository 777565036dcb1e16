from __future__ import annotations

from pathlib import Path

import pytest

from dinodomain.checkpoint.baseline import START, baseline_of


def make_run(run: Path, *, warm: bool = True) -> Path:
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / START).parent.mkdir()
    (run / "backbones" / "best.safetensors").touch()
    if warm:
        (run / START).touch()
    return run


PLACES = (".", "checkpoints/step-000001", "backbones/best.safetensors")


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_wherever_one_stands(tmp_path, monkeypatch, place):
    run = make_run(tmp_path / "runs" / "a")
    for here, path in (
        (run, Path(place)),
        (run.parent, Path("a") / place),
        ((run / place).parent if place != "." else run, Path((run / place).name if place != "." else ".")),
        (run / "checkpoints", Path("..") / place),
    ):
        monkeypatch.chdir(here)
        assert baseline_of(path) == baseline_of(str(path)) == run / START, (here, path)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_within_another_has_its_own_or_none(tmp_path, place):
    outer = make_run(tmp_path / "outer")
    fresh, warm = make_run(outer / "fresh", warm=False), make_run(outer / "checkpoints" / "warm")
    assert baseline_of(fresh / place) is None
    assert baseline_of(warm / place) == warm / START


def test_links_are_followed_both_ways(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "latest.safetensors").symlink_to(run / "backbones" / "best.safetensors")
    assert baseline_of(tmp_path / "latest.safetensors") == run / START
    (run / "checkpoints").rename(tmp_path / "scratch")
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    assert baseline_of(run / "checkpoints" / "step-000001") == run / START


def test_what_is_no_checkpoint_of_a_run_has_none(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.chdir(run / "backbones")
    assert baseline_of("start.safetensors") is None, "it is the baseline itself"
    assert baseline_of("hub:owner/name") is None
    assert baseline_of(tmp_path) is None
