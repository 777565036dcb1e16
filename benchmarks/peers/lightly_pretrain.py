"""lightly-train pretrains on a folder of images for so many CPU-minutes: its own interface, methods, transforms and data loading.

    cd benchmarks && python -m peers.lightly_pretrain REQUEST.json

A process of its own with one thread; it is AGPL, installed by the extra ``bench`` alone and never copied. The request is a ``Request`` as
JSON; the answer is written beside the weights as ``answer.json``. How many steps fit is found by runs that do not count, so that all of its
schedules span the time that it has. What it is given is what its documentation offers: sizes and shares of the crops, number of prototypes,
width of the heads, optimiser, lengths of warm-ups in steps (their published shares of the run), flips; and a model of one's own.
"""

from __future__ import annotations

import os

# Before anything that reads them. It must not call home either.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")
os.environ.update(LIGHTLY_TRAIN_EVENTS_DISABLED="1")

import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality.budget import timed
from torch import Tensor, nn

METHODS = ("dino", "dinov2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What it is asked to do.

    Attributes:
        method: ``dino`` or ``dinov2``.
        images: Folder of images.
        out: Folder for the result; emptied.
        minutes: CPU-minutes of training.
        seed: Of everything random.
        batch: Images a step.
        model: ``dim``, ``depth``, ``heads``, ``patch`` of the backbone.
        views: ``global_size``, ``local_size``, ``num_local``, ``global_scale``, ``local_scale``.
        head: ``prototypes``, ``hidden``, ``bottleneck``.
        lr: Learning rate before its own scaling with the batch; None for its default.
        method_args: Changes to the method's other arguments.
        transform_args: Changes to its transform's arguments.
        init: First weights of the backbone's linears: its ``own``, or ``xavier`` as ours.
        steps: Steps to do whatever they take; None to fill the minutes.
        pace: See ``quality.budget.timed``.
    """

    method: str
    images: str
    out: str
    minutes: float
    seed: int
    batch: int
    model: Mapping[str, int]
    views: Mapping[str, Any]
    head: Mapping[str, int]
    lr: float | None = None
    method_args: Mapping[str, Any] = field(default_factory=dict)
    transform_args: Mapping[str, Any] = field(default_factory=dict)
    init: str = "own"
    steps: int | None = None
    pace: float | None = None


def build(method: str, model: Mapping[str, int], size: int, channels: int = 3, init: str = "own") -> nn.Module:
    """The backbone that a method takes, of the size wanted: timm's for DINO, the package's own for DINOv2, which accepts no other.

    LayerScale and stochastic depth are off, as in ours: near the identity a run of minutes would not leave its start.
    """
    dim, depth, heads, patch = (model[name] for name in ("dim", "depth", "heads", "patch"))
    if method == "dino":
        import timm

        given = {"patch_size": patch, "embed_dim": dim, "depth": depth, "num_heads": heads, "img_size": size, "in_chans": channels}
        made: nn.Module = timm.create_model("vit_tiny_patch16_224", pretrained=False, dynamic_img_size=True, num_classes=0, **given)
        return _begun(made, init)
    from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer

    network = DinoVisionTransformer(
        img_size=size, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads, block_chunks=0, interpolate_antialias=True,
        in_chans=channels,
    )  # fmt: skip
    return _begun(network, init)


def _begun(network: nn.Module, init: str) -> nn.Module:
    """With our first weights of linears, or its own."""
    for module in network.modules():
        if init == "xavier" and isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=2**0.5)
    return network


def arguments(request: Request, steps: int) -> dict[str, Any]:
    """Keyword arguments of ``lightly_train.pretrain`` for a run of so many steps."""
    views, head = request.views, request.head
    scales = {name: dict(zip(("min_scale", "max_scale"), views[f"{name}_scale"])) for name in ("global", "local")}
    local = {"num_views": views["num_local"], "view_size": (views["local_size"],) * 2, "random_resize": scales["local"]}
    changes = dict(request.transform_args)
    transform = {
        "image_size": (views["global_size"],) * 2, "random_resize": scales["global"], **changes,
        "local_view": {**local, **changes.get("local_view", {})},
    }  # fmt: skip
    method: dict[str, Any] = {"hidden_dim": head["hidden"], "output_dim": head["prototypes"]}
    warm = max(1, round(0.1 * steps))
    if request.method == "dino":
        method |= {"bottleneck_dim": head["bottleneck"], "warmup_steps": warm, "student_freeze_last_layer_steps": max(1, steps // 100)}
    else:
        method |= {
            "dino_bottleneck_dim": head["bottleneck"], "ibot_bottleneck_dim": head["bottleneck"], "warmup_steps": warm,
            "teacher_temp_warmup_steps": max(1, round(0.3 * steps)), "student_freeze_last_layer_steps": max(1, steps // 100),
        }  # fmt: skip
    return {
        "data": request.images, "method": request.method, "method_args": {**method, **request.method_args}, "batch_size": request.batch,
        "epochs": 1_000_000, "num_workers": 0, "devices": 1, "accelerator": "cpu", "precision": "32-true", "seed": request.seed,
        "optim": "adamw", "optim_args": None if request.lr is None else {"lr": request.lr}, "transform_args": transform,
        "loggers": {"jsonl": None, "tensorboard": None}, "overwrite": True,
        # Nothing of its housekeeping may cost it time. Its schedules follow max_steps.
        "callbacks": {"model_checkpoint": {"every_n_epochs": 1_000_000, "save_last": False}, "model_export": {"every_n_epochs": 1_000_000},
                      "learning_rate_monitor": None},
        "trainer_args": {"max_steps": steps, "enable_model_summary": False},
    }  # fmt: skip


def train(request: Request, steps: int, folder: Path) -> tuple[nn.Module, float]:
    """Trains; returns the backbone (DINO: the teacher's, which it exports) and CPU-seconds."""
    import lightly_train

    torch.manual_seed(request.seed)
    channels = request.transform_args.get("num_channels", 3)
    network = build(request.method, request.model, request.views["global_size"], channels, request.init)
    began = time.process_time()
    lightly_train.pretrain(out=folder, model=network, **arguments(request, steps))
    spent = time.process_time() - began
    weights = torch.load(folder / "exported_models" / "exported_last.pt", weights_only=True, map_location="cpu")
    network.load_state_dict(weights)
    return network, spent


def run(request: Request) -> dict[str, Any]:
    """Finds how many steps fit, does them, keeps the weights; returns what was done."""
    out = Path(request.out)
    shutil.rmtree(out, ignore_errors=True)
    if request.steps is None:
        steps, network, spent = timed(lambda steps, place: train(request, steps, out / place), request.minutes, request.pace)
    else:
        steps, (network, spent) = request.steps, train(request, request.steps, out / "run")
    torch.save(network.state_dict(), out / "weights.pt")
    return {"steps": steps, "cpu_seconds": spent, "parameters": sum(item.numel() for item in network.parameters())}


@torch.no_grad()
def tokens(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Class token [n, E] and patch tokens [n, P, E], normalised, of either backbone.

    Args:
        network: From ``build``.
        pixels: [n, C, Y, X] float32, normalised as in its training.
    """
    network.eval()
    found = network.forward_features(pixels)  # type: ignore[operator]
    if isinstance(found, dict):
        return found["x_norm_clstoken"], found["x_norm_patchtokens"]
    return found[:, 0], found[:, 1:]


def describe(request: Request, images: np.ndarray, size: int, batch: int = 64) -> np.ndarray:
    """Class token and mean patch of all images, [n, 2 E], by the weights that ``run`` left.

    Args:
        request: That was run.
        images: [n, Y, X, 3] uint8.
        size: Side that images are brought to.
        batch: Images at a time.
    """
    from torchvision.transforms.v2 import functional

    network = build(request.method, request.model, request.views["global_size"])
    network.load_state_dict(torch.load(Path(request.out) / "weights.pt", weights_only=True))
    rows = []
    for start in range(0, len(images), batch):
        given = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
        sized = functional.resize(given, [size, size], antialias=True)
        shown = functional.normalize(sized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # the transform's default
        cls, patches = tokens(network, shown)
        rows.append(torch.cat([cls, patches.mean(1)], 1).numpy())
    return np.concatenate(rows)


def main() -> None:
    request = Request(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    answer = run(request)
    (Path(request.out) / "answer.json").write_text(json.dumps({**asdict(request), **answer}, indent=1))


if __name__ == "__main__":
    main()
