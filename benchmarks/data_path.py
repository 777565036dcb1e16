"""Store and loader side by side with what people use now: crops, tiles and sub-volumes of real data, requests to servers, the ring.

Rates are samples per CPU-second of this process (every thread, user and system), one thread each, page cache warm; readers take turns
within a round; a rate is the median over rounds, a ratio the median of the rounds' own ratios. Before anything is timed, each reader's
first sample is compared with the array that the files were written from. Where a peer wins, its row stays.

    python benchmarks/data_path.py [--quick] [--only tiles|rasters|volumes|remote|ring ...] --json FILE

Real pixels come from ``DINODOMAIN_TEST_DATA``; up to 4 GB of work files lie in the folder for temporary files while it runs.
"""

from __future__ import annotations

import os

# Before anything that reads them: one thread of OpenMP, BLAS, blosc and GDAL each, so that rates are those of one core.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", BLOSC_NTHREADS="1", GDAL_NUM_THREADS="1")

import argparse
import importlib
import logging
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from readers.measure import Row, met, show

from dinodomain.lineage import write_json

PARTS = ("tiles", "rasters", "volumes", "remote", "ring")


def rows_of(part: str, quick: bool, work: Path) -> Iterable[Row]:
    """Rows of one part; what a part imports, only it needs."""
    if part == "ring":
        found: Iterable[Row] = importlib.import_module("ring").measure(quick=quick)
    else:
        found = importlib.import_module(f"readers.{part}").measure(quick, work)
    return found


def main() -> None:
    """Prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little data and few rounds: shows that it runs, not how fast")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="these parts")
    parser.add_argument("--json", type=Path, required=True, help="file to write the rows to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("monai").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="monai")  # about decoders that nothing here uses
    found: list[Row] = []
    for part in options.only:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            rows = list(rows_of(part, options.quick, Path(folder)))
        show(rows)
        print(f"\n{part}: {time.monotonic() - begun:.0f} s", flush=True)
        found += rows
    missed = [row for row in found if met(row) is False]
    print(f"\n{len(found)} rows, {sum(met(row) is True for row in found)} targets met, {len(missed)} missed")
    if options.quick:
        print("quick: so little data in so few rounds says nothing about targets")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, found)


if __name__ == "__main__":
    main()
