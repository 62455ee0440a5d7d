# SPDX-License-Identifier: MIT
"""The machines that stubs can be made for, by the name `uname -m` prints."""

from __future__ import annotations

from stubgen.arch.aarch64 import AARCH64
from stubgen.arch.machine import Machine
from stubgen.arch.x86_64 import X86_64

__all__ = ["MACHINES", "Machine"]

MACHINES: dict[str, Machine] = {machine.name: machine for machine in (X86_64, AARCH64)}
