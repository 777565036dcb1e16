"""Tells the user how far an ingest is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Called with the number of sources done and their total."""

_SECONDS = 10.0
_log = logging.getLogger(__name__)


@contextmanager
def reporting(total: int, given: Progress | None) -> Iterator[Progress]:
    """The progress to report to: the caller's, a bar if standard error is a terminal, or log lines at most every 10 seconds."""
    if given is not None:
        yield given
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, unit="source", desc="ingest") as bar:

            def advance(done: int, total: int) -> None:
                bar.update(done - bar.n)

            yield advance
    else:
        yield _Lines()


class _Lines:
    """Log lines, the first and last always."""

    def __init__(self) -> None:
        self._last = -_SECONDS

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total and (done == total or now - self._last >= _SECONDS):
            self._last = now
            _log.info("ingest: %d of %d sources", done, total)
