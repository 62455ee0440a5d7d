# SPDX-License-Identifier: MIT
"""The reader: what was described is what is read, and damage gives one line, soon.

Must not know the emitter's insides; it damages finished files.
"""

import ctypes
import os
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stubgen import Arg, Probe, Provider, build
from stubgen.arch import MACHINES
from stubgen.argtypes import BY_NAME
from stubgen.found import split_operands
from stubgen.image import file_name
from stubgen.read import DeniedError, ReadError, read_elf, read_path, read_pid

KINDS = [(machine.name, nop) for machine in MACHINES.values() for nop in machine.nops]
SHOP = Provider(
    "shop",
    (
        Probe("order_start", (Arg("id", "u64"), Arg("customer", "str"))),
        Probe("chunk", (Arg("data", "bytes"), Arg("seq", "i16"))),
        Probe("tick"),
    ),
)
STUB = build(SHOP)

#: A damaged file of a few KiB must be done with in this time, whatever it claims to hold.
SOON = 2.0

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,99}", fullmatch=True)


@st.composite
def probes(draw):
    kinds = draw(st.lists(st.sampled_from(sorted(BY_NAME)), max_size=12))
    while sum(len(BY_NAME[kind].operands) for kind in kinds) > 12:
        kinds.pop()
    arg_names = draw(st.lists(names, unique=True, min_size=len(kinds), max_size=len(kinds)))
    return Probe(draw(names), tuple(map(Arg, arg_names, kinds)))


providers = st.builds(
    lambda name, found: Provider(name, tuple(found)),
    names,
    st.lists(probes(), min_size=1, max_size=8, unique_by=lambda probe: probe.name),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(providers, st.sampled_from(KINDS))
def test_what_was_described_is_what_is_read(provider, kind):
    """spec -> stub -> read gives back the names, types, operand sizes, machine and nop kind."""
    arch, nop = kind
    elf = read_elf(build(provider, arch=arch, nop=nop))
    assert (elf.machine, elf.bits, elf.byte_order) == (arch, 64, "little")
    assert elf.is_stub
    assert elf.why is None
    read = tuple(Probe(probe.name, probe.args) for probe in elf.probes)
    assert Provider(elf.probes[0].provider, read) == provider
    for described, probe in zip(provider.probes, elf.probes, strict=True):
        sizes = tuple(int(operand.partition("@")[0]) for operand in probe.operands)
        assert sizes == described.operands
        assert probe.nop == nop
        assert probe.semaphore is not None


def test_arguments_know_their_operands():
    """A bytes argument takes two operands, and what follows it moves by one."""
    chunk = read_elf(STUB).probes[1]
    assert chunk.first_operands == (0, 2)
    assert chunk.operands == ("8@%rdi", "8@%rsi", "-2@%dx")


def test_streams_and_paths_read_as_bytes_do(tmp_path):
    """bytes, a stream and a path give the same probes."""
    path = tmp_path / "stub.so"
    path.write_bytes(STUB)
    expected = read_elf(STUB).probes
    assert read_elf(BytesIO(STUB)).probes == expected
    assert read_path(path).probes == expected
    assert read_path(str(path)).path == str(path)


def test_function_symbols_are_read_when_asked_for():
    """functions=True names the sized function around each site; else nothing is said."""
    assert read_elf(STUB).functions is None
    elf = read_elf(STUB, functions=True)
    assert elf.functions == {probe.site: f"shop.{probe.name}" for probe in elf.probes}


@pytest.mark.parametrize(
    ("text", "operands"),
    [
        ("", ()),
        ("8@%rdi -4@%esi", ("8@%rdi", "-4@%esi")),
        ("8@x0 4@[sp, 16] 8@[x1]", ("8@x0", "4@[sp, 16]", "8@[x1]")),
        ("8@-8(%rbp) 4@(%rax,%rbx,4)", ("8@-8(%rbp)", "4@(%rax,%rbx,4)")),
        ("8@[sp, 16", ("8@[sp, 16",)),
        ("]]] 8@x0", ("]]]", "8@x0")),
    ],
)
def test_operands_are_split_at_blanks_outside_brackets(text, operands):
    """AArch64's [sp, 16] holds a blank and stays whole."""
    assert split_operands(text) == operands


# --- files of other makers


def foreign(*, bits=64, order="<", base=0x2000, noted_base=0x2000, note=None, description=b""):
    """A minimal ELF with one probe as gcc and sys/sdt.h leave it, of any class and byte order."""
    is64 = bits == 64
    word = "Q" if is64 else "I"
    if note is None:
        note = struct.pack(f"{order}3{word}", 0x1000, noted_base, 0x3000) + b"app\0go\0-4@%eax\0"
    notes = struct.pack(f"{order}III", 8, len(note), 3) + b"stapsdt\0" + note
    notes += b"\0" * (-len(notes) % 4)
    strings = b"\0.note.stapsdt\0.stapsdt.base\0.probes\0.shstrtab\0.usdt\0"
    header_size = 64 if is64 else 52
    phdr, shdr = (56, 64) if is64 else (32, 40)
    rows = [("", 0, 0, 0, b"")]
    rows += [(".note.stapsdt", 7, 0, 0, notes), (".stapsdt.base", 1, 2, base, b"\0")]
    rows += [(".probes", 1, 3, 0x3000, b"\0\0"), (".shstrtab", 3, 0, 0, strings)]
    if description:
        rows.append((".usdt", 1, 2, 0x2100, description))
    at = header_size + phdr * 2
    body, headers = b"", b""
    for name, kind, flags, address, data in rows:
        where = strings.index(f"\0{name}\0".encode()) + 1 if name else 0
        fields = (where, kind, flags, address, at + len(body), len(data), 0, 0, 4, 0)
        headers += struct.pack(f"{order}II{'QQQQIIQQ' if is64 else 'IIIIIIII'}", *fields)
        body += data
    shoff = at + len(body)
    ident = b"\x7fELF" + bytes((2 if is64 else 1, 1 if order == "<" else 2, 1)) + bytes(9)
    head = struct.pack(
        f"{order}16sHHI{word * 3}IHHHHHH", ident, 3, 62 if is64 else 8, 1, 0, header_size, shoff, 0,
        header_size, phdr, 2, shdr, len(rows), 4,
    )  # fmt: skip
    loads = b""
    for flags, address in ((5, 0x1000), (6, 0x3000)):
        if is64:
            loads += struct.pack(f"{order}IIQQQQQQ", 1, flags, 0, address, 0, 64, 64, 0x1000)
        else:
            loads += struct.pack(f"{order}IIIIIIII", 1, 0, address, 0, 52, 52, flags, 0x1000)
    return head + loads + body + headers


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_any_class_and_byte_order_is_read(bits, order):
    """32 and 64 bits, little and big endian; arguments have no names."""
    elf = read_elf(foreign(bits=bits, order=order))
    (probe,) = elf.probes
    assert (elf.bits, elf.byte_order) == (bits, "little" if order == "<" else "big")
    assert (probe.full_name, probe.operands, probe.args) == ("app:go", ("-4@%eax",), None)
    assert (probe.site, probe.semaphore) == (0x1000, 0x3000)
    assert probe.site_offset == 0
    assert not elf.is_stub


def test_prelinked_addresses_are_adjusted():
    """What .stapsdt.base has moved by since the note was written, site and semaphore have too."""
    (probe,) = read_elf(foreign(base=0x2500, noted_base=0x2000)).probes
    assert (probe.site, probe.semaphore) == (0x1500, 0x3500)
    (probe,) = read_elf(foreign(base=0x1F00, noted_base=0x2000)).probes
    assert (probe.site, probe.semaphore) == (0xF00, 0x2F00)


def test_no_semaphore_is_none_and_does_not_move():
    """A zero semaphore address means none, prelinked or not."""
    note = struct.pack("<QQQ", 0x1000, 0x2000, 0) + b"app\0go\0\0"
    (probe,) = read_elf(foreign(base=0x2500, note=note)).probes
    assert (probe.semaphore, probe.semaphore_offset, probe.operands) == (None, None, ())


def test_names_are_printable():
    """Control characters of a hostile name cannot reach a terminal."""
    note = struct.pack("<QQQ", 0x1000, 0x2000, 0) + b"a\x1b[2J\0g\xff\0\0"
    (probe,) = read_elf(foreign(note=note)).probes
    assert probe.full_name == r"a\x1b[2J:g\xff"


@pytest.mark.parametrize(
    ("description", "is_stub", "why"),
    [
        (b"usdt 1\0app:go(i32 status)\0", True, None),
        (b"usdt 2\0whatever", True, "pip install --upgrade usdt-toolkit"),
        (b"usdt 1\0", True, "0 probes and its notes 1"),
        (b"usdt 1\0app:go(i32 status)\0app:no()\0", True, "2 probes and its notes 1"),
        (b"usdt 1\0app:stop(i32 status)\0", True, "no signature of app:go"),
        (b"usdt 1\0app:go(u32 status)\0", True, "does not fit"),
        (b"usdt 1\0app:go()\0", True, "does not fit"),
        (b"usdt 1\0app:go(i32 a, i32 a)\0", True, "two arguments"),
        (b"usdt 1\0app:go(i128 a)\0", True, "'i128'"),
        (b"usdt 1\0app:go(i32)\0", True, "name is empty"),
        (b"usdt 1\0app:go(i32 status\0", True, "no signature"),
        (b"something else", False, None),
    ],
)
def test_a_self_description_is_used_only_if_it_fits(description, is_stub, why):
    """A newer, damaged or foreign one leaves probes without names, and says why."""
    elf = read_elf(foreign(description=description))
    assert elf.is_stub == is_stub
    assert (elf.why is None) if why is None else (why in elf.why)
    named = is_stub and why is None
    assert elf.probes[0].args == ((Arg("status", "i32"),) if named else None)


# --- damage


def read_soon(data):
    """A result or a ReadError of one line, in bounded time; anything else fails the test."""
    start = time.monotonic()
    said = ""
    try:
        for functions in (False, True):
            read_elf(bytes(data), functions=functions)
    except ReadError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 500
    assert time.monotonic() - start < SOON


damage = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@damage
@given(st.lists(st.tuples(st.integers(0, len(STUB) - 1), st.integers(0, 7)), min_size=1))
def test_flipped_bits(flips):
    """Any bits flipped, anywhere."""
    data = bytearray(STUB)
    for at, bit in flips:
        data[at] ^= 1 << bit
    read_soon(data)


@damage
@given(st.integers(0, len(STUB)))
def test_truncations(size):
    """Cut off at any byte."""
    read_soon(STUB[:size])


@damage
@given(st.integers(0, len(STUB)), st.integers(0, 200), st.binary(max_size=200))
def test_spliced_bytes(at, gone, new):
    """Bytes taken out and others put in, so that every later offset is wrong."""
    read_soon(STUB[:at] + new + STUB[at + gone :])


E_SHOFF = struct.unpack_from("<Q", STUB, 40)[0]
HOSTILE = st.sampled_from([0, 1, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])


@damage
@given(st.integers(0, 13), st.sampled_from([0, 4, 8, 16, 24, 32, 40, 44, 48, 56]), HOSTILE)
def test_hostile_section_headers(index, field, value):
    """Any field of any section header set to an extreme value."""
    data = bytearray(STUB)
    size = 4 if field in (0, 4, 40, 44) else 8
    at = E_SHOFF + 64 * index + field
    data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    read_soon(data)


@damage
@given(st.sampled_from([(32, 8), (40, 8), (54, 2), (56, 2), (58, 2), (60, 2), (62, 2)]), HOSTILE)
def test_hostile_file_headers(field, value):
    """Any offset, size or count of the file header set to an extreme value."""
    at, size = field
    data = bytearray(STUB)
    data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    read_soon(data)


@damage
@given(st.binary(max_size=400))
def test_noise_after_the_magic(noise):
    """A file that is ELF by its first bytes only."""
    read_soon(b"\x7fELF\x02\x01\x01" + noise)


def test_a_gigabyte_of_claims_costs_nothing(tmp_path):
    """A sparse file whose note section claims a gigabyte is refused at once."""
    data = bytearray(STUB)
    index = [s.name for s in read_elf(STUB).sections].index(".note.stapsdt")
    struct.pack_into("<Q", data, E_SHOFF + 64 * index + 32, 1 << 30)
    path = tmp_path / "sparse.so"
    with path.open("wb") as file:
        file.write(data)
        file.truncate(2 << 30)
    start = time.monotonic()
    with pytest.raises(ReadError, match="more than any real one"):
        read_path(path)
    assert time.monotonic() - start < SOON


def test_a_hundred_megabytes_are_read_in_time(tmp_path):
    """Size of a file without reason to read it costs nothing: headers lie at its end."""
    data = bytearray(STUB)
    headers = data[E_SHOFF:]
    path = tmp_path / "large.so"
    struct.pack_into("<Q", data, 40, 100 << 20)
    with path.open("wb") as file:
        file.write(data[:E_SHOFF])
        file.seek(100 << 20)
        file.write(headers)
    start = time.monotonic()
    assert len(read_path(path).probes) == 3
    assert time.monotonic() - start < 1.5


def test_a_million_tiny_notes_are_refused(tmp_path):
    """Sixteen MiB of the smallest possible probes end at a limit, in bounded time and memory."""
    note = struct.pack("<QQQ", 0x1000, 0x2000, 0) + b"a\0b\0\0\0\0\0"
    one = struct.pack("<III", 8, len(note), 3) + b"stapsdt\0" + note
    data = foreign(note=note + one * 200_000)
    # the first note swallowed the rest: give them back
    data = data.replace(struct.pack("<II", 8, len(note) + len(one) * 200_000), one[:8], 1)
    start = time.monotonic()
    with pytest.raises(ReadError, match="more than 65536 probes"):
        read_elf(data)
    assert time.monotonic() - start < 10


def test_sixty_thousand_long_section_names_are_read_in_time():
    """Sections that share one name of 15 MiB, each a byte further on."""
    names, sections = b"A" * (15 << 20), 60_000
    at = E_SHOFF + 64 * (14 + sections)
    headers = bytearray(STUB[E_SHOFF : E_SHOFF + 64 * 14])
    struct.pack_into("<QQ", headers, 64 * 13 + 24, at, len(names))
    more = b"".join(struct.pack("<I", i) + bytes(headers[4:64]) for i in range(sections))
    data = bytearray(STUB[:E_SHOFF]) + headers + more + names
    struct.pack_into("<H", data, 60, 14 + sections)
    start = time.monotonic()
    assert read_elf(bytes(data)).probes == ()
    assert time.monotonic() - start < 10


def test_millions_of_symbols_are_read_in_time():
    """A symbol table of functions that all claim every site; the first one has them."""
    count = 1_000_000
    symbol = struct.pack("<IBBHQQ", 1, 2, 0, 9, 0, 1 << 40)
    data = bytearray(STUB)
    index = [section.name for section in read_elf(STUB).sections].index(".dynsym")
    struct.pack_into("<QQ", data, E_SHOFF + 64 * index + 24, len(data), len(symbol) * count)
    start = time.monotonic()
    elf = read_elf(bytes(data) + symbol * count, functions=True)
    assert set(elf.functions) == {probe.site for probe in elf.probes}
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.write_bytes(b""), "not an ELF file"),
        (lambda path: path.write_text("#!/bin/sh\n"), "not an ELF file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot read it"),
    ],
)
def test_what_is_no_elf_file_is_a_read_error(tmp_path, make, message):
    """Directories, FIFOs, devices, loops of links and texts: one line, at once."""
    path = tmp_path / "it"
    make(path)
    with pytest.raises(ReadError, match=message) as caught:
        read_path(path)
    assert "\n" not in str(caught.value)


def test_a_path_with_nul_is_a_read_error():
    """A path that no file can have."""
    with pytest.raises(ReadError, match="cannot read it"):
        read_path("a\0b")


# --- processes


@pytest.fixture
def loaded(tmp_path):
    """A stub of this machine, dlopened into this process; its path and the library."""
    arch = os.uname().machine
    if arch not in MACHINES:
        pytest.skip(f"no stub emitter for {arch}")
    data = build(SHOP, arch=arch)
    path = tmp_path / file_name(SHOP, data)
    path.write_bytes(data)
    return path, ctypes.CDLL(str(path))


def test_a_process_shows_its_semaphores(loaded):
    """read_pid finds the stub once, with each semaphore's value at this moment."""
    path, library = loaded
    ctypes.c_uint16.in_dll(library, "shop_chunk_semaphore").value = 513
    (mapped,) = [m for m in read_pid(os.getpid()) if m.path == str(path)]
    assert mapped.reach == str(path)
    assert not mapped.deleted
    assert mapped.values == (0, 513, 0)
    assert [mapped.listening(i) for i in range(3)] == [False, True, False]
    function = ctypes.cast(library["shop.chunk"], ctypes.c_void_p).value
    assert mapped.bias + mapped.elf.probes[1].site - function in range(16)


def test_a_deleted_stub_is_still_found(loaded):
    """A file without a name is read through the process that has it mapped."""
    path, _library = loaded
    path.unlink()
    found = [m for m in read_pid(os.getpid()) if m.path == str(path)]
    if not found and os.geteuid():
        pytest.skip("/proc/PID/map_files needs CAP_CHECKPOINT_RESTORE")
    (mapped,) = found
    assert mapped.deleted
    assert [probe.name for probe in mapped.elf.probes] == ["order_start", "chunk", "tick"]


def test_a_memfd_stub_is_found():
    """A stub that never had a name, as on systems where every directory is noexec."""
    arch = os.uname().machine
    if arch not in MACHINES:
        pytest.skip(f"no stub emitter for {arch}")
    fd = os.memfd_create("usdt-shop")
    os.write(fd, build(SHOP, arch=arch))
    # ld.so knows a library by the path it was opened by, and the number of a closed fd is taken
    # again: a path that no other test uses.
    library = ctypes.CDLL(f"/proc/self/task/{threading.get_native_id()}/fd/{fd}")
    ctypes.c_uint16.in_dll(library, "shop_tick_semaphore").value = 1
    found = [m for m in read_pid(os.getpid()) if "memfd:usdt-shop" in m.path]
    os.close(fd)
    (mapped,) = found
    assert mapped.deleted
    assert mapped.reach == f"/proc/{os.getpid()}/fd/{fd}"
    assert mapped.values == (0, 0, 1)


def test_a_cache_carries_over():
    """A second process costs no second reading of what both have mapped."""
    cache = {}
    first = read_pid(os.getpid(), cache)
    size = len(cache)
    second = read_pid(os.getpid(), cache)
    assert len(cache) == size
    assert [m.path for m in first] == [m.path for m in second]


def test_a_process_that_is_gone_is_a_read_error():
    """The PID of a process that was reaped."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ReadError, match=f"process {process.pid} is gone"):
        read_pid(process.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become somebody else")
def test_a_process_of_somebody_else_is_denied():
    """Without ptrace rights: a DeniedError that says sudo."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            os.setgid(65534)
            os.setuid(65534)
            try:
                read_pid(os.getppid())
            except DeniedError as error:
                os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert "sudo" in answer.read()
    os.waitpid(pid, 0)
