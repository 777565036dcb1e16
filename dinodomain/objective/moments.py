"""What tells a collapse, as sums over samples: a measure of a whole step does not follow from the measures of its parts.

Few samples are always alike, and use few prototypes, whatever the network does; so micro-batches and ranks hand in sums, and what is not
linear in them is taken once. Legend: n images, E width of the features, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dinodomain.parallel import all_reduce_sum


class Moments(NamedTuple):
    """Sums over the teacher's images of one micro-batch; on the device, nothing has waited for them.

    Attributes:
        images: [] n.
        entropy: [] of their targets, nats.
        targets: [K].
        features: [E] of unit features.
        spread: [E] squared distance of the unit features to their mean.
    """

    images: Tensor
    entropy: Tensor
    targets: Tensor
    features: Tensor
    spread: Tensor


def moments_of(cls: Tensor, entropy: Tensor, target: Tensor) -> Moments:
    """Of one micro-batch.

    Args:
        cls: [n, E] the teacher's class tokens.
        entropy: Mean entropy of the n targets.
        target: [K] mean of the n targets.
    """
    features = functional.normalize(cls.float(), dim=1)
    count = features.new_full((), float(len(features)))
    spread = (features - features.mean(0)).square().sum(0)
    return Moments(images=count, entropy=entropy * count, targets=target * count, features=features.sum(0), spread=spread)


def collapse_measures(parts: Sequence[Moments]) -> dict[str, Tensor]:
    """``teacher_entropy``, ``kl_to_uniform`` and ``feature_std`` (see ``Objective.diagnose``) of all images of a step; collective.

    Squared distances are joined around the common mean (Chan 1979), because a difference of large sums of squares would hide a collapse
    in rounding.

    Args:
        parts: One for each micro-batch of this rank.
    """
    sums = [torch.stack(column).sum(0) for column in list(zip(*parts))[:-1]]
    shapes = [len(column.reshape(-1)) for column in sums]
    count, entropy, targets, features = all_reduce_sum(torch.cat([column.reshape(-1) for column in sums])).split_with_sizes(shapes)
    mean = features / count
    around = torch.stack([part.spread + part.images * (part.features / part.images - mean).square() for part in parts]).sum(0)
    std = (all_reduce_sum(around) / count).sqrt()
    return {
        "teacher_entropy": (entropy / count).squeeze(0),
        "kl_to_uniform": torch.log(targets.new_full((), float(len(targets)))) - torch.special.entr(targets / count).sum(),
        "feature_std": std.mean() * len(std) ** 0.5,
    }
