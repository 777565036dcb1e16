"""What training and embedding iterate over: endless batches in a keyed order, or every tile once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from dinodomain.errors import UserError
from dinodomain.lineage import digest
from dinodomain.loader.feed import Feed
from dinodomain.loader.job import Job, Part
from dinodomain.loader.order import Order
from dinodomain.loader.plan import LoaderPlan
from dinodomain.loader.tiles import Bucket, Holdout, Tiles, find_tiles
from dinodomain.store import Store
from dinodomain.types import Batch

State = dict[str, int | str]


class Loader:
    """Endless training batches of one rank; held-out tiles are never among them.

    The whole state is ``{seed, step, global_batch, index_digest}``. The global order depends on the seed, the tile list, the weights and
    the global batch; ranks and threads only share it out: position p of the stream goes to rank p mod world.

    Args:
        store: An opened store.
        plan: Batch, tiles, threads.
        seed: Key of the order.
        rank: This process, 0 <= rank < world.
        world: Number of processes.
        device: Where batches go.
        rows: Rows of the index to draw from, for example those with a label; None for all.

    Raises:
        UserError: The batch does not divide among the ranks, a weight names no bucket, or no tile is eligible.
    """

    def __init__(
        self,
        store: Store,
        plan: LoaderPlan,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device = "cpu",
        rows: Iterable[int] | None = None,
    ) -> None:
        assert 0 <= rank < world, f"rank {rank} of {world}"
        if plan.batch % world:
            raise UserError("loader.batch", f"{plan.batch} tiles do not divide among {world} ranks", allowed=f"multiples of {world}")
        tiles = find_tiles(store, plan)
        self.tiles: Tiles = tiles if rows is None else tiles.of_rows(rows)
        self._plan, self._seed, self._rank, self._world = plan, seed, rank, world
        weights = _weights(plan, self.tiles.buckets)
        self.order = Order(seed, [len(members) for members in self.tiles.members], weights, plan.batch)
        self.index_digest = digest([store.digest, self.tiles.digest, weights])
        self._feed = Feed(store, self.tiles.buckets, plan, batch=plan.batch // world, dates=1, device=device)
        self._step = 0

    @property
    def num_tiles(self) -> int:
        """Number of eligible tiles."""
        return len(self.tiles)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets that tiles fall into, sorted by name."""
        return self.tiles.buckets

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current step on, without end; a new iterator goes on where the last one stopped."""
        for batch in self._feed.run(self._jobs(self._step)):
            # Before the batch is handed out: a state saved after it was used must not draw it again.
            self._step += 1
            yield batch

    def _jobs(self, step: int) -> Iterator[Job]:
        while True:
            draw = self.order.at(step)
            mine = draw.positions % self._world == self._rank
            tiles = self.tiles.members[draw.bucket][draw.tiles[mine]]
            yield _job(self.tiles, draw.bucket, step, tiles, draw.epochs[mine], draw.draws[mine], np.flatnonzero(mine))
            step += 1

    def state_dict(self) -> State:
        """Where the order stands; the same on every rank."""
        return {"seed": self._seed, "step": self._step, "global_batch": self._plan.batch, "index_digest": self.index_digest}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Goes on from a saved state; takes effect with the next ``iter``.

        Raises:
            UserError: Seed, global batch, store, tile list or weights are not those of the saved state.
        """
        mine, remedy = self.state_dict(), "resume with the plan and store of the run, or start a new run with resume=never"
        if state["index_digest"] != mine["index_digest"]:
            raise UserError("loader state", "the store, its eligible tiles or loader.weights changed since it was saved", remedy=remedy)
        for name in ("seed", "global_batch"):
            if state[name] != mine[name]:
                raise UserError("loader state", f"was saved with {name} {state[name]}, now {mine[name]}", remedy=remedy)
        self._step = int(state["step"])

    def drawn_units(self, step: int) -> Mapping[str, int]:
        """How many samples of each unit all ranks drew in steps 0..step-1, from the order alone; units never drawn are left out."""
        found: dict[str, int] = {}
        for members, counts in zip(self.tiles.members, self.order.counts(step)):
            names, inverse = np.unique(self.tiles.units[members].astype(str), return_inverse=True)
            totals = np.bincount(inverse, weights=counts, minlength=len(names)).astype(np.int64)
            for name, total in zip(names.tolist(), totals.tolist()):
                found[name] = found.get(name, 0) + total
        return {name: found[name] for name in sorted(found) if found[name]}


def _job(
    tiles: Tiles, bucket: int, number: int, chosen: np.ndarray, epochs: np.ndarray, draws: np.ndarray, slots: np.ndarray
) -> Job:
    """A job of one part."""
    part = Part(key=(bucket, number), rows=tiles.rows[chosen][:, None], starts=tiles.starts[chosen][:, None])
    return Job(bucket=bucket, parts=(part,), tile_ids=tiles.tile_ids[chosen], epochs=epochs, draws=draws, slots=slots)


def _weights(plan: LoaderPlan, buckets: Sequence[Bucket]) -> list[float]:
    names = [bucket.name for bucket in buckets]
    for name in plan.weights:
        if name not in names:
            raise UserError(f"loader.weights.{name}", "is no bucket of this store", allowed=", ".join(names))
    return [float(plan.weights.get(name, 1.0)) for name in names]


def sweep(
    store: Store,
    plan: LoaderPlan,
    *,
    rows: Iterable[int] | None = None,
    holdout: Holdout = "include",
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """Every eligible tile once, bucket by bucket and in index order; the last batch of a bucket may be smaller.

    Args:
        store: An opened store.
        plan: Batch, tiles, threads; ``weights`` has no meaning here.
        rows: Rows of the index to keep, or None for all.
        holdout: Whether held-out tiles are taken, see ``find_tiles``.
        device: Where batches go.

    Raises:
        UserError: No tile is eligible.
    """
    tiles = find_tiles(store, plan, holdout=holdout)
    wanted = None if rows is None else np.isin(tiles.rows, np.fromiter(rows, dtype=np.int64))
    feed = Feed(store, tiles.buckets, plan, batch=plan.batch, dates=1, device=device)
    yield from feed.run(_sweep_jobs(tiles, wanted, plan.batch))


def _sweep_jobs(tiles: Tiles, wanted: np.ndarray | None, batch: int) -> Iterator[Job]:
    for bucket, members in enumerate(tiles.members):
        kept = members if wanted is None else members[wanted[members]]
        for first in range(0, len(kept), batch):
            part = kept[first : first + batch]
            zeros = np.zeros(len(part), dtype=np.int64)
            yield _job(tiles, bucket, first, part, zeros, zeros.copy(), np.arange(len(part), dtype=np.int64))
