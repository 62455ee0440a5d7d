# SPDX-License-Identifier: MIT
"""What every unit test stands on: a stub directory of its own, no tracer, no setting left over.

Knows files and environment variables; what is declared, fired and expected is each test's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forced import RECORDER, Recorder

import usdt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def stub_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory where this test's stubs go; the machine's own ones are never touched."""
    directory = tmp_path / "usdt"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("USDT_STUB_DIR", str(directory))
    monkeypatch.delenv("USDT_STUB_PATH", raising=False)
    monkeypatch.delenv("USDT_NO_RUNTIME_STUBS", raising=False)
    return directory


@pytest.fixture(autouse=True)
def _lenient() -> object:
    """A test that turns strictness on does not leave it on."""
    yield
    usdt.strict(False)


@pytest.fixture
def shop() -> usdt.Provider:
    """A provider with nothing declared yet."""
    return usdt.Provider("shop")


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, str]]:
    """What goes to sys.unraisablehook while the test runs: exception types and messages."""
    seen: list[tuple[type, str]] = []

    def hook(args: object) -> None:
        seen.append((args.exc_type, str(args.exc_value)))

    monkeypatch.setattr(sys, "unraisablehook", hook)
    return seen


@pytest.fixture
def python(stub_dir: Path, tmp_path: Path) -> Callable[..., str]:
    """Run a program in a new interpreter: it must end with 0 and a silent stderr; its stdout."""

    def run(program: str, *options: str, **environment: str) -> str:
        script = tmp_path / "program.py"
        script.write_text(program)
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "USDT_STUB_DIR": str(stub_dir),
            **environment,
        }
        done = subprocess.run(
            [sys.executable, *options, script], env=env, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture(scope="session")
def compiler() -> str:
    """The C compiler; without one the test is skipped, or fails where CI must have it."""
    path = shutil.which("cc")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("cc is not installed, and CI must have it")
        pytest.skip("needs cc")
    return path


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Recorder:
    """A stub that keeps what it is called with."""
    source = tmp_path_factory.mktemp("recorder") / "recorder.c"
    source.write_text(RECORDER)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return Recorder(str(library))
