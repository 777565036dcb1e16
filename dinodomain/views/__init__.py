"""Views: multi-crop on the device for any number of channels, in 2-D and 3-D. Draw first, render second."""

from dinodomain import callable_room
from dinodomain.views.correspond import (
    Correspondence,
    correspond,
    map_points,
    rows_of_view,
    tile_to_crop,
    to_source,
    token_centres,
    token_grid,
)
from dinodomain.views.draw import GroupParams, OpParams, ViewParams, draw, draw_batch, effective_policy
from dinodomain.views.normalise import apply_range, resolve_normalisation, to_network
from dinodomain.views.plan import ViewsPlan
from dinodomain.views.render import render

__all__ = [
    "Correspondence", "GroupParams", "OpParams", "ViewParams", "ViewsPlan", "apply_range", "correspond", "draw", "draw_batch",
    "effective_policy", "map_points", "render", "resolve_normalisation", "rows_of_view", "tile_to_crop", "to_network", "to_source",
    "token_centres", "token_grid",
]  # fmt: skip

callable_room(__name__)
