# SPDX-License-Identifier: MIT
"""The C of the fire path under AddressSanitizer and UndefinedBehaviorSanitizer.

Builds its own copy of the extension beside a copy of the packages; the checkout's is untouched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
    "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
]  # fmt: skip

STRESS = """
import gc, random, sys, threading, time
from always_on import always_on
always_on()
import usdt
from stubgen.argtypes import BY_NAME
from usdt import _probe, stapsdt
from usdt.testing import capture
import logging; logging.disable()
assert "sanitized" in _probe.__file__
sys.unraisablehook = lambda args: None
chance = random.Random(20)

class Index:
    def __init__(self, value): self.value = value
    def __index__(self):
        chance.choice(SIDE_EFFECTS)()
        return self.value
    __float__ = lambda self: float(self.value)

VALUES = [
    0, 1, -1, True, 2**31, -2**31, 2**63, -2**63, 2**64 - 1, 2**64, 2**100, -2**100,
    Index(3), Index(2**70), 0.0, -0.0, 1e-45, 1e300, float("inf"), float("nan"),
    "", "ada", "Gr\\u00fc\\u00dfe", "caf\\udce9", "\\ud800", "a\\0b", "x" * 70000,
    b"", b"a\\0", bytes(70000), bytearray(b"grow"), memoryview(b"abcdef")[1:4],
    memoryview(b"abcdef")[::2], None, [], object(),
]
SIDE_EFFECTS = [lambda: None] * 20 + [
    lambda: shop.load(), lambda: shop.unload(), gc.collect, lambda: usdt.strict(True),
    lambda: usdt.strict(False), lambda: 1 // 0,
    lambda: setattr(chance.choice(shop.probes), "_listener", None),
    lambda: setattr(chance.choice(shop.probes), "_listener", lambda probe, values: values * 2),
]

def declare(provider, name):
    args, words = {}, 0
    for i in range(chance.randrange(13)):
        kind = chance.choice(list(BY_NAME))
        words += len(BY_NAME[kind].operands)
        if words > 12:
            break
        args[f"a{i}"] = kind
    return provider.add_probe(name, **args)

def one(probe):
    names = [arg.name for arg in probe.spec.args]
    count = len(names) if chance.random() < 0.9 else chance.randrange(15)
    values = [chance.choice(VALUES) for _ in range(count)]
    how = chance.randrange(5)
    try:
        if how == 0:
            probe(*values)
        elif how == 1:
            probe.fire(*values)
        elif how == 2:
            cut = chance.randrange(len(values) + 1)
            probe(*values[:cut], **dict(zip(names[cut:], values[cut:])))
        elif how == 3:
            probe.lazy(lambda: tuple(values) if chance.random() < 0.9 else values)
        else:
            bool(probe), repr(probe), probe.enabled, probe.loaded, probe.dropped, usdt.Probe[...]
    except (TypeError, ValueError, OverflowError, ArithmeticError, BufferError):
        pass

start = time.monotonic()
while time.monotonic() - start < 3:
    shop = usdt.Provider("shop")
    for i in range(8):
        declare(shop, f"event_{i}").note = shop
    @shop.probe
    def order(id: usdt.u64, customer: str = "caf\\udce9", data: bytes = bytearray(b"x")): ...
    assert shop.load() and order
    for _ in range(300):
        one(chance.choice(shop.probes))
        if chance.random() < 0.02:
            shop.load() if chance.random() < 0.5 else shop.unload()
    old = stapsdt.Provider("old")
    words = old.add_probe("words", *[stapsdt.ArgTypes.uint64] * 12)
    old.load()
    usdt.strict(False)
    words.fire(*[chance.choice(VALUES) for _ in range(12)])
    with capture():
        one(order)
    for wrong in ("y" * 7, "y" * 12, "Q" * 13, "Z"):
        try:
            usdt.Probe(None, None, "a:b", tuple(wrong), wrong, ())
        except ValueError:
            pass

def storm():
    while time.monotonic() - start < 5:
        one(chance.choice(shop.probes))
threads = [threading.Thread(target=storm) for _ in range(3)]
for thread in threads: thread.start()
while time.monotonic() - start < 5:
    shop.load()
    time.sleep(0.0005)
    shop.unload()
for thread in threads: thread.join()
usdt.strict(False)
print("done")
"""


def test_a_stress_of_the_fire_path_is_clean(tmp_path: Path, stub_dir: Path, compiler: str) -> None:
    """Random values, calls, unloads and listeners, one thread and four: no report."""
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        pytest.skip(f"needs {include}/Python.h: install this Python's headers")
    copy = tmp_path / "sanitized"
    left_out = shutil.ignore_patterns("*.so", "__pycache__")
    for package in ("stubgen", "usdt"):
        shutil.copytree(ROOT / package, copy / package, ignore=left_out)
    library = copy / "usdt" / f"_probe{sysconfig.get_config_var('EXT_SUFFIX')}"
    built = subprocess.run(
        [compiler, *FLAGS, f"-I{include}", "-o", library, ROOT / "usdt" / "_probe.c"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (built.returncode, built.stderr) == (0, "")
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(map(os.path.isabs, runtimes)):
        if os.environ.get("CI") == "true":
            pytest.fail(f"{compiler} has no sanitizers, and CI must have them: use gcc")
        pytest.skip(f"needs a compiler with libasan and libubsan, such as gcc; {compiler} has none")
    program = tmp_path / "stress.py"
    program.write_text(STRESS)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{copy}{os.pathsep}{Path(__file__).parent}",
        "USDT_STUB_DIR": str(stub_dir),
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0,verify_asan_link_order=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, program], env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")
