"""``dinodomain views``: the crops that a run would see, drawn before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from dinodomain.domain import Domain, find_domain
from dinodomain.errors import UserError
from dinodomain.lineage import Json
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.show.views import draw_views
from dinodomain.store import Store, open_store
from dinodomain.types import Batch
from dinodomain.views import ViewsPlan, draw_batch, render, resolve_normalisation


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsFigurePlan:
    """A figure of source tiles, their crops and the crops' boxes.

    Attributes:
        store: The store, or a YAML file that lists several with their shares.
        out: Folder for the figure.
        domain: Domain whose policy is drawn; None takes the store's.
        num: Number of tiles.
        seed: Decides tiles and views, as in a run of the same seed.
        patch: Side of a patch in pixels, for the share of valid pixels under each token.
        bands: One or three channels to show; empty takes the first.
        loader: Which tiles; its batch is not used.
        views: Crops.
    """

    store: str
    out: str
    domain: str | None = None
    num: int = 4
    seed: int = 0
    patch: int = 8
    bands: tuple[str, ...] = ()
    loader: LoaderPlan = field(default_factory=LoaderPlan)
    views: ViewsPlan = field(default_factory=ViewsPlan)

    def __post_init__(self) -> None:
        if not 1 <= self.num <= 32:
            raise UserError("num", f"is {self.num}", allowed="1 to 32 tiles")
        if len(self.bands) not in (0, 1, 3):
            raise UserError("bands", f"names {len(self.bands)} channels", allowed="one, or three for red, green and blue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Files that a verb wrote, with a line about them.

    Attributes:
        files: Paths.
        note: One line.
    """

    files: tuple[str, ...]
    note: str

    def text(self) -> str:
        """What the command prints."""
        return "\n".join([self.note, *self.files])

    def as_json(self) -> Mapping[str, Json]:
        """Plain values for ``--json``."""
        return {"files": list(self.files), "note": self.note}


def draw_figure(plan: ViewsFigurePlan, *, domain: Domain | None = None) -> Written:
    """Draws the first tiles of a run's order with the views that run would see.

    Raises:
        UserError: The store cannot be used, or a band is not in it.
    """
    store = open_store(plan.store, mixed=True)
    domain = domain or find_domain(plan.domain or store.domain)
    # Several draws of a read come in later steps of a run; here each tile is shown once.
    with closing(iter(Loader(store, replace(plan.loader, batch=plan.num, draws=1, prefetch=1), seed=plan.seed))) as batches:
        batch = next(batches)
    unknown = [name for name in plan.bands if name not in batch.channels]
    if unknown:
        raise UserError("bands", f"the store has no {', '.join(unknown)}", allowed=", ".join(batch.channels))
    policy = domain.view_policy()
    normalisation = resolve_normalisation(plan.views.normalise, policy, domain.channels, batch.channels, store.stats, plan.views.windows)
    params = draw_batch(policy, plan.views, batch, seed=plan.seed, normalisation=normalisation)
    views = render(batch, params, to_float=domain.to_float, normalisation=normalisation, patch_size=plan.patch)
    Path(plan.out).mkdir(parents=True, exist_ok=True)
    title = f"{domain.name}: source tiles and their views (seed {plan.seed})"
    path = draw_views(
        batch, views, Path(plan.out) / "views.png", to_float=domain.to_float, normalisation=normalisation,
        bands=plan.bands, samples=plan.num, title=title, labels=_acquired(store, batch),
    )  # fmt: skip
    crops = ", ".join(f"{group.num_views} {group.name} of {'x'.join(map(str, group.pixels.shape[2:]))}" for group in views.groups)
    tiles = f"{plan.num} tiles" if batch.pixels.shape[1] == 1 else f"{plan.num} places at {batch.pixels.shape[1]} dates"
    return Written(files=(str(path),), note=f"{tiles}, {crops}; normalised by {normalisation.mode}")


def _acquired(store: Store, batch: Batch) -> list[str]:
    """Date of every image, where the store knows it."""
    return [str(value or "")[:10] for value in store.column("acquired")[batch.rows.cpu().numpy()]]
