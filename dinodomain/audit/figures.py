"""Tables and figures as data, so that a report draws them from ``audit.json`` alone. Draws nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Cell = str | int | float | None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Table(_Frozen):
    """Rows for people; a cell of None was not measured."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


class Bar(_Frozen):
    """One line of a forest: an estimate with its interval."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n_units: int | None = None
    other: float | None = Field(default=None, description="A baseline beside it.")


class Forest(_Frozen):
    """Estimates with intervals, a line each."""

    kind: Literal["forest"] = "forest"
    title: str
    axis: str = Field(description="Quantity and unit.")
    rows: tuple[Bar, ...]
    lines: dict[str, float] = Field(default_factory=dict, description="Thresholds, drawn across.")
    band: tuple[float, float] | None = Field(default=None, description="95 % of what chance gives.")
    other: str = Field(default="", description="What the baseline beside each line is.")


class Series(_Frozen):
    """One curve; low and high are its 95 % interval where there is one."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


class Curves(_Frozen):
    """Several quantities against one axis."""

    kind: Literal["curves"] = "curves"
    title: str
    x_axis: str
    y_axis: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    lines: dict[str, float] = Field(default_factory=dict, description="Thresholds of y, drawn across.")


class Heat(_Frozen):
    """A map of values, row by row from the top; a value of None has none."""

    kind: Literal["heat"] = "heat"
    title: str
    axis: str = Field(description="Quantity and unit of the values.")
    panels: dict[str, tuple[tuple[float | None, ...], ...]] = Field(description="Name to [rows][columns]; panels share one scale.")
    marked: dict[str, tuple[tuple[bool, ...], ...]] = Field(default_factory=dict, description="Cells to outline, by panel.")
    low: float
    high: float
    centre: float | None = Field(default=None, description="Value without meaning (chance, no change); None for a plain scale.")


class Points(_Frozen):
    """Two quantities against each other, by group."""

    kind: Literal["points"] = "points"
    title: str
    x_axis: str
    y_axis: str
    groups: dict[str, tuple[tuple[float, float], ...]]
    x_log: bool = False
    y_log: bool = False


class Stage(_Frozen):
    """One box of a flow, with what left before it."""

    name: str
    count: int | str
    left: dict[str, int | str] = Field(default_factory=dict, description="Reason to how many left here.")


class Flow(_Frozen):
    """What came in, what left at each stage and why, what remained."""

    kind: Literal["flow"] = "flow"
    title: str
    unit: str = Field(description="What is counted.")
    stages: tuple[Stage, ...]


Plot = Annotated[Forest | Curves | Heat | Points | Flow, Field(discriminator="kind")]
