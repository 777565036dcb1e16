"""What the demo may choose, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dinodomain.errors import UserError
from dinodomain.lineage import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """Two first runs, end to end.

    Attributes:
        out: Folder for everything; a stopped demo goes on where it was.
        scenario: ``tiles`` (a real Sentinel-2 scene at a made-up place), ``clinic`` (a made-up archive of DICOM files), or ``all``.
        seed: Decides phantoms, weights, order and views.
        steps: Pretraining steps of each scenario; None takes the demo's own number.
        patients: Patients of the made-up archive.
    """

    out: str = "demo-out"
    scenario: Literal["all", "tiles", "clinic"] = "all"
    seed: int = 0
    steps: int | None = None
    patients: int = 480

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise UserError("steps", f"is {self.steps}", allowed="1 or more, or empty")
        if self.patients < 60:
            raise UserError("patients", f"is {self.patients}", allowed="60 or more; 400 or more make the checks assessable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What one scenario showed.

    Attributes:
        name: ``tiles`` or ``clinic``.
        notice: What is made up about its data; stands on every page.
        rows: Lines of the closing table: what, and what came of it.
        files: What to open, by name.
        numbers: The same facts as plain values.
        seconds: Wall time.
    """

    name: str
    notice: str
    rows: tuple[tuple[str, str], ...]
    files: Mapping[str, str]
    numbers: Mapping[str, Json]
    seconds: float

    def text(self) -> str:
        """The closing table."""
        width = max(len(what) for what, _ in (*self.rows, *self.files.items()))
        lines = [f"{what:<{width}}  {found}" for what, found in self.rows]
        lines += [f"{what:<{width}}  {path}" for what, path in self.files.items()]
        return "\n".join([f"== {self.name}: {self.seconds:.0f} s == {self.notice}", *lines])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stories:
    """All scenarios that ran."""

    stories: tuple[Story, ...]

    def text(self) -> str:
        """What the command prints at the end."""
        return "\n\n".join(story.text() for story in self.stories)

    def as_json(self) -> Mapping[str, Json]:
        """Plain values for ``--json``."""
        return {
            story.name: {"notice": story.notice, "seconds": story.seconds, "files": dict(story.files), **story.numbers}
            for story in self.stories
        }
