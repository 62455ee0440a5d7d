# SPDX-License-Identifier: MIT
"""Threads, garbage, forks, interpreters and their end: never a crash, never a leak.

Programs that could bring the test runner down run in an interpreter of their own; each must end
with 0 and a silent stderr.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable

import pytest
from forced import force, mappings

import usdt
from usdt import stubfile, u64

Python = Callable[..., str]

# Every probe below is listened to as soon as it is loaded.
CORE = """
import time
from always_on import always_on
always_on()
import usdt
shop = usdt.Provider("shop")
@shop.probe
def order(id: usdt.u64, customer: str = "ada", data: bytes = b"x") -> None: ...
def fire():
    assert order(1) is None
    assert order.fire(2, customer="Grüße", data=bytearray(b"y")) is None
    assert order.lazy(lambda: (3, "eve", b"")) is None
"""
ON = f"import os, sys, threading, warnings\n{CORE}"


# --- unloading in the middle


class Unloads:
    """An argument whose conversion unloads its provider, and may load it again."""

    def __init__(self, provider: usdt.Provider, again: bool) -> None:
        self.provider = provider
        self.again = again

    def __index__(self) -> int:
        self.provider.unload()
        gc.collect()
        if self.again:
            self.provider.load()
            force(self.provider.probes[0])
        return 1


@pytest.mark.parametrize("again", [False, True], ids=["unload", "reload"])
def test_an_argument_may_unload_its_probe(shop: usdt.Provider, again: bool) -> None:
    """After the conversion the stub is gone or another one: neither is called wrongly."""
    probe = shop.add_probe("event", **{f"a{i}": u64 for i in range(12)})
    for _ in range(50):
        shop.load()
        force(probe)
        assert probe(*[0] * 11, Unloads(shop, again)) is None
        assert probe.loaded is again
        assert bool(probe) is again


@pytest.mark.parametrize("again", [False, True], ids=["unload", "reload"])
def test_a_lazy_callable_may_unload_its_probe(shop: usdt.Provider, again: bool) -> None:
    """The tuple is fired into what is loaded then."""
    probe = shop.add_probe("event", value=u64)
    for _ in range(50):
        shop.load()
        force(probe)
        assert probe.lazy(lambda: (int(Unloads(shop, again).__index__()),)) is None
        assert probe.loaded is again


def test_a_listener_may_unload_its_probe(shop: usdt.Provider) -> None:
    """The event was heard; the stub is gone before it would have been called."""
    probe = shop.add_probe("event", value=u64)
    for _ in range(50):
        shop.load()
        force(probe)
        probe._listener = lambda probe, values: shop.unload()
        assert probe(1) is None
        assert not probe.loaded
        probe._listener = None


def test_a_report_may_unload_its_probe(
    shop: usdt.Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sys.unraisablehook is Python code like any other."""
    probe = shop.add_probe("event", value=u64)
    monkeypatch.setattr(sys, "unraisablehook", lambda args: shop.unload())
    shop.load()
    force(probe)
    assert probe("wrong") is None
    assert (probe.loaded, probe.dropped) == (False, 1)


def test_an_argument_may_drop_the_last_reference(shop: usdt.Provider) -> None:
    """The probe that is being called stays until its call has returned."""
    holder = [shop.add_probe("event", value=u64, text=str)]
    shop.load()
    force(holder[0])

    class Drops:
        def __index__(self) -> int:
            holder.clear()
            shop._probes.clear()
            gc.collect()
            return 1

    assert holder[0](Drops(), "x" * 100) is None
    assert holder == []


# --- garbage


def test_a_probe_keeps_its_provider() -> None:
    """The provider's variable may go: the probe still fires, loads and unloads."""
    probe = usdt.Provider("shop").add_probe("event", value=u64)
    gc.collect()
    assert probe.provider.load()
    gc.collect()
    force(probe)
    assert probe
    assert probe(1) is None
    probe.provider.unload()
    assert not probe


def test_garbage_unmaps_its_stub() -> None:
    """Provider and probes are a cycle; collected, nothing of them is left."""
    provider = usdt.Provider("garbage")
    probe = provider.add_probe("event")
    provider.load()
    path = provider.paths[0]
    assert len(mappings(path)) >= 3
    gone = [weakref.ref(provider), weakref.ref(probe)]
    del provider, probe
    assert mappings(path) == []
    assert [reference() for reference in gone] == [None, None]


def test_garbage_closes_its_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor of a stub in memory goes with it."""
    monkeypatch.setattr(stubfile, "directories", list)
    before = os.listdir("/proc/self/fd")
    provider = usdt.Provider("garbage")
    provider.add_probe("event")
    provider.load()
    assert provider.paths[0].startswith("/proc/")
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    del provider
    gc.collect()
    assert os.listdir("/proc/self/fd") == before


def test_garbage_with_finalizers_may_fire() -> None:
    """A finalizer of the same garbage still has its probe, cleared or not."""
    fired = []

    class Owner:
        def __init__(self) -> None:
            self.provider = usdt.Provider("garbage")
            self.probe = self.provider.add_probe("event", value=u64)
            self.provider.load()
            force(self.probe)
            self.probe.owner = self

        def __del__(self) -> None:
            fired.append((self.probe(1), self.probe.lazy(lambda: (2,)), bool(self.probe)))

    for _ in range(20):
        Owner()
    gc.collect()
    assert len(fired) == 20
    assert {result[:2] for result in fired} == {(None, None)}


def test_fires_keep_no_reference(shop: usdt.Provider) -> None:
    """100 000 enabled fires, good and bad, leave every count as it was."""
    probe = shop.add_probe("event", a=u64, b=str, c=bytes, d=float)
    shop.load()
    force(probe)
    heard = []
    values = (2**63 + 1, "caf\udce9", bytearray(b"x"), 1.5)
    wrong = (2**63 + 1, "caf\udce9", bytearray(b"x"), "no float")
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: None
    try:
        gc.collect()
        none = sys.getrefcount(None)
        counts = [sys.getrefcount(thing) for thing in (*values, *wrong, probe, shop)]
        blocks = sys.getallocatedblocks()
        for _ in range(25_000):
            probe(*values)
            probe(a=values[0], b=values[1], c=values[2], d=values[3])
            probe.lazy(lambda: values)
            probe(*wrong)
        listener = functools.partial(lambda _, values: heard.append(len(values)))
        references = sys.getrefcount(listener)
        probe._listener = listener
        for _ in range(10):
            probe(*values)
        assert sys.getrefcount(listener) == references + 1
        probe._listener = None
        assert sys.getrefcount(listener) == references
        gc.collect()
        assert [sys.getrefcount(thing) for thing in (*values, *wrong, probe, shop)] == counts
        assert abs(sys.getallocatedblocks() - blocks) < 200
        assert abs(sys.getrefcount(None) - none) < 200
    finally:
        sys.unraisablehook = hook
    assert (probe.dropped, heard) == (25_000, [4] * 10)


def test_a_thousand_loads_grow_nothing(python: Python) -> None:
    """Mappings and descriptors are as before, and memory nearly so; by file and by memfd."""
    program = f"""{ON}
import gc
from usdt import stubfile
def state():
    gc.collect()
    with open("/proc/self/maps") as maps:
        stubs = sum("shop-" in line for line in maps)
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return stubs, len(os.listdir("/proc/self/fd")), resident
def rounds(count):
    for _ in range(count):
        assert shop.load()
        fire()
        shop.unload()
for _ in range(2):
    rounds(100)
    stubs, fds, resident = state()
    assert stubs == 0
    rounds(1000)
    after = state()
    assert after[:2] == (stubs, fds), (after, stubs, fds)
    assert after[2] - resident < 512 * 1024, (after, resident)
    stubfile.directories = list
"""
    python(program)


def test_a_thousand_providers_grow_nothing(python: Python) -> None:
    """Providers that come and go leave no mapping, no descriptor, and no probe to be found."""
    program = f"""{ON}
import gc
from usdt import provider
def once(i):
    shop = usdt.Provider("other")
    shop.add_probe(f"event_{{i % 7}}", value=usdt.u64)
    assert shop.load()
    shop.probes[0](i)
def state():
    gc.collect()
    with open("/proc/self/maps") as maps:
        return sum("other-" in line for line in maps), len(os.listdir("/proc/self/fd"))
before = state()
for i in range(1000):
    once(i)
assert state() == before
assert len(provider._providers) == 1
"""
    python(program)


# --- threads


def test_threads_fire_while_others_load_and_unload(python: Python) -> None:
    """Four threads fire an enabled probe through real unmappings, two threads load and unload."""
    program = f"""{ON}
sys.setswitchinterval(1e-5)
import logging; logging.disable()
stop = threading.Event()
failures = []
def guarded(function):
    def run():
        try:
            while not stop.is_set():
                function()
        except BaseException as error:
            failures.append(error)
            stop.set()
    return threading.Thread(target=run)
def turn():
    shop.load()
    shop.unload()
def declare():
    if len(shop.probes) < 300:
        shop.add_probe(f"event_{{threading.get_ident()}}_{{len(shop.probes)}}")
    usdt.strict(True)
    usdt.strict(False)
threads = [guarded(fire) for _ in range(4)] + [guarded(turn) for _ in range(2)]
threads.append(guarded(declare))
for thread in threads: thread.start()
stop.wait(2)
stop.set()
for thread in threads: thread.join()
assert failures == [], failures
shop.unload()
shop.load()
fire()
"""
    python(program)


def test_threads_that_load_at_once_map_one_file(shop: usdt.Provider) -> None:
    """All are told True, and the path is listed once."""
    probe = shop.add_probe("event")
    barrier = threading.Barrier(8)
    results = []

    def load() -> None:
        barrier.wait()
        results.append(shop.load())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert results == [True] * 8
    assert len(set(shop.paths)) == len(shop.paths) == 1
    path = shop.paths[0]
    shop.unload()
    assert (probe.loaded, mappings(path)) == (False, [])


# --- fork, exec


def test_a_child_forked_before_load_has_the_same_path(python: Python) -> None:
    """Parent and child load on their own and meet in one file."""
    program = f"""{ON}
pid = os.fork()
shop.load()
fire()
if pid == 0:
    print(shop.paths[0], flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(shop.paths[0])
"""
    paths = python(program).split()
    assert len(paths) == 2
    assert len(set(paths)) == 1


@pytest.mark.parametrize("memory", [False, True], ids=["file", "memfd"])
def test_a_child_forked_after_load_fires_and_unloads(python: Python, memory: bool) -> None:
    """What the child unloads stays loaded in the parent, and the other way round."""
    program = f"""{ON}
if {memory}:
    from usdt import stubfile
    stubfile.directories = list
shop.load()
there, back = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(back)
    os.read(there, 1)  # until the parent has unloaded
    fire()
    assert order and order.loaded
    shop.unload()
    assert not order
    shop.load()
    fire()
    sys.exit(0)
fire()
shop.unload()
assert not order
os.close(back)
assert os.waitpid(pid, 0)[1] == 0
shop.load()
fire()
"""
    python(program)


def test_threads_that_fire_do_not_hurt_a_fork(python: Python) -> None:
    """Children of a process whose threads fire and load fire, load and end as usual."""
    program = f"""{ON}
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork() with threads
import logging; logging.disable()
stop = threading.Event()
def run(function):
    while not stop.is_set():
        function()
def turn():
    shop.load()
    shop.unload()
threads = [threading.Thread(target=run, args=(f,)) for f in (fire, fire, turn)]
for thread in threads: thread.start()
def forks():
    for i in range(20):
        pid = os.fork()
        if pid == 0:
            fire()
            shop.load()
            fire()
            shop.unload()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
forker = threading.Thread(target=forks)
forker.start()
forks()
forker.join()
stop.set()
for thread in threads: thread.join()
"""
    python(program)


def test_exec_starts_over(python: Python) -> None:
    """The next program inherits neither a mapping nor a descriptor."""
    program = f"""{ON}
if len(sys.argv) > 1:
    assert int(sys.argv[1]) == len(os.listdir("/proc/self/fd")), os.listdir("/proc/self/fd")
    shop.load()
    fire()
    sys.exit()
before = len(os.listdir("/proc/self/fd"))
shop.load()
from usdt import stubfile
stubfile.directories = list
other = usdt.Provider("other")
other.add_probe("event")
other.load()
assert other.paths[0].startswith("/proc/")
os.execv(sys.executable, [sys.executable, sys.argv[0], str(before)])
"""
    python(program)


# --- interpreters

SUBINTERPRETERS = """
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
else:
    import _xxsubinterpreters as interpreters
def create(kind):
    if sys.version_info >= (3, 13):
        return interpreters.create(kind)
    if sys.version_info >= (3, 12):
        return interpreters.create(isolated=kind == "isolated")
    return interpreters.create(isolated=False)
def run(interpreter, program):
    failed = interpreters.run_string(interpreter, program)
    assert failed is None, failed.formatted
"""


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_a_subinterpreter_has_probes_of_its_own(python: Python, kind: str) -> None:
    """Import, load, fire, unload or not, destroy, again; the main one goes on."""
    program = f"""{ON}{SUBINTERPRETERS}
inner = {ON!r} + '''
import logging; logging.disable()
fire()
assert shop.load()
fire()
order._listener = lambda probe, values: None
fire()
order("wrong") if LAST else shop.unload()
fire()
'''
sys.unraisablehook = lambda args: None
shop.load()
for i in range(6):
    one, two = create({kind!r}), create({kind!r})
    for interpreter in (one, two):
        quiet = "import sys; sys.unraisablehook = lambda args: None; LAST = " + str(bool(i % 2))
        run(interpreter, quiet + "\\n" + inner)
    fire()
    interpreters.destroy(one)
    fire()
    run(two, "shop.load(); fire()")
    interpreters.destroy(two)
assert order
fire()
"""
    python(program)


def test_interpreters_fire_in_parallel(python: Python) -> None:
    """With a GIL each they map one stub, fire, load and unload at the same time."""
    if sys.version_info < (3, 12):
        pytest.skip("interpreters share one GIL before CPython 3.12")
    # The inner ones do not import `threading`: up to CPython 3.12.1 a thread whose subinterpreter
    # did so is never joined.
    program = f"""{ON}{SUBINTERPRETERS}
inner = {CORE!r} + '''
end = time.monotonic() + 1
while time.monotonic() < end:
    shop.load()
    for _ in range(10):
        fire()
    shop.unload()
'''
ones = [create("isolated") for _ in range(2)]
failures = []
def guarded(one):
    try:
        run(one, inner)
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=guarded, args=(one,)) for one in ones]
for thread in threads: thread.start()
exec(inner)
for thread in threads: thread.join()
assert failures == [], failures
for one in ones: interpreters.destroy(one)
"""
    python(program)


# --- the end

FIRES_LATE = """
class Late:
    def __init__(self, fire): self.fire = fire
    def __del__(self): self.fire()
"""

ENDS = {
    "loaded": "shop.load(); fire()",
    "unloaded": "shop.load(); shop.unload()",
    "memfd": "from usdt import stubfile; stubfile.directories = list; shop.load(); fire()",
    "context": "with shop: fire(); sys.exit(0)",
    "os._exit": "shop.load(); fire(); os._exit(0)",
    "listener": "shop.load(); order._listener = lambda *heard: None; fire()",
    "capture": "from usdt.testing import capture\nkeep = capture(); keep.__enter__(); fire()",
    "atexit": "import atexit; atexit.register(fire); shop.load()",
    "atexit unload": "import atexit; atexit.register(fire); atexit.register(shop.unload);"
    "import logging; logging.disable(); shop.load()",
    "atexit load": "import atexit; atexit.register(fire); atexit.register(shop.load)",
    "finalizer": f"{FIRES_LATE}\nshop.load(); late = Late(fire)",
    "finalizer of a cycle": f"{FIRES_LATE}\nshop.load(); late = Late(fire); late.self = late;"
    "late.shop = shop; order.late = late",
    "finalizer in sys": f"{FIRES_LATE}\nshop.load(); sys.late = Late(order.__call__);"
    "sys.late.fire = lambda order=order: order(1)",
    "finalizer in a thread's locals": f"{FIRES_LATE}\nshop.load(); local = threading.local();"
    "local.late = Late(fire)",
    "kept by sys": "shop.load(); sys.keep = order; sys.shop = shop",
    "kept by builtins": "import builtins; shop.load(); builtins.order = order",
    "weakref callback": "import weakref; shop.load(); ref = weakref.ref(shop, lambda _: fire())",
    "strict": "usdt.strict(); shop.load(); fire()",
    "daemon threads": "shop.load()\ndef forever():\n    while True: fire()\n"
    "for _ in range(4): threading.Thread(target=forever, daemon=True).start()\ntime.sleep(0.1)",
    "daemon threads loading": "import logging; logging.disable()\n"
    "def forever():\n    while True: shop.load(); fire(); shop.unload()\n"
    "for _ in range(2): threading.Thread(target=forever, daemon=True).start()\ntime.sleep(0.1)",
    "unloaded finalizer": f"import logging; logging.disable()\n{FIRES_LATE}\nlate = Late(fire)",
    "modules gone": "shop.load(); del sys.modules['usdt'], sys.modules['usdt._probe'];"
    "del sys.modules['usdt.provider']; fire()",
}


@pytest.mark.parametrize("end", ENDS)
def test_an_interpreter_ends_well(python: Python, end: str) -> None:
    """Whatever fires, is loaded or kept at the end: exit code 0 and nothing on stderr."""
    for _ in range(5 if end.startswith("daemon") else 1):
        python(f"{ON}\n{ENDS[end]}\n")


def test_a_probe_never_loaded_is_silent_at_the_end(python: Python) -> None:
    """The warning needs `logging`, which can no longer be imported: the fire does nothing."""
    program = f"""
import sys, usdt
{FIRES_LATE}
shop = usdt.Provider("shop")
order = shop.add_probe("order")
sys.late = Late(order)
assert "logging" not in sys.modules
"""
    python(program)
