"""Digests depend on content alone, secrets give stable pseudonyms, and writes are whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from dinodomain import lineage
from dinodomain.lineage import ContentHash, Lineage, canonical, content_hash, digest, fingerprint, pseudonym, share_of, tile_id, to_json

CHANNELS = ("red", "nir")
PIXELS = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4)


@dataclasses.dataclass
class Plan:
    path: Path
    rate: float
    sizes: tuple[int, ...]


def test_plain_values_of_everything_that_artefacts_carry():
    value = {"plan": Plan(Path("a/b"), math.nan, (1, 2)), 3: np.float32(0.5), "n": np.arange(2), "bad": np.array([np.inf])}
    assert to_json(value) == {"plan": {"path": "a/b", "rate": None, "sizes": [1, 2]}, "3": 0.5, "n": [0, 1], "bad": [None]}


def test_one_text_per_value_whatever_the_order_of_keys():
    assert canonical({"b": 1, "a": (2, 3)}) == canonical({"a": [2, 3], "b": 1}) == '{"a":[2,3],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) != digest({"a": 2, "b": 2})


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert lineage.digest_file(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()


def test_a_content_hash_does_not_depend_on_memory_layout_or_byte_order():
    wanted = content_hash(PIXELS, CHANNELS)
    assert content_hash(np.asfortranarray(PIXELS), CHANNELS) == wanted
    assert content_hash(PIXELS.astype(">u2"), CHANNELS) == wanted
    assert content_hash(np.repeat(PIXELS, 2, axis=2)[:, :, ::2], CHANNELS) == wanted


@pytest.mark.parametrize(
    "other",
    [
        (PIXELS.astype(np.int16), CHANNELS),
        (PIXELS.reshape(2, 4, 3), CHANNELS),
        (PIXELS, ("nir", "red")),
        (PIXELS + np.uint16(1), CHANNELS),
    ],
)
def test_a_content_hash_depends_on_dtype_shape_names_and_pixels(other):
    assert content_hash(*other) != content_hash(PIXELS, CHANNELS)


@pytest.mark.parametrize("height", [1, 2, 3])
def test_the_running_hash_of_slabs_of_any_height_is_that_of_the_whole(height):
    running = ContentHash("u2", PIXELS.shape, CHANNELS)
    for first in range(0, PIXELS.shape[1], height):
        running.update(PIXELS[:, first : first + height])
    assert running.hexdigest() == content_hash(PIXELS, CHANNELS)


def test_a_tile_id_is_a_signed_64_bit_number_of_its_own():
    ids = {tile_id("a" * 64, index) for index in range(1000)}
    assert len(ids) == 1000
    assert all(-(2**63) <= number < 2**63 for number in ids)
    assert min(ids) < 0 < max(ids)
    assert tile_id("a" * 64, 7) != tile_id("b" * 64, 7)


def test_a_pseudonym_is_the_keyed_hash_of_the_trimmed_value():
    assert pseudonym(b"key", " P1 ") == hmac.new(b"key", b"P1", hashlib.sha256).hexdigest()[:32]
    assert pseudonym(b"key", "P1") != pseudonym(b"other", "P1")


def test_the_share_of_a_unit_is_uniform_and_unlike_its_pseudonym():
    shares = [share_of(b"key", f"unit{number}") for number in range(2000)]
    assert min(shares) >= 0
    assert max(shares) < 1
    assert np.histogram(shares, 10, (0, 1))[0] == pytest.approx([200] * 10, abs=60)
    assert not pseudonym(b"key", "unit0").startswith(f"{int(shares[0] * 2**64):016x}")


def test_a_fingerprint_tells_secrets_apart_and_holds_none():
    assert fingerprint(b"one") != fingerprint(b"two")
    assert len(fingerprint(b"one")) == 16
    assert b"one".hex() not in fingerprint(b"one")


def test_a_lineage_record_carries_its_own_digest():
    body = Lineage(kind="store", counts={"sources": 3}).as_json()
    own = body.pop("digest")
    assert own == digest(body)
    assert Lineage(kind="store", counts={"sources": 4}).as_json()["digest"] != own


def test_a_file_is_written_whole_with_nothing_beside_it(tmp_path):
    lineage.write_json(tmp_path / "a.json", {"b": (1, 2), "a": "é"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "é", "b": [1, 2]}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    lineage.write_bytes(tmp_path / "a", b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        lineage.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
