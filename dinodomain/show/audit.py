"""Audit figures as SVG text that a page can hold inline: no network, no script, the same bytes for the same report."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dinodomain.errors import require

AUDITED, PIXELS, UNTRAINED, NULL = "#0072b2", "#b35900", "#595959", "#c8c8c8"
"""Okabe and Ito's blue and a darkened orange on a grey null band; shapes differ too, so colour is never alone."""

_BASELINES = {"pixels": (PIXELS, "D", "pixel statistics"), "untrained": (UNTRAINED, "s", "untrained encoder")}


def leak_forest(findings: Sequence[Mapping[str, Any]], thresholds: Mapping[str, Any], label: str) -> str:
    """One row per finding: estimate with interval, null band, baselines and the minimum detectable leak.

    Args:
        findings: Findings with an estimate and a null, as plain values.
        thresholds: ``tau_clear`` and ``tau_flag`` are drawn as lines.
        label: What the figure says, for those who do not see it.

    Returns:
        An ``<svg>`` element.
    """
    figure_module = require("matplotlib.figure", extra="all", wanted_by="figures")
    figure = figure_module.Figure(figsize=(7.2, 1.5 + 0.55 * len(findings)), layout="constrained")
    axes = figure.add_subplot()
    for place, finding in enumerate(reversed(findings)):
        _row(axes, place, finding)
    for name, style, side in (("tau_clear", ":", "right"), ("tau_flag", "--", "left")):
        axes.axvline(thresholds[name], color="black", lw=0.8, ls=style)
        axes.annotate(f"{name} {thresholds[name]:.2f}", (thresholds[name], len(findings) - 0.45), fontsize=8, ha=side, va="bottom")
    axes.set_yticks(range(len(findings)), [f"{item['id'].split('/')[-1]} ({item['n_units']} units)" for item in reversed(findings)])
    axes.set_ylim(-0.6, len(findings) - 0.1)
    axes.set_xlim(0.3, 1.02)
    axes.set_xlabel("score: .5 chance, 1 read without error")
    _legend(figure, axes)
    return _svg(figure, label)


def _row(axes: Any, place: int, finding: Mapping[str, Any]) -> None:
    null, estimate = finding["null"], finding["estimate"]
    axes.barh(place, null["high"] - null["low"], left=null["low"], height=0.62, color=NULL, label="95 % of chance")
    for baseline in finding["baselines"]:
        colour, marker, words = _BASELINES[baseline["name"]]
        axes.plot(baseline["value"], place - 0.16, marker, color=colour, ms=5, label=words)
    spread = [[max(0.0, estimate["value"] - estimate["low"])], [max(0.0, estimate["high"] - estimate["value"])]]
    axes.errorbar(estimate["value"], place + 0.12, xerr=spread, fmt="o", color=AUDITED, capsize=4, label="audited encoder, 95 % interval")
    if finding["mdl"] is not None:
        axes.plot([finding["mdl"]] * 2, [place - 0.34, place + 0.34], color="black", lw=2.2, label="minimum detectable leak")


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(reversed(labels), reversed(handles)))
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _svg(figure: Any, label: str) -> str:
    """The figure as one element; ids are salted with a constant and dates left out, so that equal reports give equal bytes."""
    matplotlib = require("matplotlib", extra="all", wanted_by="figures")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "dinodomain", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    body = buffer.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", body[body.index("<svg") :], flags=re.DOTALL)
    words = label.replace("&", "and").replace("<", "").replace('"', "'")
    return body.replace("<svg ", f'<svg role="img" aria-label="{words}" style="max-width:100%;height:auto" ', 1)
