from __future__ import annotations

import numpy as np
import pytest

from dinodomain.errors import BadSource
from dinodomain_medical.values import check_hounsfield, check_not_mask, doubts_hounsfield, storable


@pytest.mark.parametrize(
    ("values", "dtype", "stage"),
    [
        (np.array([-3, 7], np.int8), "int16", "int8 -> int16 (values -3..7 fit)"),
        (np.array([-30000, 7], np.int64), "int16", "int64 -> int16 (values -30000..7 fit)"),
        (np.array([0, 60000], np.uint32), "uint16", "uint32 -> uint16 (values 0..60000 fit)"),
        (np.array([-5, 60000], np.int32), "float32", "int32 -> float32, exact (values -5..60000)"),
        (np.array([0.5, 7], np.float16), "float32", "float16 -> float32"),
        (np.array([1, 7], ">u2"), "uint16", None),
        (np.array([1, 7], np.uint8), "uint8", None),
    ],
)
def test_values_survive_in_a_type_that_a_store_holds(values, dtype, stage):
    stored = storable(values, "x")
    assert stored.array.dtype == np.dtype(dtype)
    assert stored.array.dtype.isnative
    np.testing.assert_array_equal(stored.array, values)
    assert stored.stages == ((stage,) if stage else ())


@pytest.mark.parametrize(
    "values", [np.array([0, 2**25], np.int32), np.array([1j, 2]), np.zeros(2, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])]
)
def test_what_would_lose_values_is_refused(values):
    with pytest.raises(BadSource):
        storable(values, "x")


def test_empty_and_two_valued_volumes_are_no_images():
    with pytest.raises(BadSource, match="every voxel is 4"):
        check_not_mask(np.full(9, 4), "x")
    with pytest.raises(BadSource, match="only the values 0 and 7: a mask"):
        check_not_mask(np.array([0, 7, 7]), "x")
    check_not_mask(np.array([0, 3, 7]), "x")


def test_hounsfield_units_need_something_below_water_or_a_declared_offset():
    with pytest.raises(BadSource, match=r"values 0\.\.4095 cannot be Hounsfield units"):
        check_hounsfield(np.array([0, 4095]), 1.0, 0.0, "x")
    check_hounsfield(np.array([1100, 4095]), 1.0, -1024.0, "x")
    check_hounsfield(np.array([-1000, 20]), 1.0, 0.0, "x")


@pytest.mark.parametrize(("low", "doubted"), [(-1024, False), (-300, False), (-150, True), (-47, True)])
def test_a_file_without_air_lung_or_fat_is_doubted_as_ct(low: int, doubted: bool) -> None:
    assert bool(doubts_hounsfield(np.array([low, 800]), 1.0, 0.0)) is doubted
    assert bool(doubts_hounsfield(np.array([low + 1024, 1824]), 1.0, -1024.0)) is doubted
