"""Published weights as one thing: read, renamed, checked to be a backbone of the DINO family, with what is known of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from dinodomain.errors import UserError
from dinodomain.model.fuse import block_numbers
from dinodomain.model.layouts import Renamed, rename
from dinodomain.model.weight_files import digest_of, find_weights, licence_of, read_file, read_header

_LICENCES: Final[Mapping[str, str]] = {
    "dino": "not stated beside the weights (Meta releases DINO under Apache-2.0)",
    "dinov2": "not stated beside the weights (Meta releases DINOv2 under Apache-2.0)",
    "dinov3": "not stated beside the weights (Meta releases DINOv3 under its own DINOv3 License, which also binds what is made with them)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A backbone's weights, read and renamed, before they meet a network.

    Attributes:
        place: Where they lie, as the user said it.
        digest: sha256 of the file; of several, of their names and digests.
        licence: What is known of it.
        renamed: Tensors under our names.
        grid: Patch tokens per axis of the positions; empty where there are none.
        num_leading: How many positions stand before those of the patches (class token, registers).
        config: ``config.json`` beside them, or empty.
        spec: ``Backbone.spec``, of our own weights only, exports for others included.
        origin: Lineage record, of our own weights only.
    """

    place: str
    digest: str
    licence: str
    renamed: Renamed
    grid: tuple[int, ...]
    num_leading: int
    config: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Our names to tensors."""
        return self.renamed.tensors


def read_weights(place: str, layout: str = "any") -> Weights:
    """Reads and renames weights that are not a run or checkpoint of ours; an exported backbone of ours may be given.

    Args:
        place: A file, a folder, or ``hub:OWNER/NAME``.
        layout: Whose names they have to have, or ``any``.

    Raises:
        UserError: Nothing there, not readable without running foreign code, or not the weights of a DINO backbone.
    """
    path, files, config = find_weights(place)
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_file(file))
    header = read_header(files[0])
    folder = path if path.is_dir() else path.parent
    return describe(
        state,
        place=place,
        layout=layout,
        config=config,
        digest=digest_of(files),
        licence=licence_of(folder, owned=path.is_dir()),
        header=header,
    )


def describe(
    state: Mapping[str, Tensor],
    *,
    place: str,
    digest: str,
    layout: str = "any",
    licence: str | None = None,
    config: Mapping[str, Any] | None = None,
    header: Mapping[str, Any] | None = None,
) -> Weights:
    """Weights from a state dict.

    Args:
        state: Flat; see ``layouts.rename``.
        place: For messages and reports.
        digest: What the weights are known by.
        layout: Whose names they have to have, or ``any``.
        licence: What was found of it.
        config: ``config.json`` beside them.
        header: ``{"spec", "lineage"}`` of our own.

    Raises:
        UserError: These are not the weights of a DINO backbone.
    """
    header = header or {}
    if header and layout not in ("any", "dinodomain"):
        raise UserError("start.layout", f"is {layout!r}, {place} was written by dinodomain", remedy="start.layout=any recognises it")
    renamed = rename(state, wanted="dinodomain" if header else layout, place=place)
    _check_architecture(renamed, state, place)
    spec = header.get("spec") or (config or {}).get("dinodomain", {}).get("spec")  # our export for timm carries its spec, too
    grid, leading = _grid(renamed.tensors, config or {}, spec, place)
    return Weights(
        place=place, digest=digest, renamed=renamed, grid=grid, num_leading=leading,
        licence=licence or ("that of the run" if header else _LICENCES[renamed.family]),
        config=config or {}, spec=spec, origin=header.get("lineage", {}),
    )  # fmt: skip


def _check_architecture(renamed: Renamed, state: Mapping[str, Tensor], place: str) -> None:
    """Refuses another architecture whole, instead of taking the few tensors that happen to bear a known name."""
    tensors = renamed.tensors
    needed = {
        "a patch embedding": "patch_embed.proj.weight" in tensors,
        "a class token": "cls_token" in tensors,
        "blocks with query, key and value": bool(numbers := block_numbers(tensors))
        and all(f"blocks.{number}.attn.qkv.weight" in tensors for number in numbers),
        "a first block with an MLP": all(f"blocks.0.mlp.{name}.weight" in tensors for name in ("fc1", "fc2")),
        "blocks numbered from 0 without a gap": numbers == set(range(len(numbers))),
    }
    missing = [name for name, found in needed.items() if not found]
    if not missing:
        return
    known = [full for names in renamed.origins.values() for full in names]
    numbers_in = sum(state[full].numel() for full in known)
    strange = [full for full, why in renamed.unused.items() if why == "unknown name"]
    examples = ", ".join(strange[:4]) + (f" and {len(strange) - 4} more" if len(strange) > 4 else "")
    total = sum(tensor.numel() for tensor in state.values())
    raise UserError(
        "start.weights",
        f"{place} is not a DINO, DINOv2 or DINOv3 vision transformer: {len(known)} of its {len(state)} tensors ({numbers_in} of {total} "
        f"parameters) have known names; it lacks {', '.join(missing)}" + (f"; unknown are {examples}" if strange else ""),
        allowed="the backbone of a run, checkpoint or export of dinodomain, or one in Meta's, timm's or Hugging Face's layout",
    )


def _grid(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], spec: Mapping[str, Any] | None, place: str
) -> tuple[tuple[int, ...], int]:
    """Grid of the positions, and how many of them stand before it."""
    if "pos_embed" not in tensors:
        return (), 0
    count, kernel = tensors["pos_embed"].shape[-2], tensors["patch_embed.proj.weight"].shape[2:]
    registers = tensors["reg_token"].shape[-2] if "reg_token" in tensors else 0
    size = spec["image_size"] if spec is not None else config.get("image_size")
    if size is not None:
        sides = [size] * len(kernel) if isinstance(size, int) else list(size)
        grid = tuple(side // patch for side, patch in zip(sides, kernel))
        if (leading := count - math.prod(grid)) in (0, 1, 1 + registers):
            return grid, leading
    for leading in (1, 0, 1 + registers):
        side = round((count - leading) ** (1 / len(kernel)))
        if side > 0 and side ** len(kernel) == count - leading:
            return (side,) * len(kernel), leading
    raise UserError(
        place, f"has {count} positions, which form no square grid", remedy="put the config.json with image_size and patch_size beside it"
    )
