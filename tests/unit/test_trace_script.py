# SPDX-License-Identifier: MIT
"""The script that `usdt trace` gives to bpftrace, as text; what it prints is tested in tests/trace.

Knows stubgen and `usdt.script` only: nothing here runs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from stubgen import Arg, Probe, Provider, build
from stubgen.found import FoundProbe
from stubgen.read import read_elf
from usdt import script

ARGS = ("u64", "str", "bytes", "i8", "f64", "str")


def found(*types: str) -> FoundProbe:
    args = tuple(Arg(f"a{i}", name) for i, name in enumerate(types))
    (probe,) = read_elf(build(Provider("shop", (Probe("p", args),)))).probes
    return probe


def target(*types: str) -> script.Target:
    return script.plan("/run/usdt/s.so", found(*types), machine="x86_64")


def test_an_event_is_a_head_and_one_record_per_further_string() -> None:
    """Integers and the first string share a record; each other string has one of its own."""
    text = script.events([target(*ARGS)], pid=None)
    assert text.count("printf(") == 1 + 1 + 2  # BEGIN, the head, bytes and the second string
    assert 'printf("E 0 %llu %d %d %lld %lld %lld %lld %d %s"' in text
    assert 'printf("R 0 1 %llu %d %rx", $t, tid, buf(arg2, arg3));' in text
    assert 'printf("S 0 2 %llu %d %d %s", $t, tid, ' in text
    assert '*(uint8*)(*(uint64*)(reg("sp") + 16) + 199)' in text


def test_many_integers_leave_the_string_a_record_of_its_own() -> None:
    """BPF's 512 bytes of stack do not take twelve operands and a string at once."""
    assert target(*["u64"] * 8, "str").joined
    assert not target(*["u64"] * 9, "str").joined


def test_a_pid_is_a_filter_and_never_an_option() -> None:
    """With a path and -p together bpftrace would count every event twice."""
    lines = script.count([target("u64")], pid=42, refresh=False).splitlines()
    assert lines[1].startswith("usdt:/run/usdt/s.so:shop:p /pid == 42/ {")


@pytest.mark.parametrize(
    ("type", "expected"), [("u64", "@hist[0] = hist(arg0);"), ("str", "@value[0, str(arg0)]")]
)
def test_a_histogram_is_of_powers_of_two_or_of_values(type: str, expected: str) -> None:
    """Integers fall in buckets, strings are counted one by one."""
    assert expected in script.histogram([target(type)], "a0", pid=None, refresh=False)


def test_tables_are_printed_every_second_only_for_a_terminal() -> None:
    """Without a refresh the script has no interval."""
    assert "interval" not in script.count([target()], pid=None, refresh=False)
    assert "interval:s:1 { print(@fired); print(@count); }" in script.count(
        [target()], pid=None, refresh=True
    )


def test_a_probe_without_self_description_has_numbered_arguments() -> None:
    """Types come from the operands' sizes; what bpftrace cannot read has no type."""
    operands = ("-4@%edi", "8@%rsi", "1@$3", "2@%dx", "4@%ecx", "8@%r8", "8@16(%rsp)", "8@%r10")
    probe = replace(found(), operands=operands, args=None)
    planned = script.plan("/bin/x", probe, machine="x86_64")
    assert [arg.name for arg in planned.args] == [f"arg{i}" for i in range(8)]
    assert [arg.type for arg in planned.args] == [
        "i32", "u64", "u8", "u16", "u32", "u64", "u64", ""
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name", "ok"),
    [
        ("/run/usdt/shop-0123456789abcdef.so", "order_start", True),
        ("/run/usdt/a b.so", "order_start", False),
        ("/run/usdt/a:b.so", "order_start", False),
        ("/usr/lib/libstdc++.so.6", "throw", False),
        ('/run/usdt/a"; system("id', "order_start", False),
        ("/run/usdt/a.so", 'x { system("id"); } //', False),
        ("/run/usdt/a.so", "*", False),
        ("relative.so", "order_start", False),
    ],
)
def test_only_harmless_names_become_script(path: str, name: str, ok: bool) -> None:
    """A file that somebody else made cannot write a line of a program that runs as root."""
    assert script.usable(path, replace(found(), name=name)) is ok
