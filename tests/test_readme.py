import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the list is made from git's")
def test_every_file_has_its_line_in_the_readme():
    done = subprocess.run([sys.executable, ".ci/file_list.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
