# SPDX-License-Identifier: MIT
"""Fixtures of the tests here: a service, a stub directory, an attached bpftrace; ended by the end.

Must know nothing of what is declared, fired and expected; the processes themselves are `harness`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import (
    PRELUDE,
    Bpftrace,
    Service,
    StartBpftrace,
    StartService,
    environment,
    wait_until,
)

# The most that bpftrace 0.17 takes, by its old and its new name; later versions mark what they cut
# with dots, unless told.
ROOM = {
    "BPFTRACE_STRLEN": "200",
    "BPFTRACE_MAX_STRLEN": "200",
    "BPFTRACE_STR_TRUNC_TRAILER": "",
}


def _missing() -> str:
    """Why nothing can be traced here, or ''."""
    if os.geteuid() != 0:
        return "not root"
    if shutil.which("bpftrace") is None:
        return "no bpftrace (apt-get install bpftrace)"
    return ""


@pytest.fixture
def tracer() -> None:
    """Skip the test where nothing can be traced; fail it where CI says that it must be."""
    reason = _missing()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, but {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def stubs(tmp_path: Path) -> Iterator[Path]:
    """A stub directory of this test alone, which any user may read."""
    # Not below tmp_path: pytest makes its parents 0700, and services may run as somebody else.
    path = Path(f"/tmp/usdt-test-{os.getpid()}-{tmp_path.name}")
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def service(stubs: Path) -> Iterator[StartService]:
    """service(source, *, env={}, user=None) -> a Service that said STARTED!

    It finds the packages of this checkout and keeps its stubs in `stubs`; it is killed, if it
    still runs, when the test ends.
    """
    with ExitStack() as stack:

        def start(
            source: str,
            *,
            env: dict[str, str] | None = None,
            user: int | None = None,
            python: str = sys.executable,
        ) -> Service:
            full = environment() | {"USDT_STUB_DIR": str(stubs)} | (env or {})
            child = Service([python, "-c", PRELUDE + source], env=full, user=user)
            stack.callback(child.kill)
            return child.started()

        yield start


@pytest.fixture
def bpftrace(tracer: None) -> Iterator[StartBpftrace]:
    """bpftrace(script, *args, attached=lambda: ..., seconds=20) -> a Bpftrace that is attached.

    attached: what must be true besides, such as `lambda: svc.listening() == 2`, to be sure that
    it found all of the probes. The script is made to end itself after `seconds`; `stop()` ends
    it before.
    """
    with ExitStack() as stack:

        def start(
            script: str,
            *args: str,
            attached: Callable[[], object] | None = None,
            seconds: int = 20,
            env: dict[str, str] | None = None,
        ) -> Bpftrace:
            whole = f"{script}\ninterval:s:{seconds} {{ exit(); }}\n"
            full = dict(os.environ) | ROOM | (env or {})
            child = Bpftrace(["bpftrace", *args, "-e", whole], env=full)
            stack.callback(child.kill)
            also = attached or (lambda: True)
            wait_until(
                lambda: not child.running() or (also() and child.polling()),
                f"bpftrace to attach {script}",
            )
            if not child.running():
                child.wait()
                raise AssertionError(f"bpftrace ended:\n{child.errors}{child.text}")
            return child

        yield start
