# SPDX-License-Identifier: MIT
"""The bytes of a stub: the same for the same description, and another path for another one.

Layout facts here are the ones our own code relies on; tests/elf asks other tools.
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stubgen import Arg, Probe, Provider, SpecError, build
from stubgen.arch import MACHINES
from stubgen.argtypes import BY_NAME
from stubgen.image import build_id, file_name
from stubgen.read import read_elf

ROOT = Path(__file__).parents[2]
KINDS = [(machine.name, nop) for machine in MACHINES.values() for nop in machine.nops]

SHOP = Provider(
    "shop",
    (
        Probe("order_start", (Arg("id", "u64"), Arg("customer", "str"))),
        Probe("order_done", (Arg("id", "u64"), Arg("status", "i32"), Arg("ns", "u64"))),
    ),
)

# These freeze the format: stubs shipped in wheels are found by these names, and processes of two
# releases share one inode only while they agree. A change here orphans every stub in the field,
# so it needs a line in CHANGELOG.md, and a new format version if a reader could misread it.
GOLDEN = {
    ("x86_64", "nop1"): "e1c24f762de55872fa3410fbb2bba8eb2b93ba37",
    ("x86_64", "nop5"): "02c4afdc72e663fce377641cfddab30c6436ec05",
    ("aarch64", "nop1"): "e35acdb00044bf4ccc4c3929a5121dca2bc4effd",
}


@pytest.mark.parametrize(("arch", "nop"), KINDS)
def test_build_ids_are_golden(arch, nop):
    """The build id of a known description does not change between releases."""
    assert build_id(build(SHOP, arch=arch, nop=nop)).hex() == GOLDEN[arch, nop]


def test_environment_does_not_enter_the_bytes(tmp_path):
    """Another process, with other hash seed, locale, time zone and directory: the same bytes."""
    code = (
        "import sys; from stubgen import *;"
        "p = Provider('shop', (Probe('order_start', (Arg('id', 'u64'), Arg('customer', 'str'))),"
        " Probe('order_done', (Arg('id', 'u64'), Arg('status', 'i32'), Arg('ns', 'u64')))));"
        "sys.stdout.buffer.write(build(p))"
    )
    expected = build(SHOP)
    for seed in ("0", "1", "4242"):
        env = {
            "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "TZ": "Pacific/Apia", "LC_ALL": "C",
            "USDT_STUB_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": os.environ["PATH"],
        }  # fmt: skip
        made = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, check=True
        )
        assert made.stdout == expected


def variants():
    start, done = SHOP.probes
    yield "provider name", Provider("shoq", SHOP.probes), {}
    yield "probe name", Provider("shop", (start, Probe("order_dont", done.args))), {}
    yield "order of probes", Provider("shop", (done, start)), {}
    yield "one probe less", Provider("shop", (start,)), {}
    renamed = Probe("order_start", (Arg("id", "u64"), Arg("customes", "str")))
    yield "argument name", Provider("shop", (renamed, done)), {}
    # the same operand size and sign, so that only the self-description differs
    retyped = Probe("order_start", (Arg("id", "ptr"), Arg("customer", "str")))
    yield "argument type", Provider("shop", (retyped, done)), {}
    yield "machine", SHOP, {"arch": "aarch64"}
    yield "nop kind", SHOP, {"nop": "nop5"}


def test_whatever_differs_gets_another_path():
    """Everything of the description, the machine and the nop kind enter the hash."""
    names = {"as is": file_name(SHOP, build(SHOP))}
    for what, provider, options in variants():
        names[what] = file_name(provider, build(provider, **options))
    assert len({name.partition("-")[2] for name in names.values()}) == len(names), names


def test_the_file_name_is_the_hash_of_every_byte():
    """SHA-256 of the file with its id zeroed is the id; its first 8 bytes are in the name."""
    stub = build(SHOP)
    identity = read_elf(stub).build_id
    assert identity == build_id(stub)
    assert stub.count(identity) == 1
    assert hashlib.sha256(stub.replace(identity, bytes(20))).digest()[:20] == identity
    assert file_name(SHOP, stub) == f"shop-{identity.hex()[:16]}.so"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "riscv64"}, "use one of x86_64, aarch64"),
        ({"nop": "nop10"}, "use one of nop1, nop5"),
        ({"arch": "aarch64", "nop": "nop5"}, "use one of nop1"),
    ],
)
def test_unknown_machines_and_nops_are_refused(options, message):
    """What there is no emitter for is a SpecError that lists what there is."""
    with pytest.raises(SpecError, match=message):
        build(SHOP, **options)


def test_an_empty_provider_is_refused():
    """A stub without probes makes no sense."""
    with pytest.raises(SpecError, match="no probes"):
        build(Provider("shop"))


@pytest.mark.parametrize(("arch", "nop"), KINDS)
def test_segments_keep_rights_apart(arch, nop):
    """Three page-aligned PT_LOADs, R, RX and RW; no byte of the file belongs to two."""
    elf = read_elf(build(SHOP, arch=arch, nop=nop))
    loads = [s for s in elf.segments if s.type == "PT_LOAD"]
    page = MACHINES[arch].page
    assert [load.flags for load in loads] == [4, 5, 6]
    for load, after in zip(loads, [*loads[1:], None], strict=True):
        assert load.align == page
        assert load.address % page == load.offset % page
        if after:
            assert load.offset + load.file_size <= after.offset & -0x1000
            assert load.address + load.memory_size <= after.address & -page
    (stack,) = [s for s in elf.segments if s.type == "PT_GNU_STACK"]
    assert not stack.flags & 1


@pytest.mark.parametrize(("arch", "nop"), KINDS)
def test_sites_and_semaphores_are_where_tracers_look(arch, nop):
    """Each site is its nop in the executable segment; each semaphore is a zero u16 of .probes."""
    stub = build(SHOP, arch=arch, nop=nop)
    elf = read_elf(stub)
    probes = elf.section(".probes")
    for index, probe in enumerate(elf.probes):
        code = MACHINES[arch].nops[nop]
        assert stub[probe.site_offset : probe.site_offset + len(code)] == code
        assert elf.load_of(probe.site).flags == 5
        assert probe.nop == nop
        assert probe.semaphore == probes.address + 2 * index
        assert elf.load_of(probe.semaphore).flags == 6
        assert stub[probe.semaphore_offset : probe.semaphore_offset + 2] == b"\0\0"


def test_a_thousand_probes_fit():
    """A provider of 1000 probes with 12 operands each builds and reads back."""
    probes = tuple(
        Probe(f"probe_{i}", tuple(Arg(f"arg_{j}", "i16") for j in range(12))) for i in range(1000)
    )
    elf = read_elf(build(Provider("wide", probes)))
    assert [probe.name for probe in elf.probes] == [probe.name for probe in probes]
    assert len({probe.semaphore for probe in elf.probes}) == 1000


def test_the_documented_sections_are_the_sections():
    """The table of docs/stub-format.md names every section, in file order, with its type."""
    text = (ROOT / "docs/stub-format.md").read_text()
    rows = re.findall(r"^\| `(\.[\w.-]+)` \| (\w+) \| ([RWE ]+|none) \|", text, re.MULTILINE)
    rights = {4: "R", 5: "R E", 6: "RW"}
    for arch, nop in KINDS:
        elf = read_elf(build(SHOP, arch=arch, nop=nop))
        loads = [elf.load_of(s.address) if s.flags & 2 else None for s in elf.sections]
        assert rows == [
            (s.name, s.type.removeprefix("SHT_"), rights[load.flags] if load else "none")
            for s, load in zip(elf.sections, loads, strict=True)
            if s.name
        ]


def test_the_documented_operands_are_the_operands():
    """The table of argument types shows what the notes of x86-64 say."""
    text = (ROOT / "docs/stub-format.md").read_text()
    table = text[text.index("| argument type |") : text.index("The seventh operand")]
    documented = {}
    for row in table.splitlines()[2:]:
        cells = re.findall(r"`([^`]+)`", row)
        names = [cell for cell in cells if cell in BY_NAME]
        documented |= dict(zip(names, cells[len(names) :], strict=bool(names)))
    for name in BY_NAME:
        (probe,) = read_elf(build(Provider("p", (Probe("q", (Arg("a", name),)),)))).probes
        assert documented[name] == " ".join(probe.operands)
