"""Images are known whatever their files are called: exported again, or lying in an archive twice, they enter a store once."""

from __future__ import annotations

import dataclasses

import pytest

from dinodomain.errors import BadSource, UserError
from dinodomain.ingest.join import join_labels, keys_of
from dinodomain.lineage import pseudonym
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages


def stated(prefix="", digest=None, of=lambda number: number):
    """Each pattern states the images it is made of; ``prefix`` renames it, ``of`` says which images and pixels it has."""

    def change(ref):
        number = int(ref.source_id[-5:])
        source_id = prefix + ref.source_id
        return dataclasses.replace(
            ref,
            source_id=source_id,
            uris=(f"generate:{of(number)}#{prefix}{number}",),
            keys={**ref.keys, "path": source_id},
            instance=f"images {of(number)}",
            digest=digest(number) if digest else f"pixels of {of(number)}",
        )

    return change


@pytest.fixture
def scans(archive):
    """Patterns whose file names carry a tail that tells copies apart; ``pixels`` says which pattern a file holds."""

    class Scans(archive):
        pixels = staticmethod(int)

        def read(self, ref):
            number = ref.uris[0].removeprefix("generate:").partition("#")[0]
            return super().read(dataclasses.replace(ref, uris=(f"generate:{self.pixels(number)}",)))

    return Scans


def stages_nothing(ref, record):
    raise AssertionError(f"{ref.source_id} is read")


@pytest.mark.parametrize("personal", [False, True])
def test_an_archive_exported_again_under_other_names_is_known_without_reading_a_pixel(tmp_path, run, scans, snapshot, personal):
    run("generate:3", tmp_path / "store", scans(stated(), personal=personal))
    before = snapshot(tmp_path / "store")
    summary = run("generate:3", tmp_path / "store", scans(stated("new/"), stages_nothing, personal=personal))
    assert (summary.added, summary.present, summary.renamed) == (0, 3, 3)
    assert "3 already there (3 of them the same images under another name)" in summary.text()
    assert snapshot(tmp_path / "store") == before


@pytest.mark.parametrize("layout", ["whole", "window"])
@pytest.mark.parametrize("prefix", ["", "new/"])
def test_other_headers_with_the_same_pixels_are_known_after_comparing(tmp_path, run, scans, snapshot, layout, prefix):
    run("generate:3", tmp_path / "store", scans(stated(), layout=layout))
    before = snapshot(tmp_path / "store")
    other = scans(stated(prefix, digest=lambda number: f"other headers of {number}"), layout=layout)
    summary = run("generate:3", tmp_path / "store", other)
    assert (summary.added, summary.present, summary.renamed, summary.skipped) == (0, 3, 3, ())
    assert snapshot(tmp_path / "store") == before
    summary = run("generate:4", tmp_path / "store", other)
    assert (summary.added, summary.present) == (1, 3)
    assert len(open_store(tmp_path / "store")) == 4


@pytest.mark.parametrize("prefix", ["", "new/"])
def test_the_same_images_with_other_pixels_are_refused(tmp_path, run, scans, prefix):
    run("generate:2", tmp_path / "store", scans(stated()))

    class Damaged(scans):
        pixels = staticmethod(lambda number: int(number) + 7)

    changed = Damaged(stated(prefix, digest=lambda number: f"other pixels of {number}"))
    with pytest.raises(BadSource, match="same SOPInstanceUIDs"):
        run("generate:3", tmp_path / "store", changed, strict=True)
    summary = run("generate:3", tmp_path / "store", changed)
    assert (summary.added, summary.present, summary.refused) == (1, 0, 2)
    rows = open_store(tmp_path / "store").manifest["skipped"]
    assert [row["reason"] for row in rows] == ["has the same SOPInstanceUIDs as a source of the store, but other pixels"] * 2


def test_a_changed_source_of_other_images_is_still_refused_as_changed(tmp_path, run, scans):
    run("generate:2", tmp_path / "store", scans(stated()))
    grown = scans(lambda ref: dataclasses.replace(stated()(ref), instance="one image more", digest="another"))
    with pytest.raises(UserError, match="has changed since it was ingested"):
        run("generate:1", tmp_path / "store", grown)


@pytest.mark.parametrize("digest", [None, lambda number: f"headers of {number}"])
@pytest.mark.parametrize("layout", ["whole", "window"])
def test_copies_inside_one_archive_are_taken_once(tmp_path, run, scans, digest, layout):
    domain = scans(stated(digest=digest, of=lambda number: number // 2), layout=layout)
    summary = run("generate:4", tmp_path / "store", domain, strict=True)
    assert (summary.added, summary.left_out) == (2, 2)
    assert "being a copy: the same images are taken from" in summary.skipped[0].reason
    store = open_store(tmp_path / "store")
    assert store.column("source_id").tolist() == ["unit0000/pattern00000", "unit0001/pattern00002"]
    again = run("generate:4", tmp_path / "store", domain)
    assert (again.added, again.present) == (0, 4)


def test_copies_of_other_pixels_are_refused_for_the_second(tmp_path, run, scans):
    class Damaged(scans):
        def read(self, ref):
            return super().read(dataclasses.replace(ref, uris=(f"generate:{ref.source_id[-5:]}",)))

    summary = run("generate:2", tmp_path / "store", Damaged(stated(digest=lambda number: f"headers {number}", of=lambda number: 0)))
    assert (summary.added, summary.refused) == (1, 1)
    assert "has the same SOPInstanceUIDs as 'generate:0#0', but other pixels" in summary.skipped[0].reason


def test_parts_of_one_file_are_no_copies_of_each_other(tmp_path, run, archive):
    def frames(ref):
        return dataclasses.replace(ref, uris=("generate:0",), instance="one object", digest=f"frame {ref.source_id}")

    assert run("generate:3", tmp_path / "store", archive(frames)).added == 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twice:
    """Every source lies there twice, with other headers."""

    inner: object
    name: str = "synthetic"
    ndim: int = 2
    layout: str = "whole"
    personal: bool = False
    extra: str = "dev"
    default_select: str = ""

    @property
    def channels(self):
        return self.inner.channels

    def discover(self, source, select):
        for ref in self.inner.discover(source, select):
            number = int(ref.source_id[-5:])
            yield dataclasses.replace(ref, instance=f"images {number // 2}", digest=f"{number}", uris=(f"generate:{number}",))

    def read(self, ref):
        return self.inner.read(dataclasses.replace(ref, uris=(f"generate:{int(ref.uris[0].removeprefix('generate:')) // 2}",)))

    def to_float(self, pixels, info):
        raise NotImplementedError

    view_policy = probes = to_float


def test_any_number_of_workers_and_shards_keep_the_same_copy(tmp_path, run, archive, snapshot):
    twice = Twice(inner=SyntheticImages())  # crosses into workers
    run("generate:6", tmp_path / "a", twice)
    run("generate:6", tmp_path / "b", twice, workers=2)
    for shard in ("2/2", "1/2"):
        run("generate:6", tmp_path / "c", twice, shard=shard)
    run("generate:6", tmp_path / "c", twice)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b") == snapshot(tmp_path / "c")
    assert len(open_store(tmp_path / "a")) == 3


def test_the_identity_is_hashed_and_is_no_kind_to_join_by(tmp_path, run, scans):
    run("generate:2", tmp_path / "store", scans(stated(), personal=True))
    store = open_store(tmp_path / "store")
    secret = (tmp_path / "store.private" / "secret").read_bytes().strip()
    assert store.column("key_instance").tolist().count(pseudonym(secret, "images 0")) == 1
    assert all("instance" not in keys for keys in keys_of(store))
    (tmp_path / "labels.csv").write_text("instance,label\nimages 0,1\n")
    with pytest.raises(UserError, match="match no source by column 'instance'"):
        join_labels(tmp_path / "store", tmp_path / "labels.csv", "instance", "label")


def test_sources_without_identity_leave_no_column(tmp_path, run):
    run("generate:2", tmp_path / "store")
    assert "key_instance" not in open_store(tmp_path / "store").index.column_names


def test_a_store_from_before_identities_takes_sources_with_them(tmp_path, run, scans):
    run("generate:2", tmp_path / "store", scans(lambda ref: dataclasses.replace(stated()(ref), instance="")))
    assert run("generate:3", tmp_path / "store", scans(stated())).added == 1
    assert open_store(tmp_path / "store").index["key_instance"].to_pylist() == [None, None, "images 2"]
