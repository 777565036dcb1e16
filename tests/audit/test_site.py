"""Order by domain: the index against hand counts, planted offsets, confounding, and the smallest sets."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from dinodomain.audit import AuditSet
from dinodomain.audit.protocol.neighbours import Pair, best_k, expected, make_pair, robustness
from dinodomain.audit.protocol.task import cramers_v, pooled


def made(*, offset=0.0, content=2.0, seed=0, num_units=240, labels=None):
    """Two images per unit; the site moves the features by ``offset``, the class by ``content``."""
    generator = np.random.default_rng(seed)
    y, site = np.tile([0, 1], num_units // 2), np.repeat([0, 1], num_units // 2)
    index = np.repeat(np.arange(num_units), 2)
    rows = generator.normal(size=(num_units, 12))[index] + 0.3 * generator.normal(size=(2 * num_units, 12))
    rows[:, :2] += content * y[index, None]
    rows[:, -2:] += offset * site[index, None]
    columns = {"site": np.array(["A", "B"])[site][index], "finding": np.array(["no", "yes"])[y][index] if labels is None else labels}
    return AuditSet(
        features={"audited": rows}, units=index.astype(str), content_hash=None, sources=np.arange(2 * num_units), columns=columns
    )


def pair(near, y, domain, units=None):
    near = np.array(near)
    units = np.arange(len(near)) if units is None else np.array(units)
    return Pair(names=("a", "b"), classes=2, units=units, near=near, y=np.array(y), domain=np.array(domain), cell=1)


def test_the_index_counts_neighbours_of_the_same_class_elsewhere():
    # rows: 0 class 0 in a, 1 class 0 in b, 2 class 1 in a, 3 class 1 in b
    y, domain = [0, 0, 1, 1], [0, 1, 0, 1]
    one = pair([[1, 2], [0, 3], [3, 0], [2, 1]], y, domain)  # nearest: same class elsewhere; second: other class, same domain
    assert robustness([one], 1) == 1.0
    assert robustness([one], 2) == 0.5
    assert robustness([one], 2, np.array([[1.0, 1, 0, 0]])).tolist() == [1.0]  # only rows 0 and 1 were drawn


def test_an_index_without_order_is_one_half_and_falls_with_the_offset():
    generator = np.random.default_rng(1)
    rows, y, domain = generator.normal(size=(600, 10)), np.arange(600) % 3, np.arange(600) // 3 % 2

    def index(moved):
        made = make_pair(moved, names=("a", "b"), y=y, domain=domain, units=np.arange(600), cell=100, seed=0)
        return float(robustness([made], best_k([made])))

    assert index(rows) == pytest.approx(0.5, abs=0.05)
    content = rows + 4.0 * (np.arange(10) == y[:, None])
    falling = [index(content + offset * domain[:, None] * (np.arange(10) >= 8)) for offset in (0, 3, 6, 12)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > 0.85
    assert falling[-1] < 0.1


def test_neighbours_are_never_of_the_same_unit_and_cells_are_equal():
    generator = np.random.default_rng(2)
    units, y, domain = np.repeat(np.arange(100), 3), np.arange(300) % 2, (np.arange(300) < 180).astype(int)
    made = make_pair(generator.normal(size=(300, 5)), names=("a", "b"), y=y, domain=domain, units=units, cell=1, seed=0)
    assert (made.units[made.near] != made.units[:, None]).all()
    assert len(set(np.bincount(2 * made.y + made.domain))) == 1


def test_a_planted_offset_is_flagged_and_a_clean_site_is_not(found):
    (flagged,) = found(made(offset=10.0), "site", domains=("site",), task="finding")
    assert (flagged.verdict, flagged.estimate.metric) == ("FLAG", "robustness index")
    assert flagged.estimate.high < 0.5
    assert flagged.encoded is True
    (clean,) = found(made(content=5.0), "site", domains=("site",), task="finding")
    assert clean.verdict == "CLEAR_WITHIN_LIMITS"
    assert clean.tables[0].rows == (("A", 60, 60), ("B", 60, 60))


def test_a_site_without_order_is_undecided_where_the_features_tell_the_class_poorly(found):
    (weak,) = found(made(content=0.8), "site", domains=("site",), task="finding")
    assert (weak.verdict, weak.reason_code) == ("NOT_ASSESSABLE", "weak_content")
    assert weak.estimate.value == pytest.approx(weak.evidence["index_without_order"], abs=0.06)


def test_permuted_domains_give_the_share_of_neighbours_of_the_same_class():
    generator = np.random.default_rng(5)
    y, domain = np.arange(400) % 2, np.arange(400) // 2 % 2
    made = make_pair(
        generator.normal(size=(400, 6)) + 2.0 * y[:, None], names=("a", "b"), y=y, domain=domain, units=np.arange(400), cell=100, seed=0
    )
    purity = float((made.y[made.near[:, :10]] == made.y[:, None]).mean())
    assert expected([made], 10, 100, 0).mean() == pytest.approx(purity, abs=0.01)


def test_confounded_classes_are_flagged_where_the_site_is_read_and_undecided_where_not(found):
    site = made().columns["site"]
    labels = np.where(site == "A", "healthy", "ill")
    (finding,) = found(made(offset=4.0, labels=labels), "site", domains=("site",), task="finding")
    assert (finding.verdict, finding.reason_code) == ("FLAG", "confounded")
    assert "ill occurs in B only" in finding.reason
    assert finding.evidence["cramers_v"] == pytest.approx(1.0)
    assert finding.tables[0].rows == (("A", 120, 0), ("B", 0, 120))
    (silent,) = found(made(labels=labels), "site", domains=("site",), task="finding")
    assert (silent.verdict, silent.reason_code) == ("NOT_ASSESSABLE", "confounded")


def test_few_units_of_a_class_are_no_confounding(found):
    """Ten ill units on each site: V is 0, and order by site cannot be weighed."""
    site = made().columns["site"]
    labels = np.where(np.arange(len(site)) % 12 == 0, "ill", "healthy")
    (finding,) = found(made(offset=4.0, labels=labels), "site", domains=("site",), task="finding")
    assert (finding.verdict, finding.reason_code) == ("WARN", "n_units")
    assert "confounded" not in finding.reason
    assert finding.answer.startswith("It can be read")


def test_without_a_task_only_a_readable_site_is_told(found):
    assert found(made(offset=4.0), "site", domains=("site",))[0].verdict == "FLAG"
    (silent,) = found(made(), "site", domains=("site",))
    assert (silent.verdict, silent.reason_code) == ("NOT_ASSESSABLE", "no_task")
    assert found(made(), "site", task="finding")[0].reason_code == "no_domain"


def test_few_units_give_counts_only(found):
    (finding,) = found(made(offset=9.0, num_units=50), "site", domains=("site",), task="finding")
    assert (finding.verdict, finding.reason_code, finding.estimate) == ("NOT_ASSESSABLE", "n_units", None)
    assert finding.counts == {"units of A": 25, "units of B": 25}


def test_association_is_counted_in_units_and_small_domains_are_pooled():
    first, second = np.array(["a", "a", "b", "b", "b"]), np.array(["x", "x", "y", "y", "y"])
    assert cramers_v(first, second, np.array([0, 1, 2, 2, 3])) == pytest.approx(1.0)
    assert np.isnan(cramers_v(first, np.full(5, "x"), np.arange(5)))
    names = np.repeat(["big", "p", "q"], [40, 20, 20])
    assert set(pooled(names, np.arange(80))) == {"big", "others"}
    assert set(pooled(np.repeat(["big", "large", "q"], [40, 30, 10]), np.arange(80))) == {"big", "large", "q"}


def small(path):
    with Image.open(path) as image:
        image.draft("L", (64, 64))  # decodes an eighth of each side
        return np.asarray(image.convert("L").resize((24, 24))).ravel() / 255


def test_chest_images_of_two_hospitals_are_flagged_and_shown_confounded_with_the_finding(real_data, found):
    root = real_data / "cxr_nih_hannover"
    with open(root / "dev" / "metadata.csv", encoding="utf-8") as handle:
        table = [row for at, row in enumerate(csv.DictReader(handle)) if row["site"] != "NIH_CC" or at % 4 == 0]
    pixels = np.stack([small(root / row["file"]) for row in table])
    columns = {name: np.array([row[name] for row in table]) for name in ("site", "label", "patient_id")}
    sources = np.arange(len(table))
    data = AuditSet(features={"audited": pixels}, units=columns["patient_id"], content_hash=None, sources=sources, columns=columns)
    (finding,) = found(data, "site", domains=("site",), task="label")
    assert (finding.verdict, finding.reason_code) == ("FLAG", "confounded")
    assert "covid19 occurs in MHH_Hannover only" in finding.reason
    assert finding.estimate.value > 0.97
