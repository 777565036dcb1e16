"""Scenarios for checks of features, questions 3 and 4: leaks, their use, people, places, membership, other encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np

from dinodomain.audit import AuditSet, Finding
from dinodomain.audit.checks.declaration import completed
from dinodomain.audit.protocol.places import to_vectors
from power.features import effects, halves, single, some
from power.scenario import Scenario, audited, quiet, several, short


def leak(seed: int, *, by: float, num: int = 240) -> AuditSet:
    """Sex moves 4 of 24 features."""
    generator = np.random.default_rng(seed)
    sex = halves(generator, num)
    return single(generator.normal(size=(num, 24)) + by * sex[:, None] * some(4, 24), {"sex": np.array(["F", "M"])[sex]})


def _attribute(seed: int, **how: Any) -> Sequence[Finding]:
    return audited(leak(seed, **how), "attribute", seed, attributes=("sex",))


def within(seed: int, *, by: float, num: int = 320) -> Sequence[Finding]:
    """Sex goes with the site in four of five units; features show the site, and sex itself by ``by``."""
    generator = np.random.default_rng(seed)
    site = np.arange(num) % 2
    sex = np.where(generator.random(num) < 0.8, site, 1 - site)
    rows = generator.normal(size=(num, 8))
    rows[:, :3] += 2.0 * site[:, None]
    rows[:, 3:6] += by * sex[:, None]
    columns = {"sex": np.array(["F", "M"])[sex], "site": np.array(["A", "B"])[site]}
    return audited(single(rows, columns), "conditional", seed, attributes=("sex",), strata=("site",))


def used(seed: int, *, by: float, shown: float = 2.0, num: int = 900) -> Sequence[Finding]:
    """A finding made of content that is hard to see and, by ``by``, of sex, which features show by ``shown``."""
    generator = np.random.default_rng(seed)
    sex, content = np.arange(num) % 2, generator.normal(size=num)
    truth = (content + by * (sex - 0.5) + 0.3 * generator.normal(size=num) > 0).astype(int)
    rows = generator.normal(size=(num, 6))
    rows[:, 0] = content + 3.0 * rows[:, 0]
    rows[:, 1] += shown * sex
    columns = {"sex": np.array(["F", "M"])[sex], "finding": truth.astype(str)}
    return audited(single(rows, columns), "use", seed, attributes=("sex",), task="finding")


def trained(seed: int, *, by: float, share: int = 3, num: int = 300) -> Sequence[Finding]:
    """Every third unit was reserved; training moved the features of all others."""
    generator = np.random.default_rng(seed)
    reserved = np.arange(num) % share == 0
    plain = {kind: generator.normal(size=(num, 24)) for kind in ("audited", "pixels", "untrained")}
    rows = plain | {"audited": plain["audited"] + by * reserved[:, None] * some(6, 24)}
    return audited(single(rows, {}, holdout=reserved, members_known=True), "membership", seed)


def recalled(seed: int, *, more: float, num: int = 1560) -> Sequence[Finding]:
    """Corners that a third of the time look like whole images of their class, and by ``more`` oftener for units that were trained on."""
    generator = np.random.default_rng(seed)
    finding, reserved = halves(generator, num), np.arange(num) % 3 == 0
    code = np.eye(24)[finding]

    def corners(_: object, numbers: np.ndarray, *how: object) -> dict[str, np.ndarray]:
        found = {}
        for kind, extra in (("audited", more), ("untrained", 0.0)):
            known = generator.random(len(numbers)) < 1 / 3 + extra * ~reserved[numbers]
            found[kind] = np.eye(24)[np.where(known, finding[numbers], generator.integers(0, 2, len(numbers)))]
        return found

    data = single({"audited": code, "untrained": code}, {"finding": np.array(["no", "yes"])[finding]}, holdout=reserved, members_known=True)
    with patch("dinodomain.audit.checks.dejavu.look_at_corners", corners):
        return audited(data, "dejavu", seed, observer=cast(Any, SimpleNamespace(most=2 * num)), task="finding")


def people(seed: int, *, code: float, num: int = 260) -> Sequence[Finding]:
    """Two visits of every person, with a code of the person in the features."""
    generator = np.random.default_rng(seed)
    owners = np.repeat(np.arange(num), 2)
    rows = generator.normal(size=(2 * num, 16)) + code * generator.normal(size=(num, 16))[owners]
    columns = {"exam": np.tile(["first", "second"], num)}
    data = single(rows, columns, units=np.char.add("p", owners.astype(str)))
    return audited(data, "reidentification", seed, study="exam")


def scenes(seed: int, *, marked: float, num: int = 240) -> Sequence[Finding]:
    """Scenes over Europe; features hold the coordinates by ``marked``, and the sensor goes with the longitude."""
    generator = np.random.default_rng(seed)
    lon, lat = generator.uniform(-8, 28, num), generator.uniform(38, 56, num)
    rows = generator.normal(size=(num, 8))
    rows[:, :3] += marked * to_vectors(lon, lat)
    columns = {"lon": lon.astype(str), "lat": lat.astype(str), "sensor": np.where(lon > 10, "A", "B")}
    return audited(single({"audited": rows, "pixels": generator.normal(size=(num, 6))}, columns), "geolocation", seed, domains=("sensor",))


def cheap(seed: int, *, by: float, num: int = 260) -> Sequence[Finding]:
    """Features show sex by ``by`` where an untrained encoder shows nothing; the declaration prohibits telling it."""
    generator = np.random.default_rng(seed)
    sex = halves(generator, num)
    plain = generator.normal(size=(num, 16))
    rows = {"audited": plain + by * sex[:, None] * some(4, 16), "untrained": generator.normal(size=(num, 16))}
    data = single(rows, {"sex": np.array(["F", "M"])[sex]})
    return audited(data, "capability", seed, attributes=("sex",), declaration=completed().model_dump(mode="json"))


def another(seed: int, *, check: str, other: str, by: float, num: int = 240) -> Sequence[Finding]:
    """One of two encoders of the same units shows sex by ``by`` more: the audited one, or the one fine-tuned from it."""
    generator = np.random.default_rng(seed)
    sex = halves(generator, num)
    base = generator.normal(size=(num, 12))
    alike = base + 0.05 * generator.normal(size=base.shape)
    more = base + by * sex[:, None] * some(3, 12)
    rows = {"audited": more, other: alike} if check == "difference" else {"audited": alike, other: more}
    return audited(single(rows, {"sex": np.array(["F", "M"])[sex]}), check, seed, attributes=("sex",))


def cases() -> list[Scenario]:
    """All of them, check by check."""
    compared = [
        scenario
        for check, other in (("difference", "previous"), ("inherit", "finetuned"))
        for world in (partial(another, check=check, other=other),)
        for scenario in (
            *several(check, "a leak that one encoder has", effects(world, "by", "{} SD", 0.1, 0.2, 0.6)),
            quiet(check, "two encoders that are alike", partial(world, by=0.0)),
            short(check, "40 units", partial(world, by=1.0, num=40)),
        )
    ]
    return [
        *several("attribute", "sex", effects(_attribute, "by", "{} SD", 0.15, 0.3, 0.6)),
        quiet("attribute", "no sex", partial(_attribute, by=0.0)),
        short("attribute", "50 units", partial(_attribute, by=2.0, num=50)),
        *several("conditional", "sex beyond its site", effects(within, "by", "{} SD", 0.15, 0.3, 0.6)),
        quiet("conditional", "sex by its site alone", partial(within, by=0.0)),
        short("conditional", "50 units", partial(within, by=2.0, num=50)),
        *several("use", "a finding made of sex, too", effects(used, "by", "{} SD", 0.1, 0.3, 1.0)),
        quiet("use", "a finding without sex, which is not shown", partial(used, by=0.0, shown=0.0)),
        short("use", "60 units", partial(used, by=1.4, num=60)),
        *several("reidentification", "a code of each person", effects(people, "code", "{} SD", 0.25, 0.5, 1.0)),
        quiet("reidentification", "no code", partial(people, code=0.0)),
        short("reidentification", "100 people", partial(people, code=3.0, num=100)),
        *several("geolocation", "coordinates", effects(scenes, "marked", "{} SD an earth radius", 15, 30, 60)),
        quiet("geolocation", "no place", partial(scenes, marked=0.0)),
        short("geolocation", "20 scenes", partial(scenes, marked=60, num=20)),
        *several("membership", "a trace of training", effects(trained, "by", "{} SD", 0.15, 0.3, 0.6)),
        quiet("membership", "no trace", partial(trained, by=0.0)),
        short("membership", "20 reserved units", partial(trained, by=0.0, share=15)),
        *several("dejavu", "corners that recall", effects(recalled, "more", "{} oftener", 0.1, 0.2, 0.4)),
        quiet("dejavu", "no recall", partial(recalled, more=0.0)),
        short("dejavu", "100 reserved units", partial(recalled, more=0.4, num=300)),
        *several("capability", "sex, prohibited", effects(cheap, "by", "{} SD", 0.25, 0.5, 1.0), finding="capability/sex"),
        quiet("capability", "no sex", partial(cheap, by=0.0), finding="capability/sex"),
        short("capability", "30 units", partial(cheap, by=3.0, num=30), finding="capability/sex"),
        *compared,
    ]  # fmt: skip
