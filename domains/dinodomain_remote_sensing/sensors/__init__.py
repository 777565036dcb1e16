"""The four sensor families: what the numbers of their rasters mean."""
