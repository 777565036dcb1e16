"""Scenarios for checks that look at what was recorded, declared or written into images: no chance in most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from dinodomain.audit import AuditSet, Finding, Policy
from dinodomain.audit.checks.declaration import completed
from dinodomain.audit.declared import Declaration
from dinodomain.audit.masks.ocr import Word
from dinodomain.audit.trail import Kept, Left, StoreDrawn, Trail
from dinodomain.testing import SyntheticImages
from power.features import single
from power.scenario import Scenario, audited, quiet, several, short

SIZE = 200


def plain(seed: int, num: int = 60) -> AuditSet:
    """An audited set of which only its ids matter."""
    return single(np.random.default_rng(seed).normal(size=(num, 4)), {"site": np.array(["A", "B"])[np.arange(num) % 2]})


def kept(size: int = SIZE, **changes: Any) -> Kept:
    """A store of one source per unit, under one open licence, of two sites."""
    names = np.array([f"s{row:03d}" for row in range(size)], dtype=object)
    index = {
        "source_id": names, "unit": names, "content_hash": names, "source_digest": names,
        "licence": np.full(size, "CC-BY-4.0", dtype=object), "fields": np.full(size, "", dtype=object),
        "crs": np.full(size, None), "affine": np.full(size, None),
    }  # fmt: skip
    settings: dict[str, Any] = {
        "digest": "d", "domain": "made up", "ndim": 2, "personal": False, "index": index,
        "groups": {"site": np.array(["A", "B"] * (size // 2), dtype=object)}, "unit_rows": np.arange(size), "unit_names": names.astype(str),
        "held_units": frozenset(), "held_sources": np.zeros(size, bool), "eligible_sources": np.ones(size, bool),
        "eligible_units": frozenset(names), "rehash": lambda rows: np.ones(len(rows), bool),
    }  # fmt: skip
    return Kept(**(settings | changes))


def altered(seed: int, *, count: int) -> Sequence[Finding]:
    """Some sources whose pixels are not those that were hashed."""
    wrong = np.random.default_rng(seed).permutation(SIZE)[:count]
    store = kept(rehash=lambda rows: ~np.isin(rows, wrong))
    drawn = dict.fromkeys(store.index["source_id"].tolist(), 3)
    stores = (StoreDrawn(digest="d", sources=SIZE, units=SIZE, samples=3 * SIZE, drawn_units=SIZE),)
    trail = Trail(stores=stores, drawn=drawn, steps=10, tiles=SIZE, kept=store, trained=True)
    return audited(plain(seed), "provenance", seed, trail=trail)


def unlicensed(seed: int, *, count: int) -> Sequence[Finding]:
    """Some sources without a licence."""
    store = kept()
    store.index["licence"][np.random.default_rng(seed).permutation(SIZE)[:count]] = None
    return audited(plain(seed), "provenance", seed, trail=Trail(kept=store))


def filtered(seed: int, *, lost: float, others: float = 0.05, size: int = SIZE) -> Sequence[Finding]:
    """Of B the share ``lost`` was refused at ingest, of A the share ``others``."""
    store = kept(size)
    generator, each = np.random.default_rng(seed), size // 2
    refused = []
    for site, share in (("A", others), ("B", lost)):
        refused += [Left(reason="torn", kind="refused", groups={"site": site})] * int(generator.binomial(each / (1 - share), share))
    trail = Trail(kept=replace(store, skipped=tuple(refused), groups_of_skipped=True))
    return audited(plain(seed), "curation", seed, trail=trail, domains=("site",))


class Shows:
    """Stands in for an observer: pictures [n, H, W, 3] as a store of three channels would show them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.frozen = images, SimpleNamespace(domain=SyntheticImages())

    def show(self, rows: np.ndarray) -> Iterator[SimpleNamespace]:
        """All at once."""
        pixels = torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2)[:, None]
        ones, zeros = torch.ones(len(rows), 3), torch.zeros(len(rows), 3)
        yield SimpleNamespace(
            rows=rows, batch=SimpleNamespace(pixels=pixels, info=SimpleNamespace(scale=ones, offset=zeros, low=zeros, high=255 * ones))
        )


def written(seed: int, *, count: int, words: str = "12.03.1987", side: int = 64) -> Sequence[Finding]:
    """Words in some of 60 pictures, for a reader that sees them in marked pictures and every plant elsewhere."""
    generator = np.random.default_rng(seed)
    images = generator.integers(60, 120, (60, side, side, 3), dtype=np.uint8)
    images[:, 0, 0] = 50
    images[generator.permutation(60)[:count], 0, 0] = 130  # the brightest, which the stretch turns to 255
    box = ((0.0, 0.0), (64.0, 0.0), (64.0, 16.0), (0.0, 16.0))
    reads = lambda picture: (Word(box=box, text=words, score=0.97),) if picture[0, 0, 0] == 255 else ()  # noqa: E731
    with (
        patch("dinodomain.audit.checks.text.make_reader", lambda: reads),
        patch("dinodomain.audit.masks.ocr.is_read", lambda planted, found: True),
    ):
        return audited(
            plain(seed), "text", seed, observer=Shows(images), trail=Trail(), policy=Policy(thresholds={"text_bound": 0.2})
        )  # fmt: skip


def declares(seed: int, *, check: str, **blank: Any) -> Sequence[Finding]:
    """A complete form but for what is blank."""
    declared = Declaration.model_validate({**completed().model_dump(mode="json"), **blank})
    return audited(plain(seed), check, seed, declaration=declared.model_dump(mode="json"))


def undeclared(seed: int, *, check: str) -> Sequence[Finding]:
    """No form at all."""
    return audited(plain(seed), check, seed)


def licensed(seed: int, *, data: str, output: str) -> Sequence[Finding]:
    """Data under one licence, given away under another."""
    declared = completed()
    declared = declared.model_copy(update={"licences": declared.licences.model_copy(update={"output": output})})
    audit = replace(plain(seed), columns={"licence": np.full(60, data)})
    return audited(audit, "licences", seed, declaration=declared.model_dump(mode="json"), decision="release_weights")


def cases() -> list[Scenario]:
    """All of them, check by check."""
    date = {"finding": "text/pixels"}
    risk = {"risks": {"R3": {}}}
    return [
        *several("provenance", "altered pixels", [(f"{count} of {SIZE} sources", partial(altered, count=count)) for count in (1, 20)],
                 finding="provenance/pixels"),
        *several("provenance", "lost licences", [(f"{count} of {SIZE} sources", partial(unlicensed, count=count)) for count in (3, 20)],
                 finding="provenance/licences"),
        quiet("provenance", "a complete trail", partial(altered, count=0)),
        short("provenance", "no trail", partial(undeclared, check="provenance")),
        *several("curation", "a filter on one site", [(f"{lost:.0%} refused, elsewhere 5%", partial(filtered, lost=lost))
                 for lost in (0.2, 0.4, 0.6)], finding="curation/site"),
        quiet("curation", "the same share of both", partial(filtered, lost=0.05), finding="curation/site"),
        short("curation", "20 sources", partial(filtered, lost=0.6, size=20), finding="curation/site"),
        *several("text", "a date, for a stand-in reader", [(f"in {count} of 60 images", partial(written, count=count)) for count in (1, 6)],
                 **date),
        quiet("text", "no text, for a stand-in reader", partial(written, count=0), **date),
        short("text", "pictures of 32 pixels", partial(written, count=3, side=32), **date),
        *several("declaration", "blanks", [("no owner", partial(declares, check="declaration", owner="")),
                 ("one risk unanswered", partial(declares, check="declaration", **risk))]),
        quiet("declaration", "a completed form", partial(declares, check="declaration")),
        short("declaration", "no form", partial(undeclared, check="declaration")),
        *several("living", "blanks", [("no date", partial(declares, check="living", living={"expires": "soon", "incident_contact": "desk",
                 "indicators": ["drift"]})), ("nothing", partial(declares, check="living", living={}))]),
        quiet("living", "a completed form", partial(declares, check="living")),
        short("living", "no form", partial(undeclared, check="living")),
        *several("licences", "a condition dropped", [("share alike", partial(licensed, data="CC-BY-SA-4.0", output="MIT")),
                 ("no commercial use", partial(licensed, data="CC-BY-NC-4.0", output="Apache-2.0"))]),
        quiet("licences", "attribution alone", partial(licensed, data="CC-BY-4.0", output="Apache-2.0")),
        short("licences", "no known licence", partial(licensed, data="some agreement", output="MIT")),
    ]  # fmt: skip
