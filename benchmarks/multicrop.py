"""Multi-crop side by side with what a user would take otherwise: samples per CPU-second, interleaved rounds, medians.

Every pipeline makes the same views (2 x 224 + 8 x 96, or 2 x 96^3 + 8 x 48^3) of images in memory, without decoding, with the same
operations at the same rates as far as the peer has them: random resized crop (antialiased where the peer can), flips, brightness,
contrast, gamma, blur, noise, normalisation. One thread. A peer that is not installed gets a row that says so.

Usage: python benchmarks/multicrop.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from dinodomain.domain import Jitter, ViewPolicy, linear_to_unit
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewsPlan, draw_batch, render

Pipeline = Callable[[int], None]
"""Makes all views of all images; the argument is the round, so that nobody can cache."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison; ``ours`` and ``peer_value`` are medians over rounds, ``ratio`` is the median of the rounds' ratios."""

    measure: str
    input: str
    ours: float | None
    peer: str
    peer_value: float | str
    unit: str
    ratio: float | None
    target: float | None
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of input with its peers."""

    name: str
    images: torch.Tensor
    policy: ViewPolicy
    plan: ViewsPlan
    peers: dict[str, tuple[Callable[[torch.Tensor], Pipeline], float]]


PLANE = ViewPolicy(axes=("NS", "EW"), flip={"NS": 0.5, "EW": 0.5})
VOLUME = ViewPolicy(axes=("IS", "AP", "LR"), flip={"IS": 0.5, "AP": 0.5, "LR": 0.5})


def smooth_images(count: int, channels: int, extent: tuple[int, ...], high: float, dtype: torch.dtype) -> torch.Tensor:
    """Images with structure at several scales: noise alone would flatter or punish filters."""
    torch.manual_seed(0)
    total = torch.zeros(count, channels, *extent)
    mode = "bilinear" if len(extent) == 2 else "trilinear"
    for side in (4, 16, 64):
        total += torch.nn.functional.interpolate(torch.rand(count, channels, *(side,) * len(extent)), extent, mode=mode) / 3
    return (total * high).to(dtype)


def ours(images: torch.Tensor, policy: ViewPolicy, plan: ViewsPlan) -> Pipeline:
    """This package, from a batch as the loader gives it."""
    count, channels, *extent = images.shape
    names = tuple(f"band {i}" for i in range(channels))
    high = float(images.float().max())
    ones, ids = torch.ones(count, channels), torch.arange(count)
    box = torch.tensor([[0, side] for side in extent]).expand(count, -1, -1)
    info = TileInfo(
        scale=ones, offset=0 * ones, nodata=ones * torch.nan, low=0 * ones, high=high * ones,
        spacing=torch.ones(count, len(extent)), valid_box=box,
    )  # fmt: skip
    batch = Batch(
        pixels=images[:, None], valid=None, info=info, channels=names, tile_ids=ids, epochs=0 * ids, draws=0 * ids, rows=ids,
        origins=torch.zeros(count, len(extent), dtype=torch.int64), slots=ids,
    )  # fmt: skip
    norm = Normalisation(
        mode="domain", channels=names, low=(0.0,) * channels, high=(high,) * channels, mean=(0.5,) * channels, std=(0.25,) * channels
    )

    def run(turn: int) -> None:
        params = draw_batch(policy, plan, batch, seed=turn, normalisation=norm)
        render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=8)

    return run


def torchvision_rgb(images: torch.Tensor) -> Pipeline:
    """Torchvision v2 on uint8 tensors with channels-last strides, its fastest form."""
    from torchvision.transforms import InterpolationMode, v2

    def chain(size: int, scale: tuple[float, float], blur: float) -> v2.Compose:
        return v2.Compose([
            v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2), v2.Lambda(_tv_gamma)], p=0.8),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=blur),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.GaussianNoise(sigma=0.025)], p=0.2),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ])  # fmt: skip

    last = images.contiguous(memory_format=torch.channels_last)
    return _per_sample(last, chain, 224, 96)


def _tv_gamma(image: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    return functional.adjust_gamma(image, float(np.exp(np.random.uniform(np.log(0.8), np.log(1.25)))))


def torchvision_bands(images: torch.Tensor) -> Pipeline:
    """Torchvision v2 in float, with hand-written per-band brightness, contrast and gamma: its own are for RGB."""
    from torchvision.transforms import InterpolationMode, v2

    def jitter(image: torch.Tensor) -> torch.Tensor:
        channels = image.shape[0]
        mean = image.mean(dim=(1, 2), keepdim=True)
        factor, shift = 1 + 0.4 * (torch.rand(channels, 1, 1) - 0.5), 0.4 * (torch.rand(channels, 1, 1) - 0.5)
        return ((image - mean) * factor + mean + shift).clamp(0, 1) ** float(np.exp(np.random.uniform(np.log(0.8), np.log(1.25))))

    def chain(size: int, scale: tuple[float, float], blur: float) -> v2.Compose:
        return v2.Compose([
            v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(),
            v2.RandomApply([v2.Lambda(jitter)], p=0.8),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=blur),
            v2.RandomApply([v2.GaussianNoise(sigma=0.025, clip=False)], p=0.2),
            v2.Normalize([0.5] * images.shape[1], [0.25] * images.shape[1]),
        ])  # fmt: skip

    high = float(images.float().max())
    views = _chains(chain, 224, 96)

    def run(turn: int) -> None:
        torch.manual_seed(turn)
        done = [[view(unit) for view in views] for unit in (image.float().div_(high) for image in images)]
        _collate(done)

    return run


def _chains(chain: Callable[[int, tuple[float, float], float], Callable], large: int, small: int) -> list[Callable]:
    return [chain(large, (0.32, 1.0), 1.0), chain(large, (0.32, 1.0), 0.1), *[chain(small, (0.05, 0.32), 0.5)] * 8]


def _per_sample(images: torch.Tensor, chain: Callable, large: int, small: int) -> Pipeline:
    views = _chains(chain, large, small)

    def run(turn: int) -> None:
        torch.manual_seed(turn)
        _collate([[view(image) for view in views] for image in images])

    return run


def _collate(done: list[list[torch.Tensor]]) -> None:
    for view in zip(*done):
        torch.stack(view)


def kornia_rgb(images: torch.Tensor) -> Pipeline:
    """kornia, batched; does not antialias."""
    import kornia.augmentation as K

    def chain(size: int, scale: tuple[float, float], blur: float) -> torch.nn.Module:
        return torch.nn.Sequential(
            K.RandomResizedCrop((size, size), scale=scale), K.RandomHorizontalFlip(), K.RandomVerticalFlip(),
            K.RandomBrightness((0.8, 1.2), p=0.8), K.RandomContrast((0.8, 1.2), p=0.8), K.RandomGamma((0.8, 1.25), p=0.8),
            K.RandomGaussianBlur((9, 9), (0.1, 2.0), p=blur), K.RandomGaussianNoise(std=0.025, p=0.2),
            K.Normalize(0.5, 0.25),
        )  # fmt: skip

    views = _chains(chain, 224, 96)

    def run(turn: int) -> None:
        torch.manual_seed(turn)
        unit = images.float().div_(255)
        for view in views:
            view(unit)

    return run


def lightly_train_rgb(images: torch.Tensor) -> Pipeline:
    """lightly-train's DINOv2 transform, from its own package."""
    from lightly_train._methods.dinov2.dinov2_transform import DINOv2ViTTransform  # private: it has no public name

    arrays = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    transform = DINOv2ViTTransform(DINOv2ViTTransform.transform_args_cls()())

    def run(turn: int) -> None:
        np.random.seed(turn)
        for array in arrays:
            transform({"image": array})

    return run


def monai_volume(images: torch.Tensor) -> Pipeline:
    """MONAI: random crop, trilinear resize (not antialiased, its fastest), the same intensity operations."""
    from monai import transforms as M

    def chain(size: int, low: float, high: float, blur: float) -> M.Compose:
        side = images.shape[-1]
        least, most = int(side * low ** (1 / 3)), int(side * high ** (1 / 3))
        return M.Compose([
            M.RandSpatialCrop((least,) * 3, (most,) * 3, random_size=True), M.Resize((size,) * 3, mode="trilinear"),
            *(M.RandFlip(0.5, axis) for axis in range(3)),
            M.RandScaleIntensity(0.2, prob=0.8), M.RandShiftIntensity(0.2, prob=0.8), M.RandAdjustContrast(prob=0.8, gamma=(0.8, 1.25)),
            M.RandGaussianSmooth((0.1, 2.0), (0.1, 2.0), (0.1, 2.0), prob=blur), M.RandGaussianNoise(prob=0.2, std=0.025),
            M.NormalizeIntensity(0.5, 0.25),
        ])  # fmt: skip

    views = [chain(96, 0.32, 1.0, 1.0), chain(96, 0.32, 1.0, 0.1), *[chain(48, 0.05, 0.32, 0.5)] * 8]
    high = float(images.float().max())

    def run(turn: int) -> None:
        for view in views:
            view.set_random_state(turn)
        _collate([[view(unit) for view in views] for unit in (image.float().div_(high) for image in images)])

    return run


def cases(quick: bool) -> list[Case]:
    many, few = (8, 1) if quick else (16, 2)
    rgb = {"torchvision v2": (torchvision_rgb, 3.0), "kornia": (kornia_rgb, 4.5), "lightly-train": (lightly_train_rgb, 1.25)}
    found = [
        Case(
            name="RGB uint8 384^2", images=smooth_images(many, 3, (384, 384), 255, torch.uint8), policy=PLANE, plan=ViewsPlan(), peers=rgb,
        ),
        Case(
            name="12-band uint16 256^2", images=smooth_images(many, 12, (256, 256), 9999, torch.uint16),
            policy=ViewPolicy(axes=PLANE.axes, flip=PLANE.flip, jitter=Jitter(per_channel=True)), plan=ViewsPlan(),
            peers={"torchvision v2": (torchvision_bands, 2.2)},
        ),
        Case(
            name="int16 160^3", images=smooth_images(few, 1, (160, 160, 160), 2000, torch.int16),
            policy=VOLUME, plan=ViewsPlan(global_size=96, local_size=48), peers={"monai": (monai_volume, 2.7)},
        ),
    ]  # fmt: skip
    if not quick:
        large = smooth_images(many, 3, (512, 512), 255, torch.uint8)
        found.insert(1, Case(name="RGB uint8 512^2", images=large, policy=PLANE, plan=ViewsPlan(), peers=rgb))
    return found


def rate(run: Pipeline, turn: int, count: int) -> float:
    """Samples per CPU-second of this process."""
    start = time.process_time()
    run(turn)
    return count / (time.process_time() - start)


def compare(case: Case, rounds: int) -> list[Row]:
    """All pipelines of a case, round by round in turn, after one warm-up each."""
    installed = {name: build for name, (build, _) in case.peers.items() if importlib.util.find_spec(name.split()[0].replace("-", "_"))}
    runs = {"ours": ours(case.images, case.policy, case.plan), **{name: build(case.images) for name, build in installed.items()}}
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, rounds):
        for name, run in runs.items():
            value = rate(run, turn + 1, len(case.images))
            if turn >= 0:
                seen[name].append(value)
    own = statistics.median(seen["ours"])
    rows = []
    for peer, (_, target) in case.peers.items():
        common = {"measure": "multi-crop", "input": case.name, "ours": own, "peer": peer, "unit": "samples/CPU-s", "target": target}
        if peer in installed:
            ratio = statistics.median(a / b for a, b in zip(seen["ours"], seen[peer]))
            rows.append(Row(**common, peer_value=statistics.median(seen[peer]), ratio=ratio, rounds=rounds))
        else:
            rows.append(Row(**common, peer_value="not installed", ratio=None, rounds=0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for case in cases(args.quick) if args.only in case.name for row in compare(case, 3 if args.quick else 7)]
    for row in rows:
        shown = f"{row.peer_value:8.1f}" if isinstance(row.peer_value, float) else row.peer_value
        ratio = "" if row.ratio is None else f"x{row.ratio:.2f} (target x{row.target})"
        print(f"{row.input:22} ours {row.ours:8.1f}  {row.peer:16} {shown}  {ratio}", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
