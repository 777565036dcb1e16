"""Text in pixels and headers: what is read, what could have been read, and what is never printed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from dinodomain.audit import Asked, AuditSet, Effort, Policy, run_checks
from dinodomain.audit.checks import text
from dinodomain.audit.checks.faces import faces
from dinodomain.audit.masks import ocr
from dinodomain.audit.masks.ocr import Word, is_read, make_reader, measure, pictures, plant, surface, text_mask
from dinodomain.audit.trail import Kept, Trail
from dinodomain.audit.trail.heads import Head
from dinodomain.errors import MissingExtra
from dinodomain.probes.scores import Interval
from dinodomain.testing import SyntheticImages

QUICK = Effort(permutations=99, bootstraps=100)
HASHED = np.array(["0123456789abcdef0123456789abcdef"] * 60, dtype=object)


def written(words: str, side: int = 160, size: int = 18) -> np.ndarray:
    generator = np.random.default_rng(len(words))
    image = Image.fromarray(generator.normal(90, 8, (side, side)).clip(0, 255).astype(np.uint8)).convert("RGB")
    ImageDraw.Draw(image).text((10, side // 2), words, fill=(240, 240, 240), font=ImageFont.load_default(size))
    return np.array(image)


class Shows:
    """Stands in for an observer: some pictures [n, H, W, 3], as a store of three channels would show them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.frozen = images, SimpleNamespace(domain=SyntheticImages())

    def show(self, rows: np.ndarray):
        pixels = torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2)[:, None]
        ones, zeros = torch.ones(len(rows), 3), torch.zeros(len(rows), 3)
        info = SimpleNamespace(scale=ones, offset=zeros, low=zeros, high=255 * ones)
        yield SimpleNamespace(rows=rows, batch=SimpleNamespace(pixels=pixels, info=info))


@pytest.fixture
def run(make_set):
    def call(images=None, words=None, policy=None, kept=None, **asked):
        data: AuditSet = make_set(num_units=30)
        images = np.zeros((60, 64, 64, 3), np.uint8) if images is None else images
        with pytest.MonkeyPatch.context() as patch:
            if words is not None:
                patch.setattr(text, "make_reader", lambda: words)
            audited = run_checks(
                data, asked=Asked(**asked), effort=QUICK, policy=policy, names=("text",), observer=Shows(images), trail=Trail(kept=kept)
            )  # fmt: skip
        return {item.id: item for item in audited.report.findings}, {item.name: item for item in audited.private}

    return call


def noise(count: int = 60, side: int = 64) -> np.ndarray:
    """Grey noise whose first pixel is the darkest, which ``marked`` turns into the brightest."""
    images = np.random.default_rng(0).integers(60, 120, (count, side, side, 3), dtype=np.uint8)
    images[:, 0, 0] = 50
    return images


def marked(*rows: int) -> np.ndarray:
    images = noise()
    images[list(rows), 0, 0] = 130
    return images


def reader(words: str = "", score: float = 1.0):
    """Reads one string off marked pictures and nothing off others."""
    box = ((0.0, 0.0), (64.0, 0.0), (64.0, 16.0), (0.0, 16.0))

    def read(picture: np.ndarray) -> tuple[Word, ...]:
        return (Word(box=box, text=words, score=score),) if words and picture[0, 0, 0] == 255 else ()

    return read


def test_a_real_reader_reads_ids_without_network_and_is_silent_on_noise():
    read = make_reader()
    (word,) = read(written("ID 48213"))
    assert word.text.replace(" ", "") == "ID48213"
    assert text.kind_of(word.text) == "id"
    assert read(np.random.default_rng(0).integers(80, 100, (96, 96, 3), dtype=np.uint8)) == ()
    mask = text_mask(np.zeros((160, 160, 3), np.uint8), (word,))
    assert mask[80:98, 12:60].mean() > 0.8
    assert not mask[:60].any()


def test_planted_text_is_where_it_says_and_as_strong_as_it_says():
    picture = np.full((120, 160, 3), 100, np.uint8)
    for rotation in (0, 90):
        changed, planted = plant(picture, size=16, contrast=40, rotation=rotation, generator=np.random.default_rng(3))
        left, top, width, height = planted.box
        assert (changed != picture).any(axis=2).nonzero()[0].min() >= top
        assert changed.max() == 140
        assert (width > height) == (rotation == 0)
        assert min(width, height) == pytest.approx(16, abs=3)
        outside = changed.copy()
        outside[top : top + height, left : left + width] = 100
        assert (outside == 100).all()
    assert plant(picture[:10, :10], size=16, contrast=40, rotation=0, generator=np.random.default_rng(0)) is None


def test_a_plant_counts_as_read_only_in_its_place_and_by_its_text():
    planted = ocr.Plant(text="ID 48213", size=12, contrast=40, rotation=0, box=(20, 30, 60, 12))
    box = ((18.0, 28.0), (82.0, 28.0), (82.0, 44.0), (18.0, 44.0))
    assert is_read(planted, [Word(box=box, text="1D 48213", score=0.9)])
    assert not is_read(planted, [Word(box=box, text="PORTABLE", score=0.9)])
    away = tuple((x + 100, y) for x, y in box)
    assert not is_read(planted, [Word(box=away, text="ID 48213", score=0.9)])


def test_every_size_contrast_and_rotation_is_planted_once():
    measured = list(measure(lambda picture: (), [np.full((200, 200, 3), 90, np.uint8)], 0))
    assert len({(one.size, one.contrast, one.rotation) for one, _ in measured}) == 100
    assert surface(measured)[12, 40] == (0, 4)


@pytest.mark.parametrize(
    ("written_text", "kind"),
    [
        ("12.03.1987", "date"), ("2019-04-12", "date"), ("20190412", "date"), ("ID 48213", "id"), ("MRN:00482113", "id"), ("4711-83", "id"),
        ("14:32", "time"), ("PORTABLE", "marker"), ("AP", "marker"), ("L", "marker"), ("SEMI-ERECT", "marker"), ("10 cm", "number"),
        ("85%", "number"), ("MUELLER", "word"), ("X", "mark"), ("|", "mark"),
    ],
)  # fmt: skip
def test_kinds_of_text(written_text, kind):
    assert text.kind_of(written_text) == kind


def test_the_bound_by_hand():
    sure = Interval(value=1.0, low=0.5, high=1.0)
    assert text.upper_bound(0, 3000, sure) == pytest.approx(0.002)
    assert text.upper_bound(0, 3000, None) is None
    assert text.upper_bound(3, 100, Interval(value=1, low=1, high=1)) == pytest.approx(0.0845, abs=1e-3)


def test_a_date_is_flagged_a_marker_warned_of_and_strings_stay_apart(run):
    images = marked(7)
    found, private = run(images, reader("12.03.1987", 0.97))
    assert found["text/pixels"].verdict == "FLAG"
    assert private["text"].columns["text"] == ["12.03.1987"]
    assert "12.03.1987" not in found["text/pixels"].model_dump_json()
    found, _ = run(images, reader("PORTABLE", 0.99))
    assert found["text/pixels"].verdict == "WARN"
    found, _ = run(images, reader("12.03.1987", 0.4))
    assert found["text/pixels"].verdict == "WARN"


def test_silence_is_worth_nothing_without_recall_and_little_in_few_images(run, monkeypatch):
    found, _ = run(noise(), lambda picture: ())
    assert (found["text/pixels"].verdict, found["text/pixels"].reason_code) == ("NOT_ASSESSABLE", "ocr_recall")
    monkeypatch.setattr(ocr, "is_read", lambda planted, words: True)
    found, _ = run(noise(), lambda picture: ())
    assert found["text/pixels"].reason_code == "n_images"
    assert "audit.ocr_images=" in found["text/pixels"].remedy
    found, _ = run(noise(), lambda picture: (), policy=Policy(thresholds={"text_bound": 0.2}))
    assert found["text/pixels"].verdict == "CLEAR_WITHIN_LIMITS"


def test_pictures_too_small_for_text_and_few_images_are_said(run):
    found, _ = run(np.zeros((60, 32, 32, 3), np.uint8))
    assert found["text/pixels"].reason_code == "too_small"
    found, _ = run(noise(), reader(), ocr_images=5)
    assert found["text/pixels"].counts["images read"] == 5


def test_without_the_package_or_an_encoder_it_is_not_assessable(run, make_set, monkeypatch):
    def missing() -> None:
        raise MissingExtra("check text", "rapidocr", "audit")

    monkeypatch.setattr(text, "make_reader", missing)
    found, _ = run(noise())
    assert found["text/pixels"].reason_code == "missing_extra"
    assert "dinodomain[audit]" in found["text/pixels"].remedy
    report = run_checks(make_set(num_units=30), effort=QUICK, names=("text",)).report
    assert report.findings[0].reason_code == "needs_encoder"


def make_kept(fields: str, *, personal: bool = True, names: np.ndarray = HASHED, states: tuple[str, ...] = ()) -> Kept:
    """An index of 60 sources with the same fields; volumes whose states repeat where any are given."""
    index = {"source_id": names, "unit": names, "fields": np.array([fields] * 60, dtype=object)}
    return Kept(
        digest="", domain="xray", ndim=3 if states else 2, personal=personal, index=index, groups={},
        heads=(lambda rows: {row: Head(state=states[row % len(states)]) for row in rows.tolist() if states[row % len(states)] != "unread"})
        if states else None,
        unit_rows=np.arange(60), unit_names=names.astype(str),
        held_units=frozenset(), held_sources=np.zeros(60, bool), eligible_sources=np.ones(60, bool), eligible_units=frozenset(),
    )  # fmt: skip


def headers(run, **kept):
    return run(noise(), reader(), kept=make_kept(**kept), ocr_images=1)[0]["text/headers"]


def test_header_fields_are_held_against_the_confidentiality_profile(run):
    plain = headers(run, fields='{"Manufacturer":"M","burned_in_annotation":"NO"}')
    assert plain.verdict == "CLEAR_WITHIN_LIMITS"
    assert ("BurnedInAnnotation (0028,0301)", "NO", 60) in plain.tables[0].rows
    assert ("RecognizableVisualFeatures (0028,0302)", "not stated", 60) in plain.tables[0].rows
    named = headers(run, fields='{"StationName":"CT3"}')
    assert named.verdict == "FLAG"
    assert "StationName" in named.answer
    assert headers(run, fields='{"Comment":"DOE^JANE"}').verdict == "WARN"
    assert headers(run, fields="{}", names=np.array(["Doe"] * 60, dtype=object)).verdict == "FLAG"
    assert headers(run, fields="{}", personal=False).verdict == "NOT_APPLICABLE"


def test_a_private_attribute_counts_as_identifying(run):
    for name in ("(0019,100c)", "0029,1010", "00291010"):
        assert name in headers(run, fields=f'{{"{name}":"1"}}').answer
    assert headers(run, fields='{"(0018,0050)":"1"}').verdict == "CLEAR_WITHIN_LIMITS"


@pytest.mark.parametrize(
    ("fields", "states", "verdict"),
    [
        ("{}", ("no head", "stands"), "FLAG"), ("{}", ("no head", "removed"), "CLEAR_WITHIN_LIMITS"),
        ("{}", ("no head",), "NOT_APPLICABLE"), ("{}", ("removed", "undecided"), "NOT_ASSESSABLE"),
        ('{"body_part":"BRAIN"}', ("removed", "no head"), "NOT_ASSESSABLE"),
        ('{"body_part":"HEAD","recognizable_visual_features":"YES"}', ("removed",), "FLAG"),
        ('{"body_part":"HEAD","recognizable_visual_features":"NO"}', ("stands",), "FLAG"),  # a claim excuses nothing
        ('{"body_part":"KNEE"}', ("stands",), "NOT_APPLICABLE"), ("{}", ("removed", "unread"), "NOT_ASSESSABLE"),
    ],
)  # fmt: skip
def test_faces_in_volumes_of_heads_are_told_by_claims_and_profiles(run, fields, states, verdict):
    found, _ = run(noise(), reader(), kept=make_kept(fields, states=states), ocr_images=1)
    assert found["text/faces"].verdict == verdict
    assert "text/faces" not in run(noise(), reader(), kept=make_kept(fields), ocr_images=1)[0]


@pytest.mark.parametrize(("heads", "verdict"), [(1, "NOT_ASSESSABLE"), (70, "CLEAR_WITHIN_LIMITS"), (0, "NOT_APPLICABLE")])
def test_a_sample_of_few_heads_clears_nothing(heads, verdict):
    names = np.array([f"{number:032x}" for number in range(500)], dtype=object)
    kept = replace(
        make_kept("{}", states=("removed",)), index={"source_id": names, "unit": names, "fields": np.array(["{}"] * 500, dtype=object)},
        held_sources=np.zeros(500, bool),
        heads=lambda rows: {row: Head(state="removed" if at < heads else "no head") for at, row in enumerate(rows.tolist())},
    )  # fmt: skip
    found = faces(text.ABOUT, kept, 0)
    assert found.verdict == verdict
    assert ("at most 4% of all heads" in found.answer) == (heads == 70)


def test_a_box_as_large_as_the_picture_is_no_text(run):
    """A round body is read as an 0 or an 8."""
    whole = ((0.0, 0.0), (60.0, 2.0), (60.0, 62.0), (0.0, 62.0))
    found, private = run(noise(), lambda picture: (Word(box=whole, text="8", score=0.9),))
    assert found["text/pixels"].counts["images with text"] == 0
    assert not private


def test_pictures_are_stretched_and_take_the_middle_of_volumes():
    pixels = torch.zeros(1, 1, 1, 5, 8, 8, dtype=torch.int16)
    pixels[0, 0, 0, 2] = torch.arange(64).reshape(8, 8)
    shown = SimpleNamespace(batch=SimpleNamespace(pixels=pixels, info=None))
    domain = SimpleNamespace(to_float=lambda values, info: values.float() / 100)
    (picture,) = pictures(shown, domain)
    assert (picture.shape, picture.min(), picture.max()) == ((8, 8, 3), 0, 255)
