"""Audit figures as SVG text that a page can hold inline: no network, no script, the same bytes for the same report."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dinodomain.errors import require

AUDITED, PIXELS, UNTRAINED, NULL = "#0072b2", "#b35900", "#595959", "#c8c8c8"
"""Okabe and Ito's blue and a darkened orange on a grey null band; shapes differ too, so colour is never alone."""

_COLOURS = (AUDITED, PIXELS, "#009e73", "#cc79a7", UNTRAINED, "#56b4e9", "#000000")

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


def draw_plot(plot: Mapping[str, Any]) -> str:
    """A figure of the record as an ``<svg>`` element.

    Args:
        plot: One of ``audit.figures`` as plain values, by its ``kind``.
    """
    figure_module = require("matplotlib.figure", extra="all", wanted_by="figures")
    return _svg(_DRAW[plot["kind"]](figure_module, plot), _in_words(plot))


def _forest(module: Any, plot: Mapping[str, Any]) -> Any:
    rows = plot["rows"][::-1]
    figure = module.Figure(figsize=(7.2, 1.5 + 0.45 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    if plot["band"] is not None:
        axes.axvspan(*plot["band"], color=NULL, label="95 % of chance")
    for name, value in plot["lines"].items():
        axes.axvline(value, color="black", lw=0.8, ls="--")
        axes.annotate(name, (value, 1.0), xycoords=("data", "axes fraction"), fontsize=8, ha="center", va="bottom")
    for place, row in enumerate(rows):
        if row["value"] is None:
            continue
        if row["low"] is not None and row["high"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=AUDITED, lw=1.6)
        axes.plot(row["value"], place, "o", color=AUDITED)
        if row["other"] is not None:
            axes.plot(row["other"], place - 0.2, "s", color=UNTRAINED, ms=5, label=plot["other"] or "baseline")
    axes.set_yticks(range(len(rows)), [_counted(row) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(plot["axis"])
    if axes.get_legend_handles_labels()[0]:
        _legend(figure, axes)
    return figure


def _counted(row: Mapping[str, Any]) -> str:
    return str(row["label"]) if row["n_units"] is None else f"{row['label']} ({row['n_units']} units)"


def _curves(module: Any, plot: Mapping[str, Any]) -> Any:
    figure = module.Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for series, colour, marker in zip(plot["series"], itertools.cycle(_COLOURS), itertools.cycle("osD^vX*P")):
        axes.plot(series["x"], _numbers(series["y"]), color=colour, marker=marker, ms=4, label=series["name"])
        if series["low"]:
            axes.fill_between(series["x"], _numbers(series["low"]), _numbers(series["high"]), color=colour, alpha=0.18, lw=0)
    for name, value in plot["lines"].items():
        axes.axhline(value, color="black", lw=0.8, ls="--")
        axes.annotate(name, (1.0, value), xycoords=("axes fraction", "data"), fontsize=8, ha="right", va="bottom")
    _scaled(axes, plot)
    if len(plot["series"]) > 1:
        _legend(figure, axes)
    return figure


def _numbers(values: Sequence[float | None]) -> list[float]:
    """What was not measured leaves a gap."""
    return [float("nan") if value is None else value for value in values]


def _points(module: Any, plot: Mapping[str, Any]) -> Any:
    figure = module.Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour, marker in zip(plot["groups"].items(), itertools.cycle(_COLOURS), itertools.cycle("osD^vX*P")):
        axes.scatter([x for x, _ in points], [y for _, y in points], s=16, color=colour, marker=marker, label=name)
    _scaled(axes, plot)
    if len(plot["groups"]) > 1:
        _legend(figure, axes)
    return figure


def _scaled(axes: Any, plot: Mapping[str, Any]) -> None:
    axes.set_xlabel(plot["x_axis"])
    axes.set_ylabel(plot["y_axis"])
    if plot["x_log"]:
        axes.set_xscale("log")
    if plot["y_log"]:
        axes.set_yscale("log")


def _heat(module: Any, plot: Mapping[str, Any]) -> Any:
    panels, low, high, centre = plot["panels"], plot["low"], plot["high"], plot["centre"]
    if centre is not None:
        reach = max(high - centre, centre - low)
        low, high = centre - reach, centre + reach
    figure = module.Figure(figsize=(min(9.0, 1.2 + 2.6 * len(panels)), 3.2), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        drawn = axes.imshow([_numbers(row) for row in rows], vmin=low, vmax=high, cmap="viridis" if centre is None else "PuOr_r")
        for y, row in enumerate(plot["marked"].get(name, ())):
            for x in (x for x, marked in enumerate(row) if marked):
                axes.plot([x - 0.45, x + 0.45, x + 0.45, x - 0.45, x - 0.45], [y - 0.45, y - 0.45, y + 0.45, y + 0.45, y - 0.45], "k", lw=1)
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(drawn, ax=figure.axes, label=plot["axis"], shrink=0.8)
    return figure


def _flow(module: Any, plot: Mapping[str, Any]) -> Any:
    stages = plot["stages"]
    figure = module.Figure(figsize=(7.2, 0.95 * len(stages) + 0.2), layout="constrained")
    axes = figure.add_subplot()
    for place, stage in enumerate(stages):
        y = -place
        if place:
            axes.annotate("", (0.25, y + 0.28), (0.25, y + 0.72), arrowprops={"arrowstyle": "-|>", "color": "black"})
        axes.text(0.25, y, f"{stage['name']}: {stage['count']} {plot['unit']}", ha="center", va="center", fontsize=9,
                  bbox={"boxstyle": "round,pad=0.35", "fc": "#e8f1fa", "ec": AUDITED})  # fmt: skip
        if stage["left"]:
            told = "\n".join(f"{count} {reason}" for reason, count in stage["left"].items())
            axes.annotate(
                told, (0.27, y + 0.5), (0.55, y + 0.5), fontsize=8, va="center", arrowprops={"arrowstyle": "<|-", "color": UNTRAINED}
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(stages) + 0.5, 0.5)
    axes.axis("off")
    return figure


def _in_words(plot: Mapping[str, Any]) -> str:
    """What a figure says, for those who do not see it."""
    if plot["kind"] == "forest":
        told = [f"{row['label']} {_short(row['value'])} from {_short(row['low'])} to {_short(row['high'])}" for row in plot["rows"]]
    elif plot["kind"] == "curves":
        told = [f"{one['name']} from {_short(one['y'][0])} to {_short(one['y'][-1])}" for one in plot["series"] if one["y"]]
    elif plot["kind"] == "flow":
        told = [f"{stage['name']} {stage['count']}" for stage in plot["stages"]]
    else:
        told = list(plot.get("panels", plot.get("groups", ())))
    return f"{plot['title']}. {'; '.join(told)}"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


_DRAW: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "forest": _forest, "curves": _curves, "points": _points, "heat": _heat, "flow": _flow,
}  # fmt: skip


def _svg(figure: Any, label: str) -> str:
    """The figure as one element; ids are salted with a constant and dates left out, so that equal reports give equal bytes."""
    matplotlib = require("matplotlib", extra="all", wanted_by="figures")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "dinodomain", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    body = buffer.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", body[body.index("<svg") :], flags=re.DOTALL)
    body = _own_ids(body)
    words = label.replace("&", "and").replace("<", "").replace('"', "'")
    return body.replace("<svg ", f'<svg role="img" aria-label="{words}" style="max-width:100%;height:auto" ', 1)


def _own_ids(body: str) -> str:
    """Ids that nothing refers to go; the others get a prefix made of the figure itself, so that no two figures of a page share one."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    prefix = hashlib.sha256(body.encode()).hexdigest()[:8]
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", body)
    return re.sub(r'(url\(#|href="#)', lambda found: f"{found[1]}{prefix}-", body)
