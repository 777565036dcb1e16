"""Networks: the transformer, the head, the student and teacher pair. No losses, no files, no training."""

from dinodomain.model.backbone import Backbone, Pooling, normalisation_of, random_like
from dinodomain.model.bands import Band, bands_of
from dinodomain.model.heads import Head
from dinodomain.model.pair import Branch, Pair, Seen
from dinodomain.model.plan import ModelPlan, StartPlan
from dinodomain.model.vit import VisionTransformer

__all__ = [
    "Backbone",
    "Band",
    "Branch",
    "Head",
    "ModelPlan",
    "Pair",
    "Pooling",
    "Seen",
    "StartPlan",
    "VisionTransformer",
    "bands_of",
    "normalisation_of",
    "random_like",
]
