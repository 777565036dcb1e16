"""Images made again from tokens: legible where tokens hold the pixels, not where they know nothing; the decoder and what measures it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dinodomain.audit import Asked, Policy, run_checks
from dinodomain.audit.checks import reconstruction
from dinodomain.audit.masks.ocr import as_pictures, make_reader, plant
from dinodomain.audit.observe.restore import Patched, look_at_patches, look_at_planted, patches_of
from dinodomain.audit.protocol.decoder import fit_decoder, similarity

PATCH = (8, 8)


def smooth(num, seed):
    """[n, 1, 64, 96] images of soft tones between .2 and .6."""
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.uniform(0.2, 0.6, (num, 1, 4, 6)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=(64, 96), mode="bilinear")


def patched(images, tokens, planted=()):
    grid = (images.shape[2] // 8, images.shape[3] // 8)
    kinds = {"audited": tokens, "untrained": np.random.default_rng(9).normal(size=tokens.shape)}
    rows = np.arange(len(images))
    return Patched(numbers=rows, tokens=kinds, patches=patches_of(images, PATCH), grid=grid, patch=PATCH, planted=planted)


@pytest.fixture(scope="module")
def written():
    """Ten images with an id in each."""
    return text_in(smooth(10, 1), 3)


def text_in(images, seed):
    """The images with an id of 16 pixels in each, and what was written."""
    out, planted, generator = [], [], np.random.default_rng(seed)
    for image in images:
        picture, made = plant(as_pictures(image[None])[0], size=16, contrast=120, rotation=0, generator=generator)
        out.append(torch.from_numpy(picture[None, :, :, 0].astype(np.float32) / 255))
        planted.append(made)
    return torch.stack(out), tuple(planted)


@pytest.fixture
def tried(written, monkeypatch):
    """Findings where tokens are these of patches."""
    pytest.importorskip("rapidocr")
    monkeypatch.setattr(reconstruction, "MIN_READABLE", 5)
    monkeypatch.setattr(reconstruction, "fit_decoder", partial(fit_decoder, steps=20))
    images, planted = written

    def run(tokens_of):
        plain, more = smooth(30, 2), torch.cat([smooth(40, 5), text_in(smooth(20, 6), 4)[0]])
        trained = patched(more, tokens_of(patches_of(more, PATCH)))
        evidence = SimpleNamespace(lines=Policy().thresholds, effort=SimpleNamespace(seed=0))
        sides = patched(plain, tokens_of(patches_of(plain, PATCH))), patched(images, tokens_of(patches_of(images, PATCH)), planted)
        return reconstruction._tried(evidence, trained, *sides, make_reader(), {})

    return run


def test_tokens_that_hold_the_pixels_give_them_back_down_to_text(tried):
    mixing = np.random.default_rng(0).normal(size=(64, 80))
    finding, pictures = tried(lambda patches: patches @ mixing)
    assert finding.verdict == "FLAG"
    assert finding.estimate.value > 0.8
    assert finding.evidence["untrained"]["legible"] == 0.0
    assert finding.evidence["audited"]["most_like_their_own"] == 1.0
    assert finding.evidence["audited"]["structural_similarity"] > 0.9 > finding.evidence["untrained"]["structural_similarity"]
    assert pictures.files["reconstruction.png"].startswith(b"\x89PNG")


def test_tokens_that_know_nothing_give_nothing_back(tried):
    generator = np.random.default_rng(0)
    finding, _ = tried(lambda patches: generator.normal(size=(*patches.shape[:2], 80)))
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert finding.estimate.value == 0.0


def test_text_that_cannot_be_read_in_the_images_says_nothing(tried, monkeypatch):
    monkeypatch.setattr(reconstruction, "MIN_READABLE", 1000)
    (finding,) = tried(lambda patches: patches)
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "ocr_recall")


def test_patches_come_back_as_the_images_they_were_cut_from():
    for size, patch in (((3, 16, 24), (8, 4)), ((1, 4, 8, 12), (2, 4, 4))):
        images = torch.rand(2, *size)
        grid = tuple(side // one for side, one in zip(size[1:], patch))
        patches = patches_of(images, patch)
        whole = Patched(numbers=np.arange(2), tokens={}, patches=patches, grid=grid, patch=patch)
        assert torch.equal(whole.images(patches), images)
        first = images.numpy()[(0, slice(None), *(slice(side) for side in patch))]
        assert np.array_equal(patches[0, 0], first.reshape(-1))


def test_tokens_belong_to_the_patches_and_text_changes_both(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=6)
    plain = look_at_patches(observed, np.array([1, 4]))
    shown = next(observed.show(np.array([4])))
    mean, deviation = observed.levels(shown)
    np.testing.assert_allclose(plain.images(plain.patches)[1], (shown.pixels[0] * deviation + mean).clamp(0, 1), atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(plain.tokens["audited"][1], observed.backbone.encode(shown.pixels).patches[0], atol=1e-5)
    changed = look_at_planted(observed, np.array([1, 4]), [(8, 80)], 0)
    assert len(changed.planted) == len(changed.numbers) == 2
    assert (changed.patches[1] != plain.patches[1]).any()
    assert (changed.tokens["audited"][1] != plain.tokens["audited"][1]).any()


def test_images_that_are_too_small_or_too_few_are_not_asked(planted, tmp_path):
    for num, reason in ((70, "too_small"), (40, "n_units")):
        observed = planted.observer(tmp_path / str(num), planted.glyph, num=num)
        run = run_checks(planted.audit_set(observed), asked=Asked(), names=("reconstruction",), observer=observed)
        assert (run.report.findings[0].verdict, run.report.findings[0].reason_code) == ("NOT_ASSESSABLE", reason)


def test_similarity_is_that_of_its_formula():
    generator = np.random.default_rng(0)
    one, other = generator.random((2, 9, 8))
    values = []
    for y in range(3):
        for x in range(2):
            a, b = one[y : y + 7, x : x + 7].ravel(), other[y : y + 7, x : x + 7].ravel()
            covariance = np.cov(a, b)
            top = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
            values.append(top / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4)))
    np.testing.assert_allclose(similarity(one[None], other[None]), [np.mean(values)])
    np.testing.assert_allclose(similarity(one[None], one[None]), [1.0])


def test_a_decoder_knows_its_seed():
    generator = np.random.default_rng(0)
    tokens, patches = generator.normal(size=(300, 6)), generator.random((300, 4))
    one, same, other = (fit_decoder(tokens, patches, seed=seed, steps=5)(tokens[:3]) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_numbers_of_rows_hold_where_rows_were_thinned(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=8)
    data = planted.audit_set(observed)
    evidence = SimpleNamespace(probed=replace(data, numbers=np.arange(8)), effort=SimpleNamespace(seed=0))
    trained, tried = reconstruction._sides(evidence, observed)
    assert not set(trained) & set(tried)
    assert sorted([*trained, *tried]) == list(range(8))
