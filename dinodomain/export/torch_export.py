"""One ``.pt2`` file that ``torch.export.load`` runs without this package, for images and volumes.

The exported program takes values in channel units, not in the network's range: clipping and standardising are part of it, so that
nobody has to copy numbers from a card. A backbone that was normalised by each source's own percentiles takes unit-range values.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from dinodomain.lineage import Json, canonical
from dinodomain.model import Backbone

PROGRAM: Final = "backbone.pt2"


class Portable(nn.Module):
    """Normalisation and transformer in one module that returns plain tensors.

    Args:
        backbone: What to wrap.
    """

    low: Tensor
    span: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        numbers, shape = backbone.normalisation, (1, -1) + (1,) * backbone.ndim
        own = numbers.mode == "source"
        low = torch.zeros(len(numbers.channels)) if own else torch.tensor(numbers.low)
        high = torch.ones(len(numbers.channels)) if own else torch.tensor(numbers.high)
        for name, value in (("low", low), ("span", high - low), ("mean", torch.tensor(numbers.mean)), ("std", torch.tensor(numbers.std))):
            self.register_buffer(name, value.float().reshape(shape))

    def normalise(self, x: Tensor) -> Tensor:
        """Channel units [n, C, *size] -> the network's range."""
        return (((x.float() - self.low) / self.span).clamp(0.0, 1.0) - self.mean) / self.std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Channel units [n, C, *size] -> class token [n, E], registers [n, R, E], patch tokens [n, P, E]."""
        features = self.backbone(self.normalise(x))
        return features.cls, features.registers, features.patches


def export_program(backbone: Backbone, path: Path, provenance: Json) -> None:
    """Traces the backbone at its pretraining size, any batch size, and writes spec and lineage beside it in the archive.

    Args:
        backbone: In evaluation mode, on the host.
        path: The ``.pt2`` file.
        provenance: Lineage record.
    """
    example = torch.zeros(2, len(backbone.channels), *backbone.image_size)
    # Batch 2: sizes 0 and 1 are specialised by the tracer.
    program = torch.export.export(Portable(backbone).eval(), (example,), dynamic_shapes={"x": {0: torch.export.Dim("n", min=1, max=4096)}})
    with warnings.catch_warnings():
        # The archive writer warns about its own use of a deprecated pytree serialiser.
        warnings.simplefilter("ignore")
        torch.export.save(program, path, extra_files={"dinodomain.json": canonical({"spec": backbone.spec, "lineage": provenance})})


@torch.no_grad()
def program_tokens(path: Path, x: Tensor) -> Tensor:
    """Tokens [n, 1 + R + P, E] that the reloaded program computes from values in channel units."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in export_program
        program = torch.export.load(path).module()
    cls, registers, patches = program(x)
    return torch.cat([cls[:, None], registers, patches], dim=1)
