"""The transformer block, on packed tokens.

Tokens of all samples and crop sizes lie in one [T, E] tensor; ``Layout`` says how it splits: one (samples, tokens per sample)
pair per crop size. Norms, linears and MLP see the whole pack (few large products), attention sees one crop size at a time
(Oquab 2024, section 5, packs by an attention mask instead; splitting needs no mask and runs on every device).

Stochastic depth runs a branch on a random subset of the samples of each crop size and rescales it (Oquab 2024, section 5), which
saves the arithmetic of the dropped ones. How many stay is rounded up or down by a toss, so that few samples are dropped as often as
many; one toss serves a whole pass, so that compiled blocks meet few shapes. Toss and subset come from torch's default generators, of the
host and of the tokens' device: whoever wants repeatable steps seeds them before each step. Both are drawn before the block runs, so that
a block holds no chance: recomputed (activation checkpointing) or compiled, it computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinodomain.model.plan import ModelPlan
from dinodomain.model.rope import Turn, turned

Layout = tuple[tuple[int, int], ...]
"""One (samples, tokens per sample) pair for each crop size in a pack."""

Turns = tuple[Turn, ...] | None
"""One for each crop size in a pack; None where positions are not rotary."""


class Subset(NamedTuple):
    """Samples that a branch runs on.

    Attributes:
        rows: [T'] their rows in the pack.
        gain: [T', 1] samples / samples kept, so that the expectation is that of the whole.
        layout: Of the kept rows.
        samples: For each crop size the kept samples.
    """

    rows: Tensor
    gain: Tensor
    layout: Layout
    samples: tuple[Tensor, ...]


_SHORT = 512
"""Tokens up to which bfloat16 attention on a CPU writes its weights out."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[N, H, T, D] softmax attention.

    The fused kernel of CPUs takes up to seven times as long in bfloat16 as three plain products where sequences are short (experiments.md).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= _SHORT:
        weights = ((query * query.shape[3] ** -0.5) @ key.transpose(2, 3)).softmax(dim=3)
        plain: Tensor = weights @ value
        return plain
    return functional.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Multi-head self-attention with a bias on query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout, turns: Turns = None) -> Tensor:
        """[T, E] to [T, E]; samples attend within themselves only."""
        parts = self.qkv(x).split([count * length for count, length in layout])
        each = turns if turns is not None else (None,) * len(layout)
        mixed = [self._attend(part, *size, turn) for part, size, turn in zip(parts, layout, each)]
        result: Tensor = self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
        return result

    def _attend(self, qkv: Tensor, count: int, length: int, turn: Turn | None) -> Tensor:
        """[count * length, 3E] of one crop size to [count * length, E]."""
        if turn is None:
            query, key, value = qkv.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            both, last = qkv.view(count, length, 3 * self.heads, -1).split_with_sizes([2 * self.heads, self.heads], dim=2)
            query, key = turned(both, turn).transpose(1, 2).chunk(2, dim=1)
            value = last.transpose(1, 2)
        return attend(query, key, value).transpose(1, 2).reshape(count * length, -1)


class Mlp(nn.Module):
    """Two linears around an exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] to [T, E]."""
        result: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return result


class SwiGLU(nn.Module):
    """A gated MLP, ``fc2(silu(gate) * value)`` (Shazeer 2020); ``fc1`` holds gate and value, as in DINOv2 and timm's packed form."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] to [T, E]."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        result: Tensor = self.fc2(functional.silu(gate) * value)
        return result


class LayerScale(nn.Module):
    """A learned gain per channel (Touvron 2021)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] to [T, E]."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and MLP with LayerScale and stochastic depth."""

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__()
        dim, hidden = plan.dim, int(plan.dim * plan.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=plan.norm_eps)
        self.attn = Attention(dim, plan.heads)
        self.ls1: nn.Module = LayerScale(dim, plan.layer_scale) if plan.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=plan.norm_eps)
        self.mlp: nn.Module = SwiGLU(dim, hidden) if plan.mlp == "swiglu" else Mlp(dim, hidden)
        self.ls2: nn.Module = LayerScale(dim, plan.layer_scale) if plan.layer_scale else nn.Identity()
        self.drop_path = plan.drop_path

    def draw(self, layout: Layout, device: torch.device, toss: float = 0.5) -> tuple[Subset, Subset] | None:
        """The samples that attention and MLP run on, see ``draw_subset``; None for all of them."""
        if not self.training or self.drop_path == 0.0:
            return None
        return draw_subset(layout, self.drop_path, device, toss), draw_subset(layout, self.drop_path, device, toss)

    def forward(self, x: Tensor, layout: Layout, turns: Turns = None, subsets: tuple[Subset, Subset] | None = None) -> Tensor:
        """[T, E] to [T, E].

        Args:
            x: Packed tokens.
            layout: How they split.
            turns: Rotary positions.
            subsets: From ``draw``.
        """
        first, second = subsets if subsets is not None else (None, None)
        x = _residual(x, layout, turns, first, self._attention_branch)
        return _residual(x, layout, None, second, self._mlp_branch)

    def _attention_branch(self, x: Tensor, layout: Layout, turns: Turns) -> Tensor:
        result: Tensor = self.ls1(self.attn(self.norm1(x), layout, turns))
        return result

    def _mlp_branch(self, x: Tensor, layout: Layout, turns: Turns) -> Tensor:
        result: Tensor = self.ls2(self.mlp(self.norm2(x)))
        return result


def _residual(x: Tensor, layout: Layout, turns: Turns, kept: Subset | None, branch: Callable[[Tensor, Layout, Turns], Tensor]) -> Tensor:
    if kept is None:
        return x + branch(x, layout, turns)
    own = None if turns is None else tuple(turn.of_samples(samples) for turn, samples in zip(turns, kept.samples))
    return x.index_add(0, kept.rows, (branch(x.index_select(0, kept.rows), kept.layout, own) * kept.gain).to(x.dtype))


def draw_toss() -> float:
    """Uniform in [0, 1) from the host's default generator; no device is waited for."""
    toss: float = torch.rand(1).tolist()[0]
    return toss


def draw_subset(layout: Layout, drop: float, device: torch.device, toss: float = 0.5) -> Subset:
    """Draws the samples that a branch runs on.

    Args:
        layout: Samples and tokens per sample of each crop size.
        drop: Share of samples to leave out; at least one sample of each size stays, so that every weight has a gradient.
        device: Whose default generator draws.
        toss: Rounds the number that stays: uniform in [0, 1) its mean is exact, 0.5 rounds to the nearest.
    """
    rows, gains, kept, chosen, first = [], [], [], [], 0
    for count, length in layout:
        keep = min(count, max(1, math.floor(count * (1.0 - drop) + toss)))
        samples = torch.randperm(count, device=device)[:keep]
        rows.append((first + samples[:, None] * length + torch.arange(length, device=device)).flatten())
        gains.append(torch.full((keep * length, 1), count / keep, device=device))
        kept.append((keep, length))
        chosen.append(samples)
        first += count * length
    return Subset(rows=torch.cat(rows), gain=torch.cat(gains), layout=tuple(kept), samples=tuple(chosen))
