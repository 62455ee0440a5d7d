# SPDX-License-Identifier: MIT
"""The nouns and their rules: what a description may be, and what it says when it may not.

Must not know ELF: a description is valid or refused before anything is built.
"""

import pytest

from stubgen import Arg, Probe, Provider, SpecError
from stubgen.argtypes import BY_NAME


def args(count, type="u64"):
    return tuple(Arg(f"a{i}", type) for i in range(count))


@pytest.mark.parametrize("name", ["a", "_", "order_done", "A9", "x" * 100])
def test_names_are_c_identifiers(name):
    """Provider, probe and argument take any C identifier of up to 100 characters."""
    assert Provider(name, (Probe(name, (Arg(name, "u8"),)),)).name == name


@pytest.mark.parametrize(
    "name", ["", "9a", "a-b", "a b", "a:b", "é", "a\0b", "x" * 101, None, 3, b"a"]
)
@pytest.mark.parametrize("make", [Provider, Probe, lambda name: Arg(name, "u8")])
def test_other_names_are_refused(make, name):
    """Any other name is a SpecError of one line that speaks of a name."""
    with pytest.raises(SpecError, match="name") as caught:
        make(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("type", ["int", "U64", "", None, 8, int])
def test_unknown_types_are_refused_with_the_known_ones(type):
    """The message of an unknown type lists the table."""
    with pytest.raises(SpecError, match="i8, i16, i32, i64"):
        Arg("a", type)


def test_a_type_is_its_row():
    """A type may be given by name or as the row itself."""
    assert Arg("a", "str") == Arg("a", BY_NAME["str"])
    assert Arg("a", "str") != Arg("a", "ptr")
    assert Arg("a", "str") != "str a"


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        (args(12), True),
        (args(13), False),
        (args(6, "bytes"), True),
        ((*args(6, "bytes"), Arg("n", "u8")), False),
    ],
)
def test_twelve_operands_at_most(given, fits):
    """A bytes argument counts as two of the twelve operands."""
    if fits:
        assert len(Probe("p", given).operands) == 12
    else:
        with pytest.raises(SpecError, match="split it into two probes"):
            Probe("p", given)


def test_twins_are_refused():
    """Two arguments of a probe, or two probes of a provider, may not share a name."""
    with pytest.raises(SpecError, match="two arguments named 'a0'"):
        Probe("p", args(1) + args(1))
    with pytest.raises(SpecError, match="two probes named 'p'"):
        Provider("shop", (Probe("p"), Probe("p", args(1))))


def test_a_signature_reads_as_declared():
    """str() of a probe is the signature that the self-description stores."""
    assert str(Probe("start", (Arg("id", "u64"), Arg("who", "str")))) == "start(u64 id, str who)"
    assert str(Probe("tick")) == "tick()"


def test_order_is_part_of_the_description():
    """Equal descriptions compare and hash equal; another order is another description."""
    one, two = Probe("one"), Probe("two")
    assert Provider("p", (one, two)) == Provider("p", (one, two))
    assert hash(Provider("p", (one, two))) == hash(Provider("p", (one, two)))
    assert Provider("p", (one, two)) != Provider("p", (two, one))


@pytest.mark.parametrize("row", BY_NAME.values(), ids=repr)
def test_every_operand_is_an_integer_of_a_known_size(row):
    """No type makes a floating-point operand, which bpftrace cannot read."""
    assert {abs(size) for size in row.operands} <= {1, 2, 4, 8}
    assert len(row.code) == 1
