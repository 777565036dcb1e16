"""Which stores a checkpoint was trained on, by its lineage."""

from __future__ import annotations

import pytest

from dinodomain.audit.load import trained_on

STORES = [{"store": "a", "share": 0.5, "held_by_others": 0}, {"store": "b", "share": 0.5, "held_by_others": 3}]
ORIGIN = {"parents": {"store": "m"}, "history": [{"kind": "mix", "plan": {"stores": STORES}}, {"kind": "store", "plan": {}}]}


@pytest.mark.parametrize(("digest", "known"), [("m", True), ("a", True), ("b", False), ("c", False)])
def test_a_store_of_a_mix_was_trained_on_where_the_others_hold_out_nothing_more_of_it(digest, known):
    assert trained_on(ORIGIN, digest) is known


def test_a_run_on_one_store_was_trained_on_that_store():
    record = {"parents": {"store": "a"}, "history": [{"kind": "store", "plan": {"stores": STORES}}]}
    assert trained_on(record, "a")
    assert not trained_on(record, "b")
    assert not trained_on({}, "a")
