"""Naming the data set: a signature of the encoder is a warning, one of the data is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dinodomain.audit import Policy
from dinodomain.audit.checks.origin import _class_matched
from dinodomain.audit.protocol.attribute import read_attribute


def sources(make_set, *, features, pixels, count=400, seed=0):
    """Two data sets whose second is shifted in the features, in the pixels, or in both; the finding is commoner in it."""
    generator = np.random.default_rng(seed)
    second = np.arange(count) % 2
    shift = second[:, None] * (np.arange(10) < 2)
    columns = {
        "dataset": np.array(["one", "two"])[second],
        "finding": (generator.random(count) < 0.3 + 0.4 * second).astype(int).astype(str),
    }
    return make_set(
        features={name: generator.normal(size=(count, 10)) + by * shift for name, by in (("audited", features), ("pixels", pixels))},
        units=np.arange(count).astype(str), content_hash=None, sources=np.arange(count), columns=columns, split=None,
    )  # fmt: skip


def test_a_signature_that_only_the_features_show_is_a_warning(make_set, found):
    (finding,) = found(sources(make_set, features=1.2, pixels=0.0), "origin", task="finding")
    assert (finding.verdict, finding.encoded, finding.question) == ("WARN", True, "Q1")
    assert finding.estimate.low > 0.2
    assert finding.evidence["class_matched_excess"][1] > 0.1
    heat = finding.plots[1]
    np.testing.assert_allclose(np.sum(heat.panels[""], axis=1), 1.0)


def test_a_gain_that_pixels_show_as_well_is_no_excess(make_set, found):
    (finding,) = found(sources(make_set, features=1.2, pixels=1.5), "origin")
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert finding.null.p < 0.01
    assert finding.evidence["class_matched_excess"] is None


def test_relabelled_sources_are_at_chance(make_set, found):
    (finding,) = found(sources(make_set, features=0.0, pixels=0.0), "origin")
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert finding.null.p > 0.01


def test_class_matched_rows_have_equal_classes_in_every_data_set():
    generator = np.random.default_rng(1)
    origin = read_attribute("dataset", np.array(["a", "b"])[np.arange(200) % 2], np.arange(200))
    labels = np.where(generator.random(200) < 0.2 + 0.5 * origin.values, "x", "y")
    part = _class_matched(origin, labels, 0)
    kept = labels[part.rows]
    for label in ("x", "y"):
        counts = np.bincount(part.values[kept == label], minlength=2)
        assert counts[0] == counts[1]
    assert _class_matched(origin, np.where(origin.values, "x", "y"), 0) is None


def test_it_says_why_it_does_not_tell(make_set, found):
    data = sources(make_set, features=1.0, pixels=0.0)
    assert found(make_set(), "origin")[0].reason_code == "no_origin"
    assert found(data, "origin", policy=Policy(origin_column="source"))[0].reason_code == "no_origin"
    bare = replace(data, features={"audited": data.audited})
    assert found(bare, "origin")[0].reason_code == "no_pixels"
    one = replace(data, columns=data.columns | {"dataset": np.full(400, "one")})
    assert found(one, "origin")[0].verdict == "NOT_APPLICABLE"
    assert found(sources(make_set, features=1.0, pixels=0.0, count=40), "origin")[0].reason_code == "n_units"
