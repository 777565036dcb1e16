"""The scenario ``tiles``: a real Sentinel-2 scene, its place made up, from GeoTIFF to pictures, audit and export.

Blocks of 30 pixels are the units. It shows pictures and claims no learning: classes one could compute from its near-infrared band
are colour alone, which an untrained network and the raw pixels tell as well (measured: kNN .74 and .66 against .69 after DINO).
"""

from __future__ import annotations

import csv
import io
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from dinodomain import api
from dinodomain.audit import AuditResult
from dinodomain.demo.plan import DemoPlan, Story
from dinodomain.demo.tiles import NOTICE, write_tiles_source
from dinodomain.domain import find_domain
from dinodomain.embed import load_features, network_input
from dinodomain.ingest import inspect
from dinodomain.lineage import write_bytes
from dinodomain.loader import LoaderPlan, sweep
from dinodomain.model.attention import class_attention
from dinodomain.show.dense import draw_dense, draw_similarity
from dinodomain.store import Store, open_store

STEPS = 150
CHUNK, CELL_M = 32, 300.0
WINDOW = 96
"""Side of the windows in the pictures: three chunks, so that patches have neighbours to be compared with."""

RGB = ("B04", "B03", "B02")


def run_tiles(plan: DemoPlan, out: Path) -> Story:
    """Ingests, pretrains, draws, audits and exports; what is already there is not done again.

    Args:
        plan: Steps and seed.
        out: Folder of this scenario.
    """
    began = time.monotonic()
    source = write_tiles_source(out / "source")
    store = str(out / "store")
    summary = api.ingest(domain="sentinel2", source=str(source), store=store, cell=CELL_M, storage={"chunk": CHUNK})
    sheet = inspect(store, out / "inspect", notice="place and reference system are made up")
    crops = {"global_size": 32, "local_size": 16, "num_local": 4}
    views = api.views(store=store, out=str(out / "views"), views=crops, seed=plan.seed, patch=4)
    run = api.pretrain(
        domain="sentinel2", store=store, out=str(out / "run"), recipe="tiny", seed=plan.seed,
        model={"patch": 4}, loader={"batch": 32}, views=crops, engine={"steps": plan.steps or STEPS},
    )  # fmt: skip
    figures = _pictures(out, open_store(store))
    report = _audit_place(out, plan)
    exported = api.export(
        checkpoint=str(out / "run"), out=str(out / "exported"), format="timm", overwrite=True,
        waive_audit="made-up place, only features were audited; dinodomain demo",
    )  # fmt: skip
    verdicts = {finding.id: finding.verdict for finding in report.findings}
    rows = (
        ("ingested", f"{summary.added + summary.present} scene, {len(open_store(store).chunks)} tiles of {CHUNK} px, 4 bands"),
        ("pretrained", f"{run.step} steps, last loss {run.metrics()[-1]['loss']:.3f}"),
        *((f"audit: {name}", verdict) for name, verdict in verdicts.items()),
        ("exported", f"timm, max abs diff {exported.max_abs_diff:.2g}"),
    )
    files = {
        "contact sheet": str(sheet.figure),
        "views": views.files[0],
        "PCA and attention": str(figures[0]),
        "similarity": str(figures[1]),
        "audit report": str(report.paths.html) if report.paths else "",
        "curves": str(out / "run" / "figures"),
    }
    numbers = {"loss": run.metrics()[-1]["loss"], "verdicts": verdicts, "export_max_abs_diff": exported.max_abs_diff}
    return Story(name="tiles", notice=NOTICE, rows=rows, files=files, numbers=numbers, seconds=time.monotonic() - began)


@torch.no_grad()
def _pictures(out: Path, store: Store) -> tuple[Path, Path]:
    """PCA, attention and similarity over a few windows of the scene."""
    backbone, domain = api.load(out / "run"), find_domain(store.domain)
    with closing(sweep(store, LoaderPlan(batch=9, tile=WINDOW))) as batches:
        batch = next(batches)
    number = len(batch.rows)
    chosen = network_input(backbone, batch, domain, None).take([0, number // 2, number - 1])
    features = backbone.encode(chosen.pixels, about=chosen.about)
    tokens = features.patches.reshape(len(chosen.pixels), *features.grid, -1).numpy()
    pictures = _rgb(chosen.pixels.numpy(), chosen.about.channels or backbone.channels)
    attention = class_attention(backbone.vit, chosen.pixels, chosen.about).numpy()
    dense, similar = out / "pictures" / "pca_attention.png", out / "pictures" / "similarity.png"
    draw_dense(
        pictures, tokens, attention, dense, title="Dense features of three windows", notice="place made up; pictures prove no learning"
    )
    middle = features.grid[0] // 2
    places = [(0, middle, middle), (1, middle // 2, middle), (2, middle, middle // 2)]
    draw_similarity(
        pictures,
        tokens,
        places,
        similar,
        title="Cosine of every patch to the marked one",
        notice="place made up; pictures prove no learning",
    )
    return dense, similar


def _rgb(x: np.ndarray, channels: tuple[str, ...]) -> np.ndarray:
    """Red, green and blue, stretched together between their 2nd and 98th percentile: [n, Y, X, 3] in 0..1."""
    bands = x[:, [channels.index(name) for name in RGB]].transpose(0, 2, 3, 1)
    low, high = np.percentile(bands, [2, 98])
    stretched: np.ndarray = np.clip((bands - low) / max(high - low, 1e-6), 0, 1)
    return stretched


def _audit_place(out: Path, plan: DemoPlan) -> AuditResult:
    """Do features tell where in the scene a tile lies? Folds, permutations and bootstraps by block of 30 pixels."""
    features = out / "features"
    api.embed(checkpoint=str(out / "run"), store=str(out / "store"), out=str(features), loader={"tile": CHUNK})
    write_bytes(out / "place.csv", _places(features, open_store(out / "store")).encode())
    return api.audit(
        features=str(features / "features.parquet"), metadata=str(out / "place.csv"), join="tile_id",
        attributes=["east_half", "north_half"], out=str(out / "audit"), overwrite=True, notice=NOTICE, seed=plan.seed,
    )  # fmt: skip


def _places(features: Path, store: Store) -> str:
    """CSV: which half of the scene each tile lies in, from the tile's position on the chunk grid."""
    table = load_features(features)
    ids = {
        int(tile): start
        for batch in sweep(store, LoaderPlan(tile=CHUNK))
        for tile, start in zip(batch.tile_ids.tolist(), batch.origins.tolist())
    }
    middle = np.asarray(store.row(0)["shape"][1:]) / 2
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["tile_id", "east_half", "north_half"])
    for tile in table.tile_ids.tolist():
        centre = np.asarray(ids[tile]) + CHUNK / 2
        writer.writerow([tile, "yes" if centre[1] > middle[1] else "no", "yes" if centre[0] < middle[0] else "no"])
    return buffer.getvalue()
