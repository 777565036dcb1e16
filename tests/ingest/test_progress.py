"""Progress tells how fast it goes and how long it will take, by bytes where they are known."""

from __future__ import annotations

import io
import sys

from dinodomain.ingest.progress import Rate, _Lines, counted, reporting


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_follows_bytes_where_all_are_known():
    clock = Clock()
    rate = Rate(10, 1_000_000, clock)
    rate.add(2, 500_000)  # by an earlier run: no speed
    assert rate.text() == ""
    clock.now += 10
    rate.add(4, 600_000)
    assert rate.text() == "0.2 sources/s, 10 KB/s, 40 s left"


def test_the_time_left_follows_the_number_of_sources_otherwise():
    clock = Clock()
    rate = Rate(10, 0, clock)
    rate.add(0)
    clock.now += 20
    rate.add(5)
    assert rate.text() == "0.25 sources/s, 20 s left"
    clock.now += 20
    rate.add(10)
    assert rate.text() == "0.25 sources/s"


def test_speed_is_that_of_the_last_minutes():
    clock = Clock()
    rate = Rate(100_000, 0, clock)
    for second in range(1000):
        rate.add(second * (1 if second < 500 else 10))
        clock.now += 1
    assert rate.text().startswith("10 sources/s")


def test_a_log_gets_a_line_every_ten_seconds_and_later_every_minute(caplog):
    caplog.set_level("INFO")
    clock = Clock()
    lines = _Lines(1000, Rate(1000, 0, clock), clock)
    for done in range(1, 1001):
        lines(done, 0)
        clock.now += 1
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "ingest: 1 of 1000 sources"
    assert told[1] == "ingest: 11 of 1000 sources (1 sources/s, 16.5 min left)"
    assert told[-1] == "ingest: 1000 of 1000 sources (1 sources/s)"
    assert 12 + 14 <= len(told) <= 12 + 17


def test_a_terminal_gets_one_bar_with_the_same_numbers(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with reporting(4, None, 400) as report:
        report(0, 0)
        report(4, 400)
    assert "4 of 4" in sys.stderr.getvalue()
    assert "sources/s" in sys.stderr.getvalue()


def test_the_callers_function_gets_counts_only():
    seen = []
    with reporting(4, lambda done, total: seen.append((done, total)), 400) as report:
        report(2, 200)
    assert seen == [(2, 4)]


def test_discovery_says_how_many_it_has_found(caplog):
    caplog.set_level("INFO")
    clock = Clock()

    def slow():
        for number in range(30):
            clock.now += 1
            yield number

    assert list(counted(slow(), "sources found", clock)) == list(range(30))
    assert [record.getMessage() for record in caplog.records] == [
        "ingest: 10 sources found so far (1/s)",
        "ingest: 20 sources found so far (1/s)",
        "ingest: 30 sources found so far (1/s)",
    ]
