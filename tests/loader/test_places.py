"""Which sources share a grid and some ground: the search against all pairs, one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dinodomain.loader.places import TOLERANCE, UNKNOWN, Sources, _overlapping, find_partners, overlaps_any


def scene(x, y, size=(20, 20), *, pixel=10.0, turn=0.0, crs="one", day="2020-01-01", channels=1, unit=""):
    """A scene whose upper left corner is ``x`` columns and ``y`` rows into a grid turned by ``turn`` radians."""
    cos, sin = pixel * np.cos(turn), pixel * np.sin(turn)
    vectors = [cos, sin, sin, -cos]
    origin = [1e5 + vectors[0] * x + vectors[1] * y, 4e6 + vectors[2] * x + vectors[3] * y]
    return {
        "shape": (channels, *size),
        "crs": crs,
        "acquired": day,
        "unit": unit,
        "affine": [vectors[0], vectors[1], origin[0], vectors[2], vectors[3], origin[1], 0, 0, 1],
    }


@pytest.fixture
def sources_of(made_up_store):
    def make(*scenes):
        columns = {name: [facts[name] for facts in scenes] for name in ("crs", "acquired", "affine", "unit")}
        return Sources.of(made_up_store([facts["shape"] for facts in scenes], chunks=[16] * len(scenes), **columns))

    return make


def listed(sources, partners):
    """{(one, two): shift} of all pairs of different sources."""
    found = {}
    for row, place in enumerate(partners.place.tolist()):
        for entry in range(partners.ends[place], partners.ends[place + 1]):
            if partners.rows[entry] != row:
                found[row, int(partners.rows[entry])] = tuple(partners.shifts[entry].tolist())
    return found


def test_a_crop_further_down_the_same_grid_differs_by_its_shift(sources_of):
    sources = sources_of(scene(0, 0), scene(7, 3), scene(0, 0, day="2021-01-01"))
    found = listed(sources, find_partners(sources))
    assert found[0, 1] == (-3, -7)
    assert found[1, 0] == (3, 7)
    assert found[0, 2] == (0, 0)
    assert len(found) == 6


def test_grids_that_differ_are_never_joined(sources_of):
    others = [
        scene(0.5, 0),
        scene(0, 0.01),
        scene(0, 0, pixel=10.01),
        scene(0, 0, turn=0.01),
        scene(0, 0, crs="two"),
        scene(0, 0, unit="another"),
        scene(0, 0, channels=2),
        scene(20, 0),
        scene(0, 0, day=None),
        scene(0, 0, day="yesterday"),
        {**scene(0, 0), "crs": None},
        {**scene(0, 0), "affine": None},
        {**scene(0, 0), "affine": [0.0] * 9},
        {**scene(0, 0), "affine": [1e300, 0, 0, 0, 1.0, 0, 0, 0, 1]},
    ]
    sources = sources_of(scene(0, 0), *others)
    assert not [pair for pair in listed(sources, find_partners(sources)) if 0 in pair]


def test_differences_below_a_thousandth_of_a_pixel_are_forgiven_wherever_both_have_pixels(sources_of):
    near, far = TOLERANCE * 0.9, TOLERANCE * 1.1
    sources = sources_of(scene(0, 0), scene(5 + near, -4), scene(5 + far, -4), scene(0, 0, pixel=10 * (1 + near / 20)))
    found = listed(sources, find_partners(sources))
    assert found[0, 1] == (4, -5)
    assert (0, 2) not in found
    assert found[0, 3] == (0, 0)
    longer = sources_of(scene(0, 0, (400, 20)), scene(0, 0, (400, 20), pixel=10 * (1 + near / 20)))
    assert not listed(longer, find_partners(longer))  # the same pixel size drifts apart over 400 rows


def test_turned_grids_and_affines_of_six_numbers_are_understood(sources_of):
    turned = [scene(0, 0, turn=0.3), scene(4, 9, turn=0.3)]
    turned[1]["affine"] = turned[1]["affine"][:6]
    sources = sources_of(*turned)
    assert listed(sources, find_partners(sources)) == {(0, 1): (-9, -4), (1, 0): (9, 4)}


def test_dates_are_calendar_days_of_whatever_iso_text(sources_of):
    texts = ["1970-01-02", "2020-02-29T23:59:59.123Z", "1969-12-31 10:00:00", None, "", "20200101", "2020-13-01"]
    days = sources_of(*(scene(0, 0, day=text) for text in texts)).days.tolist()
    assert days == [1, 18321, -1, *[UNKNOWN] * 4]


def test_entries_are_sorted_by_date_and_can_be_restricted(sources_of):
    days = ["2020-03-01", "2020-01-01", "2020-02-01", "2020-01-01"]
    partners = find_partners(sources_of(*(scene(0, 0, day=day) for day in days)))
    assert partners.rows.tolist() == [1, 3, 2, 0]
    assert (np.diff(partners.keys) >= 0).all()
    left = partners.of_rows(np.array([0, 3]))
    assert (left.rows.tolist(), left.ends[:2].tolist()) == ([3, 0], [0, 2])
    assert left.days.tolist() == sorted(left.days.tolist())


def test_the_search_finds_what_all_pairs_would(sources_of, monkeypatch):
    monkeypatch.setattr("dinodomain.loader.places._SLAB", 30)
    rng = np.random.default_rng(0)
    for turn in (0.0, 0.7):
        scenes = [
            scene(*rng.integers(0, 150, 2).tolist(), tuple(rng.integers(3, 30, 2).tolist()), turn=turn, crs=str(rng.integers(2)))
            for _ in range(60)
        ]
        scenes.append(scene(-50, -50, (300, 300), turn=turn, crs="0"))
        scenes += [dict(facts) for facts in scenes[:10]]
        sources = sources_of(*scenes)
        assert listed(sources, find_partners(sources)) == all_pairs(sources)


def all_pairs(sources):
    expected = {}
    for one, two in itertools.permutations(range(len(sources.days)), 2):
        if sources.crs[one] != sources.crs[two]:
            continue
        matrix = [np.vstack([sources.affine[row].reshape(2, 3), [0, 0, 1]]) for row in (one, two)]
        shift = np.rint((np.linalg.inv(matrix[1]) @ matrix[0])[:2, 2][::-1]).astype(int)
        low, high = np.maximum(-shift, 0), np.minimum(sources.size[one], sources.size[two] - shift)
        if (high > low).all():
            expected[one, two] = tuple(shift.tolist())
    return expected


def test_boxes_of_very_different_heights_meet_once():
    rng = np.random.default_rng(3)
    low = rng.integers(-100, 100, (200, 2)).astype(float)
    high = low + rng.integers(1, [20, 400], (200, 2))
    group = rng.integers(0, 3, 200)
    found = [pair for one, two in _overlapping(group, low, high) for pair in zip(one.tolist(), two.tolist())]
    expected = {
        (i, j)
        for i, j in itertools.combinations(range(200), 2)
        if group[i] == group[j] and (low[i] < high[j]).all() and (low[j] < high[i]).all()
    }
    assert len(found) == len({frozenset(pair) for pair in found})
    assert {tuple(sorted(pair)) for pair in found} == expected


def test_a_store_without_positions_has_no_partners(sources_of):
    sources = sources_of(*[{**scene(0, 0), "crs": None}] * 3)
    partners = find_partners(sources)
    assert len(partners.rows) == 0
    assert (np.diff(partners.ends)[partners.place] == 0).all()
    assert not overlaps_any(sources).any()


def test_overlap_on_other_grids_is_told_from_no_overlap(sources_of):
    sources = sources_of(scene(0, 0), scene(0.5, 0), scene(500, 0), scene(0, 0, crs="two"), scene(900, 0), scene(900, 0))
    assert overlaps_any(sources).tolist() == [True, True, False, False, True, True]
