"""What a user may choose about views. Sizes in pixels; scales as area (2-D) or volume (3-D) fractions of a tile's valid box, or lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dinodomain.errors import Problems, UserError
from dinodomain.policy import Thickness, ViewPolicy, changed


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsPlan:
    """Multi-crop settings; everything else about views belongs to the domain's policy.

    Attributes:
        global_size: Side of a global crop, pixels.
        local_size: Side of a local crop, pixels.
        num_global: Global crops of each sample.
        num_local: Local crops of each sample; 0 for none.
        normalise: Range that becomes 0..1: `domain` declared, `store` measured, `source` each source's percentiles, `auto` the domain's.
        global_scale: Smallest and largest area (volume) fraction of a global crop; empty for the domain's policy.
        local_scale: Smallest and largest area (volume) fraction of a local crop; empty for the domain's policy.
        global_extent: Smallest and largest side of a global crop in its plane (last two axes), mm or m as the store's spacing, in place
            of a fraction: the square root of the crop's area, drawn log-uniformly; the policy's `aspect` says how oblong it may be. Crops
            stay within their tile. Every source needs a known spacing.
        local_extent: The same of a local crop.
        global_depth: Smallest and largest length of a global crop across its plane (first axis of a volume), mm, in place of a fraction;
            volumes only. In plane the fraction stays unless `views.global_extent` is given, too.
        local_depth: The same of a local crop.
        policy: Changes to the domain's policy, key by key: `flip: [AP]` (axis names, or {axis: probability}), `haze: null` (off),
            `gamma: {probability: 1, exponent: [0.9, 1.1]}`; what is not named stays the domain's, and an operation that the domain has off
            starts from its defaults. Keys: flip, quarter_turns, global_scale, local_scale, aspect, min_valid, default_mode; operations:
            rotation, blur, thickness, coarser_pixels, bias_field, shadow, speckle, rician, value_noise, gain, haze, window, jitter, gamma,
            noise, solarise, drop_channels, subset_channels (each has `probability`: once, or for first global, other global and local
            crops).
            A run's plan.yaml holds the whole policy.
        windows: Names of display windows of the domain (CT: lung, soft_tissue, bone); each becomes a channel of the network, made from the
            stored channel that has it, in the range of the window. Needs `views.normalise=domain`. Empty: the stored channels as they are.
        renderer: `matmul` resampling matrices, `resize` the framework's antialiased resize (CPU, 2-D), `fastest` of the two: `resize` for
            images of bytes with 2 to 4 channels on a CPU, else `matmul`.
        filter: `cubic` (Keys, a = -0.5) or `linear` (triangle), both antialiased; `auto` is cubic in 2-D and linear in 3-D.
        augment: False leaves crops only: no flip, turn, blur, noise or change of intensity.
    """

    global_size: int = 224
    local_size: int = 96
    num_global: int = 2
    num_local: int = 8
    normalise: Literal["auto", "domain", "store", "source"] = "auto"
    global_scale: tuple[float, float] | None = None
    local_scale: tuple[float, float] | None = None
    global_extent: tuple[float, float] | None = None
    local_extent: tuple[float, float] | None = None
    global_depth: tuple[float, float] | None = None
    local_depth: tuple[float, float] | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    windows: tuple[str, ...] = ()
    renderer: Literal["fastest", "matmul", "resize"] = "fastest"
    filter: Literal["auto", "linear", "cubic"] = "auto"
    augment: bool = True

    def __post_init__(self) -> None:
        problems = [*self._count_problems(), *self._scale_problems(), *self._policy_problems()]
        if problems:
            raise Problems(problems)

    def _count_problems(self) -> list[UserError]:
        lowest = {"global_size": 1, "local_size": 1, "num_global": 1, "num_local": 0}
        found = [
            UserError(f"views.{name}", f"is {getattr(self, name)}", allowed=f"{least} or more")
            for name, least in lowest.items()
            if getattr(self, name) < least
        ]
        if self.num_local and self.local_size > self.global_size:
            found.append(UserError("views.local_size", f"is {self.local_size}", allowed=f"at most global_size, {self.global_size}"))
        return found

    def _scale_problems(self) -> list[UserError]:
        pairs = {"global_scale": self.global_scale, "local_scale": self.local_scale}
        lengths = ("global_extent", "local_extent", "global_depth", "local_depth")
        found = [
            UserError(f"views.{name}", f"is {pair}", allowed="two lengths with 0 < smallest <= largest")
            for name in lengths
            if (pair := getattr(self, name)) is not None and not 0 < pair[0] <= pair[1]
        ]
        return found + [
            UserError(f"views.{name}", f"is {pair}", allowed="two fractions with 0 < smallest <= largest <= 1")
            for name, pair in pairs.items()
            if pair is not None and not 0 < pair[0] <= pair[1] <= 1
        ]

    def _policy_problems(self) -> list[UserError]:
        """Names and values, which can be judged before the domain is known; the names of axes are judged with it (``effective_policy``)."""
        try:
            changed(_with_named_axes(self.policy), self.policy)
        except Problems as error:
            return list(error.problems)
        return []


def _with_named_axes(changes: Mapping[str, Any]) -> ViewPolicy:
    """A policy that has whatever axes the changes name."""
    flip, thickness = changes.get("flip"), changes.get("thickness")
    named = list(flip) if isinstance(flip, (list, tuple, Mapping)) else []
    own = thickness.get("axis") if isinstance(thickness, Mapping) else getattr(thickness, "axis", None)
    return ViewPolicy(axes=(Thickness().axis, *map(str, named), str(own)))
