# SPDX-License-Identifier: MIT
"""What bpftrace reads back: every type at its extremes, every arity, text and bytes as they were.

Expectations are written by hand from the System V ABI, not with the help of stubgen.bpftrace.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from harness import StartBpftrace, StartService, patched, sites, wait_until

NOPS = ("nop1", "nop5")

#: A site is first traced through a trap; a nop5 site is a call from its second firing on.
ROUNDS = 3

#: Type -> printf conversion and values, the least and the greatest among them.
INTEGERS: dict[str, tuple[str, tuple[int, ...]]] = {
    "i8": ("%d", (-(2**7), 2**7 - 1, -3, 0)),
    "i16": ("%d", (-(2**15), 2**15 - 1, -3, 0)),
    "i32": ("%d", (-(2**31), 2**31 - 1, -3, 0)),
    "i64": ("%ld", (-(2**63), 2**63 - 1, -3, 2**33 + 7)),
    "u8": ("%u", (2**8 - 1, 7, 0)),
    "u16": ("%u", (2**16 - 1, 257, 0)),
    "u32": ("%u", (2**32 - 1, 2**31, 0)),
    "u64": ("%lu", (2**64 - 1, 2**63, 2**33 + 7, 0)),
    "ptr": ("%lu", (2**64 - 1, 2**47 - 4096, 0)),
    "bool": ("%u", (True, False)),
}

FLOATS: dict[str, tuple[str, tuple[float, ...]]] = {
    "f32": ("<f", (-1.5, 0.1, 3.4028234663852886e38, 1e-45, -0.0, float("-inf"))),
    "f64": ("<d", (-1.5, 0.1, 1.7976931348623157e308, 5e-324, -0.0, float("inf"))),
}

#: 199 bytes are what bpftrace 0.17 can hold: BPFTRACE_STRLEN=200, and a NUL.
TEXTS = (
    "",
    "ada",
    "Grüße, 東京 \U0001f680",
    "x" * 198 + "y",
    "é" * 99 + "z",
    b"caf\xe9-\xff.txt".decode("utf-8", "surrogateescape"),
)

BLOBS = (b"", b"\0", b"\x00\xff\x7f\x80 a\n", bytes(range(100)), bytearray(b"mutable"))


@pytest.fixture
def fired(service: StartService, bpftrace: StartBpftrace) -> Callable[..., list[bytes]]:
    """fired(nop, probes, bodies) -> the lines that bpftrace printed.

    probes: name -> (types, list of argument tuples); bodies: name -> what bpftrace does.
    """

    def run(
        nop: str, probes: dict[str, tuple[list[str], list[Any]]], bodies: dict[str, str]
    ) -> list[bytes]:
        types = {name: declared for name, (declared, _) in probes.items()}
        values = {name: given for name, (_, given) in probes.items()}
        svc = service(
            f"import usdt\n"
            f"inf = float('inf')\n"
            f"shop = usdt.Provider('types', nop={nop!r})\n"
            f"for name, types in {types!r}.items():\n"
            f"    shop.add_probe(name, **{{f'a{{i}}': t for i, t in enumerate(types)}})\n"
            f"shop.load(); started(); wait()\n"
            f"for _ in range({ROUNDS}):\n"
            f"    for probe in shop.probes:\n"
            f"        for args in {values!r}[probe.spec.name]: probe(*args)\n"
            f"print('dropped', sum(p.dropped for p in shop.probes)); done(); wait()\n"
        )
        (path,) = svc.semaphores()
        script = "\n".join(f"usdt:{path}:types:{n} {{ {body} }}" for n, body in bodies.items())
        script += '\nusdt:"' + path + '":types:last { printf("LAST\\n"); }'
        tracer = bpftrace(script, attached=lambda: svc.listening() == len(probes))
        svc.go()
        svc.done()
        assert sites(svc.pid, "types") == {patched(nop)}
        assert "dropped 0" in svc.text
        wait_until(lambda: tracer.output.count(b"LAST\n") == ROUNDS, "the last event")
        tracer.stop()
        assert "lost" not in tracer.text.lower()
        return tracer.output.splitlines()

    return run


def plain(line: bytes) -> bytes:
    """A line without what some versions write between the digits of %rx."""
    head, _, digits = line.partition(b" ")
    if head != b"blob":
        return line
    length, _, digits = digits.partition(b" ")
    return b"blob %s %s" % (length, digits.replace(b"\\x", b"").replace(b" ", b""))


@pytest.mark.parametrize("nop", NOPS)
def test_every_type_at_its_extremes(fired: Callable[..., list[bytes]], nop: str) -> None:
    """Nothing is cut, swapped or loses its sign, for either nop kind."""
    probes: dict[str, tuple[list[str], list[Any]]] = {}
    bodies = {}
    expected = []
    for name, (conversion, integers) in INTEGERS.items():
        probes[name] = [name], [(value,) for value in integers]
        bodies[name] = f'printf("{name} {conversion}\\n", arg0);'
        expected += [f"{name} {int(value)}".encode() for value in integers]
    for name, (form, floats) in FLOATS.items():
        probes[name] = [name], [(value,) for value in floats]
        bodies[name] = f'printf("{name} %lx\\n", arg0);'
        bits = "<I" if name == "f32" else "<Q"
        expected += [
            b"%s %x" % (name.encode(), struct.unpack(bits, struct.pack(form, value))[0])
            for value in floats
        ]
    probes["text"] = ["str"], [(text,) for text in TEXTS]
    bodies["text"] = 'printf("text [%s]\\n", str(arg0));'
    expected += [b"text [%s]" % text.encode("utf-8", "surrogateescape") for text in TEXTS]
    probes["blob"] = ["bytes"], [(blob,) for blob in BLOBS]
    bodies["blob"] = 'printf("blob %ld %rx\\n", arg1, buf(arg0, arg1));'
    expected += [f"blob {len(blob)} {blob.hex()}".encode() for blob in BLOBS]
    probes["last"] = [], [()]

    lines = fired(nop, probes, bodies)
    seen = [plain(line) for line in lines if line.split(b" ")[0].decode("latin-1") in bodies]
    assert sorted(seen) == sorted(expected * ROUNDS)


#: What the arguments of a probe are, in turn: no two alike, and none that survives being cut
#: to 32 bits, zero-extended, or read from the place of its neighbour.
SEQUENCE: tuple[tuple[str, int], ...] = (
    ("u64", 2**33 + 7),
    ("i32", -3),
    ("u16", 65521),
    ("i64", -(2**40) - 11),
    ("u8", 251),
    ("i16", -32749),
    ("i64", -(2**35) - 13),
    ("u32", 4294967291),
    ("i8", -127),
    ("u64", 2**64 - 59),
    ("i32", -2147483629),
    ("bool", True),
)


def stack_word(index: int, kind: str) -> str:
    """Argument `index` >= 6 for a bpftrace that knows six by name: read where the ABI puts it."""
    width = 8 if kind == "bool" else int(kind[1:])
    sign = "" if kind[0] == "i" else "u"
    return f'*({sign}int{width}*)(reg("sp") + {16 + 8 * (index - 6)})'


@pytest.mark.parametrize("nop", NOPS)
def test_every_arity(fired: Callable[..., list[bytes]], nop: str) -> None:
    """0 to 12 arguments of mixed types and signs arrive in their places, for either nop kind."""
    probes: dict[str, tuple[list[str], list[Any]]] = {}
    bodies = {}
    expected = []
    for count in range(13):
        name = f"a{count}"
        chosen = SEQUENCE[:count]
        probes[name] = [kind for kind, _ in chosen], [tuple(value for _, value in chosen)]
        read = [f"arg{i}" if i < 6 else stack_word(i, kind) for i, (kind, _) in enumerate(chosen)]
        form = " ".join(["%lu" if kind == "u64" else "%ld" for kind, _ in chosen])
        text = f'"{name} {form}|\\n"'
        bodies[name] = f"printf({', '.join([text, *read])});"
        expected.append(f"{name} {' '.join(str(int(value)) for _, value in chosen)}|".encode())
    probes["last"] = [], [()]
    lines = [line for line in fired(nop, probes, bodies) if line.endswith(b"|")]
    assert sorted(lines) == sorted(expected * ROUNDS)


def test_a_string_beyond_the_tracers_room_is_cut_there(
    fired: Callable[..., list[bytes]],
) -> None:
    """200 and more bytes: the first 199, or 200, arrive, and no probe beside it is hurt."""
    probes = {"text": (["str"], [("a" * 200,), ("b" * 100_000,)]), "last": ([], [()])}
    lines = fired("nop1", probes, {"text": 'printf("text %s|\\n", str(arg0));'})
    seen = sorted(line for line in lines if line.startswith(b"text"))
    room = seen[0].count(b"a")
    assert room in (199, 200)  # before 0.24 the last of them is a NUL
    expected = [b"text " + letter * room + b"|" for letter in (b"a", b"b")]
    assert seen == sorted(expected * ROUNDS)
