# SPDX-License-Identifier: MIT
"""The two flame graphs as files: valid, self-contained, honest about what they leave out.

Reads them with other people's parsers; what a browser makes of the page is not here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from profiles import HOSTILE, SHOP, hostile, profiles

from ustack.frame import Frame
from ustack.render import Profile, Sample, flamegraph, svg
from ustack.render.kinds import KINDS
from ustack.render.tree import grow

SVG = "{http://www.w3.org/2000/svg}"
TEXT = {"light": "#1b1f27", "dark": "#eef1f6"}

slow = settings(deadline=None, max_examples=60)


# ---- the tree -------------------------------------------------------------------------------


@slow
@given(profiles())
def test_tree_adds_up(profile: Profile) -> None:
    """The root has everything; a node has what its callees have, and its own."""
    tree = grow(profile)
    assert tree.root.value == profile.total
    for node, depth, left in tree.walk():
        children = node.sorted_children()
        assert node.value == node.own + sum(child.value for child in children)
        assert all(a.value >= b.value for a, b in pairwise(children))
        assert depth <= tree.depth
        assert 0 <= left <= tree.root.value - node.value


def test_tree_merges_lines_and_addresses() -> None:
    """A function is one box whatever line it runs; so are the unknown addresses of a file."""
    unknown = [node for node, _, _ in grow(SHOP).walk() if node.function.label.startswith("(no ")]
    assert {node.function.label for node in unknown} == {"(no symbols: libvendor.so)"}
    handlers = [node for node, _, _ in grow(SHOP).walk() if node.function.label == "handler"]
    assert [(node.value, node.hottest()) for node in handlers] == [(54, (41, 2)), (29, (41, 1))]


def test_one_process_needs_no_row() -> None:
    """The row of processes is there only to tell them apart."""
    one = Profile(tuple(sample for sample in SHOP.samples if sample.pid == 4242))
    assert "process" in {node.function.kind for node, depth, _ in grow(SHOP).walk() if depth}
    assert "process" not in {node.function.kind for node, depth, _ in grow(one).walk() if depth}


def test_three_thousand_rows_are_no_recursion() -> None:
    """A deep stack is a deep tree, and nothing else."""
    frame = Frame("python", "walk", file="walk.py", line=1)
    profile = Profile((Sample((frame,) * 3000, 1),))
    assert grow(profile).depth == 3000
    assert svg.write(profile).count(b"<g>") == 3001
    assert b'"nodes"' in flamegraph.write(profile)


# ---- colours --------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("kind", KINDS)
def test_names_can_be_read_on_every_colour(kind: str) -> None:
    """A contrast of at least 4.5, in light and in dark."""
    for scheme, text in TEXT.items():
        one, two = sorted((luminance(getattr(KINDS[kind], scheme)), luminance(text)))
        assert (two + 0.05) / (one + 0.05) >= 4.5


# ---- SVG ------------------------------------------------------------------------------------


def boxes(picture: bytes) -> list[tuple[str, ElementTree.Element, str]]:
    """(tooltip, first rectangle, label) of every function."""
    found = []
    for group in ElementTree.fromstring(picture).iter(f"{SVG}g"):
        if group.get("class") is None:
            title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
            assert title is not None
            assert rect is not None
            found.append((title.text or "", rect, group.findtext(f"{SVG}text") or ""))
    return found


def test_svg_tells_the_story() -> None:
    """Tooltips with value and place, a legend, the facts; two pictures are equal."""
    picture = svg.write(SHOP)
    titles = [title for title, _, _ in boxes(picture)]
    assert "handler (54, 62.1 %)\n/srv/shop/app.py:41" in titles
    assert "(no symbols: libvendor.so) (11, 12.6 %)\n0x7f0000002000" in titles
    words = [element.text for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert "87 samples \u00b7 10.0 s \u00b7 profile:hz:99 \u00b7 3 samples lost" in words
    assert "Python 42.5 %" in words
    assert "cut 2.3 %" in words
    assert not any(word and word.startswith("not drawn") for word in words)
    assert picture == svg.write(SHOP)


def test_svg_boxes_stand_on_their_callers() -> None:
    """Inside the picture, and no wider than what they stand on."""
    placed = [
        tuple(float(rect.get(key, "")) for key in ("x", "y", "width"))
        for _, rect, _ in boxes(svg.write(SHOP))
    ]
    for x, y, width in placed[1:]:
        assert any(
            below == y + svg.ROW and left <= x + 0.1 and x + width <= left + wide + 0.4
            for left, below, wide in placed
        )


def test_svg_says_what_it_leaves_out() -> None:
    """Too narrow to draw is not gone without a word."""
    samples = [Sample((Frame("native", f"f{at}"),), 1) for at in range(30)]
    samples.append(Sample((Frame("native", "main"),), 99_970))
    picture = svg.write(Profile(tuple(samples))).decode()
    assert "not drawn: 30 functions narrower than 0.5 px, with 0.0 % of all" in picture
    assert picture.count("<g>") == 2


@slow
@given(profiles())
def test_svg_is_xml_and_labels_fit(profile: Profile) -> None:
    """Whatever functions are called, a parser reads it and no text leaves its box."""
    for _, rect, label in boxes(svg.write(profile)):
        assert len(label) * 7.0 <= float(rect.get("width", "")) + 1


def test_svg_of_hostile_names_is_xml(tmp_path: Path) -> None:
    """libxml2 reads it as well."""
    picture = svg.write(hostile())
    assert len(boxes(picture)) == 3 * len(HOSTILE) + 1
    if shutil.which("xmllint") is None:
        pytest.skip("needs xmllint: apt-get install libxml2-utils")
    path = tmp_path / "hostile.svg"
    path.write_bytes(picture)
    done = subprocess.run(["xmllint", "--noout", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_empty_pictures_say_so() -> None:
    """Nothing was recorded: two valid files that tell it."""
    assert b">no samples<" in svg.write(Profile(()))
    assert data_of(flamegraph.write(Profile(())))["nodes"][2] == [0]


# ---- HTML -----------------------------------------------------------------------------------


class Parts(HTMLParser):
    """The page's elements, and per tag the text right behind each start."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.texts[self._open][-1] += data


def parts_of(page: bytes) -> Parts:
    parts = Parts()
    parts.feed(page.decode("ascii"))
    parts.close()
    return parts


def data_of(page: bytes) -> Any:
    """What the script will read."""
    return json.loads(parts_of(page).texts["script"][0])


def test_page_is_alone_in_the_world() -> None:
    """Nothing is fetched: no address, no source, and a policy that would forbid it."""
    page = flamegraph.write(SHOP)
    parts = parts_of(page)
    for tag, attributes in parts.elements:
        assert not {"src", "href", "style", "onclick", "action"} & set(attributes), tag
    assert b"http://" not in page
    assert b"https://" not in page
    assert b"eval(" not in page
    assert b"innerHTML" not in page


def test_policy_lets_only_these_parts_run() -> None:
    """The hashes are those of the style and the script in the page."""
    parts = parts_of(flamegraph.write(SHOP))
    policy = next(
        attributes["content"] or ""
        for tag, attributes in parts.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for directive, text in (
        ("script", parts.texts["script"][1]),
        ("style", parts.texts["style"][0]),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive}-src 'sha256-{digest}';" in policy


def test_own_code_is_small() -> None:
    """Page, style and script together, without data."""
    assert len(flamegraph.write(Profile(()))) < 40_000


def test_hostile_names_are_only_data() -> None:
    """No name ends a script or begins a comment, and every one arrives as it was."""
    page = flamegraph.write(hostile())
    parts = parts_of(page)
    assert [tag for tag, _ in parts.elements].count("script") == 2
    strings = data_of(page)["strings"]
    assert set(HOSTILE) <= set(strings)
    assert not re.search(rb"[^\t\n\x20-\x7e]", page)
    assert parts.texts["title"] == [HOSTILE[0]]


@slow
@given(profiles())
def test_page_has_the_whole_tree(profile: Profile) -> None:
    """Totals are kept, from the root to what functions have of their own."""
    data = data_of(flamegraph.write(profile))
    _, depths, values, _, _ = data["nodes"]
    assert values[0] == profile.total
    level: dict[int, int] = {}
    for depth, value in zip(depths, values, strict=True):
        level[depth] = level.get(depth, 0) + value
    assert all(level[depth] >= level[depth + 1] for depth in range(max(level)))
    own = {kind[0]: kind[5] for kind in data["kinds"] if kind[0] != "cut" and kind[5]}
    assert sum(own.values()) <= profile.total


# ---- the page that documents it -------------------------------------------------------------


def test_documented_colours_are_the_ones_drawn() -> None:
    """docs/profile-format.md has a row per kind, with both of its colours."""
    text = (Path(__file__).resolve().parents[2] / "docs/profile-format.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .*`(#\w+)` \| `(#\w+)` \|", text, re.M)
    assert rows == [(kind, look.light, look.dark) for kind, look in KINDS.items()]
