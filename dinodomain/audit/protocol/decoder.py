"""A small network that makes pixels of patch tokens: what whoever holds the tokens could train on images of their own.

One token gives one patch: ridge regression, and a hidden layer for what it leaves. Decides no verdict. m tokens, E width, Q pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

PENALTY = 1e-4  # per token
HIDDEN, STEPS, BATCH, RATE = 512, 400, 1024, 1e-3
_WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2

Decoder = Callable[[np.ndarray], np.ndarray]
"""[..., E] tokens to [..., Q] pixels."""


def fit_decoder(tokens: np.ndarray, patches: np.ndarray, *, seed: int, steps: int = STEPS) -> Decoder:
    """Trains on tokens and the pixels of their patches, by squared error.

    Args:
        tokens: [m, E].
        patches: [m, Q].
        seed: Decides first weights and batches.
        steps: Of 1024 tokens.
    """
    generator = np.random.default_rng([seed, 0xDEC0])
    scaler = StandardScaler().fit(tokens)
    x = scaler.transform(tokens).astype(np.float32)
    linear = Ridge(alpha=PENALTY * len(x)).fit(x, patches)
    left = (patches - linear.predict(x)).astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        into, out = nn.Linear(x.shape[1], HIDDEN), nn.Linear(HIDDEN, left.shape[1])
    nn.init.zeros_(out.weight)
    network = nn.Sequential(into, nn.GELU(), out)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = generator.integers(0, len(x), BATCH)
        optimiser.zero_grad()
        torch.autograd.backward(F.mse_loss(network(torch.from_numpy(x[rows])), torch.from_numpy(left[rows])))
        optimiser.step()
        schedule.step()

    def decode(asked: np.ndarray) -> np.ndarray:
        rows = scaler.transform(asked).astype(np.float32)
        with torch.no_grad():
            result: np.ndarray = linear.predict(rows) + network(torch.from_numpy(rows)).numpy()
        return result

    return decode


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n] structural similarity of pictures [n, H, W] between 0 and 1, mean over windows of 7 x 7. Source: Wang et al. 2004."""
    a, b = (torch.from_numpy(np.asarray(values, np.float64))[:, None] for values in (one, other))
    norm = _WINDOW**2 / (_WINDOW**2 - 1)  # covariances of a sample

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, _WINDOW, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = (norm * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b)))
    found = ((2 * mean_a * mean_b + _C1) * (2 * both + _C2)) / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))
    result: np.ndarray = found.mean(dim=(1, 2, 3)).numpy()
    return result
