"""Probe scores as a figure: one row per features and probe, with interval, and the chance level where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinodomain.errors import require

COLOURS = {"pretrained": "#0072b2", "random_init": "#999999", "pixels": "#e69f00", "warm_start": "#009e73"}
"""Okabe and Ito's palette: told apart by people with colour-blindness and in grey print."""

MARKERS = {"pretrained": "o", "random_init": "s", "pixels": "D", "warm_start": "^"}


def draw_scores(report: Mapping[str, Any], labels: Mapping[str, str], path: Path) -> None:
    """Writes the headline metric of every entry as a forest plot.

    Args:
        report: ``ProbeReport.as_json()``.
        labels: Printed name per kind of features.
        path: PNG to write.
    """
    figure_module = require("matplotlib.figure", extra="all", wanted_by="figures")
    headline, scores = report["headline"], report["scores"]
    figure = figure_module.Figure(figsize=(6.4, 1.2 + 0.36 * len(scores)), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for place, item in enumerate(reversed(scores)):
        found, kind = item["metrics"][headline], item["features"]
        spread = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
        axes.errorbar(found["value"], place, xerr=spread, fmt=MARKERS[kind], color=COLOURS[kind], capsize=3)
        axes.annotate(f"{found['value']:.2f}", (found["value"], place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(scores)), [f"{item['probe']}: {labels[item['features']]}" for item in reversed(scores)])
    axes.set_ylim(-0.6, len(scores) - 0.3)
    if report["classes"] and headline == "balanced_accuracy":
        axes.axvline(1 / len(report["classes"]), color="black", lw=0.8, ls=":", label="chance")
        axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_xlabel(f"{headline.replace('_', ' ')} (95 % interval over {report['num_units']} units, {report['num_images']} images)")
    axes.set_title(f"Predicting {report['target']} from frozen features", fontsize=10, loc="left")
    if report.get("notice"):
        figure.suptitle(report["notice"], fontsize=7)
    figure.savefig(path, metadata={"Software": None})
