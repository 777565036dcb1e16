"""What the objective needs of the networks; ``model.pair`` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from dinodomain.types import Acquisition


class Seen(Protocol):
    """See ``model.Seen``."""

    @property
    def cls(self) -> Tensor:
        """[n, E]."""
        ...

    @property
    def patches(self) -> Tensor:
        """[N, P, E]."""
        ...

    @property
    def points(self) -> Tensor:
        """[n, d]."""
        ...

    @property
    def patch_points(self) -> Tensor:
        """[M, d]."""
        ...

    @property
    def prototypes(self) -> Tensor:
        """[K, d]."""
        ...

    @property
    def patch_prototypes(self) -> Tensor:
        """[K', d]."""
        ...


class Branch(Protocol):
    """See ``model.Branch``; a wrapper for data parallelism will do for ``__call__``."""

    def __call__(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        about: Sequence[Acquisition | None] | None = None,
        chosen: Tensor | None = None,
    ) -> Seen:
        """One pass over crops of several sizes."""
        ...


class Teacher(Branch, Protocol):
    """A branch that says how many tokens an image has."""

    def grid(self, x: Tensor) -> tuple[int, ...]:
        """Patch tokens per axis."""
        ...


class Pair(Protocol):
    """See ``model.Pair``."""

    @property
    def student(self) -> Branch:
        """Takes the gradient."""
        ...

    @property
    def teacher(self) -> Teacher:
        """Gives the targets."""
        ...
