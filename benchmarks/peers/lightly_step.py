"""lightly-train's DINOv2 method as a training step on ready crops: its own network, losses, masks, optimiser and teacher update.

Its Lightning loop, logging and data loading are left out, which flatters it; gradient clipping and the order of a step are those of its
loop. Masks are drawn inside the step, as its method does.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

STEPS = 10_000
"""Length of the run that the schedules span."""


def method(width: int, depth: int, heads: int, *, size: int, prototypes: int, batch: int, centering: str) -> Any:
    """Its DINOv2 method around its own transformer, and the optimiser that it configures.

    Args:
        width: Token width.
        depth: Blocks.
        heads: Attention heads.
        size: Side of a global crop, pixels.
        prototypes: K of the one head that serves class tokens and patches.
        batch: Samples per step.
        centering: ``softmax`` or ``sinkhorn_knopp``.
    """
    from lightly_train._methods.dinov2.dinov2 import DINOv2, DINOv2AdamWViTArgs, DINOv2Args
    from lightly_train._models.dinov2_vit.dinov2_vit import DINOv2ViTModelWrapper
    from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer
    from lightly_train._models.embedding_model import EmbeddingModel

    vit = DinoVisionTransformer(
        img_size=size, patch_size=16, in_chans=3, embed_dim=width, depth=depth, num_heads=heads, init_values=1e-5, num_register_tokens=4,
        block_chunks=0, drop_path_rate=0.0,
    )  # fmt: skip
    args = DINOv2Args(output_dim=prototypes, center_method=centering, weight_decay_start=0.04)
    made: Any = DINOv2(args, DINOv2AdamWViTArgs(), EmbeddingModel(DINOv2ViTModelWrapper(vit)), batch, 3)
    made._trainer = SimpleNamespace(global_step=0, max_epochs=1, estimated_stepping_batches=STEPS)
    made._log_time_batch_end = lambda: None
    made.train()
    return made


class Step:
    """One step after another on the same crops.

    Args:
        made: From ``method``.
        views: One [B, 3, side, side] tensor per crop, global ones first.
        bf16: Whether the forward pass runs under bfloat16 autocast.
    """

    def __init__(self, made: Any, views: list[Tensor], *, bf16: bool) -> None:
        self._method, self._batch, self._bf16 = made, {"views": views}, bf16
        (self._optimizer,), _ = made.configure_optimizers()

    def __call__(self, turn: int) -> int:
        """Does a step; returns the number of samples."""
        made, optimizer = self._method, self._optimizer
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            loss = made.training_step_impl(self._batch, turn).loss
        loss.backward()
        made.on_before_optimizer_step(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, made.method_args.gradient_clip_val)
        optimizer.step()
        made.on_train_batch_end(None, self._batch, turn)
        made._trainer.global_step += 1
        return len(self._batch["views"][0])
