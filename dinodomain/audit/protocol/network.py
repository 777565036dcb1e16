"""A small network as an attacker: one hidden layer, several starts trained side by side, each kept at its best on watched units.

It sees the leading principal components of the rows, whitened: a leak in weak directions is the linear probes' to find. m rows, E width,
k components, S starts, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN, STARTS, COMPONENTS = 256, 3, 128
EPOCHS, PATIENCE, BATCH = 40, 4, 256
RATE, DECAY = 2e-3, 1e-2


def fit_network(
    x: np.ndarray, y: np.ndarray, watched: np.ndarray, watched_y: np.ndarray, *, classes: int | None, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Trains on some units and stops by others.

    Args:
        x: [m, E] standardised rows.
        y: [m] class indices, or numbers between 0 and 1.
        watched: [w, E] rows of other units.
        watched_y: [w].
        classes: C, or None for numbers.
        seed: Decides starts and batches.

    Returns:
        A function from [q, E] to mean class shares [q, C] or means [q].
    """
    generator = torch.Generator().manual_seed(seed)
    basis = _basis(x)
    target, watched_target = (_target(values, classes) for values in (y, watched_y))
    rows, others = _tensor(x @ basis), _tensor(watched @ basis)
    weights = _start(rows.shape[1], classes or 1, generator)
    best = _train(weights, rows, target, others, watched_target, generator)

    def predict(asked: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out = _forward(best, _tensor(asked @ basis))
        found: np.ndarray = (out.softmax(dim=2) if classes else out[:, :, 0]).mean(dim=0).double().numpy()
        return found

    return predict


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _target(values: np.ndarray, classes: int | None) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.int64)) if classes else _tensor(values)


def _basis(x: np.ndarray) -> np.ndarray:
    """[E, k] whitened leading components, found without labels."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    k = min(COMPONENTS, max(1, int((values > values[-1] * 1e-8).sum())))
    result: np.ndarray = vectors[:, -k:] / np.sqrt(np.maximum(values[-k:], 1e-12))
    return result


def _start(width: int, outputs: int, generator: torch.Generator) -> list[Tensor]:
    shapes = ((STARTS, width, HIDDEN), (STARTS, 1, HIDDEN), (STARTS, HIDDEN, outputs), (STARTS, 1, outputs))
    scales = ((2 / width) ** 0.5, 0.0, (1 / HIDDEN) ** 0.5, 0.0)
    return [(scale * torch.randn(shape, generator=generator)).requires_grad_() for shape, scale in zip(shapes, scales)]


def _forward(weights: list[Tensor], rows: Tensor) -> Tensor:
    """[S, q, C or 1]."""
    into, shift, out, offset = weights
    hidden = F.relu(torch.baddbmm(shift, rows.expand(len(into), *rows.shape), into))
    return torch.baddbmm(offset, hidden, out)


def _losses(found: Tensor, target: Tensor) -> Tensor:
    """[S] mean loss of each start."""
    if target.dtype == torch.int64:
        starts, count, classes = found.shape
        each = F.cross_entropy(found.reshape(-1, classes), target.repeat(starts), reduction="none")
        return each.reshape(starts, count).mean(dim=1)
    return (found[:, :, 0] - target).square().mean(dim=1)


def _train(
    weights: list[Tensor], rows: Tensor, target: Tensor, others: Tensor, watched: Tensor, generator: torch.Generator
) -> list[Tensor]:  # fmt: skip
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)
    best = [part.detach().clone() for part in weights]
    least, waited = torch.full((STARTS,), float("inf")), 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows), BATCH):
            batch = order[start : start + BATCH]
            optimiser.zero_grad()
            torch.autograd.backward(_losses(_forward(weights, rows[batch]), target[batch]).sum())
            optimiser.step()
        with torch.no_grad():
            now = _losses(_forward(weights, others), watched)
            better = now < least
            least = torch.where(better, now, least)
            for kept, part in zip(best, weights):
                kept[better] = part[better]
        waited = 0 if bool(better.any()) else waited + 1
        if waited == PATIENCE:
            break
    return best
