"""The transformer block, on packed tokens.

Tokens of all samples and crop sizes lie in one [T, E] tensor; ``Layout`` says how it splits: one (samples, tokens per sample)
pair per crop size. Norms, linears and MLP see the whole pack (few large products), attention sees one crop size at a time
(Oquab 2024, section 5, packs by an attention mask instead; splitting needs no mask and runs on every device).

Stochastic depth runs a branch on a random subset of the samples of each crop size and rescales it (Oquab 2024, section 5), which
saves the arithmetic of the dropped ones. The subset comes from torch's default generator of the tokens' device: whoever wants
repeatable steps seeds that generator before each step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Layout = tuple[tuple[int, int], ...]
"""One (samples, tokens per sample) pair for each crop size in a pack."""


class Attention(nn.Module):
    """Multi-head self-attention with a bias on query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[T, E] to [T, E]; samples attend within themselves only."""
        qkv = self.qkv(x)
        mixed = [self._attend(part, *size) for part, size in zip(qkv.split([count * length for count, length in layout]), layout)]
        result: Tensor = self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
        return result

    def _attend(self, qkv: Tensor, count: int, length: int) -> Tensor:
        """[count * length, 3E] of one crop size to [count * length, E]."""
        query, key, value = qkv.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count * length, -1)


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

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ls1: nn.Module = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2: nn.Module = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = drop_path

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[T, E] to [T, E]."""
        x = self._residual(x, layout, self._attention_branch)
        return self._residual(x, layout, self._mlp_branch)

    def _attention_branch(self, x: Tensor, layout: Layout) -> Tensor:
        result: Tensor = self.ls1(self.attn(self.norm1(x), layout))
        return result

    def _mlp_branch(self, x: Tensor, layout: Layout) -> Tensor:
        result: Tensor = self.ls2(self.mlp(self.norm2(x)))
        return result

    def _residual(self, x: Tensor, layout: Layout, branch: Callable[[Tensor, Layout], Tensor]) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return x + branch(x, layout)
        rows, gain, kept = draw_subset(layout, self.drop_path, x.device)
        return x.index_add(0, rows, (branch(x.index_select(0, rows), kept) * gain).to(x.dtype))


def draw_subset(layout: Layout, drop: float, device: torch.device) -> tuple[Tensor, Tensor, Layout]:
    """Draws the samples that a branch runs on.

    Args:
        layout: Samples and tokens per sample of each crop size.
        drop: Share of samples to leave out; at least one sample of each size stays.
        device: Whose default generator draws.

    Returns:
        Token rows to keep [T'], their gain [T', 1] (samples / samples kept, so that the expectation is that of the whole), and
        the layout of the kept rows.
    """
    rows, gains, kept, first = [], [], [], 0
    for count, length in layout:
        keep = max(1, round(count * (1.0 - drop)))
        samples = torch.randperm(count, device=device)[:keep]
        rows.append((first + samples[:, None] * length + torch.arange(length, device=device)).flatten())
        gains.append(torch.full((keep * length, 1), count / keep, device=device))
        kept.append((keep, length))
        first += count * length
    return torch.cat(rows), torch.cat(gains), tuple(kept)
