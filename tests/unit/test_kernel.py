# SPDX-License-Identifier: MIT
"""Kernel symbols: the text of /proc/kallsyms, invented and this machine's.

Without privilege the real one is a reason, which is tested as such.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ustack.frame import AbsAddr, Reason
from ustack.kernel import Kernel, load_kernel

TEXT = b"""\
ffffffff81000000 T _stext
ffffffff81000000 t __local
ffffffff81000000 W weak_one
ffffffff81000000 T startup_64
ffffffff81000040 T first
ffffffff81000080 D a_variable
00000000000001c0 A per_cpu_thing
ffffffff82000000 T _etext
ffffffffc0001000 t mod_function\t[mod]
ffffffffc0001080 d mod_variable\t[mod]
ffffffffc0003010 t last_one\t[other]
"""


def shown(kernel: Kernel, address: int) -> tuple[str, str | None, int | None]:
    frame = kernel.resolve(AbsAddr(address))
    assert frame.kind == "kernel"
    assert frame.address == address
    return str(frame), frame.module, frame.offset


def test_functions_are_found_with_their_modules() -> None:
    """Of aliases the global one, with the fewest underscores."""
    kernel = Kernel(TEXT)
    assert kernel.why_not is None
    assert shown(kernel, 0xFFFFFFFF81000000) == ("startup_64", "[kernel]", 0)
    assert shown(kernel, 0xFFFFFFFF8100007F) == ("first", "[kernel]", 0x3F)
    assert shown(kernel, 0xFFFFFFFFC0001004) == ("mod_function", "[mod]", 4)
    assert shown(kernel, 0xFFFFFFFFC0003FFF) == ("last_one", "[other]", 0xFEF)


@pytest.mark.parametrize(
    "address",
    [0, 0x1C0, 0xFFFFFFFF80FFFFFF, 0xFFFFFFFF81000081, 0xFFFFFFFFC0000FFF, 0xFFFFFFFFC0001081,
     0xFFFFFFFFC0004000, (1 << 64) - 1],
)  # fmt: skip
def test_variables_and_gaps_are_unmapped(address: int) -> None:
    """A gap between modules is not the end of the one before."""
    frame = Kernel(TEXT).resolve(AbsAddr(address))
    assert frame.why is Reason.UNMAPPED
    assert str(frame) == f"{address:#x} (unmapped)"


def test_hidden_addresses_are_a_reason() -> None:
    """As everybody but root sees them; the hint names the sysctl."""
    kernel = Kernel(b"0000000000000000 T _stext\n0000000000000000 t first\n")
    assert kernel.why_not is Reason.RESTRICTED
    assert kernel.resolve(AbsAddr(0xFFFFFFFF81000000)).why is Reason.RESTRICTED
    assert "kernel.kptr_restrict" in Reason.RESTRICTED.hint
    assert Kernel(b"").why_not is Reason.UNREADABLE
    assert load_kernel("/nonexistent").why_not is Reason.UNREADABLE


@given(st.binary())
def test_damaged_text_is_no_trouble(damage: bytes) -> None:
    """A line that is none is left out."""
    for text in (damage, TEXT + damage, damage + b"\n" + TEXT):
        kernel = Kernel(text)
        str(kernel.resolve(AbsAddr(0xFFFFFFFF81000050)))


def test_this_machines_kernel() -> None:
    """Thousands of its functions, by their own lines."""
    kernel = load_kernel()
    if os.geteuid() != 0:
        assert kernel.why_not in (Reason.RESTRICTED, Reason.UNREADABLE, None)
    if kernel.why_not is not None:
        pytest.skip(f"needs /proc/kallsyms with addresses: {kernel.why_not.hint}")
    by_address: dict[int, set[str]] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, type_, name = line.split(maxsplit=2)
        if type_ in "tTwW":
            by_address.setdefault(int(address, 16), set()).add(name.partition("\t")[0])
    by_address.pop(0, None)
    for address in random.Random(3).sample(sorted(by_address), 5000):
        frame = kernel.resolve(AbsAddr(address))
        if frame.why is None:
            assert frame.name in by_address[address]
            assert frame.offset == 0
