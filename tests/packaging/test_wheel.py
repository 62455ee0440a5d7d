# SPDX-License-Identifier: MIT
"""What is shipped: the sdist holds all that a build needs, the wheel built from it works.

Builds into a temporary directory and installs into an environment of its own, without the
network's help for the installation; what the installed packages do is tested elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FIRE = """\
import usdt, usdt.testing
shop = usdt.Provider("shop")
done = shop.add_probe("order_done", id=usdt.u64)
assert shop.load(), shop.why_not
assert open(shop.paths[0], "rb").read(4) == b"\\x7fELF"
with usdt.testing.capture() as events:
    done(42)
shop.unload()
print(events[0], usdt.__file__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def sources() -> set[str]:
    """The files of the packages that are not made by a build."""
    patterns = ("*.py", "*.pyi", "py.typed", "*.js", "*.css")
    tops = ("stubgen", "usdt", "ustack")
    files = (f for top in tops for p in patterns for f in (ROOT / top).rglob(p))
    return {str(file.relative_to(ROOT)) for file in files}


def test_sdist_holds_what_a_build_needs(built: tuple[Path, Path]) -> None:
    """Every source of the packages, the extension's C, the build file, README and licence."""
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "usdt/_probe.c"} | sources()
    assert needed - names == set()


def test_wheel_holds_the_packages_and_nothing_else(built: tuple[Path, Path]) -> None:
    """Sources, types and the compiled extension; no tests, no documents, no C."""
    with zipfile.ZipFile(built[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    compiled = {name for name in names if name.endswith(".so")}
    assert len(compiled) == 1
    assert names - compiled == sources()


def test_wheel_works_in_a_clean_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Installed without any dependency it loads a stub and fires, and not from the checkout."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=120)
    python = venv / "bin" / "python"
    install = [python, "-I", "-m", "pip", "install", "--quiet", "--no-index", built[1]]
    subprocess.run(install, check=True, timeout=120)
    fire = subprocess.run(
        [python, "-I", "-c", FIRE],
        env={"USDT_STUB_DIR": str(tmp_path / "stubs")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (fire.returncode, fire.stderr) == (0, "")
    assert fire.stdout.startswith(f"shop:order_done id=42 {venv}")
