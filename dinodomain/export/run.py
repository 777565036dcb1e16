"""Export as one act: write under a temporary name, load it again as a stranger would, compare, and only then move it into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from dinodomain.checkpoint import load_backbone, origin, save_backbone, weights_digest
from dinodomain.checkpoint.backbone import EXPORTED
from dinodomain.errors import UserError
from dinodomain.export.audited import clearance, in_words
from dinodomain.export.card import model_card
from dinodomain.export.inputs import window_lines
from dinodomain.export.plan import Exported, ExportPlan
from dinodomain.export.timm import CONFIG, WEIGHTS, timm_config, timm_tokens, timm_weights
from dinodomain.export.torch_export import PROGRAM, Portable, export_program, physical_example, program_tokens, spacing_example
from dinodomain.lineage import Json, Lineage, sync_folder, write_bytes, write_json
from dinodomain.model import Backbone
from dinodomain.types import Acquisition

CARD = "README.md"
RECORD = "lineage.json"
OWN = frozenset({CARD, RECORD, WEIGHTS, CONFIG, EXPORTED, PROGRAM})
"""Names that an export writes; a folder that holds others is never replaced."""

EXAMPLES = 3
"""Inputs that an export is tried on; three also try a traced batch axis."""

TOLERANCE = 1e-4
"""Largest difference of tokens, which the final norm brings to unit scale, that counts as equal in float32."""


def export(plan: ExportPlan) -> Exported:
    """Writes a backbone in another format and proves that it computes the same.

    Raises:
        UserError: Nothing to export, the format does not fit, the folder is taken, or the reloaded outputs differ.
    """
    out = Path(os.path.abspath(plan.out))
    _check_free(out, overwrite=plan.overwrite)
    backbone = load_backbone(plan.checkpoint)
    carried = clearance(plan, weights_digest(backbone.state_dict()))
    provenance = _provenance(plan, carried)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        difference = _write(plan, backbone, provenance, temporary)
        if not difference <= TOLERANCE:
            raise UserError("format", f"the reloaded {plan.format} differs by {difference:.3g}", allowed=f"up to {TOLERANCE:g}")
        _move(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = tuple(sorted(file.name for file in out.iterdir()))
    windows = tuple(window_lines(backbone.normalisation))
    return Exported(
        out=str(out), format=plan.format, files=files, max_abs_diff=difference, load=_load_line(plan, out), windows=windows,
        audited=in_words(carried),
    )  # fmt: skip


def _check_free(out: Path, *, overwrite: bool) -> None:
    held = sorted(file.name for file in out.iterdir()) if out.exists() else []
    foreign = [name for name in held if name not in OWN]
    if foreign:
        raise UserError("out", f"{out} holds what no export wrote: {', '.join(foreign[:5])}", remedy="choose another folder")
    if held and not overwrite:
        raise UserError("out", f"{out} already holds an export", remedy="choose another folder or set export.overwrite=true")


def _provenance(plan: ExportPlan, carried: Mapping[str, Json]) -> dict[str, Json]:
    parent = origin(plan.checkpoint)
    record = Lineage(
        kind="export",
        parents={"checkpoint": str(parent.get("digest", ""))},
        plan={"format": plan.format, **carried},
        counts=parent.get("counts", {}),
        versions=parent.get("versions", {}),
        history=(parent,),
    )
    return record.as_json()


def _write(plan: ExportPlan, backbone: Backbone, provenance: Mapping[str, Json], folder: Path) -> float:
    """Writes all files of the export and returns the largest difference of the reloaded outputs."""
    write_json(folder / RECORD, provenance)
    card = model_card(backbone, provenance, _load_line(plan, Path(plan.out)), takes_stored=plan.format == "torch_export")
    write_bytes(folder / CARD, card.encode())
    example, spacing = _example(backbone), spacing_example(backbone, EXAMPLES)
    if plan.format == "timm":
        config = timm_config(backbone, provenance)
        write_bytes(folder / WEIGHTS, safetensors.torch.save(timm_weights(backbone), metadata={"format": "pt"}))
        write_json(folder / CONFIG, config)
        return _difference(_tokens(backbone, example, spacing), timm_tokens(folder, example))
    if plan.format == "safetensors":
        path = save_backbone(folder / EXPORTED, backbone, history=provenance)
        return _difference(_tokens(backbone, example, spacing), _tokens(load_backbone(path), example, spacing))
    export_program(backbone, folder / PROGRAM, provenance)
    portable = Portable(backbone)
    physical = physical_example(portable, len(example))
    found = program_tokens(folder / PROGRAM, physical, spacing)
    return _difference(_tokens(backbone, portable.normalise(physical), spacing), found)


def _example(backbone: Backbone) -> Tensor:
    """Made-up inputs at pretraining size."""
    return torch.randn(EXAMPLES, len(backbone.channels), *backbone.image_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _tokens(backbone: Backbone, x: Tensor, spacing: Tensor | None) -> Tensor:
    features = backbone(x, about=None if spacing is None else Acquisition(spacing=spacing))
    return torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _move(temporary: Path, out: Path) -> None:
    """The old export steps aside first, so that at any instant one of the two is whole on the disk."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        os.replace(out, old)
    os.replace(temporary, out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _load_line(plan: ExportPlan, out: Path) -> str:
    if plan.format == "timm":
        return f'timm.create_model("local-dir:{out}", pretrained=True)'
    if plan.format == "torch_export":
        return f'torch.export.load("{out / PROGRAM}").module()'
    return f'dinodomain.load("{out}")'
