"""What a probe is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinodomain.errors import Problems, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """Scores a checkpoint's frozen features on one column of labels.

    Attributes:
        checkpoint: Run folder, checkpoint or exported backbone.
        store: Store whose images are embedded.
        labels: CSV with the labels.
        target: Column that is predicted.
        join: Column of the CSV that names the image.
        group: Column that names the unit (patient, place) where the store's own units are not the right ones; none means the store's.
        out: Folder for the report; none prints only.
        kind: Probes to run.
        task: Classes, numbers, or decided from the values: more than 20 different numbers are a quantity.
        labels_per_class: Fit on this many labels per class; none means all labels outside the held-out fold.
        folds: Folds by unit.
        seeds: Repeats with other folds and draws of labels.
        bootstraps: Resamples of units for the intervals.
        notice: Printed on the report and its figure, for example that the data are made up.
        secret: File with the store's secret, where ids in the CSV are clear names; none means the one beside the store.
        batch: Images embedded at a time.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: Decides the untrained encoder's weights, and is added to ``seeds``.
    """

    checkpoint: str
    store: str
    labels: str
    target: str
    join: str = "id"
    group: str | None = None
    out: str | None = None
    kind: tuple[Literal["knn", "linear"], ...] = ("knn", "linear")
    task: Literal["auto", "classify", "regress"] = "auto"
    labels_per_class: int | None = None
    folds: int = 5
    seeds: tuple[int, ...] = (0,)
    bootstraps: int = 1000
    notice: str = ""
    secret: str | None = None
    batch: int = 64
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises one error for all values that cannot work."""
        least = {"folds": 2, "bootstraps": 100, "batch": 1} | ({} if self.labels_per_class is None else {"labels_per_class": 1})
        found = [
            UserError(name, str(getattr(self, name)), allowed=f"{low} or more") for name, low in least.items() if getattr(self, name) < low
        ]
        for name in ("kind", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                found.append(UserError(name, str(list(values)), allowed="one or more, each once"))
        if found:
            raise Problems(found)
