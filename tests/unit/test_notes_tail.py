# SPDX-License-Identifier: MIT
"""Following files: growth, rewriting, replacement, age, owners, links, and real runtimes.

Writes perf maps of processes that it starts; what lines mean is the parsers' tests' business.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from ustack.notes import Tail, read_file, split
from ustack.notes.tail import MAX_ENTRIES

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")


@contextmanager
def started(*argv, ready=b"", **options):
    """A process, once it has written `ready`; killed at the end."""
    one = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    try:
        if ready:
            assert one.stdout.readline().strip() == ready
        yield one
    finally:
        one.kill()
        one.wait()
        one.stdin.close()
        one.stdout.close()


@contextmanager
def sleeper(**options):
    """A process that does nothing, and the path of its perf map, deleted at the end."""
    with started("sleep", "60", **options) as one:
        path = Path(f"/tmp/perf-{one.pid}.map")
        path.unlink(missing_ok=True)
        try:
            yield one, path
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def tailing(pid):
    tail = Tail(pid)
    try:
        yield tail
    finally:
        tail.close()


def names(tail, *addresses, time=None):
    found = (tail.table.lookup(address, time) for address in addresses)
    return [here and here[0].name for here in found]


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


def test_a_map_is_followed_while_it_grows():
    """Not there, there, a line in two halves, more lines: each poll gives what is complete."""
    with sleeper() as (one, path), tailing(one.pid) as tail:
        assert tail.poll() == 0
        assert "has no perf map and no jitdump: start it with" in tail.reasons()[0]
        append(path, "1000 10 f\n2000 10 g")
        assert (tail.poll(), names(tail, 0x1000, 0x2000)) == (1, ["f", None])
        append(path, "amma\n")
        assert (tail.poll(), names(tail, 0x1000, 0x2000)) == (1, ["f", "gamma"])
        assert (tail.poll(), tail.reasons()) == (0, [])


def test_a_note_has_the_time_of_the_file():
    """A note may be true from the poll before on, and is from the file's change on."""
    with sleeper() as (one, path), tailing(one.pid) as tail:
        append(path, "1000 10 first\n")
        tail.poll()
        between = time.monotonic_ns()
        append(path, "1000 10 second\n2000 10 new\n")
        after = time.monotonic_ns()
        time.sleep(0.1)
        tail.poll()
        (second, _), (new, _) = tail.table.lookup(0x1000), tail.table.lookup(0x2000)
        assert between - 20e6 < second.when <= after
        assert second.since < between < after
        assert names(tail, 0x1000, time=second.when - 1) == ["first"]
        assert names(tail, 0x2000, time=between) == ["new"]
        assert new.source == f"/proc/{one.pid}/root/tmp/{path.name}"


def test_much_is_read_in_several_polls(monkeypatch):
    """Each poll ends soon; what is left may have been true since the poll that saw it."""
    monkeypatch.setattr("ustack.notes.tail._POLL", 1 << 16)
    with sleeper() as (one, path), tailing(one.pid) as tail:
        append(path, "".join(f"{i * 16:x} 10 f\n" for i in range(1, 20_000)))
        counts = []
        while not counts or counts[-1]:
            counts.append(tail.poll())
        assert len(counts) > 3
        assert sum(counts) == 19_999
        assert len({note.since for *_, note in tail.table.current()}) == 1


def test_what_the_process_wrote_last_is_read():
    """A process that ended is gone once; its last line counts, and names stay."""
    with sleeper() as (one, path), tailing(one.pid) as tail:
        append(path, "1000 10 f\n")
        tail.poll()
        append(path, "2000 10 last")
        one.kill()  # not waited for: a zombie has ended, too
        while tail.poll() == 0:
            time.sleep(0.01)
        assert (tail.gone, tail.poll()) == (True, 0)
        assert names(tail, 0x1000, 0x2000) == ["f", "last"]


def test_a_process_that_is_not_there_is_a_reason():
    """Nothing is raised for it."""
    with sleeper() as (one, _):
        pass
    tail = Tail(one.pid)
    assert (tail.poll(), tail.gone) == (0, True)
    assert f"process {one.pid} is gone" in tail.reasons()[0]


@pytest.mark.parametrize("way", ["shorter", "longer", "replaced"])
def test_a_map_that_begins_anew_ends_its_notes(way):
    """Truncated, rewritten to more than before, or another file: only the new lines are true."""
    with sleeper() as (one, path), tailing(one.pid) as tail:
        append(path, "1000 10 f\n2000 10 g\n")
        tail.poll()
        before = time.monotonic_ns()
        time.sleep(0.02)
        if way == "replaced":
            path.with_suffix(".new").write_text("1000 10 h\n")
            path.with_suffix(".new").rename(path)
        else:
            path.write_text("1000 10 h\n" + "3000 10 i\n" * (5 if way == "longer" else 0))
        tail.poll()
        assert names(tail, 0x1000, 0x2000) == ["h", None]
        assert names(tail, 0x1000, 0x2000, time=before) == ["f", "g"]


def test_a_map_of_an_earlier_process_is_left_out():
    """Lines from before the process started are not its own; lines added since then are."""
    with sleeper() as (one, path), tailing(one.pid) as tail:
        path.write_text("1000 10 old\n")
        os.utime(path, (1, 1))
        assert (tail.poll(), names(tail, 0x1000)) == (0, [None])
        (reason,) = tail.reasons()
        assert f"is older than process {one.pid}" in reason
        append(path, "2000 10 new\n")
        assert (tail.poll(), names(tail, 0x1000, 0x2000)) == (1, [None, "new"])
        path.write_text("1000 10 own\n")
        assert tail.poll() > 0
        assert (names(tail, 0x1000, 0x2000), tail.reasons()) == (["own", None], [])


@root
def test_a_map_of_another_user_is_refused():
    """/tmp is everybody's: a map must belong to the process's user or to root."""
    with sleeper(user=NOBODY) as (one, path), tailing(one.pid) as tail:
        path.write_text("1000 10 f\n")
        os.chown(path, 12345, 12345)
        assert tail.poll() == 0
        assert "belongs to user 12345, process" in tail.reasons()[0]
        for owner in (NOBODY, 0):
            os.chown(path, owner, owner)
            with tailing(one.pid) as other:
                assert (other.poll(), other.reasons()) == (1, [])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "is a symbolic link"),
        (lambda path: os.mkfifo(path), "is no regular file"),
        (lambda path: path.mkdir(), "is no regular file"),
    ],
)
def test_what_is_no_file_is_refused(make, reason):
    """A link is not followed, and a FIFO does not block."""
    with sleeper() as (one, path), tailing(one.pid) as tail:
        make(path)
        try:
            assert tail.poll() == 0
            assert reason in tail.reasons()[0]
        finally:
            if path.is_dir():
                path.rmdir()


@root
def test_an_unreadable_map_says_who_can_read_it():
    """CPython writes its map for its own user only."""
    program = (
        "import os, sys; os.setuid(65534); sys.path.insert(0, sys.argv[2])\n"
        "from ustack.notes import Tail\n"
        "tail = Tail(int(sys.argv[1])); tail.poll(); print(tail.reasons())"
    )
    with sleeper() as (one, path):
        path.write_text("1000 10 f\n")
        path.chmod(0o600)
        packages = str(Path(__file__).parents[2])
        argv = [sys.executable, "-I", "-B", "-c", program, str(one.pid), packages]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if "ustack" in done.stderr:
            pytest.skip("the checkout is not readable for other users")
        assert "is not readable: run this as root or as user 0" in done.stdout + done.stderr


def tool(name):
    """The tool's path; without it the test is skipped, or fails where CI must have it."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI") == "true" and name == "unshare":
            pytest.fail(f"{name} is not installed, and CI must have it")
        pytest.skip(f"needs {name}")
    return path


@root
def test_a_container_has_a_tmp_and_pids_of_its_own():
    """In other mount and pid namespaces the map is found under the pid that the process knows."""
    script = "mount -t tmpfs none /tmp && echo 1000 10 inside > /tmp/perf-1.map && exec sleep 60"
    argv = [tool("unshare"), "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    able = subprocess.run([argv[0], "--mount", "true"], capture_output=True, text=True)
    if able.returncode:  # in a plain chroot `/` is no mount point
        pytest.skip(f"unshare --mount: {able.stderr.strip()}")
    with started(*argv) as one:
        children = Path(f"/proc/{one.pid}/task/{one.pid}/children")
        for _ in range(500):
            pids = children.read_text().split()
            if pids and Path(f"/proc/{pids[0]}/comm").read_text() == "sleep\n":
                break
            time.sleep(0.01)
        with tailing(int(pids[0])) as tail:
            assert tail.poll() == 1, tail.reasons()
            assert names(tail, 0x1000) == ["inside"]


def interpreter(minor, option):
    """A CPython of that minor that can write perf maps; else the test is skipped."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    paths = [shutil.which(f"python{minor}"), *map(str, pyenv.glob(f"{minor}.*/bin/python"))]
    for path in filter(None, paths):
        argv = [
            path,
            "-X",
            option,
            "-c",
            "import os, sys; print(os.getpid(), *sys.version_info[:2])",
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        pid, *version = done.stdout.split() or ["0"]
        forget(pid)
        if version == minor.split(".") and not done.stderr:
            return path
    return pytest.skip(f"needs python{minor} built with its perf trampoline")


def forget(pid):
    """Delete what a runtime left in /tmp."""
    for path in (f"/tmp/perf-{pid}.map", f"/tmp/jit-{pid}.dump"):
        Path(path).unlink(missing_ok=True)


BUSY_PYTHON = """
def leaf(n): return sum(range(n))
def middle(n): return leaf(n) + 1
print("ready", middle(9), flush=True)
input()
exec("def late(): pass\\nlate()")
print("done", flush=True)
input()
"""


@pytest.mark.parametrize(
    ("minor", "option"), [("3.12", "perf"), ("3.13", "perf"), ("3.13", "perf_jit")]
)
def test_real_cpython_is_followed(minor, option, tmp_path):
    """CPython's own map or dump names its functions, with their files, late ones too."""
    script = tmp_path / "busy.py"
    script.write_text(BUSY_PYTHON)
    argv = [interpreter(minor, option), "-X", option, script]
    with started(*argv, ready=b"ready 37") as one, tailing(one.pid) as tail:
        try:
            tail.poll()
            before = time.monotonic_ns()
            one.stdin.write(b"\n")
            one.stdin.flush()
            assert one.stdout.readline() == b"done\n"
            after = time.monotonic_ns()
            if option == "perf":  # the dump is buffered, and complete in the end
                assert tail.poll() > 0
            one.stdin.write(b"\n")
            one.stdin.flush()
            while not tail.gone:
                tail.poll()
                time.sleep(0.01)
            assert tail.reasons() == []
            known = {split(note.name)[:2]: note for *_, note in tail.table.current()}
            assert {("leaf", str(script)), ("middle", str(script))} <= known.keys()
            late = known["late", "<string>"]
            assert late.since < after
            assert before - 20e6 < late.when < after
            assert tail.table.lookup(late.start, after) == (late, 0)
        finally:
            forget(one.pid)


FORKED = """
import mmap, os, struct, sys, time
path = f"jit-{os.getpid()}.dump"
file = open(path, "w+b", buffering=0)
def load(name, address):
    body = struct.pack("<IIQQQQ", os.getppid(), 1, address, address, 8, 0) + name + bytes(9)
    file.write(struct.pack("<IIQ", 0, 16 + len(body), time.monotonic_ns()) + body)
file.write(struct.pack("<IIIIIIQQ", 0x4A695444, 1, 40, 62, 0, os.getpid(), 0, 0))
mapped = mmap.mmap(file.fileno(), 40, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
load(b"before", 0x1000)
os.unlink(path)
time.sleep(0.05)
pid = os.fork()
if pid:
    time.sleep(0.05)
    load(b"after", 0x2000)
    print(pid, flush=True)
time.sleep(60)
"""


@root
def test_a_mapped_dump_is_found_and_inherited(tmp_path):
    """Even deleted. A forked child has what was loaded before; what came later is the parent's."""
    argv = [sys.executable, "-c", FORKED]
    with started(*argv, cwd=tmp_path) as one:
        child = int(one.stdout.readline())
        try:
            for pid, expected in (one.pid, ["before", "after"]), (child, ["before", None]):
                with tailing(pid) as tail:
                    tail.poll()
                    assert names(tail, 0x1000, 0x2000) == expected
                    assert tail.reasons() == []
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_dump_that_a_fork_cut_in_two_is_read_on(tmp_path):
    """CPython's child writes its parent's buffer once more; what follows is found again."""
    script = tmp_path / "fork.py"
    script.write_text(
        "import os\ndef before(): pass\nbefore()\npid = os.fork()\n"
        "if not pid: os._exit(0)\nos.waitpid(pid, 0)\nprint(pid, flush=True)\n"
        "exec('def after(): pass\\nafter()')\ninput()\n"
    )
    argv = [interpreter("3.13", "perf_jit"), "-X", "perf_jit", script]
    with started(*argv) as one, tailing(one.pid) as tail:
        child = int(one.stdout.readline())
        try:
            tail.poll()
            one.stdin.write(b"\n")
            one.stdin.flush()
            while not tail.gone:
                tail.poll()
            known = {split(note.name)[0] for *_, note in tail.table.current()}
            assert {"before", "after"} <= known
        finally:
            forget(one.pid)
            forget(child)


BUSY_NODE = """
function leaf(n) { let s = 0; for (let i = 0; i < n; i++) s += Math.sqrt(i); return s }
function middle(n) {
  return leaf(n) + 1
}
const end = Date.now() + 800; while (Date.now() < end) middle(500)
console.log("ready"); setInterval(() => middle(5), 100)
"""


@pytest.mark.parametrize("option", ["--perf-basic-prof", "--perf-prof"])
def test_real_node_is_followed(option, tmp_path):
    """V8's map and dump name optimized functions with file and line; the dump has line tables."""
    script = tmp_path / "busy.js"
    script.write_text(BUSY_NODE)
    with started(tool("node"), option, script, ready=b"ready", cwd=tmp_path) as one:
        try:
            with tailing(one.pid) as tail:
                for _ in range(50):
                    tail.poll()
                    parts = {split(note.name): note for *_, note in tail.table.current()}
                    mine = {part: note for part, note in parts.items() if part.file == str(script)}
                    if any(part.tier == "optimized" for part in mine):
                        break
                    time.sleep(0.1)
                reasons = tail.reasons()
            leaf = {part.tier: note for part, note in mine.items() if part.function == "leaf"}
            assert {part.line for part in mine if part.function == "leaf"} == {2}
            assert "optimized" in leaf
            assert all("a line table" in reason for reason in reasons)
            # Node.js 20 writes file names from freed memory into its line tables: those are right,
            # or left out with a reason.
            if option == "--perf-prof" and not reasons:
                lines = leaf["optimized"].lines
                assert set(lines.lines) == {2}
                assert 0 <= lines.offsets[0] < lines.offsets[-1] < leaf["optimized"].size
        finally:
            forget(one.pid)


def test_a_real_jvm_is_followed(tmp_path):
    """HotSpot writes its map when it is asked, whole each time; a later one replaces it."""
    source = tmp_path / "Busy.java"
    source.write_text(
        "public class Busy { static double leaf(int n) { double s = 0;"
        " for (int i = 0; i < n; i++) s += Math.sqrt(i); return s; }\n"
        " public static void main(String[] a) throws Exception { double t = 0;"
        " for (int i = 0; i < 20000; i++) t += leaf(500);"
        ' System.out.println("ready"); while (true) { t += leaf(500); Thread.sleep(5); } } }'
    )
    java, jcmd, javac = tool("java"), tool("jcmd"), tool("javac")
    subprocess.run([javac, source], check=True)
    with started(java, "-cp", tmp_path, "Busy", ready=b"ready") as one, tailing(one.pid) as tail:
        try:
            for _ in range(2):
                subprocess.run([jcmd, str(one.pid), "Compiler.perfmap"], check=True, timeout=60)
                assert tail.poll() > 100, tail.reasons()
                functions = {split(note.name).function for *_, note in tail.table.current()}
                assert "Busy.leaf" in functions
                assert tail.reasons() == []
        finally:
            forget(one.pid)


def test_a_file_is_read_by_name(tmp_path):
    """A map or dump kept from elsewhere is told apart by its first bytes, with its problems."""
    path = tmp_path / "some.map"
    path.write_text("1000 10 f\nbad\n2000 10 g")
    table, problems = read_file(path)
    assert [note.name for *_, note in table.current()] == ["f", "g"]
    assert table.lookup(0x1000, 5)[0].name == "f"
    assert problems == [f"{path}: 1 line is not 'START SIZE NAME', the first is line 2"]
    path.write_bytes(b"DTiJ" + bytes(9))
    assert read_file(path)[1] == [
        f"{path}: 1 record is damaged, the first at byte 0: the dump ends in it"
    ]


def test_a_file_without_end_is_cut(tmp_path, monkeypatch):
    """Beyond MAX_ENTRIES notes nothing is read, and the reason says so."""
    monkeypatch.setattr("ustack.notes.tail.MAX_ENTRIES", 5000)
    path = tmp_path / "some.map"
    path.write_text("".join(f"{i * 16:x} 10 f\n" for i in range(1, 20_000)))
    table, problems = read_file(path)
    assert 5000 <= len(table) < 15_000 < MAX_ENTRIES
    assert problems == [f"{path}: more than 5000 notes; what follows is not read"]
