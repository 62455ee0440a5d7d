# SPDX-License-Identifier: MIT
"""What a tracer must never do to a program: seccomp, threads, unload, fork, leaks.

Looks at the traced process's life and resources; events are counted where a count is exact.
"""

from __future__ import annotations

import platform
import re
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from harness import StartBpftrace, StartService, patched, sites

# A seccomp filter that kills for every system call newer than rseq(2), 334 on x86-64: the shape
# of a sandbox written before the uprobe system calls. seccomp(2), linux/filter.h.
FILTER = """\
import ctypes, struct
LD_W_ABS, JGT_K, RET_K = 0x20, 0x25, 0x06
KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000
code = b"".join(struct.pack("<HBBI", *row) for row in (
    (LD_W_ABS, 0, 0, 0), (JGT_K, 0, 1, 334), (RET_K, 0, 0, KILL_PROCESS), (RET_K, 0, 0, ALLOW),
))
kept = ctypes.create_string_buffer(code, len(code))
program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(kept))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0
"""

FIRING = """\
import usdt
shop = usdt.Provider("shop", nop={nop!r})
order = shop.add_probe("order", id=usdt.u64)
shop.load(); print("PATH", *shop.paths); started(); wait()
for i in range(211): order(i)
done(); wait()
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers of x86-64")
@pytest.mark.parametrize("nop", [None, "nop1", "nop5"])
def test_under_a_seccomp_filter(
    service: StartService, bpftrace: StartBpftrace, nop: str | None
) -> None:
    """A filter that kills for unknown system calls: the same stub is loaded, fired and traced."""
    control = service(FILTER + "started(); wait(); libc.syscall(337); done()\n")
    control.go()
    assert control.wait() == -signal.SIGSYS

    free = service(FIRING.format(nop=nop))
    (path,) = free.semaphores()
    held = service(FILTER + FIRING.format(nop=nop))
    assert list(held.semaphores()) == [path]
    status = Path(f"/proc/{held.pid}/status").read_text()
    assert "\nSeccomp:\t2\n" in status
    tracer = bpftrace(
        f"usdt:{path}:shop:order {{ @n[pid] = count(); @sum[pid] = sum(arg0); }}",
        attached=lambda: free.listening() == held.listening() == 1,
    )
    for svc in (free, held):
        svc.go()
        svc.done()
    if nop:
        assert sites(held.pid, "shop") == {patched(nop)}
    text = tracer.stop()
    for svc in (free, held):
        assert f"@n[{svc.pid}]: 211\n" in text
        assert f"@sum[{svc.pid}]: {sum(range(211))}\n" in text
        assert svc.running()


@pytest.mark.parametrize("nop", ["nop1", "nop5"])
def test_unload_while_threads_fire(
    service: StartService, bpftrace: StartBpftrace, nop: str
) -> None:
    """Ten rounds of load and unload under four firing threads and a tracer: no crash, no gap."""
    svc = service(
        "import threading, time, usdt\n"
        f"shop = usdt.Provider('shop', nop={nop!r})\n"
        "order = shop.add_probe('order', round=usdt.u64, name=str)\n"
        "shop.load(); started(); wait()\n"
        "round = 0; going = True\n"
        "def fire():\n"
        "    while going: order(round, 'ada')\n"
        "threads = [threading.Thread(target=fire) for _ in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "sys.setswitchinterval(1e-5)\n"
        "for round in range(1, 11):\n"
        "    shop.load(); time.sleep(0.03); shop.unload()\n"
        "going = False\n"
        "for thread in threads: thread.join()\n"
        "done()\n"
    )
    (path,) = svc.semaphores()
    tracer = bpftrace(
        f"usdt:{path}:shop:order {{ @[arg0, str(arg1)] = count(); }}",
        attached=lambda: svc.listening() == 1,
    )
    svc.go()
    assert svc.done().wait() == 0
    rounds = dict(re.findall(r"^@\[(\d+), ada\]: (\d+)$", tracer.stop(), re.M))
    assert {str(i) for i in range(1, 11)} <= rounds.keys()
    assert set(map(int, rounds)) <= set(range(11))
    assert svc.errors.count("\n") <= 10, "one warning a round, at most"


@pytest.mark.parametrize("nop", [None, "nop1"])
def test_fork_while_threads_fire(
    service: StartService, bpftrace: StartBpftrace, nop: str | None
) -> None:
    """Children forked in the middle of traced firing fire on, each counted exactly.

    N.B. A kernel that turns a site into a call gives the child the call, and (seen on 6.18) not
    the trampoline it leads to: there the child's first event is a SIGSEGV, in plain C too.
    """
    svc = service(
        "import os, threading, usdt\n"
        f"shop = usdt.Provider('shop', nop={nop!r})\n"
        "order = shop.add_probe('order', child=usdt.u64)\n"
        "shop.load(); started(); wait()\n"
        "going = True; fired = [0] * 4\n"
        "def fire(i):\n"
        "    while going: order(0); fired[i] += 1\n"
        "threads = [threading.Thread(target=fire, args=(i,)) for i in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "status = []\n"
        "for child in range(1, 21):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        for _ in range(7): order(child)\n"
        "        os._exit(0)\n"
        "    status.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "going = False\n"
        "for thread in threads: thread.join()\n"
        "print('FIRED', sum(fired), 'STATUS', *status); done(); wait()\n"
    )
    (path,) = svc.semaphores()
    tracer = bpftrace(
        f"usdt:{path}:shop:order {{ @[arg0] = count(); }}", attached=lambda: svc.listening() == 1
    )
    svc.go()
    svc.done()
    fired, statuses = re.search(r"FIRED (\d+) STATUS (.*)", svc.text).groups()  # type: ignore[union-attr]
    assert statuses.split() == ["0"] * 20
    assert int(fired) > 100
    counted = {int(k): int(n) for k, n in re.findall(r"^@\[(\d+)\]: (\d+)$", tracer.stop(), re.M)}
    assert counted == {0: int(fired)} | dict.fromkeys(range(1, 21), 7)


@pytest.mark.parametrize("nop", ["nop1", "nop5"])
def test_a_thousand_loads_leave_nothing(
    service: StartService, bpftrace: StartBpftrace, nop: str
) -> None:
    """1000 loads and unloads under one attach: each is counted, maps, fds and files do not grow."""
    svc = service(
        "import os, usdt\n"
        f"shop = usdt.Provider('shop', nop={nop!r})\n"
        "order = shop.add_probe('order', id=usdt.u64)\n"
        "def resources():\n"
        "    maps = open('/proc/self/maps').read()\n"
        "    return maps.count('\\n'), maps.count('/shop-'), len(os.listdir('/proc/self/fd'))\n"
        "def rounds(n):\n"
        "    for i in range(n): shop.load(); order(i); shop.load(); order(i); shop.unload()\n"
        "shop.load(); started(); wait(); shop.unload()\n"
        "rounds(20); before = resources()\n"
        "rounds(980); print('BEFORE', *before); print('AFTER', *resources()); done(); wait()\n"
    )
    (path,) = svc.semaphores()
    tracer = bpftrace(
        f"usdt:{path}:shop:order {{ @ = count(); }}", attached=lambda: svc.listening() == 1
    )
    svc.go()
    svc.done()
    before = re.search(r"BEFORE (\d+) (\d+) (\d+)", svc.text).groups()  # type: ignore[union-attr]
    after = re.search(r"AFTER (\d+) (\d+) (\d+)", svc.text).groups()  # type: ignore[union-attr]
    assert after[1:] == before[1:]
    assert before[1] == "0", "unloaded, the stub is not mapped"
    # The heap may come as another line or two; a thousand leaks would be a thousand.
    assert int(after[0]) - int(before[0]) < 10
    assert "@: 2000\n" in tracer.stop()
    assert [file.name for file in Path(path).parent.iterdir()] == [Path(path).name]


def test_killed_programs_leave_one_file(service: StartService, tracer: None) -> None:
    """However many processes are killed while loaded, the next one finds the same file."""
    paths = set()
    for _ in range(5):
        svc = service(FIRING.format(nop="nop1"))
        paths |= set(svc.semaphores())
        svc.kill()
    (path,) = paths
    assert [file.name for file in Path(path).parent.iterdir()] == [Path(path).name]


def test_a_stub_is_mapped_without_holes(service: StartService, tracer: None) -> None:
    """Its segments lie side by side, each of them a few pages, none both writable and code."""
    svc = service(FIRING.format(nop="nop5"))
    (path,) = svc.semaphores()
    lines = Path(f"/proc/{svc.pid}/maps").read_text().splitlines()
    spans = [line.split()[:2] for line in lines if line.endswith(path)]
    at = [tuple(int(x, 16) for x in span.split("-")) for span, _ in spans]
    assert all(left[1] == right[0] for left, right in pairwise(at))
    assert at[-1][1] - at[0][0] <= 64 * 1024
    rights = [given for _, given in spans]
    assert "r-xp" in rights
    assert "rw-p" in rights
    assert not any("w" in given and "x" in given for given in rights)
    assert not any(given.startswith("---") for given in rights)


def test_exit_while_threads_fire(service: StartService, bpftrace: StartBpftrace) -> None:
    """Interpreter shutdown with daemon threads in the middle of traced firing ends with 0."""
    svc = service(
        "import threading, time, usdt\n"
        "shop = usdt.Provider('shop')\n"
        "order = shop.add_probe('order', id=usdt.u64, name=str)\n"
        "shop.load(); started(); wait()\n"
        "def fire():\n"
        "    while True: order(1, 'ada')\n"
        "for _ in range(4): threading.Thread(target=fire, daemon=True).start()\n"
        "time.sleep(0.2)\n"
        "class AtExit:\n"
        "    def __del__(self): order(2, 'last')\n"
        "kept = AtExit(); order.kept = kept\n"
        "done()\n"
    )
    (path,) = svc.semaphores()
    tracer = bpftrace(
        f"usdt:{path}:shop:order {{ @[arg0] = count(); }}", attached=lambda: svc.listening() == 1
    )
    svc.go()
    assert svc.wait() == 0
    assert svc.errors == ""
    assert int(re.search(r"^@\[1\]: (\d+)$", tracer.stop(), re.M)[1]) > 100  # type: ignore[index]
