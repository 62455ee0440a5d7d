# SPDX-License-Identifier: MIT
"""Stacks through a probe function: gdb finds the caller by the stub's own unwind rules.

The caller is a small C program, with and without a frame pointer of its own.
"""

import re

import pytest

from stubgen.read import read_path

CALLER = r"""
#include <dlfcn.h>
#include <stdio.h>

typedef void (*probe_t)(long, long, long);

__attribute__((noinline)) static long inner(probe_t fire, long n)
{
    volatile long keep[5] = {n, n + 1, n + 2, n + 3, n + 4};
    fire(keep[1], keep[2], keep[3]);
    return keep[4];
}

__attribute__((noinline)) long outer(probe_t fire, long n)
{
    return inner(fire, n * 3) + 1;
}

int main(int argc, char **argv)
{
    void *stub = dlopen(argv[1], RTLD_NOW);
    if (!stub) {
        puts(dlerror());
        return 1;
    }
    return outer((probe_t)dlsym(stub, "shop.order_done"), argc) == 11 ? 0 : 2;
}
"""


@pytest.fixture(params=["-fno-omit-frame-pointer", "-fomit-frame-pointer"])
def caller(request, tmp_path, tool):
    """The compiled program."""
    (tmp_path / "caller.c").write_text(CALLER)
    program = tmp_path / "caller"
    tool("gcc", "-O1", "-g", request.param, tmp_path / "caller.c", "-o", program, "-ldl")
    return program


def test_the_dynamic_loader_takes_the_stub(native_stub, caller, tool):
    """dlopen, dlsym and a call, outside of any debugger."""
    tool(caller, native_stub.path)


@pytest.mark.parametrize("where", ["function", "site", "return"])
def test_gdb_finds_the_caller(native_stub, caller, tool, where):
    """At the first byte, at the nop, and after the frame is gone: the same callers."""
    probe = next(p for p in read_path(native_stub.path).probes if p.name == "order_done")
    code, site = native_stub.machine.function(native_stub.nop)
    last = 1 if native_stub.arch == "x86_64" else 4
    offset = {"function": 0, "site": site, "return": len(code) - last}[where]
    text = tool(
        "gdb", "-q", "-nx", "-batch",
        "-ex", "break outer",
        "-ex", f"run {native_stub.path}",
        "-ex", f"break *((char *)fire + {offset})",
        "-ex", "continue",
        "-ex", "bt",
        caller,
    )  # fmt: skip
    frames = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+) \(", text, re.MULTILINE)
    assert frames[-4:] == ["shop.order_done", "inner", "outer", "main"], text
    assert probe.site % 16 == site


def test_gdb_breaks_on_the_probe_and_reads_its_arguments(native_stub, caller, tool):
    """`break -probe-stap` stops at the site, and $_probe_argN are what was fired."""
    text = tool(
        "gdb", "-q", "-nx", "-batch",
        "-ex", "break outer",
        "-ex", f"run {native_stub.path}",
        "-ex", "break -probe-stap shop:order_done",
        "-ex", "continue",
        "-ex", "printf \"args %d: %ld %d %ld\\n\", $_probe_argc, $_probe_arg0, $_probe_arg1, "
        "$_probe_arg2",
        "-ex", "bt",
        caller,
    )  # fmt: skip
    assert "args 3: 7 8 9" in text
    frames = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+) \(", text, re.MULTILINE)
    assert frames[-4:] == ["shop.order_done", "inner", "outer", "main"], text
