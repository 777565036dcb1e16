"""Block masks for iBOT in 2-D and 3-D (BEiT, Bao 2022, algorithm 1), drawn for all crops at once.

A crop is masked or not, and how many of its patches are hidden, follow from (seed, step, slot in the global batch, view) alone:
the same on 1 rank with 8 samples and on 2 ranks with 4. Counts are exact and known on the host, so nothing waits for the device.
Both decisions come from one low-discrepancy sequence over the crops, so that any batch gets nearly the same number of tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NUM_BLOCKS = 8
"""Candidate blocks of a crop; what they leave open is filled with single patches, as DINOv3 completes its masks."""
MIN_BLOCK = 4
"""Least patches of a block (BEiT: 16 of 196; DINOv2: 4)."""
MAX_ASPECT = 1 / 0.3
"""Largest ratio of a block's sides (BEiT)."""

_STEPS = (0.7548776662466927, 0.5698402909980532)
"""The R2 sequence: powers of 1 / plastic number, the two-dimensional counterpart of the golden ratio (Roberts 2018)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """Which patches the student does not see.

    Attributes:
        mask: [N, P] bool.
        index: [M] int64 into the N * P patches, sorted by crop.
        crop: [M] int64, crop of each masked patch.
        weight: [M] float32: 1 / masked valid patches of the crop, 0 for invalid patches.
    """

    mask: Tensor
    index: Tensor
    crop: Tensor
    weight: Tensor


def draw_masks(
    slots: Tensor,
    num_views: int,
    grid: tuple[int, ...],
    *,
    seed: int,
    step: int,
    probability: float,
    ratio: tuple[float, float],
    valid: Tensor,
) -> Masks:
    """Draws the masks of a batch.

    Args:
        slots: [B] positions in the global batch. Keep them on the host: on an accelerator reading them waits for it.
        num_views: V; row v * B + b is view v of sample b.
        grid: Patches per axis.
        seed: Of the run.
        step: Of the run.
        probability: Share of crops that are masked.
        ratio: Least and largest share of hidden patches in a masked crop.
        valid: [N, P] share of real pixels; patches under one half leave the loss. The result lies on its device.
    """
    crops = (slots.cpu().numpy()[None, :] * num_views + np.arange(num_views)[:, None]).reshape(-1)
    counts = mask_counts(crops, math.prod(grid), seed=seed, step=step, probability=probability, ratio=ratio)
    rows = np.flatnonzero(counts)
    mask = np.zeros((len(crops), math.prod(grid)), dtype=bool)
    mask[rows] = block_masks(crops[rows], counts[rows], grid, seed=seed, step=step)
    index = np.flatnonzero(mask)
    return _upload(mask, index, index // mask.shape[1], valid)


def mask_counts(crops: np.ndarray, patches: int, *, seed: int, step: int, probability: float, ratio: tuple[float, float]) -> np.ndarray:
    """[N] masked patches of each crop; 0 where a crop is not masked.

    Args:
        crops: [N] slot * views + view.
        patches: P.
        seed: Of the run.
        step: Of the run.
        probability: Share of masked crops.
        ratio: Least and largest share of masked patches.
    """
    start = uniform(key(seed, step), np.arange(2, dtype=np.uint64))
    chosen, share = ((start[axis] + crops * _STEPS[axis]) % 1.0 for axis in (0, 1))
    counts = np.clip((patches * (ratio[0] + (ratio[1] - ratio[0]) * share)).astype(np.int64), 1, patches)
    return np.where(chosen < probability, counts, 0)


def block_masks(crops: np.ndarray, counts: np.ndarray, grid: tuple[int, ...], *, seed: int, step: int) -> np.ndarray:
    """Masks of exactly ``counts`` patches, made of overlapping blocks.

    Patches are ranked by the first block that covers them and, within a block, by nearness to its corner; the best ``counts`` are
    hidden. So the last block is trimmed to a smaller one, and exact counts cost no loop.

    Args:
        crops: [n] crop numbers, which key the draw.
        counts: [n] patches to hide.
        grid: Patches per axis.
        seed: Of the run.
        step: Of the run.

    Returns:
        [n, P] bool.
    """
    ndim, patches = len(grid), math.prod(grid)
    split = NUM_BLOCKS * (1 + 2 * ndim)
    # 2**20 counters for each crop: more than any grid needs. The first two counters of the step belong to mask_counts.
    counters = np.uint64(2) + (crops.astype(np.uint64)[:, None] << np.uint64(20)) + np.arange(split + patches, dtype=np.uint64)
    draws = uniform(key(seed, step), counters)
    blocks = draws[:, :split].reshape(len(crops), NUM_BLOCKS, 1 + 2 * ndim)
    sides = _block_sides(blocks[..., 0], blocks[..., 1 : 1 + ndim], counts, grid)
    first = np.floor(blocks[..., 1 + ndim :] * (np.array(grid) - sides + 1))
    rank = _rank(first, sides, grid)
    rank = np.where(np.isfinite(rank), rank, NUM_BLOCKS + draws[:, split:])
    order = np.argsort(rank, axis=1, kind="stable")
    result = np.zeros((len(crops), patches), dtype=bool)
    np.put_along_axis(result, order, np.arange(patches) < counts[:, None], axis=1)
    return result


def _block_sides(volume: np.ndarray, aspect: np.ndarray, counts: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """[n, J, D] whole sides: volume uniform between the least block and the crop's count, log-uniform stretch of each axis."""
    least = np.minimum(MIN_BLOCK, counts)[:, None]
    target = least + volume * (counts[:, None] - least)
    # Stretches are made to cancel, so that they change the shape of a block and not its volume.
    stretch = (2.0 * aspect - 1.0) * (math.log(MAX_ASPECT) / 2)
    stretch = stretch - stretch.mean(axis=-1, keepdims=True)
    sides = np.rint(target[..., None] ** (1 / len(grid)) * np.exp(stretch))
    result: np.ndarray = np.clip(sides, 1, np.array(grid))
    return result


def _rank(first: np.ndarray, sides: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """[n, P] number of the first covering block plus distance from its outer corner (0..1); infinite where no block covers."""
    places = np.stack(np.meshgrid(*(np.arange(side) for side in grid), indexing="ij"), axis=-1).reshape(-1, len(grid))
    rank = np.full((len(first), len(places)), np.inf)
    for block in reversed(range(NUM_BLOCKS)):
        side, start = sides[:, block, None, :], first[:, block, None, :]
        into = (places - start + 0.5) / side
        covered = ((into > 0) & (into < 1)).all(axis=-1)
        # Blocks are trimmed from the middle of the grid outwards: placed at random they cover its middle more often than its rim.
        away = np.where(2 * start + side <= np.array(grid), into, 1 - into).max(axis=-1)
        rank = np.where(covered, block + away, rank)
    return rank


def key(seed: int, step: int) -> np.ndarray:
    """A 64-bit key of a run and a step, [1] uint64."""
    return _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(step % 2**64))


def uniform(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from keys and counters (broadcast), by SplitMix64 (Steele 2014)."""
    numbers: np.ndarray = (_mix(keys + counters * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)) * 2.0**-53
    return numbers


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def _upload(mask: np.ndarray, index: np.ndarray, crop: np.ndarray, valid: Tensor) -> Masks:
    device = valid.device
    on_device = [_to_device(torch.from_numpy(array), device) for array in (mask, index, crop)]
    usable = (valid.reshape(-1).index_select(0, on_device[1]) >= 0.5).float()
    totals = usable.new_zeros(len(mask)).index_add_(0, on_device[2], usable)
    weight = usable / totals.clamp_min(1.0).index_select(0, on_device[2])
    return Masks(mask=on_device[0], index=on_device[1], crop=on_device[2], weight=weight)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # Only page-locked memory is copied without waiting.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
