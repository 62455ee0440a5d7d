# SPDX-License-Identifier: MIT
"""What `usdt-stubgen check` says a tracer refuses, that tracer refuses: asked for each rule.

Each case damages one thing in a good stub; the same question to the good stub is the control.
"""

import ctypes
import os
import re
import struct
import subprocess
import time

import pytest

from stubgen.check import check
from stubgen.read import read_path

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="bpftrace needs root")


@pytest.fixture
def good(native_stub):
    if native_stub.arch != "x86_64":
        pytest.skip("the operands below are those of x86_64")
    return native_stub.path


def rename(old, new):
    return lambda data: data.replace(b"\0" + old + b"\0", b"\0" + new + b"\0", 1)


def operands(text):
    """Other operands for order_start, which has `8@%rdi 8@%rsi`."""
    old = b"order_start\x008@%rdi 8@%rsi\0"
    new = b"order_start\0" + text
    assert len(new) < len(old)
    return lambda data: data.replace(old, new.ljust(len(old), b"\0"))


def note_type(data):
    """.note.stapsdt as SHT_PROGBITS."""
    (table,) = struct.unpack_from("<Q", data, 40)
    out = bytearray(data)
    struct.pack_into("<I", out, table + 64 * 12 + 4, 1)
    return bytes(out)


def site(address):
    """order_start's note with another site."""
    owner = b"stapsdt\0"

    def change(data):
        at = data.index(owner) + len(owner)
        return data[:at] + struct.pack("<Q", address) + data[at + 8 :]

    return change


def refused(path, tracer):
    """Does the check say that `tracer` refuses something of the file?"""
    findings = check(read_path(path, functions=True))
    return "refuses" in {f.severity for f in findings if f.tracer == tracer}


@pytest.fixture
def cases(good, tmp_path):
    """(the good stub, a function that makes a changed one)."""

    def make(change):
        data = change(good.read_bytes())
        assert data != good.read_bytes()
        path = tmp_path / "changed.so"
        path.write_bytes(data)
        path.chmod(0o755)
        return path

    return good, make


def test_gdb_needs_the_base(cases, tool):
    """Without .stapsdt.base gdb finds no probe."""
    good, make = cases
    for path in (good, make(rename(b".stapsdt.base", b".stapsdt.bass"))):
        text = tool("gdb", "-q", "-nx", "-batch", "-ex", "info probes stap", path)
        assert ("No probes matched" in text) == refused(path, "gdb") == (path != good)


def test_perf_needs_the_build_id(cases, tool, tmp_path):
    """Without a build id perf cannot add the file to its cache."""
    good, make = cases
    for path in (good, make(lambda data: data.replace(b"\3\0\0\0GNU\0", b"\3\0\0\0GNV\0"))):
        cache = ("--buildid-dir", str(tmp_path / f"cache-{path.stem}"))
        tool("perf", *cache, "buildid-cache", "--add", path, statuses=range(256))
        listed = "sdt_shop:" in tool("perf", *cache, "list", "sdt", statuses=range(256))
        assert (not listed) == refused(path, "perf") == (path != good)


@pytest.mark.parametrize("text", [b"8f@%xmm0 8@%r", b"8@shop(%rip)"], ids=["float", "symbol"])
def test_bcc_loses_probes_with_such_operands(cases, tool, text):
    """bcc drops the probe, or its arguments."""
    good, make = cases
    for path in (good, make(operands(text))):
        out = tool("tplist-bpfcc", "-vv", "-l", path, "shop:order_start")
        count = len(re.findall(r"argument #\d+ ", out))
        assert (count != 2) == refused(path, "bcc") == (path != good)


def test_bcc_needs_a_note_section(cases, tool):
    """bcc looks at sections of type SHT_NOTE only."""
    good, make = cases
    for path in (good, make(note_type)):
        out = tool("tplist-bpfcc", "-l", path, statuses=(0, 1))
        assert ("shop:tick" not in out) == refused(path, "bcc") == (path != good)


@ROOT
@pytest.mark.parametrize("where", ["data", "nowhere"])
def test_bpftrace_needs_a_site_in_code(cases, tool, where):
    """bpftrace does not attach where no code is."""
    good, make = cases
    address = 0x90000 if where == "nowhere" else read_path(good).probes[0].semaphore
    for path in (good, make(site(address))):
        script = f"usdt:{path}:shop:order_start {{ }} interval:ms:100 {{ exit(); }}"
        out = tool("bpftrace", "-e", script, statuses=range(256))
        refuses = "Could not resolve" in out or "Error attaching" in out
        assert refuses == refused(path, "bpftrace 0.17") == (path != good), out


@ROOT
def test_bpftrace_needs_the_probes_section(cases, tool):
    """bpftrace 0.17 raises a semaphore only if its section is called .probes."""
    good, make = cases
    for path in (good, make(rename(b".probes", b".plobes"))):
        library = ctypes.CDLL(str(path))
        semaphore = ctypes.c_uint16.in_dll(library, "shop_tick_semaphore")
        version = tool("bpftrace", "--version")
        tracer = subprocess.Popen(
            ["bpftrace", "-e", f"usdt:{path}:shop:tick {{ }} interval:s:3 {{ exit(); }}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            seen = False
            while tracer.poll() is None and not seen:
                seen = semaphore.value != 0
                time.sleep(0.02)
        finally:
            tracer.kill()
            tracer.wait()
        old = re.search(r"v0\.(\d+)", version)
        if old and int(old[1]) < 25:
            assert (not seen) == refused(path, "bpftrace 0.17") == (path != good)
