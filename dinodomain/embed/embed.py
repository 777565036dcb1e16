"""The embed verb: a checkpoint over a store gives a folder of features with their lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dinodomain.checkpoint import load_backbone, origin
from dinodomain.domain import Domain, find_domain
from dinodomain.embed.table import save_features
from dinodomain.embed.tiles import check_loader, embed_store
from dinodomain.errors import Problems, UserError
from dinodomain.lineage import Lineage, digest, to_json
from dinodomain.loader import LoaderPlan
from dinodomain.model import Backbone
from dinodomain.parallel import choose_device
from dinodomain.store import open_store
from dinodomain.types import FeatureTable


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedPlan:
    """Features of a whole store.

    Attributes:
        checkpoint: Run folder, checkpoint folder or exported ``.safetensors`` file.
        store: Folder of the store.
        out: Folder for features.parquet, tokens.safetensors and lineage.json.
        tokens: Also write patch tokens (half precision, held in memory until written).
        batch: Tiles at a time.
        size: Longest side given to the network, pixels; None takes the pretraining size.
        holdout: Whether tiles of the audit holdout are taken: ``include``, ``exclude`` or ``only``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        loader: Tile side, least valid share, and how tiles are read; its batch is not used, and nothing is drawn.
    """

    checkpoint: str
    store: str
    out: str
    tokens: bool = False
    batch: int = 64
    size: int | None = None
    holdout: Literal["include", "exclude", "only"] = "include"
    device: str = "auto"
    loader: LoaderPlan = field(default_factory=LoaderPlan)

    def __post_init__(self) -> None:
        problems = [
            UserError(name, "is empty", allowed="a path") for name in ("checkpoint", "store", "out") if not getattr(self, name).strip()
        ]
        if self.batch < 1:
            problems.append(UserError("embed.batch", f"is {self.batch}", allowed="1 or more"))
        if self.size is not None and self.size < 1:
            problems.append(UserError("embed.size", f"is {self.size}", allowed="1 or more pixels, or empty"))
        try:
            check_loader(self.loader)
        except Problems as error:
            problems.extend(error.problems)
        if problems:
            raise Problems(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What ``embed`` wrote.

    Attributes:
        table: The features.
        files: Where they lie.
    """

    table: FeatureTable
    files: tuple[Path, ...]

    def text(self) -> str:
        """What the command prints."""
        count, width = self.table.features.shape
        return "\n".join([f"{count} tiles, {width} features each", *map(str, self.files)])

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        count, width = self.table.features.shape
        return {"tiles": count, "features": width, "files": [str(file) for file in self.files]}


def embed(plan: EmbedPlan, *, domain: Domain | None = None) -> Embedded:
    """Writes the features of a store.

    Args:
        plan: What, and where to.
        domain: The domain object; None finds the one that made the store.

    Raises:
        UserError: The checkpoint or the store cannot be used, or they do not fit each other.
    """
    device, _ = choose_device(plan.device, key="embed.device")
    backbone = load_backbone(plan.checkpoint).to(device)
    store = open_store(plan.store)
    domain = domain if domain is not None else find_domain(store.domain)
    keys: dict[str, Any] = {"batch": plan.batch, "holdout": plan.holdout, "size": plan.size, "plan": plan.loader}
    tokens = None
    if plan.tokens:
        table, tokens = embed_store(backbone, store, domain, tokens=True, **keys)
    else:
        table = embed_store(backbone, store, domain, **keys)
    record = features_record(plan, backbone, table, store_digest=store.digest, parents=(origin(plan.checkpoint), store.lineage))
    files = save_features(Path(plan.out), table, tokens=tokens, record=record)
    return Embedded(table=table, files=tuple(files))


def features_record(
    plan: EmbedPlan, backbone: Backbone, table: FeatureTable, *, store_digest: str, parents: tuple[Mapping[str, Any], ...]
) -> dict[str, Any]:
    """Lineage of features: backbone, store, settings, counts."""
    settings = {name: value for name, value in to_json(plan).items() if name not in ("checkpoint", "store", "out", "device")}
    checkpoint = str(parents[0].get("digest") or digest(backbone.spec))
    counts = {"tiles": len(table.rows), "units": len(set(table.units.tolist()))}
    return Lineage(
        kind="features", parents={"checkpoint": checkpoint, "store": store_digest}, plan=settings, counts=counts, history=parents
    ).as_json()
