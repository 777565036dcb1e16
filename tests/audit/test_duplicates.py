"""Copies: by perceptual hash of what is shown, by georeference, inside volumes; and what they are worth to a score."""

from __future__ import annotations

from dataclasses import replace

import imagehash
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from dinodomain.audit import Asked, AuditSet, Effort, Policy, run_checks
from dinodomain.audit.checks import duplicates
from dinodomain.audit.observe import Observer
from dinodomain.audit.observe.hashes import Hashes, agree, alike, hash_images, hash_picture, near_hashes
from dinodomain.audit.trail import Kept, Trail
from dinodomain.audit.trail.footprints import same_ground
from dinodomain.audit.trail.parts import thumbnails
from dinodomain.embed import embed_store, pixel_features
from dinodomain.model import Backbone, ModelPlan, random_like
from dinodomain.probes.frozen import Frozen
from dinodomain.store import open_store
from dinodomain.store.build import array_record, build_store
from dinodomain.testing import SyntheticImages
from dinodomain.types import Normalisation

QUICK = Effort(permutations=99, bootstraps=100)
UTM = "EPSG:32631"


@pytest.fixture(scope="module")
def observed(tmp_path_factory) -> tuple[Observer, AuditSet]:
    """150 smooth pictures and 15 copies of the first ones with another exposure, noise and rounding, in the test split."""
    generator = np.random.default_rng(2)
    images = gaussian_filter(generator.normal(size=(150, 32, 32)), (0, 2, 2))
    images = 30 + 180 * (images - images.min()) / np.ptp(images)
    copies = 0.8 * images[:15] + 25 + generator.normal(size=(15, 32, 32))
    pixels = np.concatenate([images, copies]).clip(0, 255).astype(np.uint8)
    domain = SyntheticImages(size=(32, 32))
    records = {
        f"i{number:03d}": array_record(np.stack([image] * 3), channels=tuple(domain.channels), layout="whole")
        for number, image in enumerate(pixels)
    }
    store = build_store(tmp_path_factory.mktemp("copies") / "store", records, domain=domain.name, units={name: name for name in records})
    torch.manual_seed(0)
    numbers = Normalisation(mode="domain", channels=store.channels, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=8, registers=1)
    backbone = Backbone.create(plan, ndim=2, image_size=32, normalisation=numbers, domain=domain.name).eval()
    observer = Observer(frozen=Frozen(backbone=backbone, untrained=random_like(backbone, 1), store=store, domain=domain, origin={}))
    table, plain = embed_store(backbone, store, domain), pixel_features(store, domain, normalisation=numbers)
    columns = {"split": np.where(table.rows < 150, "train", "test"), "label": np.array(["a", "b"])[table.rows % 2]}
    data = AuditSet(
        features={"audited": table.features, "pixels": plain.features}, units=table.units, content_hash=table.content_hash,
        sources=table.rows, columns=columns, split="split",
    )  # fmt: skip
    return observer, data


def run(data, observer=None, trail=None, policy=None, **asked):
    audited = run_checks(
        data, asked=Asked(**asked), effort=QUICK, names=("duplicates",), observer=observer, trail=trail, policy=policy
    )  # fmt: skip
    return {item.id: item for item in audited.report.findings}, audited.private


def test_hashes_find_altered_copies_that_the_encoder_does_not(observed):
    observer, data = observed
    expected = {(number, number + 150) for number in range(15)}
    pairs = {
        tuple(pair) for pair in duplicates.match(data, seed=0, looked=duplicates.Looked(images=hash_images(observer, np.arange(165)))).pairs
    }
    assert len(pairs & expected) >= 14
    assert len(pairs - expected) <= 1


def test_copies_across_splits_are_flagged_by_their_share_of_the_test_split(observed):
    observer, data = observed
    found, private = run(data, observer)
    assert found["duplicates"].verdict == "FLAG"
    assert found["duplicates"].estimate.metric == "share of units of split test"
    assert found["duplicates"].estimate.value >= 0.9
    assert next(item for item in private if item.name == "duplicates").columns["hashes_agree"][0]


def test_recall_of_altered_copies_counts_what_hashes_find(observed):
    observer, data = observed
    from dinodomain.audit.observe.altered import AlteredDomain
    from dinodomain.audit.protocol.data import Copies

    rows = np.arange(20, 60)
    domain = AlteredDomain(observer.frozen.domain, 0)
    nothing = {kind: np.zeros((40, values.shape[1])) for kind, values in data.features.items()}
    looked = duplicates.Looked(images=hash_images(observer, np.arange(165)), altered=hash_images(observer, rows, domain))
    told = replace(data, copies=Copies(rows=rows, features=nothing))
    assert duplicates.match(told, seed=0).recall.value == 0
    assert duplicates.match(told, seed=0, looked=looked).recall.value >= 0.9


def test_bits_pairs_and_hashes_agree_with_imagehash():
    words = np.array([[0, 0b11111, 0xFFFFFFFFFFFFFFFF, 0xF0F0]] * 2, np.uint64)
    assert near_hashes(words, 5).tolist() == [[0, 1]]
    assert near_hashes(words, 4).tolist() == []
    assert near_hashes(words, 8).tolist() == [[0, 1], [0, 3]]
    generator = np.random.default_rng(0)
    picture = np.repeat(gaussian_filter(generator.normal(128, 60, (40, 50)), 3).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    bits, _ = hash_picture(picture)
    assert f"{int(bits[0]):016x}" == str(imagehash.dhash(Image.fromarray(picture).convert("L")))
    assert f"{int(bits[1]):016x}" == str(imagehash.phash(Image.fromarray(picture).convert("L")))


def test_near_hashes_of_different_pictures_are_no_pair():
    generator = np.random.default_rng(0)
    bits = np.array([[5, 5, 4, 2**40], [0, 1, 2**50 - 1, 7]], np.uint64)
    same = generator.integers(0, 255, 64 * 64)
    shown = np.stack([same, same, generator.integers(0, 255, 64 * 64), same]).astype(np.uint8)
    images = Hashes(bits=bits, thumbnails=shown)
    pairs = near_hashes(bits)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert alike(images, images, pairs).tolist() == [True, False, True, False, True, False]
    flat = Hashes(bits=bits, thumbnails=np.zeros((4, 64 * 64), np.uint8))
    assert not alike(flat, flat, pairs).any()
    assert agree(images, images).all()
    assert not agree(images, flat).any()


def test_what_copies_add_to_a_score_is_told(observed):
    observer, data = observed
    # 60 further test images without copies: their labels are noise, those of copies are known from training
    generator = np.random.default_rng(1)
    split = data.columns["split"].copy()
    split[60:120] = "test"
    label = np.array(["a", "b"])[generator.integers(0, 2, 165)]
    label[150:] = label[:15]
    data = replace(data, columns={"split": split, "label": label})
    found, _ = run(data, observer, task="label")
    score = found["duplicates/score"]
    assert score.counts["without copies"] <= 61
    assert score.estimate.low <= score.estimate.value <= score.estimate.high
    few = replace(data, columns={"split": np.where(np.arange(165) < 150, "train", "other"), "label": label})
    assert run(few, observer, task="label")[0]["duplicates/score"].reason_code == "no_test_split"


def make_kept(origins, size=100, **changes) -> Kept:
    """Rasters of 10 m pixels with given upper left corners (None: without a place)."""
    count = len(origins)
    place = np.empty(count, object)
    place[:] = [None if at is None else [10.0, 0, at[0], 0, -10.0, at[1], 0, 0, 1] for at in origins]
    shape = np.empty(count, object)
    shape[:] = [[1, size, size]] * count
    names = np.array([f"s{row}" for row in range(count)], dtype=object)
    index = {"crs": np.array([UTM if at else None for at in origins], object), "affine": place, "shape": shape, "source_id": names}
    settings = {
        "digest": "", "domain": "m", "ndim": 2, "personal": False, "index": index, "groups": {}, "unit_rows": np.arange(count),
        "unit_names": names.astype(str), "held_units": frozenset(), "held_sources": np.zeros(count, bool),
        "eligible_sources": np.ones(count, bool), "eligible_units": frozenset(names),
    }  # fmt: skip
    return Kept(**(settings | changes))


def test_overlap_by_georeference_is_measured_by_hand():
    base = (500_000.0, 5_000_000.0)
    kept = make_kept([base, (base[0] + 250, base[1]), (base[0] + 900, base[1] - 900), (base[0] + 5000, base[1]), None, base])
    ground = same_ground(kept)
    shares = {tuple(pair): share for pair, share in zip(ground.pairs.tolist(), ground.shares)}
    assert set(shares) == {(0, 1), (0, 2), (0, 5), (1, 2), (1, 5), (2, 5)}
    assert shares[0, 1] == pytest.approx(0.75, abs=1e-3)
    assert shares[0, 2] == pytest.approx(0.01, abs=1e-3)
    assert shares[0, 5] == pytest.approx(1)
    assert ground.placed == 5


def test_the_same_ground_across_splits_is_flagged_and_differing_sensors_are_counted(make_set):
    data = make_set(num_units=60)
    split = np.where(np.arange(120) < 60, "train", "test")
    origins = [(500_000.0 + 2000 * (row % 60), 5_000_000.0) for row in range(120)]
    sensors = np.array(["A", "B"], object)[(np.arange(120) >= 60).astype(int)]
    data = replace(data, sources=np.arange(120), columns=data.columns | {"split": split})
    kept = make_kept(origins, groups={"sensor": sensors})
    found, private = run(data, trail=Trail(kept=kept))
    ground = found["duplicates/ground"]
    assert ground.verdict == "FLAG"
    assert (ground.counts["across splits"], ground.counts["of different sensor"]) == (60, 60)
    assert "ground" in {item.name for item in private}
    apart = make_kept([(500_000.0 + 2000 * row, 5_000_000.0) for row in range(120)])
    assert run(data, trail=Trail(kept=apart))[0]["duplicates/ground"].verdict == "CLEAR_WITHIN_LIMITS"
    assert "duplicates/ground" not in run(data, trail=Trail(kept=make_kept([None] * 120)))[0]


def test_a_part_under_another_unit_is_flagged_and_under_its_own_warned_of(make_set):
    generator = np.random.default_rng(1)
    fields = np.cumsum(generator.normal(size=(4, 40, 32, 32)), axis=1)
    volumes = {0: thumbnails(fields[0]), 1: thumbnails(fields[1]), 2: thumbnails(fields[0][9:29]), 3: thumbnails(fields[2])}
    data = make_set(num_units=60, split=None)
    kept = make_kept([None] * 120, ndim=3, volumes=lambda: volumes)
    found, private = run(data, trail=Trail(kept=kept))
    parts = found["duplicates/parts"]
    assert (parts.verdict, parts.evidence["offsets"], parts.evidence["slices"]) == ("FLAG", [9], [20])
    assert next(item for item in private if item.name == "parts").columns["part"] == ["s2"]
    own = data.units.copy()
    own[2] = own[0]
    assert run(replace(data, units=own), trail=Trail(kept=kept))[0]["duplicates/parts"].verdict == "WARN"


def test_real_ship_patches_and_landsat_rows_are_told_by_georeference_alone(real_data, tmp_path):
    from dinodomain.audit.trail import read_trail
    from dinodomain.ingest import IngestPlan, ingest

    for domain, folder, pairs in (("sentinel2", "s2_ships", 94), ("landsat", "landsat8_overlap", 1)):
        files = real_data / "sat_multispectral" / "dev" / folder
        if not files.is_dir():
            pytest.skip("no sat_multispectral")
        plan = IngestPlan(domain=domain, source=str(files), store=str(tmp_path / folder), workers=0)
        ingest(plan, progress=lambda done, total: None)
        assert len(same_ground(read_trail({}, open_store(tmp_path / folder)).kept).pairs) == pairs


def test_a_policy_may_allow_more_copies(observed):
    observer, data = observed
    assert run(data, observer, policy=Policy(thresholds={"duplicates_flag": 0.99}))[0]["duplicates"].verdict == "WARN"
