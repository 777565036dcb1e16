"""Frames of enhanced multi-frame objects (PS3.3 C.7.6.16): each becomes a dataset of its own by its functional groups.

Covers Enhanced and Legacy Converted Enhanced CT, MR and PET, and any object with Shared or Per-frame Functional Groups Sequences.
Objects with several frames and no such groups (nuclear medicine, angiography, ultrasound) state no place in the patient: not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

_SHARED, _EACH = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"

# What the functional groups call otherwise than single-frame objects do.
_SYNONYMS = {
    "FrameType": "ImageType",
    "EffectiveEchoTime": "EchoTime",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
}
# Sequences inside a functional group whose first item holds values of the frame as well.
_DEEPER = ("DiffusionGradientDirectionSequence", "ConvertedAttributesSequence")


def has_groups(dataset: Any) -> bool:
    """Whether the object states per frame where its pixels lie; groups that are not as many as the frames state nothing."""
    each = len(dataset.get(_EACH) or ())
    return each == int(dataset.get("NumberOfFrames") or 1) or (each == 0 and bool(dataset.get(_SHARED)))


def views(dataset: Any) -> Iterator[FrameView]:
    """One view per frame of an object that ``has_groups``, in file order; a frame without groups of its own sees the shared ones."""
    shared = _flat(dataset.get(_SHARED) or ())
    each = dataset.get(_EACH) or ()
    frames = int(dataset.get("NumberOfFrames") or 1)
    for number in range(frames):
        yield FrameView(dataset, shared | (_flat(each[number : number + 1]) if each else {}))


@final
class FrameView:
    """A dataset whose functional groups of one frame stand in place of top-level elements."""

    def __init__(self, dataset: Any, own: dict[str, Any]) -> None:
        self._dataset, self._own = dataset, own

    def get(self, keyword: str) -> Any:
        """Value by keyword, the frame's own first."""
        return self._own[keyword] if keyword in self._own else self._dataset.get(keyword)

    def __contains__(self, tag: tuple[int, int]) -> bool:
        """Whether the top level has a private element."""
        return tag in self._dataset

    def __getitem__(self, tag: tuple[int, int]) -> Any:
        """A private element of the top level."""
        return self._dataset[tag]


def _flat(groups: Any) -> dict[str, Any]:
    """Keyword to value over all macros of one functional group item, under the names of single-frame objects."""
    found: dict[str, Any] = {}
    for group in groups:
        for macro in group:
            if macro.VR == "SQ" and macro.value:
                _collect(macro.value[0], found)
    return found


def _collect(item: Any, found: dict[str, Any]) -> None:
    for element in item:
        if element.VR != "SQ":
            if element.keyword and element.value is not None and element.value != "":
                found[_SYNONYMS.get(element.keyword, element.keyword)] = element.value
        elif element.keyword in _DEEPER and element.value:
            _collect(element.value[0], found)
