# SPDX-License-Identifier: MIT
"""A provider description goes in, the bytes of a dlopen-able ELF stub come out; no compiler.

Values in, bytes out: nothing here touches disk, processes or privileges except `cli`, which is
never imported from here.
"""

from stubgen.image import build
from stubgen.spec import Arg, Probe, Provider, SpecError

__all__ = ["Arg", "Probe", "Provider", "SpecError", "build"]
