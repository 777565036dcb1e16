"""Features of further encoders over the audited rows: the release before, a fine-tuned model, what anybody can get. Compares nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinodomain.audit.plan import AuditPlan
from dinodomain.checkpoint import load_backbone, weights_digest
from dinodomain.checkpoint.baseline import baseline_of
from dinodomain.embed import embed_store, fit_channels
from dinodomain.errors import UserError
from dinodomain.probes.frozen import Frozen

OTHERS = ("previous", "finetuned", "generic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Further:
    """What was embedded beside the audited encoder.

    Attributes:
        features: Kind to [N, width].
        identity: ``weights_KIND`` to the digest of the weights.
    """

    features: dict[str, np.ndarray] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)


def further_encoders(plan: AuditPlan, frozen: Frozen, tile_ids: np.ndarray) -> Further:
    """Embeds the store by every further encoder that the plan names; the weights a run began with stand for a generic one by default.

    Args:
        plan: Names them.
        frozen: The audited encoder's store and domain.
        tile_ids: [N] of the audited rows, which every encoder must see in this order.
    """
    found = Further()
    for kind in OTHERS:
        named = getattr(plan, kind)
        if named is None and kind == "generic":
            named = baseline_of(plan.checkpoint or "")
        if named is None:
            continue
        try:
            backbone = fit_channels(load_backbone(named).to(frozen.backbone.device), frozen.store, frozen.domain)
        except UserError as error:  # it speaks of the audited checkpoint or store
            raise UserError(f"audit.{kind}", f"{named}: {error.problem}", allowed=error.allowed, remedy=error.remedy) from None
        table = embed_store(backbone, frozen.store, frozen.domain, batch=plan.batch, holdout="include")
        assert np.array_equal(table.tile_ids, tile_ids), "one walk, one order"
        found.features[kind] = table.features
        found.identity[f"weights_{kind}"] = weights_digest(backbone.state_dict())
    return found
