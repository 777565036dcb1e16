"""Domains ``sentinel2``, ``sentinel1``, ``landsat``, ``aerial`` and ``hyperspectral``: rasters and pictures in, calibrated records out.

Needs ``pip install "dinodomain[remote-sensing]"`` when a source is read, not when this package is imported.
"""

from __future__ import annotations

from dinodomain_remote_sensing.raster_domain import RasterDomain
from dinodomain_remote_sensing.sensors.aerial import AERIAL
from dinodomain_remote_sensing.sensors.hyperspectral import HYPERSPECTRAL
from dinodomain_remote_sensing.sensors.landsat import LANDSAT
from dinodomain_remote_sensing.sensors.sentinel1 import SENTINEL1
from dinodomain_remote_sensing.sensors.sentinel2 import SENTINEL2

sentinel2 = RasterDomain(SENTINEL2)
sentinel1 = RasterDomain(SENTINEL1)
landsat = RasterDomain(LANDSAT)
aerial = RasterDomain(AERIAL)
hyperspectral = RasterDomain(HYPERSPECTRAL)

__all__ = ["RasterDomain", "aerial", "hyperspectral", "landsat", "sentinel1", "sentinel2"]
