"""Layers: each is what the encoder gives there, and a leak shows from the block that adds it."""

from __future__ import annotations

import numpy as np
import torch

from dinodomain.audit import Asked, Effort, run_checks
from dinodomain.audit.checks.layers import finding, read
from dinodomain.audit.observe.layers import look_at_layers
from dinodomain.audit.protocol.attribute import read_attribute

EFFORT = Effort(permutations=99, bootstraps=60, folds=3)


def test_features_of_a_layer_are_those_of_the_encoder(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=6)
    layers = look_at_layers(observed, np.arange(6))
    assert list(layers) == ["block 1, class", "block 1, patches", "block 2, class", "block 2, patches"]
    shown = next(observed.show(np.arange(6)))
    with torch.no_grad():
        first, last = observed.backbone.encode(shown.pixels, layer=1), observed.backbone.encode(shown.pixels)
    np.testing.assert_allclose(layers["block 1, class"], first.cls.numpy(), atol=1e-5)
    np.testing.assert_allclose(layers["block 2, patches"], last.patches.mean(dim=1).numpy(), atol=1e-5)


def test_the_layer_before_a_leak_is_recommended_where_it_serves_as_well():
    generator = np.random.default_rng(0)
    sign, task = generator.permutation(np.repeat([0, 1], 100)), np.repeat([0, 1], 100)
    early = generator.normal(size=(200, 6)) + 3.0 * task[:, None] * (np.arange(6) == 1)
    late = early + 3.0 * sign[:, None] * (np.arange(6) == 0)
    layers = {"block 1, class": early, "block 2, class": late}
    units = np.arange(200)
    leak, use = (read(layers, read_attribute("x", values, units), EFFORT) for values in (sign, task))
    told = finding("sign", leak, use, {})
    assert told.verdict == "WARN"
    assert told.evidence["least"] == "block 1, class"
    useless = {"block 1, class": generator.normal(size=(200, 6)), "block 2, class": late}
    leak, use = (read(useless, read_attribute("x", values, units), EFFORT) for values in (sign, task))
    assert finding("sign", leak, use, {}).verdict == "CLEAR_WITHIN_LIMITS"


def test_a_layer_finding_comes_for_each_attribute(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=80)
    data = planted.audit_set(observed)
    asked = Asked(attributes=("sign", "coin"))
    report = run_checks(data, asked=asked, effort=EFFORT, names=("layers",), observer=observed).report
    assert [item.id for item in report.findings] == ["layers/sign", "layers/coin"]
    assert report.findings[0].tables[0].rows[0][1] > 0.9
