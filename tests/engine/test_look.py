"""``dinodomain views``: the figure shows the tiles and crops that a run of the same seed begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinodomain.engine import look
from dinodomain.engine.look import ViewsFigurePlan, draw_figure
from dinodomain.errors import UserError
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.store import open_store
from dinodomain.views import ViewsPlan

SMALL = ViewsPlan(global_size=16, local_size=8, num_local=2)


@pytest.fixture
def make(store, images, tmp_path):
    def draw(name: str = "out", **changes: object) -> look.Written:
        keys = {"store": str(store), "out": str(tmp_path / name), "num": 2, "views": SMALL} | changes
        return draw_figure(ViewsFigurePlan(**keys), domain=images)

    return draw


def test_one_picture_is_written_and_described(make, tmp_path):
    written = make()
    assert written.files == (str(tmp_path / "out" / "views.png"),)
    assert written.note == "2 tiles, 2 global of 16x16, 2 local of 8x8; normalised by domain"
    assert written.text().splitlines() == [written.note, *written.files]
    assert written.as_json() == {"files": list(written.files), "note": written.note}
    with Image.open(written.files[0]) as figure:
        assert figure.size[0] > figure.size[1], "a row per tile, a column per view"


def test_equal_seeds_draw_equal_bytes_and_other_seeds_other_ones(make):
    first, again, other = (Path(make(name, seed=seed).files[0]).read_bytes() for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert (first == again, first == other) == (True, False)


def test_the_tiles_are_the_first_of_a_run_with_the_same_seed_and_batch(make, store, monkeypatch):
    seen = []
    monkeypatch.setattr(look, "draw_views", lambda batch, views, path, **keys: seen.append((batch, views)) or path)
    make(seed=7, num=4)
    batch = next(iter(Loader(open_store(store), LoaderPlan(batch=4, threads=0), seed=7)))
    assert seen[0][0].tile_ids.tolist() == batch.tile_ids.tolist()
    assert [group.pixels.shape[0] for group in seen[0][1].groups] == [8, 8]


def test_volumes_are_drawn_by_their_middle_plane(volume_store, volumes, tmp_path):
    plan = ViewsFigurePlan(store=str(volume_store), out=str(tmp_path / "out"), num=1, views=SMALL)
    written = draw_figure(plan, domain=volumes)
    assert "2 global of 16x16x16" in written.note
    with Image.open(written.files[0]) as figure:
        assert np.asarray(figure.convert("L")).std() > 10


@pytest.mark.parametrize("mode", ["domain", "store", "source"])
def test_every_normalisation_of_a_run_can_be_looked_at(make, mode):
    written = make(views=ViewsPlan(global_size=16, local_size=8, num_local=0, normalise=mode))
    assert written.note == f"2 tiles, 2 global of 16x16; normalised by {mode}"


def test_bands_are_chosen_by_name(make):
    grey, colour = (Path(make(name, bands=bands).files[0]).read_bytes() for name, bands in (("a", ("c1",)), ("b", ("c2", "c1", "c0"))))
    assert grey != colour
    with pytest.raises(UserError, match="bands: the store has no B08; allowed: c0, c1, c2"):
        make(bands=("B08",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num": 0}, "num: is 0; allowed: 1 to 32"), ({"bands": ("a", "b")}, "bands: names 2 channels; allowed: one, or three")],
)
def test_a_plan_that_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ViewsFigurePlan(store="s", out="o", **changes)


def test_what_is_no_store_is_named(tmp_path, images):
    with pytest.raises(UserError, match=str(tmp_path)):
        draw_figure(ViewsFigurePlan(store=str(tmp_path / "none"), out=str(tmp_path / "out")), domain=images)
    assert not (tmp_path / "out").exists()
