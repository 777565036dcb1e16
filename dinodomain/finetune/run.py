"""Fine-tuning as one act: split, train, score beside an untrained backbone with the same budget, write what came of it."""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from tqdm import tqdm

from dinodomain.checkpoint import load_backbone, origin, save_backbone
from dinodomain.checkpoint.baseline import baseline_of
from dinodomain.domain import Domain, ViewPolicy, find_domain
from dinodomain.embed import fit_channels
from dinodomain.finetune.data import Split, split_labels
from dinodomain.finetune.loop import Fitted, fit, training_policy
from dinodomain.finetune.plan import FinetunePlan
from dinodomain.lineage import Json, Lineage, to_json, write_bytes, write_json
from dinodomain.model import Backbone, random_like
from dinodomain.parallel import choose_device
from dinodomain.probes import Interval, index_units, percentile_interval, plain, unit_weights
from dinodomain.show.curves import draw_curves
from dinodomain.store import Store, open_store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What fine-tuning found.

    Attributes:
        out: Its folder.
        target: Column that was predicted.
        scores: ``pretrained`` and, unless turned off, ``untrained`` and, of a run that began with weights, ``warm_start`` -> metric ->
            interval over test units.
        difference: Headline metric, pretrained minus untrained, in the same bootstrap draws; None without a baseline.
        difference_to_start: The same, pretrained minus warm start; None where the run began with fresh weights.
        counts: Sources and units trained on and scored, and what was left out.
    """

    out: str
    target: str
    scores: Mapping[str, Mapping[str, Interval]]
    difference: Interval | None
    counts: Mapping[str, Json]
    difference_to_start: Interval | None = None

    def text(self) -> str:
        """What the command prints."""
        metrics = list(next(iter(self.scores.values())))
        lines = [f"{'backbone':<12}" + "".join(f"{name:>28}" for name in metrics)]
        lines += [f"{kind:<12}" + "".join(f"{found[name]!s:>28}" for name in metrics) for kind, found in self.scores.items()]
        if self.difference is not None:
            lines.append(f"pretrained - untrained, {metrics[0]}: {self.difference}")
        if self.difference_to_start is not None:
            lines.append(f"pretrained - warm start, {metrics[0]}: {self.difference_to_start}")
        lines += [f"{name}: {value}" for name, value in self.counts.items()]
        return "\n".join([*lines, f"weights, predictions and report: {self.out}"])

    def as_json(self) -> Mapping[str, Json]:
        """Plain values for ``--json``."""
        body: dict[str, Json] = to_json(self)
        return body


def finetune(plan: FinetunePlan, *, domain: Domain | None = None) -> Tuned:
    """Trains a head, or head and backbone, on few labels.

    Args:
        plan: What to train on and how.
        domain: Of the store; None finds it by name.

    Raises:
        UserError: Nothing to load, labels do not join, or too few of them.
    """
    store = open_store(plan.store)
    domain = domain or find_domain(store.domain)
    backbone = fit_channels(load_backbone(plan.checkpoint), store, domain)
    device, _ = choose_device(plan.device, key="finetune.device")
    split = split_labels(store, plan)
    # Now, so that a place that cannot be written is known before the training.
    Path(plan.out).mkdir(parents=True, exist_ok=True)
    starts = {"pretrained": backbone, **(_baselines(plan, backbone, store, domain) if plan.baseline else {})}
    policy = training_policy(domain, origin(plan.checkpoint))
    fitted = {name: _fit(name, start, store, domain, split, plan, device, policy) for name, start in starts.items()}
    scores, differences = _score(fitted, split)
    counts = _counts(split)
    tuned = Tuned(
        out=plan.out, target=plan.target, scores=scores, difference=differences.get("untrained"), counts=counts,
        difference_to_start=differences.get("warm_start"),
    )  # fmt: skip
    _write(tuned, fitted["pretrained"], split, store, plan)
    return tuned


def _fit(
    name: str, backbone: Backbone, store: Store, domain: Domain, split: Split, plan: FinetunePlan, device: str, policy: ViewPolicy
) -> Fitted:
    with tqdm(total=plan.steps, desc=f"fine-tune ({name})", disable=not sys.stderr.isatty(), unit="step") as bar:

        def report(step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            if step + 1 == plan.steps:
                logger.info("%s: %d steps, last loss %.4f", name, plan.steps, loss)

        return fit(backbone, store, domain, split, plan, report, device, policy)


def _baselines(plan: FinetunePlan, backbone: Backbone, store: Store, domain: Domain) -> dict[str, Backbone]:
    """What the same labels give without this pretraining: from chance, and from the weights that the run began with, if it had any."""
    start = baseline_of(plan.checkpoint)
    begun = {} if start is None else {"warm_start": fit_channels(load_backbone(start), store, domain)}
    return {"untrained": random_like(backbone, plan.seed), **begun}


def _score(fitted: Mapping[str, Fitted], split: Split) -> tuple[dict[str, dict[str, Interval]], dict[str, Interval]]:
    truth, units, metrics = split.target.y[split.test], index_units(split.units[split.test]), split.target.metrics
    weights = np.concatenate(list(unit_weights(units, 1000, seed=0)))
    values = {name: {m: plain(metric, one.predictions, truth) for m, metric in metrics.items()} for name, one in fitted.items()}
    draws = {name: {m: metric(one.predictions, truth, weights) for m, metric in metrics.items()} for name, one in fitted.items()}
    scores = {name: {m: percentile_interval(values[name][m], draws[name][m]) for m in metrics} for name in fitted}
    headline = next(iter(metrics))
    differences = {}
    for baseline in fitted.keys() - {"pretrained"}:
        gain = values["pretrained"][headline] - values[baseline][headline]
        differences[baseline] = percentile_interval(gain, draws["pretrained"][headline] - draws[baseline][headline])
    return scores, differences


def _counts(split: Split) -> dict[str, Json]:
    return {
        "trained on": f"{len(split.train)} sources of {len(np.unique(split.units[split.train]))} units",
        "scored on": f"{len(split.test)} sources of {len(np.unique(split.units[split.test]))} units",
        **{f"left out ({reason})": count for reason, count in split.left_out.items()},
    }


def _write(tuned: Tuned, fitted: Fitted, split: Split, store: Store, plan: FinetunePlan) -> None:
    out = Path(plan.out)
    parent = origin(plan.checkpoint)
    record = Lineage(
        kind="finetune",
        parents={"checkpoint": str(parent.get("digest", "")), "store": store.digest},
        plan={key: value for key, value in to_json(plan).items() if key not in ("checkpoint", "store", "labels", "secret", "out")},
        counts=tuned.counts,
        history=(parent,),
    ).as_json()
    head = {name: value.detach().cpu().contiguous() for name, value in fitted.predictor.head_state().items()}
    write_bytes(out / "head.safetensors", safetensors.torch.save(head))
    save_backbone(out / "backbone.safetensors", fitted.predictor.backbone, history=record)
    write_bytes(out / "predictions.csv", _predictions(fitted, split, store).encode())
    write_json(out / "lineage.json", record)
    draw_curves([{"step": step, "loss": loss} for step, loss in enumerate(fitted.losses)], out / "figures")
    # The report last: where it stands, everything else does.
    write_json(out / "report.json", tuned.as_json())


def _predictions(fitted: Fitted, split: Split, store: Store) -> str:
    """CSV with the stored source id (a pseudonym in personal domains), truth and prediction of each test source."""
    ids, classes = store.column("source_id"), split.target.classes
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["source_id", "truth", "prediction", *(f"p_{name}" for name in classes)])
    for position, values in zip(split.test.tolist(), fitted.predictions):
        truth = split.target.y[position]
        named = [classes[int(truth)], classes[int(values.argmax())], *values.tolist()] if classes else [truth, values]
        writer.writerow([ids[split.rows[position]], *named])
    return buffer.getvalue()
