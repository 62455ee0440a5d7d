# SPDX-License-Identifier: MIT
"""The flame graph's page in a real browser: what is drawn, zoomed, found, announced and printed.

Drives headless Chromium over its pipe; knows the page's elements by their ids, and no internals.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from profiles import HOSTILE, SHOP, hostile

from ustack.frame import Frame
from ustack.render import Profile, Sample, flamegraph, svg

#: file:// pages must work for everybody; a sandbox needs what a container may not have.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--remote-debugging-pipe", "--window-size=1400,900",
)  # fmt: skip


class Browser:
    """One Chromium; messages are JSON between NULs, on its descriptors 3 and 4."""

    def __init__(self, program: str, directory: Path) -> None:
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "-", program, *FLAGS,
             f"--user-data-dir={directory}"],
            pass_fds=(their_in, their_out), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(their_in)
        os.close(their_out)
        self._rest = b""
        self._number = 0
        #: Everything the page complained about.
        self.complaints: list[Any] = []

    def ask(self, method: str, session: str | None = None, **params: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(answer["params"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> Any:
        while b"\0" not in self._rest:
            data = os.read(self._in, 1 << 16)
            assert data, "the browser is gone"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Page:
    """A tab with a file in it, and a hand on its mouse and keyboard."""

    def __init__(self, browser: Browser, path: Path, scheme: str = "light") -> None:
        self._browser = browser
        self._directory = path.parent
        browser.complaints.clear()
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self.prefer(scheme)
        begin = time.perf_counter()
        self._ask("Page.navigate", url=path.as_uri())
        while self("document.readyState") != "complete" or self("location.protocol") != "file:":
            time.sleep(0.005)
        #: Seconds until everything was read, laid out and drawn once.
        self.opened = time.perf_counter() - begin

    def _ask(self, method: str, **params: Any) -> Any:
        return self._browser.ask(method, self._session, **params)

    def __call__(self, expression: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("Emulation.setEmulatedMedia", features=features)

    def text(self, id: str) -> str:
        return self(f"document.getElementById('{id}').textContent")

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self._ask(
            "Runtime.evaluate", awaitPromise=True,
            expression="new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))",
        )  # fmt: skip

    def mouse(self, x: float, y: float, *, click: bool = False) -> None:
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for event in ("mousePressed", "mouseReleased") if click else ():
            self._ask("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def at(self, share: float, row: int) -> tuple[float, float]:
        """Where a box of a row is; rows count from the root, at the bottom."""
        left, bottom, width = self(
            "(() => { const b = document.getElementById('graph').getBoundingClientRect(),"
            " s = document.getElementById('space').getBoundingClientRect();"
            " return [b.left, s.bottom, b.width] })()"
        )
        return left + share * width, bottom - 20 * row - 10

    def key(self, key: str, text: str | None = None) -> None:
        extra = {"text": text} if text else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", key=key, **extra)
        self._ask("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.settle()

    def type(self, text: str) -> None:
        self._ask("Input.insertText", text=text)
        self.settle()

    def colour(self, x: float, y: float) -> tuple[int, int, int]:
        """Of the graph's canvas, under a point of the window."""
        red, green, blue = self(
            "(() => { const g = document.getElementById('graph'), b = g.getBoundingClientRect();"
            f" return Array.from(g.getContext('2d').getImageData({x} - b.left, {y} - b.top, 1, 1)"
            ".data.slice(0, 3)) })()"
        )
        return red, green, blue

    def picture(self, name: str) -> bytes:
        """A screenshot, which stays beside the page for people to look at."""
        data = base64.b64decode(self._ask("Page.captureScreenshot")["data"])
        (self._directory / name).write_bytes(data)
        return data

    def pdf(self) -> bytes:
        return base64.b64decode(self._ask("Page.printToPDF", landscape=True)["data"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium. It is no part of what ./check installs: without it these are skipped."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Page:
    """The shop's flame graph, just opened."""
    path = tmp_path / "shop.html"
    path.write_bytes(flamegraph.write(SHOP))
    return Page(browser, path)


def test_page_opens_without_a_complaint(page: Page, browser: Browser) -> None:
    """No exception, nothing blocked by the policy; the facts and the legend are there."""
    assert browser.complaints == []
    assert page.text("facts") == (
        "87 samples (about 878.79 ms) \u00b7 10.0 s \u00b7 profile:hz:99 \u00b7 "
        "2023-11-14 22:13:20 UTC \u00b7 3 lost"
    )
    assert page("document.title") == "shop: a service & its mailer"
    legend = page("[...document.querySelectorAll('#legend li')].map(li => li.textContent)")
    assert legend == [
        "kernel 19.5 %", "C 0.0 %", "JIT 14.9 %", "Python 42.5 %", "Ruby 8.0 %", "unknown 14.9 %",
        "cut 2.3 %",
    ]  # fmt: skip
    assert len(page.picture("light.png")) > 10_000


def test_colours_follow_the_scheme(page: Page) -> None:
    """Light under dark text, dark under light text, at once when the preference changes."""
    place = page.at(0.30, 0)
    light = page.colour(*place)
    page.prefer("dark")
    page.settle()
    dark = page.colour(*place)
    assert min(light) > 200
    assert max(dark) < 100
    assert len(page.picture("dark.png")) > 10_000


def test_pointer_shows_the_whole_story(page: Page) -> None:
    """Name, file and busiest line, value, share of all and of the caller, kind."""
    page.mouse(*page.at(0.30, 4))
    tip = page.text("tip")
    for words in (
        "handler", "/srv/shop/app.py:41 (the busiest of 2 lines)", "54 samples", "62.1 % of all",
        "100.0 % of its caller", "itself 9.2 %", "Python",
    ):  # fmt: skip
        assert words in tip
    page.mouse(2, 2)
    assert page("document.getElementById('tip').hidden") is True


def test_click_zooms_and_reset_returns(page: Page) -> None:
    """The clicked box has the whole width, its callers stay, and all of it can be undone."""
    assert page("document.getElementById('reset').disabled") is True
    page.mouse(*page.at(0.30, 4), click=True)
    assert page.text("focus") == "Zoomed into handler, 62.1 %"
    assert "handler \u2013 54 samples" in page.text("status")
    page.picture("zoomed.png")
    # What was beside it is gone: the box now ends where the graph ends.
    page.mouse(*page.at(0.99, 4))
    assert page.text("tip").startswith("handler")
    page("document.getElementById('reset').click()")
    assert page.text("focus") == ""
    page.mouse(*page.at(0.99, 1))
    assert page.text("tip").startswith("mailer (5151)")


def test_search_says_what_is_matched(page: Page) -> None:
    """Names and files count, without case, and nothing twice; Esc clears."""
    page.key("/", "/")
    assert page("document.activeElement.id") == "search"
    page.type("HANDLER")
    assert page.text("matched") == "62.1 % matched"
    red, green, _ = page.colour(*page.at(0.55, 4))
    assert red > 150 > 90 > green, "a match stands out"
    page.picture("search.png")
    page.key("Escape")
    assert page.text("matched") == ""
    page.type("app.py")
    assert page.text("matched") == "62.1 % matched"
    page.key("Escape")
    page.type("no such function")
    assert page.text("matched") == "0.0 % matched"


def test_keys_are_enough(page: Page) -> None:
    """Arrows move, Enter zooms, Esc returns, and the status line tells where one is."""
    page("document.getElementById('graph').focus()")
    page.key("ArrowUp")
    assert page.text("status").startswith("all \u2013 87 samples")
    for _ in range(3):
        page.key("ArrowUp")
    assert page.text("status").startswith("<module> \u2013 54 samples")
    page.key("ArrowRight")
    assert page.text("status").startswith("LazyCompile:*render \u2013 13 samples")
    page.key("ArrowLeft")
    page.key("Enter")
    assert page.text("focus").startswith("Zoomed into <module>")
    page.key("ArrowDown")
    assert page.text("status").startswith("_start")
    page.key("Escape")
    assert page.text("focus") == ""


def test_graph_turns_over(page: Page) -> None:
    """As an icicle the root is on top, and the arrows follow the eye."""
    page("document.getElementById('graph').focus()")
    page.key("i", "i")
    assert page("document.getElementById('flip').getAttribute('aria-pressed')") == "true"
    page.key("ArrowDown")
    page.key("ArrowDown")
    assert page.text("status").startswith("shop (4242)")
    x, _ = page.at(0.2, 0)
    y = page("document.getElementById('space').getBoundingClientRect().top")
    page.mouse(x, y + 5)
    assert page.text("tip").startswith("all")
    page.picture("icicle.png")


def test_top_functions_count_recursion_once(page: Page) -> None:
    """The table opens with self and total; its names search."""
    page("document.querySelector('#top summary').click()")
    page.settle()
    rows = page(
        "[...document.querySelectorAll('#top tbody tr')].map(r =>"
        " [...r.cells].map(c => c.firstChild.textContent))"
    )
    assert rows[0] == ["42.5 %", "62.1 %", "Python", "handler"]
    page("document.querySelector('#top td button').click()")
    assert page.text("matched") == "62.1 % matched"
    page.picture("top.png")


def test_page_names_its_parts(page: Page) -> None:
    """What is no text has a label, and whoever cannot see the graph is told what happens."""
    assert page("document.getElementById('graph').getAttribute('aria-label')") == (
        "Flame graph of 87 samples (about 878.79 ms), 14 boxes"
    )
    assert (
        page("document.getElementById('search').labels[0].firstElementChild.textContent")
        == "Search"
    )
    assert page("document.getElementById('status').getAttribute('aria-live')") == "polite"
    unnamed = page("[...document.querySelectorAll('button')].filter(b => !b.textContent).length")
    assert unnamed == 0


def test_page_prints(page: Page, tmp_path: Path) -> None:
    """On paper there is the graph in light colours, and afterwards the screen is as before."""
    page.prefer("dark")
    page.settle()
    before = page.colour(*page.at(0.30, 0))
    pdf = page.pdf()
    (tmp_path / "shop.pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000
    page.settle()
    assert page.colour(*page.at(0.30, 0)) == before


def test_hostile_names_stay_names(browser: Browser, tmp_path: Path) -> None:
    """Nothing in a name runs, breaks the page, or gets lost."""
    path = tmp_path / "hostile.html"
    path.write_bytes(flamegraph.write(hostile()))
    page = Page(browser, path)
    assert browser.complaints == []
    assert page("window.broken") is None
    assert page("document.title") == HOSTILE[0]
    page("document.querySelector('#top summary').click()")
    page.settle()
    shown = page("[...document.querySelectorAll('#top td button')].map(b => b.textContent)")
    for name in HOSTILE:
        if name.isprintable() and "\\" not in name and name.strip():
            assert name[:500] in shown
    assert page("document.scripts.length") == 2
    page.picture("hostile.png")


def test_empty_profile_says_so(browser: Browser, tmp_path: Path) -> None:
    """No sample is a page too."""
    path = tmp_path / "empty.html"
    path.write_bytes(flamegraph.write(Profile(())))
    page = Page(browser, path)
    assert browser.complaints == []
    assert page.text("facts") == "0 samples"
    page.mouse(*page.at(0.5, 0))


def wide(nodes: int) -> Profile:
    """A tree of about so many nodes: 100 handlers, each with many callees, three rows each."""
    root = Frame("native", "main", module="/usr/bin/shop")
    samples = []
    for at in range(nodes // 3):
        path = (
            root,
            Frame("python", f"handler_{at % 100}", file=f"/srv/m{at % 7}.py", line=1 + at % 300),
            Frame("python", f"step_{at}", file=f"/srv/m{at % 7}.py", line=1 + at % 300),
            Frame("native", f"work_{at}", module="/usr/bin/shop"),
            Frame("kernel", f"call_{at % 50}"),
        )
        samples.append(Sample(path, 1 + at % 97, pid=7, comm="shop"))
    return Profile(tuple(samples), title="wide")


def test_large_trees_open_at_once(browser: Browser, tmp_path: Path) -> None:
    """50 000 nodes are on the screen within a second, and 300 000 can be worked with."""
    path = tmp_path / "large.html"
    path.write_bytes(flamegraph.write(wide(50_000)))
    pages = [Page(browser, path) for _ in range(3)]
    page = min(pages, key=lambda page: page.opened)  # the machine may have other work, too
    print(f"50 000 nodes: {path.stat().st_size} bytes, open in {page.opened:.3f} s")
    assert page.opened < 1
    assert page("JSON.parse(document.getElementById('data').textContent).nodes[0].length") > 50_000
    begin = time.perf_counter()
    path.write_bytes(flamegraph.write(wide(300_000)))  # 100 000 distinct stacks
    print(f"100 000 stacks: written in {time.perf_counter() - begin:.3f} s")
    page = Page(browser, path)
    print(f"100 000 stacks: {path.stat().st_size} bytes, open in {page.opened:.3f} s")
    begin = time.perf_counter()
    page.key("/", "/")
    page.type("step_777")
    print(f"search: {time.perf_counter() - begin:.3f} s")
    begin = time.perf_counter()
    page.mouse(*page.at(0.30, 2), click=True)
    print(f"zoom: {time.perf_counter() - begin:.3f} s")
    assert page.text("focus").startswith("Zoomed into handler_")
    page.picture("large.png")


def test_deep_recursion_scrolls(browser: Browser, tmp_path: Path) -> None:
    """3000 rows are taller than any canvas may be."""
    step = Frame("python", "walk", file="/srv/walk.py", line=3)
    leaf = Frame("native", "leaf", module="/usr/bin/walk")
    path = tmp_path / "deep.html"
    path.write_bytes(flamegraph.write(Profile((Sample((step,) * 3000 + (leaf,), 3),))))
    page = Page(browser, path)
    assert page("document.getElementById('space').offsetHeight") == 3002 * 20
    page("document.getElementById('scroll').scrollTop = 0")
    page.settle()
    page.mouse(*page.at(0.5, 3001))
    assert page.text("tip").startswith("leaf")


def test_svg_shows_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """The picture is parsed as what it claims to be."""
    path = tmp_path / "shop.svg"
    path.write_bytes(svg.write(SHOP))
    page = Page(browser, path)
    assert page("document.documentElement.nodeName") == "svg"
    assert page("document.querySelectorAll('.frames g').length") == 15
    page.picture("svg.png")
