# SPDX-License-Identifier: MIT
"""The rows, and the measurements that fill them, each for one CPython minor.

Turns nanoseconds into the ratios that the bars are about; starting processes is `processes`'.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.machine import Python
from benchmarks.processes import Server, Tracer, run, worker
from benchmarks.table import Bar, Row

__all__ = ["STEPS", "Context", "rows"]

#: Fresh processes: for calls (where code and stub land in memory changes the figure), and for
#: everything that happens once a process.
CALL_PROCESSES, STARTS = 7, 21

#: Interleaved rounds under the tracer, and calls in each: few, as in workers/calls.py.
TRACED_ROUNDS, TRACED_CALLS = 100, 2_000

#: What callers.c calls and checks in workers/calls.py's stub.
_SYMBOLS = ("bench.pair", "bench_pair_semaphore")

Values = dict[str, "list[float]"]


def rows() -> dict[str, list[Row]]:
    """The empty table: for each of STEPS the rows it fills, in the order of printing."""
    least, ns, ms, kib = True, "ns", "ms", "KiB"
    return {
        "calls": [
            Row("call", "probe(1, 2) / empty call", bar=Bar(0.80, special={"3.12": 0.90})),
            Row("truth", "if probe: / empty call", bar=Bar(0.50)),
            Row("ctypes_disabled", "ctypes library / probe(1, 2)", bar=Bar(8, least)),
            Row("ctypes_bare_disabled", "bare ctypes call / probe(1, 2)"),
            *(Row(f"ns_{name}", f"{what}, nobody listens", ns) for name, what in _CALLS.items()),
            Row("c_disabled", "C caller, nobody listens", ns),
            *(Row(f"ns_{name}", what, ns) for name, what in _PEERS.items()),
        ],
        "traced": [
            Row("traced", "traced probe(1, 2) / traced C caller", bar=Bar(1.25)),
            Row("ctypes_traced", "traced ctypes library / traced probe(1, 2)", bar=Bar(1.4, least)),
            Row("lost", "traced calls that bpftrace did not count", bar=Bar(0)),
            Row("ctypes_bare_traced", "traced bare ctypes call / traced probe(1, 2)"),
            *(Row(f"traced_{name}", f"{what}, traced", ns) for name, what in _TRACED.items()),
            Row("traced_c", "C caller, traced", ns),
            Row("traced_other", "probe(1, 2), traced, the other nop kind", ns, absent=_ONE_NOP),
            Row("traced_c_other", "C caller, traced, the other nop kind", ns, absent=_ONE_NOP),
        ],
        "starts": [
            *(
                Row(f"load_{n}_{state}_ram", f"load() of {n}, {what}", ms, Bar(limit))
                for state, what, limits in _LOADS
                for n, limit in limits.items()
            ),
            Row("import", "import usdt", ms, Bar(15)),
            *(
                Row(f"load_{n}_{state}_disk", f"load() of {n}, {what}, in /tmp", ms)
                for state, what, limits in _LOADS
                for n in limits
            ),
            Row("again", "load() of 10 after unload()", ms),
            Row("unload", "unload() of 10", "us"),
            Row("declare", "declaring 10 probes", ms),
        ],
        "whole process": [Row("process", "python -c 'import usdt' beyond 'pass'", ms)],
        "memory": [
            Row("rss", "memory of a loaded provider of 10", kib, Bar(64)),
            Row("pss", "the same, as Pss", kib),
            Row("unloaded", "memory of an unloaded provider of 10", kib),
        ],
        "build": [Row(f"build_{n}", f"stubgen.build() of {n}", ms) for n in (1, 100, 1000)],
    }


_ONE_NOP = "this machine has one nop kind"
_LOADS = (
    ("new", "new stub", {1: 1.5, 10: 2.5, 100: 8}),
    ("there", "stub on disk", {1: 1, 10: 1.5, 100: 6}),
)
_CALLS = {
    "call": "probe(1, 2)",
    "truth": "if probe:",
    "fire": "probe.fire(1, 2)",
    "step": "add_probe()'s probe.fire(1, 2)",
    "keywords": "probe(a=1, b=2)",
    "defaults": "probe(1), one default",
    "lazy": "probe.lazy(values)",
    "dropin": "usdt.stapsdt fire(1, 2)",
    "ctypes_bare": "bare ctypes call",
    "ctypes_shape": "ctypes library",
}
_PEERS = {
    "empty": "empty(1, 2), a Python function",
    "len": "len('')",
    "getattr": "object.attribute",
    "captured": "probe(1, 2) in usdt.testing.capture()",
}
_TRACED = {
    "call": "probe(1, 2)",
    "fire": "probe.fire(1, 2)",
    "keywords": "probe(a=1, b=2)",
    "lazy": "probe.lazy(values)",
    "str": "probe(1, '/index.html')",
    "bytes": "probe(1, b'0123456789abcdef')",
    "floats": "probe(1.5, 2.5)",
    "dropin": "usdt.stapsdt fire(1, 2)",
    "ctypes_bare": "bare ctypes call",
    "ctypes_shape": "ctypes library",
}


class Context:
    """Where to measure: memory- and disk-backed directories, and callers.c compiled."""

    def __init__(self, *, ram: Path, disk: Path, program: Path, library: Path) -> None:
        self.ram = ram
        self.disk = disk
        self.program = program
        self.library = library

    def stubs(self, parent: Path | None = None) -> Path:
        """A new, empty stub directory."""
        return Path(tempfile.mkdtemp(prefix="stubs-", dir=parent or self.ram))


def _middle(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _add(found: Values, key: str, value: float) -> None:
    found.setdefault(key, []).append(value)


def calls(python: Python, context: Context) -> Values:
    """Nobody listens: each process gives the median of its rounds' ratios."""
    found: Values = {}
    stubs = context.stubs()
    for _ in range(CALL_PROCESSES):
        ns = worker(python, "calls", str(context.library), stubs=stubs)
        net = {
            name: [value - loop for value, loop in zip(values, ns["loop"], strict=True)]
            for name, values in ns.items()
        }

        def ratio(above: str, below: str, net: Values = net) -> float:
            return _middle(a / b for a, b in zip(net[above], net[below], strict=True))

        _add(found, "call", ratio("call", "empty"))
        _add(found, "truth", ratio("truth", "empty"))
        _add(found, "ctypes_disabled", ratio("ctypes_shape", "call"))
        _add(found, "ctypes_bare_disabled", ratio("ctypes_bare", "call"))
        for name in (*_CALLS, *_PEERS):
            _add(found, f"ns_{name}", _middle(net[name]))
    (stub,) = stubs.iterdir()
    with Server([str(context.program), str(stub), *_SYMBOLS], stubs=stubs) as caller:
        found["c_disabled"] = [float(caller.ask("1000000")) / 1e6 for _ in range(CALL_PROCESSES)]
    return found


def traced(python: Python, context: Context) -> Values:
    """One bpftrace counts the calls of a Python and of a C process, a round each in turn."""
    stubs = context.stubs()
    script = str(Path(__file__).resolve().parent / "workers" / "calls.py")
    argv = [python.executable, "-I", script, str(context.library), "--serve"]
    found: Values = {}
    with Server(argv, stubs=stubs) as ours:
        greeting = json.loads(ours.first)
        default, paths = greeting["default"], greeting["paths"]
        others = [nop for nop in paths if nop != default]
        callers = {
            nop: Server([str(context.program), path, *_SYMBOLS], stubs=stubs)
            for nop, path in paths.items()
        }
        try:
            with Tracer(paths) as tracer:
                made = dict.fromkeys(paths, 0)

                def c(nop: str, count: int = TRACED_CALLS) -> float:
                    made[nop] += count
                    return float(callers[nop].ask(str(count))) / count

                def python_call(nop: str, name: str) -> float:
                    made[nop] += TRACED_CALLS
                    return float(ours.ask(f"{nop} {name} {TRACED_CALLS}")) / TRACED_CALLS

                tracer.wait_until(
                    lambda: all(one.ask("?") == "1" for one in (ours, *callers.values()))
                )
                for _ in range(TRACED_ROUNDS):
                    ns = {name: python_call(default, name) for name in _TRACED}
                    in_c = c(default)
                    for name, value in ns.items():
                        _add(found, f"traced_{name}", value)
                    _add(found, "traced_c", in_c)
                    _add(found, "traced", ns["call"] / in_c)
                    _add(found, "ctypes_traced", ns["ctypes_shape"] / ns["call"])
                    _add(found, "ctypes_bare_traced", ns["ctypes_bare"] / ns["call"])
                    for nop in others:
                        _add(found, "traced_other", python_call(nop, "call"))
                        _add(found, "traced_c_other", c(nop))
                counts = tracer.counts()
        finally:
            for caller in callers.values():
                caller.__exit__()
    found["lost"] = [float(made[nop] - counts.get(nop, 0)) for nop in paths]
    return found


def starts(python: Python, context: Context) -> Values:
    """New processes: import, declare, load, and load again from what is then on disk."""
    found: Values = {}
    for place, parent in (("ram", context.ram), ("disk", context.disk)):
        for count in (1, 10, 100):
            for _ in range(STARTS):
                stubs = context.stubs(parent)
                for state in ("new", "there"):
                    seconds = worker(python, "load", str(count), stubs=stubs)
                    _add(found, f"load_{count}_{state}_{place}", seconds["load"] * 1e3)
                    _add(found, "import", seconds["import"] * 1e3)
                    if count == 10 and place == "ram":
                        _add(found, "again", seconds["again"] * 1e3)
                        _add(found, "unload", seconds["unload"] * 1e6)
                        _add(found, "declare", seconds["declare"] * 1e3)
    return found


def whole_process(python: Python, context: Context) -> Values:
    """The wall time of an interpreter that imports usdt, beyond that of one that does not."""
    found: Values = {}

    def seconds(script: str) -> float:
        start = time.perf_counter()
        run([python.executable, "-I", "-c", script], stubs=context.ram)
        return time.perf_counter() - start

    for _ in range(STARTS):
        bare = seconds("pass")
        _add(found, "process", (seconds("import usdt") - bare) * 1e3)
    return found


def memory(python: Python, context: Context) -> Values:
    """Resident memory of 200 providers, thrice."""
    found: Values = {}
    for _ in range(3):
        for key, value in worker(python, "memory", stubs=context.stubs()).items():
            _add(found, key, value)
    return found


def build(python: Python, context: Context) -> Values:
    """stubgen alone."""
    seconds = worker(python, "build", stubs=context.ram)
    return {f"build_{n}": [value * 1e3 for value in values] for n, values in seconds.items()}


#: What to run for each minor; each may raise UnavailableError.
STEPS: dict[str, Callable[[Python, Context], Values]] = {
    "calls": calls,
    "traced": traced,
    "starts": starts,
    "whole process": whole_process,
    "memory": memory,
    "build": build,
}
