"""Places: coordinates in the features are found beyond the baseline, shuffled ones are not, and blocks keep neighbours apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dinodomain.audit import Policy
from dinodomain.audit.protocol.places import BUFFER_KM, distance_km, off_by, place, to_vectors


def scenes(make_set, *, marked, count=240, seed=0, **changes):
    """Scenes over Europe; month and sensor go with the latitude; features hold the coordinates where ``marked``."""
    generator = np.random.default_rng(seed)
    lon, lat = generator.uniform(-8, 28, count), generator.uniform(38, 56, count)
    features = generator.normal(size=(count, 8))
    if marked:
        features[:, :3] = 60 * to_vectors(lon, lat) + 0.1 * features[:, :3]
    month = np.where(lat > 47, "2020-06-01", "2020-01-01")
    settings = {
        "features": {"audited": features, "pixels": generator.normal(size=(count, 6))}, "units": np.arange(count).astype(str),
        "content_hash": None, "sources": np.arange(count), "split": None,
        "columns": {"lon": lon.astype(str), "lat": lat.astype(str), "acquired": month, "sensor": np.where(lon > 10, "A", "B")},
    }  # fmt: skip
    return make_set(**(settings | changes))


def test_planted_coordinates_are_a_warning_and_a_flag_where_places_are_protected(make_set, found):
    data = scenes(make_set, marked=True)
    (finding,) = found(data, "geolocation", domains=("sensor",))
    assert (finding.verdict, finding.encoded) == ("WARN", True)
    assert finding.estimate.low > 0.3
    assert finding.evidence["baseline"] == ["month", "sensor", "pixels"]
    assert [row[0] for row in finding.tables[0].rows] == ["audited encoder", "baseline"]
    (flagged,) = found(data, "geolocation", domains=("sensor",), policy=Policy(protected_places=True))
    assert (flagged.verdict, flagged.reason_code) == ("FLAG", "protected_places")


def test_features_without_a_place_do_no_better_than_the_baseline(make_set, found):
    (finding,) = found(scenes(make_set, marked=False), "geolocation", domains=("sensor",))
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert finding.estimate.low < 0.05


def test_it_says_why_it_does_not_tell(make_set, found):
    assert found(make_set(), "geolocation")[0].verdict == "NOT_APPLICABLE"
    assert found(scenes(make_set, marked=True, count=20), "geolocation")[0].reason_code == "n_units"
    data = scenes(make_set, marked=True, count=60)
    near = replace(data, columns=data.columns | {"lon": np.full(60, "7.0"), "lat": np.linspace(47, 47.5, 60).astype(str)})
    assert found(near, "geolocation")[0].reason_code == "n_blocks"


def test_distances_are_great_circles():
    one = to_vectors(np.array([0.0, 0.0, 179.0]), np.array([0.0, 90.0, 0.0]))
    other = to_vectors(np.array([90.0, 0.0, -179.0]), np.array([0.0, -90.0, 0.0]))
    quarter = np.pi / 2 * 6371.0088
    np.testing.assert_allclose(distance_km(one, other), [quarter, 2 * quarter, quarter / 45], rtol=1e-9)


def test_units_and_neighbours_are_never_on_both_sides():
    generator = np.random.default_rng(1)
    units = np.arange(300) // 2
    lon, lat = generator.uniform(0, 10, 150)[units] + 0.1 * (np.arange(300) % 2), generator.uniform(40, 46, 150)[units]
    places = place(lon, lat, units, 5, 0)
    for train, test in places.parts():
        assert not set(units[train]) & set(units[test])
        gaps = [distance_km(np.broadcast_to(places.vectors[row], (len(train), 3)), places.vectors[train]).min() for row in test]
        assert min(gaps) > BUFFER_KM


def test_blocks_join_across_the_date_line():
    places = place(np.array([179.999, -179.999, 0.0]), np.array([0.0, 0.0, 0.0]), np.array([0, 0, 1]), 2, 0)
    assert places.blocks[0] == places.blocks[1] != places.blocks[2]


def test_without_features_every_row_is_put_where_most_are():
    lon = np.r_[np.linspace(0, 0.9, 50), np.linspace(40, 49, 10)]
    places = place(lon, np.zeros(60), np.arange(60), 5, 0)
    assert np.median(off_by(None, places)[:50]) < 6371 * np.pi
    assert np.isfinite(off_by(None, places)).sum() > 40


@pytest.mark.parametrize("seed", [0, 1])
def test_nearest_rows_place_where_a_line_cannot(seed):
    """The latitude on a circle: ridge to the sphere is poor, neighbours are good, and the better one is taken."""
    generator = np.random.default_rng(seed)
    lon, lat = generator.uniform(0, 2, 300), generator.uniform(30, 58, 300)
    angle = lat / 30 * 2 * np.pi
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    errors = off_by(features, place(lon, lat, np.arange(300), 5, 0))
    assert np.median(errors) < 250
