"""The errors a user can meet. Each says where, what was found, what is allowed and what to do.

Covers user input only; our own invariants are checked with ``assert``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType


class UserError(ValueError):
    """The user's input is wrong; the command line prints the message without a traceback and exits with 2.

    Args:
        place: Where the problem lies: a key (``optim.lr``), a file, a column.
        problem: What was found there, with the offending value.
        allowed: What would be accepted, or None where the remedy already says it.
        remedy: What to do next, or None where ``allowed`` already says it.
    """

    def __init__(self, place: str, problem: str, *, allowed: str | None = None, remedy: str | None = None) -> None:
        self.place, self.problem, self.allowed, self.remedy = place, problem, allowed, remedy
        parts = [f"{place}: {problem}"]
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if remedy is not None:
            parts.append(remedy)
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        """Crosses from a worker process to its parent, in every subclass: the state travels, no ``__init__`` runs."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[UserError], args: tuple[object, ...], state: dict[str, object]) -> UserError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class Problems(UserError):
    """Several problems found in one pass (a plan, a CSV), reported together, one a line."""

    def __init__(self, problems: list[UserError]) -> None:
        assert problems, "Problems needs at least one problem"
        self.problems = tuple(problems)
        first = problems[0]
        super().__init__(first.place, first.problem, allowed=first.allowed, remedy=first.remedy)
        self.args = ("\n".join(str(problem) for problem in problems),)


class BadSource(UserError):
    """One source cannot be read as asked; ingest lists it as skipped and goes on.

    Args:
        uri: The file or folder.
        reason: What is wrong with it, with the offending value.
        remedy: What the user can do about it.
        keys: What a CSV may call the source (``PatientID`` ...), so that a row which speaks of it is no error; clear, never printed.
    """

    def __init__(self, uri: str, reason: str, remedy: str, *, keys: Mapping[str, str] | None = None) -> None:
        self.uri, self.reason, self.keys = uri, reason, dict(keys or {})
        super().__init__(uri, reason, remedy=remedy)


class LeftOut(BadSource):
    """A source that the user's own choice leaves out (a header filter, dates, an area, a budget): counted with its reason, never a fault.

    Args:
        uri: The file or folder.
        choice: The key and value that leave it out, for example ``ingest.max_cloud=20 (has 71)``.
        remedy: What takes it in.
        keys: See ``BadSource``.
    """

    def __init__(
        self, uri: str, choice: str, remedy: str = "change that key to take it in", *, keys: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(uri, f"left out by {choice}", remedy, keys=keys)


class MissingExtra(UserError, ImportError):
    """An optional package is not installed."""

    def __init__(self, wanted_by: str, package: str, extra: str) -> None:
        super().__init__(wanted_by, f"needs {package}", remedy=f'pip install "dinodomain[{extra}]"')
        self.args = (f'{wanted_by} needs {package}: pip install "dinodomain[{extra}]"',)


def require(module: str, *, extra: str, wanted_by: str) -> ModuleType:
    """Imports an optional third-party module at the point of use.

    Args:
        module: Dotted module name, for example ``rasterio.features``.
        extra: The extra of this distribution that installs it.
        wanted_by: Who needs it, as the user knows it, for example ``domain 'ct'``.

    Returns:
        The imported module.

    Raises:
        MissingExtra: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra(wanted_by, module.split(".")[0], extra) from None
