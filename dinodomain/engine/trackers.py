"""Where a run's numbers go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow, or any object with the same four methods.

Each service is imported where a run asks for it, on rank 0. A resumed run goes on in the same W&B or MLflow run: its id lies in
``RUN/trackers.json``. What a tracker raises after the run began is told once and costs the run nothing: the numbers are on disk anyway.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dinodomain import lineage
from dinodomain.engine.folder import BOARD, flatten
from dinodomain.engine.log import logger
from dinodomain.errors import MissingExtra

IDS = "trackers.json"

_LONGEST, _AT_ONCE = 500, 100
"""MLflow's limits: letters of a parameter's value, parameters of one call."""


class Tracker(Protocol):
    """Where scalars and figures go. Pass an object with these methods to ``pretrain`` for any other service."""

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Takes the resolved plan, as plain values, before the first row."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records the scalars of one step."""
        ...

    def figures(self, step: int, files: Sequence[Path]) -> None:
        """Takes figures that were drawn anew after ``step`` steps."""
        ...

    def close(self) -> None:
        """Flushes and ends."""
        ...


class TensorBoardTracker:
    """Scalars for TensorBoard under ``RUN/tensorboard``; a resumed run purges what lies beyond its first step. Figures stay files."""

    def __init__(self, out: Path, first_step: int) -> None:
        module = _package("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(str(out / BOARD), purge_step=first_step or None, max_queue=1000)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Shows the plan as text."""
        self._writer.add_text("plan", "```json\n" + json.dumps(plan, indent=2, sort_keys=True) + "\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def figures(self, step: int, files: Sequence[Path]) -> None:
        """Nothing: TensorBoard draws the same curves itself."""

    def close(self) -> None:
        """Flushes and ends."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run; project, entity and mode come from its own environment variables (``WANDB_PROJECT`` ...)."""

    def __init__(self, out: Path, first_step: int) -> None:
        self._module, self._out = _package("wandb", "wandb"), out

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Starts the run, or goes on in it, with the plan as its config."""
        known = _read_id(self._out, "wandb")
        self._run = self._module.init(
            dir=str(self._out), name=self._out.name, config=dict(plan), id=known, resume="allow" if known else None
        )
        _keep_id(self._out, "wandb", str(self._run.id))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(values), step=step)

    def figures(self, step: int, files: Sequence[Path]) -> None:
        """Shows the figures beside the newest numbers: W&B's steps must not go back, and drawing took a while."""
        self._run.log({f"figures/{file.stem}": self._module.Image(str(file)) for file in files})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class MlflowTracker:
    """An MLflow run; server and experiment come from its own environment variables (``MLFLOW_TRACKING_URI`` ...)."""

    def __init__(self, out: Path, first_step: int) -> None:
        self._module, self._out = _package("mlflow", "mlflow"), out

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Starts the run, or goes on in it, with the plan's keys as its parameters."""
        known = _read_id(self._out, "mlflow")
        run = self._module.start_run(run_id=known) if known else self._module.start_run(run_name=self._out.name)
        _keep_id(self._out, "mlflow", str(run.info.run_id))
        self._module.log_dict(dict(plan), "plan.json")
        if known is None:  # parameters of an MLflow run cannot change
            items = [(key, str(value)[:_LONGEST]) for key, value in flatten(plan).items()]
            for start in range(0, len(items), _AT_ONCE):
                self._module.log_params(dict(items[start : start + _AT_ONCE]))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._module.log_metrics(dict(values), step=step)

    def figures(self, step: int, files: Sequence[Path]) -> None:
        """Keeps the newest figures as artefacts."""
        for file in files:
            self._module.log_artifact(str(file), artifact_path="figures")

    def close(self) -> None:
        """Ends the run."""
        self._module.end_run()


class Guarded:
    """A tracker whose faults are told once and then leave it silent: a service that is away must not end days of training.

    Args:
        tracker: The real one.
        name: For the message.
    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name, self._broken = tracker, name, False

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Not guarded: what is wrong at the start is to be put right at the start."""
        self._tracker.begin(plan)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self._try(lambda: self._tracker.log(step, values))

    def figures(self, step: int, files: Sequence[Path]) -> None:
        """See ``Tracker``."""
        self._try(lambda: self._tracker.figures(step, files))

    def close(self) -> None:
        """See ``Tracker``; also tried after a fault."""
        self._broken = False
        self._try(self._tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:
            self._broken = True
            what = f"{type(error).__name__}: {error}"
            logger.warning("%s takes no more numbers of this run (%s); metrics.jsonl has them all", self._name, what)


KINDS: Mapping[str, Callable[[Path, int], Tracker]] = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker, "mlflow": MlflowTracker}


def make_trackers(
    names: Sequence[str], out: Path, first_step: int, plan: Mapping[str, Any], others: Sequence[Tracker] = ()
) -> list[Tracker]:
    """The trackers that a plan names, and others, begun.

    Args:
        names: ``engine.trackers``.
        out: Run folder.
        first_step: Step the run begins or goes on with.
        plan: Resolved, as plain values.
        others: Objects that the caller brought.

    Raises:
        MissingExtra: A package is not installed; nothing was begun.
    """
    made: list[Tracker] = [Guarded(KINDS[name](out, first_step), f"engine.trackers={name}") for name in names]
    made += [Guarded(other, type(other).__name__) for other in others]
    for tracker in made:
        tracker.begin(plan)
    return made


def check_trackers(names: Sequence[str]) -> None:
    """Refuses services whose package is missing, before anything is written.

    Raises:
        MissingExtra: With the pip line.
    """
    for name in names:
        _package("torch.utils.tensorboard" if name == "tensorboard" else name, name)


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise
        missing = MissingExtra("engine.trackers", package, "dev")
        missing.args = (f"engine.trackers={package} needs {package}: pip install {package}; or leave it out: engine.trackers=[]",)
        raise missing from None


def _read_id(out: Path, name: str) -> str | None:
    path = out / IDS
    found = json.loads(path.read_text(encoding="utf-8")).get(name) if path.is_file() else None
    return None if found is None else str(found)


def _keep_id(out: Path, name: str, value: str) -> None:
    path = out / IDS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lineage.write_json(path, {**known, name: value})
