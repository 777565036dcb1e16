"""What pretraining buys on real data in minutes of one CPU core: ours, lightly-train's DINO and DINOv2, no training, plain pixels.

Every training has the same CPU-minutes (``time.process_time`` of its process, one thread), backbone, crops, batch and images; schedules
span the steps that each side does in that time, found by runs that do not count on either side. Frozen features are scored by the
package's probes, folds by patient, ground cell, subject or near-duplicate. Three seeds: mean and 95 % interval of the mean (Student's t);
each run has its own interval by bootstrap of units. Input that lightly-train cannot read is tried all the same; the row has its answer.

    pip install "dinodomain[bench]"
    python benchmarks/quality.py [--quick] [--list] [--only TEXT] [--jobs 2] [--out RUNS.jsonl] [--json FILE] [--work DIR] [--minutes M]

Finished runs are kept in ``quality_runs.jsonl`` beside this file. A stopped benchmark goes on with the first (case, method, seed) that
``--out`` lacks at that many minutes. Rows of ``--json``: {"measure", "input", "ours", "peer", "peer_value", "unit", "ratio", "target",
"rounds"} and what each run gave; ``ratio`` is ours minus peer, in points.
"""

from __future__ import annotations

import os

# Before anything that reads them: a training has one thread.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from quality.cases import ABLATIONS, BASELINES, CASES, PEERS, SEEDS, Case, case_named
from quality.data import missing, prepare
from quality.score import over_seeds, scores

from dinodomain.lineage import write_json

RUNS = Path(__file__).with_name("quality_runs.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One line of the state.

    Attributes:
        case: Name of the case.
        method: ``ours``, a baseline, a peer or an ablation.
        seed: Of weights, order, views and folds.
        minutes: CPU-minutes of training; None for a few steps.
        changes: For trials: changes to our plan, or to what the peer is asked.
        pace: Steps a CPU-second of an earlier seed, if there is one: its schedule fits this one, too.
    """

    case: str
    method: str
    seed: int
    minutes: float | None
    changes: Mapping[str, Any]
    pace: float | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """What a line of the state is found by."""
        return self.case, self.method, self.seed


def jobs(only: str, minutes: float | None, quick: bool) -> Iterator[Job]:
    """All runs whose ``case/method`` holds the text; seed after seed within a case, so that a stopped benchmark has something of all."""
    for case in CASES:
        for seed in SEEDS[:1] if quick else SEEDS:
            for method in case.methods:
                if only in f"{case.name}/{method}":
                    spent = None if quick else case.minutes if minutes is None else minutes
                    yield Job(case=case.name, method=method, seed=seed, minutes=spent, changes={})


def run(job: Job, work: Path) -> dict[str, Any]:
    """Trains, describes and scores; what is written in between is deleted."""
    case, out = case_named(job.case), work / "runs" / f"{job.case} {job.method} {job.seed}".replace(" ", "-")
    data = prepare(case.data, work)
    try:
        return {**asdict(job), **_run(job, case, data, out)}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _run(job: Job, case: Case, data: Any, out: Path) -> dict[str, Any]:
    from quality import dense, ours, theirs

    if job.method in PEERS:
        asked = theirs.request(case, job.method, data, out / "peer", job.seed, job.minutes, job.changes, job.pace)
        if case.kind == "dense":
            return {"impossible": theirs.refusal(asked, case)}
        told, (y, units) = theirs.train(asked), data.classes()
        return {**told, "scores": scores(theirs.pooled(asked, data), y, units, case.metrics, job.seed)}
    changes = {**ABLATIONS.get(job.method, {}), **job.changes}
    if job.method in BASELINES:
        backbone, told = ours.untrained(case, data, out, job.seed), {}
    else:
        backbone, told = ours.train(case, data, out, job.seed, job.minutes, changes, job.pace)
    pixels = job.method == "pixels"
    if case.kind == "pooled":
        y, units = data.classes()
        return {**told, "scores": scores(ours.pooled(backbone, case, data, pixels=pixels), y, units, case.metrics, job.seed)}
    found = dense.patches(backbone, case, data).drawn(job.seed)
    rows = found.pixels if pixels else found.tokens
    return {**told, "patches": len(rows), "scores": scores(rows, found.y, found.units, case.metrics, job.seed)}


def in_own_process(job: Job, work: Path) -> dict[str, Any]:
    """The run in a process of its own, whose CPU time is the training's alone.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    command = [sys.executable, __file__, "--work", str(work), "--one", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job.case}, {job.method}, seed {job.seed}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def go_on(wanted: Sequence[Job], state: Path, work: Path, at_once: int) -> list[str]:
    """Does what the state lacks and adds a line for each; returns what failed."""
    for data in dict.fromkeys(case_named(job.case).data for job in wanted):
        prepare(data, work)  # before two processes want to
    failed, writing = [], Lock()

    def one(job: Job) -> None:
        began = time.monotonic()
        try:
            found: dict[str, Any] | str = in_own_process(replace(job, pace=_pace(job, read(state))), work)
        except RuntimeError as problem:
            found = str(problem)
        with writing:
            print(_said(job, found, time.monotonic() - began), flush=True)
            if isinstance(found, str):
                failed.append(found)
            else:
                with state.open("a") as file:
                    file.write(json.dumps(found) + "\n")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, wanted))
    return failed


def _pace(job: Job, done: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> float | None:
    """That of the latest finished run with another seed and as many minutes."""
    alike = [row for row in done.values() if (row["case"], row["method"], row["minutes"]) == (job.case, job.method, job.minutes)]
    return alike[-1]["steps"] / alike[-1]["cpu_seconds"] if alike and "steps" in alike[-1] else None


def _said(job: Job, found: Mapping[str, Any] | str, wall: float) -> str:
    name = f"{job.case:<10} {job.method:<20} seed {job.seed}"
    if isinstance(found, str):
        return f"{name}  FAILED: {found.strip().splitlines()[-1]}"
    if "impossible" in found:
        return f"{name}  not possible: {found['impossible']}"
    told = ", ".join(f"{probe} {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" for probe, value in found["scores"].items())
    trained = f"; {found['steps']} steps in {found['cpu_seconds']:.0f} CPU-s" if "steps" in found else ""
    return f"{name}  {told}{trained}; {wall:.0f} s"


def read(state: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Finished runs; a line that was cut off is none."""
    found = {}
    for line in state.read_text().splitlines() if state.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[row["case"], row["method"], row["seed"]] = row
    return found


Found = Mapping[tuple[str, str, int], Mapping[str, Any]]


def table(found: Found) -> Iterator[dict[str, Any]]:
    """A row for each case, metric and other side."""
    for case in CASES:
        ours = _runs(found, case, "ours")
        for name in (f"{probe} {metric}" for probe, metric in case.metrics):
            for method in case.methods[1:]:
                theirs = _runs(found, case, method)
                if ours and theirs:
                    yield _row(case, name, method, ours, theirs)


def _runs(found: Found, case: Case, method: str) -> dict[int, Mapping[str, Any]]:
    """Finished runs by seed."""
    return {seed: found[case.name, method, seed] for seed in SEEDS if (case.name, method, seed) in found}


def _row(
    case: Case, name: str, method: str, ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    minutes = next(iter(ours.values()))["minutes"]
    spent = "a few steps, which prove nothing" if minutes is None else f"{minutes:g} CPU-minutes"
    own = {seed: row["scores"][name]["value"] for seed, row in ours.items()}
    mean = over_seeds(list(own.values()))
    given = {
        "measure": name, "input": f"{case.title}; {spent}", "ours": round(mean["mean"], 4), "peer": method,
        "unit": "score", "target": None, "rounds": len(own), "ours_interval": mean,
        "ours_runs": _told(ours, name),
    }  # fmt: skip
    refused = next((row["impossible"] for row in theirs.values() if "impossible" in row), None)
    if refused is not None:
        return {**given, "peer_value": f"not possible: {refused}", "ratio": None}
    other = {seed: row["scores"][name]["value"] for seed, row in theirs.items()}
    both = [100 * (own[seed] - other[seed]) for seed in own if seed in other]
    paired, theirs_mean = over_seeds(both) if both else None, over_seeds(list(other.values()))
    return {
        **given, "peer_value": round(theirs_mean["mean"], 4), "ratio": None if paired is None else round(paired["mean"], 2),
        "difference": paired, "peer_interval": theirs_mean, "peer_runs": _told(theirs, name),
    }  # fmt: skip


def _told(runs: Mapping[int, Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """What each run gave, with its own interval, and what it took."""
    return [
        {"seed": seed, **row["scores"][name], "steps": row.get("steps"), "cpu_seconds": row.get("cpu_seconds")}
        for seed, row in runs.items()
    ]


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    if row["ratio"] is None:
        return f"{row['measure']:<24} {row['ours']:.3f}  {row['peer']:<20} {row['peer_value']}"
    low, high = row["difference"]["low"], row["difference"]["high"]
    interval = "one seed" if low is None else f"{low:+.1f} to {high:+.1f}"
    return f"{row['measure']:<24} {row['ours']:.3f}  {row['peer']:<20} {row['peer_value']:.3f}  {row['ratio']:+.1f} points ({interval})"


def main() -> None:
    """Does what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, seconds a run: proves that it runs, and nothing else")
    parser.add_argument("--list", action="store_true", help="print what is missing and stop")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs whose CASE/METHOD holds the text")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--minutes", type=float, help="CPU-minutes of each training; none takes those of the case")
    parser.add_argument("--work", type=Path, default=Path("out/quality"), help="folder for stores and runs")
    parser.add_argument("--out", type=Path, help="state, a line a run; none takes quality_runs.jsonl beside this file (quick: anew)")
    parser.add_argument("--json", type=Path, help="file for the rows of the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run(Job(**json.loads(given.one)), given.work)))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    state = given.out or (given.work / "quick.jsonl" if given.quick else RUNS)
    if given.quick and given.out is None:
        state.unlink(missing_ok=True)
    state.parent.mkdir(parents=True, exist_ok=True)
    done = read(state)
    wanted = jobs(given.only, given.minutes, given.quick)
    todo = [job for job in wanted if job.key not in done or done[job.key]["minutes"] != job.minutes]
    for data in dict.fromkeys(case_named(job.case).data for job in todo):
        if why := missing(data):
            print(f"left out: {why}")
            todo = [job for job in todo if case_named(job.case).data != data]
    if given.list:
        print("\n".join(f"{job.case}/{job.method} seed {job.seed}, {job.minutes} CPU-minutes" for job in todo) or "nothing is missing")
        return
    failed = go_on(todo, state, given.work, given.jobs)
    rows = list(table(read(state)))
    for title in dict.fromkeys(row["input"] for row in rows):
        print(f"\n{title}")
        print("\n".join(line(row) for row in rows if row["input"] == title))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.json, rows)
    if failed:
        sys.exit("\n\n".join(failed))


if __name__ == "__main__":
    main()
