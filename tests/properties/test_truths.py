"""Numbers of properties where the truth was planted: what is right scores 1, what knows nothing scores chance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dinodomain.probes.matching import Matches
from dinodomain.properties import attention, components, matching, propagation, regions, retrieval
from dinodomain.properties.report import NotPossible
from dinodomain.properties.scene import Pair, Seen

GRID = (8, 8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def seen(tokens: np.ndarray) -> Seen:
    return Seen(tokens=tokens, pooled=tokens.mean(axis=0), attention=None)


def square(step: int) -> np.ndarray:
    """[64] a square of 3x3 patches that lies ``step`` patches to the right."""
    mask = np.zeros(GRID, bool)
    mask[2:5, step : step + 3] = True
    return mask.ravel()


def of_content(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """[S, 64, 16] tokens of a square over a ground of distinct patches."""
    inside = np.zeros(16)
    inside[12:] = 5
    ground = np.pad(rng.normal(size=(64, 12)), ((0, 0), (0, 4)))
    return np.where(masks[..., None], inside, ground)


def of_place(rng: np.random.Generator, images: int) -> np.ndarray:
    """[S, 64, 16] tokens that say where a patch lies in its image and nothing else."""
    return np.broadcast_to(rng.normal(size=(64, 16)), (images, 64, 16))


def moving_volume(rng: np.random.Generator, valid: np.ndarray) -> Any:
    truth = np.stack([square(step) for step in range(5)]) & valid
    kinds = {"pretrained": of_content(rng, truth), "random_init": of_place(rng, 5)}
    tile = SimpleNamespace(
        seen={kind: seen(tokens.reshape(-1, 16)) for kind, tokens in kinds.items()}, grid=(5, *GRID), valid=valid.ravel(), unit="a"
    )
    plane = SimpleNamespace(through=0, name="axial")
    return propagation._Volume(number=0, tile=tile, plane=plane, begin=0, start=truth[0], truth=truth, valid=valid)


def test_carrying_a_square_that_moves_a_patch_a_slice_is_judged_by_its_overlap(rng):
    volume = moving_volume(rng, np.ones((5, 64), bool))
    told = propagation._judge([volume], {kind: [propagation._carried(volume, kind)] for kind in ("pretrained", "random_init")})
    left = np.mean([6 / 12, 3 / 15, 0, 0])  # three columns that move by one lose one and gain one
    assert told.values["pretrained"][0] == 1.0
    assert told.values["random_init"][0] == pytest.approx(left), "what knows the place only leaves it where it is"
    assert told.chance == pytest.approx(left)


def test_what_is_left_where_it_is_is_cut_by_the_data_as_what_is_carried_is(rng):
    valid = np.ones((5, *GRID), bool)
    valid[1:, :, 0] = False
    volume = moving_volume(rng, valid.reshape(5, 64))
    told = propagation._judge([volume], {"pretrained": [propagation._carried(volume, "pretrained")]})
    assert told.chance == pytest.approx(np.mean([6 / 9, 3 / 12, 0, 0]))


def test_a_slice_without_mask_in_which_something_is_carried_counts_against_it(rng):
    volume = moving_volume(rng, np.ones((5, 64), bool))
    volume.truth[3:] = False
    assert propagation._score(volume, np.stack([square(step) for step in range(5)])) == pytest.approx(np.mean([1, 1, 0, 0]))
    assert propagation._score(volume, volume.truth) == 1.0, "slices that hold nothing in either are not asked"


def test_masks_of_two_dates_are_compared_and_empty_ones_ask_nothing():
    drawn = [(square(0), square(1)), (square(0), np.zeros(64, bool)), (np.zeros(64, bool), square(0)), (None, square(0))]
    valid = np.ones(64, bool)
    twins = [tuple(SimpleNamespace(mask=mask, valid=valid, unit=str(place)) for mask in two) for place, two in enumerate(drawn)]
    carried = {"pretrained": [square(1)] * 4, "random_init": [square(2)] * 4}
    masks = SimpleNamespace(of=lambda tile: tile.mask)
    told = propagation._date_masks(None, twins, carried, masks)
    assert told is not None
    assert told.count == 1
    assert (told.values["pretrained"][0], told.values["random_init"][0], told.chance) == (1.0, 0.5, 0.5)
    assert propagation._date_masks(None, twins[1:], {kind: own[1:] for kind, own in carried.items()}, masks) is None


def test_a_region_is_carried_over_to_another_date(rng):
    masks = np.stack([square(0), square(1)])
    tokens = of_content(rng, masks)
    one, two = (SimpleNamespace(seen={"pretrained": seen(own)}, valid=np.ones(64, bool), grid=GRID) for own in tokens)
    assert (propagation._to_date(one, two, masks[0], "pretrained") == masks[1]).all()
    assert propagation._date_cycle(one, two, masks[0], "pretrained") == 1.0


def test_features_that_know_the_place_only_find_nothing_at_another_date(rng):
    ground = rng.normal(size=(*GRID, 16))
    by_place = rng.normal(size=(36, 16))  # 6x6 patches are left of 8x8

    def part(picture: object, begin: tuple[int, ...], count: tuple[int, ...]) -> Any:
        box = ground[tuple(slice(first, first + own) for first, own in zip(begin, count, strict=True))].reshape(-1, 16)
        return SimpleNamespace(seen={"content": seen(box), "place": seen(by_place)}, valid=np.ones(len(box), bool), grid=count)

    tile = SimpleNamespace(grid=GRID)
    pair = propagation._moved(SimpleNamespace(part=part), tile, tile)
    assert pair is not None
    assert (pair.index >= 0).sum() == 16
    assert propagation._across(pair, "content") == 1.0
    assert propagation._across(pair, "place") == 0.0
    small = SimpleNamespace(grid=(4, 4))
    assert propagation._moved(SimpleNamespace(part=part), small, small) is None, "two patches off leaves two, that share none"


def test_the_region_that_all_kinds_carry_is_cut_from_pixels_and_not_from_what_is_judged(rng):
    tokens = of_content(rng, square(2)) + rng.normal(0, 0.01, (64, 16))
    tile = SimpleNamespace(seen={"pixels": seen(tokens)}, valid=np.ones(64, bool))  # no network is asked
    start = propagation._region(None, tile, SimpleNamespace(of=lambda tile: None))
    assert (start == square(2)).all() or (~start == square(2)).all()


def test_an_empty_mask_has_no_overlap_instead_of_none():
    part, valid = square(0), np.ones(64, bool)
    assert np.isnan(components._best(part, np.zeros(64, bool), valid))
    assert np.isnan(components._best(part, None, valid))
    assert components._best(~part, part, valid) == 1.0
    assert components._best(part, square(1), valid) == 0.5


def test_a_plain_colour_has_no_contrast(rng):
    texture = rng.normal(size=(3, 4))
    tokens = np.stack([np.repeat([0.9, 0.1, 0.2], 4), texture.ravel()])
    tile = SimpleNamespace(seen={"pixels": seen(tokens)}, pixels=np.zeros((3, 4, 2)))
    assert attention._contrast(tile) == pytest.approx([0.0, texture.std(axis=1).mean()])


def test_lines_from_patches_without_a_partner_do_not_count():
    found = Matches(nearest=np.arange(4), similarity=np.ones(4), mutual=np.array([True, True, True, False]))
    hit = np.array([True, False, False, False])
    assert matching._true(found, hit, np.array([True, True, False, True])) == 0.5
    assert matching._true(found, hit, np.array([False, False, False, True])) == 0.0


def test_cuts_that_have_nothing_in_common_score_what_is_called_chance(rng):
    pairs = [Pair(first=None, second=None, index=np.arange(16), position=np.zeros((16, 2))) for _ in range(40)]
    alike = rng.random((40, 16)) > 0.5
    unlike = rng.random((40, 16)) > 0.5
    blind = regions._cut_by_chance(pairs, list(zip(alike, unlike)))
    scored = [regions._same_cut(pair, two) for pair, two in zip(pairs, zip(alike, unlike))]
    assert np.mean(blind) > 0.1, "the better of both sides is above 0"
    assert np.mean(scored) == pytest.approx(np.mean(blind), abs=0.06)
    assert all(regions._same_cut(pair, (one, ~one)) == 1.0 for pair, one in zip(pairs, alike) if 0 < one.sum() < 16)
    assert np.isnan(regions._cut_by_chance(pairs[:1], [(alike[0], alike[0])])).all()


def test_a_scene_is_no_neighbour_of_itself_where_labels_are_of_scenes():
    rows, units = np.array([0, 0, 1, 1, 2, 2]), np.array(["a", "b", "b", "c", "d", "e"])
    scene = SimpleNamespace(units=units, all_tiles=SimpleNamespace(rows=rows))
    every = np.arange(6)
    assert retrieval._units(scene, every, rows, of_sources=False).tolist() == units.tolist()
    assert retrieval._units(scene, every, rows, of_sources=True).tolist() == ["a", "a", "a", "a", "d", "d"]
    far = np.array([0, 3, 4])  # b, which joins scenes 0 and 1, is not in the gallery
    assert retrieval._units(scene, far, rows[far], of_sources=True).tolist() == ["a", "a", "d"]
    with pytest.raises(NotPossible, match="all sources share places"):
        retrieval._units(scene, every[:4], rows[:4], of_sources=True)
