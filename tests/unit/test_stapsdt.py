# SPDX-License-Identifier: MIT
"""`from usdt import stapsdt` is the python-stapsdt of its users, name by name and call by call.

What that library did wrong is test_old_mistakes' business.
"""

from __future__ import annotations

import pytest
from forced import Recorder, force

import usdt
from usdt import stapsdt


def test_the_example_of_its_readme_works() -> None:
    """The program python-stapsdt's users have, with the import changed."""
    provider = stapsdt.Provider("pythonapp")
    probe = provider.add_probe("firstProbe", stapsdt.ArgTypes.uint64, stapsdt.ArgTypes.int32)
    provider.load()
    assert probe.fire("My little probe", 42) is False
    force(probe._probe)
    assert probe.fire("My little probe", 42) is True
    assert probe.is_enabled is True
    assert provider.unload() is True
    assert probe.is_enabled is False
    assert probe.fire("My little probe", 42) is False


def test_the_names_are_its_names() -> None:
    """All it exports, with the values its users may have stored."""
    assert {member.name: member.value for member in stapsdt.ArgTypes} == {
        "noarg": 0, "uint8": 1, "int8": -1, "uint16": 2, "int16": -2, "uint32": 4, "int32": -4,
        "uint64": 8, "int64": -8,
    }  # fmt: skip
    assert str(stapsdt.Provider("pythonapp")) == "pythonapp"
    assert isinstance(stapsdt.Provider("p").add_probe("x"), stapsdt.Probe)


@pytest.mark.parametrize("type_", [t for t in stapsdt.ArgTypes if t])
def test_each_type_is_its_width_and_sign(recorder: Recorder, type_: stapsdt.ArgTypes) -> None:
    """The operand is spelled with the value that the enum has; extremes arrive."""
    probe = stapsdt.Provider("p").add_probe("x", type_, int(type_))._probe
    assert probe.spec.operands == (int(type_), int(type_))
    bits = 8 * abs(type_)
    least, most = (0, 2**bits - 1) if type_ > 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    recorder.attach(probe)
    probe(least, most)
    assert [word & (2**bits - 1) for word in recorder.words[:2]] == [least % 2**bits, most]


@pytest.mark.parametrize("type_", [stapsdt.ArgTypes.uint64, stapsdt.ArgTypes.int64])
def test_a_64_bit_argument_takes_text_and_numbers(
    recorder: Recorder, type_: stapsdt.ArgTypes
) -> None:
    """Its users have no type for strings: both are a 64-bit word, of either sign."""
    probe = stapsdt.Provider("p").add_probe("x", type_)._probe
    for text, wanted in (("Grüße", "Grüße".encode()), ("", b""), (b"raw", b"raw")):
        recorder.attach(probe, copy=1)
        probe(text)
        assert recorder.text == wanted
    recorder.attach(probe)
    for value in (0, -1, 2**64 - 1, -(2**63), True):
        probe(value)
        assert recorder.words[0] == value % 2**64


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, None, 1.5, ["x"], object(), "\0"])
def test_what_is_no_word_is_reported(
    recorder: Recorder, unraisable: list[tuple[type, str]], value: object
) -> None:
    """A value that has no 64 bits is dropped, and raises in a strict program."""
    probe = stapsdt.Provider("p").add_probe("x", stapsdt.ArgTypes.uint64)
    recorder.attach(probe._probe)
    probe.fire(value)
    assert (len(unraisable), probe._probe.dropped, recorder.calls) == (1, 1, 0)
    usdt.strict()
    with pytest.raises((OverflowError, TypeError, ValueError)):
        probe.fire(value)


def test_wrong_types_and_names_are_refused() -> None:
    """noarg and numbers that are no type are said at declaration."""
    provider = stapsdt.Provider("p")
    with pytest.raises(usdt.SpecError, match="noarg is not a type"):
        provider.add_probe("x", stapsdt.ArgTypes.noarg)
    with pytest.raises(ValueError, match="3 is not a valid ArgTypes"):
        provider.add_probe("x", 3)
    with pytest.raises(usdt.SpecError):
        provider.add_probe("a-b")
    assert provider.load() is True
