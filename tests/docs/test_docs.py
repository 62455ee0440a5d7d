# SPDX-License-Identifier: MIT
"""The documentation is true: its Python runs, its links and file names exist.

Knows Markdown's fences and links; nothing of what the examples do.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
# The README's program is half a minute of a service: tests/trace/test_readme.py runs it.
WITH_PYTHON = [page for page in PAGES[1:] if "\n```python\n" in page.read_text()]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """The python blocks of a page are one program that ends well and says nothing bad."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))
    environment = {"USDT_STUB_DIR": str(tmp_path / "stubs"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_pages_with_python_are_found() -> None:
    """The guide and the migration page have Python to run: the test above is not empty."""
    assert {"docs/guide.md", "docs/migrating.md"} <= {name(page) for page in WITH_PYTHON}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the checkout."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_a_page_names_exist(page: Path) -> None:
    """Every `path/file.ext` or `path/` of this project that a page names is in the checkout."""
    named = re.findall(r"`((?:stubgen|usdt|tests|docs|benchmarks)/[\w/.-]*)`", page.read_text())
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == []
