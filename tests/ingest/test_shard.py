"""Job arrays: jobs stage side by side and finish nothing; the run that finishes gives the bytes of one plain run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import IngestPlan
from dinodomain.ingest.partial import Partial
from dinodomain.ingest.secret import make_secret, read_secret
from dinodomain.ingest.shard import Share
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages

SCRIPT = textwrap.dedent(
    """
    import json, sys
    from dinodomain.errors import UserError
    from dinodomain.ingest import IngestPlan, ingest
    sys.path.insert(0, sys.argv[1])
    from test_shard import CLINIC
    store, shard = sys.argv[2:]
    plan = IngestPlan(domain="synthetic", source="generate:30", store=store, shard=shard, workers=0, audit_holdout=0.2)
    print(json.dumps(ingest(plan, domain=CLINIC).as_json()))
    """
)


class Clinic(SyntheticImages):
    """People's images, scenes and whole ones; two cannot be read."""

    def read(self, ref):
        number = int(ref.source_id[-2:])
        if number in (7, 8):
            raise BadSource(ref.uris[0], "refused for the test", "none")
        return Clinic.record(self, ref, "window" if number % 2 else "whole")

    def record(self, ref, layout):
        return SyntheticImages(size=self.size, nodata=True, layout=layout).read(ref)


CLINIC = Clinic(size=(40, 48), nodata=True, personal=True)


def jobs(tmp_path, store, count):
    """All jobs of an array at once; what each printed."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), os.path.dirname(__file__), str(store)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, f"{number}/{count}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        for number in range(1, count + 1)
    ]
    printed = [job.communicate(timeout=120) for job in running]
    assert [job.returncode for job in running] == [0] * count, b"".join(errors for _, errors in printed).decode()
    return [json.loads(out) for out, _ in printed]


def test_three_jobs_at_once_and_a_finish_give_the_bytes_of_one_plain_run(tmp_path, run, snapshot):
    store = tmp_path / "store"
    printed = jobs(tmp_path, store, 3)
    assert not store.exists()
    assert sum(job["added"] for job in printed) == 28
    assert sorted(item["uri"] for job in printed for item in job["skipped"]) == ["generate:7", "generate:8"]
    assert all(job["added"] > 3 for job in printed)
    assert all(job["found"] == job["added"] + len(job["skipped"]) for job in printed)

    summary = run("generate:30", store, CLINIC, audit_holdout=0.2)
    assert (summary.added, len(summary.skipped), summary.shard) == (28, 2, "")
    shutil.copytree(tmp_path / "store.private", tmp_path / "plain.private")  # the same secret gives the same pseudonyms
    run("generate:30", tmp_path / "plain", CLINIC, audit_holdout=0.2)
    assert snapshot(store) == snapshot(tmp_path / "plain")
    assert not (tmp_path / "store.partial").exists()


def test_jobs_add_to_a_store_that_is_there(tmp_path, run, snapshot):
    domain = SyntheticImages(size=(40, 48))
    for store in ("store", "plain"):
        run("generate:3", tmp_path / store, domain)
    before = snapshot(tmp_path / "store")
    counts = [run("generate:9", tmp_path / "store", domain, shard=f"{number}/2") for number in (1, 2)]
    assert (sum(job.added for job in counts), sum(job.present for job in counts)) == (6, 3)
    assert snapshot(tmp_path / "store") == before
    for store in ("store", "plain"):
        run("generate:9", tmp_path / store, domain)
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "plain")


def test_what_a_missing_job_did_not_stage_the_last_run_stages(tmp_path, run, snapshot):
    run("generate:9", tmp_path / "plain")
    run("generate:9", tmp_path / "store", shard="2/3")
    run("generate:9", tmp_path / "store")
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "plain")


def test_one_job_of_one_still_finishes_nothing(tmp_path, run):
    summary = run("generate:3", tmp_path / "store", shard="1/1")
    assert summary.text().splitlines() == [
        "3 sources found: 3 staged, 0 already there, 0 skipped",
        "this was share 1/1; once all are staged, run the same without ingest.shard to finish the store",
        f"store: {tmp_path / 'store'}",
    ]
    with pytest.raises(UserError, match=r"never finished|is no folder"):
        open_store(tmp_path / "store")


def test_a_dry_run_of_a_job_counts_its_share(tmp_path, run):
    counts = [run("generate:20", tmp_path / "store", shard=f"{number}/4", dry_run=True).found for number in (1, 2, 3, 4)]
    assert sum(counts) == 20
    assert not (tmp_path / "store.partial").exists()


def test_no_job_starts_while_a_run_finishes_and_no_run_finishes_while_a_job_stages(tmp_path, run):
    store = tmp_path / "store"
    with Partial(store).open(), pytest.raises(UserError, match=r"ingest\.shard: another ingest is finishing .*; wait for it, then start"):
        run("generate:3", store, shard="1/2")
    with Partial(store, "1-of-2").open(), Partial(store, "2-of-2").open():
        with pytest.raises(UserError, match=r"store: jobs with ingest\.shard are still staging .*; wait until all of them are done"):
            run("generate:3", store)
        with pytest.raises(UserError, match=r"ingest\.shard: job 2-of-2 is running already"):
            run("generate:3", store, shard="2/2")
    with Partial(store).open(), pytest.raises(UserError, match="store: another ingest is writing"):
        run("generate:3", store)


def test_a_job_clears_what_an_earlier_run_of_it_was_writing_and_nothing_else(tmp_path, run):
    left = [tmp_path / "store.partial" / "work" / job / "left" for job in ("1-of-2", "2-of-2")]
    for path in left:
        path.mkdir(parents=True)
    with Partial(tmp_path / "store", "1-of-2").open():
        assert [path.exists() for path in left] == [False, True]
    with Partial(tmp_path / "store").open():
        assert [path.exists() for path in left] == [False, False]


def test_jobs_wait_until_an_interrupted_run_is_finished(tmp_path, run, monkeypatch):
    run("generate:2", tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "_merge", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run("generate:4", tmp_path / "store")
    with pytest.raises(UserError, match=r"has yet to finish .*; run it once without ingest\.shard"):
        run("generate:4", tmp_path / "store", shard="1/2")
    run("generate:4", tmp_path / "store")
    assert len(open_store(tmp_path / "store")) == 4


def test_a_folder_removed_between_opening_and_locking_is_made_anew(tmp_path, monkeypatch):
    """What a job meets that starts in the moment in which another run finishes."""
    partial = Partial(tmp_path / "store")
    lock, calls = fcntl.flock, []

    def late(handle, how):
        if not calls:
            shutil.rmtree(partial.root)
        calls.append(how)
        return lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with partial.open():
        assert (partial.root / "lock").exists()
        assert len(calls) == 2
        with pytest.raises(UserError, match="another ingest"), Partial(tmp_path / "store").open():
            pass


def test_every_source_falls_into_one_share():
    ids = [f"id{number}" for number in range(500)]
    for count in (1, 2, 7):
        shares = [Share.of(f"{number}/{count}") for number in range(1, count + 1)]
        held = [[name for name in ids if share.holds(name)] for share in shares]
        assert sorted(name for part in held for name in part) == sorted(ids)
        assert min(map(len, held)) > 0.6 * len(ids) / count


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", ""])
def test_a_share_that_is_none_is_refused(tmp_path, shard):
    with pytest.raises(UserError, match=r"ingest\.shard"):
        IngestPlan(domain="synthetic", source="generate:2", store=str(tmp_path / "store"), shard=shard)


def test_the_first_of_two_secrets_is_the_one(tmp_path):
    first = make_secret(tmp_path / "private" / "secret")
    assert make_secret(tmp_path / "private" / "secret") == first == read_secret(tmp_path / "private" / "secret")
    assert [path.name for path in (tmp_path / "private").iterdir()] == ["secret"]
