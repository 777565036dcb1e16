"""``dinodomain doctor``: what is installed and usable, how a run fares, how fast a store is read. Changes nothing but a run's figures."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dinodomain.domain import find_domain, installed_domains
from dinodomain.engine.folder import FIGURES
from dinodomain.engine.machine import data_path
from dinodomain.engine.run import open_run
from dinodomain.engine.speeds import Speeds, measure_speeds
from dinodomain.errors import UserError
from dinodomain.lineage import Json
from dinodomain.loader import LoaderPlan
from dinodomain.show.curves import draw_curves
from dinodomain.store import open_store

PACKAGES = ("dinodomain", "torch", "numpy", "zarr", "numcodecs", "pyarrow", "safetensors", "scikit-learn", "hydra-core")
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "medical": ("pydicom", "nibabel", "SimpleITK"),
    "remote-sensing": ("rasterio", "pyproj"),
    "audit": ("captum",),
    "export": ("timm",),
    "demo": ("spyndex",),
}


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
    """

    facts: Mapping[str, Json]
    advice: tuple[str, ...]
    figures: tuple[str, ...] = ()

    def text(self) -> str:
        """What the command prints."""
        lines = [f"{name}: {_line(value)}" for name, value in self.facts.items()]
        return "\n".join([*lines, *(self.advice or ("nothing wrong was found",)), *self.figures])

    def as_json(self) -> Mapping[str, Json]:
        """Plain values for ``--json``."""
        return {**self.facts, "advice": list(self.advice), "figures": list(self.figures)}


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
    last = rows[-1] if rows else {}
    kept = ("loss", "teacher_entropy", "kl_to_uniform", "feature_std", "samples_per_s", "data_wait")
    facts: dict[str, Json] = {
        "run": str(path),
        "steps": f"{run.step} of {run.plan['engine']['steps']} saved, {len(rows)} logged",
        **{name: last[name] for name in kept if name in last},
    }
    return Findings(facts=facts, advice=tuple(run.diagnosis()), figures=tuple(str(file) for file in draw_curves(rows, path / FIGURES)))


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
