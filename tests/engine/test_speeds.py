"""Loader keys are recommended from what was measured on this store and machine."""

from __future__ import annotations

import json

import pytest

from dinodomain.engine import speeds as room
from dinodomain.engine.doctor import DoctorPlan, doctor
from dinodomain.engine.speeds import Speed, measure_speeds, recommend, settings
from dinodomain.errors import UserError
from dinodomain.loader import LoaderPlan
from dinodomain.store import open_store


def speed(workers: int, threads: int, rate: float) -> Speed:
    return Speed(workers=workers, threads=threads, samples_per_s=rate, bytes_per_s=1e6 * rate)


def test_settings_go_from_this_process_to_all_cores():
    assert settings(1, 2) == [(0, 0), (0, 2), (1, 2)]
    assert settings(8, 2) == [(0, 0), (0, 2), (1, 2), (2, 2), (4, 2), (8, 2)]
    assert settings(6, 1) == [(0, 0), (0, 1), (1, 1), (2, 1), (4, 1), (6, 1)]
    assert settings(0, 2) == [(0, 0), (0, 2)], "no processes were asked for"


def test_the_cheapest_setting_that_is_nearly_the_fastest_is_recommended():
    found = [speed(0, 0, 100), speed(0, 2, 980), speed(1, 2, 500), speed(2, 2, 950), speed(4, 2, 1000)]
    assert recommend(found, cores=2) is found[1]
    assert recommend(found, cores=8) is found[3], "threads of this process would hinder training"
    assert recommend(found[:2], cores=8) is found[1], "where no processes were tried"


def test_a_store_is_read_by_every_setting_and_told_as_a_table(store, monkeypatch):
    monkeypatch.setattr(room, "usable_cores", lambda: 4)
    monkeypatch.setattr(room, "ROUNDS", 1)
    found = measure_speeds(open_store(store), LoaderPlan(batch=4, prefetch=2), seconds=0.06)
    assert [(one.workers, one.threads) for one in found.speeds] == [(0, 0), (0, 2), (1, 2), (2, 2)]
    assert all(one.bytes_per_s == pytest.approx(one.samples_per_s * 3 * 32 * 32, rel=0.5) for one in found.speeds)
    lines = found.text().splitlines()
    assert lines[1].split() == ["who", "reads", "samples/s", "MB/s", "ms", "per", "4"]
    assert [line[:25].strip() for line in lines[2:6]] == [
        "the calling thread", "2 threads of this process", "1 process of 2 threads", "2 processes of 2 threads",
    ]  # fmt: skip
    assert lines[6] == f"recommended: loader.workers={found.best.workers} loader.threads=2"
    assert any("would wait for data" in line for line in lines[7:])
    data = json.loads(json.dumps(found.as_json()))
    assert data["recommended"] == {"loader.workers": found.best.workers, "loader.threads": 2}
    assert len(data["speeds"]) == 4


def test_the_doctor_measures_at_most_as_many_processes_as_asked(store, monkeypatch):
    monkeypatch.setattr(room, "ROUNDS", 1)
    found = doctor(DoctorPlan(store=str(store), seconds=0.03, loader=LoaderPlan(batch=2, workers=0, draws=2)))
    assert [(one.workers, one.threads) for one in found.speeds] == [(0, 0), (0, 2)]
    assert not any("loader.draws=2" in note for note in found.notes), "it was asked for already"


def test_senseless_keys_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"run: is given beside store; allowed: one of them"):
        DoctorPlan(run="r", store="s")
    with pytest.raises(UserError, match=r"seconds: is 0; allowed: more than 0"):
        DoctorPlan(store="s", seconds=0)
    with pytest.raises(UserError, match=str(tmp_path)):
        doctor(DoctorPlan(store=str(tmp_path / "none")))
