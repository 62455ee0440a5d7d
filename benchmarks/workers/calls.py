# SPDX-License-Identifier: MIT
"""What one call costs: calls.py PEER_LIBRARY [--serve]. Prints nanoseconds as JSON.

Owns the timed statements; who listens meanwhile is the caller's business. With `--serve` it
prints the stubs' paths and then times what each line "NOP BODY COUNT" of its input asks for;
"?" asks whether somebody listens to all probes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from itertools import repeat
from os import uname
from time import perf_counter

import usdt
from stubgen.arch import MACHINES
from usdt import f64, stapsdt, testing, u64

# Rounds are shorter than a time slice, so that most of them are not interrupted.
ROUNDS, COUNT = 240, 5_000

LOOP = """
def run(f, count):
    start = clock()
    for _ in repeat(None, count):
        {statement}
    return clock() - start
"""


def timed(statement):
    names = {"clock": perf_counter, "repeat": repeat, "values": values}
    exec(LOOP.format(statement=statement), names)
    return names["run"]


def empty(a, b):
    pass


def values():
    return 1, 2


class Plain:
    attribute = None


class CtypesProbe:
    """python-stapsdt's Probe: a method over two functions of a C library."""

    def __init__(self, library, record):
        self._probe = ctypes.byref(record)
        self._enabled, self._fire = library.peer_enabled, library.peer_fire
        self._enabled.argtypes, self._enabled.restype = [ctypes.c_void_p], ctypes.c_int
        self._fire.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        self._fire.restype = None

    @property
    def is_enabled(self):
        return self._enabled(self._probe) == 1

    def fire(self, *args):
        if not self._probe:
            return False
        if not self.is_enabled:
            return False
        args = list(args)
        for i, arg in enumerate(args):
            if isinstance(arg, str):
                args[i] = arg.encode()
        self._fire(self._probe, *args)
        return True


class Peer(ctypes.Structure):
    _fields_ = (("semaphore", ctypes.c_void_p), ("function", ctypes.c_void_p))


def bodies(nop, library):
    """name -> (statement on `f`, f), and the provider."""
    provider = usdt.Provider("bench", nop=nop)

    @provider.probe
    def pair(a: u64, b: u64) -> None: ...

    @provider.probe
    def defaults(a: u64, b: u64 = 2) -> None: ...

    @provider.probe
    def text(a: u64, path: str) -> None: ...

    @provider.probe
    def data(a: u64, blob: bytes) -> None: ...

    @provider.probe
    def floats(a: f64, b: f64) -> None: ...

    step = provider.add_probe("step", a=u64, b=u64)

    if not provider.load():
        sys.exit(provider.why_not)
    stub = ctypes.PyDLL(provider.paths[0])
    bare = stub["bench.pair"]
    bare.argtypes, bare.restype = [ctypes.c_uint64, ctypes.c_uint64], None
    semaphore = ctypes.c_uint16.in_dll(stub, "bench_pair_semaphore")
    record = Peer(ctypes.addressof(semaphore), ctypes.cast(bare, ctypes.c_void_p).value)
    shape = CtypesProbe(library, record)
    dropin = stapsdt.Provider("benchdropin").add_probe("pair", *[stapsdt.ArgTypes.uint64] * 2)
    dropin._probe = pair  # the same stub: only the layer above it is measured
    return provider, {
        "loop": ("pass", None),
        "empty": ("f(1, 2)", empty),
        "len": ("f('')", len),
        "getattr": ("f.attribute", Plain()),
        "call": ("f(1, 2)", pair),
        "truth": ("if f: pass", pair),
        "fire": ("f.fire(1, 2)", pair),
        "step": ("f.fire(1, 2)", step),
        "keywords": ("f(a=1, b=2)", pair),
        "defaults": ("f(1)", defaults),
        "lazy": ("f.lazy(values)", pair),
        "str": ("f(1, '/index.html')", text),
        "bytes": ("f(1, b'0123456789abcdef')", data),
        "floats": ("f(1.5, 2.5)", floats),
        "dropin": ("f.fire(1, 2)", dropin),
        "ctypes_bare": ("f(1, 2)", bare),
        "ctypes_shape": ("f.fire(1, 2)", shape),
    }


def main():
    gc.disable()
    library = ctypes.PyDLL(sys.argv[1])
    machine = MACHINES[uname().machine]
    default = machine.default_nop
    if "--serve" in sys.argv:
        made = {nop: bodies(nop, library) for nop in machine.nops}
        serve(default, made)
        return
    _, wanted = bodies(default, library)
    runs = {name: (timed(statement), f) for name, (statement, f) in wanted.items()}
    found = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (run, f) in runs.items():
            found[name].append(run(f, COUNT) / COUNT * 1e9)
    with testing.capture() as events:
        found["captured"] = []
        for _ in range(ROUNDS):
            found["captured"].append(runs["call"][0](runs["call"][1], 500) / 500 * 1e9)
            events.clear()
    print(json.dumps(found))


def serve(default, made):
    runs = {
        (nop, name): (timed(statement), f)
        for nop, (_, wanted) in made.items()
        for name, (statement, f) in wanted.items()
    }
    paths = {nop: provider.paths[0] for nop, (provider, _) in made.items()}
    print(json.dumps({"default": default, "paths": paths}), flush=True)
    for line in sys.stdin:
        if line == "?\n":
            print(int(all(probe for p, _ in made.values() for probe in p.probes)), flush=True)
            continue
        nop, name, count = line.split()
        run, f = runs[nop, name]
        print(run(f, int(count)) * 1e9, flush=True)


main()
