# SPDX-License-Identifier: MIT
"""A flame graph as one SVG picture: no script, the details in tooltips, the same bytes each time.

Owns the geometry. Must not know how the tree came to be.
"""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

from ustack.render.kinds import KINDS
from ustack.render.profile import Profile
from ustack.render.text import amount, cells, escaped, fit, plural, share
from ustack.render.tree import Node, Tree, grow

__all__ = ["write"]

WIDTH = 1200
ROW = 18
MARGIN = 12
HEAD = 66

#: Narrower functions are left out, and the picture says how many.
MIN_WIDTH = 0.5

_FONT_WIDTH = 7.0  # of DejaVu Sans Mono and its like at 11.5 px, with a little to spare
_SHORTEST_LABEL = 3  # letters; less says nothing
_LONGEST_TITLE = 1000

#: XML 1.0 has no other characters.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_STYLE = """
text { font: 11.5px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1b1f27 }
.title { font: 600 16px system-ui, "DejaVu Sans", sans-serif }
.small { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #566072 }
.paper { fill: #ffffff }
.frames rect { rx: 2px }
.frames g:hover rect { stroke: #1b1f27 }
.stripe { stroke: #1b1f27; stroke-opacity: .22; stroke-width: 2 }
"""
_DARK = """
text { fill: #eef1f6 } .small { fill: #a3adbd } .paper { fill: #14171d }
.frames g:hover rect { stroke: #ffffff } .stripe { stroke: #ffffff }
"""


def write(profile: Profile) -> bytes:
    """Callers below, callees above; the largest on the left."""
    tree = grow(profile)
    scale = (WIDTH - 2 * MARGIN) / max(tree.root.value, 1)
    shown = list(tree.walk(MIN_WIDTH / scale))
    deepest = max((depth for _, depth, _ in shown), default=0)
    bottom = HEAD + ROW * (deepest + 1)
    height = bottom + 30
    title = profile.title or "Flame graph"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{_text(title, 200)}">',
        f"<style>{_colours()}</style>",
        _defs(),
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{MARGIN}" y="24">{_text(fit(escaped(title), 110))}</text>',
        f'<text class="small" x="{MARGIN}" y="42">{_text(_facts(profile, tree))}</text>',
        *_legend(tree),
        '<g class="frames">',
    ]
    for node, depth, left in shown:
        y = bottom - ROW * (depth + 1)
        out.append(_box(node, tree.root.value, MARGIN + left * scale, y, node.value * scale))
    out += ["</g>", *_footer(tree, shown, bottom), "</svg>", ""]
    return "\n".join(out).encode()


def _colours() -> str:
    light = "".join(f".{kind} {{ fill: {look.light} }} " for kind, look in KINDS.items())
    dark = "".join(f".{kind} {{ fill: {look.dark} }} " for kind, look in KINDS.items())
    return f"{_STYLE}{light}\n@media (prefers-color-scheme: dark) {{{_DARK}{dark}}}\n"


def _defs() -> str:
    return (
        '<defs><pattern id="stripes" width="7" height="7" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><line class="stripe" y2="7"/></pattern></defs>'
    )


def _facts(profile: Profile, tree: Tree) -> str:
    facts = [amount(tree.root.value, profile.unit)]
    if profile.duration:
        facts.append(f"{profile.duration / 1e9:.1f} s")
    if profile.event:
        facts.append(escaped(profile.event))
    if profile.lost:
        facts.append(f"{plural(profile.lost, 'sample')} lost")
    return fit(" · ".join(facts), 160)


def _legend(tree: Tree) -> list[str]:
    """The kinds that occur, each with its share of the samples."""
    out = []
    x = float(MARGIN)
    for kind, look in KINDS.items():
        if kind not in tree.kinds or kind == "process":
            continue
        words = f"{look.label} {share(tree.kinds[kind], tree.root.value)}"
        out.append(_rect(kind, x, 49, 11, 11))
        out.append(f'<text class="small" x="{x + 16:.0f}" y="59">{words}</text>')
        x += 16 + 7.2 * len(words) + 14
    return out


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    plain = f'<rect class="{kind}" {place}/>'
    return plain + f'<rect fill="url(#stripes)" {place}/>' if KINDS[kind].hatched else plain


def _box(node: Node, total: int, x: float, y: float, width: float) -> str:
    function = node.function
    title = f"{function.label} ({node.value:,}, {share(node.value, total)})"
    spot, spots = node.hottest()
    if function.kind in ("unknown", "cut"):
        title += f"\n{spot:#x}{f', the first of {spots} addresses' * (spots > 1)}" * bool(spots)
    elif where := function.file or function.module:
        title += f"\n{where}{f':{spot}' * bool(spots)}"
    room = int((width - 7) / _FONT_WIDTH)
    label = fit(escaped(function.label), room) if room >= _SHORTEST_LABEL else ""
    text = f'<text x="{x + 3:.1f}" y="{y + 12.5:.1f}">{_text(label)}</text>' if label else ""
    # A gap of a third of a pixel between neighbours, which the narrowest cannot afford.
    box = _rect(function.kind, x, y, width - 0.3 if width > 1 else width, ROW - 1)
    return f"<g><title>{_text(title, _LONGEST_TITLE)}</title>{box}{text}</g>"


def _footer(tree: Tree, shown: list[tuple[Node, int, int]], bottom: int) -> list[str]:
    if not tree.root.value:
        return [f'<text class="small" x="{MARGIN}" y="{bottom + 18}">no samples</text>']
    hidden = tree.count + 1 - len(shown)
    below = sum(node.value for node, _, _ in shown[1:])
    value = sum(node.value - node.own for node, _, _ in shown) - below
    if not hidden:
        return []
    words = (
        f"not drawn: {plural(hidden, 'function')} narrower than {MIN_WIDTH} px, with "
        f"{share(value, tree.root.value)} of all; the .html has them"
    )
    return [f'<text class="small" x="{MARGIN}" y="{bottom + 18}">{words}</text>']


def _text(text: str, longest: int | None = None) -> str:
    if longest is not None and cells(text) > longest:
        text = fit(text, longest)
    return escape(_NOT_XML.sub("\ufffd", text), {'"': "&quot;"})
