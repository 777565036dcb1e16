"""Keeps the README's list of files true: one line a file, taken from the first line of its docstring or leading comment.

``python .ci/file_list.py`` exits 1 where the list is out of date; ``--write`` brings it up to date.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
START, END = "<!-- files: start (python .ci/file_list.py --write) -->", "<!-- files: end -->"
ENDINGS = {".py", ".yaml", ".toml", ".def", ".txt", ".ipynb", ".md", ""}


def tracked() -> list[Path]:
    """Files that git tracks or would track, tests apart from their folders left out of the list."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(line) for line in sorted(set(out.splitlines())) if (ROOT / line).is_file()]


def listed(path: Path) -> bool:
    """Whether a file has its own line: tests are listed by folder, empty markers not at all."""
    return path.suffix in ENDINGS and path.parts[0] != "tests" and path.name not in (".gitignore", "py.typed", "LICENSE")


def first_line(path: Path) -> str:
    """What a file says of itself in its first line."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    named = {
        "pyproject.toml": "packaging, dependencies with reasons, and the settings of every checker",
        "constraints.txt": "the versions that were tested together",
        "README.md": "this page",
        "CHANGELOG.md": "what changed, a line for each change a user can see",
        "CONTRIBUTING.md": "where things go, and the rules of the house",
        "experiments.md": "what was tried and did not work, with dates and numbers",
        "benchmarks/RESULTS.md": "the last full tables, wins and losses",
        "Makefile": "install, demo, test, lint, bench, notebooks: each does its own set-up",
        ".ci/run": "what continuous integration runs",
        ".pre-commit-config.yaml": "the same checks on each commit",
    }
    if str(path) in named:
        return named[str(path)]
    if path.suffix == ".ipynb":
        import json

        heading = json.loads(text)["cells"][0]["source"]
        return "".join(heading).split("\n")[0].lstrip("# ")
    comments = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#") and not line.startswith(("#!", "# @"))]
    return comments[0] if comments else ""


def section() -> str:
    """The list, a heading for each folder."""
    lines: list[str] = []
    folder: Path | None = None
    for path in sorted(filter(listed, tracked()), key=lambda path: (path.parent.parts, path.name)):
        if path.parent != folder:
            folder = path.parent
            lines.append(f"\n**{'top level' if folder == Path('.') else folder.as_posix() + '/'}**\n")
        what = first_line(path)
        if not what:
            raise SystemExit(f"{path} does not say what it is: give it a docstring or a leading comment")
        lines.append(f"- `{path.name}`: {what}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Checks or writes the list."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    wanted = f"{before}{START}\n{section()}\n{END}{after}"
    if "--write" in sys.argv:
        readme.write_text(wanted, encoding="utf-8")
    elif wanted != readme.read_text(encoding="utf-8"):
        raise SystemExit("the list of files in README.md is out of date: run python .ci/file_list.py --write")


if __name__ == "__main__":
    main()
