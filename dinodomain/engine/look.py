"""``dinodomain views``: the crops that a run would see, every operation by itself, and the policy in numbers, before it starts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dinodomain.domain import Domain, find_domain
from dinodomain.engine.build import check_domain, facts_of
from dinodomain.engine.plan import EnginePlan, PretrainPlan
from dinodomain.engine.resolve import ENLARGE, resolve
from dinodomain.errors import UserError
from dinodomain.lineage import Json, to_json, write_bytes
from dinodomain.loader import Loader, LoaderPlan, Tiles, find_tiles
from dinodomain.model import ModelPlan
from dinodomain.policy import ViewPolicy
from dinodomain.show.captions import Setting, chosen_bands, has_light, length_unit, number, scale_of
from dinodomain.show.operations import draw_operations
from dinodomain.show.policy import policy_table, policy_values, policy_yaml
from dinodomain.show.sides import Frame, frame_of
from dinodomain.show.sight import Sight, display_range, unit_tiles
from dinodomain.show.views import draw_views
from dinodomain.store import Store, open_store
from dinodomain.types import Batch, Normalisation
from dinodomain.views import ViewsPlan, draw_batch, effective_policy, render, resolve_normalisation
from dinodomain.views.alone import joined, one_sample
from dinodomain.views.draw import blur_scale
from dinodomain.views.measure import Drawn, measure
from dinodomain.views.normalise import stored_channels, windows_told

_TILES = 16
"""Tiles that crops are measured on, at least."""

_SHARES = (5.0, 50.0, 95.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsFigurePlan:
    """Figures of source tiles, their crops and each operation, and the policy in numbers.

    Attributes:
        store: The store, or a YAML file that lists several with their shares.
        out: Folder for views.png, operations.png and policy.yaml.
        domain: Domain whose policy is drawn; None takes the store's.
        num: Number of tiles shown.
        seed: Decides tiles and views, as in a run of the same seed.
        patch: Side of a patch in pixels, one or one per axis, for the tokens of a crop; a run's model.patch.
        bands: One or three channels of the network to show; empty takes red, green and blue by wavelength, VV of radar, else the first.
        display: Values shown black and white in every picture, in the channel's unit (HU, dB, reflectance), or as shares of each source's
            range where that is what the network sees; empty takes the lower end of the network's range and the 99.5 percentile of the
            tiles shown.
        draws: Samples that crops are measured on.
        loader: Which tiles; its batch is not used.
        views: Crops, and changes to the policy.
        given: Dotted keys that somebody stated, see ``PretrainPlan.given``.
    """

    store: str
    out: str
    domain: str | None = None
    num: int = 4
    seed: int = 0
    patch: int | tuple[int, ...] = 8
    bands: tuple[str, ...] = ()
    display: tuple[float, float] | None = None
    draws: int = 200
    loader: LoaderPlan = field(default_factory=LoaderPlan)
    views: ViewsPlan = field(default_factory=ViewsPlan)
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False, metadata={"recorded": False})

    def __post_init__(self) -> None:
        if not 1 <= self.num <= 32:
            raise UserError("num", f"is {self.num}", allowed="1 to 32 tiles")
        if self.draws < 1:
            raise UserError("draws", f"is {self.draws}", allowed="1 or more")
        if len(self.bands) not in (0, 1, 3):
            raise UserError("bands", f"names {len(self.bands)} channels", allowed="one, or three for red, green and blue")
        if self.display is not None and not self.display[0] < self.display[1]:
            raise UserError("display", f"is {self.display}", allowed="two numbers, the smaller first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Files that a verb wrote, with what is to be said about them.

    Attributes:
        files: Paths.
        note: One line.
        lines: Tables for a terminal.
        policy: The policy in force, as ``views.policy`` takes it.
        facts: Measured, plain values.
    """

    files: tuple[str, ...]
    note: str
    lines: tuple[str, ...] = ()
    policy: Mapping[str, Json] = field(default_factory=dict)
    facts: Mapping[str, Json] = field(default_factory=dict)

    def text(self) -> str:
        """What the command prints."""
        return "\n".join([self.note, *self.lines, *self.files])

    def as_json(self) -> Mapping[str, Json]:
        """Plain values for ``--json``."""
        return {"files": list(self.files), "note": self.note, "policy": dict(self.policy), "facts": to_json(self.facts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """What is looked at.

    Attributes:
        domain: Its policy and units.
        views: Settled as for pretraining.
        policy: In force.
        normalisation: As a run would have it.
        batches: Tiles, the first ``num`` of which are shown.
        frames: How the images of the first batch lie.
        labels: Dates of these images.
        reasons: What was settled about views.
    """

    domain: Domain
    views: ViewsPlan
    policy: ViewPolicy
    normalisation: Normalisation
    batches: tuple[Batch, ...]
    frames: tuple[Frame, ...]
    labels: tuple[str, ...]
    reasons: tuple[str, ...]


def draw_figure(plan: ViewsFigurePlan, *, domain: Domain | None = None) -> Written:
    """Draws early tiles of a run's order, of as many sources as it can, with the views that run would see, and tells the policy.

    Raises:
        UserError: The store cannot be used, a band is not in it, or pretraining would refuse these views.
    """
    scene = _scene(plan, domain)
    sight = _sight(plan, scene)
    batch, norm = scene.batches[0], scene.normalisation
    params = draw_batch(scene.domain.view_policy(), scene.views, batch, seed=plan.seed, normalisation=norm)
    rendered = partial(render, to_float=scene.domain.to_float, normalisation=norm, patch_size=plan.patch)
    views, setting = rendered(batch, params), _setting(scene, sight)
    drawn = measure(
        scene.domain.view_policy(), scene.views, scene.batches, seed=plan.seed, draws=plan.draws, normalisation=norm, patch=plan.patch
    )
    out, name, shown = Path(plan.out), scene.domain.name, _most_contrast(batch)
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw_views(
        batch, views, params, out / "views.png", sight=sight, blur=setting.blur, labels=scene.labels,
        title=f"{name}: source tiles and their views (seed {plan.seed})",
    )  # fmt: skip
    dates = batch.pixels.shape[1]
    own = replace(sight, frames=sight.frames[shown * dates : (shown + 1) * dates])
    apart = draw_operations(
        one_sample(batch, shown), scene.policy, scene.views, out / "operations.png", render=rendered, seed=plan.seed, sight=own,
        setting=replace(setting, spacing=batch.info.spacing[shown * dates].tolist()),
        title=f"{name}: each operation of the policy by itself, on tile {shown} (seed {plan.seed})",
    )  # fmt: skip
    write_bytes(out / "policy.yaml", policy_yaml(scene.policy, domain=name, crops=_crop_keys(plan.views, scene.views)).encode())
    scales = {"global": scene.views.global_scale, "local": scene.views.local_scale}
    crops = ", ".join(f"{group.num_views} {group.name} of {'x'.join(map(str, group.pixels.shape[2:]))}" for group in views.groups)
    tiles = f"{plan.num} tiles" if batch.pixels.shape[1] == 1 else f"{plan.num} places at {batch.pixels.shape[1]} dates"
    return Written(
        files=(str(pictures), str(apart), str(out / "policy.yaml")),
        note=f"{tiles}, {crops}; normalised by {norm.mode}",
        lines=("", *scene.reasons, "", *policy_table(scene.policy, setting, scales), "", *_fact_lines(drawn, scene, plan), ""),
        policy=policy_values(scene.policy),
        facts={item.name: _facts(item, scene.policy.axes) for item in drawn} | {"unit": setting.length},
    )


def _crop_keys(asked: ViewsPlan, settled: ViewsPlan) -> dict[str, Any]:
    """Sizes, and whatever else of ``views`` but the policy was asked for."""
    sizes = {name: getattr(settled, name) for name in ("global_size", "local_size", "num_global", "num_local")}
    others = [item.name for item in fields(asked) if item.name not in (*sizes, "policy")]
    return sizes | {name: getattr(asked, name) for name in others if getattr(asked, name) != getattr(ViewsPlan(), name)}


def _scene(plan: ViewsFigurePlan, domain: Domain | None) -> _Scene:
    store = open_store(plan.store, mixed=True)
    domain = domain or find_domain(plan.domain or store.domain)
    check_domain(store, domain)
    tiles = find_tiles(store, plan.loader)
    loader = replace(plan.loader, batch=LoaderPlan().batch)
    run = PretrainPlan(
        domain=domain.name, store=plan.store, out=plan.out, seed=plan.seed, loader=loader,
        views=plan.views, model=ModelPlan(patch=plan.patch), engine=EnginePlan(device="cpu", threads=1), given=plan.given,
    )  # fmt: skip
    facts = facts_of(store, tiles, run, domain)
    if not run.is_given("views.global_size") and run.views.global_size > ENLARGE * facts.smallest_side:
        run = replace(run, recipe="auto")  # as pretraining does by itself, where nobody chose a size
    resolved = resolve(run, facts)
    views = resolved.plan.views
    policy = effective_policy(domain.view_policy(), views)
    norm = resolve_normalisation(views.normalise, policy, domain.channels, facts.channels, store.stats, views.windows)
    unknown = [name for name in plan.bands if name not in norm.channels]
    if unknown:
        raise UserError("bands", f"the network has no channel {', '.join(unknown)}", allowed=", ".join(norm.channels))
    found = list(_batches(plan, store, tiles))
    batches = (_of_several_sources(found, plan.num), *found[1:])
    rows = batches[0].rows.cpu().tolist()
    frames = tuple(_frame(store, row, policy.axes) for row in rows)
    labels = tuple(str(value or "")[:10] for value in store.column("acquired")[np.asarray(rows)])
    reasons = tuple(reason for reason in resolved.reasons if reason.startswith("views."))
    reasons += (windows_told(norm),) if views.windows else ()
    return _Scene(domain=domain, views=views, policy=policy, normalisation=norm, batches=batches, frames=frames, labels=labels,
                  reasons=reasons)  # fmt: skip


def _batches(plan: ViewsFigurePlan, store: Store, tiles: Tiles) -> Iterator[Batch]:
    """The tiles that are shown, and as many more as measuring needs."""
    # Several draws of a read come in later steps of a run; here each tile is shown once.
    rounds = math.ceil(_TILES / plan.num)
    loader = Loader(store, replace(plan.loader, batch=plan.num, draws=1, prefetch=1), seed=plan.seed, tiles=tiles)
    with closing(iter(loader)) as batches:
        for _ in range(rounds):
            batch = next(batches)
            valid = None if batch.valid is None else batch.valid.clone()
            yield replace(batch, pixels=batch.pixels.clone(), valid=valid)  # a ring of few slots is not kept waiting


def _of_several_sources(batches: Sequence[Batch], num: int) -> Batch:
    """Tiles of the first kind in a run's order, one of each source before a second of any: neighbours in one scan show little."""
    kind = (batches[0].pixels.shape[1:], batches[0].pixels.dtype, batches[0].channels, batches[0].valid is None)
    alike = [batch for batch in batches if (batch.pixels.shape[1:], batch.pixels.dtype, batch.channels, batch.valid is None) == kind]
    every = [one_sample(batch, place) for batch in alike for place in range(len(batch.tile_ids))]
    seen: Counter[int] = Counter()
    turns = []
    for sample in every:
        source = int(sample.rows[0])
        turns.append(seen[source])
        seen[source] += 1
    order = sorted(range(len(every)), key=lambda place: turns[place])  # stable: a run's order within each turn
    return joined([every[place] for place in order[:num]])


def _most_contrast(batch: Batch) -> int:
    """The sample that shows most, for what is drawn of one tile only."""
    return int(batch.pixels.flatten(1).float().nan_to_num().std(dim=1).argmax())


def _frame(store: Store, row: int, axes: tuple[str, ...]) -> Frame:
    facts = store.row(row)
    return frame_of(facts, json.loads(facts["fields"] or "{}"), axes)


def _sight(plan: ViewsFigurePlan, scene: _Scene) -> Sight:
    norm, declared = scene.normalisation, scene.domain.channels
    sources = dict(zip(norm.channels, stored_channels(norm)))
    nm = {name: _wavelength(scene, source) for name, source in sources.items()}
    names = plan.bands or ((norm.channels[0],) if scene.views.windows else chosen_bands(norm.channels, nm))
    bands = tuple(norm.channels.index(name) for name in names)
    channel = declared.get(sources[names[0]])
    low, high = (math.nan, math.nan) if norm.mode == "source" else (norm.low[bands[0]], norm.high[bands[0]])
    sight = Sight(to_float=scene.domain.to_float, normalisation=norm, bands=bands, frames=scene.frames,
                  scale=scale_of(channel, low, high), low=low)  # fmt: skip
    if plan.display is None:
        return replace(sight, display=display_range(unit_tiles(sight, scene.batches[0])))
    black, white = (value if norm.mode == "source" else (value - low) / (high - low) for value in plan.display)
    return replace(sight, display=(black, white))


def _wavelength(scene: _Scene, source: str) -> float:
    declared = scene.domain.channels
    stated = declared[source].wavelength_nm if source in declared else None
    return scene.policy.wavelengths_nm.get(source, math.nan if stated is None else stated)


def _setting(scene: _Scene, sight: Sight) -> Setting:
    spacing = np.concatenate([batch.info.spacing.cpu().numpy() for batch in scene.batches])
    axes = scene.policy.axes
    return Setting(scale=sight.scale, policy=scene.policy, spacing=np.median(spacing, axis=0).tolist(),
                   blur=blur_scale(scene.views, len(axes)), length=length_unit(axes),
                   light=has_light(scene.policy, sight.sources))  # fmt: skip


def _quantiles(values: Tensor) -> list[float]:
    """5 %, median and 95 %."""
    found: list[float] = np.percentile(values.numpy(), _SHARES).tolist()
    return found


def _facts(drawn: Drawn, axes: Sequence[str]) -> dict[str, Json]:
    """Quantiles of what was drawn; lengths in pixels of the tile where their unit is unknown."""
    known = bool(np.isfinite(drawn.extents.numpy()).all())
    return {
        "crops": len(drawn.share),
        "extent": {axis: _quantiles(drawn.extents[:, place]) if known else None for place, axis in enumerate(axes)},
        "extent_pixels": {axis: _quantiles(drawn.pixels[:, place]) for place, axis in enumerate(axes)},
        "pixel_size": {axis: _quantiles(drawn.pixel_size[:, place]) if known else None for place, axis in enumerate(axes)},
        "share_of_tile": _quantiles(drawn.share),
        "share_known": _quantiles(drawn.known),
        "tokens": drawn.tokens,
        "tokens_known": [share * drawn.tokens for share in _quantiles(drawn.tokens_known)],
    }


def _fact_lines(drawn: Sequence[Drawn], scene: _Scene, plan: ViewsFigurePlan) -> list[str]:
    axes, unit = scene.policy.axes, length_unit(scene.policy.axes)
    rows: list[tuple[str, list[str]]] = []
    for place, axis in enumerate(axes):
        found = [_facts(item, axes) for item in drawn]
        if all(item["extent"][axis] for item in found):
            rows.append((f"{axis}, {unit}", [_three(item["extent"][axis]) for item in found]))
            rows.append((f"{axis}, {unit} per crop pixel", [_three(item["pixel_size"][axis]) for item in found]))
        else:
            rows.append((f"{axis}, tile pixels (spacing unknown)", [_three(_quantiles(item.pixels[:, place])) for item in drawn]))
    rows.append(("share of the tile, %", [_three([100 * v for v in _quantiles(item.share)]) for item in drawn]))
    rows.append(("known pixels, %", [_three([100 * v for v in _quantiles(item.known)]) for item in drawn]))
    tokens = [f"{_three([item.tokens * v for v in _quantiles(item.tokens_known)])} of {item.tokens}" for item in drawn]
    patch = str(plan.patch) if isinstance(plan.patch, int) else "x".join(map(str, plan.patch))
    rows.append((f"known tokens of {patch} pixels", tokens))
    tiles = sum(len(batch.tile_ids) for batch in scene.batches)
    head = f"crops of {tiles * math.ceil(plan.draws / tiles)} draws of {tiles} tiles: 5 %, median, 95 %"
    first, width = max(len(head), *(len(name) for name, _ in rows)), max(len(text) for _, cells in rows for text in cells)
    names = [f"{item.name} ({len(item.share)})" for item in drawn]
    return ["  ".join([f"{name:<{first}}", *(f"{cell:<{width}}" for cell in cells)]).rstrip() for name, cells in [(head, names), *rows]]


def _three(values: Sequence[float]) -> str:
    low, middle, high = map(number, values)
    return low if low == high else f"{low}, {middle}, {high}"
