"""Scenarios for checks of features, questions 1 and 2: copies, composition, domains, gaps, places. Every world is drawn from its seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from dinodomain.audit import AuditSet, Copies, Finding, Policy
from power.scenario import Scenario, audited, quiet, several, short

World = Callable[[int], Sequence[Finding]]


def single(features: dict[str, np.ndarray] | np.ndarray, columns: dict[str, Any], **more: Any) -> AuditSet:
    """One image per unit."""
    kinds = features if isinstance(features, dict) else {"audited": features}
    count = len(next(iter(kinds.values())))
    told = {"units": np.arange(count).astype(str), "content_hash": None, "sources": np.arange(count)}
    return AuditSet(features=kinds, columns=columns, **(told | more))


def halves(generator: np.random.Generator, count: int) -> np.ndarray:
    """[count] zeros and ones in equal numbers, in random order."""
    return generator.permutation(np.arange(count) % 2)


def some(count: int, of: int) -> np.ndarray:
    """[of] ones where a plant sits."""
    return (np.arange(of) < count).astype(float)


def effects(world: Callable[..., Sequence[Finding]], key: str, unit: str, *values: Any, **fixed: Any) -> list[tuple[str, World]]:
    """A world per value of one argument, with the value in words."""
    return [(unit.format(value), partial(world, **{key: value}, **fixed)) for value in values]


def fields(seed: int, *, smooth: int, num: int = 400) -> Sequence[Finding]:
    """Features tell the place by ``smooth`` waves, and what is there; the task is a smooth field, or (0) what is there."""
    generator = np.random.default_rng(seed)
    lon, lat = generator.uniform(10, 14, num), generator.uniform(-2, 2, num)
    waves = [np.sin(a * lon + b * lat + c) for a, b, c in generator.normal(size=(smooth or 24, 3)) * 4]
    content = generator.integers(0, 2, num)
    rows = np.stack([*waves, *(content + generator.normal(size=(3, num)))], axis=1)
    field = np.sin(3.1 * lon + 1) + np.sin(2.7 * lat)
    told = (field > np.median(field)).astype(int) if smooth else content
    columns = {"lon": lon, "lat": lat, "task": np.array(["dry", "wet"])[told]}
    return audited(single(rows, columns), "geotime", seed, task="task")


def one_place(seed: int) -> Sequence[Finding]:
    """A hundred scenes of one place."""
    generator = np.random.default_rng(seed)
    columns = {"lon": np.full(100, 11.0), "lat": np.full(100, 1.0), "task": np.array(["dry", "wet"])[halves(generator, 100)]}
    return audited(single(generator.normal(size=(100, 8)), columns), "geotime", seed, task="task")


def two_sites(seed: int, *, by: float, content: float = 5.0, num: int = 240) -> Sequence[Finding]:
    """The site moves two of twelve features by ``by``, the class two others by ``content``."""
    generator = np.random.default_rng(seed)
    y, site = np.arange(num) % 2, np.arange(num) // 2 % 2
    rows = generator.normal(size=(num, 12))
    rows[:, :2] += content * y[:, None]
    rows[:, -2:] += by * site[:, None]
    columns = {"site": np.array(["A", "B"])[site], "finding": np.array(["no", "yes"])[y]}
    return audited(single(rows, columns), "site", seed, domains=("site",), task="finding")


def scanners(seed: int, *, contrast: float, domains: int = 4, each: int = 120) -> Sequence[Finding]:
    """The class moves three of eight features by 1.2, on the last scanner by ``contrast``."""
    generator = np.random.default_rng(seed)
    y, place = np.tile([0, 1], domains * each // 2), np.repeat(np.arange(domains), each)
    rows = generator.normal(size=(domains * each, 8))
    rows[:, :3] += (np.where(place == domains - 1, contrast, 1.2) * y)[:, None]
    columns = {"scanner": np.array([f"s{at}" for at in place]), "finding": np.array(["no", "yes"])[y]}
    return audited(single(rows, columns), "lodo", seed, domains=("scanner",), task="finding")


def poor_group(seed: int, *, flipped: float, num: int = 560) -> Sequence[Finding]:
    """Of women's labels the share ``flipped`` is wrong."""
    generator = np.random.default_rng(seed)
    y, woman = halves(generator, num), halves(generator, num) == 1
    rows = generator.normal(size=(num, 8))
    rows[:, :3] += 1.5 * y[:, None]
    wrong = woman & (generator.random(num) < flipped)
    columns = {"finding": np.where(wrong, 1 - y, y), "sex": np.where(woman, "F", "M")}
    return audited(single(rows, columns), "subgroups", seed, task="finding", attributes=("sex",))


def poor_corner(seed: int, *, poor: float, num: int = 1600) -> Sequence[Finding]:
    """One unit in six lies in a corner of the features, where the share ``poor`` of labels is wrong; elsewhere a tenth is."""
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(num, 8)), np.arange(num) % 2
    corner = x[:, 5] > 1.0
    wrong = generator.random(num) < np.where(corner, poor, 0.1)
    x[:, 0] += 8.0 * y
    columns = {"finding": np.where(wrong, 1 - y, y), "scanner": np.where(corner & (generator.random(num) < 0.9), "old", "new")}
    return audited(single(x, columns), "slices", seed, task="finding", strata=("scanner",))


def out_of_scope(seed: int, *, away: float, failing: bool = True, brains: int = 100, num: int = 400) -> Sequence[Finding]:
    """Chests, and brains that lie ``away``; on brains the task is told wrongly where ``failing``."""
    generator = np.random.default_rng(seed)
    brain, y = np.arange(num) < brains, generator.integers(0, 2, num)
    rows = generator.normal(size=(num, 6)) @ np.random.default_rng(9).normal(size=(6, 16))
    rows[:, 0] += 12.0 * np.where(brain & failing, 1 - y, y)
    rows[:, 8:] += away * brain[:, None] * generator.normal(size=(num, 8))
    columns = {"organ": np.where(brain, "brain", "chest"), "finding": np.array(["no", "yes"])[y]}
    return audited(single(rows, columns), "outlier", seed, task="finding", policy=Policy(out_of_scope={"organ": ("brain",)}))


def data_sets(seed: int, *, by: float, num: int = 400) -> Sequence[Finding]:
    """Two data sets that differ in 2 of 10 features by ``by`` and in nothing that pixels show."""
    generator = np.random.default_rng(seed)
    second = np.arange(num) % 2
    rows = {kind: generator.normal(size=(num, 10)) for kind in ("audited", "pixels")}
    rows["audited"] += by * second[:, None] * some(2, 10)
    return audited(single(rows, {"dataset": np.array(["one", "two"])[second]}), "origin", seed)


def pictures(seed: int, *, copies: int, flat: bool = False) -> Sequence[Finding]:
    """150 smooth images, and re-exposed, noisy copies of some in the test split; 40 altered copies to measure recall by."""
    generator = np.random.default_rng(seed)
    away = np.hypot(*np.meshgrid(np.fft.fftfreq(16) * 16, np.fft.fftfreq(16) * 16))
    images = np.fft.ifft2(np.fft.fft2(generator.normal(size=(150, 16, 16))) / (1 + away) ** 1.5).real.reshape(150, -1)
    mixing = generator.normal(size=(256, 48)) / 16

    def altered(rows: np.ndarray) -> np.ndarray:
        return 0.7 * rows + 0.05 + 0.02 * images.std() * generator.normal(size=rows.shape)

    def described(rows: np.ndarray) -> dict[str, np.ndarray]:
        scaled = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
        return {"audited": np.ones((len(rows), 4)) if flat else np.tanh(scaled @ mixing), "pixels": rows}

    everything = np.concatenate([images, altered(images[:copies])])
    split = np.where(np.arange(len(everything)) < 100, "train", "test")
    data = single(
        described(everything), {"split": split}, split="split", copies=Copies(rows=np.arange(40), features=described(altered(images[:40])))
    )  # fmt: skip
    return audited(data, "duplicates", seed)


def shared(seed: int, *, units: int, known: bool = True) -> Sequence[Finding]:
    """Two images each of 100 units, the second image of some in the other split."""
    index = np.repeat(np.arange(100), 2)
    split = np.where(index < 80, "train", "test")
    split[1 : 2 * units : 2] = "test"
    data = single(np.random.default_rng(seed).normal(size=(200, 4)), {"split": split}, split="split", units=index.astype(str))
    if not known:
        data.units[3] = ""
    return audited(data, "overlap", seed)


def sample(seed: int, *, shares: tuple[float, float], num: int = 260, missing: float = 0.0) -> Sequence[Finding]:
    """Units drawn from one population and held against a declared one of halves."""
    generator = np.random.default_rng(seed)
    sex = generator.choice(["F", "M"], num, p=shares)
    data = single(generator.normal(size=(num, 2)), {"sex": np.where(generator.random(num) < missing, "", sex)})
    return audited(data, "composition", seed, policy=Policy(targets={"sex": {"F": 0.5, "M": 0.5}}))


def cases() -> list[Scenario]:
    """All of them, check by check."""
    return [
        *several("composition", "another population", effects(sample, "shares", "women {0[0]:.0%}, declared 50%",
                 (0.62, 0.38), (0.7, 0.3), (0.8, 0.2)), finding="composition/sex"),
        quiet("composition", "the declared population", partial(sample, shares=(0.5, 0.5)), finding="composition/sex"),
        short("composition", "20 units of the declared population", partial(sample, shares=(0.5, 0.5), num=20), finding="composition/sex"),
        *several("overlap", "units in two splits", effects(shared, "units", "{} of 100 units", 1, 10)),
        quiet("overlap", "splits by unit", partial(shared, units=0)),
        short("overlap", "an image without a unit", partial(shared, units=0, known=False)),
        *several("duplicates", "altered copies across splits", effects(pictures, "copies", "{} of 150 images", 3, 12),
                 finding="duplicates"),
        quiet("duplicates", "no copies", partial(pictures, copies=0), finding="duplicates"),
        short("duplicates", "an encoder that tells nothing apart", partial(pictures, copies=0, flat=True), finding="duplicates"),
        *several("origin", "a signature that pixels lack", effects(data_sets, "by", "{} SD", 0.2, 0.4, 0.8)),
        quiet("origin", "relabelled sources", partial(data_sets, by=0.0)),
        short("origin", "40 units", partial(data_sets, by=1.2, num=40)),
        *several("site", "an offset of the site", effects(two_sites, "by", "{} SD, class 5 SD", 4.0, 6.0, 10.0)),
        quiet("site", "no offset, class 5 SD", partial(two_sites, by=0.0)),
        short("site", "25 units a site", partial(two_sites, by=10.0, num=50)),
        *several("lodo", "the class moves less on one scanner", effects(scanners, "contrast", "{} instead of 1.2 SD", 0.4, 0.0, -1.2)),
        quiet("lodo", "scanners that differ in nothing", partial(scanners, contrast=1.2)),
        short("lodo", "two domains of 50 units", partial(scanners, contrast=-1.2, domains=2, each=50)),
        *several("subgroups", "wrong labels of one group", effects(poor_group, "flipped", "{:.0%} of its labels", 0.05, 0.1, 0.2)),
        quiet("subgroups", "equal groups", partial(poor_group, flipped=0.0)),
        short("subgroups", "60 units", partial(poor_group, flipped=0.3, num=60)),
        *several("slices", "wrong labels in a corner", effects(poor_corner, "poor", "{:.0%}, elsewhere 10%", 0.25, 0.4, 0.6)),
        quiet("slices", "equal errors everywhere", partial(poor_corner, poor=0.1)),
        short("slices", "150 units", partial(poor_corner, poor=0.6, num=150)),
        *several("outlier", "out-of-scope images that lie near", effects(out_of_scope, "away", "{} SD away", 0.7, 0.5, 0.0)),
        quiet("outlier", "out-of-scope images 8 SD away, and errors with them", partial(out_of_scope, away=8.0)),
        short("outlier", "20 out-of-scope units", partial(out_of_scope, away=8.0, brains=20)),
        *several("geotime", "a smooth field", effects(fields, "smooth", "{} waves of the place", 12, 24, 60)),
        quiet("geotime", "content that holds anywhere", partial(fields, smooth=0)),
        short("geotime", "one place", one_place),
    ]  # fmt: skip
