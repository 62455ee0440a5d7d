# SPDX-License-Identifier: MIT
"""What `usdt-stubgen show` says to paste, pasted: bpftrace prints what a C caller passed.

Needs root. Values are such that a swap, a lost sign or a wrong width shows; the upper halves of
registers and stack slots are filled with noise, as the psABI allows a caller to leave them.
"""

import ctypes
import json
import os
import re
import subprocess
import time

import pytest

from stubgen.cli import main

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="bpftrace needs root")

NOISE = 0x5EED_F00D_5EED_F00D

#: type -> raw operand values and what bpftrace must print for them
VALUES = {
    "i8": ((-3,), "-3"),
    "i16": ((-300,), "-300"),
    "i32": ((-70_001,), "-70001"),
    "i64": ((-(2**33) - 7,), str(-(2**33) - 7)),
    "u8": ((251,), "251"),
    "u16": ((65_521,), "65521"),
    "u32": ((2**32 - 5,), str(2**32 - 5)),
    "u64": ((2**64 - 59,), str(2**64 - 59)),
    "f32": ((0x3FC00000,), "0x3fc00000"),
    "f64": ((0xC009_21FB_5444_2D18,), "0xc00921fb54442d18"),
    "bool": ((1,), "1"),
    "ptr": ((0xFFFF_8880_0000_1234,), "0xffff888000001234"),
}
TEXT = ctypes.create_string_buffer("añda ✓".encode())
BLOB = ctypes.create_string_buffer(b"\x00\x01\xffz!", 5)


def operands_and_text(probe):
    """What to pass to a probe, and the `name=value` line to expect."""
    raw, shown = [], []
    for position, arg in enumerate(probe.args):
        kind = arg.type.name
        if kind == "str":
            values, text = (ctypes.addressof(TEXT),), TEXT.value.decode()
        elif kind == "bytes":
            values, text = (ctypes.addressof(BLOB), 5), r"\x00\x01\xffz!"
        elif kind == "i64":  # another value for each, so that a swap shows
            number = VALUES[kind][0][0] - 1009 * position
            values, text = (number,), str(number)
        else:
            values, text = VALUES[kind]
        for value, size in zip(values, arg.type.operands, strict=True):
            mask = (1 << 8 * abs(size)) - 1
            raw.append((NOISE & ~mask | value & mask) & (1 << 64) - 1)
        shown.append(f"{arg.name}={text}")
    return raw, " ".join(shown)


def test_every_line_prints_what_was_fired(native_stub, tool, capsys):
    """All types and arities at once: the bodies of all printed commands in one script."""
    tool("bpftrace", "--version")
    assert main(["show", str(native_stub.path), "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    programs = [re.fullmatch(r"bpftrace -e '(.*)'", p["bpftrace"])[1] for p in file["probes"]]
    script = " ".join([*programs, 'BEGIN { printf("READY\\n"); } interval:s:20 { exit(); }'])
    library = ctypes.CDLL(str(native_stub.path))
    tracer = subprocess.Popen(
        ["bpftrace", "-e", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        semaphore = ctypes.c_uint16.in_dll(library, "shop_order_start_semaphore")
        last = ctypes.c_uint16.in_dll(library, "shop_blobs_semaphore")
        deadline = time.monotonic() + 20
        while not (semaphore.value and last.value) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert semaphore.value, "bpftrace did not attach"
        expected = []
        for probe in native_stub.provider.probes:
            raw, text = operands_and_text(probe)
            function = library[f"shop.{probe.name}"]
            function.argtypes = [ctypes.c_uint64] * len(raw)
            function.restype = None
            function(*raw)
            expected.append(text or f"shop:{probe.name}")
            time.sleep(0.01)
        printed = []
        for line in tracer.stdout:
            if "=" in line or line.startswith("shop:"):
                printed.append(line.rstrip("\n"))
            if len(printed) == len(expected):
                break
        # each CPU has a buffer of its own, so a migrating caller's lines may come in any order
        assert sorted(printed) == sorted(expected)
    finally:
        tracer.kill()
        tracer.wait()


@pytest.mark.parametrize(
    "name", ["plain.so", "with a blank.so", "it's.so", "star*[x].so", "odd@=,~%$.so"]
)
def test_a_pasted_command_attaches(native_stub, tool, tmp_path, name, capsys):
    """The whole command in a shell, for paths that need quoting."""
    path = tmp_path / name
    path.write_bytes(native_stub.path.read_bytes())
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    command = next(x for x in out.splitlines() if "order_done {" in x).strip()
    end = command.rindex("}")
    command = f"{command[:end]}}} interval:ms:200 {{ exit(); }}{command[end + 1 :]}"
    printed = tool("sh", "-c", command)
    assert "Attaching 2 probes" in printed
    assert "ERROR: usdt" not in printed


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3.11"), reason="no Debian python3.11")
def test_a_foreign_binary_s_line_works(tool, capsys):
    """Debian's own python3.11: argN by operand, attached and counted while it imports."""
    assert main(["show", "/usr/bin/python3.11"]) == 0
    out = capsys.readouterr().out
    command = next(x for x in out.splitlines() if "import__find__load__done {" in x).strip()
    body = re.search(r"\{ (.*) \}'$", command)[1]
    script = command.replace(body, f"{body} exit();")
    script = script.removesuffix("'") + " interval:s:10 { exit(); }'"
    tracer = subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 10
        while tracer.poll() is None and time.monotonic() < deadline:
            subprocess.run(["/usr/bin/python3.11", "-c", "import json"], check=True)
        printed, _ = tracer.communicate(timeout=15)
    finally:
        tracer.kill()
    assert re.search(r"^arg0=\d+ arg1=[01]$", printed, re.MULTILINE), printed
