# SPDX-License-Identifier: MIT
"""./demo, ./check and .ci/run where they may not install anything: one line, and exit code 3.

Runs them with an empty PATH of its own making; what they start when all is there is not run
from here, for ./check would start itself.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What the scripts themselves use of a system; no Python, compiler, make, apt or sudo.
COMMANDS = ("cat", "dirname", "env", "grep", "id", "mktemp", "rm", "sh", "tail")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts alone, below a directory with a space in its name."""
    top = tmp_path / "a checkout"
    (top / ".ci").mkdir(parents=True)
    for name in ("demo", "check", ".ci/run", ".ci/setup"):
        shutil.copy(ROOT / name, top / name)
    return top


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory for PATH with little more than a shell."""
    path = tmp_path / "bin"
    path.mkdir()
    for command in COMMANDS:
        found = shutil.which(command)
        assert found, command
        (path / command).symlink_to(found)
    return path


def run(script: Path, path: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, script],
        env={"PATH": str(path), "CI": "true"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", ["demo", "check", ".ci/run", ".ci/minors"])
def test_script_is_executable_and_parses(name: str) -> None:
    """Each has its executable bit, and dash or bash finds no syntax error."""
    script = ROOT / name
    assert script.stat().st_mode & stat.S_IXUSR
    shell = "bash" if "bash" in script.read_text().partition("\n")[0] else "sh"
    subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize("name", ["demo", "check"])
def test_says_what_is_missing_without_apt(name: str, checkout: Path, bare: Path) -> None:
    """With no Python, compiler or make and no apt-get, it names the packages and exits with 3."""
    setup = checkout / ".ci/setup"
    setup.write_text(setup.read_text().replace(" /usr/bin/python3", ""))
    done = run(checkout / name, bare)
    assert done.returncode == 3, done.stdout
    assert f"{name}: no apt-get here to install the Debian packages: python3" in done.stdout
    for package in ("python3-venv", "python3-dev", "gcc", "make", "bpftrace"):
        assert package in done.stdout


def test_says_that_a_checkout_is_read_only(checkout: Path, bare: Path) -> None:
    """Where nothing may be written it says so in one line, and exits with 3."""
    # Root writes anywhere, unless it gives up the capability that lets it.
    setpriv = shutil.which("setpriv") or "setpriv"
    prefix = [setpriv, "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    checkout.chmod(0o555)
    try:
        done = run(checkout / "demo", bare, *prefix)
    finally:
        checkout.chmod(0o755)
    assert done.returncode == 3, done.stdout
    assert done.stdout == (
        "demo: this checkout is read-only: copy it (cp -R . /tmp/usdt-toolkit) and run it there\n"
    )
