"""From files to what an audit looks at: a checkpoint on a store, or features of any encoder with their metadata. Checks nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from dinodomain.audit.encoders import further_encoders
from dinodomain.audit.observe import Observer
from dinodomain.audit.observe.altered import AlteredDomain
from dinodomain.audit.observe.scale import kept_backbones
from dinodomain.audit.plan import AuditPlan
from dinodomain.audit.protocol.data import AuditSet, Copies
from dinodomain.audit.trail import Trail, read_trail, training_record
from dinodomain.audit.trail.kept import fields_of
from dinodomain.checkpoint import load_backbone, weights_digest
from dinodomain.domain import Domain
from dinodomain.errors import UserError, require
from dinodomain.ingest import join_labels
from dinodomain.ingest.join import read_table
from dinodomain.lineage import digest_file
from dinodomain.probes.frozen import Frozen, column_of, label_units, load_frozen
from dinodomain.store import open_store
from dinodomain.types import FeatureTable, Labels

_log = logging.getLogger(__name__)
KINDS: Final = {"pretrained": "audited", "random_init": "untrained", "pixels": "pixels"}
_RESERVED = ("content_hash", "tile_id", "row", "unit", "features")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is audited.

    Attributes:
        data: Arrays and metadata.
        identity: Digests and settings that say which model and data these are.
        record: Lineage record of the encoder; None where there are features only.
        observer: Shows images to the encoder again; None where there are features only.
        trail: What ingest and training recorded; None where there are features only.
    """

    data: AuditSet
    identity: Mapping[str, Any]
    record: Mapping[str, Any] | None = None
    observer: Observer | None = None
    trail: Trail | None = None

    @staticmethod
    def digests(checkpoint: str | None, store: str | None) -> dict[str, str]:
        """Digests of a checkpoint and a store, as ``identity`` holds them."""
        found = {} if checkpoint is None else {"weights": weights_digest(load_backbone(checkpoint).state_dict())}
        return found if store is None else {**found, "store": open_store(store).digest}


def from_store(plan: AuditPlan, domain: Domain | None = None) -> Subject:
    """Embeds a store by the checkpoint, by an untrained twin and by pixels, and joins the CSV.

    Raises:
        UserError: Checkpoint, store or CSV cannot be used.
    """
    assert plan.checkpoint is not None, "checked by the plan"
    assert plan.store is not None, "checked by the plan"
    read = _csv_identity(plan)  # of what is read next
    frozen = load_frozen(plan.checkpoint, plan.store, device=plan.device, key="audit.device", seed=plan.seed, domain=domain)
    tables = frozen.describe(batch=plan.batch, holdout="include")
    labels = None if plan.csv is None else join_labels(frozen.store, plan.csv, plan.join, None, secret=plan.secret)
    table = tables["pretrained"]
    columns = _columns(frozen, table, labels)
    further = further_encoders(plan, frozen, table.tile_ids)
    data = AuditSet(
        features={KINDS[name]: found.features for name, found in tables.items()} | further.features,
        units=(units := _units(plan, columns, table.units)),
        linked=_linked(table.rows, units),
        content_hash=table.content_hash.astype(str),
        sources=table.rows,
        columns=columns,
        split=_split(plan, columns),
        holdout=table.columns["holdout"].astype(bool),
        members_known=trained_on(training_record(frozen.origin) or frozen.origin, frozen.store.digest),
        copies=_copies(plan, frozen, table),
    )
    identity = {
        "weights": weights_digest(frozen.backbone.state_dict()),
        "checkpoint_lineage": frozen.origin.get("digest"),
        "store": frozen.store.digest,
        "domain": frozen.store.domain,
        "trained_on_this_store": data.members_known,
        "architecture": frozen.backbone.spec["model"],
    }
    return Subject(
        data=data, identity=identity | further.identity | read, record=frozen.origin,
        observer=Observer(
            frozen=frozen, batch=plan.batch, most=plan.images, most_tokens=plan.tokens, kept=kept_backbones(plan.checkpoint)
        ),
        trail=read_trail(frozen.origin, frozen.store, labels=labels, csv=plan.csv, join=plan.join, secret=plan.secret),
    )  # fmt: skip


def trained_on(origin: Mapping[str, Any], digest: str) -> bool:
    """Whether a checkpoint was trained on all of a store but what that store holds out.

    A store of a mix counts only where the others hold out nothing more of it: else rows that were never drawn would pass for members.

    Args:
        origin: Lineage record of the checkpoint.
        digest: Of the store.
    """
    if origin.get("parents", {}).get("store") == digest:
        return True
    first: Mapping[str, Any] = next(iter(origin.get("history", ())), {})
    stores = first.get("plan", {}).get("stores", ()) if first.get("kind") == "mix" else ()
    return any(one["store"] == digest and one["held_by_others"] == 0 for one in stores)


def _columns(frozen: Frozen, table: FeatureTable, labels: Labels | None) -> dict[str, np.ndarray]:
    """Index columns that hold one value per source, acquisition fields, and those of the CSV, which win."""
    columns = {name: values for name, values in table.columns.items() if name not in ("source_id", "holdout")}
    columns |= {name: values[table.rows] for name, values in fields_of(frozen.store.column("fields")).items()}
    columns["licence"] = np.array([_text(frozen.store.column("licence")[row]) for row in table.rows], dtype=object)
    if labels is not None:
        columns |= {name: column_of(labels, table.rows, values) for name, values in labels.columns.items()}
    return columns


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _units(plan: AuditPlan, columns: Mapping[str, np.ndarray], own: np.ndarray) -> np.ndarray:
    if plan.group is None:
        if not (own != "").any():
            _log.warning("no image has a unit id, so next to nothing can be assessed: name the column that tells people or places apart "
                         "with group=COLUMN (there are %s)", ", ".join(sorted(columns)) or "none: give a CSV")  # fmt: skip
        return own.astype(str)
    if plan.group not in columns:
        raise UserError("group", f"no column {plan.group!r}", allowed=", ".join(sorted(columns)) or "none: give a CSV")
    units = columns[plan.group].astype(str)
    if lost := int((units == "").sum()):
        _log.warning("%d of %d rows have no value of %s: checks that count units need one for every image", lost, len(units), plan.group)
    return units


def _linked(rows: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Units of values that whole sources share; a row without a unit stays without one."""
    known = units != ""
    out = units.copy()
    if known.any():
        out[known] = label_units(rows[known], units[known])
    return out


def _split(plan: AuditPlan, columns: Mapping[str, np.ndarray]) -> str | None:
    """The split column: the named one, or ``split`` where it holds anything."""
    if plan.split is not None:
        if plan.split not in columns:
            raise UserError("audit.split", f"no column {plan.split!r}", allowed=", ".join(sorted(columns)) or "none: give a CSV")
        return plan.split
    values = columns.get("split")
    return "split" if values is not None and any(_text(value) for value in values) else None


def _csv_identity(plan: AuditPlan) -> dict[str, str]:
    return {"metadata": digest_file(plan.csv)} if plan.csv is not None and Path(plan.csv).is_file() else {}


def _copies(plan: AuditPlan, frozen: Frozen, table: FeatureTable) -> Copies | None:
    """Features of altered copies of some sources, enough for the wanted number of tiles."""
    if plan.copies == 0:
        return None
    sources, counts = np.unique(table.rows, return_counts=True)
    order = np.random.default_rng([plan.seed, 0xC0B]).permutation(len(sources))
    enough = int(np.searchsorted(np.cumsum(counts[order]), plan.copies)) + 1
    chosen = np.sort(sources[order[:enough]])
    altered = frozen.describe(domain=AlteredDomain(frozen.domain, plan.seed), batch=plan.batch, holdout="include", rows=chosen.tolist())
    return Copies(
        rows=np.flatnonzero(np.isin(table.rows, chosen)), features={KINDS[name]: found.features for name, found in altered.items()}
    )


def from_features(plan: AuditPlan) -> Subject:
    """Reads features that any encoder made: Parquet with a list column ``features``, and metadata beside them or in a CSV.

    Raises:
        UserError: The file is not readable, lacks ``features``, or its rows do not join the CSV.
    """
    assert plan.features is not None, "checked by the plan"
    identity = {"features": digest_file(plan.features) if Path(plan.features).is_file() else ""} | _csv_identity(plan)  # what is read next
    read = _parquet(plan.features)
    features = _matrix(read, plan.features)
    columns = {
        name: np.array([_text(value) for value in read[name].to_pylist()], dtype=object) for name in read.column_names if name != "features"
    }
    if plan.csv is not None:
        columns |= _join(plan, columns)
    own = columns.get("unit", np.full(len(features), ""))
    data = AuditSet(
        features={"audited": features},
        units=_units(plan, columns, own),
        content_hash=columns["content_hash"].astype(str) if "content_hash" in columns else None,
        sources=_sources(columns, len(features)),
        columns={name: values for name, values in columns.items() if name not in _RESERVED},
        split=_split(plan, columns),
    )
    return Subject(data=data, identity=identity)


def _parquet(path: str) -> Any:
    if not Path(path).is_file():
        raise UserError("features", f"{path} does not exist", allowed="a Parquet file with a list column 'features'")
    parquet = require("pyarrow.parquet", extra="all", wanted_by="audit features=")
    try:
        return parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise UserError(
            "features", f"{path} is not readable Parquet ({error})", allowed="a Parquet file with a list column 'features'"
        ) from None


def _matrix(read: Any, path: str) -> np.ndarray:
    if "features" not in read.column_names:
        raise UserError(
            "features", f"{path} has no column 'features'", allowed="one list of numbers per row; found: " + ", ".join(read.column_names)
        )
    rows = read["features"].to_pylist()
    widths = {len(row) if isinstance(row, list) else 0 for row in rows}
    if len(widths) != 1 or widths == {0}:
        what = (
            "has no rows" if not rows else "holds no lists of numbers" if widths == {0} else f"holds {min(widths)} to {max(widths)} numbers"
        )
        raise UserError("features", f"column 'features' of {path} {what}", allowed="a list of numbers a row, all of one length")
    return np.array(rows, dtype=np.float32)


def _sources(columns: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Tiles of one image share its row of the store, where the file has one; else every row is an image."""
    rows = columns.get("row")
    if rows is None or any(value in ("", "-1") for value in rows):
        return np.arange(count)
    return np.unique(rows.astype(str), return_inverse=True)[1].reshape(-1)


def _join(plan: AuditPlan, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of the CSV for each row of features, matched on ``join``, which both must hold."""
    assert plan.csv is not None, "asked for by the caller"
    table = read_table(plan.csv, "metadata")
    table.require(plan.join, "join")
    if plan.join not in columns:
        raise UserError("join", f"{plan.features} has no column {plan.join!r}", allowed=", ".join(sorted(columns)) or "none")
    by_key = {row[plan.join]: row for row in table.rows}
    if len(by_key) != len(table.rows):
        raise UserError("join", f"column {plan.join!r} of {plan.csv} names some rows twice", allowed="one row per image")
    keys = [str(key) for key in columns[plan.join]]
    if twice := len(keys) - len(set(keys)):
        _log.warning("%d rows of %s name an image that another row names, too (column %s)", twice, plan.features, plan.join)
    if unused := len(by_key.keys() - set(keys)):
        _log.info("%d of %d lines of %s belong to no row of features", unused, len(by_key), plan.csv)
    missing = [key for key in keys if key not in by_key]
    if missing:
        shown = ", ".join(map(repr, missing[:10]))
        raise UserError(
            "metadata", f"{len(missing)} rows of features have no line in {plan.csv}: {shown}", remedy="add them, or choose another join"
        )
    return {name: np.array([by_key[str(key)][name] for key in columns[plan.join]], dtype=object) for name in table.header}
