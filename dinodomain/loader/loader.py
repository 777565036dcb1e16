"""What training and embedding iterate over: endless batches in a keyed order, or every tile once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from dinodomain.errors import Problems, UserError
from dinodomain.lineage import digest
from dinodomain.loader.boxes import Boxes
from dinodomain.loader.feed import Feed
from dinodomain.loader.job import Job, Part
from dinodomain.loader.order import Draw, Order
from dinodomain.loader.plan import LoaderPlan
from dinodomain.loader.tiles import Bucket, Holdout, Tiles, find_tiles
from dinodomain.store import Store
from dinodomain.types import Batch

State = dict[str, int | str]


class Loader:
    """Endless training batches of one rank; held-out tiles are never among them.

    The whole state is ``{seed, step, global_batch, index_digest}``. The global order depends on the seed, the tile list, the weights, the
    shares of mixed stores, the draws of a read and the global batch; ranks, processes and threads only share it out: position p of the
    stream goes to rank p mod world.

    Args:
        store: An opened store, or several mixed.
        plan: Batch, tiles, readers.
        seed: Key of the order.
        rank: This process, 0 <= rank < world.
        world: Number of processes.
        device: Where batches go.
        rows: Rows of the index to draw from, for example those with a label; None for all.
        tiles: What ``find_tiles(store, plan)`` gave, where it is known already.

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
        tiles: Tiles | None = None,
    ) -> None:
        assert 0 <= rank < world, f"rank {rank} of {world}"
        _check_batch(plan, world)
        found = find_tiles(store, plan) if tiles is None else tiles
        self.tiles: Tiles = found if rows is None else found.of_rows(rows)
        self._plan, self._seed, self._rank, self._world, self._stores = plan, seed, rank, world, store.member[self.tiles.rows]
        weights = _weights(plan, self.tiles.buckets)
        sizes = np.stack([np.bincount(self._stores[members], minlength=len(store.shares)) for members in self.tiles.members])
        self.order = Order(seed, sizes, weights, plan.batch, draws=plan.draws, spread=plan.spread, shares=store.shares)
        self.index_digest = order_digest(store.digest, self.tiles.digest, weights, plan)
        self._boxes = Boxes(store, self.tiles, plan, seed)
        self._feed = Feed(store, self.tiles.buckets, plan, batch=plan.batch // world, dates=self._boxes.dates, device=device)
        self._step = 0

    @property
    def num_tiles(self) -> int:
        """Number of eligible tiles."""
        return len(self.tiles)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets that tiles fall into, sorted by name."""
        return self.tiles.buckets

    @property
    def ring(self) -> tuple[int, int]:
        """Memory that batches lie in while they are read and used: number of parts (batches, or groups of them) and bytes of each."""
        return self._feed.ring_size()

    def __iter__(self) -> Generator[Batch, None, None]:
        """Batches from the current step on, without end; a new iterator goes on where the last one stopped.

        Closing it stops the threads and processes that read; whoever does not run it to an error closes it.
        """
        with closing(self._feed.run(self._jobs(self._step))) as batches:
            for batch in batches:
                # Before the batch is handed out: a state saved after it was used must not draw it again.
                self._step += 1
                yield batch
                del batch  # else its memory would be in use while the next one is waited for

    def _jobs(self, step: int) -> Iterator[Job]:
        while True:
            yield self._job(self.order.at(step))
            step += 1

    def _job(self, draw: Draw) -> Job:
        """This rank's share of a step: an equal share of each group, in order."""
        mine = np.flatnonzero(draw.positions % self._world == self._rank)
        tiles, epochs = self.tiles.members[draw.bucket][draw.tiles[mine]], draw.epochs[mine]
        rows, starts = self._boxes.of(tiles, epochs)
        size = len(mine) // len(draw.groups)
        parts = tuple(
            Part(key=(draw.bucket, group), rows=rows[first : first + size], starts=starts[first : first + size], last=first == 0)
            for first, group in zip(range(0, len(mine), size), draw.groups.tolist())
        )
        return Job(bucket=draw.bucket, parts=parts, tile_ids=self.tiles.tile_ids[tiles], epochs=epochs, draws=draw.draws[mine], slots=mine)

    def state_dict(self) -> State:
        """Where the order stands; the same on every rank."""
        return {"seed": self._seed, "step": self._step, "global_batch": self._plan.batch, "index_digest": self.index_digest}

    def load_state_dict(self, state: Mapping[str, int | str], *, changed: bool = False) -> None:
        """Goes on from a saved state; takes effect with the next ``iter``.

        Args:
            state: What ``state_dict`` gave.
            changed: Take a state of another store, tile list, weights or draws: goes on at the same step of the order that is now.

        Raises:
            UserError: Seed or global batch, or without ``changed`` anything else that decides the order, is not that of the saved state.
        """
        mine, remedy = self.state_dict(), "resume with the plan and store of the run, or start a new run with resume=never"
        if state["index_digest"] != mine["index_digest"] and not changed:
            raise UserError("loader state", "the store, its eligible tiles, loader.weights or loader.draws changed since it was saved",
                            remedy=f"{remedy}; resume=force goes on with what is there now")  # fmt: skip
        for name in ("seed", "global_batch"):
            if state[name] != mine[name]:
                raise UserError("loader state", f"was saved with {name} {state[name]}, now {mine[name]}", remedy=remedy)
        self._step = int(state["step"])

    def drawn_units(self, step: int, *, since: int = 0, store: int | None = None) -> Mapping[str, int]:
        """How many samples of each unit all ranks draw in steps since..step-1, from the order alone; units never drawn are left out.

        Args:
            step: Number of steps.
            since: First step that counts.
            store: Only from this store of a mix; None for all.
        """
        counts = np.zeros(len(self.tiles), dtype=np.int64)
        for members, until, before in zip(self.tiles.members, self.order.counts(step), self.order.counts(since)):
            counts[members] = until - before
        kept = np.flatnonzero(counts if store is None else counts * (self._stores == store))
        names, inverse = np.unique(self.tiles.units[kept].astype(str), return_inverse=True)
        totals = np.zeros(len(names), dtype=np.int64)
        np.add.at(totals, inverse, counts[kept])
        return dict(zip(names.tolist(), totals.tolist()))


def order_digest(store: str, tiles: str, weights: Sequence[float], plan: LoaderPlan) -> str:
    """Digest of what decides the order beside seed and batch.

    Args:
        store: Digest of the store; of a mix it covers the shares.
        tiles: Digest of the tile list; it covers how reads are moved and which dates go together.
        weights: Per bucket.
        plan: Draws of a read; one draw adds nothing, so that states of runs that knew no other stay valid.
    """
    several = [] if plan.draws == 1 else [{"draws": plan.draws, "spread": plan.spread}]
    return digest([store, tiles, list(weights), *several])


def _check_batch(plan: LoaderPlan, world: int) -> None:
    if plan.batch % (plan.draws * world) == 0:
        return
    if plan.draws == 1:
        raise UserError("loader.batch", f"{plan.batch} tiles do not divide among {world} ranks", allowed=f"multiples of {world}")
    problem = f"{plan.batch} samples are {plan.batch // plan.draws} tiles for each of loader.draws={plan.draws}"
    problem += f", which do not divide among {world} ranks"
    raise UserError("loader.batch", problem, allowed=f"multiples of {plan.draws * world}")


def _weights(plan: LoaderPlan, buckets: Sequence[Bucket]) -> list[float]:
    names = [bucket.name for bucket in buckets]
    unknown = [
        UserError(f"loader.weights.{name}", "is no bucket of this store", allowed=", ".join(names))
        for name in plan.weights
        if name not in names
    ]
    if unknown:
        raise Problems(unknown)
    return [float(plan.weights.get(name, 1.0)) for name in names]


def sweep(
    store: Store,
    plan: LoaderPlan,
    *,
    rows: Iterable[int] | None = None,
    holdout: Holdout = "include",
    device: str | torch.device = "cpu",
) -> Generator[Batch, None, None]:
    """Every eligible tile once, bucket by bucket and in index order; the last batch of a bucket may be smaller.

    Args:
        store: An opened store.
        plan: Batch, tiles, readers; what makes an order (``weights``, ``aligned``, ``draws``, ``pairs``) has no meaning here.
        rows: Rows of the index to keep, or None for all.
        holdout: Whether held-out tiles are taken, see ``find_tiles``.
        device: Where batches go.

    Raises:
        UserError: No tile of the store is eligible. ``rows`` without one give nothing.
    """
    tiles = find_tiles(store, _still(plan), holdout=holdout)
    wanted = None if rows is None else np.isin(tiles.rows, np.fromiter(rows, dtype=np.int64))
    yield from sweep_tiles(store, tiles if wanted is None else tiles.only(wanted), plan, device=device)


def sweep_tiles(store: Store, tiles: Tiles, plan: LoaderPlan, *, device: str | torch.device = "cpu") -> Generator[Batch, None, None]:
    """Some tiles once each, bucket by bucket and otherwise in their order; the last batch of a bucket may be smaller.

    Args:
        store: The store of the tiles.
        tiles: What to read.
        plan: As for ``sweep``.
        device: Where batches go.
    """
    plan = _still(plan)
    feed = Feed(store, tiles.buckets, plan, batch=plan.batch, dates=1, device=device)
    yield from feed.run(_sweep_jobs(tiles, plan.batch))


def _still(plan: LoaderPlan) -> LoaderPlan:
    """Without what makes an order: each tile once, where it lies."""
    return replace(plan, aligned=True, draws=1, pairs="none")


def _sweep_jobs(tiles: Tiles, batch: int) -> Iterator[Job]:
    for bucket, members in enumerate(tiles.members):
        for first in range(0, len(members), batch):
            chosen = members[first : first + batch]
            zeros = np.zeros(len(chosen), dtype=np.int64)
            part = Part(key=(bucket, first), rows=tiles.rows[chosen][:, None], starts=tiles.starts[chosen][:, None])
            slots = np.arange(len(chosen), dtype=np.int64)
            yield Job(bucket=bucket, parts=(part,), tile_ids=tiles.tile_ids[chosen], epochs=zeros, draws=zeros.copy(), slots=slots)
