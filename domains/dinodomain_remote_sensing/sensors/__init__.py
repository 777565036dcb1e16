"""The sensor families: what the numbers of their rasters mean."""
