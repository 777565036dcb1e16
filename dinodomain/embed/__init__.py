"""A frozen backbone over a store gives features on disk, keyed by content, so that probes and audits need no encoder."""

from dinodomain import callable_room
from dinodomain.embed.embed import Embedded, EmbedPlan, embed
from dinodomain.embed.inputs import Input, fit_channels, narrowed, network_input, told_channels
from dinodomain.embed.table import TokenTable, load_features, load_record, load_tokens, save_features
from dinodomain.embed.tiles import embed_store, encode_frozen, pixel_features, pool_features, sides_for, token_weights

__all__ = [
    "EmbedPlan", "Embedded", "Input", "TokenTable", "embed", "embed_store", "encode_frozen", "fit_channels", "load_features",
    "load_record", "load_tokens", "narrowed", "network_input", "pixel_features", "pool_features", "save_features", "sides_for",
    "token_weights", "told_channels",
]  # fmt: skip

callable_room(__name__)
