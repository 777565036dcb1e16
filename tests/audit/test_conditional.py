"""Conditional leaks: a proxy falls away inside its strata, more than a proxy stays."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.audit import Policy
from dinodomain.audit.checks import conditional
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.strata import covered, movable, permuted_within, unit_strata


@pytest.fixture(scope="module")
def labelled(make_set):
    """Sex goes with the site in four of five units; features show the site only, or sex itself."""

    def make(direct, *, count=320, seed=0):
        generator = np.random.default_rng(seed)
        site = np.arange(count) % 2
        sex = np.where(generator.random(count) < 0.8, site, 1 - site)
        features = generator.normal(size=(count, 8))
        features[:, :3] += 2.0 * (sex if direct else site)[:, None]
        columns = {
            "sex": np.array(["F", "M"])[sex],
            "site": np.array(["A", "B"])[site],
            "coin": generator.integers(0, 2, count).astype(str),
        }
        return make_set(
            features={"audited": features}, units=np.arange(count).astype(str), content_hash=None, sources=np.arange(count),
            columns=columns | {"copy": columns["sex"], "name": np.arange(count).astype(str).astype(object) + "x"}, split=None,
        )  # fmt: skip

    return make


def test_what_acts_through_the_stratum_is_found_marginally_and_not_within(labelled, found):
    data = labelled(direct=False)
    (marginal,) = found(data, "attribute", attributes=("sex",))
    (within,) = found(data, "conditional", attributes=("sex",), strata=("site",))
    assert marginal.null.p_adjusted < 0.01
    assert within.null.p > 0.05
    assert within.null.mean > 0.7
    assert within.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert within.evidence["marginal_p"] < 0.01


def test_what_goes_beyond_the_stratum_is_a_warning(labelled, found):
    data = labelled(direct=True)
    (finding,) = found(data, "conditional", attributes=("sex",), strata=("site",))
    assert (finding.verdict, finding.encoded) == ("WARN", True)
    assert finding.estimate.low > 0.05
    assert [bar.label for bar in finding.plots[0].rows] == ["against chance", "beyond the strata"]
    (special,) = found(data, "conditional", attributes=("sex",), strata=("site",), policy=Policy(special_category=("sex",)))
    assert special.verdict == "FLAG"


def test_an_independent_attribute_is_neither(labelled, found):
    (finding,) = found(labelled(direct=True, seed=1), "conditional", attributes=("coin",), strata=("site",))
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    assert finding.evidence["marginal_p"] > 0.01


def test_it_says_why_it_cannot_tell(labelled, found):
    data = labelled(direct=True)
    code = lambda **asked: found(data, "conditional", **asked)[0].reason_code  # noqa: E731
    assert code(attributes=("sex",)) == "no_strata"
    assert code(attributes=("sex",), strata=("sex",)) == "is_stratum"
    assert code(attributes=("sex",), strata=("copy",)) == "confounded"
    assert code(attributes=("sex",), strata=("name",)) == "small_strata"
    few = labelled(direct=True, count=50)
    assert found(few, "conditional", attributes=("sex",), strata=("site",))[0].reason_code == "n_units"


def test_false_alarms_within_strata_keep_the_level():
    """Thirty proxies: more than five p values below .05 have a chance of 2 %."""
    alarms = 0
    for seed in range(30):
        generator = np.random.default_rng(seed)
        site = np.arange(120) % 2
        label = np.where(generator.random(120) < 0.75, site, 1 - site)
        features = generator.normal(size=(120, 6)) + 2.0 * site[:, None] * (np.arange(6) < 2)
        attribute = read_attribute("a", label, np.arange(120))
        strata = unit_strata({"site": site}, ("site",), attribute.unit_index)
        alarms += conditional._p(features, attribute, strata, Effort(permutations=99, bootstraps=20, seed=seed)) <= 0.05
    assert alarms <= 5


def test_units_agree_in_every_column_of_their_stratum_and_numbers_up_to_the_quintile():
    units = np.repeat(np.arange(50), 2)
    age = np.repeat(np.arange(50), 2) + np.tile([0.0, 0.5], 50)
    site = np.where(units < 25, "A", "B")
    strata = unit_strata({"age": age, "site": site}, ("age", "site"), units)
    assert len(np.unique(strata)) == 6  # five quintiles of ten units, the middle one split between the sites
    assert covered(strata, 6) == 0.8
    missing = unit_strata({"site": np.where(units == 0, "", site)}, ("site",), units)
    assert (missing == missing[0]).sum() == 1


def test_permutations_stay_within_strata_and_keep_units_whole():
    units = np.repeat(np.arange(40), 3)
    attribute = read_attribute("a", (units % 4 == 0).astype(int), units)
    strata = np.arange(40) % 2
    for draw in permuted_within(attribute, strata, 10, seed=0):
        assert all(len(set(draw[units == unit])) == 1 for unit in range(40))
        assert draw[::3][strata == 0].sum() == 10
        assert draw[::3][strata == 1].sum() == 0


def test_movable_counts_the_units_that_permutations_can_move():
    attribute = read_attribute("a", np.array([0, 0, 0, 1, 1, 1, 1, 0]), np.arange(8))
    assert movable(attribute, np.array([0, 0, 0, 0, 1, 1, 1, 1])) == 2
    assert movable(attribute, np.array([0, 0, 0, 1, 1, 1, 1, 0])) == 0
