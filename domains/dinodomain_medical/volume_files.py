"""NIfTI, NRRD and MHA files as sources: what is found of them by headers, frames apart where that was asked for, and their records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dinodomain.errors import BadSource
from dinodomain.types import FactValue, Record, Select, SourceRef
from dinodomain_medical import itk, nifti
from dinodomain_medical.modalities import Modality
from dinodomain_medical.mr_names import b_class, b_value_in, mr_channel
from dinodomain_medical.opened import VolumeFile, volume_record
from dinodomain_medical.sources import Item, digest_of, keys_of, label_refusal, looks_like_label, stem_of
from dinodomain_medical.values import check_hounsfield, check_not_mask, doubts_hounsfield


def is_volume_file(path: Path) -> bool:
    """Whether the name says NIfTI, NRRD or MetaImage."""
    return nifti.is_nifti(path) or itk.is_itk(path)


def find(root: Path, path: Path, relative: str, select: Select, modality: Modality) -> Item | None:
    """The source in a file, a refusal, or None for a file of another kind.

    A 4-D file is one source here, whatever ``select.frames`` says; ``frames_apart`` makes several of it.
    """
    if nifti.is_pair(path):
        return nifti.pair_refusal(path)
    if not is_volume_file(path):
        return None
    if looks_like_label(relative, select):
        return label_refusal(path)
    try:
        known = (nifti if nifti.is_nifti(path) else itk).check_header(path, split=select.frames == "split")
        paths = sorted((path,) if nifti.is_nifti(path) else itk.files_of(path))
    except BadSource as refusal:
        return refusal
    x, y, z = known.shape
    facts: dict[str, FactValue] = {
        "bytes_in": sum(one.stat().st_size for one in paths),
        "bytes_out": x * y * z * known.frames * known.item_bytes,
        "shape": (x, y, z, known.frames) if known.frames > 1 else (x, y, z),
        "channel": channel_of(path, known, modality),
        "frame_of_reference": known.space,
    }
    return SourceRef(
        source_id=relative,
        uris=tuple(map(str, paths)),
        keys=keys_of(root, relative),
        unit=None,
        digest=digest_of(root, paths),
        select=select,
        quantity="HU" if modality.hounsfield else "",
        facts=facts,
        handle=known,
    )


def frames_apart(items: Iterable[Item], modality: Modality) -> list[Item]:
    """Makes one source per frame of each 4-D file, ``path#t=003``, counted from 0; all else passes. Sorted by id.

    What a CSV may call a frame is its own path, or what the file is called: name, stem and folder, which speak of all its frames.
    """
    out: list[tuple[str, int, Item]] = []
    for number, item in enumerate(items):
        known = item.handle if isinstance(item, SourceRef) else None
        if isinstance(item, SourceRef) and isinstance(known, VolumeFile) and known.frames > 1 and known.frame is None:
            out += [(one.source_id, number, one) for one in (_frame(item, known, at, modality) for at in range(known.frames))]
        else:
            # A refusal has no id of its own; it keeps its place behind what came before it.
            out.append((item.source_id if isinstance(item, SourceRef) else out[-1][0] if out else "", number, item))
    return [item for _, _, item in sorted(out, key=lambda one: one[:2])]


def _frame(ref: SourceRef, known: VolumeFile, at: int, modality: Modality) -> SourceRef:
    alone = replace(known, frame=at)
    suffix = f"#t={at:03d}"
    facts = dict(ref.facts) | {"channel": channel_of(_main(ref), alone, modality), "shape": known.shape}
    for name in ("bytes_in", "bytes_out"):
        facts[name] = int(ref.facts[name] or 0) // known.frames  # type: ignore[arg-type]  # numbers, made by find
    return replace(
        ref,
        source_id=ref.source_id + suffix,
        keys=dict(ref.keys) | {"path": ref.keys["path"] + suffix, "FramesOf": ref.keys["path"]},
        digest=hashlib.sha256(f"{ref.digest}{suffix} {known.b_values[at : at + 1]}".encode()).hexdigest(),
        facts=facts,
        handle=alone,
    )


def channel_of(path: Path, known: VolumeFile, modality: Modality) -> str:
    """Name of the channel that a file, or one frame of it, holds."""
    if modality.hounsfield:
        return "ct"
    stem, b_value = stem_of(path.name), known.b_value
    return mr_channel(stem) if b_value is None else b_class(b_value)


def _main(ref: SourceRef) -> Path:
    """The file with the header: the data file of a detached one may come before it."""
    return next(path for path in map(Path, ref.uris) if is_volume_file(path))


def open_file(ref: SourceRef, modality: Modality) -> Record:
    """Opens one file, or one frame of it.

    Raises:
        BadSource: It is damaged, a mask, or no image of this domain.
    """
    path, known = _main(ref), ref.handle
    assert isinstance(known, VolumeFile), "find left it there"
    volume = nifti.NiftiVolume(path, known.frame) if nifti.is_nifti(path) else itk.ItkVolume(path, known.frame)
    check_not_mask(volume.oriented.array, str(path))
    warnings = volume.warnings
    if modality.hounsfield:
        check_hounsfield(volume.oriented.array, volume.scale, volume.offset, str(path))
        warnings += doubts_hounsfield(volume.oriented.array, volume.scale, volume.offset)
    fields: dict[str, str | int | float | bool | None] = dict(volume.fields)
    channel = channel_of(path, known, modality)
    if known.frame is not None:
        fields["frame"] = known.frame
    if channel.startswith("DWI-"):
        fields["b_value"] = b_value_in(stem_of(path.name)) if known.b_value is None else known.b_value
    return volume_record(
        volume.oriented,
        channel=channel,
        scale=volume.scale,
        offset=volume.offset,
        fields=fields,
        stages=volume.stages,
        warnings=warnings,
    )
