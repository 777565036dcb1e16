"""What goes wrong with the features of a run: collapses of the teacher, and features of held tiles that get worse.

Entropy is the mean over images, KL that of the mean target from uniform, both in nats; ``max_entropy`` is log K for K prototypes. A sharp
but balanced teacher has both low; of a collapsed one KL is near log K (few prototypes take all images) or entropy is (all are equal).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dinodomain.engine.finding import ABSURD_LR, GO_ON, SPIKE, Finding, Plan, is_frozen, lower_rate
from dinodomain.engine.history import WINDOW, History

NEAR = 0.95
"""Share of log K from which entropy or KL counts as having reached it (Caron 2021, figure 7: both collapses end at an extreme)."""

SILENT = 0.999
"""Share of log K above which targets tell images apart by less than a hundredth of a nat."""

FEW = 4.0
"""Prototypes, by exp(log K - KL), that take all images of a step of at least 16: without centring 2 to 4 of 1024 are left on real images,
and a healthy run uses all (measured: benchmarks/collapse.py)."""

FLAT_STD = 0.1
"""Std of unit features times sqrt(width), about 1 where directions are spread and 0 where all images look alike."""

GRACE = 200
"""Steps before flat features count as collapse: with a small LayerScale a fresh network sees all images alike."""

RANK_DROP = 0.5
"""Share of its best below which RankMe has fallen. A healthy run's rose from 36 to 46 in 300 steps, one without
centring fell from 33 to 15 (measured: benchmarks/collapse.py)."""

LEAST_RANK = 2.0
"""RankMe of features that vary along one direction only lies between 1 and 2 (Garrido 2023)."""

FALLEN = 0.1
"""Share of its best by which a held measure must have fallen at three looks in a row: what ``gram.drop`` waits for, and beyond the
standard error of a share of 128 tiles (0.04)."""

LOOKS = 3

WORSE = 0.8
"""Share of what the untrained network shows below which features are worse. Measured: a rate 300 times too high .47 and .55 after 80
steps, healthy runs 1.05 and more from step 20 on."""

UNMOVED = 0.01
"""Relative change below which a measure of held tiles is what it was; a healthy run's RankMe moves by 5 % in its first 20 steps."""

_AGAIN = "start again in another folder with"
_BEST = "backbones/best.safetensors, or the nearest of backbones/step-N.safetensors"


def was_spread(history: History) -> np.ndarray:
    """[n] whether features had told images apart before or at a row, so that flat ones later are a collapse however early."""
    spread: np.ndarray = np.logical_or.accumulate(np.nan_to_num(history.column("feature_std")) > 2 * FLAT_STD)
    return spread


def few_prototypes(history: History, plan: Plan) -> Finding | None:
    """A few prototypes take all images: the collapse that centring is there against (Caron 2021, section 5.3)."""
    kl, most, batch = history.mean("kl_to_uniform"), history.mean("max_entropy"), _batch(history)
    raw = history.column("max_entropy") - history.column("kl_to_uniform")
    # Few images need few prototypes: only a batch that could use many tells that it does not.
    few = (most - kl < math.log(FEW)) & (batch >= 4 * FEW) & (most > math.log(16 * FEW))
    since = history.since(
        ((kl > NEAR * most) | few) & _judged(history), raw < max(math.log(FEW), (1 - NEAR) * history.column("max_entropy")[-1])
    )
    if since is None:
        return None
    used = round(math.exp(most[-1] - kl[-1]))
    name = "one prototype" if used <= 1 else f"{used} prototypes"
    objective = plan.get("objective", {})
    how, momentum = objective.get("centering"), objective.get("center_momentum", 0.9)
    keys: dict[str, Any]
    cause, keys = "too little centring: a prototype that is ahead takes every image", {"objective.centering": "sinkhorn"}
    if how == "none":
        cause = "no centring (objective.centering=none): nothing keeps a prototype that is ahead from taking every image"
    elif how == "softmax" and momentum > 0.95:
        cause = f"a centre that moves too slowly (objective.center_momentum={momentum:g}) to keep any prototype from taking every image"
        keys = {"objective.center_momentum": 0.9}
    elif how == "sinkhorn":
        cause, keys = "a learning rate too high for sinkhorn to keep up, or batches of near-equal images", lower_rate(plan)
    return Finding(name="few prototypes", kind="collapsed", title=f"collapse to {name}", since=since, numbers=_teacher(history),
                   cause=cause, advice=_AGAIN, keys=keys)  # fmt: skip


def uniform(history: History, plan: Plan) -> Finding | None:
    """Every image gets every prototype alike: the collapse that sharpening is there against (Caron 2021, section 5.3)."""
    entropy, most, std = history.mean("teacher_entropy"), history.mean("max_entropy"), history.mean("feature_std")
    raw = history.column("teacher_entropy") > SILENT * history.column("max_entropy")
    # Features fade slowly behind a teacher that says nothing: half of their spread gone is enough where its entropy is all there is.
    faded = (std < 0.5 * np.maximum.accumulate(np.nan_to_num(std))) & (entropy > SILENT * most)
    # A healthy teacher is far from log K from the first step on (.72 to .90 of it on real data; one without sharpening .9998).
    mute = (entropy > SILENT * most) & (np.arange(len(history)) >= 2 * WINDOW)
    since = history.since((((entropy > NEAR * most) & (std <= FLAT_STD)) | faded | mute) & (_judged(history) | mute), raw)
    if since is None:
        return None
    objective = plan.get("objective", {})
    warmest, student = max(objective.get("teacher_temperature", (0.0,))), objective.get("student_temperature", math.inf)
    cause = "a teacher temperature or a learning rate that is too high: every image gets every prototype alike"
    keys = {"objective.teacher_temperature": "[0.03, 0.04]", **lower_rate(plan)}
    if warmest >= student:
        cause = f"no sharpening: the teacher temperature ({warmest:g}) is not below the student's ({student:g})"
        keys = {"objective.teacher_temperature": "[0.04, 0.07]"}
    return Finding(
        name="uniform", kind="collapsed", title="collapse to a uniform teacher", since=since, numbers=_teacher(history),
        cause=cause, advice=_AGAIN, keys=keys,
    )  # fmt: skip


def flat(history: History, plan: Plan) -> Finding | None:
    """All images look alike to the backbone, whatever the head makes of them."""
    std = history.mean("feature_std")
    since = history.since((std <= FLAT_STD) & _judged(history), history.column("feature_std") <= FLAT_STD)
    if since is None:
        return None
    return Finding(
        name="flat", kind="collapsed", title="features have gone flat", since=since, numbers=f"{_teacher(history)}: all images look alike",
        cause="a learning rate that is too high, or views that share too little", advice=_AGAIN,
        keys={**lower_rate(plan), "views.local_scale": "[0.15, 0.4]"},
    )  # fmt: skip


def rank(history: History, plan: Plan) -> Finding | None:
    """Features of held tiles lose directions: dimensional collapse (Jing 2022; RankMe: Garrido 2023)."""
    steps, rank = history.known("watch_rankme")
    if len(rank) < 2 or steps[-1] < GRACE:
        return None
    best = np.maximum.accumulate(rank)
    low = (rank < RANK_DROP * best) | (rank < LEAST_RANK)
    if not low[-2:].all():
        return None
    since = _first_of_last_run(steps, low)
    return Finding(
        name="rank", kind="collapsed", title="dimensional collapse", since=since,
        numbers=f"RankMe on held tiles {rank[-1]:.3g}, at best {best[-1]:.3g} (step {steps[rank.argmax()]})",
        cause="features use few of their directions: too little spreading, or weight decay that outweighs a small learning rate",
        advice=f"spread features: {_AGAIN} these, or from a backbone before it ({_BEST}, as start.weights)",
        keys={"objective.koleo_weight": 0.1, **lower_rate(plan)},
    )  # fmt: skip


def worse(history: History, plan: Plan) -> Finding | None:
    """Features of held tiles are worse than those of the untrained network at the first look, by two measures at two looks in a row."""
    looks = {name: history.known(name) for name in ("watch_rankme", "watch_knn_own")}
    if any(len(steps) < 3 or steps[0] != 0 for steps, _ in looks.values()):
        return None
    low = np.all([values < WORSE * values[0] for _, values in looks.values()], axis=0)
    steps, rank = looks["watch_rankme"]
    own = looks["watch_knn_own"][1]
    if not low[-2:].all() or steps[-1] < 2 * WINDOW:
        return None
    cause, keys = _too_fast(history, plan) or ("the objective teaches what does not help to tell images apart", lower_rate(plan))
    return Finding(
        name="worse", kind="degrading", title="features are worse than before training", since=_first_of_last_run(steps, low),
        numbers=f"RankMe on held tiles {rank[-1]:.3g}, untrained {rank[0]:.3g}; own crop nearest {own[-1]:.3g}, untrained {own[0]:.3g}",
        cause=cause, advice=_AGAIN, keys=keys,
    )  # fmt: skip


def unmoved(history: History, plan: Plan) -> Finding | None:
    """Features of held tiles are what they were at the first look."""
    looks = [history.known(name) for name in ("watch_rankme", "watch_effective_rank", "watch_feature_std")]
    steps = looks[0][0]
    if any(len(seen) < 3 or seen[0] != 0 for seen, _ in looks) or steps[-1] < 2 * WINDOW or is_frozen(plan, int(steps[-1])):
        return None
    if any(abs(values[-1] - values[0]) > UNMOVED * abs(values[0]) for _, values in looks):
        return None
    rate, ranks = history.column("lr"), looks[0][1]
    return Finding(
        name="unmoved", kind="stuck", title="features have not changed", since=int(steps[0]),
        numbers=f"RankMe on held tiles {ranks[-1]:.4g}, {ranks[0]:.4g} at step {steps[0]} (learning rate {np.nanmax(rate):.2g})",
        cause="a learning rate that is too low, a teacher momentum too near 1, or a frozen backbone",
        advice="start again in another folder with the recipe's own rate and momentum, and nothing frozen",
        keys={"optim.lr": "0.001", "optim.freeze_backbone": 0},
    )  # fmt: skip


def neighbours(history: History, plan: Plan) -> Finding | None:
    """Held tiles find their neighbours worse than before; the loss does not show it."""
    name = "watch_knn" if len(history.known("watch_knn")[0]) else "watch_knn_own"
    found = _fallen(history, name)
    if found is None:
        return None
    steps, values, since = found
    losses = history.mean("loss")
    before, now = losses[np.searchsorted(history.steps, steps[values.argmax()])], losses[-1]
    falls = "while the loss falls" if now < before else "with the loss"
    cause, keys = _too_fast(history, plan) or (
        "more training than the data bear, or crops that can be matched without looking at what they show",
        {"engine.steps": int(steps[values.argmax()]) + 1},
    )
    return Finding(
        name="neighbours", kind="degrading", title="neighbours on held tiles get worse", since=since,
        numbers=f"{name} {values[-1]:.3g}, at best {values.max():.3g} (step {steps[values.argmax()]}), {falls}",
        cause=cause, advice=f"take the best backbone ({_BEST}); this folder keeps its plan, {_AGAIN}", keys=keys,
    )  # fmt: skip


def dense(history: History, plan: Plan) -> Finding | None:
    """Patches of held tiles find their places worse than before (Simeoni 2025, section 4.1)."""
    found = _fallen(history, "watch_dense_match")
    if found is None:
        return None
    steps, values, since = found
    anchored = plan.get("gram", {}).get("weight", 0) > 0
    keys = {"gram.size": "twice views.global_size", **lower_rate(plan)} if anchored else {"gram.weight": 2, "gram.teacher": "drift"}
    cause = "patches lose what is local to them as the image loss goes on (Simeoni 2025, section 4.1)"
    advice = f"take an earlier backbone ({_BEST}), or {GO_ON} with patch similarities anchored to an earlier teacher"
    if (fast := _too_fast(history, plan)) is not None:
        (cause, keys), advice = fast, _AGAIN
    return Finding(
        name="dense", kind="degrading", title="dense features get worse", since=since,
        numbers=f"dense matching on held tiles {values[-1]:.3g}, at best {values.max():.3g} (step {steps[values.argmax()]})",
        cause=cause, advice=advice, keys=keys,
    )  # fmt: skip


def centre(history: History, plan: Plan) -> Finding | None:
    """The moving centre of the logits grows without end."""
    norm = history.mean("center_norm")
    known = np.flatnonzero(np.isfinite(norm) & (history.steps >= GRACE))
    if len(known) < WINDOW or norm[known[0]] <= 0:
        return None
    since = history.since(np.nan_to_num(norm) > SPIKE * norm[known[0]])
    if since is None:
        return None
    return Finding(
        name="centre", kind="unstable", title="the centre grows", since=since,
        numbers=f"its norm is {norm[-1]:.3g}, {norm[known[0]]:.3g} at step {history.steps[known[0]]}",
        cause="all images move towards the same prototypes faster than the centre takes them back",
        advice=f"balance by sinkhorn: {GO_ON} with", keys={"objective.centering": "sinkhorn"},
    )  # fmt: skip


def _too_fast(history: History, plan: Plan) -> tuple[str, dict[str, Any]] | None:
    """Cause and keys where the learning rate is one that no recipe comes near."""
    rate = float(np.nanmax(history.column("lr"), initial=0.0))
    if rate <= ABSURD_LR:
        return None
    return f"a learning rate that is far too high ({rate:.2g}; published ones stay below 0.01)", lower_rate(plan)


def _judged(history: History) -> np.ndarray:
    """[n] rows at which collapse may be told: late enough, or after features had been spread."""
    judged: np.ndarray = was_spread(history) | (history.steps >= GRACE)
    return judged


def _batch(history: History) -> np.ndarray:
    """[n] samples of each step, from its time and rate; 0 where they are not known."""
    batch: np.ndarray = np.nan_to_num(history.column("seconds") * history.column("samples_per_s"))
    return batch


def _teacher(history: History) -> str:
    entropy, kl, most, std = (history.mean(name)[-1] for name in ("teacher_entropy", "kl_to_uniform", "max_entropy", "feature_std"))
    return f"teacher entropy {entropy:.3g} and KL to uniform {kl:.3g} of at most {most:.3g} nats, feature std {std:.2g}"


def _fallen(history: History, name: str) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Looks of a measure that has fallen: steps, values, and the step of the first low one."""
    steps, values = history.known(name)
    if len(values) <= LOOKS:
        return None
    low = values < (1 - FALLEN) * np.maximum.accumulate(values)
    return (steps, values, _first_of_last_run(steps, low)) if low[-LOOKS:].all() else None


def _first_of_last_run(steps: np.ndarray, bad: np.ndarray) -> int:
    good = np.flatnonzero(~bad)
    return int(steps[int(good[-1]) + 1 if len(good) else 0])
