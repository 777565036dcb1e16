"""The backbone alone: out of a run or a checkpoint (the teacher), or as one safetensors file that carries its own spec.

An exported file holds the weights, and in its header the spec, a digest of the weights and the lineage. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dinodomain import lineage
from dinodomain.checkpoint.load import find_body, read_part
from dinodomain.checkpoint.state import FOLDER, STATE, BrokenCheckpoint
from dinodomain.errors import UserError
from dinodomain.model import Backbone

EXPORTED: Final = "backbone.safetensors"
"""File name of an exported backbone inside a folder."""

_HEADER: Final = "dinodomain"
_PREFIX: Final = "backbone."

logger = logging.getLogger(__name__)


def load_backbone(path: Path | str) -> Backbone:
    """Loads the teacher's backbone, in evaluation mode on the host.

    Args:
        path: A run folder, a checkpoint folder, an exported ``.safetensors`` file, or a folder that holds ``backbone.safetensors``.

    Raises:
        UserError: Nothing usable there; names the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_file():
        return _load_file(path)
    if (path / EXPORTED).is_file() and not (path / FOLDER).is_dir():
        return _load_file(path / EXPORTED)
    if not path.is_dir():
        raise UserError(
            "checkpoint", f"{path} does not exist", allowed="a run folder, a checkpoint folder or an exported .safetensors file"
        )
    if not (path / FOLDER).is_dir() and not (path / STATE).is_file():
        raise UserError("checkpoint", f"{path} holds neither {FOLDER}/, {STATE} nor {EXPORTED}", allowed="a run, a checkpoint or an export")
    folder, body, notes = find_body(path)
    for note in notes:
        logger.warning(note)
    teacher = read_part(folder, body, "teacher")
    weights = {name.removeprefix(_PREFIX): value for name, value in teacher.items() if name.startswith(_PREFIX)}
    return Backbone.from_spec(body["backbone"], weights)


def origin(path: Path | str) -> dict[str, Any]:
    """The lineage record of what ``load_backbone`` would load, so that whatever is made with it can name its parent."""
    path = Path(path)
    if path.is_file() or (path / EXPORTED).is_file():
        return dict(_header(path if path.is_file() else path / EXPORTED).get("lineage", {}))
    return dict(find_body(path)[1]["lineage"])


def save_backbone(path: Path, backbone: Backbone, *, history: Mapping[str, Any] | None = None) -> Path:
    """Writes weights and spec as one safetensors file, whole or not at all.

    Args:
        path: The file, by convention ``.../backbone.safetensors``.
        backbone: What to write.
        history: Lineage record of what it came from.
    """
    write_backbone(path, backbone.state_dict(), backbone.spec, history or {})
    return path


def write_backbone(path: Path, weights: Mapping[str, Tensor], spec: Mapping[str, Any], history: Mapping[str, Any]) -> str:
    """What ``save_backbone`` does, from a backbone's ``state_dict()`` and ``spec``; returns the digest of the weights."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    header = {"spec": spec, "weights": weights_digest(tensors), "lineage": history}
    path.parent.mkdir(parents=True, exist_ok=True)
    lineage.write_bytes(path, safetensors.torch.save(tensors, metadata={_HEADER: lineage.canonical(header)}))
    return str(header["weights"])


def digest_of(path: Path) -> str:
    """The digest of the weights that an exported file says it has.

    Raises:
        UserError: It is not an exported backbone.
    """
    return str(_header(path)["weights"])


def _load_file(path: Path) -> Backbone:
    header = _header(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise BrokenCheckpoint(str(path), f"cannot be read as safetensors ({error})", remedy="copy or export it again") from error
    if weights_digest(tensors) != header["weights"]:
        raise BrokenCheckpoint(str(path), "weights do not match their sha256 digest", remedy="copy or export it again")
    return Backbone.from_spec(header["spec"], tensors)


def _header(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BrokenCheckpoint(str(path), f"cannot be read as safetensors ({error})", remedy="copy or export it again") from error
    if _HEADER not in metadata:
        raise UserError(
            str(path), "is a safetensors file without a dinodomain spec", remedy="give the run folder, or export with format=safetensors"
        )
    header: dict[str, Any] = json.loads(metadata[_HEADER])
    return header


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes in order of names: what an exported backbone carries, and what an audit names it by.

    Args:
        tensors: A backbone's ``state_dict()``, on any device.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(lineage.canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
