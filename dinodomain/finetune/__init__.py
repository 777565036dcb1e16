"""Few labels on a pretrained backbone: a head alone or head and backbone, split by unit, scored beside an untrained backbone.

Whole-source targets (classes, numbers). Dense targets are not here yet.
"""

from dinodomain import callable_room
from dinodomain.finetune.plan import FinetunePlan
from dinodomain.finetune.run import Tuned, finetune

__all__ = ["FinetunePlan", "Tuned", "finetune"]

callable_room(__name__)
