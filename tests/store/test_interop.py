"""The store in other people's hands: zarr-python, xarray, rioxarray and an OME-Zarr validator find the pixels, and where they lie."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from dinodomain.store import StorePlan, array_record, build_store, open_store, write_scene, write_stack, write_volume
from dinodomain.store.rewrite import clear_items
from dinodomain.types import CLOUD, NODATA, SATURATED

xarray = pytest.importorskip("xarray")
rasterio = pytest.importorskip("rasterio")
pytest.importorskip("rioxarray")
Affine = rasterio.Affine

# rioxarray 0.19 multiplies affines with ``*``, which affine 3 announces to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

UTM = Affine(10, 0, 500000, 0, -10, 5000000)
DEGREES = Affine(0.00026949458523585647, 0, 11.1, 0, -0.00017966305682390427, 47.3)
ROTATED = Affine(9, 2, 500000, 2, -9, 5000000)
NAMES = ("B02", "B03", "B04")


def utm_wkt(version: str | None = None) -> str:
    return rasterio.crs.CRS.from_epsg(32633).to_wkt(version=version)


def placed(pixels, transform=UTM, crs: str | None = None, **changes):
    """A raster that lies somewhere."""
    record = array_record(pixels, channels=NAMES[: len(pixels)], nodata=changes.pop("nodata", None), valid=changes.pop("valid", None))
    return replace(record, affine=tuple(transform), crs=crs or utm_wkt(), **changes)


@pytest.fixture
def scene(tmp_path, make_pixels):
    """Writes a raster, gives it back as xarray opens it."""

    def make(record, **options):
        write_scene(tmp_path / "scene", record, StorePlan(chunk=32))
        return xarray.open_zarr(tmp_path / "scene", **options)

    return make


# The tables of a store lie beside its groups, which zarr-python remarks upon.
@pytest.mark.filterwarnings("ignore:Object at (chunks|index|lineage|manifest).*is not recognized as a component of a Zarr hierarchy")
def test_zarr_python_walks_a_store_and_reads_what_the_reader_reads(tmp_path, make_pixels):
    pixels = {f"{name}.tif": make_pixels((3, 70, 90), dtype) for name, dtype in (("a", "uint16"), ("b", "float32"))}
    store = build_store(tmp_path / "s", {name: placed(array) for name, array in pixels.items()}, domain="x", plan=StorePlan(chunk=32))
    root = zarr.open_group(str(store.path), mode="r")
    assert {name for name, _ in root.members()} == {"scenes"}
    found = {name: node for name, node in root.members(max_depth=None) if isinstance(node, zarr.Array)}
    assert {name.rpartition("/")[2] for name in found} == {"data", "x", "y", "band", "spatial_ref"}
    for row, name in enumerate(pixels):
        array = found[store.row(row)["array"]]
        assert array.metadata.dimension_names == ("band", "y", "x")
        box = np.empty((3, 32, 32), array.dtype)
        store.read_box(row, (10, 20), box)
        np.testing.assert_array_equal(box, array[:, 10:42, 20:52])
        np.testing.assert_array_equal(array[:], pixels[name])


def test_the_consolidated_metadata_of_a_group_is_that_of_its_arrays(tmp_path, make_pixels):
    write_scene(tmp_path / "scene", placed(make_pixels((3, 40, 40), "uint8"), nodata=40), StorePlan(chunk=32))
    write_volume(tmp_path / "volume", array_record(make_pixels((2, 20, 20, 20), "int16")), StorePlan())
    write_stack(tmp_path / "stack", [(np.ones((1, 32, 32), "uint8"), None)], count=1, channels=("a",), extent=(32, 32), dtype="uint8")
    for folder in tmp_path.iterdir():
        members = json.loads((folder / "zarr.json").read_bytes())["consolidated_metadata"]["metadata"]
        assert members == {path.parent.name: json.loads(path.read_bytes()) for path in folder.glob("*/zarr.json")}


def test_a_group_is_opened_from_its_own_metadata_and_without_a_warning(tmp_path, make_pixels):
    write_scene(tmp_path, placed(make_pixels((3, 40, 40), "uint8")), StorePlan())
    (tmp_path / "data" / "zarr.json").unlink()
    assert set(xarray.open_zarr(tmp_path).variables) == {"data", "x", "y", "band", "spatial_ref"}


@pytest.mark.parametrize("decode_coords", [True, "all"])
@pytest.mark.parametrize(("transform", "epsg"), [(UTM, 32633), (DEGREES, 4326), (ROTATED, 32633)])
def test_rioxarray_places_a_scene_where_it_lies(scene, make_pixels, transform, epsg, decode_coords):
    pixels = make_pixels((3, 50, 70), "uint16")
    record = placed(pixels, transform, rasterio.crs.CRS.from_epsg(epsg).to_wkt())
    data = scene(record, decode_coords=decode_coords)["data"]
    assert data.dims == ("band", "y", "x")
    assert data.rio.crs == rasterio.crs.CRS.from_epsg(epsg)
    assert tuple(data.rio.transform()) == pytest.approx(tuple(transform), rel=1e-15)
    np.testing.assert_array_equal(data.to_numpy(), pixels)
    if not transform.b:
        assert data.rio.bounds() == pytest.approx(rasterio.transform.array_bounds(50, 70, transform), rel=1e-15)


def test_a_scene_opens_as_rioxarray_opens_its_geotiff(tmp_path, scene, make_pixels):
    rioxarray = pytest.importorskip("rioxarray")
    pixels = make_pixels((3, 50, 70), "uint16")
    profile = {"driver": "GTiff", "count": 3, "height": 50, "width": 70, "dtype": "uint16", "nodata": 7, "crs": "EPSG:4326"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=DEGREES) as dataset:
        dataset.write(pixels)
        wkt = dataset.crs.to_wkt()
    source, ours = rioxarray.open_rasterio(tmp_path / "a.tif"), scene(placed(pixels, DEGREES, wkt, nodata=7))["data"]
    np.testing.assert_array_equal(ours.x, source.x)
    np.testing.assert_array_equal(ours.y, source.y)
    assert (ours.rio.crs, ours.rio.transform(), ours.rio.bounds()) == (source.rio.crs, source.rio.transform(), source.rio.bounds())
    assert (ours.rio.nodata, ours.dtype) == (source.rio.nodata, source.dtype)
    assert (ours.to_numpy() == source.to_numpy()).all()


def test_bands_are_chosen_by_name(scene, make_pixels):
    pixels = make_pixels((3, 40, 40), "uint16")
    data = scene(placed(pixels))["data"]
    np.testing.assert_array_equal(data.sel(band="B04"), pixels[2])
    np.testing.assert_array_equal(data.sel(x=500105.0, y=4999895.0, band="B03"), pixels[1, 10, 10])


def test_names_of_bands_are_any_text(scene, make_pixels):
    names = ("Ångström", "近赤外", "b")
    data = scene(replace(array_record(make_pixels((3, 40, 40), "uint8")), channels=names))["data"]
    assert tuple(data.band.to_numpy()) == names


def test_a_rotated_scene_has_no_coordinates_that_would_be_wrong(scene, make_pixels):
    assert set(scene(placed(make_pixels((3, 40, 40), "uint8"), ROTATED)).coords) == {"band", "spatial_ref"}


def test_a_scene_from_nowhere_has_no_place(scene, make_pixels):
    found = scene(array_record(make_pixels((2, 40, 40), "uint8")))
    assert set(found.coords) == {"band"}
    assert found["data"].rio.crs is None
    assert not {key for key in found["data"].attrs if key != "dinodomain"}


@pytest.mark.parametrize(("epsg", "name"), [(4326, "longitude"), (32633, "projection_x_coordinate")])
@pytest.mark.parametrize("version", [None, "WKT2_2019"])
def test_coordinates_say_whether_they_are_degrees(scene, make_pixels, epsg, name, version):
    crs = rasterio.crs.CRS.from_epsg(epsg).to_wkt(version=version)
    assert scene(placed(make_pixels((1, 40, 40), "uint8"), crs=crs)).x.attrs["standard_name"] == name


@pytest.mark.parametrize(
    ("dtype", "declared", "seen"),
    [
        ("uint16", (0, 0, 0), 0),
        ("int16", (-999, -999, -999), -999),
        ("float32", (-9999.5, -9999.5, -9999.5), -9999.5),
        ("uint16", (0, 1, 0), None),
        ("uint16", (0, None, 0), None),
        ("float32", (np.nan, np.nan, np.nan), None),
        ("uint16", (None, None, None), None),
    ],
)
def test_nodata_is_said_once_and_pixels_keep_their_type(scene, make_pixels, dtype, declared, seen):
    pixels = make_pixels((3, 40, 40), dtype)
    data = scene(replace(placed(pixels), nodata=declared))["data"]
    assert data.rio.nodata == seen
    assert data.dtype == dtype
    np.testing.assert_array_equal(data.to_numpy(), pixels)


def test_physical_values_follow_from_the_attributes(scene, make_pixels):
    pixels = make_pixels((3, 40, 40), "uint16")
    found = scene(placed(pixels, scale=(1e-4, 2e-4, 1.0), offset=(-0.1, 0.0, 5.0)))
    own = found.attrs["dinodomain"]
    physical = found["data"] * xarray.DataArray(own["scale"], dims="band") + xarray.DataArray(own["offset"], dims="band")
    np.testing.assert_array_equal(physical[0], pixels[0] * 1e-4 - 0.1)
    np.testing.assert_array_equal(physical[2], pixels[2] + 5.0)


def test_the_valid_field_lies_on_the_same_place_and_names_its_bits(scene, make_pixels):
    bits = np.zeros((40, 50), np.uint8)
    bits[:5], bits[20:, 10:] = NODATA, CLOUD | SATURATED
    valid = scene(placed(make_pixels((3, 40, 50), "uint16"), valid=bits))["valid"]
    assert (valid.dims, valid.rio.crs.to_epsg(), valid.rio.transform()) == (("y", "x"), 32633, UTM)
    meaning = dict(zip(valid.attrs["flag_meanings"].split(), valid.attrs["flag_masks"]))
    np.testing.assert_array_equal((valid & meaning["cloud"]) != 0, bits & CLOUD != 0)
    np.testing.assert_array_equal(valid == 0, bits == 0)


def test_every_bit_of_a_valid_field_has_a_name():
    from dinodomain import types
    from dinodomain.store.attributes import valid_attributes

    bits = {getattr(types, name) for name in ("NODATA", "CLOUD", "SHADOW_SNOW", "OUTSIDE_BODY", "USER_MASK", "SATURATED")}
    found = valid_attributes()
    assert set(found["flag_masks"]) == bits
    assert len(found["flag_meanings"].split()) == len(bits)


@pytest.mark.parametrize(
    ("crs", "code", "wkt2", "own"),
    [
        (utm_wkt(), "EPSG:32633", False, False),
        (utm_wkt("WKT2_2019"), "EPSG:32633", True, False),
        (rasterio.crs.CRS.from_string("ESRI:102003").to_wkt(), "ESRI:102003", False, False),
        ('PROJCS["a",GEOGCS["b",DATUM["c",SPHEROID["d",1,2]],AUTHORITY["EPSG","4326"]],UNIT["metre",1,AUTHORITY["EPSG","9001"]]]',
         None, False, True),
        ('PROJCRS["a",BASEGEOGCRS["b",ID["EPSG",4326]],CS[Cartesian,2],LENGTHUNIT["metre",1,ID["EPSG",9001]]]', None, True, False),
    ],
)  # fmt: skip
def test_a_reference_system_goes_by_its_own_code_and_never_by_that_of_a_part(scene, make_pixels, crs, code, wkt2, own):
    found = scene(placed(make_pixels((1, 40, 40), "uint8"), crs=crs))["data"].attrs
    assert (found.get("proj:code"), "proj:wkt2" in found, found.get("_CRS")) == (code, wkt2, {"wkt": crs} if own else None)
    assert ("proj" in {convention["name"] for convention in found["zarr_conventions"]}) == (code is not None or wkt2)


def test_a_scene_becomes_a_geotiff_with_everything_a_geotiff_can_say(tmp_path, scene, make_pixels):
    pixels = make_pixels((3, 50, 70), "uint16")
    data = scene(placed(pixels, nodata=7))["data"]
    data.assign_attrs(long_name=tuple(data.band.to_numpy())).rio.to_raster(tmp_path / "out.tif")
    data.sel(band="B03").rio.to_raster(tmp_path / "one.tif")
    with rasterio.open(tmp_path / "out.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)
        assert (dataset.crs.to_epsg(), dataset.transform, dataset.nodata, dataset.descriptions) == (32633, UTM, 7, NAMES)
    with rasterio.open(tmp_path / "one.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), pixels[1])


def test_a_patch_in_a_stack_is_placed_by_its_row(tmp_path, make_pixels):
    pixels = make_pixels((3, 50, 70), "uint16")
    store = build_store(tmp_path / "s", {"a.tif": placed(pixels, layout="whole")}, domain="x")
    row = store.row(0)
    stack = xarray.open_zarr(store.path / row["array"].rpartition("/")[0])
    image = stack["data"][row["item"], :, : row["shape"][1], : row["shape"][2]]
    image = image.rio.write_crs(row["crs"]).rio.write_transform(Affine(*row["affine"][:6]))
    np.testing.assert_array_equal(image.sel(band="B03"), pixels[1])
    assert (image.rio.crs.to_epsg(), image.rio.transform()) == (32633, UTM)


def test_more_images_in_a_stack_are_no_more_files(tmp_path):
    def files(count: int) -> int:
        folder = tmp_path / str(count)
        images = [(np.full((1, 32, 32), 1 + i % 200, "uint8"), None) for i in range(count)]
        write_stack(folder, images, count=count, channels=("grey",), extent=(32, 32), dtype="uint8")
        return sum(path.is_file() for path in folder.rglob("*"))

    assert files(3) == files(300)


def test_images_that_are_withdrawn_leave_the_metadata_of_their_stack_true(tmp_path):
    images = [(np.full((1, 32, 32), 1 + i, "uint8"), np.full((32, 32), i % 2, "uint8")) for i in range(4)]
    write_stack(tmp_path, images, count=4, channels=("grey",), extent=(32, 32), dtype="uint8")
    clear_items(tmp_path, [1])
    stack = xarray.open_zarr(tmp_path)
    assert [int(value) for value in stack["data"].max(("band", "y", "x"))] == [1, 0, 3, 4]
    assert [int(value) for value in stack["valid"].max(("y", "x"))] == [0, 0, 0, 1]


def test_a_store_without_what_other_readers_want_is_read_as_before(tmp_path, make_pixels):
    pixels = make_pixels((3, 70, 90), "uint16")
    new = build_store(tmp_path / "new", {"a.tif": placed(pixels, nodata=50)}, domain="x", plan=StorePlan(chunk=32))
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    (folder,) = (tmp_path / "old" / "scenes").glob("*/")
    for name in ("x", "y", "band", "spatial_ref"):
        shutil.rmtree(folder / name)
    for path in (folder / "zarr.json", folder / "data" / "zarr.json", folder / "valid" / "zarr.json"):
        metadata = json.loads(path.read_bytes())
        metadata.pop("consolidated_metadata", None)
        metadata["attributes"] = {"dinodomain": metadata["attributes"].get("dinodomain", {})}
        path.write_text(json.dumps(metadata))
    old = open_store(tmp_path / "old")
    for store in (old, new):
        box, bits = np.empty((3, 40, 40), "uint16"), np.empty((40, 40), "uint8")
        store.read_box(0, (20, 30), box)
        assert store.read_valid(0, (20, 30), bits)
        np.testing.assert_array_equal(box, pixels[:, 20:60, 30:70])
        np.testing.assert_array_equal(bits != 0, (box == 50).all(axis=0) if bits.any() else False)


def gdal_reads_shards() -> bool:
    return tuple(int(part) for part in rasterio.__gdal_version__.split(".")[:2]) >= (3, 13)


@pytest.mark.skipif(gdal_reads_shards(), reason="this GDAL reads shards")
def test_gdal_before_3_13_says_what_it_cannot_read(tmp_path, make_pixels):
    write_scene(tmp_path, placed(make_pixels((3, 40, 40), "uint8")), StorePlan())
    with pytest.raises(rasterio.errors.RasterioIOError, match="Unsupported codec: sharding_indexed"):
        rasterio.open(tmp_path / "data")


@pytest.mark.skipif(not gdal_reads_shards(), reason="GDAL reads shards from 3.13 on")
@pytest.mark.parametrize("codec", ["fast", "small", "none"])
def test_gdal_opens_a_scene_in_place(tmp_path, make_pixels, codec):
    pixels = make_pixels((3, 50, 70), "uint16")
    write_scene(tmp_path, placed(pixels), StorePlan(chunk=32, codec=codec))
    with rasterio.open(tmp_path / "data") as dataset:
        assert (dataset.crs.to_epsg(), dataset.transform) == (32633, UTM)
        assert [dataset.tags(band)["DIM_band_VALUE"] for band in dataset.indexes] == list(NAMES)
        np.testing.assert_array_equal(dataset.read(), pixels)


def rigid(spacing, angle: float = 0.0) -> tuple[float, ...]:
    """RAS+ affine of a volume with spacing (z, y, x), turned about z."""
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(spacing[::-1]), (-7, -8, -9)
    return tuple(affine.ravel())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.5, 0.75), None])
@pytest.mark.parametrize("angle", [0.0, 0.1])
def test_every_volume_is_valid_ome_zarr(tmp_path, make_pixels, channels, spacing, angle):
    models = pytest.importorskip("ome_zarr_models")
    record = array_record(make_pixels((channels, 20, 24, 28), "int16"), spacing=spacing)
    write_volume(tmp_path, record if spacing is None else replace(record, affine=rigid(spacing, angle)), StorePlan())
    image = models.open_ome_zarr(zarr.open_group(str(tmp_path), mode="r"), version="0.5")
    assert type(image).__module__ == "ome_zarr_models.v05.image"
    (scale,) = image.attributes.ome.multiscales
    assert [axis.name for axis in scale.axes] == list("czyx")[4 - 3 - (channels > 1) :]
    assert [axis.unit for axis in scale.axes if axis.type == "space"] == [None if spacing is None else "millimeter"] * 3
    moves = {move.type: list(getattr(move, move.type)) for move in scale.datasets[0].coordinateTransformations}
    lead = [1.0] * (channels > 1)
    assert moves["scale"] == lead + list(spacing or (1.0, 1.0, 1.0))
    assert moves.get("translation") == (None if spacing is None else [0.0] * (channels > 1) + [-9, -8, -7])


def test_every_volume_below_a_store_is_found_and_valid(tmp_path, make_pixels):
    models = pytest.importorskip("ome_zarr_models")
    sources = {f"{i}.nii": array_record(make_pixels((1, 20, 20, 20), "int16", seed=i)) for i in range(3)}
    store = build_store(tmp_path / "s", sources, domain="x")
    volumes = zarr.open_group(str(store.path / "volumes"), mode="r")
    assert sorted(f"volumes/{name}/0" for name in volumes.group_keys()) == sorted(store.column("array"))
    for _, group in volumes.groups():
        models.open_ome_zarr(group, version="0.5")


def test_viewers_are_told_names_and_a_window_in_stored_values(tmp_path, make_pixels):
    record = replace(array_record(make_pixels((2, 20, 24, 28), "int16")), channels=("T1", "FLAIR"), scale=(2.0, -0.5), offset=(10.0, 0.0))
    written = write_volume(tmp_path, record, StorePlan())
    channels = zarr.open_group(str(tmp_path), mode="r").attrs["ome"]["omero"]["channels"]
    assert [(channel["label"], channel["active"]) for channel in channels] == [("T1", True), ("FLAIR", False)]
    assert len({channel["color"] for channel in channels}) == 2
    assert channels[0]["window"]["end"] == (written.stats.high[0] - 10) / 2
    assert channels[1]["window"]["start"] == written.stats.high[1] / -0.5
    assert all(channel["window"]["start"] < channel["window"]["end"] for channel in channels)


def test_a_volume_without_a_valid_pixel_names_no_window(tmp_path):
    write_volume(tmp_path, array_record(np.zeros((1, 8, 8, 8), "int16"), nodata=0), StorePlan())
    assert "omero" not in zarr.open_group(str(tmp_path), mode="r").attrs["ome"]


def test_a_volume_becomes_a_nifti_image(tmp_path, make_pixels):
    nibabel = pytest.importorskip("nibabel")
    for channels in (1, 2):
        pixels, folder = make_pixels((channels, 20, 24, 28), "int16"), tmp_path / str(channels)
        record = replace(array_record(pixels, spacing=(3.0, 0.5, 0.75)), affine=rigid((3.0, 0.5, 0.75), 0.1))
        write_volume(folder, record, StorePlan())
        group = zarr.open_group(str(folder), mode="r")
        affine = np.reshape(group.attrs["dinodomain"]["affine"], (4, 4))
        image = nibabel.Nifti1Image(group["0"][:].T, affine)
        nibabel.save(image, folder / "v.nii.gz")
        back = nibabel.load(folder / "v.nii.gz")
        np.testing.assert_array_equal(np.asarray(back.dataobj).T.reshape(pixels.shape), pixels)
        np.testing.assert_allclose(back.affine, np.reshape(record.affine, (4, 4)), atol=1e-6)


def test_the_folder_of_a_source_names_nothing_but_channels_and_places(tmp_path, make_pixels):
    record = replace(array_record(make_pixels((1, 20, 20, 20), "int16")), fields={"patient": "Jane Roe"}, acquired="2020-02-02")
    write_volume(tmp_path, record, StorePlan())
    text = b"".join(path.read_bytes() for path in Path(tmp_path).rglob("zarr.json"))
    assert b"Jane" not in text
    assert b"2020" not in text
