"""Attribution maps by Captum: four methods on any ``EncoderObjective``, in 2-D and 3-D, any number of channels.

A map says where to look. It never says that a model uses what lies there: taking the place away does (check ``shortcut``), and a map that
fails the controls of ``sanity`` is an illustration. Left out on purpose: methods that have no rule for attention (LRP in Captum 0.9), that
need a token-to-grid reshape to mean anything (GradCAM), that ignore weights (guided backpropagation), and raw attention.
B images, C channels, D axes, P patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dinodomain.audit.attribution import EncoderObjective
from dinodomain.errors import UserError, require

Method = Literal["ablation", "integrated_gradients", "gradient_shap", "occlusion"]
METHODS = get_args(Method)

COMPLETE = 0.05
"""Integrated gradients must add up to the difference from the baseline within this share of it (Sundararajan et al. 2017, axiom 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How maps are made.

    Attributes:
        steps: Steps of integrated gradients; samples of GradientShap.
        patch: Sides of the windows of ablation and occlusion, pixels: those of the encoder's patches.
        batch: Images that the encoder is shown at a time.
        seed: Of GradientShap.
    """

    steps: int = 32
    patch: tuple[int, ...] = (8, 8)
    batch: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """Attributions of a batch.

    Attributes:
        values: [B, *size] over all channels; of ablation and occlusion each pixel has the number of its patch.
        complete: [B] bool, False where integrated gradients did not add up; always True for other methods.
    """

    values: Tensor
    complete: Tensor


def explain(
    objective: EncoderObjective, images: Tensor, method: Method, look: Look, *, baseline: Tensor, extra: tuple[Any, ...] = ()
) -> Map:  # fmt: skip
    """The map of each image.

    Args:
        objective: One number per image.
        images: [B, C, *size] in the network's range, on the encoder's device.
        method: One of ``METHODS``.
        look: Steps, windows.
        baseline: [B, C, *size] what stands for "nothing there": see ``baselines``. GradientShap takes all of them as references.
        extra: Further arguments of the objective, one row per image (``reference, spacing, kept``).

    Raises:
        UserError: The method is not known.
    """
    if method not in METHODS:
        raise UserError("method", f"unknown {method!r}", allowed=", ".join(METHODS))
    captum = require("captum.attr", extra="audit", wanted_by="attribution maps")
    given = {"additional_forward_args": extra} if extra else {}
    complete = torch.ones(len(images), dtype=torch.bool)
    # Fused attention kernels have no second derivative and round differently; the plain one is exact enough to add up.
    with sdpa_kernel(SDPBackend.MATH):
        if method == "integrated_gradients":
            found, gap = captum.IntegratedGradients(objective).attribute(
                images, baselines=baseline, n_steps=look.steps, internal_batch_size=look.batch, return_convergence_delta=True, **given
            )
            complete = _complete(objective, images, baseline, gap, extra)
        elif method == "gradient_shap":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(look.seed)
                found = captum.GradientShap(objective).attribute(images, baselines=baseline, n_samples=look.steps, **given)
        elif method == "occlusion":
            window = (images.shape[1], *look.patch)
            found = captum.Occlusion(objective).attribute(
                images, window, strides=(images.shape[1], *look.patch), baselines=baseline, perturbations_per_eval=1, **given
            )
        else:
            found = captum.FeatureAblation(objective).attribute(images, baselines=baseline, feature_mask=cells(images, look.patch), **given)
    # Perturbed patches have one number, which Captum writes onto each channel; gradients have one for each.
    whole = found.detach().mean(dim=1) if method in ("ablation", "occlusion") else found.detach().sum(dim=1)
    return Map(values=whole.cpu(), complete=complete)


@torch.no_grad()
def _complete(objective: EncoderObjective, images: Tensor, baseline: Tensor, gap: Tensor, extra: tuple[Any, ...]) -> Tensor:
    moved = (objective(images, *extra) - objective(baseline, *extra)).abs()
    added: Tensor = gap.abs() <= COMPLETE * moved.clamp_min(1e-6)
    return added.cpu()


def ablate(objective: EncoderObjective, images: Tensor, regions: Tensor, baseline: Tensor, extra: tuple[Any, ...] = ()) -> Tensor:
    """How much each named region adds to the objective: [B, R], by Captum's FeatureAblation with the regions as features.

    Args:
        objective: One number per image.
        images: [B, C, *size].
        regions: [B, *size] int64, 0 for the rest of the image, 1 .. R for regions; they do not overlap.
        baseline: [B, C, *size] that takes the place of a region.
        extra: See ``explain``.
    """
    captum = require("captum.attr", extra="audit", wanted_by="attribution maps")
    given = {"additional_forward_args": extra} if extra else {}
    mask = regions[:, None].expand_as(images).to(images.device)
    with torch.no_grad():
        found = captum.FeatureAblation(objective).attribute(images, baselines=baseline, feature_mask=mask, **given)
    values = found[:, 0].flatten(1).cpu()
    flat, count = regions.flatten(1), int(regions.max())
    # Captum writes a feature's number onto each of its pixels.
    picked: list[Tensor] = [torch.where(flat == number, values, torch.nan).nanmean(dim=1).nan_to_num() for number in range(1, count + 1)]
    return torch.stack(picked, dim=1)


def cells(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """[1, 1, *size] int64, the number of the patch that each pixel lies in."""
    number = torch.zeros(images.shape[2:], dtype=torch.int64)
    for axis, (side, step) in enumerate(zip(images.shape[2:], patch, strict=True)):
        index = torch.arange(side) // step
        number = number * math.ceil(side / step) + index.reshape(-1, *(1,) * (number.ndim - axis - 1))
    return number[None, None].to(images.device)


def baselines(images: Tensor) -> Mapping[str, Tensor]:
    """What stands for "nothing there": a heavy blur of the image itself, and the mean of the network's range (0)."""
    mode = "bilinear" if images.ndim == 4 else "trilinear"
    pool = F.adaptive_avg_pool2d if images.ndim == 4 else F.adaptive_avg_pool3d
    blur = F.interpolate(pool(images, 4), size=images.shape[2:], mode=mode, align_corners=False)
    return {"blur": blur, "mean": torch.zeros_like(images)}
