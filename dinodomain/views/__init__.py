"""Views: multi-crop on the device for any number of channels, in 2-D and 3-D. Draw first, render second."""

from dinodomain import callable_room
from dinodomain.views.draw import GroupParams, OpParams, ViewParams, draw, draw_batch, effective_policy
from dinodomain.views.normalise import apply_range, resolve_normalisation, to_network
from dinodomain.views.plan import ViewsPlan
from dinodomain.views.render import render

__all__ = [
    "GroupParams", "OpParams", "ViewParams", "ViewsPlan", "apply_range", "draw", "draw_batch", "effective_policy", "render",
    "resolve_normalisation", "to_network",
]  # fmt: skip

callable_room(__name__)
