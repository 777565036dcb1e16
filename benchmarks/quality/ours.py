"""Our side: pretraining by the package's own interface for so many CPU-minutes, and what its features, or an untrained network's, are."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain import config
from dinodomain.domain import find_domain
from dinodomain.embed import embed_store, pixel_features
from dinodomain.engine import PretrainPlan, Run, pretrain
from dinodomain.ingest import join_labels
from dinodomain.model import Backbone, random_like
from dinodomain.probes.frozen import column_of
from dinodomain.store import open_store
from dinodomain.types import FeatureTable
from quality.budget import timed
from quality.cases import COMMON, QUICK_STEPS, Case
from quality.data import Prepared


def train(
    case: Case, data: Prepared, out: Path, seed: int, minutes: float | None, changes: Mapping[str, Any], pace: float | None = None
) -> tuple[Backbone, dict[str, Any]]:
    """Finds how many steps fit, does them; returns the teacher's backbone and what was done.

    Args:
        case: What.
        data: Made ready.
        out: Folder for the runs.
        seed: Of the run.
        minutes: CPU-minutes; None does ``QUICK_STEPS``.
        changes: To the plan.
        pace: See ``budget.timed``.
    """
    if minutes is None:
        steps, (run, seconds) = QUICK_STEPS, _run(case, data, out / "run", seed, QUICK_STEPS, changes)
    else:
        steps, run, seconds = timed(lambda steps, place: _run(case, data, out / place, seed, steps, changes), minutes, pace)
    told = {"steps": steps, "cpu_seconds": seconds, "loss": run.metrics()[-1]["loss"], "findings": run.diagnosis()}
    backbone = run.backbone()
    return backbone, {**told, "parameters": sum(item.numel() for item in backbone.parameters())}


def untrained(case: Case, data: Prepared, out: Path, seed: int) -> Backbone:
    """The same network with fresh weights."""
    return random_like(_run(case, data, out / "run", seed, 1, {})[0].backbone(), seed)


def _run(case: Case, data: Prepared, out: Path, seed: int, steps: int, changes: Mapping[str, Any]) -> tuple[Run, float]:
    shutil.rmtree(out, ignore_errors=True)
    keys = config.overlay(config.overlay(config.overlay(config.load_recipe("tiny"), COMMON), case.plan), changes)
    given = {"domain": case.domain, "store": str(data.store), "out": str(out), "seed": seed, "engine": {"steps": steps}}
    plan = config.build(PretrainPlan, config.overlay(config.overlay({"loader": {"batch": case.batch}}, keys), given))
    began = time.process_time()
    run = pretrain(plan)
    return run, time.process_time() - began


def pooled(backbone: Backbone, case: Case, data: Prepared, *, pixels: bool = False) -> np.ndarray:
    """One row per line of the table of labels: class token and mean patch, or plain pixels in the network's range."""
    store, domain = open_store(data.store), find_domain(case.domain)
    table = (
        pixel_features(store, domain, normalisation=backbone.normalisation)
        if pixels
        else embed_store(backbone, store, domain, batch=64)
    )  # fmt: skip
    return _in_order(table, join_labels(store, data.labels, "id", "number"))


def _in_order(table: FeatureTable, labels: Any) -> np.ndarray:
    """Rows of the table in the order of the labels."""
    numbers = column_of(labels, table.rows, labels.values, missing="-1").astype(int)
    kept = np.flatnonzero(numbers >= 0)
    assert len(kept) == len(labels.values), "one tile for each labelled image"
    out = np.empty((len(kept), table.features.shape[1]), np.float32)
    out[numbers[kept]] = table.features[kept]
    return out
