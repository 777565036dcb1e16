"""Disk to device: which tiles, in which order, decoded ahead of use."""

from dinodomain.loader.loader import Loader, State, sweep
from dinodomain.loader.order import Draw, Order
from dinodomain.loader.plan import LoaderPlan
from dinodomain.loader.tiles import Bucket, Tiles, find_tiles

__all__ = ["Bucket", "Draw", "Loader", "LoaderPlan", "Order", "State", "Tiles", "find_tiles", "sweep"]
