"""What goes wrong with the steps of a run: NaN, gradients, a loss that stands still, waiting for data, memory that creeps up."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from dinodomain.engine.finding import ABSURD_LR, GO_ON, SPIKE, Finding, Plan, is_frozen, lower_rate
from dinodomain.engine.history import WINDOW, History

WAITING = 0.3
"""Share of the step spent on waiting for data from which more readers pay."""

APART = 1e4
"""Ratio between the gradient norms of head and backbone beyond which one of them is as good as frozen. Our rule, far from any run of
ours."""

STILL = 0.002
"""Relative movement of the loss over the second half of at least ``STILL_ROWS`` rows below which nothing is learned. Our rule."""

STILL_ROWS = 300

LEAK = 0.1
"""Growth of memory over the last half of a run that is no longer warming up; caches fill within the first hundreds of steps."""

SETTLED = 200
"""Steps before gradients are judged: norms fall by a factor of ten and more in the warm-up."""


def skipped(history: History, plan: Plan) -> Finding | None:
    """Steps whose loss or gradient was not finite."""
    skipped = history.column("skipped")
    recent = np.nansum(skipped[-WINDOW:])
    if len(history) == 0 or not recent:
        return None
    first = int(np.flatnonzero(np.nan_to_num(skipped[-WINDOW:]))[0])
    since, whole = int(history.steps[-WINDOW:][first]), int(np.nansum(skipped))
    until = since - 1
    broken = not np.isfinite(history.column("loss")[-WINDOW:][first])
    before = history.column("grad_norm_backbone")[: len(history) - len(skipped[-WINDOW:]) + first]
    before = before[np.isfinite(before)]
    usual, ended = (float(np.median(before)), float(before[-3:].mean())) if len(before) else (0.0, 0.0)
    cause = "a learning rate that is too high, or broken pixel values"
    rate = history.column("lr")[-len(skipped[-WINDOW:]) :][first]
    if rate > ABSURD_LR:
        cause = f"a learning rate that is far too high ({rate:.2g}; published ones stay below 0.01)"
    elif len(before) > WINDOW and ended > SPIKE * usual:
        cause = f"a learning rate that is too high: gradients blew up before it (norm {ended:.3g}, usually {usual:.3g})"
    elif broken and since == int(history.steps[0]):
        cause = "broken pixel values: not even the first step gave a finite loss"
    # What too large steps have made of the weights before is no place to go on from; nor are weights that fail at once.
    way = "start again in another folder, from other weights if any," if rate > ABSURD_LR or until < 0 else GO_ON
    keys, words = lower_rate(plan), ""
    if plan.get("engine", {}).get("precision") != "fp32":
        keys, words = {**keys, "engine.precision": "fp32"}, ", and float32 in place of bfloat16"
    return Finding(
        name="skipped", kind="unstable", title="steps gave NaN or Inf and were skipped", since=since,
        numbers=f"{int(recent)} of the last {len(skipped[-WINDOW:])} steps, {whole} in all; weights are those "
                f"{f'of step {until}' if until >= 0 else 'that it began with'}",
        cause=cause, advice=f"dinodomain inspect looks for broken pixels; with sound ones {way} with a lower rate{words}", keys=keys,
    )  # fmt: skip


def gradients(history: History, plan: Plan) -> Finding | None:
    """Vanishing or exploding norms of sub-modules, and those that lie too far apart."""
    for name in history.names("grad_norm_"):
        part, norm = name.removeprefix("grad_norm_"), history.mean(name)
        since = history.since(norm <= 1e-7, history.column(name) <= 1e-7)
        if since is not None and not (part == "head" and is_frozen(plan, since)):
            return Finding(
                name="vanished", kind="stuck", title=f"the gradient of {part} has vanished", since=since,
                numbers=f"its norm is {norm[-1]:.2g}",
                cause="a collapsed teacher, a frozen part, or a learning rate far too high early on",
                advice="unfreeze it, or start again in another folder", keys=lower_rate(plan),
            )  # fmt: skip
        usual = np.nanmedian(history.column(name)) if np.isfinite(history.column(name)).any() else math.nan
        since = history.since(np.nan_to_num(norm) > SPIKE * usual)
        if since is not None and history.steps[-1] >= SETTLED:
            first = part == "patch_embed"
            cause = "the patch embedding is unstable (Chen 2021)" if first else "a learning rate that is too high for this part"
            return Finding(
                name="exploding", kind="unstable", title=f"the gradient of {part} explodes", since=since,
                numbers=f"its norm is {norm[-1]:.3g}, usually {usual:.3g}", cause=cause, advice=f"{GO_ON} with",
                keys={"optim.patch_lr": 0.1} if first else {**lower_rate(plan), "optim.clip": 1.0},
            )  # fmt: skip
    return _far_apart(history, plan)


def _far_apart(history: History, plan: Plan) -> Finding | None:
    ratio = history.mean("grad_norm_head") / np.maximum(history.mean("grad_norm_backbone"), 1e-30)
    since = history.since((ratio > APART) | (ratio < 1 / APART))
    if since is None or history.steps[-1] < SETTLED or is_frozen(plan, since):
        return None
    return Finding(
        name="apart", kind="stuck", title="head and backbone learn at different speeds", since=since,
        numbers=f"the head's gradient is {ratio[-1]:.2g} times the backbone's",
        cause="the head fits or ignores features that do not change (LayerScale too small, or a collapsed head)",
        advice="look at loss and entropy; begin in another folder with a larger LayerScale", keys={"model.layer_scale": 0.1},
    )  # fmt: skip


def starved(history: History, plan: Plan) -> Finding | None:
    """The network waits for data."""
    waits, seconds = history.mean("data_wait"), history.mean("seconds")
    share = waits / np.where(seconds > 0, seconds, math.nan)
    since = history.since((share >= WAITING) & (waits >= 0.005))
    if since is None:
        return None
    return Finding(
        name="starved", kind="starved", title="the step waits for data", since=since,
        numbers=f"{share[-1]:.0%} of its time ({waits[-1] * 1000:.0f} ms a step)",
        cause="reading and decoding are slower than the network",
        advice="in this order: more readers (loader.workers, then loader.threads; dinodomain doctor store=... measures how many help), "
               "several samples of each read (loader.draws=2), a faster disk for the store, a store that decodes faster (ingest again with "
               "store.codec=fast where it is small)", keys={},
    )  # fmt: skip


def leak(history: History, plan: Plan) -> Finding | None:
    """Peak memory goes on growing when caches are long full."""
    steps, held = history.known("memory")
    drops = np.flatnonzero(np.diff(held) < 0)  # a resumed run begins a new process, and its peak anew
    steps, held = (values[drops[-1] + 1 :] if len(drops) else values for values in (steps, held))
    if len(held) < 2 * STILL_ROWS:
        return None
    half = len(held) // 2
    quarters = [held[half + part * (len(held) - half - 1) // 4] for part in range(5)]
    if held[-1] < (1 + LEAK) * held[half] or any(later <= earlier for earlier, later in pairwise(quarters)):
        return None
    pace = (held[-1] - held[half]) / (steps[-1] - steps[half])
    return Finding(
        name="leak", kind="leaking", title="memory creeps up", since=int(steps[half]),
        numbers=f"{held[-1] / 2**30:.3g} GiB, {held[half] / 2**30:.3g} at step {steps[half]}: {pace * 1000 / 2**20:.3g} MiB in 1000 steps",
        cause="something keeps what each step makes: a tracker, a plug-in domain, a reader",
        advice="run without trackers, then without readers, to see which; a stopped run goes on where it was",
        keys={"engine.trackers": "[]", "loader.workers": 0},
    )  # fmt: skip


def still(history: History, plan: Plan) -> Finding | None:
    """The loss has not moved since the first step."""
    loss = history.mean("loss")[WINDOW - 1 :]
    loss = loss[np.isfinite(loss)]
    if len(loss) < STILL_ROWS or history.steps[-1] < STILL_ROWS:
        return None
    half = loss[len(loss) // 2 :]
    moved, started = np.ptp(half) / abs(half.mean()), abs(loss[0] - half.mean()) / abs(half.mean())
    if moved > STILL or started > 5 * STILL:  # a loss that fell and then rests has learned something
        return None
    lr = history.column("lr")[-1]
    return Finding(
        name="still", kind="stuck", title="the loss does not move", since=int(history.steps[0]),
        numbers=f"it stays within {moved:.2%} of {half.mean():.4g} over {len(half)} steps (learning rate {lr:.2g})",
        cause="a learning rate that is too low, or a frozen backbone",
        advice="start again in another folder with ten times the rate, and nothing frozen",
        keys={"optim.lr": f"{lr * 10:.1g}" if lr > 0 else "1e-3", "optim.freeze_backbone": 0},
    )  # fmt: skip
