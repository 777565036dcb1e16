"""Images for the multi-crop benchmark: real where ``DINODOMAIN_TEST_DATA`` (default ``../shared/data``) is there, else smooth noise."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from peers.common import Images


def real_folder() -> Path | None:
    """The folder of real data, None where there is none."""
    folder = Path(os.environ.get("DINODOMAIN_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()
    return folder if folder.is_dir() else None


def photographs(count: int, side: int, folder: Path | None) -> Images:
    """RGB uint8 [count, 3, side, side]: mosaics of aerial photographs of 128 pixels (UC Merced), each used once."""
    if folder is None:
        return Images(pixels=smooth(count, 3, (side, side), 0, 255, torch.uint8), low=0.0, high=255.0, kind="synthetic")
    from PIL import Image

    per_side = side // 128
    paths = sorted((folder / "ucmerced_rgb128/dev").rglob("*.jpg"))[: count * per_side**2]
    tiles = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    grid = tiles.reshape(count, per_side, per_side, 128, 128, 3).transpose(0, 5, 1, 3, 2, 4)
    pixels = torch.from_numpy(grid.reshape(count, 3, side, side).copy())
    return Images(pixels=pixels, low=0.0, high=255.0, kind="aerial photographs")


def scenes(count: int, side: int, folder: Path | None) -> Images:
    """Twelve bands uint16 of Sentinel-2 surface reflectance x 10000, [count, 12, side, side]; 0..1 reflectance is the unit range."""
    if folder is None:
        return Images(pixels=smooth(count, 12, (side, side), 0, 10000, torch.uint16), low=0.0, high=10000.0, kind="synthetic")
    from readers import content

    pixels = torch.from_numpy(np.stack(list(content.scenes(count, side))))
    return Images(pixels=pixels, low=0.0, high=10000.0, kind="Sentinel-2")


def volumes(count: int, side: int, folder: Path | None) -> Images:
    """CT int16 in HU, [count, 1, side, side, side], count at most 6; -1024..3071 HU is the unit range."""
    shape = (side, side, side)
    if folder is None:
        return Images(pixels=smooth(count, 1, shape, -1024, 3071, torch.int16), low=-1024.0, high=3071.0, kind="synthetic")
    from readers import content

    is_ct = [place for place, name in enumerate(content.VOLUMES) if "/ct_" in name]
    found = [
        volume for place, volume in enumerate(content.volumes(2 * len(content.VOLUMES), shape)) if place % len(content.VOLUMES) in is_ct
    ]
    return Images(pixels=torch.from_numpy(np.stack(found[:count]))[:, None], low=-1024.0, high=3071.0, kind="CT")


def radar(folder: Path | None) -> Images:
    """Two polarisations of Sentinel-1 backscatter float32 in dB, [4, 2, 256, 256]; -50..10 dB is the unit range."""
    if folder is None:
        return Images(pixels=smooth(4, 2, (256, 256), -50, 10, torch.float32), low=-50.0, high=10.0, kind="synthetic")
    import rasterio

    with rasterio.open(next((folder / "sat_multispectral/dev/sen1floods11_spain").rglob("*S1*.tif"))) as dataset:
        scene = torch.from_numpy(dataset.read())
    quarters = [scene[:, y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
    return Images(pixels=torch.stack(quarters), low=-50.0, high=10.0, kind="Sentinel-1")


def smooth(count: int, channels: int, extent: tuple[int, ...], low: float, high: float, dtype: torch.dtype) -> torch.Tensor:
    """Images with structure at several scales: noise alone would flatter or punish filters."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, channels, *extent)
    mode = "bilinear" if len(extent) == 2 else "trilinear"
    for side in (4, 16, 64):
        grid = torch.rand(count, channels, *(side,) * len(extent), generator=generator)
        total += torch.nn.functional.interpolate(grid, extent, mode=mode) / 3
    return (low + total * (high - low)).to(dtype)
