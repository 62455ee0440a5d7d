# SPDX-License-Identifier: MIT
"""The machine and its Pythons: what it is, and one environment a minor with the wheel in it.

Knows nothing of what is measured there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "Python", "describe", "pythons"]

ROOT = Path(__file__).resolve().parents[1]

# What the wheel is made of.
_SOURCES = ("stubgen", "usdt", "pyproject.toml", "README.md", "LICENSE")


class Python:
    """One CPython minor and, once `install` has run, its environment."""

    def __init__(self, minor: str, executable: str) -> None:
        self.minor = minor
        self.executable = executable

    def install(self, scratch: Path) -> None:
        """Build the wheel with this interpreter's own flags and install it, as a user would.

        From a copy: a build in the checkout leaves files there. Raises CalledProcessError.
        """
        source, environment = scratch / f"source-{self.minor}", scratch / f"env-{self.minor}"
        source.mkdir()
        for name in _SOURCES:
            path = ROOT / name
            if path.is_dir():
                ignored = shutil.ignore_patterns("*.so", "__pycache__")
                shutil.copytree(path, source / name, ignore=ignored)
            elif path.exists():
                shutil.copy2(path, source / name)
        _quietly(self.executable, "-m", "venv", "--without-pip", str(environment))
        self.executable = str(environment / "bin" / "python")
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
        _quietly(*pip, "--python", self.executable, "install", "--no-deps", str(source))

    def describe(self) -> str:
        """Version and build: what an empty call costs depends on how the interpreter was built."""
        script = (
            "import platform, sysconfig as s; v = s.get_config_var;"
            "level = [f for f in (v('CFLAGS') or '').split() if f.startswith('-O')][-1:];"
            "print(platform.python_version(), *level, platform.python_compiler(), *[f for f in"
            " ('--enable-optimizations', '--with-lto') if f in (v('CONFIG_ARGS') or '')])"
        )
        return _quietly(self.executable, "-I", "-c", script).strip()

    def nop(self) -> str:
        """The nop kind that this machine traces fastest, and why."""
        script = "from usdt import _nop; print(*_nop.fastest(), sep=': ')"
        return _quietly(self.executable, "-I", "-c", script).strip()


def _quietly(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
    return done.stdout


def pythons() -> list[Python]:
    """Every CPython minor of this machine that can build the extension."""
    lines = _quietly(str(ROOT / ".ci" / "minors")).splitlines()
    return [Python(*line.split(maxsplit=1)) for line in lines]


def describe(found: list[Python]) -> dict[str, str]:
    """What a reader needs to compare these figures with others; all Pythons are installed."""
    return {
        "cpu": f"{_cpu()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "bpftrace": _version("bpftrace", "--version"),
        "cc": _version("cc", "--version"),
        "fastest nop": found[0].nop(),
        **{f"python {python.minor}": python.describe() for python in found},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    guest = ", virtual machine" if any("hypervisor" in line.split() for line in lines) else ""
    return (names[0] if names else platform.machine()) + guest


def _version(tool: str, flag: str) -> str:
    if shutil.which(tool) is None:
        return "not installed"
    return _quietly(tool, flag).splitlines()[0]
