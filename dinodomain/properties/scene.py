"""The tiles that are looked at, and what each kind of features makes of them: pretrained, untrained, raw pixels.

Shapes: C channels, D axes, P patches of one image, E width, H heads.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dinodomain.checkpoint import load_backbone
from dinodomain.checkpoint.baseline import baseline_of
from dinodomain.domain import Domain
from dinodomain.embed import encode_frozen, fit_channels, narrowed, network_input, pool_features, sides_for, token_weights, told_channels
from dinodomain.embed.tiles import SMALL, area_mean
from dinodomain.errors import UserError
from dinodomain.loader import Tiles, find_tiles, sweep_tiles
from dinodomain.loader.permute import key_of
from dinodomain.model import Backbone
from dinodomain.model.attention import class_attention
from dinodomain.model.patch_embed import grid_of, unfold
from dinodomain.policy import without_augmentation
from dinodomain.probes.frozen import Frozen, load_frozen, own_units
from dinodomain.probes.run import WARM_START
from dinodomain.properties.plan import PropertiesPlan
from dinodomain.properties.report import REFERENCE, UNTRAINED, NotPossible
from dinodomain.show.captions import chosen_bands, length_unit, scale_of
from dinodomain.show.sides import Frame, frame_of
from dinodomain.show.sight import Sight, display_range
from dinodomain.types import Acquisition, Batch
from dinodomain.views import ViewsPlan, correspond, draw_batch, render
from dinodomain.views.correspond import USABLE
from dinodomain.views.normalise import stored_channels

PIXELS = "pixels"
_KEY = 0x70726F7073
"""Keeps this choice of tiles apart from a run's order, which has the same seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One image by one kind of features.

    Attributes:
        tokens: [P, E] float32 patch tokens; of raw pixels the patches themselves.
        pooled: [E'] float32 the whole image; of raw pixels it is shrunk.
        attention: [H, P] of the class token in the last block; None for raw pixels.
    """

    tokens: np.ndarray
    pooled: np.ndarray
    attention: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image as the network gets it, with what is needed to show it.

    Attributes:
        pixels: [C, *size] float32 in the network's range.
        known: [*size] bool.
        grid: Patches along each axis.
        valid: [P] bool, patches of which half is real.
        about: What the network is told.
        frame: How its axes lie.
        row: Of the index.
        start: First pixel in the source; ``extent`` of the tile in pixels of the source.
        unit: Patient, place ...
        label: For captions.
        seen: By kind of features.
    """

    pixels: np.ndarray
    known: np.ndarray
    grid: tuple[int, ...]
    valid: np.ndarray
    about: Acquisition
    frame: Frame
    row: int
    start: tuple[int, ...]
    extent: tuple[int, ...]
    unit: str
    label: str
    seen: Mapping[str, Seen]

    @property
    def spacing(self) -> list[float]:
        """[D] of its pixels."""
        assert self.about.spacing is not None
        found: list[float] = self.about.spacing[0].tolist()
        return found


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images of one place whose geometry is known.

    Attributes:
        first: One crop.
        second: Another.
        index: [P] patch of the second nearest to each of the first, -1 where there is none.
        position: [P, D] true place of each patch of the first in the token grid of the second.
    """

    first: Picture
    second: Picture
    index: np.ndarray
    position: np.ndarray


class Scene:
    """Checkpoint, store and tiles of a plan; what is asked for is made once.

    Attributes:
        plan: As given.
        frozen: Networks and store.
        encoders: Kind of features to network; None for raw pixels.
        size: Longest side of maps, pixels.
        all_tiles: Eligible tiles outside the audit holdout.
        order: [n] positions among them: the most central tile of every unit, then the next of every unit; tiles of the commonest list
            of channels only, because raw pixels of others cannot be compared.
    """

    def __init__(self, plan: PropertiesPlan, domain: Domain | None = None) -> None:
        self.plan = plan
        self.frozen: Frozen = load_frozen(plan.checkpoint, plan.store, device=plan.device, key="device", seed=plan.seed, domain=domain)
        self.store, self.domain, self.backbone = self.frozen.store, self.frozen.domain, self.frozen.backbone
        self.encoders: dict[str, Backbone | None] = {REFERENCE: self.backbone, UNTRAINED: self.frozen.untrained, PIXELS: None}
        start = baseline_of(plan.checkpoint)
        if start is not None:
            began = load_backbone(start).to(self.backbone.device)
            self.encoders[WARM_START] = fit_channels(began, self.store, self.domain)
        self.size = _size(plan.size, self.backbone)
        self.all_tiles = find_tiles(self.store, plan.loader)
        self.units = own_units(self.all_tiles.units, self.all_tiles.rows)
        order = _central_first(self.all_tiles, self.units, self._shapes(), plan.seed)
        self.order = order[_of_commonest_channels(self.all_tiles)[order]]

    @property
    def networks(self) -> dict[str, Backbone]:
        """Kinds of features that a network makes."""
        return {kind: network for kind, network in self.encoders.items() if network is not None}

    @property
    def own_light(self) -> bool:
        """Whether every picture is stretched by itself: light and clouds differ between maps; in bodies equal greys mean equal tissue."""
        return length_unit(self.domain.view_policy().axes) != "mm"

    @cached_property
    def tiles(self) -> list[Picture]:
        """Whole tiles for maps."""
        return [self.picture(batch) for batch in self.read(self.order[: self.plan.num])]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Two crops of each of the tiles."""
        return [pair for pair in map(self.crops, self.read(self.order[: self.plan.crops])) if (pair.index >= 0).any()]

    @cached_property
    def sight(self) -> Sight:
        """How pictures are shown, one range for all."""
        norm, declared = self.backbone.normalisation, self.domain.channels
        sources = dict(zip(norm.channels, stored_channels(norm)))
        waves = {name: _wavelength(declared.get(source)) for name, source in sources.items()}
        names = self.plan.bands or chosen_bands(norm.channels, waves)
        unknown = [name for name in names if name not in norm.channels]
        if unknown:
            raise UserError("bands", f"the network has no channel {', '.join(unknown)}", allowed=", ".join(norm.channels))
        bands = tuple(norm.channels.index(name) for name in names)
        low, high = (math.nan, math.nan) if norm.mode == "source" else (norm.low[bands[0]], norm.high[bands[0]])
        scale = scale_of(declared.get(sources[names[0]]), low, high)
        sight = Sight(to_float=self.domain.to_float, normalisation=norm, bands=bands, frames=(self.tiles[0].frame,), scale=scale, low=low)
        return replace(sight, display=display_range([self.unit(tile, sight) for tile in self.tiles]))

    def unit(self, picture: Picture, sight: Sight | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The bands that are shown, in the unit range, and which pixels are known; a band that a tile lacks is replaced by its first."""
        sight = sight or self.sight
        norm, own = self.backbone.normalisation, picture.about.channels or self.backbone.channels
        places = [own.index(norm.channels[band]) if norm.channels[band] in own else 0 for band in sight.bands]
        all_places = [norm.channels.index(own[place]) for place in places]
        shape = (-1, *(1,) * (picture.pixels.ndim - 1))
        mean, std = (np.asarray(column)[all_places].reshape(shape) for column in (norm.mean, norm.std))
        return picture.pixels[places] * std + mean, picture.known

    def read(self, positions: np.ndarray) -> Iterator[Batch]:
        """Tiles one by one, in index order."""
        tiles = self.all_tiles.only(np.sort(positions))
        with closing(sweep_tiles(self.store, tiles, replace(self.plan.loader, batch=1), device=self.backbone.device)) as batches:
            yield from batches

    def picture(self, batch: Batch) -> Picture:
        """A whole tile of a batch of one."""
        extent = tuple(batch.pixels.shape[3:])
        shown = network_input(self.backbone, batch, self.domain, sides_for(extent, self.size, self.backbone.patch))
        valid = token_weights(shown.valid, self.backbone.patch)[0] >= USABLE
        return self._made(batch, shown.pixels, shown.valid, valid, shown.about)

    def part(self, picture: Picture, begin: tuple[int, ...], count: tuple[int, ...]) -> Picture:
        """A box of ``count`` patches of a picture from patch ``begin`` on, seen by itself: positions count from its own corner."""
        cuts = [slice(first * side, (first + own) * side) for first, own, side in zip(begin, count, self.backbone.patch, strict=True)]
        pixels, known = picture.pixels[(slice(None), *cuts)].copy(), picture.known[tuple(cuts)].copy()
        shown, real = torch.from_numpy(pixels)[None].to(self.backbone.device), torch.from_numpy(known)[None].to(self.backbone.device)
        seen = {kind: self._seen(network, shown, real, picture.about) for kind, network in self.encoders.items()}
        ratio = [side / own for side, own in zip(picture.extent, picture.grid)]
        return replace(
            picture, pixels=pixels, known=known, grid=count, seen=seen,
            valid=(token_weights(real, self.backbone.patch)[0] >= USABLE).cpu().numpy(),
            start=tuple(int(first + place * one) for first, place, one in zip(picture.start, begin, ratio)),
            extent=tuple(round(own * one) for own, one in zip(count, ratio)),
        )  # fmt: skip

    def crops(self, batch: Batch) -> Pair:
        """Two crops of the tile of a batch of one, without augmentation."""
        numbers, patch = narrowed(self.backbone, batch.channels), self.backbone.patch
        plan = ViewsPlan(global_size=self.size, local_size=self.size, num_global=2, num_local=0)
        policy = without_augmentation(self.domain.view_policy())
        params = draw_batch(policy, plan, batch, seed=self.plan.seed, normalisation=numbers)
        group = render(batch, params, to_float=self.domain.to_float, normalisation=numbers, patch_size=patch).groups[0]
        where = correspond(group, torch.tensor([0]), group, torch.tensor([1]), patch)
        made = []
        for row in range(2):
            about = Acquisition(
                spacing=group.spacing[row : row + 1], kept=group.kept[row : row + 1], channels=told_channels(self.backbone, numbers)
            )
            # What is unknown is exactly 0 in all channels; where every patch is whole, a 0 is a value like others.
            whole = float(group.valid[row].min()) >= 1
            known = torch.ones_like(group.pixels[row, 0], dtype=torch.bool) if whole else ~(group.pixels[row] == 0).all(dim=0)
            made.append(self._made(batch, group.pixels[row : row + 1], known[None], group.valid[row] >= USABLE, about))
        return Pair(first=made[0], second=made[1], index=where.index[0].cpu().numpy(), position=where.position[0].cpu().numpy())

    def pooled(self, batch: Batch, kind: str) -> np.ndarray:
        """[B, E'] whole tiles at the pretraining size."""
        extent = tuple(batch.pixels.shape[3:])
        shown = network_input(self.backbone, batch, self.domain, sides_for(extent, max(self.backbone.image_size), self.backbone.patch))
        network = self.encoders[kind]
        if network is None:
            return area_mean(shown.pixels, shown.valid, SMALL[self.store.ndim]).flatten(1).cpu().numpy()
        features = encode_frozen(network, shown.pixels, shown.about)
        return pool_features(features, token_weights(shown.valid, network.patch), network.pooling).cpu().numpy()

    def _made(self, batch: Batch, pixels: Tensor, known: Tensor, valid: Tensor, about: Acquisition) -> Picture:
        row = int(batch.rows[0])
        grid = tuple(side // one for side, one in zip(pixels.shape[2:], self.backbone.patch))
        start = tuple(batch.origins[0].tolist())
        acquired = str(self.store.column("acquired")[row] or "")[:10]
        return Picture(
            pixels=pixels[0].cpu().numpy(), known=known[0].cpu().numpy(), grid=grid, valid=valid.cpu().numpy(), about=about,
            frame=self.frame(row), row=row, start=start, extent=tuple(batch.pixels.shape[3:]), unit=self.unit_of(row, start),
            label=acquired, seen={kind: self._seen(network, pixels, known, about) for kind, network in self.encoders.items()},
        )  # fmt: skip

    def _seen(self, network: Backbone | None, pixels: Tensor, known: Tensor, about: Acquisition) -> Seen:
        if network is None:
            patch = self.backbone.patch
            tokens = unfold(pixels, grid_of(tuple(pixels.shape[2:]), patch), patch)[0].flatten(1)
            pooled = area_mean(pixels, known, SMALL[pixels.ndim - 2]).flatten()
            return Seen(tokens=tokens.float().cpu().numpy(), pooled=pooled.cpu().numpy(), attention=None)
        features = encode_frozen(network, pixels, about)
        attention = class_attention(network.vit, pixels.to(network.device), about)[0].flatten(1)
        pooled = pool_features(features, token_weights(known, network.patch), network.pooling)[0]
        return Seen(
            tokens=features.patches[0].float().cpu().numpy(), pooled=pooled.cpu().numpy(), attention=attention.float().cpu().numpy()
        )

    def frame(self, row: int) -> Frame:
        """How the axes of a source lie."""
        facts = self.store.row(row)
        return frame_of(facts, json.loads(facts["fields"] or "{}"), self.domain.view_policy().axes)

    def unit_of(self, row: int, start: tuple[int, ...]) -> str:
        """Unit of a tile; that of its source where the tile is not listed."""
        found = self._unit_of.get((row, *start))
        return found if found is not None else f"source {row}"

    @cached_property
    def _unit_of(self) -> dict[tuple[int, ...], str]:
        tiles = self.all_tiles
        return {(row, *start): str(unit) for row, start, unit in zip(tiles.rows.tolist(), tiles.starts.tolist(), self.units)}

    def _shapes(self) -> np.ndarray:
        """[sources, D] extents in pixels."""
        return np.array([shape[1:] for shape in self.store.column("shape")], np.int64)


def _size(asked: int | None, backbone: Backbone) -> int:
    size = 2 * max(backbone.image_size) if asked is None else asked
    step = math.lcm(*backbone.patch)
    if size % step:
        raise UserError("size", f"is {size}", allowed=f"a multiple of the patch {step}, for example {max(step, round(size / step) * step)}")
    return size


def _wavelength(channel: object) -> float:
    found = getattr(channel, "wavelength_nm", None)
    return math.nan if found is None else float(found)


def _central_first(tiles: Tiles, units: np.ndarray, shapes: np.ndarray, seed: int) -> np.ndarray:
    """[n] positions: of every unit the tile that is most in the middle of its source, then the next of every unit, by a keyed hash."""
    extent = tiles.extents[tiles.bucket]
    size = shapes[tiles.rows]
    away = np.abs(tiles.starts + np.minimum(extent, size) / 2 - size / 2) / np.maximum(size, 1)
    # Whole images begin at their slot; rounding makes tiles equally central that differ by less than a tenth.
    away = np.round(away.max(axis=1), 1)
    keys = key_of(seed, tiles.tile_ids ^ _KEY)
    _, unit = np.unique(units, return_inverse=True)
    by_unit = np.lexsort((keys, away, unit))
    first = np.searchsorted(unit[by_unit], np.arange(unit.max() + 1))
    turn = np.empty(len(tiles), np.int64)
    turn[by_unit] = np.arange(len(tiles)) - first[unit[by_unit]]
    order: np.ndarray = np.lexsort((keys, turn))
    return order


def _of_commonest_channels(tiles: Tiles) -> np.ndarray:
    """[n] bool."""
    lists = [frozenset(bucket.channels) for bucket in tiles.buckets]
    counts = Counter(dict.fromkeys(lists, 0))
    for names, members in zip(lists, tiles.members):
        counts[names] += len(members)
    best = counts.most_common(1)[0][0]
    found: np.ndarray = np.array([names == best for names in lists])[tiles.bucket]
    return found


def need_units(units: set[str], least: int = 2) -> None:
    """Refuses comparisons across units where there is one.

    Raises:
        NotPossible: Fewer than ``least``.
    """
    if len(units) < least:
        raise NotPossible(f"all tiles belong to {len(units)} unit (patient, place), and neighbours of other units are wanted")
