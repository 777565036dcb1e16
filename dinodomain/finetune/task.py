"""A head on a backbone: what it predicts, how that is scored in training, and how one prediction per source is made."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinodomain.embed import pool_features
from dinodomain.model import Backbone
from dinodomain.probes import Target
from dinodomain.types import Acquisition


@final
class Predictor(nn.Module):
    """Backbone, pooling, LayerNorm and one linear.

    Args:
        backbone: Copied by nobody: it is trained in place where ``full`` is set.
        target: What is trained on: how many outputs there are; for numbers also their mean and spread.
        full: Whether gradients reach the backbone.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, backbone: Backbone, target: Target, *, full: bool) -> None:
        super().__init__()
        self.backbone, self.full, self.classify = backbone, full, bool(target.classes)
        self.norm = nn.LayerNorm(backbone.num_features)
        self.linear = nn.Linear(backbone.num_features, len(target.classes) or 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        numbers = torch.zeros(2) if self.classify else torch.as_tensor(target.y, dtype=torch.float32)
        self.register_buffer("center", numbers.mean())
        self.register_buffer("spread", torch.ones(()) if self.classify else numbers.std(correction=0).clamp_min(1e-12))
        backbone.requires_grad_(full)

    def forward(self, x: Tensor, weights: Tensor, about: Acquisition | None = None) -> Tensor:
        """Logits [n, classes], or standardised values [n, 1].

        Args:
            x: [n, C, *size] in the network's range.
            weights: [n, P] share of valid pixels under each patch, by which patches count in the pooling, as in every embedding.
            about: What is known of the images beside their pixels.
        """
        with torch.set_grad_enabled(self.full and torch.is_grad_enabled()):
            pooled = pool_features(self.backbone(x, about=about), weights, self.backbone.pooling)
        outputs: Tensor = self.linear(self.norm(pooled))
        return outputs

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, or squared error of standardised values."""
        if self.classify:
            return functional.cross_entropy(outputs, y)
        return functional.mse_loss(outputs[:, 0], (y.float() - self.center) / self.spread)

    def predict(self, outputs: Tensor) -> Tensor:
        """Probabilities [n, classes], or values [n] in the target's unit."""
        return outputs.softmax(dim=1) if self.classify else outputs[:, 0] * self.spread + self.center

    def head_state(self) -> dict[str, Tensor]:
        """Weights without the backbone's."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}
