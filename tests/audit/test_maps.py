"""Maps: Captum's numbers against known ones, controls that fail where they must, and the check on a planted sign."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dinodomain.audit import Asked, Effort, EncoderObjective, run_checks
from dinodomain.audit.checks.maps import direction, failures
from dinodomain.audit.maps import METHODS, Look, ablate, baselines, cells, explain
from dinodomain.audit.observe.explain import Controls, look_at_maps
from dinodomain.audit.sanity import between_images, deletion, enrichment, pointing, similarity
from dinodomain.errors import UserError
from dinodomain.types import Features

pytest.importorskip("captum.attr")


class Linear(nn.Module):
    """Features that are the pixels: every contribution is known."""

    def encode(self, x, keep=None, layer=None):
        flat = x.flatten(1)
        return Features(cls=flat, registers=flat[:, None, :][:, :0], patches=flat[:, None], grid=(1, 1))


@pytest.fixture(params=[(3, 8, 8), (1, 4, 8, 8)], ids=["rgb", "volume"])
def linear(request):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *request.param, generator=generator)
    weight = torch.randn(images[0].numel(), generator=generator)
    return EncoderObjective(Linear(), "probe", weight=weight, pool="cls"), images, weight.reshape(images[0].shape)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_contributions_of_a_linear_model(linear, method):
    objective, images, weight = linear
    look = Look(steps=8, patch=(4,) * (images.ndim - 2), batch=4)
    found = explain(objective, images, method, look, baseline=torch.zeros_like(images))
    assert found.values.shape == (2, *images.shape[2:])
    assert found.complete.all()
    wanted = (images * weight).sum(dim=1)
    if method in ("ablation", "occlusion"):  # one number a patch, on each of its pixels
        patches = cells(images, look.patch)[0, 0].expand_as(wanted)
        for patch in range(int(patches.max()) + 1):
            whole = wanted[patches == patch].reshape(2, -1).sum(dim=1, keepdim=True)
            ours = found.values[patches == patch].reshape(2, -1)
            torch.testing.assert_close(ours, whole.expand_as(ours))
    else:
        torch.testing.assert_close(found.values, wanted, atol=1e-4, rtol=1e-3)


def test_regions_of_a_linear_model_add_what_their_pixels_add(linear):
    objective, images, weight = linear
    regions = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.int64)
    regions[..., :2] = 1
    regions[..., 4:6] = 2
    found = ablate(objective, images, regions, torch.zeros_like(images))
    wanted = (images * weight).sum(dim=1)
    for number in (1, 2):
        torch.testing.assert_close(found[:, number - 1], (wanted * (regions == number)).flatten(1).sum(dim=1))


def test_an_unknown_method_is_refused(linear):
    objective, images, _ = linear
    with pytest.raises(UserError, match="unknown 'lrp'; allowed: ablation"):
        explain(objective, images, "lrp", Look(), baseline=images)


def test_a_map_of_a_linear_model_orders_deletion_and_an_edge_map_does_not_see_the_model():
    generator = torch.Generator().manual_seed(2)
    images, fill = torch.rand(6, 1, 12, 12, generator=generator), torch.zeros(6, 1, 12, 12)
    weight = torch.randn(1, 12, 12, generator=generator)
    patches = torch.arange(144).reshape(12, 12)
    score = lambda given: (given * weight).flatten(1).sum(dim=1)  # noqa: E731
    assert deletion(score, images, images[:, 0] * weight, patches, fill) > 0.1
    assert abs(deletion(score, images, torch.rand(6, 12, 12, generator=generator), patches, fill)) < 0.5
    edges = images[:, 0] - images[:, 0].roll(1, dims=-1)
    assert similarity(edges, edges).min() == pytest.approx(1.0)


def test_enrichment_and_pointing_by_hand():
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 3.0, 1.0
    maps[0, 2, 2] = 1.0
    region = torch.zeros(2, 4, 4, dtype=torch.bool)
    region[:, :2, :2] = True
    np.testing.assert_allclose(enrichment(maps, region), [0.75 / 0.25, 0.0])
    assert pointing(maps, region, 0).tolist() == [1.0, 0.0]
    assert pointing(maps, region, 2).tolist() == [1.0, 1.0]
    assert np.isnan(enrichment(maps, torch.zeros_like(region))).all()
    assert between_images(maps) <= 1.0


def test_the_probe_as_a_direction_is_ridge_on_standardised_features():
    generator = np.random.default_rng(0)
    features = generator.normal(3.0, [1.0, 10.0, 0.1], (200, 3))
    values = (features[:, 0] > 3).astype(float)
    found = direction(features, values)
    scores = features @ found.weight + found.bias
    assert scores.mean() == pytest.approx(0.0, abs=1e-6)
    assert scores.std() == pytest.approx(1.0)
    assert np.corrcoef(scores, values)[0, 1] > 0.75


GOOD = Controls(
    complete=1.0, randomised=0.1, between=0.5, repeated=0.9, infidelity=0.4, sensitivity=0.1, deletion=0.3, enriched={"border": 3.0},
    permuted={"border": (0.9, 1.1, 1.0, 1.05)}, pointing={"border": 0.5},
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"randomised": 0.7}, "drawn anew"), ({"repeated": 0.5}, "little noise"), ({"deletion": -0.1}, "no better than chance"),
        ({"infidelity": 1.2}, "at random places"), ({"permuted": {"border": (2.4, 2.6, 2.5, 2.5)}}, "permuted labels"),
        ({"complete": 0.5}, "adds up for 50%"),
    ],
)  # fmt: skip
def test_each_control_fails_by_itself(changes, words):
    assert failures(GOOD) == []
    (told,) = failures(dataclasses.replace(GOOD, **changes))
    assert words in told


def test_the_check_tells_whether_maps_may_be_believed_and_keeps_pictures_private(planted, tmp_path, monkeypatch):
    for name, value in {"EXPLAINED": 6, "STEPS": 6, "PROBES": 2}.items():
        monkeypatch.setattr(f"dinodomain.audit.checks.maps.{name}", value)
    observed = planted.observer(tmp_path, planted.glyph, num=100)
    data = planted.audit_set(observed)
    effort = Effort(permutations=99, bootstraps=60)
    audited = run_checks(data, asked=Asked(task="sign"), effort=effort, names=("maps",), observer=observed)
    (finding,), (kept,) = audited.report.findings, audited.private
    assert finding.verdict in ("WARN", "CLEAR_WITHIN_LIMITS")
    assert finding.tables[0].columns == ("control", "integrated gradients", "ablation")
    assert kept.files["maps.png"][:4] == b"\x89PNG"
    assert len(kept.columns["row"]) == finding.n_images


def test_maps_of_a_glyph_lie_on_it(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=60)
    data = planted.audit_set(observed)
    probe = direction(data.audited[:40], (data.columns["sign"][:40] == "yes").astype(float))
    shown = next(observed.show(np.arange(41, 60, 2)))
    weight = torch.from_numpy(probe.weight).float()
    objective = EncoderObjective(observed.backbone, "probe", weight=weight, pool=observed.backbone.pooling)
    found = explain(objective, shown.pixels, "ablation", Look(patch=(8, 8)), baseline=baselines(shown.pixels)["blur"])
    glyph = torch.zeros(len(shown.rows), 32, 32, dtype=torch.bool)
    glyph[:, 8:16, 16:24] = True
    assert np.median(enrichment(found.values, glyph)) > 3
    again = look_at_maps(observed, np.arange(41, 49, 2), probe, [], ("ablation",), steps=4, seed=0)
    assert again.controls["ablation"].complete == 1.0
