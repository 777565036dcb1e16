from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict

import numpy as np
import pydicom
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from dinodomain.demo import phantoms
from dinodomain.demo.phantoms import plan_patients, write_clinic
from dinodomain.domain import find_domain
from dinodomain.errors import UserError
from dinodomain.types import Select, SourceRef


@pytest.fixture(scope="module")
def people():
    return plan_patients(480, 0, (1, 2))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_clinic(tmp_path_factory.mktemp("clinic"), patients=24)


@pytest.fixture(scope="module")
def drawn(people):
    """First image of 240 originals: pixels at half resolution, finding, site, body."""
    originals = [person for person in people if person.body == person.exposure][:240]
    images = np.stack([phantoms.draw_image(person, 0, 0) for person in originals])
    return images, np.array([person.finding == "yes" for person in originals]), np.array([person.site == "B" for person in originals])


def rows_of(archive):
    with archive.labels.open() as handle:
        return list(csv.DictReader(handle))


def auc(features, target):
    scores = np.zeros(len(target))
    for train, test in GroupKFold(5).split(features, target, np.arange(len(target))):
        mean, std = features[train].mean(0), features[train].std(0) + 1e-6
        model = LogisticRegression(C=0.01, max_iter=300).fit((features[train] - mean) / std, target[train])
        scores[test] = model.predict_proba((features[test] - mean) / std)[:, 1]
    return roc_auc_score(target, scores)


def test_findings_are_balanced_and_splits_are_by_patient(people):
    originals = [person for person in people if person.body == person.exposure]
    assert sum(person.finding == "yes" for person in originals) == 240
    shares = {split: sum(person.split == split for person in originals) / 480 for split in phantoms.SPLITS}
    assert shares == pytest.approx(phantoms.SPLITS, abs=0.01)


def test_the_site_is_tied_to_the_finding_at_the_stated_strength():
    many = plan_patients(20_000, 1, (1, 1))
    phi = np.corrcoef([person.finding == "yes" for person in many], [person.site == "B" for person in many])[0, 1]
    assert phi == pytest.approx(phantoms.SITE_STRENGTH, abs=0.02)


def test_the_clean_attribute_is_tied_to_nothing():
    many = plan_patients(20_000, 1, (1, 1))
    clean = [person.blood_group == "O" for person in many]
    for other in (
        [person.finding == "yes" for person in many],
        [person.site == "B" for person in many],
        [person.sex == "F" for person in many],
    ):
        assert abs(np.corrcoef(clean, other)[0, 1]) < 0.03


def test_aliases_are_near_copies_in_another_split(people):
    by_body = defaultdict(list)
    for person in people:
        by_body[person.body].append(person)
    pairs = [pair for pair in by_body.values() if len(pair) == 2]
    assert len(pairs) == len(people) - 480 == round(phantoms.OVERLAP * 480)
    strangers = people[:16]
    for original, alias in pairs[:4]:
        assert original.name != alias.name
        assert original.split != alias.split
        first, second = (phantoms.draw_image(person, 0, 0) for person in (original, alias))
        assert not np.array_equal(first, second)
        near = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        others = [
            np.corrcoef(first.ravel(), phantoms.draw_image(person, 0, 0).ravel())[0, 1]
            for person in strangers
            if person.body != original.body
        ]
        assert near > max(others)
        assert near > 0.95


def test_global_statistics_do_not_give_the_finding_away(drawn):
    images, finding, _ = drawn
    histograms = np.stack([np.histogram(image, 24, (0, 1))[0] for image in images]).astype(float)
    # The site alone gives 0.65; everything here must stay at or below what it explains.
    assert auc(np.stack([images.mean((1, 2)), images.std((1, 2))], 1), finding) < 0.65
    assert auc(histograms, finding) < 0.68


def test_pixels_hardly_tell_the_finding_and_tell_the_site(drawn):
    images, finding, site = drawn
    pixels = images.reshape(len(images), 32, 2, 32, 2).mean((2, 4)).reshape(len(images), -1)
    assert auc(pixels, finding) < 0.68
    assert auc(images.reshape(len(images), -1), site) > 0.85


def test_a_reader_that_looks_at_lung_texture_can_tell_the_finding(people):
    """The class is in the pixels: with the lungs known, the coherence of the structure tensor inside them decides."""
    scores, truth = [], []
    for person in people[:120]:
        u, v = phantoms._pose(np.random.default_rng([0, 3, person.body, 0]), np.zeros(2))
        _, lungs = phantoms._anatomy(u, v, np.random.default_rng([0, 2, person.body]), person)
        down, right = np.gradient(phantoms.draw_image(person, 0, 0))
        inner = lungs > 0.98
        xx, yy, xy = (right**2)[inner].mean(), (down**2)[inner].mean(), (right * down)[inner].mean()
        scores.append(np.hypot(xx - yy, 2 * xy) / (xx + yy))
        truth.append(person.finding == "yes")
    assert roc_auc_score(truth, scores) > 0.95


def test_files_are_real_dicom_and_say_that_they_are_made_up(archive):
    paths = sorted(archive.images.rglob("*.dcm"))
    assert len(paths) == archive.num_images
    for path in paths[:4]:
        dataset = pydicom.dcmread(path)
        assert "MADE-UP PHANTOM" in dataset.PatientComments
        assert "MADE-UP PHANTOM" in dataset.ImageComments
        assert dataset.PatientID == path.parent.name
        assert (dataset.BitsStored, dataset.pixel_array.shape) == (12, (64, 64))
    assert "MADE-UP" in (archive.folder / "README.txt").read_text()


def test_the_xray_domain_reads_what_was_drawn(archive, people):
    domain = find_domain("xray")
    refs = list(domain.discover(str(archive.images), Select()))
    assert all(isinstance(ref, SourceRef) for ref in refs)
    assert {ref.keys["stem"] for ref in refs} == {row["id"] for row in rows_of(archive)}
    assert {ref.unit for ref in refs} == {row["PatientID"] for row in rows_of(archive)}
    small = plan_patients(24, 0, (1, 2))
    for site in "AB":  # B is stored as MONOCHROME1
        person = next(person for person in small if person.site == site)
        record = domain.read(next(ref for ref in refs if ref.keys["stem"] == phantoms.stem(person, 0)))
        values = record.read((slice(0, 64), slice(0, 64)))[0]
        np.testing.assert_array_equal(values, np.rint(phantoms.draw_image(person, 0, 0) * 4095))
        assert record.fields["age_years"] == min(person.age, 90)
        assert record.spacing == (phantoms.PIXEL_MM, phantoms.PIXEL_MM)


def test_labels_have_one_row_per_image_and_the_truth_names_what_was_planted(archive):
    rows = rows_of(archive)
    assert tuple(rows[0]) == phantoms.COLUMNS
    assert len(rows) == len({row["id"] for row in rows}) == archive.num_images
    truth = json.loads(archive.truth.read_text())
    assert truth["site"]["stated_phi"] == phantoms.SITE_STRENGTH
    assert [(pair["original"], pair["alias"]) for pair in truth["overlap"]] == list(archive.aliases)
    assert len(archive.aliases) >= 1


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(tmp_path):
    def digest(folder, seed):
        write_clinic(folder, patients=8, seed=seed, images_per_patient=(1, 1))
        total = hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            total.update(path.relative_to(folder).as_posix().encode() + (path.read_bytes() if path.is_file() else b""))
        return total.hexdigest()

    assert digest(tmp_path / "a", 0) == digest(tmp_path / "b", 0) != digest(tmp_path / "c", 1)


def test_a_whole_archive_is_left_alone_and_half_of_one_is_completed(tmp_path):
    first = write_clinic(tmp_path / "a", patients=8)
    path = next(first.images.rglob("*.dcm"))
    before = path.stat().st_mtime_ns
    assert write_clinic(tmp_path / "a", patients=8) == first
    assert path.stat().st_mtime_ns == before
    first.truth.unlink()
    path.write_bytes(b"cut")
    write_clinic(tmp_path / "a", patients=8)
    assert path.stat().st_size > 8192


def test_a_folder_with_other_things_or_senseless_numbers_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        write_clinic(tmp_path)
    with pytest.raises(UserError, match="at least 8 patients"):
        write_clinic(tmp_path / "new", patients=2)
