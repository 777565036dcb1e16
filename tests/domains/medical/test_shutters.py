"""Masks derived by hand: rows and columns from 1, edges inside."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain_medical.shutters import aperture


def drawn(text: str) -> np.ndarray:
    """``#`` is hidden, ``.`` is seen."""
    return np.array([[letter == "#" for letter in line] for line in text.split()])


RECTANGLE = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 2,
    "ShutterRightVerticalEdge": 4,
    "ShutterUpperHorizontalEdge": 3,
    "ShutterLowerHorizontalEdge": 4,
}


def test_a_rectangle_counts_from_one_and_its_edges_are_seen():
    found = aperture(RECTANGLE, "Shutter", (5, 6))
    np.testing.assert_array_equal(found.hidden, drawn("###### ###### #...## #...## ######"))
    assert (found.shapes, found.warnings) == (("rectangular",), ())


def test_a_circle_of_radius_two_is_a_disc_about_its_row_and_column():
    tags = {"ShutterShape": ["CIRCULAR"], "CenterOfCircularShutter": [3, 4], "RadiusOfCircularShutter": 2}
    np.testing.assert_array_equal(aperture(tags, "Shutter", (5, 7)).hidden, drawn("###.### ##...## #.....# ##...## ###.###"))


def test_a_circle_is_an_ellipse_of_pixels_where_rows_lie_further_apart():
    tags = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [3, 4], "RadiusOfCircularShutter": 2}
    np.testing.assert_array_equal(
        aperture(tags, "Shutter", (5, 7), row_to_column=2.0).hidden, drawn("####### ###.### #.....# ###.### #######")
    )


def test_a_triangle_is_row_column_pairs_closed_from_last_to_first():
    tags = {"CollimatorShape": "POLYGONAL", "VerticesOfThePolygonalCollimator": [1, 1, 5, 1, 5, 5]}
    np.testing.assert_array_equal(aperture(tags, "Collimator", (6, 6)).hidden, drawn(".##### ..#### ...### ....## .....# ######"))


def test_a_notched_polygon_hides_its_notch():
    notch = [1, 1, 1, 5, 5, 5, 3, 3, 5, 1]
    tags = {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": notch}
    np.testing.assert_array_equal(aperture(tags, "Shutter", (5, 5)).hidden, drawn("..... ..... ..... ..#.. .###."))


def test_several_shapes_leave_what_lies_inside_all_of_them():
    tags = RECTANGLE | {"ShutterShape": ["RECTANGULAR", "CIRCULAR"], "CenterOfCircularShutter": [3, 3], "RadiusOfCircularShutter": 1}
    found = aperture(tags, "Shutter", (5, 6))
    np.testing.assert_array_equal(found.hidden, drawn("###### ###### #...## ##.### ######"))
    assert found.shapes == ("circular", "rectangular")


def test_shapes_that_reach_past_the_image_are_clipped():
    wide = RECTANGLE | {"ShutterLeftVerticalEdge": -5, "ShutterRightVerticalEdge": 900, "ShutterUpperHorizontalEdge": 0}
    np.testing.assert_array_equal(aperture(wide, "Shutter", (5, 6)).hidden, drawn("...... ...... ...... ...... ######"))
    assert aperture(wide | {"ShutterLowerHorizontalEdge": 6}, "Shutter", (5, 6)).hidden is None
    corner = {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [-2, -2, -2, 9, 2, 9, 2, -2]}
    np.testing.assert_array_equal(aperture(corner, "Shutter", (3, 4)).hidden, drawn(".... .... ####"))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (RECTANGLE | {"ShutterRightVerticalEdge": 1}, "columns 2..1 and rows 3..4 are no rectangle"),
        (RECTANGLE | {"ShutterUpperHorizontalEdge": None}, "ShutterUpperHorizontalEdge is missing"),
        (RECTANGLE | {"ShutterUpperHorizontalEdge": 50, "ShutterLowerHorizontalEdge": 60}, "would hide the whole image"),
        ({"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [3, 4], "RadiusOfCircularShutter": 0}, "a circle of radius 0"),
        ({"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [3], "RadiusOfCircularShutter": 2}, "missing or incomplete"),
        ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 5, 5]}, "a polygon of 2 vertices"),
        ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 3, 3, 5, 5]}, "a polygon without area"),
        ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 3]}, "no pairs"),
        ({"ShutterShape": "BITMAP"}, "only presentation states"),
        ({"ShutterShape": "HEART"}, "an unknown name"),
    ],
)
def test_a_degenerate_shape_hides_nothing_and_is_said(tags, reason):
    found = aperture(tags, "Shutter", (5, 6))
    assert found.hidden is None
    assert reason in found.warnings[0]


def test_no_module_hides_nothing():
    assert aperture({}, "Collimator", (5, 6)).hidden is None
