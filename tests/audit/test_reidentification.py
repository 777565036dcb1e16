"""Recognition: planted codes are recognised, shuffled people are not, and matched impostors take the site away."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dinodomain.audit import Policy
from dinodomain.audit.checks.reidentification import pair_visits
from dinodomain.audit.protocol.verification import Block, Trial, trials


def people(make_set, *, count=260, code=0.0, site=0.0, seed=0, visits=2, **changes):
    generator = np.random.default_rng(seed)
    owners = np.repeat(np.arange(count), visits)
    where = (np.arange(count) % 4)[owners]
    features = generator.normal(size=(len(owners), 16)) + code * generator.normal(size=(count, 16))[owners]
    features += site * np.eye(4, 16)[where]
    settings = {
        "features": {"audited": features}, "units": np.char.add("p", owners.astype(str)), "content_hash": None, "split": None,
        "sources": np.arange(len(owners)), "columns": {"site": where.astype(str), "exam": np.tile(np.arange(visits), count).astype(str)},
    }  # fmt: skip
    return make_set(**(settings | changes))


def test_a_code_of_each_person_is_flagged(make_set, found):
    (finding,) = found(people(make_set, code=3.0), "reidentification", study="exam", domains=("site",))
    assert (finding.verdict, finding.encoded) == ("FLAG", True)
    assert finding.evidence["raw"]["tpr_at_far_0.001"][0] > 0.8
    assert finding.evidence["raw"]["rank1_of_100"][0] > 0.9
    assert "rank1_of_1000" not in finding.evidence["raw"]
    assert "tpr_at_far_0.0001" not in finding.evidence["raw"]  # 260 x 259 pairs are fewer than 100,000
    assert [plot.title for plot in finding.plots] == ["Recognised or missed", "Found first in a gallery"]


def test_people_without_a_code_are_at_chance(make_set, found):
    (finding,) = found(people(make_set, count=700), "reidentification", study="exam", domains=("site",))
    assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")
    raw = finding.evidence["raw"]
    assert raw["auroc"][1] < 0.5 < raw["auroc"][2]
    assert raw["tpr_at_far_0.001"][0] < 0.01


def test_a_shared_site_alone_falls_away_against_matched_impostors(make_set, found):
    (finding,) = found(people(make_set, count=500, site=6.0), "reidentification", study="exam", domains=("site",))
    assert finding.evidence["raw"]["auroc"][0] > 0.8
    assert abs(finding.evidence["raw matched"]["auroc"][0] - 0.5) < 0.05
    assert finding.verdict != "FLAG"


def test_a_learnt_metric_finds_a_code_that_noise_hides(make_set):
    generator = np.random.default_rng(1)
    owners = np.repeat(np.arange(300), 2)
    features = np.concatenate([generator.normal(size=(300, 8))[owners], 8 * generator.normal(size=(600, 8))], axis=1)
    features[:, :8] += 0.3 * generator.normal(size=(600, 8))
    data = people(make_set, count=300, features={"audited": features})
    visits = pair_visits(data, "exam", (), 0)
    found = trials(visits.first, visits.second, visits.all_visits, visits.owners, visits.keys, 50, 0)
    assert set(found) == {"raw", "learnt"}
    assert found["learnt"].auroc.value > found["raw"].auroc.value + 0.2


def test_two_visits_of_a_person_are_never_of_one_visit(make_set):
    data = people(make_set, count=40, visits=3)
    same = replace(data, columns=data.columns | {"exam": np.tile(["a", "a", "b"], 40)})
    found = pair_visits(same, "exam", ("site",), 0)
    assert found.first.shape == found.second.shape == (40, 16)
    assert len(found.all_visits) == 80
    mean = (data.audited[0] + data.audited[1]) / 2
    both = np.stack([found.first[0], found.second[0]])
    assert min(np.abs(both - mean).max(axis=1)) < 1e-12
    assert min(np.abs(both - data.audited[2]).max(axis=1)) < 1e-12
    assert len(np.unique(found.keys)) == 4


def test_auroc_of_pairs_equals_scikit_learn():
    scores = np.random.default_rng(2).normal(size=(30, 30)).round(1)
    scores[np.diag_indices(30)] += 1
    off = ~np.eye(30, dtype=bool)
    trial = Trial(blocks=[Block(scores=scores, allowed=off)], draws=np.ones((5, 30)))
    truth = np.eye(30).reshape(-1)
    assert trial.auroc.value == pytest.approx(roc_auc_score(truth, scores.reshape(-1)))


def test_rank_one_is_the_mean_over_all_galleries():
    scores = np.random.default_rng(3).normal(size=(6, 6))
    scores[np.diag_indices(6)] += 1
    trial = Trial(blocks=[Block(scores=scores, allowed=~np.eye(6, dtype=bool))], draws=np.ones((3, 6)))
    hits = []
    for person in range(6):
        others = [one for one in range(6) if one != person]
        hits += [all(scores[person, one] < scores[person, person] for one in drawn) for drawn in itertools.combinations(others, 2)]
    assert trial.rank_one(3).value == pytest.approx(np.mean(hits))
    assert trial.rank_one(7) is None


def test_the_threshold_lets_the_stated_share_of_impostors_pass():
    scores = np.arange(121.0).reshape(11, 11)
    off = ~np.eye(11, dtype=bool)
    trial = Trial(blocks=[Block(scores=scores, allowed=off)], draws=np.ones((2, 11)))
    assert (trial.impostors > trial._threshold(0.1)).mean() == pytest.approx(0.1)
    assert trial.assessable(0.1)
    assert not trial.assessable(0.05)


def test_it_says_why_it_cannot_tell(make_set, found):
    few = people(make_set, count=100, code=3.0)
    (finding,) = found(few, "reidentification", study="exam")
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "n_units")
    assert finding.evidence["raw"]["auroc"][0] > 0.9  # numbers all the same
    assert found(people(make_set, count=20), "reidentification")[0].reason_code == "n_units"
    (plain,) = found(few, "reidentification")
    assert any("each source counts as one" in limit for limit in plain.limits)


def test_places_are_no_people_unless_the_policy_says_so(make_set, found):
    data = people(make_set, code=3.0)
    placed = replace(data, columns=data.columns | {"lon": np.full(520, "1.0"), "lat": np.full(520, "2.0")})
    assert found(placed, "reidentification")[0].reason_code == "no_persons"
    assert found(placed, "reidentification", policy=Policy(persons=True))[0].verdict == "FLAG"
    assert found(data, "reidentification", policy=Policy(persons=False))[0].verdict == "NOT_APPLICABLE"


def test_who_is_recognised_surely_is_flagged_even_where_few_can_be_asked(make_set, found):
    (finding,) = found(people(make_set, count=120, code=4.0), "reidentification", study="exam")
    assert finding.n_units == 120
    assert finding.verdict == "FLAG"
