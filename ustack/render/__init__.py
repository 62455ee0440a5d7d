# SPDX-License-Identifier: MIT
"""A Profile as pictures and files: the ending of a file's name says which.

Owns the table of endings. Pure: writers give bytes, and who opens files is not known here.
"""

from __future__ import annotations

from collections.abc import Callable

from ustack.render import document, flamegraph, folded, pprof, speedscope, svg
from ustack.render.profile import Profile, Sample

__all__ = ["ENDINGS", "EndingError", "Profile", "Sample", "Writer", "writer_for"]

Writer = Callable[[Profile], bytes]

#: The first ending that fits counts: `.speedscope.json` is before `.json`.
ENDINGS: dict[str, Writer] = {
    ".html": flamegraph.write,
    ".svg": svg.write,
    ".folded": folded.write,
    ".txt": folded.write,
    ".speedscope.json": speedscope.write,
    ".pb.gz": pprof.write,
    ".pprof": pprof.write,
    ".json": document.write,
}


class EndingError(ValueError):
    """A file name that says no format."""


def writer_for(name: str) -> Writer:
    """The writer for a file name or path. Raises EndingError, whose text lists the endings."""
    for ending, writer in ENDINGS.items():
        if name.lower().endswith(ending):
            return writer
    raise EndingError(
        f"{name!r}: no format has this ending; name the file with one of: {' '.join(ENDINGS)}"
    )
