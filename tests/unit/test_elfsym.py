# SPDX-License-Identifier: MIT
"""Function symbols of real files, as readelf, addr2line and objdump see them.

Asks by address; where the files come from and who mapped them is tested elsewhere.
"""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path
from struct import pack

import pytest
from binutils import compile_c, readelf_functions, run

from ustack.elf import BytesSource, Elf, FileSource, Section, read_elf, to_virtual
from ustack.elfsym import Symbols, function_symbols, is_complete
from ustack.frame import FileOffset, VirtOffset


def load(path: str | Path) -> tuple[Elf, Symbols]:
    fd = os.open(path, os.O_RDONLY)
    try:
        source = FileSource(fd)
        elf = read_elf(source)
        return elf, function_symbols(source, elf)
    finally:
        os.close(fd)


def real_files() -> list[str]:
    """The C library, this Python, and the largest programs that happen to be here."""
    maps = Path("/proc/self/maps").read_text()
    libraries = set(re.findall(r"/\S+/(?:libc|libm|libpython3)[^/\s]*\.so\S*", maps))
    wanted = ["/usr/bin/node", "/usr/bin/bpftrace", "/usr/bin/perf", "/usr/bin/gdb"]
    return [*sorted(libraries), os.path.realpath(sys.executable), *filter(os.path.exists, wanted)]


@pytest.mark.parametrize("path", real_files())
def test_every_answer_is_a_symbol_that_readelf_shows(path: str) -> None:
    """Thousands of addresses: each name has that start, and the address lies within its size."""
    truth = readelf_functions(path)
    _, symbols = load(path)
    assert len(symbols) >= len(truth) > 0
    chosen = random.Random(7)
    starts = chosen.choices(sorted(truth), k=5000)
    for start in starts:
        size = max(truth[start].values())
        address = VirtOffset(start + chosen.randrange(size or 1))
        found = symbols.find(address)
        assert found is not None
        assert found.start <= address
        if found.start == start:
            assert found.name in truth[start]
        else:  # a function inside a function
            assert found.start > start
            assert found.name in truth[found.start]


@pytest.mark.parametrize("path", [path for path in real_files() if is_complete(load(path)[0])])
def test_addr2line_gives_the_same_names(path: str, tmp_path: Path) -> None:
    """Where there is one name; where there are several, one of them.

    Asked of a copy without debug information, which has ideas of its own about names; addr2line
    does not look into .dynsym.
    """
    bare = tmp_path / "bare"
    sections = (".gnu_debuglink", ".note.gnu.build-id")
    run("objcopy", "--strip-debug", *(f"--remove-section={name}" for name in sections), path, bare)
    truth = readelf_functions(bare)
    _, symbols = load(bare)
    assert symbols
    sized = [start for start, names in truth.items() if max(names.values()) > 0]
    chosen = random.Random(11).sample(sorted(sized), min(2000, len(sized)))
    asked = "".join(f"{start:#x}\n" for start in chosen)
    lines = run("addr2line", "-f", "-e", bare, input=asked).splitlines()[::2]
    for start, line in zip(chosen, lines, strict=True):
        found = symbols.find(VirtOffset(start))
        assert found is not None
        assert {found.name, line.partition("@")[0]} <= set(truth[start])


def test_aliases_have_an_order() -> None:
    """Global over weak over local, then fewest underscores, then the alphabet; size from any."""
    texts = b"\0weak\0_global\0__global\0global\0local\0another\0"
    func = 2

    def row(name: bytes, bind: int, size: int = 8) -> tuple[int, int, int, int]:
        return 0x1000, size, bind << 4 | func, texts.index(b"\0" + name + b"\0") + 1

    weak, plain, local = row(b"weak", 2), row(b"global", 1, 0), row(b"local", 0)
    under, more, another = row(b"_global", 1), row(b"__global", 1), row(b"another", 1)
    for rows, name in [
        ([local, weak], "weak"),
        ([weak, more, under], "_global"),
        ([more, under, plain, weak], "global"),
        ([plain, another, local], "another"),
    ]:
        for order in (rows, rows[::-1]):
            found = Symbols(order, texts, []).find(VirtOffset(0x1007))
            assert found is not None
            assert found.name == name


def test_sizes_of_zero_end_at_the_next_symbol_or_the_section() -> None:
    """And never go on for ever."""
    texts = b"\0a\0b\0"
    text = Section(".text", 1, 6, 0x1000, 0, 0x100, 0, 0)
    symbols = Symbols([(0x1000, 0, 2, 1), (0x1080, 0, 2, 3)], texts, [text])
    for address, name in [(0x1000, "a"), (0x107F, "a"), (0x1080, "b"), (0x10FF, "b")]:
        found = symbols.find(VirtOffset(address))
        assert found is not None
        assert found.name == name
    assert symbols.find(VirtOffset(0xFFF)) is None
    assert symbols.find(VirtOffset(0x1100)) is None


def test_the_innermost_function_speaks() -> None:
    """Functions inside functions, against a slow reference."""
    chosen = random.Random(3)
    for _ in range(200):
        texts, rows = b"\0", []
        for index in range(chosen.randrange(1, 12)):
            rows.append((chosen.randrange(60), chosen.randrange(1, 30), 2, len(texts)))
            texts += b"f%d\0" % index
        symbols = Symbols(rows, texts, [])
        sizes: dict[int, int] = {}
        for start, size, _, _ in rows:
            sizes[start] = max(size, sizes.get(start, 0))
        for address in range(95):
            holders = [start for start, size in sizes.items() if start <= address < start + size]
            found = symbols.find(VirtOffset(address))
            assert (found.start if found else None) == max(holders, default=None)


@pytest.mark.parametrize("options", [(), ("-no-pie",), ("-fcf-protection=full", "-Wl,-z,lazy")])
def test_imports_are_named_after_what_they_call(tmp_path: Path, options: tuple[str, ...]) -> None:
    """objdump finds the same `name@plt` at the same addresses."""
    path = compile_c(tmp_path / "program", *options)
    truth = {
        int(address, 16): name
        for address, name in re.findall(
            r"^([0-9a-f]+) <(\w+@plt)>:", run("objdump", "-d", path), re.MULTILINE
        )
    }
    assert "getppid@plt" in truth.values()
    _, symbols = load(path)
    for address, name in truth.items():
        for inside in (0, 7):
            found = symbols.find(VirtOffset(address + inside))
            assert found is not None
            assert found.name == name


@pytest.mark.parametrize("machine", ["aarch64", "powerpc", "i386"])
def test_other_machines_files_are_read(tmp_path: Path, machine: str) -> None:
    """32 and 64 bits, both byte orders."""
    prefix, bits_order = {
        "aarch64": ("aarch64-linux-gnu-", (64, "<")),
        "powerpc": ("", (32, ">")),
        "i386": ("", (32, "<")),
    }[machine]
    target = tmp_path / "object.o"
    if prefix:
        source = tmp_path / "object.s"
        source.write_text(".globl work\n.type work,%function\nwork: ret\n.size work,.-work\n")
        run(f"{prefix}as", "-o", target, source)
        elf, symbols = load(target)
        assert symbols.find(VirtOffset(0)) == ("work", 0)
    elif machine == "i386":
        source = tmp_path / "object.c"
        source.write_text("int other(void) { return 2; } int work(void) { return 1; }\n")
        run("gcc", "-m32", "-c", "-O1", "-o", target, source)
        elf, symbols = load(target)
        truth = readelf_functions(target)
        assert {symbols.find(VirtOffset(at)).name for at in truth} == {"other", "work"}
    else:
        target.write_bytes(big_endian_32())
        assert "work" in run("readelf", "-sW", target)
        elf, symbols = load(target)
        assert symbols.find(VirtOffset(0x1004)) == ("work", 0x1000)
    assert (elf.bits, elf.order) == bits_order


def big_endian_32() -> bytes:
    """An ELF32 MSB file with one function, `work`, of 8 bytes at 0x1000."""
    names = b"\0.text\0.symtab\0.strtab\0"
    strings = b"\0work\0"
    symbols = pack(">IIIBBH", 0, 0, 0, 0, 0, 0) + pack(">IIIBBH", 1, 0x1000, 8, 0x12, 0, 1)
    at, body = 52, b""
    rows = [pack(">10I", *([0] * 10))]
    for name, type_, flags, address, data, link, entry in [
        (1, 1, 6, 0x1000, bytes(8), 0, 0),
        (7, 2, 0, 0, symbols, 3, 16),
        (15, 3, 0, 0, strings, 0, 0),
        (15, 3, 0, 0, names, 0, 0),
    ]:
        rows.append(
            pack(">10I", name, type_, flags, address, at + len(body), len(data), link, 1, 1, entry)
        )
        body += data
    header = b"\x7fELF\1\2\1" + bytes(9)
    header += pack(">HHIIIIIHHHHHH", 2, 20, 1, 0, 0, at + len(body), 0, 52, 0, 0, 40, len(rows), 4)
    return header + body + b"".join(rows)


def test_file_offsets_become_the_files_own_addresses(tmp_path: Path) -> None:
    """Through the program headers, wherever the linker put the segments."""
    moved = ("-no-pie", "-Wl,-Ttext-segment=0x700000")
    for options in ((), ("-no-pie",), ("-Wl,-z,noseparate-code",), moved):
        elf, _ = load(compile_c(tmp_path / "program", *options))
        text = next(s for s in elf.sections if s.name == ".text")
        assert to_virtual(elf, FileOffset(text.offset)) == text.address
        assert to_virtual(elf, FileOffset(text.offset + 16)) == text.address + 16
        assert to_virtual(elf, FileOffset(1 << 40)) is None


def test_build_ids_are_readelfs(tmp_path: Path) -> None:
    """In section and program headers; and "" where there is none."""
    path = compile_c(tmp_path / "program")
    shown = re.search(r"Build ID: ([0-9a-f]+)", run("readelf", "-nW", path))
    assert shown is not None
    assert load(path)[0].build_id == shown[1]
    data = bytearray(path.read_bytes())
    data[40:48] = bytes(8)  # e_shoff
    data[58:64] = bytes(6)  # e_shentsize, e_shnum, e_shstrndx
    assert read_elf(BytesSource(bytes(data))).build_id == shown[1]
    assert load(compile_c(tmp_path / "without", "-Wl,--build-id=none"))[0].build_id == ""


def test_strip_leaves_what_the_loader_needs(tmp_path: Path) -> None:
    """Static functions are gone, exported ones stay."""
    path = compile_c(tmp_path / "program", "-rdynamic")
    full = readelf_functions(path)
    run("strip", path)
    _, symbols = load(path)
    by_name = {name: start for start, names in full.items() for name in names}
    found = symbols.find(VirtOffset(by_name["visible_work"]))
    assert found is not None
    assert found.name == "renamed_work"  # both global, no underscore: the alphabet
    assert symbols.find(VirtOffset(by_name["hidden_work"])) is None
