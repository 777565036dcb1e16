"""Near in space and time: smooth fields score at random and not in blocks, content scores in both; distances and Moran's I by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import BallTree

from dinodomain.audit import AuditSet
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.nearness import EARTH_KM, block_trial, blocks, forward_trial, moran


def made(*, num_units=400, drift=0.0, seed=0):
    """Scenes in a square of four degrees; features tell the place closely, and a little of what is there."""
    generator = np.random.default_rng(seed)
    lon, lat = generator.uniform(10, 14, num_units), generator.uniform(-2, 2, num_units)
    waves = [np.sin(a * lon + b * lat + c) for a, b, c in generator.normal(size=(24, 3)) * 4]
    field = np.sin(3.1 * lon + 1) + np.sin(2.7 * lat)
    content, day = generator.integers(0, 2, num_units), generator.integers(0, 300, num_units)
    turn = np.where(day > 150, drift, 0.0)
    told = content * (1 - turn) + (1 - content) * turn + generator.normal(size=(3, num_units))
    columns = {
        "lon": lon, "lat": lat, "field": np.where(field > np.median(field), "wet", "dry"), "content": np.array(["crop", "town"])[content],
        "noise": generator.permutation(np.repeat(["a", "b"], num_units // 2)), "acquired": (np.datetime64("2020-01-01") + day).astype(str),
    }  # fmt: skip
    return audited(np.stack([*waves, *told], axis=1), columns)


def audited(rows, columns):
    units = np.arange(len(rows)).astype(str)
    return AuditSet(features={"audited": rows}, units=units, content_hash=None, sources=np.arange(len(rows)), columns=columns)


def test_a_smooth_field_is_told_at_random_and_not_in_new_areas(found):
    (finding,) = found(made(), "geotime", task="field")
    assert finding.verdict == "WARN"
    assert finding.core
    assert finding.estimate.low > 0.03
    sides = [row for row in finding.tables[0].rows if row[0].startswith("blocks")]
    assert sides[0][5] < sides[-1][5]  # the difference grows with the side
    assert finding.evidence["moran_p_adjusted"] <= 0.05
    assert any("new areas" in limit and "map of this area" in limit for limit in finding.limits)


def test_content_that_holds_anywhere_does_not_warn_and_noise_is_chance_in_both(found):
    (content,) = found(made(), "geotime", task="content")
    assert content.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    (noise,) = found(made(), "geotime", task="noise")
    assert noise.verdict != "WARN"
    row = noise.tables[0].rows[-2]
    assert row[3:5] == pytest.approx((0.5, 0.5), abs=0.1)


def test_a_change_over_time_shows_in_the_forward_split(found):
    rows = [found(made(drift=drift), "geotime", task="content")[0].tables[0].rows[-1] for drift in (0.0, 1.0)]
    assert [row[0] for row in rows] == ["forward in time"] * 2
    assert rows[1][5] > rows[0][5] + 0.1


def test_sets_without_a_place_are_not_applicable_and_few_places_not_assessable(make_set, found):
    assert found(make_set(), "geotime", task="site")[0].verdict == "NOT_APPLICABLE"
    data = made(num_units=100)
    same = data.columns | {"lon": np.full(100, 11.0), "lat": np.full(100, 1.0)}
    (finding,) = found(audited(data.audited, same), "geotime", task="content")
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "n_units")
    assert found(data, "geotime")[0].reason_code == "no_task"
    assert found(make_set(columns={"lon": np.full(520, ""), "lat": np.full(520, "")}, split=None), "geotime")[0].reason_code == "no_task"


def test_training_rows_keep_the_buffer_and_both_splits_have_as_many():
    data, side = made(), 80.0
    lon, lat = data.columns["lon"], data.columns["lat"]
    target = read_attribute("content", data.columns["content"], data.units)
    trial = block_trial(data.audited, target, lon, lat, side, Effort())
    assert sorted(trial.kept) == list(range(400))
    assert trial.share < 0.8
    assert len(np.unique(trial.units)) == blocks(lon, lat, side).max() + 1
    forward = forward_trial(data.audited, target, data.columns["acquired"], Effort())
    assert 200 < len(forward.kept) < 280


def test_blocks_are_about_as_wide_as_high_at_any_latitude_and_meet_at_the_date_line():
    for latitude in (0.0, 60.0, -75.0):
        step = np.degrees(100 / EARTH_KM)
        across = blocks(np.linspace(0, 360, 20_000, endpoint=False), np.full(20_000, latitude), 100.0).max() + 1
        middle = np.radians((np.floor(latitude / step) + 0.5) * step)
        assert across == pytest.approx(2 * np.pi * EARTH_KM * np.cos(middle) / 100, abs=1)
    assert blocks(np.array([-0.001, 359.999]), np.zeros(2), 100.0).tolist() == [0, 0]


def test_moran_by_hand_and_against_its_definition():
    lon, values = np.arange(4.0), np.array([1.0, 2.0, 4.0, 5.0])
    found, _ = moran(values, lon, np.zeros(4), neighbours=1, permutations=9, seed=0)
    z = values - 3  # -2 -1 1 2; nearest of 0 is 1, of 3 is 2; of 1 and 2 either side at equal distance
    assert found * (z**2).sum() - (z[0] * z[1] + z[3] * z[2]) in (pytest.approx(4.0), pytest.approx(1.0), pytest.approx(-2.0))
    generator = np.random.default_rng(0)
    lon, lat, values = generator.uniform(0, 1, 60), generator.uniform(0, 1, 60), generator.normal(size=60)
    near = BallTree(np.radians(np.stack([lat, lon], 1)), metric="haversine").query(np.radians(np.stack([lat, lon], 1)), k=6)[1][:, 1:]
    weights = np.zeros((60, 60))
    np.put_along_axis(weights, near, 0.2, axis=1)
    z = values - values.mean()
    found, p = moran(values, lon, lat, neighbours=5, permutations=199, seed=0)
    assert found == pytest.approx(60 / weights.sum() * (z @ weights @ z) / (z @ z))
    assert p > 0.01
    ordered, p = moran(np.sin(3 * lon), lon, lat, neighbours=5, permutations=199, seed=0)
    assert (ordered > 0.5, p) == (True, 1 / 200)
