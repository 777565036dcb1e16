"""Provenance from lineage: what is flagged, what is warned of, and the statistics behind it by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dinodomain.audit import Asked, Effort, Policy, run_checks
from dinodomain.audit.checks.provenance import concentration
from dinodomain.audit.evidence import Private
from dinodomain.audit.trail import Kept, Left, StoreDrawn, Trail
from dinodomain.audit.trail.licences import conflicts, read_licence
from dinodomain.model import weights

QUICK = Effort(permutations=99, bootstraps=100)


def make_kept(size: int = 60, *, licence: str = "CC-BY-4.0", altered: int = 0, **changes: object) -> Kept:
    names = np.array([f"s{row:02d}" for row in range(size)], dtype=object)
    index = {
        "source_id": names, "unit": names, "content_hash": names, "source_digest": names,
        "licence": np.array([licence] * size, dtype=object),
        "fields": np.array([""] * size, dtype=object), "crs": np.array([None] * size), "affine": np.array([None] * size),
    }  # fmt: skip
    settings = {
        "digest": "d", "domain": "made up", "ndim": 2, "personal": False, "index": index,
        "groups": {"site": np.array(["A", "B"] * (size // 2), dtype=object)}, "unit_rows": np.arange(size), "unit_names": names.astype(str),
        "held_units": frozenset(), "held_sources": np.zeros(size, bool), "eligible_sources": np.ones(size, bool),
        "eligible_units": frozenset(names), "rehash": lambda rows: np.asarray(rows) >= altered,
    }  # fmt: skip
    return Kept(**(settings | changes))


@pytest.fixture
def trail() -> Trail:
    kept = make_kept()
    drawn = dict.fromkeys(kept.index["source_id"].tolist(), 3)
    store = StoreDrawn(digest="d", sources=60, units=60, samples=180, drawn_units=60)
    return Trail(stores=(store,), drawn=drawn, steps=10, tiles=60, kept=kept, trained=True)


@pytest.fixture
def run(make_set):
    def call(trail: Trail | None, policy: Policy | None = None, **asked: object) -> SimpleNamespace:
        asked = Asked(**asked)
        audited = run_checks(make_set(num_units=60), asked=asked, effort=QUICK, policy=policy, names=("provenance",), trail=trail)
        return SimpleNamespace(**{item.id.split("/")[-1]: item for item in audited.report.findings}, private=audited.private)

    return call


def test_a_clean_trail_says_nothing_of_concern(run, trail):
    found = run(trail)
    assert {found.trail.verdict, found.pixels.verdict, found.licences.verdict, found.draws.verdict} == {"CLEAR_WITHIN_LIMITS"}
    assert found.trail.counts["samples drawn"] == 180


def test_features_alone_have_no_trail(run):
    found = run(None)
    assert (found.provenance.verdict, found.provenance.reason_code) == ("NOT_ASSESSABLE", "no_lineage")


def test_three_altered_sources_are_flagged_with_their_rows_kept_apart(run, trail):
    found = run(replace(trail, kept=make_kept(altered=3)))
    assert (found.pixels.verdict, found.pixels.counts["that differ"]) == ("FLAG", 3)
    listed = next(item for item in found.private if item.name == "provenance")
    assert isinstance(listed, Private)
    assert listed.columns["row"] == [0, 1, 2]
    assert "s00" not in found.pixels.model_dump_json()


def test_a_lost_licence_is_flagged_and_text_that_is_no_licence_is_warned_of(run, trail):
    kept = make_kept()
    kept.index["licence"][4] = None
    found = run(replace(trail, kept=kept))
    assert found.licences.verdict == "FLAG"
    assert "1.7% of the sources have no licence" in found.licences.answer
    assert run(replace(trail, kept=make_kept(licence="ask Bob"))).licences.verdict == "WARN"


def test_base_weights_count_with_the_data(run, trail):
    based = replace(trail, bases=({"weights": "w", "licence": "", "sha256": "ab"},))
    assert run(based).licences.verdict == "FLAG"
    assert "it began with base weights w" in run(based).trail.answer
    based = replace(trail, bases=({"weights": "w", "licence": "CC-BY-NC-4.0", "sha256": "ab"},))
    assert run(based).licences.verdict == "WARN"
    policy = Policy(declared={"weights_licence": "Apache-2.0"})
    found = run(based, policy, decision="release_weights")
    assert found.licences.verdict == "FLAG"
    assert "asks for no commercial use" in found.licences.answer


RECORDED = [
    (name, text, "its own terms passed on" if name == "dinov3" else "attribution at most") for name, text in weights._LICENCES.items()
]
"""What a warm start writes of weights beside which no licence lies."""


@pytest.mark.parametrize(
    ("text", "spdx", "asks"),
    [
        ("CC BY 4.0", "CC-BY-4.0", "attribution at most"), ("CC-BY-NC-SA-4.0", "CC-BY-NC-SA-4.0", "no commercial use, share alike"),
        ("MIT", "MIT", "attribution at most"), ("CC-BY-SA-3.0 AND MIT", "CC-BY-SA-3.0 AND MIT", "share alike"),
        ("MIT OR GPL-3.0-only", "GPL-3.0-only OR MIT", "attribution at most or share alike"),
        ("USGS public domain", "CC-PDDC", "attribution at most"),
        ("CC-BY-ND-4.0", "CC-BY-ND-4.0", "no derivatives passed on"), ("MITRE", "", "not known"), ("", "", "not known"),
        ("per file", "", "not known"), ("DINOv3 License", "LicenseRef-DINOv3", "its own terms passed on"),
        ("Copernicus Sentinel data 2021", "LicenseRef-Copernicus", "attribution at most"),
        ("Copernicus Sentinel data, restricted, no commercial use", "", "not known"),
        ("not under the Copernicus Sentinel data terms", "", "not known"), ("weights CC-BY-NC-4.0, code under Apache-2.0", "", "not known"),
        ("apache-2.0 (model card)", "Apache-2.0", "attribution at most"),
        ("cc-by-nc-4.0 (model card)", "CC-BY-NC-4.0", "no commercial use"),
        ("MIT License (LICENSE beside the weights)", "MIT", "attribution at most"),
        ("Apache License (LICENSE.txt beside the weights)", "Apache-2.0", "attribution at most"),
        ("# DINOv3 License (LICENSE.md beside the weights)", "LicenseRef-DINOv3", "its own terms passed on"),
        ("Attribution-NonCommercial 4.0 International (LICENSE beside the weights)", "CC-BY-NC-4.0", "no commercial use"),
        ("that of the run", "", "not known"), ("MIT OR Sleepycat", "MIT OR Sleepycat", "attribution at most"),
        *((text, "LicenseRef-DINOv3" if name == "dinov3" else "Apache-2.0", words) for name, text, words in RECORDED),
        ("CC-BY-NC-4.0 AND LicenseRef-Copernicus", "CC-BY-NC-4.0 AND LicenseRef-Copernicus", "no commercial use"),
        ("Copernicus WorldDEM-30, restricted", "", "not known"), ("()", "", "not known"),
        ("MIT OR 0BSD", "MIT OR 0BSD", "attribution at most"),
        ("cc by 4.0", "CC-BY-4.0", "attribution at most"), ("licenseref-dua", "licenseref-dua", "its own terms passed on"),
        ("BSD-Protection", "BSD-Protection", "not known"),
        ("CC-BY-NC-4.0 OR ODbL-1.0", "CC-BY-NC-4.0 OR ODbL-1.0", "no commercial use or share alike"),
        ("LicenseRef-DUA AND MIT", "LicenseRef-DUA AND MIT", "its own terms passed on"), ("Bitstream-Vera", "Bitstream-Vera", "not known"),
    ],
)  # fmt: skip
def test_licences_are_read_as_spdx_and_by_what_they_ask_for(text, spdx, asks):
    found = read_licence(text)
    assert sorted(found.spdx.split()) == sorted(spdx.split())
    assert str(found) == asks


def test_two_share_alike_terms_contradict_each_other_and_no_derivatives_forbids_release():
    both = {name: read_licence(name) for name in ("CC-BY-SA-4.0", "ODbL-1.0")}
    undeclared = read_licence("")
    assert len(conflicts(both, undeclared, released=True)) == 1
    assert not conflicts(both, undeclared, released=False)  # nothing is passed on
    assert not conflicts({"a": both["ODbL-1.0"], "b": read_licence("ODbL-1.0 AND MIT")}, undeclared, released=True)
    assert not conflicts({**both, "ODbL-1.0": read_licence("ODbL-1.0 OR MIT")}, undeclared, released=True)
    later = {name: read_licence(name) for name in ("CC-BY-SA-3.0", "CC-BY-SA-4.0")}
    assert not conflicts(later, read_licence("CC-BY-SA-4.0"), released=True)  # 3.0 itself allows what is made from it to be under 4.0
    assert conflicts(later, read_licence("CC-BY-SA-3.0"), released=True)
    assert conflicts({"a": read_licence("GPL-2.0-only AND GPL-3.0-only")}, undeclared, released=True)
    assert not conflicts({"a": read_licence("GPL-2.0-or-later AND GPL-3.0-only")}, read_licence("GPL-3.0-only"), released=True)
    assert not conflicts({"a": read_licence("licenseref-dua")}, read_licence("LicenseRef-DUA"), released=True)
    fixed = {"data": read_licence("CC-BY-ND-4.0")}
    assert not conflicts(fixed, undeclared, released=False)
    assert len(conflicts(fixed, read_licence("CC-BY-ND-4.0"), released=True)) == 1
    assert not conflicts({name: read_licence(name) for name in ("MIT", "CC-BY-4.0")}, read_licence("Apache-2.0"), released=True)


def test_a_licence_that_the_table_does_not_know_is_never_clear(run, trail):
    unknown = replace(trail, kept=make_kept(licence="Sleepycat"))
    assert "licence of Sleepycat" in run(unknown).licences.answer
    shared = replace(trail, kept=make_kept(licence="CC-BY-SA-4.0"))
    assert run(shared).licences.verdict == "CLEAR_WITHIN_LIMITS"
    assert run(shared, decision="release_weights").licences.verdict == "WARN"  # under which licence is not declared


def test_what_shaped_the_network_elsewhere_is_told(run, trail):
    other = StoreDrawn(digest="other", share=0.5, samples=70, drawn_units=9)
    found = run(replace(trail, stores=(*trail.stores, other))).trail
    assert found.verdict == "WARN"
    assert "70 of these samples came from other stores (1)" in found.answer
    assert run(replace(trail, drawn={})).trail.reason_code == "no_lineage"
    assert run(replace(trail, kept=make_kept(0))).trail.verdict != "FLAG"


def test_in_house_nothing_conflicts_but_whether_use_is_commercial_is_asked(run, trail):
    two = make_kept(licence="CC-BY-SA-4.0")
    two.index["licence"][:30] = "ODbL-1.0"
    inside = run(replace(trail, kept=two)).licences
    assert inside.verdict == "CLEAR_WITHIN_LIMITS"
    assert "counts once something is given away" in inside.answer
    assert run(replace(trail, kept=two), decision="release_weights").licences.verdict == "FLAG"
    unpaid = run(replace(trail, kept=make_kept(licence="CC-BY-NC-4.0"))).licences
    assert "hether this use is commercial" in unpaid.answer


def test_another_store_blanks_about_people_and_changes_are_warned_of(run, trail):
    assert run(replace(trail, trained=False)).trail.verdict == "WARN"
    personal = replace(trail, kept=make_kept(personal=True))
    assert "nothing is declared of consent" in run(personal).trail.answer
    stated = Policy(declared={"consent": "file 7", "confidentiality": "internal", "privacy_measures": "none", "geography": "DE"})
    found = run(personal, stated)
    assert found.trail.verdict == "CLEAR_WITHIN_LIMITS"
    assert found.trail.tables[-1].title == "Declared by the user"
    earlier = StoreDrawn(digest="old", until=4, samples=9, drawn_units=3)
    assert "resume=force" in run(replace(trail, stores=(*trail.stores, earlier))).trail.answer


def test_more_withdrawn_units_than_the_policy_allows_are_flagged(run, trail):
    gone = replace(trail, kept=make_kept(withdrawn_units=frozenset({"s00", "s01", "never drawn"}), withdrawn_sources=3))
    assert gone.withdrawn == 2
    assert run(gone).trail.verdict == "CLEAR_WITHIN_LIMITS"
    assert run(gone, Policy(max_withdrawn=1)).trail.verdict == "FLAG"
    assert run(gone, Policy(max_withdrawn=2)).trail.verdict == "CLEAR_WITHIN_LIMITS"


def test_concentration_by_hand(run, trail):
    even, top = concentration({f"u{number}": 5 for number in range(200)})
    assert even == pytest.approx(200)
    assert top == pytest.approx(0.01)
    half, top = concentration({"a": 50, "b": 25, "c": 25})
    assert half == pytest.approx(2**1.5)
    assert top == 0.5
    assert concentration({}) == (0.0, 0.0)
    uneven = {**trail.drawn, "s00": 5000}
    assert run(replace(trail, drawn=uneven)).draws.verdict == "WARN"


def test_skipped_sources_show_in_the_flow_by_reason(run, trail):
    skipped = (*[Left(reason="torn", kind="refused")] * 2, Left(reason="localiser", kind="left out"))
    found = run(replace(trail, kept=make_kept(skipped=skipped)))
    flow = found.trail.plots[1]
    assert [stage.count for stage in flow.stages] == [63, 61, 60, 60, 60, 60]
    assert flow.stages[2].left == {"localiser": 1}
