"""Trains a predictor on labelled tiles and predicts every scored source; views are drawn and rendered as in pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinodomain.domain import Domain, ViewPolicy
from dinodomain.embed import narrowed, network_input, sides_for, token_weights, told_channels
from dinodomain.finetune.data import Split
from dinodomain.finetune.plan import FinetunePlan
from dinodomain.finetune.task import Predictor
from dinodomain.loader import Loader, LoaderPlan, sweep
from dinodomain.model import Backbone
from dinodomain.policy import changed
from dinodomain.store import Store
from dinodomain.types import Acquisition, Batch
from dinodomain.views import ViewsPlan, draw_batch, render

Report = Callable[[int, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A trained predictor and what it says of the scored sources.

    Attributes:
        predictor: In evaluation mode, on its device.
        predictions: [m, classes] probabilities or [m] values, in the order of ``Split.test``.
        losses: Training loss of each step.
    """

    predictor: Predictor
    predictions: np.ndarray
    losses: tuple[float, ...]


def fit(
    backbone: Backbone, store: Store, domain: Domain, split: Split, plan: FinetunePlan, report: Report, device: str, policy: ViewPolicy
) -> Fitted:
    """Trains a fresh head (and the backbone in mode ``full``) and predicts the test sources.

    Args:
        backbone: Changed in place in mode ``full``.
        store: Opened.
        domain: Of the store.
        split: Labels.
        plan: Budget.
        report: Called with step and loss after each step.
        device: Where to compute.
        policy: Augmentations, see ``training_policy``.
    """
    torch.manual_seed(plan.seed)
    seen = replace(split.target, y=split.target.y[split.train])
    predictor = Predictor(backbone, seen, full=plan.mode == "full").to(device)
    losses = _train(predictor, store, domain, split, plan, report, device, policy)
    predictions = _predict(predictor.eval(), store, domain, split, plan, device)
    return Fitted(predictor=predictor, predictions=predictions, losses=tuple(losses))


def _train(
    predictor: Predictor, store: Store, domain: Domain, split: Split, plan: FinetunePlan, report: Report, device: str, policy: ViewPolicy
) -> list[float]:
    rows = split.rows[split.train]
    labels = torch.as_tensor(split.target.y[split.train])
    order = np.argsort(rows)
    loader = Loader(store, LoaderPlan(batch=plan.batch), seed=plan.seed, device=device, rows=rows)
    optimizer = _optimizer(predictor, plan)
    losses = []
    with closing(iter(loader)) as batches:
        for step, batch in enumerate(islice(batches, plan.steps)):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _share(step, plan.steps)
            position = order[np.searchsorted(rows, batch.rows.cpu().numpy(), sorter=order)]
            # The backbone stays in evaluation mode: few labels do not feed stochastic depth.
            loss = predictor.loss(predictor(*_augmented(batch, predictor.backbone, domain, policy, plan)), labels[position].to(device))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_([p for p in predictor.parameters() if p.requires_grad], 3.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            report(step, losses[-1])
    return losses


def _optimizer(predictor: Predictor, plan: FinetunePlan) -> torch.optim.Optimizer:
    head = [*predictor.norm.parameters(), *predictor.linear.parameters()]
    groups = [{"params": head, "peak": plan.lr}]
    if plan.mode == "full":
        groups.append({"params": list(predictor.backbone.parameters()), "peak": plan.backbone_lr})
    return torch.optim.AdamW(groups, lr=plan.lr, weight_decay=plan.weight_decay)


def _share(step: int, steps: int) -> float:
    """Linear rise over a tenth of the steps, then a cosine to 0."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def training_policy(domain: Domain, pretrained: Mapping[str, Any]) -> ViewPolicy:
    """What the backbone was pretrained under, so that a symmetry that was ruled out there stays so.

    The domain's policy where the backbone is of another domain, or has no record. Without blur and solarisation: blur is always on for
    the first global view in pretraining, and would hide what labels are about.

    Args:
        domain: Of the store.
        pretrained: Lineage record of the backbone.

    Raises:
        Problems: The record holds a policy that this version or domain cannot have.
    """
    plan, fixed = pretrained.get("plan", {}), ("axes", "wavelengths_nm")
    recorded = plan.get("views", {}).get("policy") or {} if plan.get("domain") == domain.name else {}
    changes = {name: value for name, value in recorded.items() if name not in fixed}
    return replace(changed(domain.view_policy(), changes, place="the checkpoint's views.policy"), blur=None, solarise=None)


def _augmented(
    batch: Batch, backbone: Backbone, domain: Domain, policy: ViewPolicy, plan: FinetunePlan
) -> tuple[Tensor, Tensor, Acquisition]:
    """One crop of each tile, [n, P] shares of valid pixels, and what else is known of it."""
    numbers = narrowed(backbone, batch.channels)
    views = ViewsPlan(global_size=backbone.image_size[0], num_global=1, num_local=0, global_scale=plan.scale)
    params = draw_batch(policy, views, batch, seed=plan.seed, normalisation=numbers)
    group = render(batch, params, to_float=domain.to_float, normalisation=numbers, patch_size=backbone.patch).groups[0]
    about = Acquisition(spacing=group.spacing, kept=group.kept, channels=told_channels(backbone, numbers))
    return group.pixels, group.valid, about


@torch.no_grad()
def _predict(predictor: Predictor, store: Store, domain: Domain, split: Split, plan: FinetunePlan, device: str) -> np.ndarray:
    """Mean over the tiles of a source."""
    rows = split.rows[split.test]
    sums: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    batches = sweep(store, LoaderPlan(batch=plan.batch), rows=rows, holdout="exclude", device=device)
    for found, outputs in _outputs(predictor, batches, domain):
        for row, values in zip(found, outputs):
            sums[row] = sums.get(row, 0) + values
            counts[row] = counts.get(row, 0) + 1
    return np.stack([sums[row] / counts[row] for row in rows.tolist()])


def _outputs(predictor: Predictor, batches: Generator[Batch, None, None], domain: Domain) -> Iterator[tuple[list[int], np.ndarray]]:
    backbone = predictor.backbone
    with closing(batches):
        for batch in batches:
            sides = sides_for(tuple(batch.pixels.shape[3:]), max(backbone.image_size), backbone.patch)
            shown = network_input(backbone, batch, domain, sides)
            outputs = predictor(shown.pixels, token_weights(shown.valid, backbone.patch), shown.about)
            yield batch.rows.tolist(), predictor.predict(outputs).float().cpu().numpy()
