"""From numbers to a verdict, and correction for many questions. The rules are conventions, printed beside every verdict.

FLAG: found after correction, and the interval lies above tau_flag. WARN: found, the interval reaches below tau_flag.
CLEAR_WITHIN_LIMITS: the interval ends below tau_clear, a leak of at most mdl_max would have been found, the controls passed.
Everything else is NOT_ASSESSABLE with its reason: what could not be assessed is never clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dinodomain.probes.scores import Interval

Verdict = Literal["FLAG", "WARN", "CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE", "NOT_APPLICABLE", "ERROR"]
VERDICTS: tuple[Verdict, ...] = ("FLAG", "ERROR", "NOT_ASSESSABLE", "WARN", "CLEAR_WITHIN_LIMITS", "NOT_APPLICABLE")

MIN_UNITS_FOR_CLEAR = 100
MIN_UNITS = 30


class Thresholds(BaseModel):
    """Where the lines are drawn. Conventions to argue about, set before results are seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(default=0.05, gt=0, lt=1, description="Level of the tests of one question, after Holm's correction.")
    tau_clear: float = Field(default=0.60, ge=0.5, le=1, description="A leak's interval must end below this score to be clear.")
    tau_flag: float = Field(default=0.70, ge=0.5, le=1, description="A found leak whose interval lies above this score is flagged.")
    mdl_max: float = Field(default=0.70, ge=0.5, le=1, description="Clear needs a minimum detectable leak of at most this score.")
    gap_flag: float = Field(
        default=0.05, ge=0, le=1, description="AUROC gap of a group to the rest: flagged above, clear when the interval stays below."
    )
    duplicates_flag: float = Field(
        default=0.005, ge=0, le=1, description="Share of images with a copy across splits whose interval must lie above this to be flagged."
    )
    duplicates_recall: float = Field(default=0.9, ge=0, le=1, description="Clear needs at least this share of planted copies found.")


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values in the given order. Source: Holm 1979."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(value) for value in adjusted]


def judge(interval: Interval, p_adjusted: float, mdl: float | None, num_minor: int, *, thresholds: Thresholds) -> tuple[Verdict, str, str]:
    """The verdict on a leak whose controls passed.

    Args:
        interval: Estimate with its interval.
        p_adjusted: p value after correction.
        mdl: Minimum detectable leak, None if no planted leak was found.
        num_minor: Units in the smaller class.
        thresholds: Where the lines are.

    Returns:
        Verdict, reason code and reason; both empty where the verdict speaks for itself.
    """
    found = p_adjusted <= thresholds.alpha
    if found and interval.low >= thresholds.tau_flag:
        return "FLAG", "", ""
    if num_minor < MIN_UNITS_FOR_CLEAR:
        return (
            "NOT_ASSESSABLE",
            "n_units",
            f"{num_minor} units in the smaller class; {MIN_UNITS_FOR_CLEAR} are needed for any verdict but FLAG",
        )
    if found:
        return "WARN", "", ""
    if interval.high >= thresholds.tau_clear:
        return (
            "NOT_ASSESSABLE",
            "wide_interval",
            f"no leak was shown, but the interval reaches {interval.high:.2f}, above {thresholds.tau_clear:.2f}",
        )
    if mdl is None or mdl > thresholds.mdl_max:
        least = "no planted leak at all" if mdl is None else f"only leaks of {mdl:.2f} and more"
        return "NOT_ASSESSABLE", "low_power", f"with these units {least} would have been found; {thresholds.mdl_max:.2f} is asked for"
    return "CLEAR_WITHIN_LIMITS", "", ""
