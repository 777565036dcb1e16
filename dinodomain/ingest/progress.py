"""Tells the user how far an ingest is, how fast it goes and how long it will take: a bar on a terminal, plain lines in a log.

Rates are of the last minutes, not of the whole run: sources differ in size, and servers in mood. Where every source states its size the
time left is reckoned from bytes, otherwise from their number. What an earlier run staged counts as done, not as speed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dinodomain.ingest.sizes import hours_text, size_text

Progress = Callable[[int, int], None]
"""Called with the number of sources done and their total."""

Report = Callable[[int, int], None]
"""Called with the number of sources done and, where sizes are known, their bytes (else 0)."""

Item = TypeVar("Item")

_FIRST_SECONDS = 10.0
_LATER_SECONDS = 60.0
_EARLY = 120.0
_WINDOW_SECONDS = 300.0
_log = logging.getLogger(__name__)


class Rate:
    """Speed over a sliding window, and the time left at that speed.

    Args:
        total: Number of sources.
        total_bytes: Their bytes; 0 where some are not known.
        clock: Seconds.
    """

    def __init__(self, total: int, total_bytes: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._total_bytes, self._clock = total, total_bytes, clock
        self._points: deque[tuple[float, int, int]] = deque()

    def add(self, done: int, done_bytes: int = 0) -> None:
        """Notes how much is done by now; the first call sets what was done before the clock started."""
        now = self._clock()
        if len(self._points) > 1 and now - self._points[-2][0] < 1:  # a point a second is enough
            self._points.pop()
        self._points.append((now, done, done_bytes))
        while len(self._points) > 2 and now - self._points[0][0] > _WINDOW_SECONDS:
            self._points.popleft()

    def text(self) -> str:
        """``3.2 sources/s, 45 MB/s, 2.5 h left``; empty until there is something to reckon from."""
        (first, done_then, bytes_then), (last, done, done_bytes) = self._points[0], self._points[-1]
        seconds = last - first
        if done == done_then or seconds <= 0:
            return ""
        sources, volume = (done - done_then) / seconds, (done_bytes - bytes_then) / seconds
        left = (self._total_bytes - done_bytes) / volume if self._total_bytes and volume else (self._total - done) / sources
        parts = [f"{sources:.3g} sources/s", *([f"{size_text(volume)}/s"] if volume else [])]
        return ", ".join([*parts, *([f"{hours_text(left)} left"] if done < self._total else [])])


@contextmanager
def reporting(total: int, given: Progress | None, total_bytes: int = 0) -> Iterator[Report]:
    """Where an ingest reports to: the caller's function, a bar if standard error is a terminal, or log lines now and then.

    Args:
        total: Number of sources.
        given: The caller's function, or None.
        total_bytes: Bytes of all sources; 0 where some are not known.
    """
    if given is not None:
        yield lambda done, done_bytes: given(done, total)
    elif sys.stderr.isatty():
        with _bar(total, Rate(total, total_bytes)) as report:
            yield report
    else:
        yield _Lines(total, Rate(total, total_bytes))


@contextmanager
def _bar(total: int, rate: Rate) -> Iterator[Report]:
    from tqdm import tqdm

    shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} [{elapsed}{postfix}]"
    with tqdm(total=total, desc="ingest", bar_format=shape) as bar:

        def report(done: int, done_bytes: int) -> None:
            rate.add(done, done_bytes)
            bar.set_postfix_str(rate.text(), refresh=False)
            bar.update(done - bar.n)

        yield report


class _Lines:
    """Log lines, the first and last always; every 10 seconds at first, then every minute."""

    def __init__(self, total: int, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._rate, self._clock = total, rate, clock
        self._began, self._last = clock(), -_LATER_SECONDS

    def __call__(self, done: int, done_bytes: int) -> None:
        self._rate.add(done, done_bytes)
        now = self._clock()
        pause = _FIRST_SECONDS if now - self._began < _EARLY else _LATER_SECONDS
        if self._total and (done == self._total or now - self._last >= pause):
            self._last = now
            speed = self._rate.text()
            _log.info("ingest: %d of %d sources%s", done, self._total, f" ({speed})" if speed else "")


def counted(items: Iterable[Item], what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Item]:
    """The items themselves; says now and then how many there were, since their total is not known yet."""
    began = last = clock()
    for number, item in enumerate(items, 1):
        yield item
        now = clock()
        if now - last >= (_FIRST_SECONDS if now - began < _EARLY else _LATER_SECONDS):
            last = now
            _log.info("ingest: %d %s so far (%.3g/s)", number, what, number / (now - began))
