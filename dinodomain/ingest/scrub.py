"""Reasons and warnings without anything that could name a person, for the files of a personal domain."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NO_NAMES = frozenset(
    "ct dcm dicom image images img label labels map mask masks mri nifti nii nrrd png scan scans seg series slice slices".split()  # noqa: SIM905
)
"""Words of file names that name a kind of file, and that reasons need."""


def scrubbed(text: str, names: Iterable[str]) -> str:
    """A text without anything that could name a person.

    Out go: quoted text, words with a slash, long numbers (dates, record numbers), and every name, or part of a name of three
    letters or more, that its source goes by (but for words such as ``label``).

    Args:
        text: The text.
        names: Paths, file names and keys of the source.
    """
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "…", text)
    text = re.sub(r"\S*[/\\^]\S*", "…", text)
    text = re.sub(r"\d{5,}", "…", text)
    parts = {part for value in names for part in (value, *re.split(r"[\W_]+", value)) if len(part) > 2}
    for name in sorted(parts, key=lambda name: (-len(name), name)):
        if name.lower() in _NO_NAMES or _surely_without(text, name):
            continue
        text = re.sub(re.escape(name), "…", text, flags=re.IGNORECASE)
    return text


def _surely_without(text: str, name: str) -> bool:
    """Spares most patterns, whose making takes longest by far; letters beyond ASCII have other cases than ``lower`` knows."""
    return text.replace("…", "").isascii() and name.isascii() and name.lower() not in text.lower()
