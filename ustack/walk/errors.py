# SPDX-License-Identifier: MIT
"""What a walker raises when it cannot walk a process.

One class, so that callers can go on with the native part of the stacks; knows no interpreter.
"""

from __future__ import annotations

__all__ = ["WalkError"]


class WalkError(Exception):
    """One line: what cannot be walked, why, and what to do."""
