"""Walks the audited tiles as the encoder is shown them. Alters nothing and keeps nothing. N rows, B tiles, C channels, D axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinodomain.audit.protocol.data import AuditSet
from dinodomain.embed import encode_frozen, narrowed, network_input, pool_features, sides_for, token_weights
from dinodomain.loader import LoaderPlan, Tiles, find_tiles, sweep_tiles
from dinodomain.model import Backbone
from dinodomain.probes.frozen import Frozen
from dinodomain.types import Acquisition, Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Tiles as the encoder takes them.

    Attributes:
        rows: [B] their rows in the audited set.
        pixels: [B, C, *size] in the network's range.
        valid: [B, *size] bool.
        about: Pixel size and channels.
        batch: As stored, for what needs the original values or the bits of ``valid``.
    """

    rows: np.ndarray
    pixels: Tensor
    valid: Tensor
    about: Acquisition
    batch: Batch

    def joined(self, others: Sequence[Shown]) -> Shown:
        """With further tiles of the same shape behind; ``batch`` stays that of the first."""
        parts = [self, *others]
        told = {name: [getattr(part.about, name) for part in parts] for name in ("spacing", "kept")}
        about = {name: None if values[0] is None else torch.cat(values) for name, values in told.items()}
        return replace(
            self, rows=np.concatenate([part.rows for part in parts]), pixels=torch.cat([part.pixels for part in parts]),
            valid=torch.cat([part.valid for part in parts]), about=Acquisition(channels=self.about.channels, **about),
        )  # fmt: skip

    def take(self, rows: slice) -> Shown:
        """A stretch of the tiles; ``batch`` stays whole."""
        return self.pick(torch.arange(len(self.rows))[rows])

    def pick(self, rows: Tensor) -> Shown:
        """Some of the tiles by position; ``batch`` stays whole."""
        spacing, kept = (None if value is None else value[rows.to(value.device)] for value in (self.about.spacing, self.about.kept))
        about = Acquisition(spacing=spacing, kept=kept, channels=self.about.channels)
        where = rows.to(self.pixels.device)
        return replace(self, rows=self.rows[rows.numpy()], pixels=self.pixels[where], valid=self.valid[where], about=about)


@dataclass(frozen=True, kw_only=True)
class Observer:
    """The encoder, its store, and which tile stands for which audited row: all tiles of the store in the order of their table.

    Attributes:
        frozen: Encoder, untrained twin, store and domain.
        batch: Tiles at a time.
        size: Longest side that the encoder is shown, pixels; None takes its pretraining size.
        most: Images that are shown again, altered or in parts, at most.
        most_tokens: Images whose patch tokens are looked at, at most.
        kept: Step to file of the backbones that the encoder's run kept on its way.
    """

    frozen: Frozen
    batch: int = 64
    size: int | None = None
    most: int = 2000
    most_tokens: int = 5000
    kept: Mapping[int, Path] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        """The audited encoder."""
        return self.frozen.backbone

    @cached_property
    def tiles(self) -> Tiles:
        """The audited rows, in their order."""
        found = find_tiles(self.frozen.store, LoaderPlan(), holdout="include")
        return found.only(np.lexsort((*found.starts.T[::-1], found.rows)))

    def some(self, data: AuditSet, seed: int, most: int | None = None) -> np.ndarray:
        """[n] rows of the whole audited set, sorted: those of ``data``, or ``most`` of them drawn at random."""
        shuffled = np.random.default_rng([seed, 0x5047]).permutation(data.whole_rows)
        drawn: np.ndarray = np.sort(shuffled[: self.most if most is None else most])
        return drawn

    def show(self, numbers: np.ndarray) -> Iterator[Shown]:
        """The tiles of some rows, each once, in batches of one shape: use ``Shown.rows`` to put results in their place.

        Args:
            numbers: [n] rows of the whole audited set.
        """
        wanted = self.tiles.only(np.asarray(numbers, np.int64))
        place = {(row, *start): int(number) for row, start, number in zip(wanted.rows.tolist(), wanted.starts.tolist(), numbers)}
        with closing(sweep_tiles(self.frozen.store, wanted, LoaderPlan(batch=self.batch))) as batches:
            for batch in batches:
                found = zip(batch.rows.tolist(), batch.origins.tolist())
                yield self._shown(batch, np.array([place[row, *start] for row, start in found]))

    def placed(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, Shown]]:
        """The same with [B] where each tile stands in ``numbers``."""
        place = {int(number): at for at, number in enumerate(numbers)}
        for shown in self.show(numbers):
            yield np.array([place[int(number)] for number in shown.rows]), shown

    def _shown(self, batch: Batch, rows: np.ndarray) -> Shown:
        backbone = self.backbone
        sides = sides_for(tuple(batch.pixels.shape[3:]), self.size or max(backbone.image_size), backbone.patch)
        found = network_input(backbone, batch, self.frozen.domain, sides)
        return Shown(rows=rows, pixels=found.pixels, valid=found.valid, about=found.about, batch=batch)

    def levels(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Mean and deviation [C, 1, ...] that take the network's range to the unit range: ``pixels * deviation + mean``."""
        numbers, shape = narrowed(self.backbone, shown.batch.channels), (-1, *(1,) * (shown.pixels.ndim - 2))
        mean, deviation = (torch.tensor(values).reshape(shape).to(shown.pixels) for values in (numbers.mean, numbers.std))
        return mean, deviation

    def features(self, shown: Shown, pixels: Tensor | None = None, *, backbone: Backbone | None = None) -> np.ndarray:
        """[B, E] pooled features, as those of the audited set were made.

        Args:
            shown: The tiles.
            pixels: Altered pixels instead of theirs, of the same shape.
            backbone: Another encoder of the same input.
        """
        encoder = backbone or self.backbone
        found = encode_frozen(encoder, shown.pixels if pixels is None else pixels, shown.about)
        pooled = pool_features(found, token_weights(shown.valid, encoder.patch).to(encoder.device), encoder.pooling)
        result: np.ndarray = pooled.cpu().numpy()
        return result

    @torch.no_grad()
    def tokens(self, shown: Shown, *, keep: Tensor | None = None, layer: int | None = None) -> Tensor:
        """[B, P, E] patch tokens, raw ones of a layer where one is named; fewer where some were dropped.

        Args:
            shown: The tiles.
            keep: [B, P] bool, the tokens that the encoder sees at all.
            layer: Block whose output is taken; None is the final, normed one.
        """
        device = self.backbone.device
        told = None if keep is None else keep.to(device)
        found = self.backbone.encode(shown.pixels.to(device), keep=told, layer=layer, about=shown.about)
        return found.patches.float().cpu()

    def with_size(self, size: int) -> Observer:
        """The same with images of another longest side."""
        return replace(self, size=size)
