"""Exported radiographs (PNG, JPEG, TIFF of 8 and 16 bits) with a spreadsheet beside them, from the folder to the store."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dinodomain.errors import UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.lineage import pseudonym
from dinodomain.store import open_store
from dinodomain_medical import xray

PATIENTS = {"a.png": "Doe^Jane", "b.jpg": "Doe^Jane", "c.tif": "Roe^Rick", "d.png": "Poe^Paul"}


@pytest.fixture
def export(tmp_path):
    """Four pictures, a coloured one, a TIFF of two pages, and a CSV with names, groups and findings."""
    folder = tmp_path / "export" / "images"
    folder.mkdir(parents=True)
    grey = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    Image.fromarray(grey).save(folder / "a.png")
    Image.fromarray((grey >> 8).astype(np.uint8)).save(folder / "b.jpg")
    Image.fromarray(grey).save(folder / "c.tif")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray((grey >> 8).astype(np.uint8)).save(folder / "d.png", exif=turned)
    Image.fromarray(np.dstack([grey >> 8, grey >> 9, grey >> 10]).astype(np.uint8)).save(folder / "colour.png")
    Image.fromarray(grey).save(folder / "pages.tif", save_all=True, append_images=[Image.fromarray(grey)])
    lines = [f"{name},{patient},{finding}" for (name, patient), finding in zip(PATIENTS.items(), ("no", "yes", "no", "yes"))]
    (tmp_path / "films.csv").write_text(
        "\n".join(["file,patient,finding", *lines, "colour.png,Doe^Jane,no", "pages.tif,Roe^Rick,no"]) + "\n"
    )
    (tmp_path / "secret").write_bytes(b"s" * 32)
    return tmp_path


def plan_of(folder, **keys) -> IngestPlan:
    known = {
        "domain": "xray",
        "source": str(folder / "export"),
        "store": str(folder / "store"),
        "metadata": str(folder / "films.csv"),
        "join": "file",
        "group": "patient",
        "fields": ("finding",),
        "secret": str(folder / "secret"),
        "workers": 0,
    }
    return IngestPlan(**(known | keys))


def test_pictures_join_by_file_name_and_keep_bits_groups_and_findings(export):
    summary = ingest(plan_of(export), domain=xray)
    store = open_store(export / "store")
    rows = {row["key_name"]: row for row in map(store.row, range(store.index.num_rows))}
    secret = (export / "secret").read_bytes()
    by_name = {name: rows[pseudonym(secret, name)] for name in PATIENTS}
    assert {name: row["dtype"] for name, row in by_name.items()} == {
        "a.png": "uint16",
        "b.jpg": "uint8",
        "c.tif": "uint16",
        "d.png": "uint8",
    }
    assert {name: json.loads(row["fields"])["finding"] for name, row in by_name.items()} == dict(zip(PATIENTS, ("no", "yes", "no", "yes")))
    assert {name: row["unit"] for name, row in by_name.items()} == {name: pseudonym(secret, who) for name, who in PATIENTS.items()}
    reasons = {item.uri: item.reason for item in summary.skipped}
    assert reasons == {
        "images/colour.png": reasons["images/colour.png"],
        "images/pages.tif": "2 frames in one file",
    }
    assert "a coloured RGB picture" in reasons["images/colour.png"]


def test_stored_pixels_equal_pillow_turned_upright(export):
    ingest(plan_of(export), domain=xray)
    store = open_store(export / "store")
    secret = (export / "secret").read_bytes()
    for name in PATIENTS:
        number = next(n for n in range(store.index.num_rows) if store.row(n)["key_name"] == pseudonym(secret, name))
        picture = np.asarray(Image.open(export / "export" / "images" / name))
        picture = np.rot90(picture, -1) if name == "d.png" else picture
        out = np.empty(store.row(number)["shape"], dtype=picture.dtype)
        store.read_box(number, (0, 0), out)
        np.testing.assert_array_equal(out[0], picture)


def test_a_row_without_its_picture_is_the_users_error(export):
    with (export / "films.csv").open("a") as handle:
        handle.write("e.png,Poe^Paul,no\n")
    with pytest.raises(UserError, match=r"'e\.png' \(line 8\)"):
        ingest(plan_of(export), domain=xray)


def test_a_column_that_names_people_is_refused(export):
    with pytest.raises(UserError, match="identifies people"):
        ingest(plan_of(export, fields=("patient",)), domain=xray)
