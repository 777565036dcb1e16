"""``dinodomain doctor``: what is installed and usable, how a run fares, how fast a store is read. Changes nothing but a run's figures."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dinodomain.domain import find_domain, installed_domains
from dinodomain.engine.folder import FIGURES
from dinodomain.engine.history import finite
from dinodomain.engine.machine import data_path
from dinodomain.engine.monitor import Diagnosis, Finding, examine
from dinodomain.engine.run import open_run
from dinodomain.engine.speeds import Speeds, measure_speeds
from dinodomain.errors import UserError
from dinodomain.lineage import Json
from dinodomain.loader import LoaderPlan
from dinodomain.show.doctor import draw_doctor
from dinodomain.store import open_store

PACKAGES = ("dinodomain", "torch", "numpy", "zarr", "numcodecs", "pyarrow", "safetensors", "scikit-learn", "hydra-core")
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "medical": ("pydicom", "nibabel", "SimpleITK"),
    "remote-sensing": ("rasterio", "pyproj"),
    "audit": ("captum",),
    "export": ("timm",),
    "demo": ("spyndex",),
}


FIGURE = "doctor.png"
MEASURES: Mapping[str, Callable[..., tuple[int, float]] | None] = {
    "loss": min, "teacher_entropy": None, "kl_to_uniform": None, "center_norm": None, "feature_std": max, "watch_feature_std": max,
    "watch_rankme": max, "watch_effective_rank": max, "watch_knn": max, "watch_knn_own": max, "watch_dense_match": max,
    "watch_dense_drift": None, "watch_cls_patch": None, "watch_outliers": min, "grad_norm_backbone": None, "grad_norm_head": None,
    "grad_norm_patch_embed": None, "samples_per_s": max, "data_wait": min, "memory": None,
}  # fmt: skip
"""Rows of the table, and which end of each is better; None where neither is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorPlan:
    """What to look at.

    Attributes:
        run: A run folder, to be told how it fares; without it and ``store`` the installation is looked at.
        store: A store, or a YAML file that lists several, to be read for a while by more and more readers.
        seconds: How long each number of readers is measured (``store``).
        loader: Batch, tile and the like to measure with; ``workers`` is the most that is tried.
    """

    run: str | None = None
    store: str | None = None
    seconds: float = 3.0
    loader: LoaderPlan = field(default_factory=LoaderPlan)

    def __post_init__(self) -> None:
        if self.run is not None and self.store is not None:
            raise UserError("run", "is given beside store", allowed="one of them", remedy="look at the run and at the store one by one")
        if not 0 < self.seconds <= 3600:
            raise UserError("seconds", f"is {self.seconds:g}", allowed="more than 0, at most 3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found.

    Attributes:
        facts: Name to value, in the order they are printed.
        advice: Plain-language lines; empty when nothing is wrong.
        figures: Files drawn.
        verdict: On a run, one line; empty for an installation.
        numbers: Of a run: first, best and last value of each measure, and the step of the best.
        findings: Of a run: what is wrong, the gravest first; the same as ``advice``, part by part.
    """

    facts: Mapping[str, Json]
    advice: tuple[str, ...]
    figures: tuple[str, ...] = ()
    verdict: str = ""
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def text(self) -> str:
        """What the command prints."""
        lines = [self.verdict] if self.verdict else []
        lines += [f"{name}: {_line(value)}" for name, value in self.facts.items()]
        if self.numbers:
            lines += ["", *_table(self.numbers), ""]
        numbered = [f"{number}. {text}" for number, text in enumerate(self.advice, 1)] if self.verdict else self.advice
        return "\n".join([*lines, *(numbered or ("nothing wrong was found",)), *self.figures])

    def as_json(self) -> Mapping[str, Json]:
        """Plain values for ``--json``."""
        found: dict[str, Json] = {**self.facts, "advice": list(self.advice), "figures": list(self.figures)}
        if self.verdict:
            found |= {"verdict": self.verdict, "numbers": {name: dict(values) for name, values in self.numbers.items()}}
            found["findings"] = [finding.as_json() for finding in self.findings]
        return found


def doctor(plan: DoctorPlan) -> Findings | Speeds:
    """Looks at the installation, at one run, or at how fast one store is read.

    Raises:
        UserError: ``run`` or ``store`` names a folder that holds none, or a file of the store is damaged.
    """
    if plan.store is not None:
        return measure_speeds(open_store(plan.store, mixed=True), plan.loader, seconds=plan.seconds)
    return _installation() if plan.run is None else _run(Path(plan.run))


def _installation() -> Findings:
    missing = {extra: [name for name in names if importlib.util.find_spec(name) is None] for extra, names in EXTRAS.items()}
    domains = {name: _domain_state(name) for name in installed_domains()}
    path, hindrances = data_path()
    facts: dict[str, Json] = {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": _device(),
        "threads": torch.get_num_threads(),
        "data path": path,
        "domains": domains,
        "missing": {extra: names for extra, names in missing.items() if names},
    }
    advice = [f'for {extra}: pip install "dinodomain[{extra}]" (lacks {", ".join(names)})' for extra, names in missing.items() if names]
    advice += [f"domain {name!r}: {state}" for name, state in domains.items() if state != "ok"]
    advice += hindrances
    if sys.byteorder != "little":
        advice.append("this machine is big-endian; stores are little-endian and were not tested here")
    return Findings(facts=facts, advice=tuple(advice))


def _run(path: Path) -> Findings:
    run = open_run(path)
    rows = run.metrics()
    found = examine(rows, run.plan)
    facts: dict[str, Json] = {
        "run": str(path), "steps": f"{run.step} of {run.plan['engine']['steps']} saved, {len(rows)} logged",
        "skipped": sum(int(row.get("skipped") or 0) for row in rows),
    }  # fmt: skip
    marks = [(finding.since, f"{finding.title}: {finding.numbers}") for finding in found.findings]
    figure = draw_doctor(rows, path / FIGURES / FIGURE, title=_headline(path, found, rows), marks=marks)
    return Findings(
        facts=facts, advice=tuple(finding.text() for finding in found.findings), figures=() if figure is None else (str(figure),),
        verdict=found.verdict, numbers=summarise(rows), findings=found.findings,
    )  # fmt: skip


def _headline(path: Path, found: Diagnosis, rows: Sequence[Mapping[str, Json]]) -> str:
    return f"{path.name}: {found.verdict}" + (f", {rows[-1]['step'] + 1} steps" if rows else "")


def summarise(rows: Sequence[Mapping[str, Json]]) -> dict[str, dict[str, float]]:
    """First, best and last value of each measure that a run has; ``best`` and its step where there is a better side."""
    table = {}
    for name, better in MEASURES.items():
        known = [(row["step"], float(row[name])) for row in rows if finite(row.get(name))]
        if known:
            table[name] = {"first": known[0][1], "last": known[-1][1]}
        if known and better is not None:
            step, value = better(known, key=lambda pair: pair[1])
            table[name] |= {"best": value, "best_step": step}
    return table


def _table(numbers: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Aligned lines, a header first."""
    width = max(map(len, numbers))
    lines = [f"{'':<{width}}  {'first':>9}  {'best':>9}  {'at step':>7}  {'last':>9}"]
    for name, values in numbers.items():
        best, step = (f"{values['best']:.4g}", f"{values['best_step']:.0f}") if "best" in values else ("", "")
        lines.append(f"{name:<{width}}  {values['first']:>9.4g}  {best:>9}  {step:>7}  {values['last']:>9.4g}")
    return lines


def _device() -> str:
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _domain_state(name: str) -> str:
    try:
        find_domain(name)
    except UserError as error:
        return str(error)
    return "ok"


def _line(value: Json) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
