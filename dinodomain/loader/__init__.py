"""Disk to device: which tiles, in which order, decoded ahead of use."""
