"""The trail from sources to samples: from records alone, from a real tiny run, and by unit across artefacts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinodomain.audit import trace_unit
from dinodomain.audit.protocol.attribute import printed
from dinodomain.audit.trail import read_trail, training_record
from dinodomain.audit.trail.flow import flows, split_tables
from dinodomain.audit.trail.groups import as_groups, group_units
from dinodomain.audit.trail.parts import find_parts, thumbnails
from dinodomain.audit.trail.record import training_trail
from dinodomain.checkpoint import CheckpointPlan, origin
from dinodomain.cli import main
from dinodomain.engine import EnginePlan, PretrainPlan, pretrain
from dinodomain.errors import UserError
from dinodomain.ingest import IngestPlan, ingest, join_labels
from dinodomain.ingest.withdraw import withdraw
from dinodomain.loader import LoaderPlan
from dinodomain.model import ModelPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, tiny_store
from dinodomain.views import ViewsPlan

DOMAIN = SyntheticImages(size=(32, 32))
STORE = {
    "kind": "store",
    "counts": {"sources": 9, "units": 3, "held_out_units": 1, "refused": 2, "left_out": 1, "skipped_by_reason": {"torn": 2}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of ten steps on 60 files, of which two were no images and one unit's files are named in a CSV."""
    root = tmp_path_factory.mktemp("trail")
    generator = np.random.default_rng(0)
    lines = ["id,site"]
    for number in range(60):
        folder = root / "files" / f"unit{number // 2:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (3, 32, 32), dtype=np.uint8)
        np.save(folder / f"image{number}.npy", pixels)
        lines.append(f"image{number},{'AB'[number // 30]}")
    for number in (60, 61):
        (root / "files" / "unit00" / f"image{number}.npy").write_bytes(b"torn")
        lines.append(f"image{number},A")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    store = tiny_store(root / "store", domain=DOMAIN, source=str(root / "files"), audit_holdout=0.1)
    plan = PretrainPlan(
        domain="synthetic", store=str(store), out=str(root / "run"), loader=LoaderPlan(batch=4, threads=0),
        views=ViewsPlan(global_size=16, local_size=8, num_local=2),
        model=ModelPlan(dim=16, depth=1, heads=2, patch=8, registers=1),
        objective=ObjectivePlan(prototypes=16, head_hidden=16, bottleneck=8, head_layers=2),
        checkpoint=CheckpointPlan(every=5), engine=EnginePlan(steps=10, device="cpu", precision="fp32", threads=1, trackers=()),
    )  # fmt: skip
    pretrain(plan, domain=DOMAIN)
    labels = join_labels(store, root / "labels.csv", "id", None)
    trail = read_trail(origin(root / "run"), open_store(store), labels=labels, csv=str(root / "labels.csv"), join="id")
    return root, trail


def test_a_real_run_is_told_from_sources_to_samples(made):
    _, trail = made
    (store,) = trail.stores
    assert trail.trained
    assert (store.sources, store.skipped["refused"], store.samples) == (60, 2, 40)
    assert (trail.samples, trail.steps) == (40, 10)
    units, sources = flows(trail)
    assert [stage.count for stage in sources.stages][:4] == [62, 60, 60, 60]
    assert sources.stages[1].left == {"is not a numpy file": 2}
    held = len(trail.kept.held_units)
    assert held > 0
    assert [stage.count for stage in units.stages] == [30, 30 - held, 30 - held, len(trail.drawn)]
    assert trail.policy["policy"]["flip"] == {"NS": 0.5}


def test_skipped_sources_find_their_rows_of_the_csv(made):
    _, trail = made
    assert trail.kept.groups_of_skipped
    assert [item.groups["site"] for item in trail.kept.skipped] == ["A", "A"]
    (table,) = split_tables(trail, ("site", "no such column"))
    assert [(row[0], row[1], row[2]) for row in table.rows] == [("A", "< 10", 15), ("B", 0, 15)]


def test_nothing_held_out_was_drawn_and_what_was_kept_is_what_was_hashed(made):
    _, trail = made
    assert not trail.kept.held_units & trail.drawn.keys()
    assert trail.kept.rehash(np.arange(60)).all()


def test_altered_pixels_are_noticed(made, tmp_path):
    root, _ = made
    shutil.copytree(root / "store", tmp_path / "store")
    (file,) = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and "/data/c/" in path.as_posix()]
    damaged = bytearray(file.read_bytes())
    damaged[100] ^= 0xFF
    file.write_bytes(damaged)
    same = read_trail({}, open_store(tmp_path / "store")).kept.rehash(np.arange(60))
    assert 0 < same.sum() < 60


def test_a_mix_tells_each_store_and_a_change_what_came_before():
    mix = {"kind": "mix", "plan": {"stores": [{"store": "a", "share": 0.7}, {"store": "b", "share": 0.3}]}, "history": [STORE, STORE]}
    counts = {"steps": 5, "units_drawn": {"u": 7, "v": 3}, "stores": [{"samples": 7, "units": 1}, {"samples": 3, "units": 1}]}
    trail = training_trail({"kind": "run", "counts": counts, "parents": {"store": "mix"}, "history": [mix]})
    assert [(one.digest, one.share, one.samples, one.sources) for one in trail.stores] == [("a", 0.7, 7, 9), ("b", 0.3, 3, 9)]
    assert trail.stores[0].reasons == {"torn": 2}
    changed = {"steps": 5, "units_drawn": {"u": 7, "v": 3}, "changes": [{"until": 2, "store": "old", "units_drawn": {"u": 4}}]}
    now, before = training_trail({"kind": "run", "counts": changed, "parents": {"store": "new"}, "history": [STORE]}).stores
    assert (now.digest, now.samples, now.drawn_units, now.until) == ("new", 6, 2, None)
    assert (before.digest, before.samples, before.until, before.sources) == ("old", 4, 2, None)


def test_an_export_leads_to_its_training_and_foreign_weights_to_none():
    run = {"kind": "checkpoint", "counts": {"units_drawn": {"u": 1}}, "parents": {"store": "a"}, "history": [STORE]}
    assert training_record({"kind": "features", "history": [{"kind": "export", "history": [run]}, STORE]}) == run
    assert training_record({"parents": {"store": "a"}}) == {}
    assert training_trail({}).stores == ()


def test_every_artefact_that_drew_a_unit_is_listed_with_its_draws(made, tmp_path):
    root, trail = made
    unit = next(iter(trail.drawn))
    found = trace_unit(unit, [str(root)], store=str(root / "store"))
    assert {one.kind for one in found.found} == {"run", "checkpoint"}
    assert max(one.draws for one in found.found) == trail.drawn[unit]
    assert found.state == "present"
    held = next(iter(trail.kept.held_units))
    assert trace_unit(held, [str(root)], store=str(root / "store")).found == ()
    with pytest.raises(UserError, match="cannot be told without the store"):
        trace_unit(held, [str(root)])
    assert "is its name spelt as" in trace_unit("nobody", [str(root)], store=str(root / "store")).text()
    assert "nothing here shows that one forgot" in found.text()
    (tmp_path / "lineage.json").write_text("{")
    assert trace_unit(unit, [str(tmp_path)], store=str(root / "store")).unread == (str(tmp_path),)
    with pytest.raises(UserError, match="is no folder"):
        trace_unit(unit, [str(tmp_path / "missing")])


def test_features_that_hold_a_unit_without_having_drawn_it_are_listed(tmp_path):
    pq.write_table(pa.table({"unit": ["u", "w"]}), tmp_path / "features.parquet")
    record = {"kind": "features", "digest": "ab", "history": [{"kind": "checkpoint", "counts": {"units_drawn": {"v": 2}, "steps": 3}}]}
    (tmp_path / "lineage.json").write_text(json.dumps({"record": record}))
    (one,) = trace_unit("u", [str(tmp_path)]).found
    assert (one.draws, one.steps, one.embedded) == (0, 3, True)


def test_groups_are_texts_quartiles_or_the_commonest():
    assert as_groups(["F", "nan", " M "]).tolist() == ["F", "", "M"]
    assert set(as_groups([str(age) for age in range(100)])) == {"0 to 24.75", "24.75 to 49.5", "49.5 to 74.25", "74.25 to 99"}
    many = as_groups([f"p{number % 40}" for number in range(400)] + ["p0"] * 5)
    assert len(set(many)) == 20
    assert "all others" in many
    groups = group_units(np.array(["a", "a", "b", "c", ""]), np.array(["x", "y", "x", "", "x"]))
    assert groups.shares.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]
    assert groups.counts().tolist() == [2, 1]
    assert [printed(count) for count in (0, 3, 10)] == [0, "< 10", 10]


def test_a_part_of_a_volume_is_found_where_it_lies_forwards_and_backwards():
    generator = np.random.default_rng(1)
    field = np.cumsum(generator.normal(size=(60, 40, 36)), axis=0) + np.cumsum(generator.normal(size=(40, 36)), axis=0)
    other = np.cumsum(generator.normal(size=(30, 40, 36)), axis=0)
    part = field[17:37] * 0.5 + 3 + 0.05 * generator.normal(size=(20, 40, 36))
    volumes = {row: thumbnails(pixels) for row, pixels in enumerate((field, other, part, part[::-1]))}
    found = {(one.whole, one.part): one for one in find_parts(volumes)}
    assert set(found) == {(0, 2), (0, 3), (2, 3)}
    assert (found[0, 2].offset, found[0, 2].slices, found[0, 2].flipped) == (17, 20, False)
    assert (found[0, 3].offset, found[0, 3].flipped) == (17, True)
    assert found[0, 2].correlation > 0.99


def test_a_real_part_under_a_misleading_header_is_found(real_data, tmp_path):
    files = real_data / "medical_ingest" / "dev" / "ct_nifti"
    if not files.is_dir():
        pytest.skip("no medical_ingest")
    plan = IngestPlan(
        domain="ct", source=str(files), store=str(tmp_path / "s"), include=("ts_example_ct*.nii.gz",), exclude=("*seg*",), workers=0
    )
    ingest(plan, progress=lambda done, total: None)
    kept = read_trail({}, open_store(tmp_path / "s")).kept
    (part,) = find_parts(kept.volumes())
    assert (part.slices, part.offset) == (30, 82)
    assert part.correlation > 0.999


def test_units_withdrawn_after_the_training_are_counted(made, tmp_path):
    root, trail = made
    shutil.copytree(root / "store", tmp_path / "store")
    unit = max(trail.drawn)
    (tmp_path / "gone.csv").write_text(f"folder\n{unit}\n")
    withdraw(IngestPlan(store=str(tmp_path / "store"), withdraw=str(tmp_path / "gone.csv"), join="folder"))
    after = read_trail(origin(root / "run"), open_store(tmp_path / "store"))
    assert (after.withdrawn, after.kept.withdrawn_sources) == (1, 2)
    assert not after.trained
    assert trace_unit(unit, [str(root)], store=str(tmp_path / "store")).state == "withdrawn"


def test_the_command_lists_what_drew_a_unit(made, capsys):
    root, trail = made
    unit = next(iter(trail.drawn))
    assert main(["audit", f"audit.unit={unit}", f"audit.runs=[{root / 'run'}]", f"store={root / 'store'}"]) == 0
    told = capsys.readouterr().out
    assert "in the store: present" in told
    assert str(root / "run") in told
    assert main(["audit", f"audit.unit={unit}"]) == 2
    assert "audit.runs" in capsys.readouterr().err
