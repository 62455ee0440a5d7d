# SPDX-License-Identifier: MIT
"""The bpftrace text of a probe's arguments: expressions, formats, and BPF's small stack.

tests/elf runs what is only compared here.
"""

import re

import pytest

from stubgen import Arg, Probe, Provider, bpftrace, build
from stubgen.read import read_elf


def fields_of(*types, arch="x86_64"):
    args = tuple(Arg(f"a{i}", kind) for i, kind in enumerate(types))
    (probe,) = read_elf(build(Provider("p", (Probe("q", args),)), arch=arch)).probes
    return bpftrace.fields(probe.operands, probe.args, machine=arch)


def test_registers_have_names_and_the_stack_is_read_by_hand():
    """arg0 to arg5 on x86-64; from the seventh operand on, the stack slot, narrowed and signed."""
    expressions = [field.expression for field in fields_of(*["i32"] * 8)]
    assert expressions[:6] == [f"arg{i}" for i in range(6)]
    assert expressions[6:] == ['*(int32*)(reg("sp") + 16)', '*(int32*)(reg("sp") + 24)']


def test_aarch64_has_eight_registers():
    """arg7 has a name there, and the stack begins with the ninth."""
    expressions = [field.expression for field in fields_of(*["u16"] * 9, arch="aarch64")]
    assert expressions[7:] == ["arg7", '*(uint16*)(reg("sp") + 16)']


@pytest.mark.parametrize(
    ("type", "format", "expression"),
    [
        ("i8", "%lld", "arg0"),
        ("u64", "%llu", "arg0"),
        ("bool", "%llu", "arg0"),
        ("f32", "0x%llx", "arg0"),
        ("f64", "0x%llx", "arg0"),
        ("ptr", "0x%llx", "arg0"),
        ("str", "%s", "str(arg0)"),
        ("bytes", "%r", "buf(arg0, arg1)"),
    ],
)
def test_each_type_has_its_form(type, format, expression):
    """Signed and unsigned decimals, bits of floats, text, bytes."""
    (field,) = fields_of(type)
    assert (field.name, field.format, field.expression) == ("a0", format, expression)


def test_bytes_move_what_follows():
    """A bytes argument across the register boundary reads its length from the stack."""
    shown = fields_of(*["u8"] * 5, "bytes", "i64")
    assert shown[5].expression == 'buf(arg5, *(uint64*)(reg("sp") + 16))'
    assert shown[6].expression == '*(int64*)(reg("sp") + 24)'


def test_operands_without_names_are_numbers():
    """A foreign probe: arg0, arg1, ... by sign."""
    shown = bpftrace.fields(("8@%rbx", "-4@112(%rsp)"), None)
    assert [(f.name, f.format, f.expression) for f in shown] == [
        ("arg0", "%llu", "arg0"),
        ("arg1", "%lld", "arg1"),
    ]


@pytest.mark.parametrize(
    ("operands", "count"),
    [
        (("8@%rdi", "8f@%xmm0"), 0),  # one float operand loses them all
        (tuple(["8@%rdi"] * 6 + ["8@%r12"]), 6),  # the seventh is in a register without a name
        (tuple(["8@%rdi"] * 6 + ["8@-8(%rbp)"]), 6),
    ],
)
def test_what_cannot_be_read_is_left_out(operands, count):
    """No expression is better than one that bpftrace refuses with the whole script."""
    assert len(bpftrace.fields(operands, None)) == count


@pytest.mark.parametrize(
    ("types", "printfs"),
    [
        (["i64"] * 12, 1),
        (["str"] * 6, 1),
        (["str"] * 6 + ["u8"] * 5, 2),
        (["str"] * 12, 2),
        (["bytes"] * 6, 1),
    ],
)
def test_printf_fits_the_bpf_stack(types, printfs):
    """Strings are spread over as many printfs as 512 bytes of stack ask for; one line results."""
    text = bpftrace.statements(fields_of(*types))
    assert text.count("printf(") == printfs
    assert text.count(r"\n") == 1
    assert re.findall(r"a(\d+)=", text) == [str(i) for i in range(len(types))]


def test_a_command_quotes_what_the_shell_or_bpftrace_would_eat():
    """Blanks, wildcards and quotes in a path reach bpftrace as they are."""
    assert bpftrace.one_liner("/a/b.so", "p:q", ()) == (
        r"""bpftrace -e 'usdt:/a/b.so:p:q { printf("p:q\n"); }'"""
    )
    assert """'usdt:"/a b*.so":p:q {""" in bpftrace.one_liner("/a b*.so", "p:q", ())
    assert """'"'"'s.so":p:q {""" in bpftrace.one_liner("/it's.so", "p:q", ())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a.so", 'p:q { system("id") } usdt:/a:p:q'),
        ("/a.so", "p:q*"),
        ("/a.so", r"p:\x1b[2J"),
        ("/a.so", "p:"),
        ('/a".so', "p:q"),
        ("/a:b.so", "p:q"),
        ("/a\\.so", "p:q"),
        ("/a\n.so", "p:q"),
    ],
)
def test_no_command_is_made_of_hostile_names(path, name):
    """A file cannot put bpftrace code into what its reader pastes as root."""
    assert bpftrace.one_liner(path, name, ()) is None
