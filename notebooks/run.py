"""Runs every notebook here in a fresh kernel and fails on the first error; nothing is written back. Outputs are never committed."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def main() -> int:
    """Runs the notebooks named on the command line, or all of them; returns the exit code."""
    files = [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb"))
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        if any(cell.get("outputs") for cell in notebook.cells):
            print(f"{file.name}: holds outputs; strip them before committing", file=sys.stderr)
            return 1
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}})
            asyncio.run(client.async_execute())
        print(f"{file.name}: {len(notebook.cells)} cells in {time.monotonic() - began:.0f} s")
    print(f"{len(files)} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
