"""The report: valid against its schema, drawn from it alone, readable by everyone, promising nothing."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

import dinodomain.audit
from dinodomain.audit import Asked, Effort, Policy, draw_report, read_report, run_checks, write_report, write_schema
from dinodomain.audit.checks import CHECKS
from dinodomain.audit.evidence import Private
from dinodomain.audit.finding import GateOutcome, History, Risk, SelfTest
from dinodomain.errors import UserError
from dinodomain.lineage import digest_file

FORBIDDEN = (
    "unbiased", "bias-free", "anonymous", "anonymi[sz]ed", "compliant", "certified", r"private(?![/.])", "safe", "de-?identified",
    "guarantee", "no leakage", "leak-free", "trust score", "fully secure",
)  # fmt: skip
ROOMS = ("checks", "report", "protocol")
NOTICE = "Made-up data <b>&"
FEW = ("overlap",)


@pytest.fixture(scope="module")
def report(make_set, quick):
    data = make_set(num_units=80, leak=3.0)
    columns = data.columns | {"<script>alert(1)</script>": data.columns["sex"]}
    data = make_set(num_units=80, leak=3.0, columns=columns)
    names = ("site", "<script>alert(1)</script>")
    checks = ("overlap", "duplicates", "subgroups", "attribute", "membership", "declaration", "difference", "living")
    return run_checks(
        data, asked=Asked(attributes=names), effort=quick, policy=Policy(), subject={"weights": "ab" * 32}, notice=NOTICE, names=checks
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


def test_page_and_card_come_from_audit_json_alone(paths, tmp_path):
    copy = tmp_path / "audit.json"
    copy.write_bytes(paths.json.read_bytes())
    again = draw_report(copy)
    assert again.html.read_bytes() == paths.html.read_bytes()
    assert again.card.read_bytes() == paths.card.read_bytes()


@pytest.mark.parametrize("word", FORBIDDEN)
def test_the_rendered_text_never_claims(page, paths, word):
    for text in (" ".join(page.words), paths.card.read_text("utf-8")):
        assert not re.search(rf"\b{word}", text, re.IGNORECASE)


def test_names_from_data_are_escaped(paths, page):
    assert "<script" not in paths.html.read_text("utf-8")
    assert "<script" not in paths.card.read_text("utf-8")
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


def test_private_tables_and_their_files_lie_beside_the_report_for_its_owner_alone(report, tmp_path):
    write_report(report, tmp_path, (Private(name="maps", columns={"row": [3, 5]}, files={"maps.png": b"picture"}),))
    folder = tmp_path / "private"
    assert {item.name for item in folder.iterdir()} == {"maps.csv", "maps.png"}
    assert (folder / "maps.csv").read_text("utf-8").split() == ["row", "3", "5"]
    assert (folder / "maps.png").read_bytes() == b"picture"
    assert folder.stat().st_mode & 0o077 == 0
    assert "maps" not in (tmp_path / "SHA256SUMS").read_text("utf-8")


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
    one, two = (run_checks(data, effort=quick, names=FEW).report for _ in range(2))
    assert one.audit_id == two.audit_id
    assert run_checks(make_set(num_units=60, seed=1), effort=quick, names=FEW).report.audit_id != one.audit_id


def test_the_rows_for_probes_are_thinned_without_losing_a_unit(make_set, quick):
    report = run_checks(make_set(num_units=200), effort=quick, max_rows=250, names=FEW).report
    assert report.data["n_rows"] == 400
    assert report.data["n_rows_probed"] == 200


def test_a_missing_column_is_named_with_those_that_exist(make_set, quick):
    with pytest.raises(UserError, match="no column 'sexe'; allowed: age, sex, site, split"):
        run_checks(make_set(), asked=Asked(attributes=("sexe",)), effort=quick)


def _spoken(path):
    """Strings of a module that may reach a reader: all but docstrings, and the names it imports."""
    tree = ast.parse(path.read_text("utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def test_no_text_that_a_check_can_give_claims_what_it_must_not():
    root = Path(dinodomain.audit.__file__).parent
    modules = [path for room in ROOMS for path in (root / room).rglob("*.py")] + [root / name for name in ("gate.py", "complete.py")]
    claims = re.compile("|".join(rf"\b(?:{word})" for word in FORBIDDEN), re.IGNORECASE)
    files = ("private", "safetensors")  # names of a folder and of a file format
    said = [(path.name, text) for path in modules for text in _spoken(path) if claims.search(text) and not text.startswith(files)]
    assert not said
    assert len(modules) > 30


def test_a_report_of_every_check_claims_nothing(make_set, tmp_path, monkeypatch):
    passed = SelfTest(positive="pass", negative="pass")  # the controls have their own tests
    monkeypatch.setattr(dinodomain.audit.run, "CHECKS", [replace(check, self_test=lambda: passed) for check in CHECKS])
    data = make_set(num_units=40, leak=2.0)
    everything = [check.about.name for check in CHECKS]
    effort = Effort(permutations=99, bootstraps=100)
    asked = Asked(attributes=("sex",), task="site", domains=("site",))
    report = run_checks(data, asked=asked, effort=effort, names=everything).report
    assert {finding.check for finding in report.findings} == set(everything)
    written = write_report(report, tmp_path)
    parsed = Text()
    parsed.feed(written.html.read_text("utf-8"))
    for text in (" ".join(parsed.words), written.card.read_text("utf-8")):
        for word in FORBIDDEN:
            assert not re.search(rf"\b(?:{word})", text, re.IGNORECASE), word
    assert all(finding.limits for finding in report.findings)


def test_the_first_page_says_what_a_reviewer_asks_first(report, tmp_path):
    gate = GateOutcome(asked=False, code=4, words="Whether it meets what is asked could not be decided.", undecided=("overlap: few",))
    history = History(number=3, policy_fixed="after", thresholds_changed=2, head="ab")
    told = report.model_copy(
        update={"decision": "release_weights", "gate": gate, "history": history, "supplied_by": "the hospital", "independent": True}
    )
    first = write_report(told, tmp_path).html.read_text("utf-8").partition("</section>")[0]
    for words in (
        "release of the weights", gate.words, "No policy was given", "Overlap: few.", "audit set and metadata", "the hospital",
        "no part in building the model", "audit 3 of this checkpoint; without a policy; thresholds changed 2 times",
        "What could not be assessed, and what would make it assessable", "audit.declaration=new",
    ):  # fmt: skip
        assert words.lower() in first.lower(), words


def test_every_flag_names_action_owner_and_repeat_and_every_finding_its_command(report, tmp_path):
    flagged = [finding for finding in report.findings if finding.verdict == "FLAG"]
    assert flagged
    commanded = tuple(finding.model_copy(update={"command": f"dinodomain audit {finding.check}"}) for finding in report.findings)
    html = write_report(report.model_copy(update={"findings": commanded}), tmp_path).html.read_text("utf-8")
    assert html.count("<dt>Action</dt>") == html.count("<dt>Owner</dt>") == html.count("<dt>A repeat shows</dt>") >= len(flagged)
    assert html.count("<dt>Computed by</dt>") == len(report.findings)


def test_waivers_register_mapping_and_controls_have_their_sections(report, tmp_path):
    waiver = {"finding": "attribute/site", "reason": "known", "owner": "A. B.", "expires": "2020-01-01"}
    told = report.model_copy(
        update={"policy": report.policy | {"waivers": [waiver]}, "register_": {"R2": Risk(relevant=True, owner="C. D.")}}
    )
    html = write_report(told, tmp_path).html.read_text("utf-8")
    for words in (
        "expired: decides nothing",
        "C. D.",
        "Art. 10(2)(f)",
        "MEASURE 2.11",
        "Fairness 3",
        "R3 Military perception",
        "Data owner",
    ):
        assert words in html
    order = [
        html.index(f'id="{name}"')
        for name in ("verdict", "identity", "Q1", "Q4", "register", "compared", "tests", "law", "waivers", "signoff", "words")
    ]
    assert order == sorted(order)
    assert not re.search(r"\b20(2[5-9]|3\d)\b", " ".join(re.findall(r"Art\. [^<]*", html)))  # clauses carry no dates


def test_what_could_not_be_assessed_is_as_large_as_a_flag(paths):
    style = re.search(r"<style>(.*?)</style>", paths.html.read_text("utf-8"), re.DOTALL)[1]
    rules = re.findall(r"(?m)(?:^|\} )\.(FLAG|NOT_ASSESSABLE)\s*\{([^}]*)\}", style)
    assert [name for name, _ in rules] == ["FLAG", "NOT_ASSESSABLE"]
    assert all(body.strip().startswith("background") and "font" not in body for _, body in rules)


def test_a_dark_text_on_each_badge_keeps_its_contrast(paths):
    style = re.search(r"<style>(.*?)</style>", paths.html.read_text("utf-8"), re.DOTALL)[1]
    for colour in re.findall(r"\.[A-Z_]+ \{ background: #([0-9a-f]{6})", style):
        assert _contrast(colour) >= 4.5


def _contrast(colour: str) -> float:
    """Contrast with white (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
