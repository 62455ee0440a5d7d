# SPDX-License-Identifier: MIT
"""The semaphore under real tracers: 0, 1 while somebody listens, 0 again, however they leave.

Looks at what a program sees (`bool(probe)`) and at the memory behind it; events are counted too.
"""

from __future__ import annotations

import os
import re

import pytest
from harness import Service, StartBpftrace, StartService, patched, sites, wait_until

# Answers each line of its input with what the program sees: is anybody listening?
SERVICE = """\
import os, usdt
shop = usdt.Provider("shop")
order = shop.add_probe("order", id=usdt.u64)
shop.load(); started()
while wait():
    seen = int(bool(order)), int(order.enabled)
    order(2**33 + 7)
    order.lazy(lambda: print("LAZY", flush=True) or (1,))
    print("enabled", *seen, flush=True)  # last: who reads it may end its tracer
"""

SCRIPT = "usdt:{path}:shop:order {{ @[pid] = count(); }}"


def told(svc: Service) -> int:
    """What a service says to the next `go()`: is its probe enabled?"""
    before = svc.text.count("enabled")
    svc.go()
    wait_until(lambda: svc.text.count("enabled") > before, "an answer")
    truth, attribute = re.findall(r"^enabled (\d) (\d)", svc.text, re.M)[-1]
    assert truth == attribute
    return int(truth)


@pytest.mark.parametrize("nop", ["nop1", "nop5"])
@pytest.mark.parametrize("how", ["path", "pid"])
def test_rises_and_falls(
    service: StartService, bpftrace: StartBpftrace, how: str, nop: str
) -> None:
    """0 -> 1 -> 0 for each way to attach, and the site's own byte is back afterwards."""
    svc = service(SERVICE.replace('Provider("shop")', f'Provider("shop", nop="{nop}")'))
    ((path, values),) = svc.semaphores().items()
    before = sites(svc.pid, "shop")
    assert values == [0]
    assert told(svc) == 0
    for _ in range(2):
        tracer = bpftrace(
            SCRIPT.format(path=path),
            *(["-p", str(svc.pid)] if how == "pid" else []),
            attached=lambda: svc.listening() == 1,
        )
        assert svc.semaphores() == {path: [1]}
        assert told(svc) == 1
        assert told(svc) == 1
        assert sites(svc.pid, "shop") == {patched(nop)}
        assert f"@[{svc.pid}]: 4" in tracer.stop()
        wait_until(lambda: svc.semaphores() == {path: [0]}, "the semaphore to fall")
        assert told(svc) == 0
        assert sites(svc.pid, "shop") == before
    assert svc.text.count("LAZY") == 4


def test_rises_in_a_process_that_starts_later(
    service: StartService, bpftrace: StartBpftrace
) -> None:
    """A tracer that attached by path before the process was born is seen from its first load."""
    first = service(SERVICE)
    (path,) = first.semaphores()
    tracer = bpftrace(SCRIPT.format(path=path), attached=lambda: first.listening() == 1)
    later = service(SERVICE)
    assert later.semaphores() == {path: [1]}
    assert told(later) == 1
    assert f"@[{later.pid}]: 2" in tracer.stop()
    wait_until(lambda: later.listening() == first.listening() == 0, "the semaphores to fall")


def test_rises_when_nobody_has_the_stub_yet(service: StartService, bpftrace: StartBpftrace) -> None:
    """A stub file that no process maps can be attached; the first one that does is traced."""
    gone = service(SERVICE)
    (path,) = gone.semaphores()
    gone.kill()
    tracer = bpftrace(SCRIPT.format(path=path))
    svc = service(SERVICE)
    assert told(svc) == 1
    assert f"@[{svc.pid}]: 2" in tracer.stop()


def test_follows_fork_and_exec(service: StartService, bpftrace: StartBpftrace) -> None:
    """Children of fork count as their parent does, before and after the tracer comes and goes.

    After exec nothing of the stub is left, and the new program loads it again.
    """
    svc = service(
        "import os, usdt\n"
        "shop = usdt.Provider('shop')\n"
        "order = shop.add_probe('order', id=usdt.u64)\n"
        "shop.load()\n"
        "r, w = os.pipe()\n"
        "before = os.fork()\n"
        "if before == 0:\n"
        "    os.close(w)\n"
        "    os.read(r, 1)\n"
        "    for i in range(11): order(i)\n"
        "    os._exit(int(bool(order)))\n"
        "started(); wait()\n"
        "os.close(w)\n"
        "after = os.fork()\n"
        "if after == 0:\n"
        "    for i in range(13): order(i)\n"
        "    os._exit(int(bool(order)))\n"
        "def status(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "print('BEFORE', before, status(before))\n"
        "print('AFTER', after, status(after), flush=True)\n"
        "again = ('import usdt; shop = usdt.Provider(\"shop\");'\n"
        "    'order = shop.add_probe(\"order\", id=usdt.u64); shop.load();'\n"
        '    \'[order(i) for i in range(17)]; print("EXEC", int(bool(order))); print("DONE!")\')\n'
        "os.execv(sys.executable, [sys.executable, '-c', again])\n"
    )
    (path,) = svc.semaphores()
    tracer = bpftrace(SCRIPT.format(path=path), attached=lambda: svc.listening() == 1)
    svc.go()
    svc.done()
    svc.wait()
    said = dict(re.findall(r"^(BEFORE|AFTER|EXEC) (.*)$", svc.text, re.M))
    before, before_enabled = said["BEFORE"].split()
    after, after_enabled = said["AFTER"].split()
    assert (before_enabled, after_enabled, said["EXEC"]) == ("1", "1", "1")
    counted = dict(re.findall(r"^@\[(\d+)\]: (\d+)$", tracer.stop(), re.M))
    assert counted == {before: "11", after: "13", str(svc.pid): "17"}


def test_falls_when_the_tracer_is_killed(service: StartService, bpftrace: StartBpftrace) -> None:
    """SIGKILL of the tracer, in the middle of firing, leaves nothing listening and no patch."""
    svc = service(
        SERVICE.replace(
            "while wait():\n",
            "import threading\n"
            "def fire():\n"
            "    while True: order(1)\n"
            "for _ in range(2): threading.Thread(target=fire, daemon=True).start()\n"
            "while wait():\n",
        )
    )
    (path,) = svc.semaphores()
    untraced = sites(svc.pid, "shop")
    for _ in range(3):
        tracer = bpftrace(SCRIPT.format(path=path), attached=lambda: svc.listening() == 1)
        assert told(svc) == 1
        tracer.kill()
        wait_until(lambda: svc.semaphores() == {path: [0]}, "the semaphore to fall")
        assert told(svc) == 0
        assert sites(svc.pid, "shop") == untraced
    assert svc.running()
    assert svc.errors == ""


def test_two_tracers_count_alike(service: StartService, bpftrace: StartBpftrace) -> None:
    """Two tracers see every event each; it stays enabled until both have left."""
    svc = service(SERVICE)
    (path,) = svc.semaphores()
    one = bpftrace(SCRIPT.format(path=path), attached=lambda: svc.listening() == 1)
    two = bpftrace(SCRIPT.format(path=path))
    assert told(svc) == 1
    assert f"@[{svc.pid}]: 2" in one.stop()
    assert told(svc) == 1
    assert f"@[{svc.pid}]: 4" in two.stop()
    wait_until(lambda: svc.listening() == 0, "the semaphore to fall")
    assert told(svc) == 0


def test_unload_takes_the_probes_from_a_tracer(
    service: StartService, bpftrace: StartBpftrace
) -> None:
    """Unloaded under a tracer the probe is silent; loaded again it is traced by the same attach."""
    svc = service(
        "import usdt\n"
        "shop = usdt.Provider('shop')\n"
        "order = shop.add_probe('order', id=usdt.u64)\n"
        "shop.load(); started(); wait()\n"
        "order(1); shop.unload(); print('UNLOADED', bool(order))\n"
        "for i in range(100): order(i)\n"
        "shop.load(); print('LOADED', bool(order))\n"
        "order(1); order(2); done(); wait()\n"
    )
    (path,) = svc.semaphores()
    tracer = bpftrace(SCRIPT.format(path=path), attached=lambda: svc.listening() == 1)
    svc.go()
    svc.done()
    assert "UNLOADED False" in svc.text
    assert "LOADED True" in svc.text
    assert f"@[{svc.pid}]: 3" in tracer.stop()
    assert svc.errors.count("\n") == 1, "one line that says it was fired while not loaded"
    wait_until(lambda: svc.semaphores() == {path: [0]}, "the semaphore to fall")
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
