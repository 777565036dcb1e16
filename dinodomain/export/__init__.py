"""Backbones for other people's pipelines: timm folders, torch.export programs, our own safetensors, and a model card.

Knows the audit only through ``audit.json``; never unpickles; every export is loaded again and compared before it is announced.
"""

from dinodomain import callable_room
from dinodomain.export.plan import Exported, ExportPlan
from dinodomain.export.run import export

__all__ = ["ExportPlan", "Exported", "export"]

callable_room(__name__)
