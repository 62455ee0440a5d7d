# SPDX-License-Identifier: MIT
"""A type checker sees a decorated probe as the function it was.

The cases are in typing_cases.py; this runs mypy over them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_probe_type_checks_like_its_function(tmp_path: Path) -> None:
    """mypy --strict finds every wrong call of the cases, and nothing else."""
    if find_spec("mypy") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mypy is not installed, and CI must have it: pip install -e '.[dev]'")
        pytest.skip("needs mypy: pip install -e '.[dev]'")
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--no-error-summary",
            "--python-version", "3.11", "--cache-dir", tmp_path,
            Path(__file__).with_name("typing_cases.py"),
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
