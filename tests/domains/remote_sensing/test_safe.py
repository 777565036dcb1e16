"""Sentinel-2 products as ESA ships them: folder or zip, both levels, several granules, offsets and classification from the product."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from dinodomain.errors import BadSource, LeftOut, UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.types import CLOUD, NODATA, SATURATED, SHADOW_SNOW, SourceRef
from dinodomain_remote_sensing import sentinel2

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
LOSSLESS = {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "yes"}
GSD = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 60, "B09": 60, "B10": 60}


def product_xml(level: str, baseline: str, offsets: dict[int, int]) -> str:
    names = {"1C": ("RADIO_ADD_OFFSET", "Radiometric_Offset_List"), "2A": ("BOA_ADD_OFFSET", "BOA_ADD_OFFSET_VALUES_LIST")}[level]
    listed = "".join(f'<{names[0]} band_id="{band}">{value}</{names[0]}>' for band, value in offsets.items())
    quantification = (
        '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>'
        if level == "1C"
        else '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
        '<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>'
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd"><n1:General_Info>
<Product_Info><PRODUCT_START_TIME>2022-08-25T10:36:41.024Z</PRODUCT_START_TIME><PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>
<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE><Datatake datatakeIdentifier="GS2A_20220825T103641_037464_N{baseline}">
<SPACECRAFT_NAME>Sentinel-2A</SPACECRAFT_NAME><SENSING_ORBIT_NUMBER>8</SENSING_ORBIT_NUMBER>
<SENSING_ORBIT_DIRECTION>DESCENDING</SENSING_ORBIT_DIRECTION></Datatake></Product_Info>
<Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
<Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX></Special_Values>
{quantification}<{names[1]}>{listed}</{names[1]}></Product_Image_Characteristics></n1:General_Info>
<n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>12.5</Cloud_Coverage_Assessment></n1:Quality_Indicators_Info>
</n1:Level-{level}_User_Product>"""


GRANULE_XML = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-2A_Tile_Metadata.xsd"><n1:General_Info>
<TILE_ID>S2A_OPER_MSI_L2A_TL_2APS_20220825T165201_A037464_{tile}_N04.00</TILE_ID><SENSING_TIME>2022-08-25T10:41:15.731Z</SENSING_TIME>
</n1:General_Info><n1:Geometric_Info><Tile_Angles><Mean_Sun_Angle><ZENITH_ANGLE unit="deg">47.25</ZENITH_ANGLE>
<AZIMUTH_ANGLE unit="deg">164.5</AZIMUTH_ANGLE></Mean_Sun_Angle><Mean_Viewing_Incidence_Angle_List>
<Mean_Viewing_Incidence_Angle bandId="0"><ZENITH_ANGLE unit="deg">9.9</ZENITH_ANGLE></Mean_Viewing_Incidence_Angle>
</Mean_Viewing_Incidence_Angle_List></Tile_Angles></n1:Geometric_Info><n1:Quality_Indicators_Info><Image_Content_QI>
<CLOUDY_PIXEL_PERCENTAGE>{cloud}</CLOUDY_PIXEL_PERCENTAGE></Image_Content_QI></n1:Quality_Indicators_Info></n1:Level-2A_Tile_ID>"""


def make_safe(lab, pixels, *, level="2A", baseline="04.00", offset=-1000, tiles=("T32VPH",), scl=None, classi=None, below="") -> Path:
    """A product with the bands of ``pixels`` (band to [y, x] at its own resolution), the same in every granule."""
    named = baseline.replace(".", "")
    tile = tiles[0] if len(tiles) == 1 else "T32VPH"
    product = f"{below}S2A_MSIL{level}_20220825T103641_N{named}_R008_{tile}_20220825T173926.SAFE"
    for tile in tiles:
        granule = f"{product}/GRANULE/L{level}_{tile}_A037464_20220825T104115"
        for band, cube in pixels.items():
            gsd = GSD.get(band, 20)
            place = f"R{gsd}m/{tile}_20220825T103641_{band}_{gsd}m" if level == "2A" else f"{tile}_20220825T103641_{band}"
            lab.write(f"{granule}/IMG_DATA/{place}.jp2", cube, gsd=float(gsd), **LOSSLESS)
        if scl is not None:
            lab.write(f"{granule}/IMG_DATA/R20m/{tile}_20220825T103641_SCL_20m.jp2", scl, gsd=20.0, **LOSSLESS)
        if classi is not None:
            lab.write(f"{granule}/QI_DATA/MSK_CLASSI_B00.jp2", classi, gsd=60.0, **LOSSLESS)
        lab.write(f"{granule}/QI_DATA/MSK_QUALIT_B02.jp2", np.ones((8, 8), "uint8"), **LOSSLESS)
        (lab.folder / granule / "MTD_TL.xml").write_text(GRANULE_XML.format(tile=tile, cloud=30.5))
    offsets = dict.fromkeys(range(13), offset) if offset is not None else {}
    (lab.folder / product / f"MTD_MSIL{level}.xml").write_text(product_xml(level, baseline, offsets))
    (lab.folder / product / "DATASTRIP").mkdir()
    (lab.folder / product / "DATASTRIP" / "MTD_DS.xml").write_text("<a/>")
    return lab.folder / product


def zipped(product: Path, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    path = product.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", kind) as archive:
        for file in sorted(product.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(product.parent).as_posix())
    return path


def physical(lab, record):
    scale, offset = (np.array(values)[:, None, None] for values in (record.scale, record.offset))
    return lab.everything(record) * scale + offset


@pytest.fixture
def scene():
    rng = np.random.default_rng(3)
    return {band: rng.integers(1001, 9000, (side, side)).astype("uint16") for band, side in (("B02", 24), ("B8A", 12), ("B01", 4))}


def test_level_2a_folders_of_three_resolutions_make_one_grid(lab, scene):
    product = make_safe(lab, scene)
    # ESA repeats bands at coarser resolutions; the finest is taken.
    lab.write(f"{product.name}/GRANULE/L2A_T32VPH_A037464_20220825T104115/IMG_DATA/R60m/T32VPH_20220825T103641_B02_60m.jp2",
              np.full((4, 4), 7, "uint16"), gsd=60.0, **LOSSLESS)  # fmt: skip
    record = lab.only(sentinel2)
    assert record.channels == ("B01", "B02", "B8A")
    assert record.shape == (3, 24, 24)
    stored = lab.everything(record)
    for index, factor in enumerate((6, 1, 2)):
        expected = np.kron(scene[record.channels[index]], np.ones((factor, factor), "uint16"))
        np.testing.assert_array_equal(stored[index], expected)
    assert record.scale == (1e-4,) * 3
    assert record.offset == pytest.approx((-0.1,) * 3)


def test_everything_the_product_states_becomes_a_field(lab, scene):
    make_safe(lab, scene)
    (ref,) = lab.found(sentinel2)
    record = sentinel2.read(ref)
    expected = {
        "level": "L2A",
        "processing_baseline": "04.00",
        "platform": "Sentinel-2A",
        "orbit": 37464,
        "relative_orbit": 8,
        "orbit_direction": "DESCENDING",
        "cloud_cover_percent": 30.5,  # of the granule, not of the whole datastrip
        "sun_zenith_deg": 47.25,
        "sun_azimuth_deg": 164.5,
        "sensing_time": "2022-08-25T10:41:15",
        "tile": "T32VPH",
        "offset_from": "xml",
    }
    assert {name: record.fields[name] for name in expected} == expected
    assert record.acquired == "2022-08-25T10:41:15"
    assert ref.quantity == "L2A reflectance"
    assert {name: ref.facts[name] for name in expected} == expected
    assert ref.facts["bytes_out"] == 3 * 24 * 24 * 2
    assert ref.facts["crs"] == "EPSG:32632"
    assert ref.facts["gsd"] == 10.0
    with rasterio.open(next(path for path in map(Path, ref.uris) if path.stem.endswith("B02_10m"))) as dataset:
        assert record.affine == tuple(dataset.transform)
        assert (ref.facts["lon"], ref.facts["lat"]) == pytest.approx(dataset.lnglat(), abs=1e-5)
    assert 0 < ref.facts["bytes_in"] < 200_000


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_in_place_and_equals_the_folder(lab, scene, kind):
    product = make_safe(lab, scene, scl=np.full((12, 12), 4, "uint8"))
    plain = lab.only(sentinel2)
    archive = zipped(product, kind)
    inside = sorted(path for path in product.rglob("*") if path.is_file())
    for path in inside:
        path.unlink()
    (ref,) = lab.found(sentinel2)
    assert ref.source_id == f"{archive.name}/{product.name}"
    assert ref.keys["stem"] == product.stem
    assert all(str(archive) in uri for uri in ref.uris)
    record = sentinel2.read(ref)
    expected = {**plain.fields}
    assert dict(record.fields) == expected
    assert (record.affine, record.scale, record.offset, record.acquired) == (plain.affine, plain.scale, plain.offset, plain.acquired)
    assert lab.only(sentinel2, archive).channels == record.channels
    assert sorted(path.name for path in lab.folder.iterdir() if path.is_file()) == [archive.name]  # nothing was unpacked


def test_zipped_pixels_are_those_of_the_folder(lab, scene):
    product = make_safe(lab, scene, below="folder/")
    plain = lab.everything(lab.only(sentinel2, product))
    np.testing.assert_array_equal(lab.everything(lab.only(sentinel2, zipped(product))), plain)


def test_a_changed_pixel_in_a_zip_changes_the_digest_and_another_path_does_not(lab, scene):
    product = make_safe(lab, scene)
    digests = []
    for value in (5000, 5000, 5001):
        lab.write(next(product.rglob("*B02_10m.jp2")).relative_to(lab.folder).as_posix(), np.full((24, 24), value, "uint16"), **LOSSLESS)
        (ref,) = lab.found(sentinel2, zipped(product))
        digests.append(ref.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_damaged_zip_is_a_refused_row_and_the_others_are_read(lab, scene):
    archive = zipped(make_safe(lab, scene, below="a/"))
    (lab.folder / "broken.zip").write_bytes(archive.read_bytes()[:5000])
    rows = lab.found(sentinel2)
    assert [type(row) for row in rows].count(SourceRef) == 2  # the folder and its zip
    assert "not a readable archive" in str(next(row for row in rows if isinstance(row, BadSource)))


def test_level_1c_has_radiometric_offsets_and_flat_image_folder(lab, scene):
    make_safe(lab, {**scene, "B10": np.full((4, 4), 1020, "uint16")}, level="1C")
    (ref,) = lab.found(sentinel2)
    record = sentinel2.read(ref)
    assert record.channels == ("B01", "B02", "B8A", "B10")
    assert ref.quantity == "L1C reflectance"
    assert physical(lab, record)[3] == pytest.approx(0.002)


def test_offsets_differ_by_band(lab, scene):
    product = make_safe(lab, scene)
    (product / "MTD_MSIL2A.xml").write_text(product_xml("2A", "04.00", {0: -1000, 1: -900, 8: -800}))
    assert lab.only(sentinel2).offset == pytest.approx((-0.1, -0.09, -0.08))


def test_a_list_of_offsets_that_leaves_out_a_band_is_refused(lab, scene):
    product = make_safe(lab, scene)
    (product / "MTD_MSIL2A.xml").write_text(product_xml("2A", "04.00", {0: -1000, 1: -1000}))
    assert "leaves out band B8A" in lab.refusal(sentinel2)


def test_a_late_baseline_without_its_offsets_is_refused_and_an_early_one_has_none(lab, scene):
    product = make_safe(lab, scene, offset=None)
    assert "no *_ADD_OFFSET" in lab.refusal(sentinel2)
    (product / "MTD_MSIL2A.xml").write_text(product_xml("2A", "02.14", {}))
    assert lab.only(sentinel2).offset == (0.0, 0.0, 0.0)


def test_every_granule_of_a_product_is_a_scene(lab, scene):
    product = make_safe(lab, scene, tiles=("T32VPH", "T32UPG"))
    refs = lab.found(sentinel2)
    assert [ref.source_id for ref in refs] == [
        f"{product.name}/GRANULE/L2A_{tile}_A037464_20220825T104115" for tile in ("T32UPG", "T32VPH")
    ]
    records = [sentinel2.read(ref) for ref in refs]
    assert [record.fields["tile"] for record in records] == ["T32UPG", "T32VPH"]
    assert all(record.fields["processing_baseline"] == "04.00" for record in records)
    assert len(lab.found(sentinel2, product)) == 2


def test_products_of_before_december_2016_keep_their_long_names(lab, scene):
    product = "S2A_OPER_PRD_MSIL1C_PDMC_20160604T010049_R008_V20160603T104026_20160603T104026.SAFE"
    for tile in ("T32TQM", "T32TQN"):
        granule = f"{product}/GRANULE/S2A_OPER_MSI_L1C_TL_EPA__20160604T010049_A004962_{tile}_N02.02"
        for band in ("B02", "B03"):
            name = f"S2A_OPER_MSI_L1C_TL_EPA__20160604T010049_A004962_{tile}_{band}"
            lab.write(f"{granule}/IMG_DATA/{name}.jp2", scene["B02"], **LOSSLESS)
        xml = GRANULE_XML.format(tile=tile, cloud=1).replace("2022-08-25T10:41:15", "2016-06-03T10:40:26")
        (lab.folder / granule / f"S2A_OPER_MTD_L1C_TL_EPA__20160604T010049_A004962_{tile}.xml").write_text(xml)
    xml = product_xml("1C", "02.02", {})
    (lab.folder / product / "S2A_OPER_MTD_SAFL1C_PDMC_20160604T010049_R008_V20160603T104026_20160603T104026.xml").write_text(xml)
    refs = lab.found(sentinel2)
    assert len(refs) == 2
    assert sentinel2.read(refs[0]).acquired == "2016-06-03T10:40:26"
    assert refs[0].facts["level"] == "L1C"


def test_scene_classification_becomes_validity_by_the_nearest_pixel(lab):
    scl = np.repeat(np.arange(12, dtype="uint8")[None], 12, 0)
    make_safe(lab, {"B02": np.full((24, 24), 3000, "uint16")}, scl=scl)
    record = lab.only(sentinel2)
    expected = {0: NODATA, 1: SATURATED, 3: SHADOW_SNOW, 8: CLOUD, 9: CLOUD, 10: CLOUD, 11: SHADOW_SNOW}
    row = np.repeat([expected.get(value, 0) for value in range(12)], 2)
    np.testing.assert_array_equal(lab.invalid(record), np.repeat(row[None], 24, 0))
    np.testing.assert_array_equal(record.read_valid((slice(3, 5), slice(15, 19))), np.repeat(row[None, 15:19], 2, 0))
    assert record.fields["masks"] == "SCL"
    assert "validity from SCL, nearest neighbour" in record.stages


def test_classification_is_nearest_on_a_coarser_grid_too(lab):
    rng = np.random.default_rng(5)
    scl = rng.choice([4, 5, 9, 3], (12, 12)).astype("uint8")
    make_safe(lab, {"B02": np.full((24, 24), 3000, "uint16")}, scl=scl)
    record = lab.only(sentinel2, grid="60")
    expected = np.select([scl == 9, scl == 3], [CLOUD, SHADOW_SNOW], 0)[1::3, 1::3]  # the pixel in the middle of three
    np.testing.assert_array_equal(lab.invalid(record), expected)


def test_masks_of_level_1c_come_at_60_m(lab):
    classi = np.zeros((3, 4, 4), "uint8")
    classi[0, 0, 0] = classi[1, 0, 1] = classi[2, 0, 2] = classi[0, 3, 3] = 1
    make_safe(lab, {"B02": np.full((24, 24), 3000, "uint16")}, level="1C", classi=classi)
    record = lab.only(sentinel2)
    expected = np.zeros((4, 4), "uint8")
    expected[0, :3], expected[3, 3] = (CLOUD, CLOUD, SHADOW_SNOW), CLOUD
    np.testing.assert_array_equal(lab.invalid(record), np.kron(expected, np.ones((6, 6), "uint8")))
    assert record.fields["masks"] == "MSK_CLASSI"


def test_saturation_is_a_bit_of_its_own_and_spreads_to_what_it_is_averaged_into(lab):
    pixels = np.full((24, 24), 3000, "uint16")
    pixels[0, 0] = 65535
    pixels[4, 4] = 0
    make_safe(lab, {"B02": pixels})
    bits = lab.invalid(lab.only(sentinel2))
    assert (bits[0, 0], bits[4, 4], bits[1, 1]) == (SATURATED, NODATA, 0)
    coarse = lab.invalid(lab.only(sentinel2, grid="20"))
    assert (coarse[0, 0], coarse[2, 2]) == (SATURATED, 0)


def test_a_scene_under_clouds_alone_is_refused_for_that(lab, tmp_path):
    make_safe(lab, {"B02": np.full((24, 24), 3000, "uint16")}, scl=np.full((12, 12), 9, "uint8"))
    with pytest.raises(UserError, match="holds no valid pixel: everywhere cloud"):
        ingest(IngestPlan(domain="sentinel2", source=str(lab.folder), store=str(tmp_path / "store"), workers=0), domain=sentinel2)


def test_one_scene_in_every_encoding_gives_equal_reflectance(lab):
    """As ESA ships it, with GDAL tags, as floating point, and as a host that took the offset out: within one DN of each other."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.001, 0.8, (2, 24, 24))
    dn = np.rint(truth * 1e4).astype("uint16")
    make_safe(lab, {"B02": dn[0] + 1000, "B03": dn[1] + 1000}, below="safe/")
    make_safe(lab, {"B02": dn[0], "B03": dn[1]}, baseline="02.14", offset=None, below="early/")
    for band, cube in (("B02", dn[0]), ("B03", dn[1])):
        said = {"scales": (1e-4,), "offsets": (-0.1,)}
        lab.write(f"tags/S2A_MSIL2A_20220825T103641_N0400_R008_T32VPH_x_{band}.tif", cube + 1000, per_band=said)
        lab.write(f"host/S2A_MSIL2A_20220825T103641_N0400_R008_T32VPH_x_{band}.tif", cube, per_band={"scales": (1e-4,)})
    units = {"units": ("reflectance",) * 2, "descriptions": ("B02", "B03")}
    lab.write("float/S2A_MSIL2A_20220825T103641_stack.tif", truth.astype("float32"), per_band=units)
    found = {}
    for name in ("safe", "early", "tags", "host", "float"):
        (ref,) = lab.found(sentinel2, lab.folder / name)
        assert ref.quantity == "L2A reflectance", name
        found[name] = physical(lab, sentinel2.read(ref))
    for name, reflectance in found.items():
        np.testing.assert_allclose(reflectance, truth, atol=0.51e-4, err_msg=name)


def test_levels_are_quantities_and_a_level_that_nothing_states_is_a_third(lab, scene):
    make_safe(lab, scene, level="1C")
    make_safe(lab, scene, level="2A")
    lab.write("stack.tif", lab.counts(13, 4, 4))
    assert {ref.quantity for ref in lab.found(sentinel2)} == {
        "L1C reflectance", "L2A reflectance", "reflectance of unstated level"
    }  # fmt: skip


def test_a_header_filter_takes_scenes_by_what_they_state(lab, scene):
    make_safe(lab, scene, level="1C")
    make_safe(lab, scene, level="2A", below="x/")
    rows = lab.found(sentinel2, where="level == 'L2A' and cloud_cover_percent <= 40 and 'B8A' in bands")
    assert [type(row) for row in rows] == [LeftOut, SourceRef]
    assert "left out by ingest.select=level" in str(rows[0])
    assert all(isinstance(row, LeftOut) for row in lab.found(sentinel2, where="sun_zenith_deg < 40"))
    with pytest.raises(UserError, match="did you mean 'cloud_cover_percent'"):
        lab.found(sentinel2, where="cloud_cover < 20")


def test_damaged_metadata_is_refused(lab, scene):
    product = make_safe(lab, scene)
    xml = product / "MTD_MSIL2A.xml"
    whole = xml.read_text()
    xml.write_text(whole[:400])
    assert "not readable XML" in lab.refusal(sentinel2)
    xml.write_text(whole.replace(">-1000<", ">minus<"))
    assert "not a number" in lab.refusal(sentinel2)
    xml.write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + whole.partition("?>")[2])
    assert "entities" in lab.refusal(sentinel2)


GML = """<?xml version="1.0" encoding="UTF-8"?><eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" xmlns:gml="http://www.opengis.net/gml/3.2">
<gml:boundedBy><gml:Envelope srsName="urn:ogc:def:crs:EPSG:8.7.1:{epsg}">
<gml:lowerCorner>0 0</gml:lowerCorner></gml:Envelope></gml:boundedBy>
<eop:maskMembers>{features}</eop:maskMembers></eop:Mask>"""
FEATURE = """<eop:MaskFeature gml:id="{kind}.{n}"><eop:maskType codeSpace="urn:gs2:S2PDGS:maskType">{kind}</eop:maskType><eop:extentOf>
<gml:Polygon gml:id="p{n}">{rings}</gml:Polygon></eop:extentOf></eop:MaskFeature>"""


def square(left, top, right, bottom, where="exterior"):
    points = f"{left} {top} {right} {top} {right} {bottom} {left} {bottom} {left} {top}"
    return f'<gml:{where}><gml:LinearRing><gml:posList srsDimension="2">{points}</gml:posList></gml:LinearRing></gml:{where}>'


def write_outlines(lab, product, features, epsg=32632):
    folder = next((lab.folder / product / "GRANULE").iterdir()) / "QI_DATA"
    (folder / "MSK_CLOUDS_B00.gml").write_text(GML.format(epsg=epsg, features=features))


def test_cloud_outlines_of_older_products_are_drawn_on_every_grid(lab):
    product = make_safe(lab, {"B02": np.full((24, 24), 3000, "uint16")}, level="1C", baseline="02.09", offset=None)
    west, north = 600000, 5300040
    hole = square(west + 40, north - 40, west + 80, north - 80, "interior")
    clouds = FEATURE.format(kind="OPAQUE", n=0, rings=square(west, north, west + 120, north - 120) + hole)
    cirrus = FEATURE.format(kind="CIRRUS", n=1, rings=square(west + 180, north - 180, west + 500, north - 500))
    write_outlines(lab, product, clouds + cirrus)
    record = lab.only(sentinel2)
    expected = np.zeros((24, 24), "uint8")
    expected[:12, :12] = CLOUD
    expected[4:8, 4:8] = 0
    expected[18:, 18:] = CLOUD
    bits = lab.invalid(record)
    np.testing.assert_array_equal(bits, expected)
    np.testing.assert_array_equal(record.read_valid((slice(3, 20), slice(5, 19))), expected[3:20, 5:19])
    np.testing.assert_array_equal(lab.invalid(lab.only(sentinel2, grid="20")), expected[::2, ::2])
    assert record.fields["masks"] == "MSK_CLOUDS"


def test_outlines_that_are_empty_damaged_or_elsewhere(lab):
    product = make_safe(lab, {"B02": np.full((24, 24), 3000, "uint16")}, level="1C", baseline="02.09", offset=None)
    write_outlines(lab, product, "")
    record = lab.only(sentinel2)
    assert "masks" not in record.fields
    some = FEATURE.format(kind="OPAQUE", n=0, rings=square(600000, 5300040, 600100, 5299940))
    write_outlines(lab, product, some, epsg=32633)
    assert "EPSG:32633, another CRS" in lab.refusal(sentinel2)
    write_outlines(lab, product, FEATURE.format(kind="OPAQUE", n=0, rings=""))
    assert "not a readable mask" in lab.refusal(sentinel2)


def test_product_metadata_counts_for_a_lone_stack_but_for_none_of_several(lab):
    names = {"descriptions": ("B02",)}
    for folder in ("one", "two"):
        lab.write(f"{folder}/a.tif", np.full((4, 4), 3500, "uint16"), per_band=names)
        (lab.folder / folder / "MTD_MSIL2A.xml").write_text(product_xml("2A", "04.00", {1: -1000}))
    lab.write("two/b.tif", np.full((4, 4), 3500, "uint16"), per_band=names)
    for source in ("one", "one/a.tif"):
        assert lab.only(sentinel2, lab.folder / source).offset == (-0.1,)
    assert [ref.facts["offset_from"] for ref in lab.found(sentinel2, lab.folder / "two")] == ["not stated"] * 2
    assert lab.only(sentinel2, lab.folder / "two" / "a.tif").fields["offset_from"] == "not stated"
