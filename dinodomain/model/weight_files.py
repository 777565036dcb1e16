"""Files of published weights: one file, a folder in Hugging Face's manner, or a repository in the local hub cache.

Nothing is downloaded, and nothing is unpickled but by ``torch.load(weights_only=True)``, which makes tensors and plain containers only.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dinodomain import lineage
from dinodomain.errors import UserError

HUB: Final = "hub:"
HEADER: Final = "dinodomain"
"""Key in a safetensors header under which our exports keep spec and lineage."""
_FILES: Final = ("model.safetensors", "backbone.safetensors", "pytorch_model.bin")
_PICKLED: Final = frozenset({".pth", ".pt", ".bin", ".ckpt"})
_BRANCHES: Final = ("teacher", "ema", "model_ema", "state_dict", "model", "backbone", "encoder", "module", "student")


def find_weights(place: str) -> tuple[Path, list[Path], dict[str, Any]]:
    """Where weights lie: the path, the files that hold the tensors, and the configuration beside them (empty where there is none).

    Args:
        place: A file, a folder, or ``hub:OWNER/NAME``, after which ``@REVISION`` may stand.

    Raises:
        UserError: Nothing there, or several.
    """
    path = _in_hub(place) if place.startswith(HUB) else Path(place)
    return (path, *_locate(path, place))


def _in_hub(place: str) -> Path:
    """The snapshot of a repository in the local hub cache."""
    name, _, revision = place.removeprefix(HUB).partition("@")
    if name.count("/") != 1:
        raise UserError("start.weights", f"is {place!r}", allowed="hub:OWNER/NAME, or hub:OWNER/NAME@REVISION")
    cache = _hub_cache()
    folder = cache / f"models--{name.replace('/', '--')}"
    fetch = f"fetch it where there is a network with `hf download {name}`, or set HF_HUB_CACHE to the folder that holds it"
    if not folder.is_dir():
        raise UserError("start.weights", f"{name} is not in the hub cache {cache}; nothing is downloaded in a run", remedy=fetch)
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshots = sorted(path.name for path in (folder / "snapshots").glob("*") if path.is_dir())
    if not commit and len(snapshots) == 1:
        commit = snapshots[0]
    if commit not in snapshots:
        found = ", ".join(snapshots) or "none"
        raise UserError("start.weights", f"the hub cache holds no snapshot {commit or 'main'!r} of {name} (found: {found})", remedy=fetch)
    return folder / "snapshots" / commit


def _hub_cache() -> Path:
    """Where ``huggingface_hub`` keeps its cache: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub or the default below home."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if own:
        return Path(own).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"


def _locate(path: Path, place: str) -> tuple[list[Path], dict[str, Any]]:
    """The files that hold the tensors, and the configuration beside them."""
    if path.is_file():
        beside = path.parent / "config.json"
        return [path], _config(beside) if path.name in _FILES else {}
    if not path.is_dir():
        raise UserError("start.weights", f"{place} does not exist", allowed="a file, a folder, or hub:OWNER/NAME")
    config = _config(path / "config.json")
    for name in _FILES:
        index = path / f"{name}.index.json"
        if index.is_file():
            return _shards(path, index), config
        if (path / name).is_file():
            return [path / name], config
    found = sorted(file for file in path.iterdir() if file.suffix == ".safetensors" or file.suffix in _PICKLED)
    if len(found) == 1:
        return found, config
    what = f"several files of weights ({', '.join(file.name for file in found[:4])})" if found else "no file of weights"
    raise UserError("start.weights", f"{path} holds {what}", allowed=f"{', '.join(_FILES)} or one file; else name the file itself")


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(str(index), f"is not an index of shards ({error})", remedy="fetch it again") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise UserError(str(index), f"names shards that are not there: {', '.join(missing)}", remedy="fetch them too")
    return [folder / name for name in names]


def _config(path: Path) -> dict[str, Any]:
    """``config.json``, Hugging Face's or timm's, as one flat mapping; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(path), f"is not JSON ({error})", remedy="fetch it again, or take it away") from error
    if not isinstance(found, dict):
        return {}
    own = found.get("model_args")
    return {**found, **(own if isinstance(own, dict) else {})}


def read_file(path: Path) -> dict[str, Tensor]:
    """The flat state dict in one file.

    Raises:
        UserError: It cannot be read, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(str(path), f"cannot be read as safetensors ({error})", remedy="fetch or copy it again") from error
        return tensors
    if path.suffix not in _PICKLED:
        allowed = f".safetensors, {', '.join(sorted(_PICKLED))}"
        raise UserError("start.weights", f"{path.name} is of an unknown kind", allowed=allowed)
    try:
        # DINO's own checkpoints carry their command line, a namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(
            str(path), f"cannot be read without running code that it carries, or is damaged ({str(error).splitlines()[0]})",
            remedy="where you trust it, load it with the program that made it and save its state dict as .safetensors",
        ) from error  # fmt: skip
    return _unwrap(found, path)


def _unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    """The flat state dict inside nested ones; of a student and a teacher, the teacher's."""
    while isinstance(found, Mapping):
        tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        inner = [name for name in _BRANCHES if isinstance(found.get(name), Mapping)]
        if inner and len(tensors) < 8:
            found = found[inner[0]]
        elif tensors:
            return tensors
        else:
            held = ", ".join(map(str, list(found)[:6]))
            raise UserError(
                str(path), f"holds no state dict (its keys: {held})", allowed=f"tensors by name, alone or below {', '.join(_BRANCHES)}"
            )
    raise UserError(str(path), f"holds a {type(found).__name__}", allowed="tensors by name")


def read_header(path: Path) -> dict[str, Any]:
    """Spec and lineage of an exported backbone of ours; empty for everybody else's."""
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, framework="pt") as handle:
        metadata = handle.metadata() or {}
    found: dict[str, Any] = json.loads(metadata[HEADER]) if HEADER in metadata else {}
    return found


def digest_of(files: list[Path]) -> str:
    """sha256 of one file; of several, of their names and digests."""
    digests = {file.name: lineage.digest_file(file) for file in files}
    return next(iter(digests.values())) if len(digests) == 1 else lineage.digest(digests)


def licence_of(folder: Path, *, owned: bool) -> str | None:
    """What a model card or a licence file says.

    Args:
        folder: Where the weights lie.
        owned: Whether the folder holds nothing else; a card beside a lone file may be anybody's and is not read.
    """
    card = folder / "README.md"
    if owned and card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            key, _, value = line.partition(":")
            if key.strip() in ("license", "license_name") and value.strip():
                return f"{value.strip()} (model card)"
    for file in sorted(folder.glob("LICENSE*")):
        first = next((line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()), "")
        if first:
            return f"{first[:120]} ({file.name} beside the weights)"
    return None
