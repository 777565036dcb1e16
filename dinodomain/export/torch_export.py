"""One ``.pt2`` file that ``torch.export.load`` runs without this package, for images and volumes.

The exported program takes values of the stored channels in their units, not in the network's range: display windows, clipping and
standardising are part of it, so that nobody has to copy numbers from a card. A backbone that was normalised by each source's own
percentiles takes unit-range values. C stored channels, K channels of the network; they differ for display windows only. Where positions
are measured in mm or m (``model.rope_unit=physical``) the program takes the pixel size of every image as a second input.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from dinodomain.export.inputs import input_facts
from dinodomain.lineage import Json, canonical
from dinodomain.model import Backbone
from dinodomain.types import Acquisition
from dinodomain.views.normalise import input_channels, source_channels

PROGRAM: Final = "backbone.pt2"


class Portable(nn.Module):
    """Display windows, normalisation and transformer in one module that returns plain tensors.

    Args:
        backbone: What to wrap.
    """

    channels: tuple[str, ...]
    """The C stored channels that it takes, in order."""

    sources: tuple[int, ...]
    """K places in ``channels`` of what each channel of the network is made from."""

    low: Tensor
    span: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = input_channels(backbone.normalisation)
        self.sources = source_channels(backbone.normalisation, self.channels)
        numbers, shape = backbone.normalisation, (1, -1) + (1,) * backbone.ndim
        own = numbers.mode == "source"
        low = torch.zeros(len(numbers.channels)) if own else torch.tensor(numbers.low)
        high = torch.ones(len(numbers.channels)) if own else torch.tensor(numbers.high)
        for name, value in (("low", low), ("span", high - low), ("mean", torch.tensor(numbers.mean)), ("std", torch.tensor(numbers.std))):
            self.register_buffer(name, value.float().reshape(shape))

    def normalise(self, x: Tensor) -> Tensor:
        """Channel units [n, C, *size] -> the network's range [n, K, *size]."""
        if self.sources != tuple(range(len(self.channels))):
            x = torch.stack([x[:, source] for source in self.sources], dim=1)
        return (((x.float() - self.low) / self.span).clamp(0.0, 1.0) - self.mean) / self.std

    def forward(self, x: Tensor, spacing: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Channel units [n, C, *size] and spacing [n, D] -> class token [n, E], registers [n, R, E], patch tokens [n, P, E]."""
        features = self.backbone(self.normalise(x), about=None if spacing is None else Acquisition(spacing=spacing))
        return features.cls, features.registers, features.patches


def export_program(backbone: Backbone, path: Path, provenance: Json) -> None:
    """Traces the backbone at its pretraining size, any batch size, and writes spec and lineage beside it in the archive.

    Args:
        backbone: In evaluation mode, on the host.
        path: The ``.pt2`` file.
        provenance: Lineage record.
    """
    portable, count = Portable(backbone).eval(), torch.export.Dim("n", min=1, max=4096)
    example = torch.zeros(2, len(portable.channels), *backbone.image_size)
    # Batch 2: sizes 0 and 1 are specialised by the tracer.
    spacing = spacing_example(backbone, 2)
    inputs = {"x": example} | ({} if spacing is None else {"spacing": spacing})
    program = torch.export.export(portable, tuple(inputs.values()), dynamic_shapes={name: {0: count} for name in inputs})
    with warnings.catch_warnings():
        # The archive writer warns about its own use of a deprecated pytree serialiser.
        warnings.simplefilter("ignore")
        told = {"spec": backbone.spec, "takes": portable.channels, "input": input_facts(backbone.normalisation), "lineage": provenance}
        torch.export.save(program, path, extra_files={"dinodomain.json": canonical(told)})


def spacing_example(backbone: Backbone, count: int) -> Tensor | None:
    """[count, D] made-up pixel sizes that give a crop about the length of those in training; None where a network needs none."""
    plan = backbone.vit.plan
    if plan.rope_unit != "physical" or plan.rope_length is None:
        return None
    usual = 2 * plan.rope_length / torch.tensor(backbone.image_size)
    return usual * torch.linspace(0.5, 1.5, count * backbone.ndim).reshape(count, -1)


def physical_example(portable: Portable, count: int) -> Tensor:
    """[count, C, *size] made-up values in channel units that reach a little beyond the ranges of all channels of the network."""
    low, span = portable.low.flatten(), portable.span.flatten()
    x = torch.rand(count, len(portable.channels), *portable.backbone.image_size, generator=torch.Generator().manual_seed(1))
    for place in range(len(portable.channels)):
        own = [index for index, source in enumerate(portable.sources) if source == place]
        start, stop = low[own].min(), (low[own] + span[own]).max()
        x[:, place] = start + (stop - start) * (1.1 * x[:, place] - 0.05)
    return x


@torch.no_grad()
def program_tokens(path: Path, x: Tensor, spacing: Tensor | None = None) -> Tensor:
    """Tokens [n, 1 + R + P, E] that the reloaded program computes from values in channel units, and pixel sizes where it takes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in export_program
        program = torch.export.load(path).module()
    cls, registers, patches = program(x) if spacing is None else program(x, spacing)
    return torch.cat([cls[:, None], registers, patches], dim=1)
