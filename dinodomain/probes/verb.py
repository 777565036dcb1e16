"""The probe verb: loads checkpoint, store and labels, and hands arrays to ``run_probe``. Units of the audit holdout are never used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.checkpoint import load_backbone
from dinodomain.checkpoint.baseline import baseline_of
from dinodomain.domain import Domain
from dinodomain.embed import embed_store
from dinodomain.errors import UserError
from dinodomain.ingest import join_labels
from dinodomain.probes.frozen import Frozen, column_of, group_column, label_units, load_frozen, own_units
from dinodomain.probes.plan import ProbePlan
from dinodomain.probes.report import ProbeReport
from dinodomain.probes.run import WARM_START, run_probe
from dinodomain.types import FeatureTable, Labels


def probe(plan: ProbePlan, *, domain: Domain | None = None) -> ProbeReport:
    """Scores frozen features beside an untrained encoder and pixels, and beside the weights that the run began with, if it began with any.

    Args:
        plan: What, on what, and how.
        domain: The domain object; None finds the one that made the store.

    Raises:
        UserError: Checkpoint, store or labels cannot be used, or too few units are labelled.
    """
    frozen = load_frozen(plan.checkpoint, plan.store, device=plan.device, key="probe.device", seed=plan.seed, domain=domain)
    labels = join_labels(frozen.store, plan.labels, plan.join, plan.target, secret=plan.secret)
    rows, left_out = _usable(frozen, labels)
    keys: dict[str, Any] = {"batch": plan.batch, "holdout": "exclude", "rows": rows.tolist()}
    tables = {**frozen.describe(**keys), **_warm_start(plan.checkpoint, frozen, keys)}
    first = tables["pretrained"]
    report = run_probe(
        {name: table.features for name, table in tables.items()},
        column_of(labels, first.rows, labels.values),
        _units(plan, labels, first),
        target=plan.target,
        kinds=plan.kind,
        task=plan.task,
        labels_per_class=plan.labels_per_class,
        num_folds=plan.folds,
        seeds=tuple(plan.seed + seed for seed in plan.seeds),
        bootstraps=plan.bootstraps,
        left_out=left_out | _too_empty(rows, first),
    )
    report = replace(report, notice=plan.notice)
    if plan.out is not None:
        report.save(Path(plan.out))
    return report


def _warm_start(checkpoint: str, frozen: Frozen, keys: dict[str, Any]) -> dict[str, FeatureTable]:
    """The same tiles by the backbone that the run began with; nothing where it began with chance."""
    start = baseline_of(checkpoint)
    if start is None:
        return {}
    backbone = load_backbone(start).to(frozen.backbone.device)
    return {WARM_START: embed_store(backbone, frozen.store, frozen.domain, **keys)}


def _usable(frozen: Frozen, labels: Labels) -> tuple[np.ndarray, dict[str, int]]:
    """Labelled rows outside the audit holdout, and how many were left out."""
    held = frozen.store.column("holdout").astype(bool)[labels.rows]
    rows = labels.rows[~held]
    if not len(rows):
        raise UserError("labels", f"{len(labels.rows)} sources are labelled, none outside the audit holdout", remedy="label more sources")
    return rows, {"of units reserved for the audit": int(held.sum())} if held.any() else {}


def _too_empty(rows: np.ndarray, table: FeatureTable) -> dict[str, int]:
    lost = int((~np.isin(rows, table.rows)).sum())
    return {"of sources without a tile that holds enough valid pixels": lost} if lost else {}


def _units(plan: ProbePlan, labels: Labels, table: FeatureTable) -> np.ndarray:
    if plan.group is None:
        return label_units(table.rows, table.units)
    return own_units(column_of(labels, table.rows, group_column(labels, plan.group, plan.labels)), table.rows)
