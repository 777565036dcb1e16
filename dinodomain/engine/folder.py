"""The run folder: who may write it, whether a plan may go on in it, and which keys two plans differ in.

``plan.yaml``, ``lineage.json``, ``metrics.jsonl``, ``checkpoints/``, ``figures/``, ``tensorboard/``, ``log.txt``. This file decides;
the loop writes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dinodomain.engine.log import read_plan
from dinodomain.errors import UserError

PLAN, METRICS, LINEAGE, LOG, FIGURES, BOARD = "plan.yaml", "metrics.jsonl", "lineage.json", "log.txt", "figures", "tensorboard"

OPERATIONAL = (
    "out",
    "resume",
    "store",
    "recipe",
    "checkpoint",
    "loader.workers",
    "loader.threads",
    "loader.requests",
    "loader.prefetch",
    "loader.ring_dir",
    "engine.device",
    "engine.threads",
    "engine.log_every",
    "engine.figures_every",
    "engine.max_bad_steps",
    "engine.trackers",
    "engine.distribute",
    "engine.compile",
    "engine.checkpointing",
    "launcher",
    "slurm",
    "dry_run",
    "watch",
    "views.renderer",
    "engine.tensorboard",
)
"""Keys (with everything below them) that say where and how a run works but not what it computes; a resumed run may change them.

The store is compared by its content digest instead of its path; ``engine.tensorboard`` stands in plans of earlier versions.
"""

DECIDES = ("watch.tiles", "watch.every")
"""Keys of watching that do decide something: when Gram anchoring begins, if dense matching says so (``gram.teacher=drift``)."""

WHAT_IS_DRAWN = (
    "loader.tile",
    "loader.min_valid",
    "loader.aligned",
    "loader.draws",
    "loader.spread",
    "loader.pairs",
    "loader.dates",
    "loader.min_days",
    "loader.weights",
)
"""Keys that say which tiles come when; ``resume=force`` takes them, and another store, as they are now."""

_ADDED: Mapping[str, Any] = {
    "loader.aligned": True,
    "loader.draws": 1,
    "loader.spread": 4,
    "loader.pairs": "none",
    "loader.dates": 2,
    "loader.min_days": 1,
    "views.windows": [],
    "start.weights": None,
    "start.layout": "any",
    "start.heads": False,
    "start.min_coverage": 0.95,
    "start.inflate": "mean",
    "model.mlp": "gelu",
    "model.rope_unit": "crop",
    "model.rope_length": None,
    "model.rope_base": 100.0,
    "model.rope_shift": 0.0,
    "model.rope_jitter": 1.0,
    "model.rope_rescale": 1.0,
    "model.channels": "fixed",
    "model.norm_eps": 1e-6,
    "objective.patch_head": "shared",
    "objective.patch_prototypes": None,
    "objective.local_weight": [1.0, 1.0],
    "gram.weight": 0.0,
    "gram.teacher": "drift",
    "gram.size": None,
    "gram.drop": 0.1,
    "gram.refresh": 0,
    "gram.refreshes": 3,
    "optim.freeze_backbone": 0.0,
    "optim.schedule": "cosine",
    "optim.patch_lr": 1.0,
    "engine.accumulate": 1,
}
"""Keys that plans of earlier versions lack, with the values that say what those versions did."""


_POLICY = "views.policy."


def flatten(plan: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; empty mappings stay as values."""
    flat: dict[str, Any] = {}
    for key, value in plan.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two plans, operational ones left out, with (old, new).

    A key that came with a later version counts as what there was before it; any other absent key counts as None.
    """
    before, after = ({**_ADDED, **flatten(plan)} for plan in (old, new))
    if _has_policy(before) != _has_policy(after):
        before, after = _policy_as_one(before), _policy_as_one(after)
    decides = DECIDES if _watch_decides(before) and _watch_decides(after) else ()
    keys = [key for key in sorted({*before, *after}) if key in decides or not _is_below(key, OPERATIONAL)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _watch_decides(flat: Mapping[str, Any]) -> bool:
    return bool(flat["gram.weight"]) and flat["gram.teacher"] == "drift"


def _has_policy(flat: Mapping[str, Any]) -> bool:
    return any(key.startswith(_POLICY) for key in flat)


def _policy_as_one(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Against a plan of a version that did not record its policy, which cannot be compared number by number."""
    rest = {key: value for key, value in flat.items() if not _is_below(key, (_POLICY[:-1],))}
    return {**rest, _POLICY[:-1]: "recorded" if _has_policy(flat) else "not recorded"}


def has_run(out: Path) -> bool:
    """Whether the folder holds a run, begun or finished."""
    return any((out / name).exists() for name in (PLAN, METRICS, "checkpoints"))


def threads_before(out: Path) -> int | None:
    """``engine.threads`` that the run in the folder has had, None where there is none.

    Raises:
        UserError: Its plan is not one.
    """
    plan = _read_plan(out / PLAN) if (out / PLAN).is_file() else {}
    found: int | None = plan.get("engine", {}).get("threads")
    return found


def check_folder(out: Path, resume: str, plan: Mapping[str, Any]) -> bool:
    """Decides between a fresh start and going on.

    Args:
        out: Run folder.
        resume: ``auto``, ``never`` or ``force``.
        plan: The resolved plan, as plain values.

    Returns:
        True to resume (there may be no checkpoint yet), False for a fresh start.

    Raises:
        UserError: The folder holds a run and ``resume=never``, or the run there follows another plan.
    """
    if out.exists() and not out.is_dir():
        raise UserError("out", f"{out} is a file", allowed="a folder that is new, empty or holds this run")
    if not has_run(out):
        return False
    if resume == "never":
        raise UserError(
            "out",
            f"{out} already holds a run and resume=never",
            remedy="choose another folder, empty this one, or use resume=auto to go on",
        )
    if (out / PLAN).is_file():  # else it was killed before its plan was written: nothing to contradict
        check_same_plan(_read_plan(out / PLAN), plan, out, force=resume == "force")
    return True


def check_same_plan(old: Mapping[str, Any], new: Mapping[str, Any], out: Path, *, force: bool = False) -> None:
    """Refuses to go on under another plan.

    Args:
        old: The plan of the run, or of its checkpoint.
        new: The plan asked for.
        out: Run folder, for the message.
        force: Let what is drawn differ.

    Raises:
        UserError: They differ in more than where and how the run works; names the keys.
    """
    differing = differing_keys(old, new)
    drawn = {key for key in differing if _is_below(key, WHAT_IS_DRAWN)}
    refused = {key: values for key, values in differing.items() if not (force and key in drawn)}
    if refused:
        shown = "; ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in refused.items())
        remedy = "give these keys their old values, or choose another out folder"
        if set(refused) <= {"engine.steps", "optim.schedule"}:
            remedy += "; to train on from its weights: start.weights=" + str(out) + " start.heads=true out=NEW"
        if drawn == set(refused):
            remedy += "; resume=force goes on at the same step with what is drawn now, and records the change"
        raise UserError("out", f"{out} holds a run with another plan: {shown}", remedy=remedy)


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Keeps a second process out of a run folder; the system frees the lock when its holder dies.

    Raises:
        UserError: Another process trains in this folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "out", f"{out} is in use by another training process", remedy="wait for it, stop it, or choose another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        return read_plan(path)
    except ValueError as error:
        raise UserError(str(path), f"is not a plan this package wrote ({error})", remedy="choose another out folder") from error


def _is_below(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
