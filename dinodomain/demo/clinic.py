"""The scenario ``clinic``: a made-up archive of DICOM radiographs with planted answers, from files to probe, audit and export.

Planted: a finding that only anatomy tells, a hospital that the pixels betray and that goes along with the finding, patients who
appear twice, and a coin flip that nothing carries. The closing table says what pretraining bought and what the audit found of it.
"""

from __future__ import annotations

import time
from pathlib import Path

from dinodomain import api
from dinodomain.demo.phantoms import NOTICE, write_clinic
from dinodomain.demo.plan import DemoPlan, Story
from dinodomain.ingest import inspect
from dinodomain.probes import ProbeReport

STEPS = 350
PATIENTS_PER_LABEL = 10
"""One label of each class for so many patients: 48 a class in the archive of 480."""
AUDIT = {"ocr_images": 60, "images": 400, "attackers": False}
"""A first look in a minute or two; without these keys an audit reads thousands of images and tries stronger attackers."""
CLEAN, PLANTED = "blood_group", "site"


def run_clinic(plan: DemoPlan, out: Path) -> Story:
    """Writes the archive, then ingests, pretrains, probes, audits and exports; what is already there is not done again.

    Args:
        plan: Steps, patients and seed.
        out: Folder of this scenario.
    """
    began = time.monotonic()
    archive = write_clinic(out / "archive", patients=plan.patients, seed=plan.seed)
    store = str(out / "store")
    # Made-up phantoms say that they are, and the default filter leaves phantoms out.
    summary = api.ingest(domain="xray", source=str(archive.images), store=store, select="all")
    sheet = inspect(store, out / "inspect", notice=NOTICE)
    run = api.pretrain(
        domain="xray", store=store, out=str(out / "run"), recipe="tiny", seed=plan.seed, engine={"steps": plan.steps or STEPS}, **PRETRAIN
    )
    common = {"checkpoint": str(out / "run"), "store": store, "labels": str(archive.labels)}
    labels = plan.patients // PATIENTS_PER_LABEL
    probe = api.probe(**common, target="finding", labels_per_class=labels, seeds=(0, 1, 2), out=str(out / "probe"), notice=NOTICE)
    audit = api.audit(
        **common, attributes=(PLANTED, CLEAN), domains=(PLANTED,), task="finding", out=str(out / "audit"), overwrite=True, notice=NOTICE,
        seed=plan.seed, **AUDIT,
    )  # fmt: skip
    exported = api.export(checkpoint=str(out / "run"), out=str(out / "exported"), format="timm", overwrite=True)
    verdicts = {finding.id: finding.verdict for finding in audit.findings}
    rows = (
        ("archive", f"{archive.num_images} files of {archive.num_patients} patients, {len(archive.aliases)} of them twice"),
        ("ingested", f"{summary.added + summary.present} images, {len(summary.skipped)} skipped"),
        ("pretrained", f"{run.step} steps, last loss {run.metrics()[-1]['loss']:.3f}"),
        *_probe_rows(probe),
        *((f"audit: {name}", verdict) for name, verdict in verdicts.items()),
        ("exported", f"timm, max abs diff {exported.max_abs_diff:.2g}"),
    )
    files = {
        "contact sheet": str(sheet.figure),
        "probe": str(out / "probe" / "probe.png"),
        "audit report": str(audit.paths.html) if audit.paths else "",
        "curves": str(out / "run" / "figures"),
    }
    numbers = {"probe": probe.as_json(), "verdicts": verdicts, "export_max_abs_diff": exported.max_abs_diff}
    return Story(name="clinic", notice=NOTICE, rows=rows, files=files, numbers=numbers, seconds=time.monotonic() - began)


PRETRAIN = {"views": {"global_size": 48, "local_size": 24, "num_local": 4, "global_scale": [0.4, 1.0], "local_scale": [0.15, 0.4]}}
"""What differs from the recipe ``tiny``: larger crops of images that are 64 pixels wide, most of which hold a piece of lung."""


def _probe_rows(probe: ProbeReport) -> list[tuple[str, str]]:
    """The finding from few labels: pretrained beside untrained and pixels, for both probes."""
    rows = []
    for kind in ("knn", "linear"):
        found = [f"{name} {probe.score(name, kind).metrics[probe.headline]}" for name in ("pretrained", "random_init", "pixels")]
        rows.append((f"finding by {kind}, {probe.labels_per_class} labels a class", ", ".join(found)))
    return rows
