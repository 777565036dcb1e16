"""The five domains pass the suite that every domain must pass, ingest included."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.testing import DomainTests
from dinodomain.types import Select
from dinodomain_remote_sensing import aerial, hyperspectral, landsat, sentinel1, sentinel2


class _Made(DomainTests):
    """The files are made by each class's ``fill``."""

    __test__ = False

    @pytest.fixture(autouse=True)
    def _files(self, lab):
        self.fill(lab)
        self.folder = str(lab.folder)

    def source_folder(self) -> str:
        return self.folder


class TestSentinel2(_Made):
    __test__ = True
    domain = sentinel2
    expected = 3
    entry_point = "sentinel2"

    def fill(self, lab):
        for band, gsd, side in (("B02", 10, 12), ("B05", 20, 6), ("B01", 60, 2)):
            lab.write(f"scene/T32VPH_20200113T103641_{band}.tif", lab.counts(side, side), gsd=gsd)
        lab.write("stack.tif", lab.counts(13, 8, 8), gsd=10)
        large = lab.counts(2, 300, 280)
        large[:, :40] = 0
        lab.write("wide_2020-02-02.tif", large, per_band={"descriptions": ("B02", "B03")})
        lab.write("change_mask.tif", lab.counts(8, 8))


class TestSentinel1(_Made):
    __test__ = True
    domain = sentinel1
    expected = 2
    entry_point = "sentinel1"
    select = Select(sar="db")

    def fill(self, lab):
        values = np.linspace(-25, 0, 2 * 20 * 20).reshape(2, 20, 20).astype("float32")
        values[:, :3] = np.nan
        lab.write("a.tif", values, per_band={"descriptions": ("VV", "VH")})
        for index, name in enumerate(("VV", "VH")):
            lab.write(f"b/S1A_IW_GRDH_1SDV_20170617T064724_x_{name}.tif", values[index])


class TestLandsat(_Made):
    __test__ = True
    domain = landsat
    expected = 2
    entry_point = "landsat"

    def fill(self, lab):
        for band in (2, 3, 4):
            lab.write(f"new/LC08_L1TP_013032_20180131_B{band}.TIF", lab.counts(16, 20), gsd=30)
        lab.write("old/LT52240631988227CUB02_B1.tif", lab.counts(15, 16, dtype="uint8"), gsd=30, nodata=255)


class TestAerial(_Made):
    __test__ = True
    domain = aerial
    expected = 2
    entry_point = "aerial"

    def fill(self, lab):
        lab.write("ortho.tif", lab.counts(4, 40, 30), gsd=0.25)
        lab.write("photo.tif", lab.counts(3, 16, 20, dtype="uint8"), photometric="RGB", crs="EPSG:32119", gsd=0.3)


class TestHyperspectral(_Made):
    __test__ = True
    domain = hyperspectral
    expected = 2
    entry_point = "hyperspectral"

    def fill(self, lab):
        texts = [f"{400 + 20 * n} nm" for n in range(30)]
        cube = lab.counts(30, 24, 20, dtype="int16")
        cube[:, :3] = -32768
        cube[7] = -32768
        lab.write("L2A_2022-07-24.tif", cube, nodata=-32768, gsd=30, per_band={"descriptions": texts, "scales": (1e-4,) * 30})
        path = lab.write("L2A_envi.bsq", lab.counts(3, 16, 16, dtype="uint16"), driver="ENVI", gsd=4)
        header = path.with_suffix(".hdr")
        header.write_text(
            header.read_text() + "wavelength units = Nanometers\nwavelength = {450, 550, 650}\nreflectance scale factor = 10000\n"
        )
