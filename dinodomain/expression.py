"""A header filter: a small expression over what a header states, parsed once by ``simpleeval`` and never by ``eval``.

    Modality == 'CT' and 'LOCALIZER' not in ImageType and SliceThickness <= 3

Names are header fields; values are numbers, text and lists of text. A field that a header lacks equals None, is in no order to
anything (``SliceThickness <= 3`` is false) and holds nothing (``'X' in ImageType`` is false, ``not in`` is true). Functions:
``lower(text)``, ``len(list)``, ``matches(text, 'regular expression')``. No attributes, no calls of anything else, no arithmetic on text.
"""

from __future__ import annotations

import ast
import importlib
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from dinodomain.errors import UserError

_EXAMPLE = "Modality == 'CT' and SliceThickness <= 3"
_MAX_LENGTH = 2000


class Filter:
    """A parsed header filter; picklable through its text.

    Args:
        text: The expression; empty takes everything.
        place: Key that error messages name.

    Raises:
        UserError: It cannot be parsed, or uses something that is not allowed.

    Attributes:
        text: The expression as given.
        names: Header fields it names.
    """

    def __init__(self, text: str, place: str = "ingest.select") -> None:
        self.text, self._place = text.strip(), place
        if len(self.text) > _MAX_LENGTH:
            raise UserError(place, f"is {len(self.text)} characters long", allowed=f"up to {_MAX_LENGTH}")
        self._parsed = self._parse() if self.text else None
        self.names = frozenset() if self._parsed is None else frozenset(_names(self._parsed) - _FUNCTIONS.keys())

    def __reduce__(self) -> tuple[object, ...]:
        return Filter, (self.text, self._place)

    def __call__(self, header: Mapping[str, Any]) -> bool:
        """Whether a header passes.

        Raises:
            UserError: The expression does not fit the kinds of values in this header.
        """
        if self._parsed is None:
            return True
        simpleeval = importlib.import_module("simpleeval")  # here, so that training rooms load without it
        evaluator = simpleeval.EvalWithCompoundTypes(operators=_OPERATORS, functions=_FUNCTIONS, names=lambda node: header.get(node.id))
        try:
            return bool(evaluator.eval(self.text, previously_parsed=self._parsed))
        except (simpleeval.InvalidExpression, TypeError, ValueError, re.error) as error:
            raise UserError(self._place, f"{self.text!r} cannot be applied: {error}", allowed=f"for example {_EXAMPLE}") from None

    def _parse(self) -> Any:
        try:
            parsed = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise UserError(self._place, f"{self.text!r} is no expression{_syntax(error)}", allowed=f"for example {_EXAMPLE}") from None
        for node in ast.walk(parsed):
            if not isinstance(node, _ALLOWED):
                problem = f"{self.text!r} uses {type(node).__name__}, which a filter may not"
                raise UserError(
                    self._place, problem, allowed="names, numbers, text, lists, comparisons, in, and, or, not, lower, len, matches"
                )
            if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
                raise UserError(self._place, f"{self.text!r} calls something unknown", allowed=f"the functions {', '.join(_FUNCTIONS)}")
        return parsed


def _syntax(error: Exception) -> str:
    """Where and why, without Python's words for the place; the commonest slip by name."""
    if not isinstance(error, SyntaxError):
        return f": {error}"
    line = error.text or ""
    if re.search(r"[^=!<>]=(?!=)", line):
        return f": {error.msg}; equality is written =="
    return f": {error.msg}" + (f" at character {error.offset}" if error.offset else "")


def clauses(text: str) -> list[str]:
    """The conditions that a top-level ``and`` joins, as they were written; a text that is no expression is one condition."""
    try:
        parsed = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return [text]
    if not (isinstance(parsed, ast.BoolOp) and isinstance(parsed.op, ast.And)):
        return [text]
    return [_as_written(text.strip(), part) for part in parsed.values]


def _as_written(text: str, part: ast.expr) -> str:
    written = ast.get_source_segment(text, part) or ast.unparse(part)
    # The segment of a condition lacks the brackets around it.
    return f"({written})" if isinstance(part, ast.BoolOp) else written


_MAY = "names, numbers, text, lists, comparisons, in, and, or, not, lower, len, matches"
_ALLOWED = (
    ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
    ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple, ast.Call,
)  # fmt: skip


def _names(parsed: Any) -> set[str]:
    return {node.id for node in ast.walk(parsed) if isinstance(node, ast.Name)}


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """What is not known is in no order to anything."""
    return lambda left, right: left is not None and right is not None and compare(left, right)


def _contains(part: Any, whole: Any) -> bool:
    return whole is not None and part in whole


def _matches(text: Any, pattern: str) -> bool:
    return text is not None and re.search(pattern, str(text)) is not None


_OPERATORS: dict[type[Any], Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _ordered(operator.lt),
    ast.LtE: _ordered(operator.le),
    ast.Gt: _ordered(operator.gt),
    ast.GtE: _ordered(operator.ge),
    ast.In: _contains,
    ast.NotIn: lambda part, whole: not _contains(part, whole),
    ast.Is: lambda left, right: left is right,
    ast.IsNot: lambda left, right: left is not right,
    ast.Not: operator.not_,
    ast.USub: operator.neg,
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lower": lambda text: None if text is None else str(text).lower(),
    "len": lambda value: 0 if value is None else len(value),
    "matches": _matches,
}
