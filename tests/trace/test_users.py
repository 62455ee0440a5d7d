# SPDX-License-Identifier: MIT
"""Programs of ordinary users, traced by root: where their stubs lie, and who shares them.

Uses the real directories, under a provider name that is this test's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Service, StartBpftrace, StartService

NOBODY = 65534

# The checkout and its Python may lie in root's home: imports come first.
SERVICE = """\
import os, usdt
if {user}:
    os.setgroups([])
    os.setresgid({user}, {user}, {user})
    os.setresuid({user}, {user}, {user})
shop = usdt.Provider("{provider}")
order = shop.add_probe("order", id=usdt.u64, customer=str)
shop.load(); print("PATH", *shop.paths); started(); wait()
for i in range(23): order(2**33 + 7, "Zoë")
done(); wait()
"""

SCRIPT = "usdt:{path}:{provider}:order {{ @[uid, arg0, str(arg1)] = count(); }}"


@pytest.fixture
def provider() -> Iterator[str]:
    """A provider name of this test alone; its stubs are removed from the shared directories."""
    name = f"usdt_test_{os.getpid()}"
    run = Path("/run/usdt")
    mine = Path(f"/tmp/usdt-{NOBODY}")
    existed = {path: path.exists() for path in (run, mine)}
    yield name
    for path, before in existed.items():
        for stub in path.glob(f"{name}-*.so"):
            stub.unlink()
        if not before and path.exists() and not any(path.iterdir()):
            path.rmdir()


@pytest.fixture
def started(service: StartService, provider: str) -> Callable[..., tuple[Service, str]]:
    """started(user, **env) -> the service and the path of its stub."""

    def start(user: int, **env: str) -> tuple[Service, str]:
        unset = {"USDT_STUB_DIR": "", "XDG_RUNTIME_DIR": ""}
        svc = service(SERVICE.format(user=user, provider=provider), env=unset | env)
        found = re.search(r"^PATH (.+)$", svc.text, re.M)
        assert found, svc.errors
        return svc, found[1]

    return start


@pytest.mark.parametrize("place", ["tmp", "runtime"])
def test_nobody_is_traced_by_root(
    started: Callable[..., tuple[Service, str]],
    bpftrace: StartBpftrace,
    provider: str,
    stubs: Path,
    place: str,
) -> None:
    """A program without any privilege prints its stub's path; root attaches and counts it."""
    runtime = stubs / "runtime"
    runtime.mkdir()
    os.chown(runtime, NOBODY, NOBODY)
    env = {"XDG_RUNTIME_DIR": str(runtime)} if place == "runtime" else {}
    svc, path = started(NOBODY, **env)
    home = f"{runtime}/usdt" if place == "runtime" else f"/tmp/usdt-{NOBODY}"
    assert re.fullmatch(rf"{home}/{provider}-[0-9a-f]{{16}}\.so", path)
    assert os.stat(path).st_uid == NOBODY
    tracer = bpftrace(
        SCRIPT.format(path=path, provider=provider), attached=lambda: svc.listening() == 1
    )
    svc.go()
    svc.done()
    assert f"@[{NOBODY}, 8589934599, Zoë]: 23\n" in tracer.stop()


def test_roots_stub_serves_everybody(
    started: Callable[..., tuple[Service, str]], bpftrace: StartBpftrace, provider: str
) -> None:
    """What root has placed in /run/usdt others map too, and one attach sees all of them."""
    roots, path = started(0)
    assert path.startswith("/run/usdt/")
    others, same = started(NOBODY)
    assert same == path
    tracer = bpftrace(
        SCRIPT.format(path=path, provider=provider),
        attached=lambda: roots.listening() == others.listening() == 1,
    )
    for svc in (roots, others):
        svc.go()
        svc.done()
    text = tracer.stop()
    assert "@[0, 8589934599, Zoë]: 23\n" in text
    assert f"@[{NOBODY}, 8589934599, Zoë]: 23\n" in text


def test_a_users_program_does_not_use_what_another_user_placed(
    started: Callable[..., tuple[Service, str]], tracer: None, stubs: Path
) -> None:
    """A stub directory of a third user is passed over, whatever is in it."""
    foreign = stubs / "foreign"
    foreign.mkdir()
    os.chown(foreign, 12345, 12345)
    _, path = started(NOBODY, USDT_STUB_DIR=str(foreign))
    assert path.startswith(f"/tmp/usdt-{NOBODY}/")
    assert list(foreign.iterdir()) == []
