"""Networks: the transformer, the head, the student and teacher pair. No losses, no files, no training."""

from dinodomain.model.backbone import Backbone, Pooling, normalisation_of, random_like
from dinodomain.model.heads import Head
from dinodomain.model.pair import Branch, Pair
from dinodomain.model.plan import ModelPlan
from dinodomain.model.vit import VisionTransformer

__all__ = ["Backbone", "Branch", "Head", "ModelPlan", "Pair", "Pooling", "VisionTransformer", "normalisation_of", "random_like"]
