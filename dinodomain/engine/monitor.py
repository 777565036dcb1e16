"""Watches the numbers that tell a collapse, a blow-up or a starved run, and says so in plain words with the likely cause.

Works on metrics rows alone (dicts as in metrics.jsonl), so the live run, ``dinodomain doctor`` and tests share it. Entropy is the
mean over images, KL that of the mean target from uniform, both in nats; ``max_entropy`` is log K for K prototypes. A sharp but
balanced teacher has both low, a collapsed one has one of them near log K.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
WINDOW = 20
"""Rows looked at together; one odd step is no verdict."""

NEAR = 0.95
"""Share of log K from which entropy or KL counts as having reached it."""

FLAT_STD = 0.1
"""Std of unit features times sqrt(width): about 1 where directions are spread, 0 where all images look alike."""

GRACE = 200
"""Steps before flat features count as collapse: with a small LayerScale a fresh network sees all images alike."""


class Monitor:
    """Keeps the last rows of a run and names each new problem once, until it has passed and come back."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: deque[Row] = deque(maxlen=WINDOW)
        self._told: set[str] = set()
        self._spread = False
        for row in rows:
            self.observe(row)

    def observe(self, row: Row) -> list[str]:
        """Takes one row; returns warnings that are new."""
        self._rows.append(row)
        self._spread = self._spread or _was_spread(row)
        found = _findings(self._rows, self._spread)
        new = [text for key, text in found.items() if key not in self._told]
        self._told = set(found)
        return new


def diagnose(rows: Sequence[Row]) -> list[str]:
    """Plain-language findings on the end of a run; empty when nothing is wrong.

    Args:
        rows: Rows of metrics.jsonl, oldest first.

    Returns:
        One line per problem: what the numbers say, the likely cause, the change to make.
    """
    if not rows:
        return ["metrics.jsonl has no rows: the run stopped before its first step; see log.txt"]
    spread = any(_was_spread(row) for row in rows)
    return list(_findings(rows[-WINDOW:], spread).values()) + _history(rows)


def _was_spread(row: Row) -> bool:
    """Whether features told images apart at this step, so that flat ones later are a collapse however early."""
    return _is_number(row.get("feature_std")) and row["feature_std"] > 2 * FLAT_STD


def _findings(rows: Iterable[Row], spread: bool) -> dict[str, str]:
    """Problems of one window by name."""
    held = list(rows)
    if len(held) < WINDOW:
        return {}
    checks: dict[str, Callable[[Sequence[Row]], str | None]] = {"skipped": _skipped, "starved": _starved, "gradient": _gradient}
    if spread or held[-1]["step"] >= GRACE:
        checks = {"collapse": _collapse, **checks}
    found = {name: check(held) for name, check in checks.items()}
    return {name: text for name, text in found.items() if text is not None}


def _collapse(rows: Sequence[Row]) -> str | None:
    """Both textbook collapses of DINO (Caron et al. 2021, section 5.3): one prototype takes everything, or all are equal."""
    entropy, kl, std, most = (_mean(rows, name) for name in ("teacher_entropy", "kl_to_uniform", "feature_std", "max_entropy"))
    if entropy is None or kl is None or std is None or most is None:
        return None
    numbers = f"teacher entropy {entropy:.3g} and KL to uniform {kl:.3g} of at most {most:.3g} nats, feature std {std:.2g}"
    if kl > NEAR * most:
        return (f"collapse to one prototype: {numbers}. Likely cause: too little centring. Use objective.centering=sinkhorn, or lower "
                "objective.center_momentum, and start again in another folder")  # fmt: skip
    if std > FLAT_STD:
        return None
    if entropy > NEAR * most:
        return (f"collapse to a uniform teacher: {numbers}. Likely cause: a teacher temperature or a learning rate that is too high. Lower "
                "objective.teacher_temperature or optim.lr, and start again in another folder")  # fmt: skip
    return (f"features have gone flat: {numbers}. All images look alike to the backbone. Likely cause: a learning rate that is too high or "
            "views that share too little. Lower optim.lr, or raise views.local_scale")  # fmt: skip


def _skipped(rows: Sequence[Row]) -> str | None:
    skipped = sum(int(row.get("skipped", 0)) for row in rows)
    if skipped == 0:
        return None
    return (
        f"{skipped} of the last {len(rows)} steps gave NaN or Inf and were skipped. Likely cause: a learning rate that is too high, or "
        "broken pixel values. Lower optim.lr, or run dinodomain inspect on the store; engine.precision=fp32 rules out bfloat16"
    )


def _starved(rows: Sequence[Row]) -> str | None:
    waits, seconds = _mean(rows, "data_wait"), _mean(rows, "seconds")
    if waits is None or seconds is None or seconds <= 0 or waits / seconds < 0.3 or waits < 0.005:
        return None
    return (
        f"the step waits for data {waits / seconds:.0%} of its time ({waits * 1000:.0f} ms a step). In this order: more readers "
        "(loader.workers, then loader.threads; dinodomain doctor store=... measures how many help here), several samples of each read "
        "(loader.draws=2), a faster disk for the store, a store that decodes faster (ingest again with store.codec=fast where it is small)"
    )


def _gradient(rows: Sequence[Row]) -> str | None:
    norm = _mean(rows, "grad_norm_backbone")
    if norm is None or norm > 1e-7:
        return None
    return f"the backbone's gradient has vanished (norm {norm:.2g}). Likely cause: a collapsed teacher or optim.lr far too high early on"


def _history(rows: Sequence[Row]) -> list[str]:
    """What only the whole run shows."""
    losses = [row["loss"] for row in rows if _is_number(row.get("loss"))]
    if not losses:
        return ["no step of this run gave a finite loss: check the store with dinodomain inspect and lower optim.lr"]
    steps = [row["step"] for row in rows]
    gaps = sorted(set(range(steps[0], steps[-1] + 1)) - set(steps))
    return [f"metrics.jsonl lacks {len(gaps)} steps, the first is {gaps[0]}"] if gaps else []


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [float(row[name]) for row in rows if _is_number(row.get(name))]
    return fmean(values) if len(values) * 2 >= len(rows) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
