"""Near in space and time: how much of a task's score is owed to test images that lie beside training images?

The same probe three ways: rows dealt at random, blocks of ground held out with a buffer (blocks of growing side), and trained on the past
only; always on equally many training rows. Random splits of ecological maps were up to 40 % too good (S. Ploton et al. 2020 saw R2 fall
from .53 to about 0). Both splits answer a question; the finding says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from dinodomain.audit.evidence import TASK, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Curves, Plot, Points, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import Attribute, read_attribute, within
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.nearness import EARTH_KM, SIZES_KM, Trial, block_trial, blocks, forward_trial, moran
from dinodomain.audit.protocol.task import read_column, scored
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, Verdict
from dinodomain.audit.trail.groups import text_of
from dinodomain.probes.scores import Z95, Interval, unit_weights

ABOUT = About(
    name="geotime", code="GEO-TIME", question="Q2", title="How much of the score is owed to near places and times?",
    limits=(
        "Blocked folds ask how the task does in new areas; folds at random, drawn from a design, ask how right a map of this area is.",
        "One reference probe; blocks are squares of ground, not landscapes.",
    ),
    maps_to={
        "EU AI Act": ("Art. 15", "Annex IV 3"), "NIST AI RMF": ("MEASURE 2.5", "MEASURE 2.6"), "FUTURE-AI": ("Universality 3",),
    },
)  # fmt: skip
_LON, _LAT, _WHEN = ("lon", "longitude"), ("lat", "latitude"), ("acquired", "date", "time")
_NEIGHBOURS = 8
_MIN_TIMES = 5
_JOINED = 0.8  # of the places: with more blocks than this nearly every place has its own
_METHOD = "1.96 x SE of block bootstrap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One way to split against the random one.

    Attributes:
        side: Of a block in km; None for forward in time.
        blocks: That hold images, or units for forward in time.
        random: Score of the random split.
        apart: Score of this one.
        inflation: Random minus apart, over resampled blocks.
        share: Of rows trained on, in both.
        trial: What they rest on.
    """

    side: float | None
    blocks: int
    random: float
    apart: Interval
    inflation: Interval
    share: float
    trial: Trial

    @property
    def p(self) -> float:
        """Of no inflation, one-sided."""
        error = (self.inflation.high - self.inflation.low) / 2 / Z95
        return float(norm.sf(self.inflation.value / max(error, 1e-12)))


def run(evidence: Evidence) -> list[Result]:
    """One finding, or NOT_APPLICABLE where nothing says where images were made."""
    columns = evidence.probed.columns
    lon_name, lat_name = (next((name for name in names if name in columns), None) for names in (_LON, _LAT))
    if lon_name is None or lat_name is None:
        reason = "the set has no columns lon and lat"
        return [ABOUT.finding(verdict="NOT_APPLICABLE", answer="The images have no place on the ground.", reason=reason)]
    for need in (TASK, UNITS):
        if not need.there(evidence):
            return [ABOUT.unknown(need.code, need.reason, need.remedy, core=True)]
    assert evidence.asked.task is not None, "checked above"
    target = read_column(evidence.probed, evidence.asked.task)
    lon, lat = (_numbers(columns[name])[target.rows] for name in (lon_name, lat_name))
    known = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
    if not known.any():
        return [ABOUT.finding(verdict="NOT_APPLICABLE", answer="The images have no place on the ground.", reason="lon and lat are empty")]
    when = next((text_of(columns[name])[target.rows][known] for name in _WHEN if name in columns), None)
    return [_result(evidence, within(target, known), lon[known], lat[known], when)]


def _numbers(column: np.ndarray) -> np.ndarray:
    """[N] floats, NaN where there is none."""
    out = np.full(len(column), np.nan)
    for at, word in enumerate(text_of(column)):
        try:
            out[at] = float(word)
        except ValueError:
            continue
    return out


def _result(evidence: Evidence, target: Attribute, lon: np.ndarray, lat: np.ndarray, when: np.ndarray | None) -> Result:
    told: dict[str, Any] = {"n_units": target.num_units, "n_images": len(target.rows), "core": True}
    if target.kind == "classes" and (len(target.classes) < 2 or target.num_minor < MIN_UNITS):
        reason = f"{target.name} does not hold two classes of {MIN_UNITS} units"
        return ABOUT.unknown("n_units", reason, "audit more units", **told)
    features = evidence.probed.audited
    found = compare_sizes(features, target, lon, lat, evidence.effort)
    if not found:
        reason = f"no side of blocks gives {MIN_UNITS} blocks with images and folds that can be trained"
        return ABOUT.unknown("n_units", reason, "audit more places", **told)
    later = _forward(features, target, when, evidence.effort)
    order = residual_order(target, found[-1].trial, lon, lat, evidence.effort.permutations, evidence.effort.seed)
    judge = lambda p, _: _finding(target, found, later, order, p, evidence.lines, told, (lon, lat))  # noqa: E731
    return Draft(p=(found[-1].p, order[1]), judge=judge)


def compare_sizes(features: np.ndarray, target: Attribute, lon: np.ndarray, lat: np.ndarray, effort: Effort) -> list[Compared]:
    """The random split against blocks of growing side, as long as 30 blocks hold images; sides that hardly join any are passed over."""
    counts = {side: int(blocks(lon, lat, side).max()) + 1 for side in SIZES_KM}
    sides = [side for side, count in counts.items() if count >= MIN_UNITS]
    places = len(np.unique(np.stack([lon, lat], axis=1), axis=0))
    sides = [side for side in sides if side == sides[-1] or counts[side] < _JOINED * places]
    trials = {side: block_trial(features, target, lon, lat, side, effort) for side in sides}
    return [_compared(target, trial, side, effort) for side, trial in trials.items() if trial is not None]


def _compared(target: Attribute, trial: Trial, side: float | None, effort: Effort) -> Compared:
    truth, units = target.values[trial.kept], trial.units
    ours, plain = (float(scored(target.kind, side_, truth)[0]) for side_ in (trial.apart, trial.random))
    draws = [
        np.stack([scored(target.kind, one, truth, piece) for one in (trial.apart, trial.random)])
        for piece in unit_weights(units, effort.bootstraps, effort.seed)
    ]
    apart, random = np.concatenate(draws, axis=1)
    half, wide = Z95 * float(np.nanstd(apart)), Z95 * float(np.nanstd(random - apart))
    return Compared(
        side=side, blocks=int(units.max()) + 1, random=plain, apart=Interval(value=ours, low=ours - half, high=ours + half),
        inflation=Interval(value=plain - ours, low=plain - ours - wide, high=plain - ours + wide), share=trial.share, trial=trial,
    )  # fmt: skip


def _forward(features: np.ndarray, target: Attribute, when: np.ndarray | None, effort: Effort) -> Compared | None:
    """Trained on the past only, where five different times or more are known."""
    if when is None or len(np.unique(when[when != ""])) < _MIN_TIMES:
        return None
    known = when != ""
    part = within(target, known)
    trial = forward_trial(features, part, when[known], effort)
    return None if trial is None else _compared(part, trial, None, effort)


def residual_order(
    target: Attribute, trial: Trial, lon: np.ndarray, lat: np.ndarray, permutations: int, seed: int
) -> tuple[float, float]:  # fmt: skip
    """Moran's I of the blocked probe's residuals, averaged over units, and its permutation p."""
    units = target.unit_index[trial.kept]
    present, at = np.unique(units, return_inverse=True)
    if len(present) <= 2 * _NEIGHBOURS:
        return float("nan"), 1.0
    sizes = np.bincount(at)
    values, x, y = (np.bincount(at, one) / sizes for one in (_residuals(target, trial), lon[trial.kept], lat[trial.kept]))
    return moran(values, x, y, neighbours=_NEIGHBOURS, permutations=permutations, seed=seed)


def _residuals(target: Attribute, trial: Trial) -> np.ndarray:
    """[m] truth minus prediction: of the number's rank, or of the second (of more than two: the true) class."""
    truth = target.values[trial.kept]
    if target.kind == "number":
        rank = truth.argsort().argsort() / len(truth)
        result: np.ndarray = rank - rank.mean() - trial.apart
        return result
    if len(target.classes) == 2:
        return np.asarray((truth == 1) - trial.apart[:, 1], np.float64)
    return np.asarray(1 - trial.apart[np.arange(len(truth)), truth], np.float64)


def _finding(
    target: Attribute, found: list[Compared], later: Compared | None, order: tuple[float, float], p: tuple[float, ...], lines: Thresholds,
    told: dict[str, Any], place: tuple[np.ndarray, np.ndarray],
) -> Finding:  # fmt: skip
    last = found[-1]
    verdict, code, reason = _verdict(last, p[0], lines)
    told |= {
        "estimate": estimate_of(last.inflation, f"score at random minus score in blocks of {last.side:g} km", _METHOD),
        "n_minor": last.blocks, "counts": {f"blocks of {one.side:g} km": one.blocks for one in found},
        "tables": (_table(found, later),), "plots": _plots(target, found, place),
        "evidence": {"moran_i": _plain(order[0]), "moran_p": order[1], "moran_p_adjusted": p[1], "neighbours": _NEIGHBOURS},
    }  # fmt: skip
    warned = verdict == "WARN"
    return ABOUT.finding(
        **told, verdict=verdict, reason_code=code, reason=reason, answer=_answer(target, last, later, order),
        remedy="audit more places" if verdict == "NOT_ASSESSABLE" else "",
        action=f"Report {target.name} from blocked folds where new areas are meant; name the split beside every score." if warned else "",
        repeat="The same difference with images from more areas in training." if warned else "",
    )  # fmt: skip


def _verdict(last: Compared, p: float, lines: Thresholds) -> tuple[Verdict, str, str]:
    if p <= lines.alpha and last.inflation.low > lines.proximity_warn:
        return "WARN", "", ""
    if last.inflation.high < lines.proximity_warn:
        return "CLEAR_WITHIN_LIMITS", "", ""
    reason = f"the interval of the difference [{last.inflation.low:.2f}, {last.inflation.high:.2f}] holds {lines.proximity_warn:.2f}"
    return "NOT_ASSESSABLE", "wide_interval", reason


def _answer(target: Attribute, last: Compared, later: Compared | None, order: tuple[float, float]) -> str:
    at = last.inflation
    words = (
        f"For new areas {target.name} scores {last.apart.value:.2f} (blocks of {last.side:g} km), within this area {last.random:.2f} "
        f"(random rows): {at.value:+.2f} [{at.low:+.2f}, {at.high:+.2f}] is owed to near places"
    )
    if later is not None:
        words += f"; on later times {later.apart.value:.2f} against {later.random:.2f}"
    return f"{words}; Moran's I of the residuals {order[0]:.2f}." if np.isfinite(order[0]) else f"{words}."


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _table(found: list[Compared], later: Compared | None) -> Table:
    rows = tuple(
        (
            "forward in time" if one.side is None else f"blocks of {one.side:g} km", one.blocks, one.share, one.random, one.apart.value,
            one.inflation.value, one.inflation.low, one.inflation.high,
        )
        for one in [*found, *([] if later is None else [later])]
    )  # fmt: skip
    heads = ("split", "blocks", "share trained on", "random", "apart", "difference", "low", "high")
    note = "Apart answers: new areas or times. Random answers: other images of this area, if they were drawn at random from it."
    return Table(title="Score by how training and test are kept apart", columns=heads, rows=rows, note=note)


def _plots(target: Attribute, found: list[Compared], place: tuple[np.ndarray, np.ndarray]) -> tuple[Plot, ...]:
    x = tuple(float(one.side or 0.0) for one in found)
    apart = Series(
        name="blocked", x=x, y=tuple(one.apart.value for one in found), low=tuple(one.apart.low for one in found),
        high=tuple(one.apart.high for one in found),
    )  # fmt: skip
    random = Series(name="random, as many rows", x=x, y=tuple(one.random for one in found))
    curves = Curves(
        title=f"{target.name} by side of the blocks", x_axis="side of a block, km", y_axis="score", series=(apart, random), x_log=True,
        lines={"chance": 0.5},
    )  # fmt: skip
    return (curves, _map(target, found[-1], place))


def _map(target: Attribute, last: Compared, place: tuple[np.ndarray, np.ndarray]) -> Points:
    """Mean residual of each block on a grid of one block's side: no image's own place."""
    trial, units = last.trial, last.trial.units
    sizes = np.bincount(units)
    means = [np.bincount(units, values) / sizes for values in (_residuals(target, trial), *(side[trial.kept] for side in place))]
    cut = np.quantile(np.abs(means[0]), 0.5)
    step = float(np.degrees((last.side or 1.0) / EARTH_KM))
    x, y = (np.round(step * np.round(side / step), 3) for side in means[1:])
    names = {"below the truth": means[0] > cut, "near the truth": np.abs(means[0]) <= cut, "above the truth": means[0] < -cut}
    groups = {name: tuple(zip(x[rows].tolist(), y[rows].tolist())) for name, rows in names.items()}
    return Points(title="Mean residual by block", x_axis="longitude, degrees", y_axis="latitude, degrees", groups=groups)


def self_test() -> SelfTest:
    """A label that is a smooth field of the place, which the features tell; and one that features tell anywhere."""
    generator = np.random.default_rng(2)
    lon, lat = generator.uniform(0, 3, 240), generator.uniform(0, 3, 240)
    waves = [np.sin(a * lon + b * lat + c) for a, b, c in generator.normal(size=(24, 3)) * 6]
    field = (np.sin(4.1 * lon + 1) + np.sin(3.7 * lat) > 0).astype(int)
    noise = generator.integers(0, 2, 240)
    features = np.stack([*waves, *(noise + generator.normal(size=(2, 240)))], axis=1)
    effort = Effort(bootstraps=100)
    near, far = (_one(features, values, lon, lat, effort) for values in (field, noise))
    return SelfTest(
        positive="pass" if near.inflation.low > 0.03 else "fail", negative="pass" if far.inflation.low <= 0.03 else "fail",
        detail=f"made-up places: difference {near.inflation.value:+.2f} for a smooth field, {far.inflation.value:+.2f} for content",
    )  # fmt: skip


def _one(features: np.ndarray, values: np.ndarray, lon: np.ndarray, lat: np.ndarray, effort: Effort) -> Compared:
    target = read_attribute("y", values, np.arange(len(values)))
    trial = block_trial(features, target, lon, lat, 50.0, effort)
    assert trial is not None, "enough made-up rows"
    return _compared(target, trial, 50.0, effort)


CHECK = Check(about=ABOUT, run=run, self_test=self_test, count=lambda _: 2)
