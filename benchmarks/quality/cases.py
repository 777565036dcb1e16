"""What is trained on and what it is asked: real data, our plan for it, and what the peer is given for the same.

Both sides have the backbone, crops, batch, data and prototypes of the case. What is the peer's own: its transforms, losses, schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PROTOTYPES, HIDDEN, BOTTLENECK = 1024, 384, 64
SCALES = {"global_scale": (0.32, 1.0), "local_scale": (0.05, 0.32)}
"""Shares of the tile that crops have in two dimensions: DINOv2's, and every domain's."""
VOLUME_CROPS = {"global_size": 32, "local_size": 16, "num_local": 4, "global_scale": (0.1, 0.4), "local_scale": (0.015, 0.06)}
"""Crops of 30 to 47 and 16 to 25 voxels of tiles of 64: near the voxels' own size, at which the probe looks, too."""
MINUTES, HEADLINE_MINUTES = 8.0, 25.0
SEEDS = (0, 1, 2)
QUICK_STEPS = 3

BASELINES = ("random_init", "pixels")
PEERS = ("lightly_dino", "lightly_dinov2")
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "with iBOT": {"objective": {"ibot_weight": 1.0}},
    "without KoLeo": {"objective": {"koleo_weight": 0.0}},
    "without local crops": {"views": {"num_local": 0}},
    "generic policy": {
        "views": {
            "policy": {
                "flip": {"EW": 0.5}, "quarter_turns": False, "gamma": None, "noise": None,
                "jitter": {"probability": 0.8, "brightness": [-0.2, 0.2], "contrast": [0.6, 1.4], "per_channel": True},
                "solarise": {"probability": [0.0, 0.2, 0.0]},
            }
        }
    },
}  # fmt: skip
"""Changes to our plan, one at a time. The generic policy is DINO's for photographs as far as there are such operations here: one flip,
strong brightness and contrast of each colour by itself (in place of hue, saturation and grey), blur, solarisation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table.

    Attributes:
        name: On the command line and in the state.
        title: In the table.
        data: Which data, see ``data.PREPARE``.
        domain: Ours.
        plan: Our keys on top of the recipe ``tiny`` and of ``COMMON``.
        kind: One vector an image, or one a patch.
        metrics: Probe and metric, first the headline.
        methods: Who takes part.
        minutes: CPU-minutes of each training.
        peer: Changes to what the peer is given: ``lr``, ``method_args``, ``transform_args`` by method.
        batch: Samples a step.
        size: Side at which a dense probe looks; None for the pooled ones, which look at the crops' size.
        tile: Side of the tiles of a dense probe; None takes the store's.
    """

    name: str
    title: str
    data: str
    domain: str
    plan: Mapping[str, Any]
    kind: Literal["pooled", "dense"]
    metrics: tuple[tuple[str, str], ...]
    methods: tuple[str, ...] = ("ours", *BASELINES, *PEERS)
    minutes: float = MINUTES
    peer: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batch: int = 64
    size: int | None = None
    tile: int | None = None


COMMON: Mapping[str, Any] = {
    "model": {"dim": 96, "depth": 4, "heads": 4, "patch": 8, "registers": 0, "layer_scale": 1.0, "init": "xavier"},
    "objective": {"prototypes": PROTOTYPES, "head_hidden": HIDDEN, "bottleneck": BOTTLENECK},
    "loader": {"workers": 0, "threads": 0},
    "watch": {"tiles": 0},
    "checkpoint": {"every": 10**6, "best": False, "spaced": 0, "background": False},
    "engine": {"threads": 1, "device": "cpu", "precision": "fp32", "trackers": (), "log_every": 10**6, "figures_every": 10**6},
}
"""The network for both sides; one thread; no housekeeping that is not training."""


def peer_settings(size: int, **flips: float) -> Mapping[str, Mapping[str, Any]]:
    """What the peer is given beside the crops: flips that fit the data, blur in proportion to the crop, a learning rate for a short run.

    Its sigma of 0.1 to 2 pixels is meant for crops of 224; on small crops it erases what there is to see. The backbone begins with the wide
    first weights that ours has: after two CPU-minutes its linear probe gained 5 to 6 points by them (experiments.md).
    """
    sigmas = {"sigmas": (0.1 * size / 224, 2.0 * size / 224)}
    transform = {
        "random_flip": {"horizontal_prob": 0.0, "vertical_prob": 0.0, **flips}, "gaussian_blur": sigmas,
        "global_view_1": {"gaussian_blur": sigmas}, "local_view": {"gaussian_blur": sigmas},
    }  # fmt: skip
    return {name: {"lr": lr, "init": "xavier", "transform_args": transform} for name, lr in PEER_LR.items()}


PEER_LR: Mapping[str, float] = {"lightly_dino": 0.008, "lightly_dinov2": 0.008}
"""Both are 0.002 after its scaling with a batch of 64 (linear from 256, square root from 1024), as ours is. Its defaults are 0.0005 and
0.004, meant for runs of a hundred thousand steps."""

UC_MERCED = Case(
    name="uc_merced", title="UC Merced, 48 px, 21 classes, near-duplicates together", data="uc_merced", domain="aerial",
    plan={"views": {"global_size": 48, "local_size": 24, "num_local": 4, **SCALES}}, kind="pooled",
    metrics=(("knn", "accuracy"), ("linear", "accuracy")), methods=("ours", *BASELINES, *PEERS, *ABLATIONS),
    peer=peer_settings(48, horizontal_prob=0.5, vertical_prob=0.5),
)  # fmt: skip
CASES = (
    UC_MERCED,
    Case(
        name="cxr", title="chest X-rays (NIH), 64 px, pneumonia or no finding, by patient", data="cxr", domain="xray",
        plan={"views": {"global_size": 64, "local_size": 32, "num_local": 4, **SCALES}}, kind="pooled",
        metrics=(("linear", "auroc"), ("knn", "auroc")), peer=peer_settings(64),
    ),
    Case(
        name="mri", title="T1 brain volumes, 2 mm, 3-D, six tissues, patches of 16 mm, by subject", data="mri", domain="mri",
        plan={"views": VOLUME_CROPS, "loader": {"tile": 64, "min_valid": 0.3}},
        kind="dense", metrics=(("linear", "balanced_accuracy"), ("knn", "balanced_accuracy")), batch=32, size=64, tile=64,
    ),
    Case(
        name="sentinel2", title="Sentinel-2, 12 bands, water in patches of 80 m, by ground cell", data="sentinel2", domain="sentinel2",
        plan={"views": {"global_size": 64, "local_size": 32, "num_local": 4, "global_extent": (480.0, 960.0),
                        "local_extent": (160.0, 480.0)}},
        kind="dense", metrics=(("linear", "auroc"), ("linear", "balanced_accuracy")), batch=32, size=256,
    ),
    Case(
        name="headline", title=UC_MERCED.title, data="uc_merced", domain="aerial", plan=UC_MERCED.plan,
        kind="pooled", metrics=UC_MERCED.metrics, minutes=HEADLINE_MINUTES, methods=("ours", *PEERS), peer=UC_MERCED.peer,
    ),
)  # fmt: skip


def case_named(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
