"""``dinodomain views``: the figures and numbers of the tiles and crops that a run of the same seed begins with."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dinodomain.engine import look
from dinodomain.engine.look import ViewsFigurePlan, draw_figure
from dinodomain.engine.resolve import recorded
from dinodomain.errors import Problems, UserError
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.policy import ViewPolicy, changed
from dinodomain.show.policy import policy_values, policy_yaml
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, tiny_store
from dinodomain.views import ViewsPlan, effective_policy

SMALL = ViewsPlan(global_size=16, local_size=8, num_local=2)


@pytest.fixture
def make(store, images, tmp_path):
    def draw(name: str = "out", **changes: object) -> look.Written:
        keys = {"store": str(store), "out": str(tmp_path / name), "num": 2, "views": SMALL, "draws": 8} | changes
        return draw_figure(ViewsFigurePlan(**keys), domain=images)

    return draw


def test_figures_and_policy_are_written_and_described(make, tmp_path):
    written = make()
    assert written.files == tuple(str(tmp_path / "out" / name) for name in ("views.png", "operations.png", "policy.yaml"))
    assert written.note == "2 tiles, 2 global of 16x16, 2 local of 8x8; normalised by domain"
    text = written.text().splitlines()
    assert (text[0], text[-3:]) == (written.note, list(written.files))
    with Image.open(written.files[0]) as figure:
        assert figure.size[0] == 5 * 190, "a column for the tile and each view"


def test_equal_seeds_draw_equal_bytes_and_other_seeds_other_ones(make):
    first, again, other = (
        [Path(file).read_bytes() for file in make(name, seed=seed).files] for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert [one == two for one, two in zip(first, other)] == [False, False, True], "the policy is the same"


def test_the_tiles_are_the_first_of_a_run_with_the_same_seed_and_batch(make, store, monkeypatch):
    seen = []
    monkeypatch.setattr(look, "draw_views", lambda batch, views, params, path, **keys: seen.append((batch, views)) or path)
    make(seed=7, num=4)
    batch = next(iter(Loader(open_store(store), LoaderPlan(batch=4, threads=0), seed=7)))
    assert seen[0][0].tile_ids.tolist() == batch.tile_ids.tolist()
    assert np.array_equal(seen[0][0].pixels.numpy(), batch.pixels.numpy()), "kept while other tiles are read"
    assert [group.pixels.shape[0] for group in seen[0][1].groups] == [8, 8]


def test_volumes_are_drawn_in_three_planes(volume_store, volumes, tmp_path):
    plan = ViewsFigurePlan(store=str(volume_store), out=str(tmp_path / "out"), num=1, views=SMALL, draws=8)
    written = draw_figure(plan, domain=volumes)
    assert "2 global of 16x16x16" in written.note
    with Image.open(written.files[0]) as figure:
        assert figure.size[1] > 3 * 190
        assert np.asarray(figure.convert("L")).std() > 10
    assert set(written.facts["global"]["extent"]) == {"IS", "AP", "LR"}
    assert written.facts["unit"] == "mm"


@pytest.mark.parametrize("mode", ["domain", "store", "source"])
def test_every_normalisation_of_a_run_can_be_looked_at(make, mode):
    written = make(views=ViewsPlan(global_size=16, local_size=8, num_local=0, normalise=mode))
    assert written.note == f"2 tiles, 2 global of 16x16; normalised by {mode}"


def test_bands_and_display_are_chosen_by_the_user(make):
    grey, colour, dark = (
        Path(make(name, **keys).files[0]).read_bytes()
        for name, keys in (
            ("a", {"bands": ("c1",)}),
            ("b", {"bands": ("c2", "c1", "c0")}),
            ("c", {"bands": ("c1",), "display": (0.0, 900.0)}),
        )
    )
    assert len({grey, colour, dark}) == 3
    with pytest.raises(UserError, match="bands: the network has no channel B08; allowed: c0, c1, c2"):
        make(bands=("B08",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": 0}, "num: is 0; allowed: 1 to 32"),
        ({"bands": ("a", "b")}, "bands: names 2 channels; allowed: one, or three"),
        ({"display": (5.0, 1.0)}, "display: is"),
        ({"draws": 0}, "draws: is 0"),
    ],
)
def test_a_plan_that_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ViewsFigurePlan(store="s", out="o", **changes)


def test_what_is_no_store_is_named(tmp_path, images):
    with pytest.raises(UserError, match=str(tmp_path)):
        draw_figure(ViewsFigurePlan(store=str(tmp_path / "none"), out=str(tmp_path / "out")), domain=images)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"global_size": 20}, r"views\.global_size: is 20; allowed: a multiple"),
        ({"global_size": 80}, r"views\.global_size: is 80, the smallest tiles have 32 pixels"),
        ({"policy": {"flip": ["LR"]}}, r"views\.policy\.flip: names unknown axes"),
        ({"windows": ("lung",)}, r"views\.windows"),
        ({"global_depth": (10.0, 20.0)}, r"views\.global_depth"),
    ],
)
def test_what_pretraining_refuses_is_refused_before_anything_is_written(make, tmp_path, views, message):
    with pytest.raises((UserError, Problems), match=message):
        make(views=ViewsPlan(**{"global_size": 16, "local_size": 8, "num_local": 2, **views}))
    assert not (tmp_path / "out").exists()


CHANGES = {"flip": ["EW"], "gamma": None, "haze": {"amount": [0.0, 0.2]}, "blur": {"probability": [1, 0.5, 0.0]}, "aspect": [0.000001, 1e6]}


@pytest.mark.parametrize(("changes", "augment"), [({}, True), (CHANGES, True), ({}, False)])
def test_the_policy_in_force_is_written_and_can_be_given_back(make, images, changes, augment):
    views = ViewsPlan(global_size=16, local_size=8, num_local=1, policy=changes, augment=augment)
    written = make(views=views)
    force = effective_policy(images.view_policy(), views)
    text = yaml.safe_load(Path(written.files[2]).read_text())["views"]["policy"]
    assert changed(images.view_policy(), text) == force
    assert changed(images.view_policy(), written.policy) == force
    assert written.policy == recorded(force), "as the plan of a run records it"
    assert json.loads(json.dumps(written.as_json()))["policy"] == written.policy


def test_every_number_of_a_policy_survives_yaml():
    policy = ViewPolicy(axes=("y", "x"), aspect=(1e-07, 1e22), flip={"y": 1e-05})
    assert changed(policy, yaml.safe_load(policy_yaml(policy, domain="d", crops={}))["views"]["policy"]) == policy
    assert "null" in policy_yaml(policy, domain="d", crops={})
    assert policy_values(policy)["rotation"] is None


def test_the_edited_file_is_taken_by_the_command_line(store, tmp_path, make):
    file = Path(make("first").files[2])
    edited = tmp_path / "edited.yaml"
    edited.write_text(file.read_text().replace("quarter_turns: false", "quarter_turns: true"))
    words = [
        f"store={store}",
        f"out={tmp_path / 'second'}",
        "num=1",
        "draws=2",
        f"config={edited}",
        "views.global_size=16",
        "views.local_size=8",
    ]
    code = "import dinodomain.cli as c, sys; from dinodomain.verbs import VERBS; "
    code += "p = c.make_plan(VERBS['views'], c.split_words(sys.argv[1:])); print(p.views.policy['quarter_turns'], p.views.policy['gamma'])"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.startswith("True {'probability'")


def test_the_table_tells_ranges_in_physical_units(make):
    text = "\n".join(make(views=ViewsPlan(global_size=16, local_size=8, num_local=0, policy={"coarser_pixels": {"factor": [1, 2]}})).lines)
    assert "NS 0.5" in text
    assert "factor 1..2 (1..2 m)" in text
    assert "jitter " in text
    assert "rotation" in text.partition("\noff")[2], "what is off is listed too"


def test_crops_are_measured_in_metres_with_what_is_known_of_them(tmp_path):
    gaps = SyntheticImages(size=(32, 32), nodata=True)
    store = tiny_store(tmp_path / "gaps", domain=gaps, num=8)
    plan = ViewsFigurePlan(store=str(store), out=str(tmp_path / "out"), num=2, views=SMALL, draws=20)
    facts = draw_figure(plan, domain=gaps).facts
    assert facts["unit"] == "m"
    low, middle, high = facts["global"]["share_of_tile"]
    assert 0.3 < low < middle < high <= 1.0
    assert 5 < facts["local"]["extent"]["NS"][1] < facts["global"]["extent"]["NS"][1] <= 64
    assert facts["global"]["tokens"] == 4
    assert facts["global"]["share_known"][0] < 1.0
    assert facts["global"]["tokens_known"][1] <= 4


def test_display_windows_show_the_networks_channels(tmp_path, real_data):
    from dinodomain.domain import find_domain
    from dinodomain.ingest import IngestPlan, ingest

    source = real_data / "medical_ingest" / "dev" / "ct_nifti"
    ingest(IngestPlan(domain="ct", source=str(source), store=str(tmp_path / "ct"), include=("ts_example_ct_sm.nii.gz",)))
    offered = list(find_domain("ct").channels["ct"].windows)
    if not offered:
        pytest.skip("the domain declares no display windows")
    views = ViewsPlan(global_size=16, local_size=8, num_local=1, windows=tuple(offered[:2]))
    plan = {"store": str(tmp_path / "ct"), "num": 1, "views": views, "draws": 2, "loader": LoaderPlan(tile=32)}
    names = [f"ct/{offered[1]}"]
    first = draw_figure(ViewsFigurePlan(out=str(tmp_path / "a"), **plan))
    second = draw_figure(ViewsFigurePlan(out=str(tmp_path / "b"), bands=tuple(names), **plan))
    assert Path(first.files[0]).read_bytes() != Path(second.files[0]).read_bytes()
    assert "views.windows: the network has 2 channels: ct/lung (-1350 to 150 HU), ct/soft_tissue (-160 to 240 HU)" in first.lines
    written = yaml.safe_load(Path(first.files[2]).read_text())["views"]
    assert {name: value for name, value in written.items() if name != "policy"} == {
        "global_size": 16, "local_size": 8, "num_global": 2, "num_local": 1, "windows": offered[:2],
    }, "given back, the file draws the same views"  # fmt: skip
    with pytest.raises(UserError, match=f"bands: the network has no channel ct; allowed: ct/{offered[0]}, {names[0]}"):
        draw_figure(ViewsFigurePlan(out=str(tmp_path / "c"), bands=("ct",), **plan))


def test_the_tiles_come_from_as_many_sources_as_there_are(store):
    loader = Loader(open_store(store), LoaderPlan(batch=3, threads=0), seed=1)
    batches = list(itertools.islice(iter(loader), 3))
    for place, batch in enumerate(batches):
        batch.rows[:] = torch.tensor([5, 5, 5] if place == 0 else [5, 7, 9])
    found = look._of_several_sources(batches, 4)
    assert found.rows.tolist() == [5, 7, 9, 5]
    assert found.tile_ids.tolist() == [int(batches[0].tile_ids[0]), *batches[1].tile_ids[1:].tolist(), int(batches[0].tile_ids[1])]
    assert torch.equal(found.pixels[1], batches[1].pixels[1])


def test_sizes_that_nobody_chose_fit_the_tiles_and_are_written(make):
    written = make(views=ViewsPlan())
    sizes = yaml.safe_load(Path(written.files[2]).read_text())["views"]
    assert 0 < sizes["local_size"] < sizes["global_size"] <= 32
    assert any(line.startswith(f"views.global_size = {sizes['global_size']}: within the tile") for line in written.lines)


def test_a_size_that_was_stated_is_refused_even_where_it_is_the_default(make):
    given = frozenset({"views.global_size"})
    with pytest.raises(UserError, match=r"views\.global_size: is 224, the smallest tiles have 32 pixels"):
        make(views=ViewsPlan(), given=given)
