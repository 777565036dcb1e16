"""Reconstruction: can pixels be made again from patch tokens, down to text that names somebody?

A small network is trained to make pixels of tokens, on some units, as whoever holds tokens could do with images of their own; it is
tried on other units. Made-up ids are written into these, and a text reader is asked whether it can read them in what was made of the
tokens. The untrained encoder is the baseline: what training removed. n tried images.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dinodomain.audit.evidence import ENCODER, UNITS, About, Check, Evidence, Private, Result
from dinodomain.audit.figures import Bar, Forest
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.masks.ocr import CONTRASTS, LEAST_SIDE, SIZES, Reader, as_pictures, is_read, make_reader
from dinodomain.audit.observe.observer import Observer
from dinodomain.audit.observe.restore import Patched, both, look_at_patches, look_at_planted
from dinodomain.audit.protocol.decoder import Decoder, fit_decoder, similarity
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.errors import MissingExtra
from dinodomain.probes.folds import index_units
from dinodomain.probes.scores import Interval, wilson

ABOUT = About(
    name="reconstruction", code="RECON", question="Q3", title="Can images be made again from their patch tokens?",
    limits=(
        "A small network trained in minutes on these images; a larger one, or more images, may make more of the tokens.",
        "Of tokens only; pooled features hold less.",
        "Faces and bodies are not looked for in what was made.",
    ),
    maps_to={"EU AI Act": ("Art. 10(5)",), "NIST AI RMF": ("MEASURE 2.7", "MEASURE 2.10"), "FUTURE-AI": ("General 2",)},
)  # fmt: skip
TRAINED, TRIED = 400, 120
"""Images that the network is trained on and tried on."""
MIN_UNITS = 60
LEGIBLE = 0.05
MIN_READABLE = 75
"""Texts that the reader reads in the images themselves: with fewer, not even none of them rules out one in twenty."""
_MOST_BYTES = 1 << 30
_PICTURES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What one encoder's tokens gave.

    Attributes:
        alike: Mean structural similarity of restored and shown images that were not trained on.
        own: Share of restored images that resemble their own original more than any other.
        legible: Share of texts, readable in the image, that are readable in what was made of its tokens.
        images: [n, C, *size] restored images with text.
    """

    alike: float
    own: float
    legible: Interval
    images: Tensor


def run(evidence: Evidence) -> list[Result]:
    """Trains on some units, tries on others; pictures of a few stay beside the report."""
    assert evidence.observer is not None, "needed"
    trained, tried = _sides(evidence, evidence.observer)
    told: dict[str, Any] = {"n_units": len(trained) + len(tried), "n_images": len(trained) + len(tried)}
    if len(trained) + len(tried) < MIN_UNITS:
        reason = f"{told['n_units']} units have images of one size; {MIN_UNITS} are the least"
        return [ABOUT.unknown("n_units", reason, "audit more units", **told)]
    lines = evidence.lines
    cells = [(size, contrast) for size in SIZES for contrast in CONTRASTS if size >= lines.text_size and contrast >= lines.text_contrast]
    if _side(evidence.observer, tried) < LEAST_SIDE:
        reason = f"images are shown smaller than {LEAST_SIDE} pixels, too small for text"
        return [ABOUT.unknown("too_small", reason, "audit an encoder of larger images", **told)]
    try:
        reader = make_reader()
    except MissingExtra as error:
        return [ABOUT.unknown("missing_extra", str(error), 'install it: pip install "dinodomain[audit]"', **told)]
    seen = look_at_planted(evidence.observer, tried, cells, evidence.effort.seed)
    # Whoever wants to read text shows the network text.
    written = look_at_planted(evidence.observer, trained, cells, evidence.effort.seed + 1)
    known = both(look_at_patches(evidence.observer, trained), written)
    return _tried(evidence, known, look_at_patches(evidence.observer, tried), seen, reader, told)


def _tried(
    evidence: Evidence, trained: Patched, plain: Patched, seen: Patched, reader: Reader, told: dict[str, Any]
) -> list[Result]:  # fmt: skip
    readable = legible(seen, seen.images(seen.patches), reader)
    told["counts"] = {"texts written": len(seen.planted), "of these read in the images": int(readable.sum())}
    if readable.sum() < MIN_READABLE:
        reason = f"only {int(readable.sum())} of {len(seen.planted)} written texts can be read in the images themselves"
        return [ABOUT.unknown("ocr_recall", reason, f"audit more or larger images: {MIN_READABLE} readable texts are the least", **told)]
    found = {kind: restore(kind, trained, plain, seen, readable, reader, evidence.effort.seed) for kind in seen.tokens}
    return [_finding(found, evidence.lines, told), _pictures(seen, found)]


def _sides(evidence: Evidence, observer: Observer) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the whole set to train and to try on: one of each unit, of the commonest size, as many as memory allows."""
    data, generator = evidence.probed, np.random.default_rng([evidence.effort.seed, 0x9EC0])
    order = generator.permutation(len(data.units))
    _, first = np.unique(index_units(data.units)[order], return_index=True)
    numbers = data.whole_rows[order[np.sort(first)]]
    buckets = observer.tiles.bucket[numbers]
    alike = numbers[buckets == Counter(buckets.tolist()).most_common(1)[0][0]]
    one = next(observer.show(alike[:1]))
    most = min(TRAINED + TRIED, observer.most, _MOST_BYTES // (4 * one.pixels[0].numel() * 6))
    chosen = alike[:most]
    count = min(TRIED, max(len(chosen) // 3, 1))
    return np.sort(chosen[count:]), np.sort(chosen[:count])


def _side(observer: Observer, numbers: np.ndarray) -> int:
    return min(next(observer.show(numbers[:1])).pixels.shape[-2:])


def restore(
    kind: str, trained: Patched, plain: Patched, seen: Patched, readable: np.ndarray, reader: Reader, seed: int
) -> Restored:  # fmt: skip
    """Trains a decoder on the tokens of one encoder and tries it.

    Args:
        kind: ``audited`` or ``untrained``.
        trained: Images to train on.
        plain: Images to try on.
        seen: Images to try on, with text.
        readable: [n] bool, texts that can be read in the images themselves.
        reader: Reads pictures.
        seed: Of the decoder.
    """
    tokens, patches = (rows.reshape(-1, rows.shape[2]) for rows in (trained.tokens[kind], trained.patches))
    decoder = fit_decoder(tokens, patches, seed=seed)
    made, shown = (_tones(plain.images(rows)) for rows in (_decoded(decoder, plain.tokens[kind]), plain.patches))
    images = seen.images(_decoded(decoder, seen.tokens[kind]))
    hits = int((legible(seen, images, reader) & readable).sum())
    return Restored(
        alike=float(similarity(made, shown).mean()), own=_own(made, shown), legible=wilson(hits, int(readable.sum())), images=images
    )


def _decoded(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    result: np.ndarray = decoder(tokens.reshape(-1, tokens.shape[2])).reshape(*tokens.shape[:2], -1).clip(0, 1)
    return result


def _tones(images: Tensor) -> np.ndarray:
    """[n, H, W] mean over channels; of a volume the middle slice."""
    flat = images.mean(dim=1)
    result: np.ndarray = (flat[:, flat.shape[1] // 2] if flat.ndim == 4 else flat).numpy()
    return result


def _own(made: np.ndarray, shown: np.ndarray) -> float:
    """Share of restored images whose most correlated original is their own."""
    rows = []
    for images in (made, shown):
        flat = images.reshape(len(images), -1) - images.reshape(len(images), -1).mean(axis=1, keepdims=True)
        rows.append(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))
    return float(((rows[0] @ rows[1].T).argmax(axis=1) == np.arange(len(made))).mean())


def legible(seen: Patched, images: Tensor, reader: Reader) -> np.ndarray:
    """[n] bool, whether the text that was written into each image is read in these."""
    return np.array([is_read(planted, reader(picture)) for planted, picture in zip(seen.planted, as_pictures(images))], bool)


def _finding(found: Mapping[str, Restored], lines: Thresholds, told: dict[str, Any]) -> Finding:
    audited, blind = found["audited"], found["untrained"]
    share = audited.legible
    told = {
        **told, "estimate": estimate_of(share, "share of texts legible in restored images", "wilson"), "plots": (_plot(found),),
        "evidence": {
            name: {"legible": at.legible.value, "structural_similarity": at.alike, "most_like_their_own": at.own}
            for name, at in found.items()
        },
    }  # fmt: skip
    verdict = _verdict(share)
    words = {"FLAG": "Yes", "CLEAR_WITHIN_LIMITS": "Not down to text"}.get(verdict, "Undecided")
    answer = (
        f"{words}: {share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of written texts can be read in what was made of the tokens "
        f"(untrained encoder {blind.legible.value:.0%}); structural similarity {audited.alike:.2f}, and {audited.own:.0%} of the restored "
        "images resemble their own original most."
    )
    if verdict == "NOT_ASSESSABLE":
        return ABOUT.unknown("low_power", f"a share of {share.high:.0%} cannot be ruled out", "audit more images", **told, answer=answer)
    bad = verdict == "FLAG"
    return ABOUT.finding(
        **told, verdict=verdict, answer=answer, encoded=bad,
        action="Treat patch tokens as the images themselves: publish pooled features, or none." if bad else "",
        repeat="The same network on tokens of an earlier block, or on the features that are to be published." if bad else "",
    )  # fmt: skip


def _verdict(share: Interval) -> Verdict:
    if share.low > LEGIBLE:
        return "FLAG"
    return "CLEAR_WITHIN_LIMITS" if share.high < LEGIBLE else "NOT_ASSESSABLE"


def _plot(found: Mapping[str, Restored]) -> Forest:
    bars = tuple(Bar(label=name, value=at.legible.value, low=at.legible.low, high=at.legible.high) for name, at in found.items())
    return Forest(
        title="Text that survives as tokens", axis="share of written texts read in restored images", rows=bars, lines={"flag": LEGIBLE}
    )


def _pictures(seen: Patched, found: Mapping[str, Restored]) -> Private:
    """A few images with text, and what was made of the tokens, side by side."""
    columns = [as_pictures(images[:_PICTURES]) for images in (seen.images(seen.patches), *(at.images for at in found.values()))]
    sheet = np.concatenate([np.concatenate(list(column)) for column in columns], axis=1)
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "PNG")
    rows = seen.numbers[:_PICTURES].tolist()
    return Private(name="reconstruction", columns={"row": rows}, files={"reconstruction.png": stream.getvalue()})


def self_test() -> SelfTest:
    """Tokens that are mixed pixels, and tokens that know nothing of them."""
    generator = np.random.default_rng(6)
    patches = generator.random((900, 16)).astype(np.float32)
    mixed, noise = patches @ generator.normal(size=(16, 24)), generator.normal(size=(900, 24))
    left = []
    for tokens in (mixed, noise):
        made = fit_decoder(tokens[:600], patches[:600], seed=0, steps=10)(tokens[600:])
        left.append(float(np.square(made - patches[600:]).mean() / patches[600:].var()))
    return SelfTest(
        positive="pass" if left[0] < 0.1 else "fail", negative="pass" if left[1] > 0.9 else "fail",
        detail=f"made-up tokens: {left[0]:.2f} of the variance is lost from mixed pixels, {left[1]:.2f} from noise",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(UNITS, ENCODER))
