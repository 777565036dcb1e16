from __future__ import annotations

import itertools
import sys
import threading

import pytest

from dinodomain.engine import EnginePlan, open_run
from dinodomain.engine.record import Progress, Recorder, Thinned
from dinodomain.errors import UserError


def row(step, **values):
    return {"step": step, "loss": 1.0, "seconds": 2.0, "data_wait": 0.0, "skipped": 0, **values}


class Tracked:
    def __init__(self):
        self.steps, self.drawn, self.closed = [], [], False

    def begin(self, plan):
        self.plan = plan

    def figures(self, step, files):
        self.drawn.append((step, [file.name for file in files]))

    def log(self, step, values):
        self.steps.append((step, values["loss"]))

    def close(self):
        self.closed = True


def test_figures_take_evenly_spread_rows_of_a_long_run():
    thinned = Thinned((row(step) for step in range(1000)), most=50)
    steps = [held["step"] for held in thinned.held]
    assert 50 <= len(steps) < 100
    assert len({later - earlier for earlier, later in itertools.pairwise(steps)}) == 1
    assert steps[-1] > 950


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (100_000, ", data-wait 25 %, 2.3 days left"),
        (10_000, ", data-wait 25 %, 5.6 h left"),
        (1000, ", data-wait 25 %, 33 min left"),
        (10, ", data-wait 25 %, 18 s left"),
        (1, ", data-wait 25 %"),
    ],
)
def test_the_time_left_follows_the_pace(left, text):
    progress = Progress(left, 0)
    progress.advance(row(0, data_wait=0.5))
    assert progress.remaining() == text
    progress.close()


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(10, 4)
    progress.advance(row(4, samples_per_s=123.0, data_wait=1.0, watch_knn=0.5))
    progress.advance(row(5, samples_per_s=123.0, data_wait=1.0))
    progress.close()
    shown = capsys.readouterr().err
    assert "6/10" in shown
    assert "loss=1, samples/s=123, wait=50%, knn=0.5" in shown


def test_trackers_get_every_row_and_skips_and_collapses_are_told(tmp_path, caplog):
    tracker = Tracked()
    recorder = Recorder(tmp_path, EnginePlan(steps=3), first_step=0, trackers=[tracker])
    for step in range(3):
        recorder.write(row(step, skipped=int(step == 1)))
    recorder.close()
    assert tracker.steps == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert tracker.closed
    assert "step 1 gave NaN or Inf and was skipped" in caplog.text


def test_figures_are_drawn_beside_training_and_handed_to_trackers(tmp_path, monkeypatch):
    go, threads = threading.Event(), []

    def slow(rows, folder):
        threads.append(threading.current_thread() is threading.main_thread())
        assert go.wait(10)
        return [folder / "loss.png"]

    monkeypatch.setattr("dinodomain.engine.record.draw_curves", slow)
    tracker = Tracked()
    recorder = Recorder(tmp_path, EnginePlan(steps=9, figures_every=1), first_step=0, trackers=[tracker])
    for step in range(3):
        recorder.write(row(step))  # does not wait for the first set, which blocks
    assert tracker.drawn == []
    go.set()
    recorder.close()
    assert threads == [False, True]
    assert tracker.drawn == [(3, ["loss.png"])]


def test_figures_that_cannot_be_drawn_are_told_once_and_cost_nothing(tmp_path, monkeypatch, caplog):
    def fail(rows, folder):
        raise OSError("disk full")

    monkeypatch.setattr("dinodomain.engine.record.draw_curves", fail)
    tracker = Tracked()
    recorder = Recorder(tmp_path, EnginePlan(steps=9, figures_every=1), first_step=0, trackers=[tracker])
    for step in range(3):
        recorder.write(row(step))
    recorder.close()
    assert caplog.text.count("figures were not drawn: disk full") == 1
    assert (len(tracker.steps), tracker.drawn) == (3, [])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no plan\.yaml; allowed: a folder that dinodomain pretrain wrote"):
        open_run(tmp_path)
