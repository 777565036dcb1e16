"""``pretrain dry_run=true``: a few real steps on the real store and device, then what the whole run takes: memory, time, disk.

Everything is built as for the run itself. One checkpoint and one backbone are written, into a temporary folder beside ``out``, weighed and
removed; ``out`` is not touched. The first step is not timed: it compiles, allocates and waits for the first batch.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dinodomain import parallel
from dinodomain.checkpoint import save_checkpoint, with_part
from dinodomain.checkpoint.backbone import write_backbone
from dinodomain.domain import Domain
from dinodomain.engine.anchor import DRIFT
from dinodomain.engine.build import Setup, build
from dinodomain.engine.folder import check_folder
from dinodomain.engine.log import MetricsFile, logger
from dinodomain.engine.loop import host_values, make_row
from dinodomain.engine.machine import readable_size
from dinodomain.engine.memory import device_memory, memory_errors
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.record import readable_time
from dinodomain.engine.step import train_step
from dinodomain.engine.trackers import check_trackers
from dinodomain.errors import UserError
from dinodomain.lineage import to_json

STEPS = 3

TRACKED = 60
"""Bytes that TensorBoard writes for one number of one step (measured: 56 to 64)."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run takes.

    Attributes:
        device: On which the steps were done.
        steps: Of the whole run.
        device_bytes: Most that the device held at once; None on a CPU.
        device_total: All it has; None on a CPU.
        host_bytes: Most that this process held at once; None where the system does not tell.
        host_total: All memory of the machine or container.
        seconds_per_step: Mean of the timed steps.
        samples_per_s: Over all processes.
        data_wait: Share of that time spent waiting for data.
        hours: To the end, without saving and looking.
        checkpoint_bytes: Of one checkpoint.
        checkpoint_seconds: To write it.
        disk_needed: At the end of the run, with the checkpoint that is being written.
        disk_free: Where ``out`` lies.
        reasons: What was settled, and why.
    """

    device: str
    steps: int
    device_bytes: int | None
    device_total: int | None
    host_bytes: int | None
    host_total: int | None
    seconds_per_step: float
    samples_per_s: float
    data_wait: float
    hours: float
    checkpoint_bytes: int
    checkpoint_seconds: float
    disk_needed: int
    disk_free: int
    reasons: tuple[str, ...]

    def text(self) -> str:
        """For people."""
        held = "" if self.device_bytes is None else f"{readable_size(self.device_bytes)} of {_size(self.device_total)} on {self.device}, "
        return "\n".join([
            f"memory at the peak: {held}{_size(self.host_bytes)} of {_size(self.host_total)} on the host",
            f"speed: {self.samples_per_s:.4g} samples/s, {self.seconds_per_step:.3g} s a step, {self.data_wait:.0%} of it waiting for data",
            f"time: {self.steps} steps take {readable_time(3600 * self.hours)} ({self.hours / 24:.2g} days)",
            f"disk: {readable_size(self.disk_needed)} of {readable_size(self.disk_free)} free; "
            f"a checkpoint has {readable_size(self.checkpoint_bytes)} and takes {self.checkpoint_seconds:.2g} s",
            "dry run: nothing was kept",
        ])  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {"dry_run": True, **asdict(self), "reasons": list(self.reasons)}


def dry_run(plan: PretrainPlan, *, domain: Domain | None = None) -> Forecast:
    """Does three real steps and says what the run would take; leaves nothing behind.

    Args:
        plan: The run; its launcher is not used.
        domain: The domain object; None finds it by ``plan.domain``.

    Raises:
        UserError: The run does not fit into memory or on the disk, names the key to change; or the plan cannot work.
    """
    with parallel.process_group():
        check_trackers(plan.engine.trackers)
        beside = nearest_folder(Path(plan.out).absolute().parent)
        with memory_errors(plan, world=parallel.world()), tempfile.TemporaryDirectory(prefix=".dry-run-", dir=beside) as folder:
            setup = build(replace(plan, launcher="local"), domain)
            check_folder(Path(plan.out), plan.resume, to_json(setup.training.plan))
            if parallel.rank() == 0:
                for reason in setup.reasons:  # before the first step, which may be one too large
                    logger.info("plan: %s", reason)
            forecast = _measure(setup, Path(folder))
        if parallel.rank() == 0:
            check_disk(forecast, setup.training.plan)
        return forecast


def nearest_folder(path: Path) -> Path:
    """The path, or the nearest folder above it that exists: nothing is made for a dry run."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def check_disk(forecast: Forecast, plan: PretrainPlan) -> None:
    """Refuses a run that the disk cannot hold.

    Raises:
        UserError: Names the key to change.
    """
    if forecast.disk_needed <= forecast.disk_free:
        return
    found = f"is {plan.checkpoint.keep}: the run needs {readable_size(forecast.disk_needed)}, {readable_size(forecast.disk_free)} are free"
    least = forecast.disk_needed - max(0, plan.checkpoint.keep - 1) * forecast.checkpoint_bytes
    more = "" if least <= forecast.disk_free else " (1 would not be enough)"
    remedy = "free space, choose another disk for out, or lower checkpoint.keep or checkpoint.spaced"
    raise UserError("checkpoint.keep", found + more, remedy=remedy)


def disk_needed(plan: PretrainPlan, *, checkpoint: int, backbone: int, row: int, numbers: int) -> int:
    """Bytes on disk at the end of a run.

    Args:
        plan: Resolved.
        checkpoint: Bytes of one; one more than ``checkpoint.keep`` exists while it is written.
        backbone: Bytes of one exported backbone: spaced ones, the best now and of each checkpoint, the warm start.
        row: Bytes of a row of metrics.jsonl.
        numbers: Numbers in a row.
    """
    steps, saved = plan.engine.steps, plan.checkpoint
    checkpoints = min(saved.keep + 1, -(-steps // saved.every) + 1)
    # Each checkpoint keeps the best until then, which may be another each time, beside the best of all.
    best = checkpoints + 1 if saved.best and plan.watch.tiles > 0 else 0
    backbones = min(saved.spaced, steps) + best + int(plan.start.weights is not None)
    board = TRACKED * numbers if "tensorboard" in plan.engine.trackers else 0
    return checkpoints * checkpoint + backbones * backbone + steps * (row + board)


def _measure(setup: Setup, folder: Path) -> Forecast:
    training = setup.training
    plan, kind = training.plan, torch.device(training.plan.engine.device).type
    reasons = setup.reasons
    if training.anchor is not None and plan.gram.teacher == DRIFT:
        training.anchor.begin(training.step)
        reasons += ("gram.teacher = drift: measured as it is once the anchor acts; until then a step takes less",)
    _reset_peaks(kind)
    waits, times, row = [], [], {}
    with closing(iter(setup.loader)) as stream:
        for _ in range(STEPS):
            started = time.perf_counter()
            batch = next(stream)
            waits.append(time.perf_counter() - started)
            result = train_step(training, batch)
            row = make_row(result, training.step - 1, host_values(result))
            times.append(time.perf_counter() - started)
    device_bytes = torch.cuda.max_memory_reserved() if kind == "cuda" else None
    host_bytes = _host_peak()
    seconds, waited = sum(times[1:]) / (STEPS - 1), sum(waits[1:]) / (STEPS - 1)
    free = shutil.disk_usage(folder).free
    sizes = _weigh(setup, folder, row)
    took = sizes.pop("seconds")
    return Forecast(
        device=plan.engine.device, steps=plan.engine.steps, device_bytes=device_bytes,
        device_total=device_memory(plan.engine.device) if kind == "cuda" else None,
        host_bytes=host_bytes, host_total=device_memory("cpu"), seconds_per_step=seconds,
        samples_per_s=plan.loader.batch / max(seconds, 1e-9), data_wait=min(1.0, waited / max(seconds, 1e-9)),
        hours=seconds * plan.engine.steps / 3600, checkpoint_bytes=int(sizes["checkpoint"]), checkpoint_seconds=took,
        disk_needed=disk_needed(plan, **{name: int(size) for name, size in sizes.items()}), disk_free=free,
        reasons=reasons,
    )  # fmt: skip


def _weigh(setup: Setup, folder: Path, row: Mapping[str, Any]) -> dict[str, float]:
    """Writes what the run would write, on rank 0, and weighs it.

    Raises:
        UserError: Not even one checkpoint fits on the disk.
    """
    training = setup.training
    started = time.perf_counter()
    loader = {**setup.loader.state_dict(), "step": training.step}
    state = training.snapshot(loader, setup.record("checkpoint", training.step))  # every rank: parts are gathered
    if parallel.rank() > 0:
        return {"checkpoint": 0, "backbone": 0, "row": 0, "numbers": 0, "seconds": 0.0}
    if training.anchor is not None:
        state = with_part(state, "anchor", training.anchor.state_dict())
    try:
        saved = save_checkpoint(folder, state, keep=1)
        took = time.perf_counter() - started
        write_backbone(folder / "backbone.safetensors", _own(state.tensors["teacher"], "backbone."), state.backbone, state.lineage)
    except (OSError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error  # saving tells what the system said in words for a run
        if not isinstance(cause, OSError):
            raise
        found = f"{folder.parent} does not take one checkpoint: {cause.strerror or cause}"
        raise UserError("out", found, remedy="free space, or choose another disk") from error
    metrics = MetricsFile(folder / "metrics.jsonl")
    metrics.write({**row, "seconds": 0.123456789012, "data_wait": 0.123456789012, "samples_per_s": 123.456789012})
    metrics.close()
    return {
        "checkpoint": sum(file.stat().st_size for file in saved.rglob("*") if file.is_file()),
        "backbone": (folder / "backbone.safetensors").stat().st_size,
        "row": (folder / "metrics.jsonl").stat().st_size, "numbers": len(row) + 2, "seconds": took,
    }  # fmt: skip


def _own(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _reset_peaks(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if _RESET.is_file():
        try:
            _RESET.write_text("5")
        except OSError:  # not allowed in this sandbox: the peak then counts building, too
            return


def _host_peak() -> int | None:
    """Most memory that this process held; not ``ru_maxrss``, which a child inherits."""
    if not _STATUS.is_file():
        return None
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words and words[0] == "VmHWM:"), None)


def _size(value: int | None) -> str:
    return "unknown" if value is None else readable_size(value)
