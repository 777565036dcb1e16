"""Stacking volumes of one frame of reference: which sources belong together (headers only).

Two sources lie in one frame of reference if a scanner says so: DICOM series of one study with one FrameOfReferenceUID; NIfTI, NRRD and
MHA files of one folder whose affines lead to the same known coordinates (equal sform or qform code; a stated anatomical space). For
files that is an assumption: a folder holds one examination, whose scanner kept its coordinates while the patient lay in it. Nothing
is registered here, and nobody who moved between two series is moved back.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dinodomain.errors import BadSource, LeftOut, UserError
from dinodomain.types import FactValue, Select, SourceRef
from dinodomain_medical.opened import VolumeFile

Item = SourceRef | BadSource

_SCANNER = "scanner coordinates"


@dataclass(frozen=True, slots=True)
class Members:
    """Handle of a stacked source: its members in the order of ``ingest.stack``."""

    refs: tuple[SourceRef, ...]


def check_stack(select: Select, channels: Iterable[str]) -> None:
    """Checks ``ingest.stack`` and the grid it is to lie on.

    Raises:
        UserError: Unknown or repeated channels, a single one, or a grid that is none.
    """
    known = sorted(channels)
    wrong = [name for name in select.stack if name not in known]
    if wrong:
        raise UserError("ingest.stack", f"unknown channel {wrong[0]!r}", allowed=", ".join(known))
    if len(set(select.stack)) != len(select.stack) or len(select.stack) < 2:
        raise UserError("ingest.stack", f"is [{','.join(select.stack)}]", allowed="two or more different channels")
    if select.grid == "finest" or select.grid in select.stack:
        return
    if not (is_number(select.grid) and 0.1 <= float(select.grid) <= 20):
        allowed = f"finest, one of {', '.join(select.stack)}, or a voxel size of 0.1 to 20 mm"
        raise UserError("ingest.grid", f"is {select.grid!r}", allowed=allowed)


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def stacked(items: Iterable[Item], select: Select) -> list[Item]:
    """Puts sources together; refusals pass, and what is part of no stack gets a row.

    Args:
        items: Sources with the facts ``channel`` and ``frame_of_reference``, and refusals.
        select: With the channels to be stacked.

    Returns:
        Stacked sources and rows, sorted by id; rows of refusals first among equals.
    """
    groups: dict[tuple[str, ...], list[SourceRef]] = defaultdict(list)
    out: list[tuple[str, Item]] = []
    for item in items:
        if isinstance(item, BadSource):
            out.append((item.uri, item))
        else:
            groups[_examination(item)].append(item)
    for members in groups.values():
        out += [(item.source_id if isinstance(item, SourceRef) else item.uri, item) for item in _of_one(members, select)]
    return [item for _, item in sorted(out, key=lambda pair: (pair[0], isinstance(pair[1], SourceRef)))]


def _examination(ref: SourceRef) -> tuple[str, ...]:
    if isinstance(ref.handle, VolumeFile):
        return ("folder", _folder(ref))
    return ("study", ref.unit or "", ref.keys.get("StudyInstanceUID", "") or f"folder {_folder(ref)}")


def _folder(ref: SourceRef) -> str:
    place = ref.source_id.partition("#")[0]
    return os.path.dirname(place) if isinstance(ref.handle, VolumeFile) else place


def _of_one(refs: Sequence[SourceRef], select: Select) -> Iterator[Item]:
    """Stacks and rows of one examination."""
    spaces: dict[str, dict[str, list[SourceRef]]] = defaultdict(lambda: defaultdict(list))
    named = f"ingest.stack=[{','.join(select.stack)}]"
    for ref in refs:
        channel = str(ref.facts.get("channel", ""))
        if channel in select.stack:
            spaces[str(ref.facts.get("frame_of_reference", ""))][channel].append(ref)
        else:
            yield LeftOut(ref.uris[0], f"{named} (channel {channel} is no part of it)", keys=ref.keys)
    present = {channel for found in spaces.values() for channel in found}
    for space, found in sorted(spaces.items()):
        missing = [channel for channel in select.stack if channel not in found]
        several = {channel: some for channel, some in found.items() if len(some) > 1}
        if space and not missing and not several:
            yield _stack([found[channel][0] for channel in select.stack], space, select)
            continue
        reason, remedy = _why_not(space, missing, several, present, isinstance(refs[0].handle, VolumeFile))
        for some in found.values():
            for ref in some:
                yield BadSource(ref.uris[0], f"cannot be stacked by {named}: {reason}", remedy, keys=ref.keys)


def _why_not(
    space: str, missing: Sequence[str], several: Mapping[str, Sequence[SourceRef]], present: set[str], of_files: bool
) -> tuple[str, str]:
    if several and not missing:
        channel, some = next(iter(sorted(several.items())))
        names = ", ".join(f"{os.path.basename(ref.source_id)!r}" for ref in some[:5])
        return f"{len(some)} candidates for {channel}: {names}", "keep one of them by ingest.include, ingest.exclude or ingest.select"
    lacking = [channel for channel in missing if channel not in present]
    if lacking:
        place = "folder" if of_files else "study"
        more = "put the files of one examination into one folder, " if of_files else ""
        return f"its {place} holds no {' and no '.join(lacking)}", f"{more}bring what is missing, or ingest it without ingest.stack"
    register = "register them with a tool of your choice and write them in one frame, or ingest them without ingest.stack"
    if not space:
        states = "sform_code and qform_code are 0, or no space" if of_files else "no FrameOfReferenceUID"
        return f"its frame of reference is not stated ({states})", f"if all lie in one frame, state it in the files; else {register}"
    return f"{' and '.join(missing)} lie in another frame of reference", register


def _stack(members: Sequence[SourceRef], space: str, select: Select) -> SourceRef:
    of_files = isinstance(members[0].handle, VolumeFile)
    place = os.path.commonpath([_folder(ref) or "." for ref in members]) if not of_files else _folder(members[0])
    suffix = f"stack={'+'.join(select.stack)}" if space == _SCANNER else f"{space};stack={'+'.join(select.stack)}"
    keys = {name: value for name, value in members[0].keys.items() if all(ref.keys.get(name) == value for ref in members)}
    name = keys.get("folder") or os.path.basename(place)
    keys |= {"path": place or name, "name": name, "stem": name, "folder": name}
    marks = [*(ref.digest for ref in members), *select.stack, select.grid]
    instances = sorted(ref.instance for ref in members)
    return replace(
        members[0],
        source_id=f"{place or '.'}#{suffix}",
        uris=tuple(sorted({uri for ref in members for uri in ref.uris})),
        keys=keys,
        unit=_only({ref.unit for ref in members}),
        digest=_sha256(marks),
        instance=_sha256(instances) if all(instances) else "",
        quantity=_only({ref.quantity for ref in members}) or "",
        facts=_facts(members, select),
        handle=Members(tuple(members)),
    )


def _facts(members: Sequence[SourceRef], select: Select) -> dict[str, FactValue]:
    """What all members state alike, and sums of bytes and requests."""
    facts = {name: value for name, value in members[0].facts.items() if all(ref.facts.get(name) == value for ref in members)}
    for name in ("bytes_in", "bytes_out", "requests", "NumberOfImages"):
        numbers = [number for ref in members if isinstance(number := ref.facts.get(name), int)]
        if numbers:
            facts[name] = sum(numbers)
    return facts | {"channel": "+".join(select.stack)}


def _only(values: set[str | None]) -> str | None:
    return values.pop() if len(values) == 1 else None


def _sha256(parts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part.encode())
    return total.hexdigest()
