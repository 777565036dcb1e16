"""The report: valid against its schema, drawn from it alone, readable by everyone, promising nothing."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from dinodomain.audit import Asked, Policy, decide, draw_report, read_policy, read_report, run_checks, write_report, write_schema
from dinodomain.errors import UserError
from dinodomain.lineage import digest_file

FORBIDDEN = ("unbiased", "anonymous", "compliant", "certified", "private", "safe", "de-identified", "guarantee")
NOTICE = "Made-up data <b>&"


@pytest.fixture(scope="module")
def report(make_set, quick):
    data = make_set(num_units=200, leak=3.0)
    columns = data.columns | {"<script>alert(1)</script>": data.columns["sex"]}
    data = make_set(num_units=200, leak=3.0, columns=columns)
    names = ("site", "<script>alert(1)</script>")
    return run_checks(
        data, asked=Asked(attributes=names), effort=quick, policy=Policy(), subject={"weights": "ab" * 32}, notice=NOTICE
    ).report


@pytest.fixture(scope="module")
def paths(report, tmp_path_factory):
    return write_report(report, tmp_path_factory.mktemp("audit"))


class Text(HTMLParser):
    """Visible text and the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = 0

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag == "style"

    def handle_endtag(self, tag):
        self._hidden -= tag == "style"

    def handle_data(self, data):
        if not self._hidden:
            self.words.append(data)


@pytest.fixture(scope="module")
def page(paths):
    parsed = Text()
    parsed.feed(paths.html.read_text("utf-8"))
    return parsed


def test_audit_json_follows_the_published_schema_and_is_read_back(paths, report):
    body = json.loads(paths.json.read_text("utf-8"))
    schema = json.loads(files("dinodomain.audit").joinpath("audit.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(body, schema, cls=jsonschema.Draft202012Validator)
    assert body["schema"] == "dinodomain.audit/1.0"
    assert read_report(paths.json).audit_id == report.audit_id


def test_the_published_schema_is_that_of_the_models(tmp_path):
    write_schema(tmp_path / "schema.json")
    published = files("dinodomain.audit").joinpath("audit.schema.json").read_text("utf-8")
    assert (tmp_path / "schema.json").read_text("utf-8") == published


def test_the_sums_are_those_of_the_files(paths):
    for line in paths.sums.read_text().splitlines():
        digest, name = line.split("  ")
        assert digest_file(paths.sums.with_name(name)) == digest


def test_html_and_markdown_come_from_audit_json_alone(paths, tmp_path):
    copy = tmp_path / "audit.json"
    copy.write_bytes(paths.json.read_bytes())
    again = draw_report(copy)
    assert again.html.read_bytes() == paths.html.read_bytes()
    assert again.markdown.read_bytes() == paths.markdown.read_bytes()


@pytest.mark.parametrize("word", FORBIDDEN)
def test_the_rendered_text_never_claims(page, paths, word):
    for text in (" ".join(page.words), paths.markdown.read_text("utf-8")):
        assert not re.search(rf"\b{word}", text, re.IGNORECASE)


def test_names_from_data_are_escaped(paths, page):
    assert "<script" not in paths.html.read_text("utf-8")
    assert "<script" not in paths.markdown.read_text("utf-8")
    assert not [tag for tag, _ in page.tags if tag == "script"]


def test_the_page_needs_no_network(paths):
    html = re.sub(r'xmlns(:\w+)?="[^"]*"', "", paths.html.read_text("utf-8"))
    assert not re.search(r"https?://|<link|<img|@import|url\((?!#)", html)


def test_the_notice_stands_in_every_section(paths, page):
    html = paths.html.read_text("utf-8")
    sections = html.count("<section")
    assert html.count("Made-up data &lt;b&gt;&amp;") == sections
    assert sections >= 7


def test_all_four_questions_are_answered_or_said_to_be_not(page, paths):
    text = " ".join(page.words)
    for question in ("Q1.", "Q2.", "Q3.", "Q4."):
        assert question in text
    assert "No task was named" in text
    assert text.count("NOT ASSESSABLE") >= 4


def test_the_page_has_what_a_screen_reader_needs(page):
    assert ("html", {"lang": "en"}) in page.tags
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert [tag for tag, _ in page.tags].count("h1") == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(attrs["href"].removeprefix("#") in ids for tag, attrs in page.tags if tag == "a")


def test_an_altered_or_foreign_report_is_refused(paths, tmp_path):
    body = json.loads(paths.json.read_text("utf-8"))
    body["findings"][0]["verdict"] = "PASS"
    (tmp_path / "audit.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match="findings/0/verdict"):
        read_report(tmp_path / "audit.json")
    with pytest.raises(UserError, match="does not exist"):
        read_report(tmp_path / "none.json")


def test_equal_inputs_give_the_same_audit_id_and_other_seeds_another(make_set, quick):
    data = make_set(num_units=60)
    one, two = (run_checks(data, effort=quick).report for _ in range(2))
    assert one.audit_id == two.audit_id
    assert run_checks(make_set(num_units=60, seed=1), effort=quick).report.audit_id != one.audit_id


def test_the_rows_for_probes_are_thinned_without_losing_a_unit(make_set, quick):
    report = run_checks(make_set(num_units=200), effort=quick, max_rows=250).report
    assert report.data["n_rows"] == 400
    assert report.data["n_rows_probed"] == 200


def test_a_missing_column_is_named_with_those_that_exist(make_set, quick):
    with pytest.raises(UserError, match="no column 'sexe'; allowed: age, sex, site, split"):
        run_checks(make_set(), asked=Asked(attributes=("sexe",)), effort=quick)


def policy(**changes) -> Policy:
    return Policy(**changes)


def test_the_gate_passes_fails_or_cannot_be_decided(make_set, quick):
    data = make_set(num_units=130, leak=3.0)
    fails, clear, unknown = policy(required=("attribute/site",)), policy(required=("overlap",)), policy(required=("membership",))
    codes = [
        decide(run_checks(data, asked=Asked(attributes=("site",)), effort=quick, policy=asked).report, asked).code
        for asked in (fails, clear, unknown)
    ]
    assert codes == [1, 0, 4]


def test_the_gate_refuses_absent_stale_and_foreign_reports(report):
    assert "subgroup: not in the report" in decide(report, policy(required=("subgroup",))).undecided
    assert any("subgroups: NOT_ASSESSABLE (no_task)" in line for line in decide(report, policy(required=("subgroups",))).undecided)
    other = decide(report, Policy(), subject={"weights": "cd" * 32})
    assert other.code == 4
    assert "another weights" in other.undecided[0]
    later = datetime(2100, 1, 1, tzinfo=UTC)
    assert any("days old" in line for line in decide(report, policy(max_age_days=30), now=later).undecided)
    assert any("another policy" in line for line in decide(report, policy(name="mine")).undecided)
    assert decide(report, Policy()).code == 0


def test_a_policy_file_is_read_strictly_with_all_problems_at_once(tmp_path: Path):
    good = tmp_path / "good.yaml"
    good.write_text("name: ours\nrequired: [overlap]\nthresholds: {tau_flag: 0.8}\nexpected: {sex: anatomy}\n")
    assert read_policy(good).thresholds.tau_flag == 0.8
    bad = tmp_path / "bad.yaml"
    bad.write_text("requird: [overlap]\nthresholds: {tau_flag: 7, tau: 1}\n")
    with pytest.raises(UserError) as error:
        read_policy(bad)
    for words in ("requird: unknown key", "thresholds.tau_flag", "thresholds.tau: unknown key"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="No such file"):
        read_policy(tmp_path / "none.yaml")
