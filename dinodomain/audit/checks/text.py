"""Text: do pixels or headers hold what names a person, a date or a place of examination?

Pictures are read by OCR, whose recall on text planted into these very pictures is measured in the same run. Nothing found in n pictures
bounds the share with text by 3 / n at 95 % (rule of three, Hanley and Lippman-Hand 1983); the reader's recall divides it. Names cannot be
told from other words. What the index keeps of headers is held against DICOM PS3.15, Table E.1-1. Strings stay in ``private/``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.checks.faces import faces
from dinodomain.audit.checks.headers import DATE, ID
from dinodomain.audit.checks.headers import headers as found_in_headers
from dinodomain.audit.evidence import ENCODER, About, Check, Evidence, Need, Private, Result
from dinodomain.audit.figures import Cell, Heat, Table
from dinodomain.audit.finding import Estimate, Finding, SelfTest
from dinodomain.audit.masks.ocr import CONTRASTS, LEAST_SIDE, SIZES, Plant, Reader, Word, make_reader, measure, pictures, surface
from dinodomain.audit.observe import Observer
from dinodomain.audit.protocol.verdict import Thresholds
from dinodomain.audit.trail.heads import look, made_up
from dinodomain.errors import MissingExtra
from dinodomain.probes.scores import Interval, wilson

ABOUT = About(
    name="text", code="PHI", question="Q1", core=True, title="Do images or headers hold text that may name somebody?",
    limits=(
        "Reads Latin letters and digits; handwriting, other scripts and text fainter than what was planted may pass.",
        "Whether a word is a name is not decided. Faces in photographs and radiographs are not looked for.",
        "Of volumes the middle slice of each tile is read.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(5)",), "NIST AI RMF": ("MEASURE 2.10",), "FUTURE-AI": ("General 2",), "DICOM PS3.15": ("Annex E.3.1",),
    },
)  # fmt: skip
PERSONAL_IMAGES, OTHER_IMAGES = 3500, 100
"""Pictures that are read where ``audit.ocr_images`` does not say: at a recall of .9 the bound falls below .001 from 3,334 on."""

PLANTED_INTO = 12
SURE = 0.8
"""Least score of the reader for a pattern to count as confirmed."""

KINDS: Mapping[str, re.Pattern[str]] = {
    "date": DATE,
    "id": ID,
    "time": re.compile(r"(?<!\d)[0-2]?\d[:h][0-5]\d(:[0-5]\d)?(?!\d)"),
    "number": re.compile(r"^[\d.,+\-]+\s*(%|cm|mm|kV|kVp|mAs|mA|ms|m|km|HU|x)?$", re.IGNORECASE),
}
"""In the order in which they are tried; dates and ids are identifiers."""

MOST_BOX = 0.6
"""Share of both sides of a picture above which a box is no text."""
IDENTIFIERS = ("date", "id")
MARKERS = frozenset({
    "portable", "ap", "pa", "l", "r", "lat", "left", "right", "erect", "supine", "upright", "semi-erect", "semierect", "semi",
    "sitting", "stehend", "sitzend", "liegend", "bettaufnahme", "bett", "lateral", "lordotic", "expiration", "inspiration",
    "mobile", "stat", "icu", "grid", "chest", "thorax", "rechts", "links",
})  # fmt: skip
"""Words that tell how an image was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was read.

    Attributes:
        rows: [n] rows of the audited set that were read.
        words: Row to its words.
        small: Pictures that are too small to carry text.
        recall: Share of planted text read back, at the size and contrast asked for or more.
        measured: All plants, and whether each was read.
    """

    rows: np.ndarray
    words: Mapping[int, tuple[Word, ...]]
    small: int
    recall: Interval | None
    measured: tuple[tuple[Plant, bool], ...]


def run(evidence: Evidence) -> list[Result]:
    """Pixels first, then what the index keeps of headers."""
    kept = None if evidence.trail is None else evidence.trail.kept
    headers = [] if kept is None else [found_in_headers(ABOUT, kept)]
    if kept is not None and kept.personal and kept.heads is not None:
        headers.append(faces(ABOUT, kept, evidence.effort.seed))
    if evidence.asked.ocr_images == 0:
        return [ABOUT.unknown("not_asked", "no image was read (audit.ocr_images=0)", "give a number, or leave it out", "pixels"), *headers]
    try:
        seen = read_images(evidence, make_reader)
    except MissingExtra as error:
        remedy = 'install it: pip install "dinodomain[audit]"'
        return [ABOUT.unknown("missing_extra", str(error), remedy, "pixels"), *headers]
    return [*_pixels(evidence, seen), *headers]


def read_images(evidence: Evidence, make: Callable[[], Reader]) -> Seen:
    """Reads randomly chosen images, one tile of each, and measures the reader on some of them; makes it once there is something to read."""
    assert evidence.observer is not None, "needed"
    rows, seed = _chosen(evidence), evidence.effort.seed
    words: dict[int, tuple[Word, ...]] = {}
    samples: list[np.ndarray] = []
    small = 0
    for row, picture in _shown(evidence.observer, rows):
        if min(picture.shape[:2]) < LEAST_SIDE:
            small += 1
            continue
        words[row] = tuple(word for word in make()(picture) if not _fills(word, picture))
        if len(samples) < PLANTED_INTO and not words[row]:
            samples.append(picture)
    measured = tuple(measure(make(), samples, seed)) if samples else ()
    lines = evidence.lines
    counted = [hit for planted, hit in measured if planted.size >= lines.text_size and planted.contrast >= lines.text_contrast]
    recall = wilson(sum(counted), len(counted)) if counted else None
    return Seen(rows=np.array(sorted(words), np.int64), words=words, small=small, recall=recall, measured=measured)


def _fills(word: Word, picture: np.ndarray) -> bool:
    """Whether a box is as good as the whole picture: a round body is read as 0 or 8, and no text is so large."""
    across, down = (float(max(ends) - min(ends)) for ends in zip(*word.box))
    return bool(across > MOST_BOX * picture.shape[1] and down > MOST_BOX * picture.shape[0])


def _chosen(evidence: Evidence) -> np.ndarray:
    """One row of each of so many random sources."""
    trail = evidence.trail
    personal = trail is None or trail.kept is None or trail.kept.personal
    asked = evidence.asked.ocr_images
    most = asked if asked is not None else PERSONAL_IMAGES if personal else OTHER_IMAGES
    generator = np.random.default_rng([evidence.effort.seed, 0x7E87])
    order = generator.permutation(len(evidence.data.sources))
    _, first = np.unique(evidence.data.sources[order], return_index=True)
    one_each = generator.permutation(order[first])
    return np.sort(one_each[:most])


def _shown(observer: Observer, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for shown in observer.show(rows):
        yield from zip(shown.rows.tolist(), pictures(shown, observer.frozen.domain))


def kind_of(text: str) -> str:
    """What a piece of text looks like: ``date``, ``id``, ``time``, ``marker``, ``number``, ``word`` or ``mark``; a name is a word."""
    plain = text.strip()
    for kind in ("date", "id", "time"):
        if KINDS[kind].search(plain):
            return kind
    tokens = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)?", plain)
    if tokens and all(token.lower() in MARKERS for token in tokens):
        return "marker"
    if KINDS["number"].match(plain):
        return "number"
    return "word" if any(len(token) > 1 for token in tokens) else "mark"


def _pixels(evidence: Evidence, seen: Seen) -> list[Result]:
    data, count = evidence.data, len(seen.rows)
    told: dict[str, Any] = {"title": "Is text burned into the images?", "n_images": count, "n_units": len(np.unique(data.units[seen.rows]))}
    if not count:
        reason = f"the shorter side of all {seen.small} pictures is below {LEAST_SIDE} pixels: text of 8 pixels has no room in them"
        return [ABOUT.unknown("too_small", reason, "audit images of the size at which they were taken", "pixels", **told)]
    listed = [(row, word, kind_of(word.text)) for row in seen.rows.tolist() for word in seen.words[row]]
    with_text = {row for row, _, _ in listed}
    sure = {row for row, word, kind in listed if kind in IDENTIFIERS and word.score >= SURE}
    bound = upper_bound(len(with_text), count, seen.recall)
    told |= {
        "estimate": Estimate(
            metric="share of images with text", value=len(with_text) / count, low=wilson(len(with_text), count).low, high=bound,
            method="wilson; upper end over the lower end of the reader's recall; rule of three where none was found",
        ),
        "counts": {"images read": count, "images with text": len(with_text), "images with a date or an id": len(sure),
                   "images too small to read": seen.small},
        "tables": (_kinds_table(listed), _recall_table(seen)), "plots": _recall_plot(seen),
        "evidence": {"recall": None if seen.recall is None else [seen.recall.value, seen.recall.low, seen.recall.high]},
    }  # fmt: skip
    found = _verdict(told, len(with_text), len(sure), seen, bound, evidence.lines)
    return [found, *([_private(data.columns, listed)] if listed else [])]


def upper_bound(found: int, read: int, recall: Interval | None) -> float | None:
    """Upper end of the share of images with text: 3 / n where none was found, Wilson's otherwise, over the lower end of the recall."""
    if recall is None or recall.low <= 0:
        return None
    top = 3 / read if not found else wilson(found, read).high
    return min(1.0, top / recall.low)


def _verdict(told: dict[str, Any], texts: int, sure: int, seen: Seen, bound: float | None, lines: Thresholds) -> Finding:
    count = told["n_images"]
    recall = "unknown" if seen.recall is None else f"{seen.recall.value:.0%}"
    where = f"at {lines.text_size} pixels and contrast {lines.text_contrast} of 255 or more"
    repeat = "Once these boxes are blanked and the images ingested anew, none of them shows up again."
    if sure:
        answer = f"Yes: {sure} of {count} images show a date or an id, {texts} any text; {recall} of planted text was read {where}."
        action = (
            "Blank the boxes in text.csv (kept beside the report) before the images are used or weights leave the house, and train again."
        )
        return ABOUT.finding("pixels", **told, verdict="FLAG", answer=answer, action=action, repeat=repeat)
    if texts:
        answer = (
            f"Yes: {texts} of {count} images show text, none in the form of a date or an id; {recall} of planted text was read {where}."
        )
        action = "Look at the boxes in text.csv (kept beside the report): words may be names, and markers give away how an image was taken."
        return ABOUT.finding("pixels", **told, verdict="WARN", answer=answer, action=action, repeat=repeat)
    if seen.recall is None or bound is None or seen.recall.value < lines.text_recall:
        reason = f"{recall} of text planted into these images was read {where}; {lines.text_recall:.0%} is asked for"
        remedy = "audit images of the size at which they were taken"
        return ABOUT.unknown("ocr_recall", reason, remedy, "pixels", **told, answer="No text was seen.")
    if bound >= lines.text_bound:
        reason = f"up to {bound:.2%} of the images may show text; less than {lines.text_bound:.2%} is asked for"
        remedy = f"read more images: audit.ocr_images={int(np.ceil(3 / (lines.text_bound * seen.recall.low))) + 1} would do"
        return ABOUT.unknown("n_images", reason, remedy, "pixels", **told, answer="No text was seen.")
    answer = f"None was seen in {count} images; at most {bound:.2%} may show some; {recall} of planted text was read {where}."
    return ABOUT.finding("pixels", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _kinds_table(listed: Sequence[tuple[int, Word, str]]) -> Table:
    images = {
        kind: len({row for row, _, own in listed if own == kind}) for kind in ("date", "id", "time", "marker", "number", "word", "mark")
    }
    boxes = Counter(kind for _, _, kind in listed)
    rows: tuple[tuple[Cell, ...], ...] = tuple((kind, images[kind], boxes[kind]) for kind in images if images[kind])
    return Table(
        title="Kinds of text", columns=("kind", "images", "boxes"), rows=rows, note="A name is a word: the two are not told apart."
    )


def _recall_table(seen: Seen) -> Table:
    found = surface(seen.measured)
    rows: list[tuple[Cell, ...]] = []
    for size in SIZES:
        line = [found.get((size, contrast)) for contrast in CONTRASTS]
        rows.append((f"{size} pixels", *(None if cell is None else f"{cell[0]} of {cell[1]}" for cell in line)))
    columns = ("height", *(f"contrast {contrast}" for contrast in CONTRASTS))
    return Table(title="Planted text that was read back", columns=columns, rows=tuple(rows), note="In four rotations each.")


def _recall_plot(seen: Seen) -> tuple[Heat, ...]:
    if not seen.measured:
        return ()
    panels = {}
    for name, turned in (("upright: height down, contrast across", (0,)), ("turned by 90, 180, 270 degrees", (90, 180, 270))):
        found = surface([pair for pair in seen.measured if pair[0].rotation in turned])
        panels[name] = tuple(
            tuple(None if (cell := found.get((size, contrast))) is None else cell[0] / cell[1] for contrast in CONTRASTS) for size in SIZES
        )
    return (Heat(title="Recall of planted text", axis="share read back", panels=panels, low=0.0, high=1.0),)


def _private(columns: Mapping[str, np.ndarray], listed: Sequence[tuple[int, Word, str]]) -> Private:
    names = columns.get("source_id")
    table: dict[str, list[Any]] = {"row": [row for row, _, _ in listed]}
    if names is not None:
        table["source_id"] = [str(names[row]) for row, _, _ in listed]
    table |= {
        "kind": [kind for _, _, kind in listed], "text": [word.text for _, word, _ in listed],
        "score": [round(word.score, 3) for _, word, _ in listed],
        "box": [" ".join(f"{x:.0f},{y:.0f}" for x, y in word.box) for _, word, _ in listed],
    }  # fmt: skip
    return Private(name="text", columns=table)


def self_test() -> SelfTest:
    """Kinds of made-up strings, the bound of nothing found, and made-up heads with a face and without."""
    identifying = ("12.03.1987", "ID 48213", "20190412", "MRN:00482113")
    others = ("PORTABLE", "AP", "L", "10 cm", "SMITH", "100%")
    hits = [kind_of(text) in IDENTIFIERS for text in identifying]
    false = [kind_of(text) in IDENTIFIERS for text in others]
    whole = Interval(value=1.0, low=1.0, high=1.0)
    bound = upper_bound(0, 3000, whole)
    stands, gone = (look(made_up(face=face), (3.0, 3.0, 3.0)).state for face in (True, False))
    return SelfTest(
        positive="pass" if all(hits) and bound == 0.001 and stands == "stands" else "fail",
        negative="pass" if not any(false) and gone == "removed" else "fail",
        detail=f"made-up strings: {sum(hits)} of 4 identifiers told, {sum(false)} of 6 others; made-up heads: a face {stands}, one taken "
        f"away is {gone}; the reader's recall is measured on the audited images",
    )  # fmt: skip


IMAGES = Need(
    there=ENCODER.there, code=ENCODER.code, reason="only features were audited; this check has to look at the images", remedy=ENCODER.remedy
)
CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(IMAGES,))
