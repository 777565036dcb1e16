"""Do the audit's checks find what is there, stay silent where nothing is, and say so where they cannot know? Measured over many seeds.

First the statistical core (an attribute read from made-up features; 400 seeds): false alarms at the stated level, coverage of the 95 %
interval. Then every registered check: planted effects of stated sizes, a clean world, and one with less than the check needs. Checks run
through the audit's own runner, alone, with few permutations and without stronger attackers; checks of images see an untrained encoder.

    python benchmarks/audit_power.py [--quick] [--list] [--only TEXT] [--seeds N] [--jobs 2] [--out STATE.jsonl] [--json FILE]

A stopped benchmark goes on with the first (scenario, seed) that ``--out`` lacks. Rows of ``--json``: {"check", "measure", "input", "ours",
"interval", "unit", "target", "passed", "seeds", "detail"}; ``ours`` is a share of seeds, its interval Wilson's. Passed: a detection,
coverage or NOT_ASSESSABLE whose share reaches its aim; false alarms whose interval does not lie above theirs (lenient with few seeds).
"""

from __future__ import annotations

import os

# Before anything that reads them: every process has one thread.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from power import core
from power.cases import all_cases, lacking
from power.core import CONDITIONS, Condition
from power.scenario import SEEDS, Scenario

from dinodomain.lineage import write_json
from dinodomain.probes.scores import wilson

Case = Condition | Scenario
Found = Mapping[str, list[Mapping[str, Any]]]


def every_case() -> dict[str, Case]:
    """Name to condition of the core or scenario of a check, in the order of the table."""
    return {case.key: case for case in (*CONDITIONS, *all_cases())}


def wanted(only: str, seeds: int | None, quick: bool) -> Iterator[tuple[str, int]]:
    """(case, seed); seed after seed over all cases, so that a stopped benchmark has something of all."""
    chosen = {key: 1 if quick else min(_seeds(case), seeds or _seeds(case)) for key, case in every_case().items() if only in key}
    for seed in range(max(chosen.values(), default=0)):
        yield from ((key, seed) for key, most in chosen.items() if seed < most)


def _seeds(case: Case) -> int:
    return core.SEEDS if isinstance(case, Condition) else SEEDS


def outcome(key: str, seed: int) -> dict[str, Any]:
    """One line of the state; a world that could not be audited has ``failed``."""
    torch.set_num_threads(1)
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = every_case()[key].outcome(seed)
    except Exception:
        found = {"failed": traceback.format_exc(limit=-3)}
    return {"case": key, "seed": seed, "cpu_seconds": round(time.process_time() - began, 3), **found}


def go_on(todo: Sequence[tuple[str, int]], state: Path, jobs: int) -> None:
    """Does what the state lacks and adds a line for each."""
    with state.open("a") as file:
        for number, line in enumerate(_outcomes(todo, jobs), 1):
            file.write(json.dumps(line) + "\n")
            file.flush()
            if "failed" in line:
                print(f"{line['case']}, seed {line['seed']}: {line['failed'].strip().splitlines()[-1]}", flush=True)
            if number % 100 == 0:
                print(f"{number} of {len(todo)}", flush=True)


def _outcomes(todo: Sequence[tuple[str, int]], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from (outcome(*item) for item in todo)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from (future.result() for future in as_completed([pool.submit(outcome, *item) for item in todo]))


def read(state: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Case to seed to what was found; lines that were cut off or failed are none."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in state.read_text().splitlines() if state.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "failed" not in row:
            found.setdefault(row["case"], {})[row["seed"]] = row
    return found


def table(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Rows of all cases that have seeds."""
    for key, case in every_case().items():
        lines = [found[key][seed] for seed in sorted(found.get(key, ()))]
        if lines:
            yield from core.rows(case, lines) if isinstance(case, Condition) else [_row(case, lines)]


def _row(case: Scenario, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counted = "unknown" if case.kind == "few" else "found"
    at = wilson(sum(line[counted] for line in lines), len(lines))
    verdicts = Counter("+".join(sorted(set(line["verdicts"]))) for line in lines)
    broken = any(line["broken"] for line in lines)
    passed = None if case.aim is None else not broken and (at.low <= case.aim if case.kind == "clean" else at.value >= case.aim)
    measure = {"planted": "detection", "clean": "false alarms", "few": "NOT_ASSESSABLE"}[case.kind]
    return {
        "check": case.check, "measure": measure, "input": ", ".join(part for part in (case.name, case.effect) if part),
        "ours": round(at.value, 4), "interval": [round(at.low, 4), round(at.high, 4)], "unit": "share of seeds", "target": case.aim,
        "passed": passed, "seeds": len(lines), "detail": ", ".join(f"{name} {count}" for name, count in verdicts.most_common()),
    }  # fmt: skip


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    low, high = row["interval"]
    told = "" if row["passed"] is None else "ok" if row["passed"] else "MISSED"
    aim = "" if row["target"] is None else row["target"]
    return (
        f"{row['check']:<16} {row['measure']:<34} {row['input'].split(';')[0]:<52} {row['ours']:.3f} [{low:.3f}, {high:.3f}] "
        f"n={row['seeds']:<4} {aim!s:<13} {told:<7} {row['detail']}"
    )


def main() -> None:
    """Does what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of each: proves that it runs, and nothing else")
    parser.add_argument("--list", action="store_true", help="print what is missing and stop")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds the text (core, a check)")
    parser.add_argument("--seeds", type=int, help="most seeds of each; none takes 400 for the core, 50 for others")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="state, a line a seed; none takes out/audit_power.jsonl (quick: another, anew)")
    parser.add_argument("--json", type=Path, help="file for the rows of the table")
    given = parser.parse_args()
    if without := lacking():
        sys.exit(f"no complete scenario for the checks {', '.join(without)}: each needs a planted, a clean and a too small world")
    state = given.out or Path("out") / ("audit_power_quick.jsonl" if given.quick else "audit_power.jsonl")
    state.parent.mkdir(parents=True, exist_ok=True)
    if given.quick and given.out is None:
        state.unlink(missing_ok=True)
    done = read(state)
    todo = [(key, seed) for key, seed in wanted(given.only, given.seeds, given.quick) if seed not in done.get(key, ())]
    if given.list:
        print("\n".join(f"{key}, seed {seed}" for key, seed in todo) or "nothing is missing")
        return
    go_on(todo, state, given.jobs)
    rows = list(table(read(state)))
    print("\n".join(map(line, rows)))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.json, rows)
    missed = [row for row in rows if row["passed"] is False]
    print(f"\n{len(rows)} rows, {sum(row['passed'] is True for row in rows)} as aimed at, {len(missed)} missed")
    if missed and not given.quick:
        sys.exit(1)


if __name__ == "__main__":
    main()
