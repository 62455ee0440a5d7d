# SPDX-License-Identifier: MIT
"""Raw addresses, pid and time go in, names come out: kernel, C, JIT and interpreter frames.

Runs beside the tracer, imports no other part of the project and nothing of the traced program.
"""

from ustack.frame import AbsAddr, FileOffset, Frame, Reason, VirtOffset

__all__ = ["AbsAddr", "FileOffset", "Frame", "Reason", "VirtOffset"]
