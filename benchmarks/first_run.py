"""Does pretraining pay at once? Probes of pretrained features beside an untrained network and raw pixels, over three seeds.

On the made-up clinic, and on UC Merced where it is there. Prints a table; ``--quick`` takes one seed and few steps and proves nothing;
``--json FILE`` writes rows.

Rows: {"measure", "input", "ours", "peer", "peer_value", "unit", "ratio", "target", "rounds"}; ``ratio`` is ours minus peer, in points.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinodomain import api
from dinodomain.demo.clinic import PATIENTS_PER_LABEL, PRETRAIN, STEPS
from dinodomain.demo.phantoms import write_clinic

REAL = Path(os.environ.get("DINODOMAIN_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
TARGET_POINTS = 10.0
PATIENTS = 480
LABELS_PER_CLASS = PATIENTS // PATIENTS_PER_LABEL


def clinic(folder: Path, seed: int, steps: int) -> Iterator[dict[str, Any]]:
    """One seed of the demo's archive, probed on the finding with few labels."""
    archive = write_clinic(folder / "archive", patients=PATIENTS, seed=seed)
    store, run = str(folder / "store"), str(folder / "run")
    api.ingest(domain="xray", source=str(archive.images), store=store, select="all")
    api.pretrain(domain="xray", store=store, out=run, recipe="tiny", seed=seed, engine={"steps": steps}, **PRETRAIN)
    report = api.probe(
        checkpoint=run, store=store, labels=str(archive.labels), target="finding", labels_per_class=LABELS_PER_CLASS, seeds=(0, 1, 2)
    )
    yield from scores(report, f"clinic, finding, {LABELS_PER_CLASS} labels a class")


def uc_merced(folder: Path, seed: int, steps: int) -> Iterator[dict[str, Any]]:
    """UC Merced at 32 px, all labels, near-duplicates in one fold."""
    source = REAL / "ucmerced_rgb128" / "dev"
    if not source.is_dir():
        return
    store, run, labels = str(folder / "store"), str(folder / "run"), folder / "labels.csv"
    api.ingest(domain="aerial", source=str(source), store=store)
    with labels.open("w", newline="") as out, (source / "labels.csv").open(newline="") as given:
        writer = csv.writer(out)
        writer.writerow(["id", "label", "unit"])
        for row in csv.DictReader(given):
            writer.writerow([row["file"].removeprefix("dev/"), row["label"], row["near_dup_group"] or row["file"]])
    api.pretrain(domain="aerial", store=store, out=run, recipe="tiny", seed=seed, engine={"steps": steps})
    report = api.probe(checkpoint=run, store=store, labels=str(labels), target="label", group="unit")
    yield from scores(report, "UC Merced, 32 px, all labels")


def scores(report: Any, what: str) -> Iterator[dict[str, Any]]:
    """Headline metric of each kind of features under each probe."""
    for probe in ("knn", "linear"):
        found = {name: report.score(name, probe).metrics[report.headline].value for name in ("pretrained", "random_init", "pixels")}
        yield {"input": what, "measure": f"{probe} {report.headline}", **found}


def main() -> None:
    """Runs all seeds and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    seeds, found = ((0,) if given.quick else (0, 1, 2)), []
    for seed in seeds:
        for case, steps in ((clinic, STEPS), (uc_merced, 400)):
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                rows = list(case(Path(folder), seed, 20 if given.quick else steps))
                found += [{**row, "seed": seed} for row in rows]
                print(f"{case.__name__}, seed {seed}: {time.process_time() - began:.0f} CPU-seconds", flush=True)
    table = summary(found, len(seeds))
    for row in table:
        compared = f"{row['ours']:.3f}  {row['peer']:<12} {row['peer_value']:.3f}  {row['ratio']:+.1f} points"
        print(f"{row['input']:<40} {row['measure']:<24} {compared}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(table, indent=1))


def summary(found: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Median over seeds, one row per baseline."""
    table = []
    for case in dict.fromkeys((row["input"], row["measure"]) for row in found):
        rows = [row for row in found if (row["input"], row["measure"]) == case]
        ours = statistics.median(row["pretrained"] for row in rows)
        for peer in ("random_init", "pixels"):
            gain = statistics.median(100 * (row["pretrained"] - row[peer]) for row in rows)
            theirs = statistics.median(row[peer] for row in rows)
            table.append({
                "input": case[0], "measure": case[1], "ours": ours, "peer": peer, "peer_value": theirs,
                "unit": "score", "ratio": gain, "target": TARGET_POINTS, "rounds": rounds, "seeds": [row["pretrained"] for row in rows],
            })  # fmt: skip
    return table


if __name__ == "__main__":
    main()
