"""Which image a view is cut from, where a sample is several dates of one place.

View v of a group (global, local) is cut from date v mod T of its sample: two global views are two dates, so that season, sun, haze and
crop calendar are looked past, beside the drawn changes. Images of one place at several times as positives: Ayush et al., 2021,
"Geography-aware self-supervised learning"; Mañas et al., 2021, "Seasonal contrast" (SeCo); with DINO, Wang et al., 2023, "SSL4EO-S12".
What is drawn (boxes, flips, intensity) does not depend on T: it has the keys that a single date has, so nothing changes for T = 1.
Each image keeps its own meaning (scale, offset, range, valid box), which differs between dates: Sentinel-2 changed its offset in 2022.

Shapes: B samples of T dates; images [B * T], sample by sample; V views of a group in rows [V * B], row v * B + b view v of sample b.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinodomain.types import TileInfo


def date_of(view: int, dates: int) -> int:
    """The date, 0 <= date < ``dates``, that a view of a group is cut from."""
    return view % dates


def per_row(values: Tensor, views: int, samples: int) -> Tensor:
    """Values of images as values of a group's rows.

    Args:
        values: [B * T, ...].
        views: V.
        samples: B.

    Returns:
        [V * B, ...]; entry v * B + b is that of image b * T + ``date_of(v, T)``.
    """
    dates = len(values) // samples
    assert len(values) == samples * dates, f"{len(values)} images of {samples} samples"
    # Date by date, and the dates over and over: row v * B + b is place (v mod T) * B + b of the first.
    cycle = values.reshape(samples, dates, *values.shape[1:]).transpose(0, 1).flatten(0, 1)
    rows: Tensor = cycle.repeat(-(-views // dates), *(1,) * (values.ndim - 1))[: views * samples]
    return rows


def per_rows(values: Tensor, counts: Sequence[int], samples: int) -> Tensor:
    """As ``per_row``, for the rows of several groups one after another; ``counts`` are V of each."""
    dates = len(values) // samples
    if all(views % dates == 0 for views in counts[:-1]):  # the cycle of dates goes on without a break
        return per_row(values, sum(counts), samples)
    return torch.cat([per_row(values, views, samples) for views in counts])


def info_per_row(info: TileInfo, views: int, samples: int) -> TileInfo:
    """The meaning of every row, see ``per_row``. What is told per channel moves as one tensor: launches cost an accelerator more."""
    names = ("scale", "offset", "nodata", "low", "high")
    packed = torch.stack([getattr(info, name) for name in names], dim=1)
    per_channel = dict(zip(names, per_row(packed, views, samples).unbind(1)))
    return TileInfo(spacing=per_row(info.spacing, views, samples), valid_box=per_row(info.valid_box, views, samples), **per_channel)
