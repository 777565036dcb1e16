"""What ``resolve`` must know of data and machine, as plain values, so that it needs neither a store nor a device to be tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dinodomain.domain import ViewPolicy
from dinodomain.engine.lengths import Lengths
from dinodomain.engine.plan import PretrainPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about the tiles that will be trained on.

    Attributes:
        ndim: Spatial axes, 2 or 3.
        channels: Channel names.
        extents: Tile extent in pixels (array order) to number of eligible tiles.
        policy: The domain's augmentations.
        world: Number of processes.
        cores: Processors that each of them may use.
        lengths: ``extent`` and, for volumes, ``depth`` of the tiles; only where the plan asks for crops or positions in mm or m.
        memory: Bytes of each kind of device that a process may have.
        tile_bytes: Of the largest tile as it is read, with one byte of validity per pixel.
        threads_before: ``engine.threads`` of the run that goes on in the folder, if one does.
    """

    ndim: int
    channels: tuple[str, ...]
    extents: Mapping[tuple[int, ...], int]
    policy: ViewPolicy
    world: int = 1
    cores: int = 1
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    tile_bytes: int = 0
    threads_before: int | None = None

    def network_channels(self, windows: Sequence[str]) -> int:
        """Channels of the network's input: display windows where there are any, else the stored ones."""
        return len(windows) or len(self.channels)

    def step_sizes(self, plan: PretrainPlan) -> dict[str, int]:
        """What the memory of a step depends on beside the plan, by the names of ``memory.estimate``."""
        dates = plan.loader.dates if plan.loader.pairs == "dates" else 1
        channels = self.network_channels(plan.views.windows)
        return {"ndim": self.ndim, "channels": channels, "world": self.world, "tile": dates * self.tile_bytes}

    @property
    def num_tiles(self) -> int:
        """Eligible tiles in all."""
        return sum(self.extents.values())

    @property
    def side(self) -> int:
        """Shortest side of the commonest tile, pixels."""
        return min(Counter(self.extents).most_common(1)[0][0])

    @property
    def smallest_side(self) -> int:
        """Shortest side of any tile, pixels."""
        return min(min(extent) for extent in self.extents)
