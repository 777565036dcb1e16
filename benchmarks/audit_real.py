"""Known faults of real data, and whether the audit finds them: leaking patients, a site shortcut, burned-in text, copies, shared ground.

On ``DINODOMAIN_TEST_DATA`` (what it lacks is left out): patients of LGG MRI under random and grouped folds; site, view and text of chest
images of two hospitals; listed near-duplicates of UC Merced and identical images of PneumoniaMNIST; ship patches and Landsat rows over
the same ground; a CT hidden in another; faces in brain scans. Features are pixels (24 x 24, grey) or an untrained tiny encoder: these
faults lie in the data.

    python benchmarks/audit_real.py [--quick] [--only TEXT] [--work out/audit_real] --json FILE

Rows of ``--json``: {"measure", "input", "ours", "unit", "target", "passed", "detail", "seconds"}; ``target`` is the least that is expected.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import csv
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from sklearn.model_selection import KFold

from dinodomain.audit import Asked, AuditPlan, AuditSet, Effort, Finding, Policy, run_checks
from dinodomain.audit.checks import duplicates, text
from dinodomain.audit.evidence import Evidence
from dinodomain.audit.load import from_store
from dinodomain.audit.masks.ocr import make_reader
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.leak import Reader
from dinodomain.audit.trail import read_trail
from dinodomain.audit.trail.footprints import same_ground
from dinodomain.audit.trail.heads import look as look_at_head
from dinodomain.audit.trail.heads import read_heads
from dinodomain.audit.trail.parts import find_parts
from dinodomain.checkpoint import save_backbone
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.lineage import write_json
from dinodomain.model import Backbone, ModelPlan
from dinodomain.probes.folds import grouped_folds
from dinodomain.store import Store, open_store
from dinodomain.testing import read_source
from dinodomain.types import Normalisation

REAL = Path(os.environ.get("DINODOMAIN_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
EFFORT = Effort(permutations=300, bootstraps=300, attackers=False)
PIXELS = "24 x 24 grey pixels"
ENCODER = "an untrained encoder (32 wide, one block), pixels and perceptual hashes"
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How much to look at, and where to write.

    Attributes:
        work: Folder for stores.
        quick: Fewer images.
    """

    work: Path
    quick: bool


def row(measure: str, data: str, ours: float, target: float, detail: str, unit: str, passed: bool | None = None) -> dict[str, Any]:
    """One line of the table; passed where it reaches the target, unless something else decides."""
    found = {"measure": measure, "input": data, "ours": round(float(ours), 4), "unit": unit, "target": target}
    return {**found, "passed": bool(ours >= target if passed is None else passed), "detail": detail}


def table_of(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV."""
    with path.open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def pixels_of(files: Sequence[Path], side: int = 24) -> np.ndarray:
    """[n, side * side] grey images between 0 and 1."""
    rows = []
    for file in files:
        with Image.open(file) as image:
            image.draft("L", (2 * side, 2 * side))
            rows.append(np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), np.float32).ravel() / 255)
    return np.stack(rows)


def patients(asking: Asking) -> Rows:
    """Sex and grade of LGG patients: by slices at random, and by patient; and the overlap of a split of slices."""
    lines = table_of(REAL / "lgg_mri" / "dev" / "slices.csv")[:: 3 if asking.quick else 1]
    rows = pixels_of([REAL / "lgg_mri" / line["file"] for line in lines])
    units = np.array([line["patient_id"] for line in lines])
    data = f"lgg_mri, {len(rows)} slices of {len(set(units))} patients, {PIXELS}, ridge"
    for name, column in (("sex", "gender_code"), ("grade", "neoplasm_histologic_grade")):
        random, grouped = both_folds(rows, np.array([line[column] for line in lines]), units)
        detail = f"random folds {random:.3f}, patient-grouped folds {grouped:.3f}"
        yield row(f"AUROC of {name} that random folds add", data, random - grouped, 0.15, detail, "AUROC")
    split = np.where(np.random.default_rng(0).random(len(rows)) < 0.8, "train", "test")
    audit = AuditSet(
        features={"audited": rows}, units=units, content_hash=None, sources=np.arange(len(rows)), columns={"split": split}, split="split"
    )
    (finding,) = run_checks(audit, effort=EFFORT, names=("overlap",)).report.findings
    yield row("patients in two splits flagged (slices split at random)", data, finding.verdict == "FLAG", 1, finding.answer, "flagged")


def both_folds(rows: np.ndarray, values: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """AUROC of one column with rows dealt to folds at random, and with whole units."""
    column = read_attribute("x", values, units)
    known, folds = rows[column.rows], np.empty(len(column.rows), int)
    for number, (_, test) in enumerate(KFold(5, shuffle=True, random_state=0).split(known)):
        folds[test] = number
    alone = replace(column, unit_index=np.arange(len(known)))
    grouped = grouped_folds(column.unit_index, column.values, 5, 0)
    random, whole = (Reader(known, *how).score(column.values[None])[0] for how in ((alone, folds), (column, grouped)))
    return float(random), float(whole)


def hospitals(asking: Asking) -> Rows:
    """Site and view of chest images, and whether the site is told to be confounded with the finding."""
    lines = table_of(REAL / "cxr_nih_hannover" / "dev" / "metadata.csv")
    rows = pixels_of([REAL / "cxr_nih_hannover" / line["file"] for line in lines])
    columns = {name: np.array([line[name] for line in lines]) for name in ("site", "view", "label", "patient_id")}
    audit = AuditSet(
        features={"audited": rows}, units=columns["patient_id"], content_hash=None, sources=np.arange(len(rows)), columns=columns
    )
    asked = Asked(attributes=("view",), domains=("site",), task="label")
    found = {item.id: item for item in run_checks(audit, asked=asked, effort=EFFORT, names=("site", "attribute")).report.findings}
    data = f"cxr_nih_hannover, {len(rows)} images of {audit.num_units} patients, {PIXELS}"
    site, view = found["site/site"], found["attribute/view"]
    yield row("site read, flagged", data, score_of(site), 0.9, f"{site.verdict}: {site.answer}", "AUROC", site.verdict == "FLAG")
    confounded = site.reason_code == "confounded" and "occurs in MHH_Hannover only" in site.reason
    yield row("site told to be confounded with the finding", data, confounded, 1, site.reason, "told")
    yield row("view read, flagged", data, score_of(view), 0.8, f"{view.verdict}: {view.answer}", "AUROC", view.verdict == "FLAG")


def score_of(finding: Finding) -> float:
    """Its estimate; NaN where it has none."""
    return float("nan") if finding.estimate is None or finding.estimate.value is None else finding.estimate.value


def written(asking: Asking) -> Rows:
    """Words that the reader of the check finds in chest images, by kind."""
    lines = np.random.default_rng(0).permutation(table_of(REAL / "cxr_nih_hannover" / "dev" / "metadata.csv"))
    reader, kinds = make_reader(), []
    for told in lines[: 8 if asking.quick else 40]:
        with Image.open(REAL / "cxr_nih_hannover" / told["file"]) as image:
            kinds.append({text.kind_of(word.text) for word in reader(np.asarray(image.convert("RGB"))) if word.score >= text.SURE})
    shown = np.mean([bool(found - {"mark"}) for found in kinds])
    markers = sum("marker" in found for found in kinds)
    personal = sum(bool(found & set(text.IDENTIFIERS)) for found in kinds)
    detail = f"{markers} of {len(kinds)} images with a word of the technique (AP, PORTABLE, L ...), {personal} with a date or an id"
    yield row("images in which burned-in text is read", f"cxr_nih_hannover, {len(kinds)} images, rapidocr", shown, 0.2, detail, "share")


def stored(asking: Asking, domain: str, source: Path, name: str, **plan: Any) -> Store:
    """The store of a folder, ingested once."""
    path = asking.work / name
    if not path.exists():
        ingest(IngestPlan(domain=domain, source=str(source), store=str(path), workers=0, **plan), progress=lambda done, total: None)
    return open_store(path)


def copies(store: Store, path: Path) -> set[tuple[int, int]]:
    """Pairs of sources that the duplicate check takes for copies, by an untrained encoder, pixels and hashes."""
    low, high, mean, std = ((value,) * len(store.channels) for value in (0.0, 255.0, 0.5, 0.25))
    levels = Normalisation(mode="domain", channels=store.channels, low=low, high=high, mean=mean, std=std)
    torch.manual_seed(0)
    plan = ModelPlan(dim=32, depth=1, heads=2, patch=16, registers=1)
    backbone = Backbone.create(plan, ndim=2, image_size=64, normalisation=levels, domain=store.domain)
    weights = path.with_suffix(".safetensors")
    save_backbone(weights, backbone, history={"parents": {"store": store.digest}, "digest": "untrained"})
    asked = AuditPlan(checkpoint=str(weights), store=str(path), out=str(path), copies=0, permutations=99, bootstraps=100)
    subject = from_store(asked)
    told = {"asked": asked.asked, "policy": Policy(), "effort": asked.effort, "observer": subject.observer}
    looked, why_not = duplicates._looked(Evidence(data=subject.data, probed=subject.data, **told))
    assert looked is not None, why_not
    pairs = subject.data.sources[duplicates.match(subject.data, seed=0, looked=looked).pairs]
    return {(min(a, b), max(a, b)) for a, b in pairs.tolist()}


def agreement(found: set[tuple[int, int]], listed: set[tuple[int, int]], data: str) -> Rows:
    """Precision and recall against listed pairs."""
    hits = len(found & listed)
    detail = f"{len(found)} pairs found, {len(listed)} listed, {hits} of these found"
    yield row("precision of copies", data, hits / max(1, len(found)), 0.95, detail, "share")
    yield row("recall of copies", data, hits / max(1, len(listed)), 0.9, detail, "share")


def aerial(asking: Asking) -> Rows:
    """Near-duplicates of UC Merced, listed by difference hash and correlation."""
    root = REAL / "ucmerced_rgb128"
    store = stored(asking, "aerial", root / "dev", "ucmerced")
    number, listed = {key: row for row, key in enumerate(store.column("key_path"))}, set()
    for line in table_of(root / "near_duplicate_pairs.csv"):
        ends = [number.get(line[side].removeprefix("dev/")) for side in "ab"]
        if None not in ends:
            listed.add(tuple(sorted(ends)))
    yield from agreement(copies(store, asking.work / "ucmerced"), listed, f"ucmerced_rgb128, {len(store)} images; {ENCODER}")


def children(asking: Asking) -> Rows:
    """Identical images of PneumoniaMNIST."""
    images = np.load(REAL / "pneumoniamnist28" / "dev.npz")["images"]
    if asking.quick:  # all that repeat, and some others
        times = Counter(image.tobytes() for image in images)
        images = images[[number < 400 or times[image.tobytes()] > 1 for number, image in enumerate(images)]]
    name = f"pneumonia{len(images)}"
    files = asking.work / f"{name}_files"
    if not files.exists():
        files.mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(files / f"{number:05d}.png")
    store = stored(asking, "xray", files, name)
    alike: dict[bytes, list[int]] = {}
    for number in range(len(store)):
        alike.setdefault(read_source(store, number).tobytes(), []).append(number)
    repeated = {other for group in alike.values() for other in group[1:]}
    pairs = {pair for group in alike.values() for pair in combinations(group, 2)}
    found = copies(store, asking.work / name)
    detail = f"{len(found & pairs)} of {len(found)} pairs found are identical; {len(repeated)} images repeat an earlier one"
    data = f"pneumoniamnist28, {len(store)} images; {ENCODER}"
    yield row("precision of copies, against identical images", data, len(found & pairs) / max(1, len(found)), 0.95, detail, "share")
    seen = {other for pair in found & pairs for other in pair}
    yield row("recall of images that repeat another", data, len(repeated & seen) / max(1, len(repeated)), 0.9, detail, "share")


def ground(asking: Asking) -> Rows:
    """Pairs of rasters over the same ground, from the georeference in the index alone."""
    for domain, folder, pairs in (("sentinel2", "s2_ships", 94), ("landsat", "landsat8_overlap", 1)):
        store = stored(asking, domain, REAL / "sat_multispectral" / "dev" / folder, folder)
        kept = read_trail({}, store).kept
        assert kept is not None, "the store is there"
        found = same_ground(kept)
        detail = f"{found.placed} rasters with a place; exactly {pairs} expected"
        data = f"sat_multispectral/{folder}, georeference alone"
        yield row("pairs over the same ground", data, len(found.pairs), pairs, detail, "pairs", len(found.pairs) == pairs)


def hidden(asking: Asking) -> Rows:
    """A part of a CT under a header that says otherwise."""
    names = {"include": ("ts_example_ct*.nii.gz",), "exclude": ("*seg*",)}
    store = stored(asking, "ct", REAL / "medical_ingest" / "dev" / "ct_nifti", "ct_parts", **names)
    kept = read_trail({}, store).kept
    assert kept is not None, "the store is there"
    assert kept.volumes is not None, "volumes"
    found = find_parts(kept.volumes())
    right = len(found) == 1 and (found[0].slices, found[0].offset) == (30, 82)
    detail = "; ".join(f"{one.slices} slices from {one.offset} on, correlation {one.correlation:.4f}" for one in found)
    yield row("parts of a volume in another", "medical_ingest, ts_example_ct_sm in ts_example_ct", len(found), 1, detail, "parts", right)


def heads(asking: Asking) -> Rows:
    """Heads as scanned show a face; their brains alone, cut out by their labels and two voxels around, do not."""
    folder = REAL / "ixi_t1_2mm" / "dev"
    store = stored(asking, "mri", folder, "heads", include=("*/*_T1w.nii.gz",))
    whole = [one.state for one in read_heads(store, np.arange(len(store))).values()]
    cut = [_without_face(labels) for labels in sorted(folder.glob("*/*dlmuse_seg.nii.gz"))]
    for measure, states, wanted in (("heads in which a face stands", whole, "stands"), ("heads whose face was removed", cut, "removed")):
        share, detail = (
            np.mean([state == wanted for state in states]),
            ", ".join(f"{count} {name}" for name, count in Counter(states).items()),
        )
        yield row(measure, f"ixi_t1_2mm, {len(states)} volumes of 2 mm, profiles", share, 1, detail, "share")


def _without_face(labels: Path) -> str:
    scan, brain = (
        nib.as_closest_canonical(nib.load(path)) for path in (labels.with_name(labels.name.replace("dlmuse_seg", "T1w")), labels)
    )
    mask = ndimage.binary_dilation(ndimage.binary_fill_holes(np.asarray(brain.dataobj) > 0), iterations=2)
    volume = np.where(mask, np.asarray(scan.dataobj, np.float32), 0.0).transpose(2, 1, 0)
    return look_at_head(volume, [float(side) for side in scan.header.get_zooms()[::-1]]).state


PARTS: Mapping[str, tuple[str, Callable[[Asking], Rows]]] = {
    "patients": ("lgg_mri", patients), "hospitals": ("cxr_nih_hannover", hospitals), "text": ("cxr_nih_hannover", written),
    "aerial": ("ucmerced_rgb128", aerial), "children": ("pneumoniamnist28", children), "ground": ("sat_multispectral", ground),
    "hidden": ("medical_ingest", hidden), "heads": ("ixi_t1_2mm", heads),
}  # fmt: skip
"""Name to the folder that it needs and what it does."""


def line(found: Mapping[str, Any]) -> str:
    """A row for people."""
    told = "ok" if found["passed"] else "MISSED"
    return f"{found['measure']:<56} {found['ours']:>8.3f} {found['unit']:<8} aim {found['target']:<6} {told:<7} {found['detail'][:160]}"


def main() -> None:
    """Looks at what there is and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images, where that leaves the answer alone")
    parser.add_argument("--only", default="", metavar="TEXT", help=f"parts whose name holds the text: {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, default=Path("out/audit_real"), help="folder for stores, kept for the next time")
    parser.add_argument("--json", type=Path, help="file for the rows of the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, (folder, look) in PARTS.items():
        if given.only not in name:
            continue
        if not (REAL / folder).is_dir():
            print(f"left out: {name}, {REAL / folder} is not there")
            continue
        began = time.monotonic()
        for found in look(Asking(work=given.work, quick=given.quick)):
            rows.append({**found, "seconds": round(time.monotonic() - began, 1)})
            print(line(rows[-1]), flush=True)
    print(f"\n{sum(found['passed'] for found in rows)} of {len(rows)} as expected")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.json, rows)


if __name__ == "__main__":
    main()
