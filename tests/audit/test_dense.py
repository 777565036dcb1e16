"""Leak maps: the place of a planted sign, whether it is held there or imported, and silence without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dinodomain.audit import Asked, Effort, run_checks
from dinodomain.audit.checks import dense
from dinodomain.audit.masks.regions import background, border, otsu
from dinodomain.audit.observe.tokens import TokenSet, look_at_tokens, mean_token
from dinodomain.audit.protocol.attribute import permuted, read_attribute
from dinodomain.audit.protocol.leakmap import Basis, filled, read_map
from dinodomain.audit.protocol.verdict import Thresholds
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import unit_weights

EFFORT = Effort(permutations=99, bootstraps=60, folds=3)


@pytest.fixture(scope="module")
def look(planted):
    def run(observed, name):
        data = planted.audit_set(observed)
        return run_checks(data, asked=Asked(attributes=(name,)), effort=EFFORT, names=("dense",), observer=observed).report.findings[0]

    return run


@pytest.fixture(scope="module")
def with_glyph(planted, tmp_path_factory):
    return planted.observer(tmp_path_factory.mktemp("glyph"), planted.glyph)


def test_a_sign_in_one_patch_is_found_at_its_place_and_held_there(with_glyph, look):
    finding = look(with_glyph, "sign")
    assert (finding.verdict, finding.localised) == ("FLAG", "local")
    assert finding.evidence["peak"] == "row 2 of 4, column 3 of 4"
    assert finding.evidence["alone_at_peak"] / finding.evidence["full_at_peak"] >= 0.8


def test_without_a_sign_no_place_stands_out(with_glyph, look):
    finding = look(with_glyph, "coin")
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert finding.evidence["places_that_stand_out"] == 0


def test_another_exposure_is_everywhere_and_no_place(tmp_path, planted, look):
    finding = look(planted.observer(tmp_path, planted.brighter, num=120), "sign")
    assert (finding.verdict, finding.localised) == ("FLAG", "global")
    assert "everywhere" in finding.answer


def test_a_line_along_the_edge_is_told_by_the_border_alone(tmp_path, planted, look):
    finding = look(planted.observer(tmp_path, planted.framed, num=120), "sign")
    assert finding.verdict == "FLAG"
    assert finding.evidence["background"]["border"]["low"] > 0.6


def test_tokens_alone_and_in_full_are_those_of_the_encoder(with_glyph):
    tokens = look_at_tokens(with_glyph, np.arange(200), 0)
    shown = next(with_glyph.show(np.array([5])))
    with torch.no_grad():
        full = with_glyph.backbone.encode(shown.pixels).patches[0].numpy()
        alone = with_glyph.backbone.encode_alone(shown.pixels)[0].numpy()
    assert tokens.numbers.tolist() == list(range(200))
    np.testing.assert_allclose(tokens.tokens["full"][5], full, atol=1e-5)
    np.testing.assert_allclose(tokens.tokens["alone"][5], alone, atol=1e-5)


def test_what_attention_brings_is_told_from_what_a_place_holds():
    """Full tokens of one place carry the sign, tokens computed alone do not."""
    generator = np.random.default_rng(0)
    sign = np.repeat(["no", "yes"], 75)
    alone, full = generator.normal(size=(2, 150, 9, 8))
    full[sign == "yes", 2, 0] += 3.0
    tokens = TokenSet(
        numbers=np.arange(150), grid=(3, 3), tokens={"embedded": alone, "alone": alone, "full": full}, known=np.ones((150, 9), bool),
        norms=np.ones((150, 9)), regions={},
    )  # fmt: skip
    attribute = read_attribute("sign", sign, np.arange(150))
    reading = dense.read(tokens, attribute, EFFORT)
    assert reading.maps["full"].peak == 2
    assert min(reading.p) == reading.p[2] == 1 / 201  # none of 200 permutations reaches it
    assert dense.where(reading, 0.01, Thresholds()) == "imported"


def test_a_region_that_tells_it_has_the_small_p_value_and_no_other():
    generator = np.random.default_rng(0)
    sign = np.repeat(["no", "yes"], 75)
    tokens = generator.normal(size=(150, 9, 8))
    behind, silent = generator.normal(size=(2, 150, 8))
    behind[sign == "yes", 0] += 3.0
    made = TokenSet(
        numbers=np.arange(150), grid=(3, 3), tokens=dict.fromkeys(("embedded", "alone", "full"), tokens), known=np.ones((150, 9), bool),
        norms=np.ones((150, 9)), regions={"background": silent, "border": behind, "sky": behind},
    )  # fmt: skip
    reading = dense.read(made, read_attribute("sign", sign, np.arange(150)), EFFORT)
    *places, background, border = reading.p
    assert tuple(reading.regions) == ("background", "border")  # what is no background is not looked at
    assert border == 1 / 201
    assert min(*places, background) > 0.05


def test_places_without_data_say_nothing_and_have_no_score():
    tokens = np.random.default_rng(0).normal(size=(20, 3, 4))
    known = np.ones((20, 3), bool)
    known[:, 1] = False
    known[:5, 0] = False
    rows = filled(tokens, known)
    assert np.all(rows[:, 1] == rows[0, 1])
    np.testing.assert_allclose(rows[:5, 0], np.broadcast_to(tokens[5:, 0].mean(axis=0), (5, 4)))


def test_tokens_are_told_by_their_leading_components():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(400, 120)) * np.arange(1, 121) ** -0.5 + 3.0
    basis = Basis.of(rows)
    theirs = PCA(96, svd_solver="full").fit(rows)
    np.testing.assert_allclose(np.abs(basis.project(rows)), np.abs(theirs.transform(rows)), atol=1e-4)
    assert np.array_equal(Basis.of(rows[:, :40]).project(rows[:3, :40]), rows[:3, :40].astype(np.float32))


def test_a_region_is_told_by_the_mean_of_its_tokens_or_not_at_all():
    tokens = np.array([[[1.0], [3.0], [9.0]], [[1.0], [3.0], [9.0]]])
    share = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 0.25]])
    np.testing.assert_allclose(mean_token(tokens, share), [[(1.0 + 1.5) / 1.5], [np.nan]])


def test_otsu_splits_two_tones_and_the_background_lies_outside_the_body():
    assert 10 < otsu(np.r_[np.full(50, 10.0), np.full(30, 90.0)]) < 90
    image = torch.zeros(1, 1, 20, 20)
    image[0, 0, 5:15, 5:15] = 1.0
    image[0, 0, 9:11, 9:11] = 0.0  # a hole is body, not background
    outside = background(image, torch.ones(1, 20, 20, dtype=torch.bool))[0]
    assert int((~outside).sum()) == 100
    texture = torch.from_numpy(np.kron(np.random.default_rng(0).integers(40, 160, (16, 16)), np.ones((2, 2)))).float()[None, None]
    assert not background(texture, torch.ones(1, 32, 32, dtype=torch.bool)).any()  # much of what lies outside is as bright
    assert not background(torch.zeros(1, 1, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool)).any()


def test_the_border_is_a_ring_in_plane():
    ring = border((4, 32, 32))
    assert ring[:, :2].all()
    assert not ring[:, 2:-2, 2:-2].any()


def test_maps_do_not_depend_on_the_number_of_threads():
    generator = np.random.default_rng(0)
    tokens, before = generator.normal(size=(60, 5, 6)), torch.get_num_threads()
    attribute = read_attribute("a", np.repeat(["x", "y"], 30), np.arange(60))
    folds, shuffled = grouped_folds(attribute.unit_index, attribute.values, 3, 0), permuted(attribute, 40, 0)
    weights = list(unit_weights(attribute.unit_index, 20, 0))
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(read_map(tokens, np.array([True, True, False, True, True]), attribute, folds, shuffled, weights))
    finally:
        torch.set_num_threads(before)
    one, three = found
    assert np.isnan(one.value[2])
    for name in ("value", "null", "draws"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))
