"""How far each renderer is from what others compute, in the unit of the channel: largest and root mean square difference.

Random whole-pixel boxes of real images (``DINODOMAIN_TEST_DATA``, else synthetic) are resampled to random sizes by every renderer that
takes them. Against others' resize: boxes only, as they have nothing else in one step. Against the float64 twin: with flips and blur.
Against scipy's Gaussian: boxes that keep their size. All before the changes of intensity,
clipped to the range that becomes 0..1; ``ours`` is the renderer's largest difference.

    python benchmarks/agreement.py [--quick] [--only TEXT] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peers import images as content
from peers.common import Images
from peers.package import batch_of
from torch import Tensor

from dinodomain.lineage import write_json
from dinodomain.policy import ViewPolicy
from dinodomain.views.draw import GroupParams, ViewParams
from dinodomain.views.matmul import Matmul
from dinodomain.views.reference import resample
from dinodomain.views.warp import Banded, Resize, Tiles, interleaved

Kind = Literal["linear", "cubic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Images and the unit in which a difference means something.

    Attributes:
        name: For the table.
        load: Gives the images.
        unit: Unit of physical values.
        scale: Physical value of one stored step.
        bound: Largest difference allowed, in ``unit``.
        rounded: What ``Resize`` and PIL add on bytes, because they round to whole levels, by filter; None where nothing rounds.
        sides: Sizes of the crops.
    """

    name: str
    load: Callable[[Path | None], Images]
    unit: str
    scale: float
    bound: float
    rounded: dict[Kind, float] | None = None
    sides: tuple[int, ...] = (32, 96, 160)


SOURCES = (
    Source(
        name="RGB uint8", load=lambda data: content.photographs(5, 384, data), unit="levels", scale=1.0, bound=0.01,
        rounded={"linear": 1.0, "cubic": 5.0},
    ),
    Source(name="12-band uint16", load=lambda data: content.scenes(5, 256, data), unit="reflectance", scale=1e-4, bound=1e-4),
    Source(name="SAR float32", load=lambda data: content.radar(data), unit="dB", scale=1.0, bound=0.05),
    Source(name="CT int16", load=lambda data: content.volumes(5, 96, data), unit="HU", scale=1.0, bound=1.0, sides=(16, 32, 48)),
)  # fmt: skip


@dataclass(slots=True)
class Difference:
    """Running largest and mean square difference, physical units."""

    boxes: int = 0
    largest: float = 0.0
    _squares: float = field(default=0.0, repr=False)
    _count: int = field(default=0, repr=False)

    def add(self, found: np.ndarray, wanted: np.ndarray, images: Images, scale: float) -> None:
        """One crop of each, stored values; clipped to the range that becomes 0..1, as every view is."""
        ours, theirs = (np.clip(values.astype(np.float64), images.low, images.high) for values in (found, wanted))
        apart = (ours - theirs) * scale
        self.boxes += 1
        self.largest = max(self.largest, float(np.abs(apart).max()))
        self._squares += float(np.square(apart).sum())
        self._count += apart.size

    @property
    def rms(self) -> float:
        """Root mean square over all pixels of all crops."""
        return float(np.sqrt(self._squares / self._count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One draw: where, how large, and what else is folded into the resampling."""

    box: tuple[tuple[int, int], ...]
    size: int
    flips: tuple[bool, ...]
    sigma: float

    def plain(self) -> Crop:
        """Without flips and blur."""
        return Crop(box=self.box, size=self.size, flips=(False,) * len(self.box), sigma=0.0)

    def of(self, image: Tensor) -> Tensor:
        """The box of an image [C, *L], as stored."""
        return image[(slice(None), *(slice(a, b) for a, b in self.box))]


def drawn(rng: np.random.Generator, extent: tuple[int, ...], sides: tuple[int, ...]) -> Crop:
    """A random box, size, flips and, half of the time, blur."""
    box = []
    for length in extent:
        side = int(rng.integers(max(8, length // 8), length + 1))
        start = int(rng.integers(0, length - side + 1))
        box.append((start, start + side))
    flips = tuple(bool(flip) for flip in rng.integers(0, 2, len(extent)))
    return Crop(box=tuple(box), size=int(rng.choice(sides)), flips=flips, sigma=float(rng.choice([0.0, rng.uniform(0.1, 2.0)])))


def same_size(rng: np.random.Generator, extent: tuple[int, ...], sides: tuple[int, ...]) -> Crop:
    """A box that keeps its size, blurred."""
    size = int(rng.choice([side for side in sides if side <= min(extent)]))
    starts = [int(rng.integers(0, length - size + 1)) for length in extent]
    box = tuple((start, start + size) for start in starts)
    return Crop(box=box, size=size, flips=(False,) * len(extent), sigma=float(rng.uniform(0.2, 2.0)))


def params_of(crop: Crop, kind: Kind) -> ViewParams:
    """One row."""
    axes = ("z", "y", "x")[-len(crop.box) :]
    group = GroupParams(
        name="global", size=crop.size, num_views=1, boxes=torch.tensor([crop.box], dtype=torch.float32), flips=torch.tensor([crop.flips]),
        transpose=torch.zeros(1, dtype=torch.bool), angle=torch.zeros(1), sigma=torch.full((1, len(axes)), crop.sigma),
        key=torch.zeros(1, dtype=torch.int64), operations={},
    )  # fmt: skip
    return ViewParams(groups=(group,), policy=ViewPolicy(axes=axes), renderer="fastest", filter=kind)


def rendered(renderer: str, images: Images, place: int, crop: Crop, kind: Kind, device: torch.device) -> np.ndarray:
    """[C, *S] stored values by one of ours."""
    one = Images(pixels=images.pixels[place : place + 1], low=images.low, high=images.high, kind=images.kind)
    batch, _ = batch_of(one)
    params = params_of(crop, kind)
    tiles = Tiles(pixels=batch.pixels, known=None, info=batch.info)
    if renderer == "Matmul":
        params = params.to(device)
        tiles = Tiles(pixels=batch.pixels.to(device), known=None, info=batch.info)
        values, _ = Matmul(params.groups[0], params)(tiles, 0, 1)
    elif renderer == "Banded":
        values, _ = Banded(params.groups[0], params)(tiles, 0, 1)
    else:
        values, _ = Resize(params.groups[0], params)(interleaved(tiles), 0, 1)
    return np.asarray(values[0].cpu())


def twin(crop: Crop, image: Tensor, kind: Kind) -> np.ndarray:
    """The package's plain float64 way, loops."""
    return resample(image.numpy(), params_of(crop, kind).groups[0], 0, kind)


def torchvision(crop: Crop, image: Tensor, kind: Kind) -> np.ndarray:
    """``resized_crop`` of float32, antialiased."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    how = InterpolationMode.BILINEAR if kind == "linear" else InterpolationMode.BICUBIC
    (top, bottom), (left, right) = crop.box
    size = [crop.size, crop.size]
    return np.asarray(functional.resized_crop(image.float(), top, left, bottom - top, right - left, size, how, antialias=True))


def pillow(crop: Crop, image: Tensor, kind: Kind) -> np.ndarray:
    """``Image.resize`` of the crop: three channels of bytes as RGB, else each channel as 32-bit float."""
    from PIL import Image

    how = Image.Resampling.BILINEAR if kind == "linear" else Image.Resampling.BICUBIC
    part, size = crop.of(image), (crop.size, crop.size)
    if image.dtype == torch.uint8:
        return np.asarray(Image.fromarray(part.movedim(0, -1).contiguous().numpy()).resize(size, how)).transpose(2, 0, 1)
    return np.stack([np.asarray(Image.fromarray(band.float().contiguous().numpy()).resize(size, how)) for band in part])


def monai(crop: Crop, image: Tensor, kind: Kind) -> np.ndarray | None:
    """``Resize``, trilinear; only where it enlarges, because it does not antialias as we do."""
    from monai.transforms import Resize as MonaiResize

    if any(stop - start > crop.size for start, stop in crop.box):
        return None
    return np.asarray(MonaiResize((crop.size,) * 3, mode="trilinear")(crop.of(image).float()))


def scipy(crop: Crop, image: Tensor, kind: Kind) -> np.ndarray:
    """``gaussian_filter`` divided by that of ones: outside the crop nothing is known."""
    from scipy.ndimage import gaussian_filter

    part = crop.of(image).numpy().astype(np.float64)
    sigma = (0.0, *(crop.sigma,) * len(crop.box))
    wanted = gaussian_filter(part, sigma, mode="constant", truncate=8) / gaussian_filter(
        np.ones_like(part), sigma, mode="constant", truncate=8
    )
    return np.asarray(wanted)


ORACLES: dict[str, Callable[[Crop, Tensor, Kind], np.ndarray | None]] = {
    "float64 twin": twin, "torchvision": torchvision, "PIL": pillow, "MONAI Resize": monai, "scipy gaussian": scipy,
}  # fmt: skip
ROUNDS_TO_LEVELS = ("PIL",)


def compare(source: Source, count: int, device: torch.device, data: Path | None) -> Iterator[dict[str, Any]]:
    """Rows of one source."""
    images = source.load(data)
    flat = images.pixels.ndim == 4
    kinds: tuple[Kind, ...] = ("linear", "cubic") if flat else ("linear",)
    renderers = ("Matmul", "Banded", "Resize") if flat else ("Matmul", "Banded")
    oracles = [name for name in ORACLES if name not in (("MONAI Resize",) if flat else ("torchvision", "PIL"))]
    for kind in kinds:
        for oracle in oracles:
            found = differences(source, images, oracle, renderers, kind, count, device)
            for renderer, apart in found.items():
                rounds = source.rounded is not None and (renderer == "Resize" or oracle in ROUNDS_TO_LEVELS)
                bound = source.bound + (source.rounded[kind] if source.rounded is not None and rounds else 0.0)
                yield {
                    "measure": "agreement", "input": f"{source.name}, {images.kind}", "renderer": renderer, "filter": kind, "peer": oracle,
                    "boxes": apart.boxes, "ours": apart.largest, "rms": apart.rms, "unit": source.unit, "target": bound,
                    "holds": apart.largest <= bound,
                }  # fmt: skip


def differences(
    source: Source, images: Images, oracle: str, renderers: tuple[str, ...], kind: Kind, count: int, device: torch.device
) -> dict[str, Difference]:
    """Every renderer against one oracle on the same boxes."""
    found = {renderer: Difference() for renderer in renderers}
    rng, extent, done = np.random.default_rng(0), tuple(images.pixels.shape[2:]), 0
    while done < count:
        place = int(rng.integers(len(images.pixels)))
        crop = same_size(rng, extent, source.sides) if oracle == "scipy gaussian" else drawn(rng, extent, source.sides)
        crop = crop if oracle in ("scipy gaussian", "float64 twin") else crop.plain()
        wanted = ORACLES[oracle](crop, images.pixels[place], kind)
        if wanted is None:
            continue
        for renderer, apart in found.items():
            apart.add(rendered(renderer, images, place, crop, kind, device), wanted, images, source.scale)
        done += 1
    return found


def show(found: dict[str, Any]) -> None:
    """A row for people."""
    verdict = "holds" if found["holds"] else "EXCEEDED"
    apart = f"max {found['ours']:9.2e}  rms {found['rms']:9.2e} {found['unit']:12} bound {found['target']:g} {verdict}"
    print(f"{found['input']:34} {found['filter']:7} {found['renderer']:7} {found['peer']:15} {apart} ({found['boxes']} boxes)", flush=True)


def main() -> None:
    """Prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few boxes")
    parser.add_argument("--synthetic", action="store_true", help="made-up images even where real ones are there")
    parser.add_argument("--only", default="", help="inputs whose name holds this text")
    parser.add_argument("--device", default="cpu", help="where Matmul runs; the other two are for CPUs")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    warnings.filterwarnings("ignore", module="monai|rasterio")
    data = None if args.synthetic else content.real_folder()
    rows = []
    for source in SOURCES:
        if args.only in source.name:
            for found in compare(source, 12 if args.quick else 200, torch.device(args.device), data):
                show(found)
                rows.append(found)
    print(f"\n{len(rows)} rows, {sum(not found['holds'] for found in rows)} bounds exceeded")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
