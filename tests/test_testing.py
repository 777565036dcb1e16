"""The conformance suite passes on the synthetic domains, fails on domains that break a promise, and tiny stores are what they say."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from dinodomain.domain import Channel
from dinodomain.ingest import join_labels
from dinodomain.store import open_store
from dinodomain.testing import CLASSES, DomainTests, SyntheticImages, SyntheticVolumes, check_record, read_source, tiny_labels, tiny_store
from dinodomain.types import Select


class TestImages(DomainTests):
    domain = SyntheticImages(nodata=True)
    source = "generate:5"
    expected = 5


class TestPersonalScenes(DomainTests):
    domain = SyntheticImages(size=(300, 280), layout="window", dtype="uint16", personal=True)
    source = "generate:2"
    expected = 2
    select = Select(bands=("c2", "c0"))


class TestVolumes(DomainTests):
    domain = SyntheticVolumes(size=(20, 24, 28), nodata=True, num_channels=2)
    source = "generate:3"
    expected = 3


class TestFloatImages(DomainTests):
    domain = SyntheticImages(dtype="float32")
    source = "generate:2"


def first(domain):
    ref = next(iter(domain.discover("generate:1", Select())))
    return domain.read(ref), ref


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int64"}, "cannot be stored"),
        ({"channels": ("c0", "c0", "c1")}, "a channel twice"),
        ({"channels": ("c0", "c1", "red")}, "does not know"),
        ({"scale": (0.0, 1.0, 1.0)}, "pattern00000"),
        ({"spacing": (-1.0, 1.0)}, "pattern00000"),
        ({"affine": (1.0,) * 16}, "pattern00000"),
        ({"read": lambda window: np.zeros((3, 2, 2), np.uint8)}, "pattern00000"),
    ],
)
def test_a_record_that_breaks_a_promise_is_found(change, words):
    domain = SyntheticImages()
    record, ref = first(domain)
    with pytest.raises(AssertionError, match=words):
        check_record(dataclasses.replace(record, **change), domain, ref)


def test_values_that_are_not_finite_must_be_flagged():
    domain = SyntheticImages(dtype="float32")
    record, ref = first(domain)
    with pytest.raises(AssertionError, match="not finite"):
        check_record(dataclasses.replace(record, read=lambda window: np.full(record.shape, np.nan, np.float32)), domain, ref)


@dataclasses.dataclass(frozen=True)
class Unsorted:
    """Wraps a domain and breaks the order of discovery."""

    inner: SyntheticImages = dataclasses.field(default_factory=SyntheticImages)

    def discover(self, source, select):
        return reversed(list(self.inner.discover(source, select)))


def test_unsorted_discovery_is_found():
    suite = TestImages()
    suite.domain = Unsorted()
    with pytest.raises(AssertionError, match="sorted"):
        suite.test_discovery_is_sorted_unique_and_picklable()


def test_a_channel_without_unit_is_found():
    suite = TestImages()
    suite.domain = SyntheticImages()
    object.__setattr__(suite.domain, "channels", {"c0": Channel(unit="", low=0.0, high=1.0)})
    with pytest.raises(AssertionError, match="no unit"):
        suite.test_its_channels_have_a_unit_and_a_finite_range()


@pytest.mark.parametrize("domain", [SyntheticImages(), SyntheticVolumes(size=(10, 12, 14))])
def test_a_tiny_store_holds_the_generated_pixels(tmp_path, domain):
    store = open_store(tiny_store(tmp_path / "store", domain=domain, num=3))
    refs = list(domain.discover("generate:3", Select()))
    assert store.column("source_id").tolist() == [ref.source_id for ref in refs]
    for row, ref in enumerate(refs):
        record = domain.read(ref)
        np.testing.assert_array_equal(read_source(store, row), record.read(tuple(slice(0, size) for size in record.shape[1:])))


def test_tiny_labels_join_a_tiny_store(tmp_path):
    store = tiny_store(tmp_path / "store", num=6)
    labels = join_labels(store, tiny_labels(tmp_path / "labels.csv", 6), "id", "label")
    assert labels.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert labels.values.tolist() == [CLASSES[index % 4] for index in range(6)]


def test_files_are_read_with_their_validity_and_place(tmp_path):
    valid = np.zeros((9, 11), np.uint8)
    valid[:2] = 1
    np.savez(tmp_path / "a.npz", pixels=np.full((1, 9, 11), 7, np.uint8), valid=valid, acquired="2021-02-03")
    np.save(tmp_path / "b.npy", np.zeros((1, 9, 11), np.uint8))
    (tmp_path / "c.npy").write_text("not numpy")
    domain = SyntheticImages()
    found = list(domain.discover(str(tmp_path), Select()))
    record = domain.read(found[0])
    assert record.acquired == "2021-02-03"
    np.testing.assert_array_equal(record.read_valid((slice(0, 9), slice(0, 11))), valid)
    assert "not a numpy file" in found[2].reason


def test_the_synthetic_domains_are_equal_after_pickling():
    for domain in (SyntheticImages(num_channels=5), SyntheticVolumes(dtype="uint8")):
        assert pickle.loads(pickle.dumps(domain)) == domain
