# SPDX-License-Identifier: MIT
"""An interactive flame graph in one HTML file that asks nobody for anything.

Owns the page and the form of the data in it; flame.js draws, flame.css lays out. Must not know
how the tree came to be.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from importlib import resources
from typing import Any

from ustack.render.kinds import KINDS
from ustack.render.profile import Profile
from ustack.render.text import escaped
from ustack.render.tree import Function, grow

__all__ = ["write"]

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src '{script_hash}'; style-src '{style_hash}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="ustack">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<div class="heading"><h1>{title}</h1><p id="facts"></p></div>
<div class="tools" role="toolbar" aria-label="Flame graph">
<label class="search"><span class="hidden">Search</span>
<input id="search" type="search" placeholder="Search functions and files" autocomplete="off" \
spellcheck="false" aria-keyshortcuts="/" aria-describedby="matched">\
<kbd aria-hidden="true">/</kbd></label>
<output id="matched" for="search"></output>
<button id="reset" type="button" title="Show everything again (Esc)" disabled>Reset zoom</button>
<button id="flip" type="button" title="Callers above or below (i)" aria-pressed="false">Icicle\
</button>
</div>
<div class="below">
<ul id="legend" aria-label="Kinds of frames"></ul>
<p id="focus" aria-live="polite"></p>
</div>
</header>
<main id="scroll">
<div id="space"></div>
<canvas id="graph" tabindex="0" role="application" \
aria-roledescription="flame graph" aria-describedby="help status"></canvas>
</main>
<footer>
<p id="status" role="status" aria-live="polite"></p>
<p id="help">Arrow keys move, Enter zooms, Esc goes back, / searches, i turns the graph over.</p>
</footer>
<details id="top"><summary>Top functions</summary><table><thead><tr><th scope="col">Self</th>\
<th scope="col">Total</th><th scope="col">Kind</th><th scope="col">Function</th></tr></thead>\
<tbody></tbody></table></details>
<div id="tip" role="tooltip" hidden></div>
<noscript><p>This page draws with its own script. The same recording as a picture without one: \
ustack record -o FILE.svg</p></noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def write(profile: Profile) -> bytes:
    """The same profile gives the same bytes."""
    style, script = _part("flame.css"), _part("flame.js")
    page = _PAGE.format(
        title=html.escape(escaped(profile.title or "Flame graph")),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_json(_data(profile)),
    )
    return page.encode("ascii", "xmlcharrefreplace")


@cache
def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("ascii")


def _hash(text: str) -> str:
    """What lets the page's own script and style run, and nothing that a name might smuggle in."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(value: Any) -> str:
    """ASCII without `<`: inside <script>, neither a tag nor a comment can begin or end."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(profile: Profile) -> dict[str, Any]:
    """Strings, functions and nodes as columns that refer to each other by place.

    functions: kind, label, module, file; nodes, callers first: function, depth, value, the spot
    with the largest value (a line, or for unknown addresses their text) and the number of spots.
    """
    tree = grow(profile)
    strings: dict[str, int] = {}
    functions: dict[Function, int] = {}
    kinds = {kind: place for place, kind in enumerate(KINDS)}
    nodes: tuple[list[Any], ...] = ([], [], [], [], [])

    def place(text: str) -> int:
        return strings.setdefault(text, len(strings))

    for node, depth, _ in tree.walk():
        spot, spots = node.hottest()
        function = node.function
        unknown = KINDS[function.kind].hatched
        row = (
            functions.setdefault(function, len(functions)),
            depth,
            node.value,
            f"{spot:#x}" if unknown and spots else spot,
            spots,
        )
        for column, value in zip(nodes, row, strict=True):
            column.append(value)
    return {
        "unit": profile.unit,
        "event": profile.event,
        "started": None if profile.started is None else profile.started // 1_000_000,
        "duration": profile.duration,
        "period": profile.period,
        "lost": profile.lost,
        "kinds": [
            [kind, look.label, look.light, look.dark, look.hatched, tree.kinds.get(kind)]
            for kind, look in KINDS.items()
        ],
        "functions": [
            [kinds[f.kind], place(f.label), place(f.module), place(f.file)] for f in functions
        ],
        "strings": list(strings),
        "nodes": nodes,
    }
