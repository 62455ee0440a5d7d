# SPDX-License-Identifier: MIT
"""Every stub as other people's tools see it: they must agree with the description, and not warn.

Must not read stubs with our own reader, except to compare it with them.
"""

import os
import re

import pytest

from stubgen.image import build_id
from stubgen.read import read_path

# gdb prints 32-bit-looking addresses without leading zeros; compare numbers.
GDB_ROW = re.compile(r"^stap +(\w+) +(\w+) +(0x[0-9a-f]+) +(0x[0-9a-f]+) +(\S+)", re.MULTILINE)


def sizes(operands):
    return tuple(int(operand.partition("@")[0]) for operand in operands)


def split(machine_text):
    """Operands of a note, split as any reader of the machine must: not inside [sp, 16]."""
    return re.findall(r"-?\d+@(?:\[[^]]*\]|\S+)", machine_text)


def test_readelf_reads_without_a_warning(stub, tool):
    """readelf -a: no warning, no error, and the header says a shared object."""
    text = tool("readelf", "-aW", stub.path)
    assert "Warning" not in text
    assert "Error" not in text
    assert "DYN (Shared object file)" in text


def test_readelf_reads_the_notes(stub, tool):
    """readelf -n: every probe in order, with its operands' sizes and signs."""
    text = tool("readelf", "-nW", stub.path)
    notes = re.findall(
        r"Provider: (\w+)\s+Name: (\w+)\s+Location: (\w+), Base: (\w+), Semaphore: (\w+)\s+"
        r"Arguments: ?(.*)",
        text,
    )
    read = [(provider, name, sizes(split(args))) for provider, name, *_, args in notes]
    assert read == [(stub.provider.name, p.name, p.operands) for p in stub.provider.probes]
    ours = [(probe.site, probe.semaphore) for probe in read_path(stub.path).probes]
    assert [(int(site, 16), int(semaphore, 16)) for _, _, site, _, semaphore, _ in notes] == ours
    assert build_id(stub.path.read_bytes()).hex() in text


@pytest.mark.parametrize("rules", [[], ["--gnu-ld"], ["--gnu-ld", "--strict"]])
def test_eu_elflint_finds_nothing(stub, tool, rules):
    """eu-elflint: not one complaint, but for the type of stapsdt notes, which it does not know."""
    text = tool("eu-elflint", *rules, stub.path, statuses=(0, 1))
    left = [
        line
        for line in text.splitlines()
        if not re.fullmatch(
            r"section \[ ?\d+\] '\.note\.stapsdt': unknown object file note type 3 with owner "
            r"name 'stapsdt' at offset \d+",
            line,
        )
    ]
    assert left == []


def test_pyelftools_reads_the_notes(stub):
    """pyelftools' own note parser finds as many notes of owner stapsdt."""
    from elftools.elf.elffile import ELFFile

    with stub.path.open("rb") as file:
        elf = ELFFile(file)
        notes = list(elf.get_section_by_name(".note.stapsdt").iter_notes())
        assert [note["n_name"] for note in notes] == ["stapsdt"] * len(stub.provider.probes)
        functions = [
            symbol
            for symbol in elf.get_section_by_name(".dynsym").iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
        ]
        assert [symbol.name for symbol in functions] == [
            f"{stub.provider.name}.{probe.name}" for probe in stub.provider.probes
        ]
        assert {symbol["st_size"] for symbol in functions} == {
            len(stub.machine.function(stub.nop)[0])
        }


def test_lief_reads_segments_and_notes(stub):
    """LIEF: the segments' rights, no executable stack, and its names for the notes."""
    import lief

    binary = lief.ELF.parse(str(stub.path))
    loads = [s for s in binary.segments if s.type == lief.ELF.Segment.TYPE.LOAD]
    assert [int(load.flags) for load in loads] == [4, 5, 6]
    (stack,) = [s for s in binary.segments if s.type == lief.ELF.Segment.TYPE.GNU_STACK]
    assert int(stack.flags) == 6
    kinds = [note.type for note in binary.notes]
    assert kinds.count(lief.ELF.Note.TYPE.STAPSDT) == len(stub.provider.probes)
    assert kinds.count(lief.ELF.Note.TYPE.GNU_BUILD_ID) == 1


@pytest.mark.parametrize("command", ["info probes", "info probes stap"])
def test_gdb_lists_the_probes(stub, tool, command):
    """gdb: every probe with our reader's site and semaphore, and no complaint about the base."""
    text = tool("gdb", "-q", "-nx", "-batch", "-ex", command, stub.path)
    rows = {(r[0], r[1]): (int(r[2], 16), int(r[3], 16)) for r in GDB_ROW.findall(text)}
    assert rows == {
        (probe.provider, probe.name): (probe.site, probe.semaphore)
        for probe in read_path(stub.path).probes
    }
    assert "warning" not in text.lower()


OBJDUMP = {"x86_64": "x86_64-linux-gnu-objdump", "aarch64": "aarch64-linux-gnu-objdump"}
CODE = {
    "x86_64": {
        "nop1": "push mov nop pop ret",
        "nop5": "push mov nopl pop ret",
    },
    "aarch64": {"nop1": "stp mov nop ldp ret"},
}


def test_objdump_disassembles_the_functions(stub, tool):
    """Each probe function is a frame around one nop, at the address of the note."""
    text = tool(OBJDUMP[stub.arch], "-d", "--no-show-raw-insn", stub.path)
    bodies = dict(re.findall(r"<shop\.(\w+)>:\n((?: +[0-9a-f]+:\t.*\n)+)", text))
    assert set(bodies) == {probe.name for probe in stub.provider.probes}
    for probe in read_path(stub.path).probes:
        lines = [line.split("\t") for line in bodies[probe.name].splitlines()]
        mnemonics = [words[1].split()[0] for words in lines][:5]
        assert " ".join(mnemonics) == CODE[stub.arch][stub.nop]
        assert int(lines[2][0].strip(" :"), 16) == probe.site


CFA_AFTER_ENTRY = {"x86_64": ("rsp+16", "c-16"), "aarch64": ("sp+16", "c-16")}


def test_readelf_reads_the_unwind_rules(stub, tool):
    """readelf -wF: one FDE a function, whose frame is 16 bytes while at the site."""
    readelf = "readelf" if stub.arch == "x86_64" else "aarch64-linux-gnu-readelf"
    text = tool(readelf, "-wF", stub.path)
    assert "arning" not in text
    tables = re.findall(
        r"FDE cie=\S+ pc=([0-9a-f]+)\.\.([0-9a-f]+)\n.*\n((?:[0-9a-f]{16} .*\n)+)", text
    )
    found = read_path(stub.path).probes
    assert len(tables) == len(found)
    for (start, end, rows), probe in zip(tables, found, strict=True):
        assert int(start, 16) < probe.site < int(end, 16)
        at_site = [
            row.split() for row in rows.splitlines() if int(row.split()[0], 16) <= probe.site
        ]
        assert (at_site[-1][1], at_site[-1][2]) == CFA_AFTER_ENTRY[stub.arch]
        last = rows.splitlines()[-1].split()
        assert int(last[0], 16) == int(end, 16) - (1 if stub.arch == "x86_64" else 4)
        assert last[1] == ("rsp+8" if stub.arch == "x86_64" else "sp+0")


def test_bpftrace_lists_the_probes(native_stub, tool):
    """bpftrace -l: every probe by path."""
    if os.geteuid():
        pytest.skip("bpftrace needs root")
    text = tool("bpftrace", "-l", f"usdt:{native_stub.path}:*")
    listed = {line for line in text.splitlines() if line.startswith("usdt:")}
    assert listed == {f"usdt:{native_stub.path}:shop:{p.name}" for p in native_stub.provider.probes}


def test_tplist_lists_the_probes(native_stub, tool):
    """bcc's tplist: every probe, with the size and sign of each operand."""
    text = tool("tplist-bpfcc", "-vv", "-l", native_stub.path)
    listed = {}
    for line in text.splitlines():
        if probe := re.match(r"shop:(\w+) \[sema 0x", line):
            listed[probe[1]] = []
        elif operand := re.match(r" +argument #\d+ (\d) (un)?signed", line):
            size = int(operand[1])
            listed[name_of(listed)].append(size if operand[2] else -size)
    described = {probe.name: list(probe.operands) for probe in native_stub.provider.probes}
    assert listed == described


def name_of(listed):
    """The key that was added last."""
    return next(reversed(listed))


def test_perf_caches_the_probes(native_stub, tool, tmp_path):
    """perf buildid-cache --add, into a directory of its own, makes every probe an SDT event."""
    cache = ("--buildid-dir", str(tmp_path / "cache"))
    tool("perf", *cache, "buildid-cache", "--add", native_stub.path)
    text = tool("perf", *cache, "list", "sdt")
    listed = set(re.findall(r"sdt_shop:(\w+)", text))
    assert listed == {probe.name for probe in native_stub.provider.probes}


@pytest.mark.parametrize(
    "options", [[], ["--strip-debug"], ["--strip-unneeded"]], ids=["all", "debug", "unneeded"]
)
def test_strip_keeps_everything(native_stub, tool, tmp_path, options):
    """A packager's strip leaves probes, names, symbols and build id as they were."""
    copy = tmp_path / native_stub.path.name
    tool("strip", *options, "-o", copy, native_stub.path)
    before = read_path(native_stub.path, functions=True)
    after = read_path(copy, functions=True)
    assert after.probes == before.probes
    assert (after.build_id, after.functions, after.is_stub, after.why) == (
        before.build_id, before.functions, True, None,
    )  # fmt: skip
