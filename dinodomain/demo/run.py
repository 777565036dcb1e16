"""Runs the scenarios one after the other, telling what it does; each step writes into its own folder and is not done twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dinodomain.demo.clinic import run_clinic
from dinodomain.demo.plan import DemoPlan, Stories, Story
from dinodomain.demo.scenes import run_tiles
from dinodomain.lineage import write_bytes

logger = logging.getLogger(__name__)

SCENARIOS: Mapping[str, Callable[[DemoPlan, Path], Story]] = {"tiles": run_tiles, "clinic": run_clinic}


def run_demo(plan: DemoPlan) -> Stories:
    """Runs one scenario or both.

    Raises:
        UserError: The output folder cannot be used, or a package of the ``demo`` extra is missing.
    """
    names = tuple(SCENARIOS) if plan.scenario == "all" else (plan.scenario,)
    stories = []
    for name in names:
        began = time.monotonic()
        story = SCENARIOS[name](plan, Path(plan.out) / name)
        logger.info("%s took %.0f s", name, time.monotonic() - began)
        stories.append(story)
        write_bytes(Path(plan.out) / name / "summary.txt", (story.text() + "\n").encode())
    return Stories(stories=tuple(stories))
