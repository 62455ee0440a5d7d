# SPDX-License-Identifier: MIT
"""CPython 3.10 to 3.15: Target (a process), fragment (text for bpftrace), Decoder (its records).

Nothing is stopped, injected or configured in the target. Must not know how a tracer is started.
"""

from __future__ import annotations

from ustack.walk.cpython.gil import futex_words, gil_probes
from ustack.walk.cpython.script import Limits, fragment, rows
from ustack.walk.cpython.stacks import Decoder
from ustack.walk.cpython.target import Target

__all__ = ["Decoder", "Limits", "Target", "fragment", "futex_words", "gil_probes", "rows"]
