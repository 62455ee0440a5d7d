# SPDX-License-Identifier: MIT
"""`usdt-stubgen` as its users meet it: what it prints, writes and returns.

Runs `main` in this process where it can and a child where the import system or a full disk is
concerned. Must not know formats.
"""

import ctypes
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stubgen import Arg, Probe, Provider, ahead, build
from stubgen.arch import MACHINES
from stubgen.check import TRACERS, check
from stubgen.cli import main, parser
from stubgen.image import file_name
from stubgen.read import read_elf, read_path

ROOT = Path(__file__).parents[2]
HERE = os.uname().machine

SOURCE = """\
from stubgen import Arg, Probe, Provider

class Duck:
    name = "duck"
    @property
    def spec(self):
        return Provider("duck", (Probe("quack", (Arg("loud", "bool"),)),))

shop = Provider("shop", (Probe("order_start", (Arg("id", "u64"), Arg("customer", "str"))),))
duck = Duck()
empty = Provider("empty")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A directory with the package `app`, whose module `probes` has three providers."""
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "probes.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, cwd=None, **env):
    """The command in a process of its own: status, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "stubgen.cli", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def one_line(text):
    """The text, which must be one line and no traceback."""
    assert text.startswith("usdt-stubgen: ")
    assert text.count("\n") == 1
    return text


# --- build


def test_build_writes_one_stub_per_nop_kind(project):
    """Each file is what build() makes, under its content's name, readable by all."""
    status, out, err = run("build", "app.probes:shop", "-o", "app/stubs", cwd=project)
    assert (status, err) == (0, "")
    kinds = MACHINES[HERE].nops
    assert len(out.splitlines()) == len(kinds)
    spec = Provider("shop", (Probe("order_start", (Arg("id", "u64"), Arg("customer", "str"))),))
    for nop in kinds:
        data = build(spec, arch=HERE, nop=nop)
        path = project / "app/stubs" / file_name(spec, data)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o644
    assert len(list((project / "app/stubs").iterdir())) == len(kinds)


def test_build_again_changes_nothing(project):
    """The second run leaves the very same files."""
    run("build", "app.probes:shop", "-o", "s", cwd=project)
    before = {path: path.stat().st_mtime_ns for path in (project / "s").iterdir()}
    status, out, _ = run("build", "app.probes:shop", "-o", "s", cwd=project)
    assert status == 0
    assert out.count("unchanged") == len(before)
    assert {path: path.stat().st_mtime_ns for path in (project / "s").iterdir()} == before


def test_build_without_a_name_takes_every_provider(project):
    """Objects whose `spec` is a provider count; those without probes do not."""
    status, _, _ = run("build", "app.probes", "-o", "s", "--nop", "nop1", cwd=project)
    assert status == 0
    found = sorted(path.name.partition("-")[0] for path in (project / "s").iterdir())
    assert found == ["duck", "shop"]


def test_build_for_another_machine(project):
    """--arch makes stubs that say so."""
    for arch in MACHINES:
        assert run("build", "app.probes:shop", "-o", arch, "--arch", arch, cwd=project)[0] == 0
        assert {read_path(path).machine for path in (project / arch).iterdir()} == {arch}


def test_build_names_stale_stubs_and_leaves_them(project):
    """After a change of the declaration the older files are named on stderr, and only they."""
    for arch in MACHINES:
        run("build", "app.probes", "-o", "s", "--arch", arch, cwd=project)
    source = project / "app/probes.py"
    source.write_text(source.read_text().replace("customer", "client"))
    before = {path.name for path in (project / "s").iterdir()}
    status, _, err = run("build", "app.probes", "-o", "s", "--arch", "x86_64", cwd=project)
    assert status == 0
    assert before <= {path.name for path in (project / "s").iterdir()}
    named = {Path(word).name for word in one_line(err).split() if word.endswith(".so")}
    assert named == {
        name
        for name in before
        if name.startswith("shop-") and read_path(project / "s" / name).machine == "x86_64"
    }


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("app.prob:shop", "no module 'app.prob' here"),
        ("nothing", "no module 'nothing' here"),
        ("app/probes.py", "no module name"),
        ("app.probes:shp", "it has duck, empty, shop"),
        ("app.probes:shop.name", "it has duck, empty, shop"),
        ("app.probes:empty", "has no probes"),
        ("app", "no provider with probes"),
        (":shop", "no module name"),
        ("", "no module name"),
    ],
)
def test_build_of_what_is_not_there(project, target, message):
    """A wrong module or provider is one line that says what there is, and nothing is written."""
    status, out, err = run("build", target, "-o", "s", cwd=project)
    assert (status, out) == (1, "")
    assert message in one_line(err)
    assert not (project / "s").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import not_there", "No module named 'not_there'"),
        ("import sys; sys.exit(4)", "SystemExit: 4"),
        ("def (", "SyntaxError"),
    ],
)
def test_build_of_a_module_that_fails(project, source, message):
    """What the module raises becomes one line with the command that shows the traceback."""
    (project / "bad.py").write_text(source)
    status, _, err = run("build", "bad", "-o", "s", cwd=project)
    assert status == 1
    assert message in one_line(err)
    assert "python3 -c 'import bad'" in err


def test_build_into_a_file(project):
    """-o that is a file: one line, the file as it was."""
    (project / "s").write_text("mine")
    status, _, err = run("build", "app.probes", "-o", "s", cwd=project)
    assert status == 1
    assert "ls -ld s" in one_line(err)
    assert (project / "s").read_text() == "mine"


def test_build_without_rights_is_status_3(project, monkeypatch, capsys):
    """A directory that may not be written: what this user cannot, and where to look."""

    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.syspath_prepend(str(project))
    monkeypatch.setattr(ahead.os, "makedirs", denied)
    assert main(["build", "app.probes:shop", "-o", "s"]) == 3
    assert "ls -ld s" in one_line(capsys.readouterr().err)
    assert not (project / "s").exists()


def test_a_full_disk_leaves_nothing_half_written(project, monkeypatch):
    """ENOSPC in the middle of a write: no stub, no temporary file, `df` in the message."""

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_exc):
            self.file.close()

        def write(self, data):
            self.file.write(data[:100])
            raise OSError(28, "No space left on device")

    def full(path, mode):
        if "x" in mode:
            return Full(Path(path).open(mode))
        return Path(path).open(mode)

    monkeypatch.setattr(ahead, "open", full, raising=False)
    spec = Provider("shop", (Probe("tick"),))
    with pytest.raises(ahead.BuildError, match=r"No space left on device: .*df -h"):
        ahead.write("s", ahead.builds(spec, "x86_64", "nop1")[0])
    assert list((project / "s").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to mount a small tmpfs")
def test_a_disk_that_is_really_full(project):
    """The same on a tmpfs of one page."""
    small = project / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mount is not allowed here")
    try:
        status, _, err = run("build", "app.probes:shop", "-o", "small", cwd=project)
        assert status == 1
        assert "df -h small" in one_line(err)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_damaged_stub_in_the_directory_is_replaced(project):
    """Wrong bytes under the right name do not stay."""
    spec = Provider("shop", (Probe("tick"),))
    built = ahead.builds(spec, "x86_64", "nop1")[0]
    (project / built.name).write_bytes(built.data[:-1] + b"!")
    assert ahead.write(".", built)
    assert (project / built.name).read_bytes() == built.data


def test_build_of_a_module_that_loads_its_probes(project):
    """A service's own module, with load() at import, builds all the same."""
    (project / "service.py").write_text(
        "import usdt\n"
        "shop = usdt.Provider('shop')\n"
        "@shop.probe\n"
        "def order_start(id: usdt.u64, customer: str) -> None: ...\n"
        "shop.load()\n"
    )
    status, _, err = run(
        "build", "service:shop", "-o", "s", cwd=project, USDT_STUB_DIR=str(project / "run")
    )
    assert (status, err) == (0, "")
    (probe,) = read_path(next((project / "s").iterdir())).probes
    assert str(probe.args) == "(Arg('id', 'u64'), Arg('customer', 'str'))"


def test_a_program_maps_what_was_built(project):
    """Stubs in `stubs/` beside the module are the ones it loads, with nothing written at run."""
    (project / "app/service.py").write_text(
        "import usdt\n"
        "shop = usdt.Provider('shop')\n"
        "@shop.probe\n"
        "def order_start(id: usdt.u64, customer: str) -> None: ...\n"
        "if __name__ == '__main__':\n"
        "    print(shop.load(), *shop.paths)\n"
    )
    assert run("build", "app.service:shop", "-o", "app/stubs", cwd=project)[0] == 0
    ran = subprocess.run(
        [sys.executable, "app/service.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "USDT_NO_RUNTIME_STUBS": "1"},
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, path = ran.stdout.split()
    assert loaded == "True"
    assert (project / path).parent == project / "app/stubs"


# --- show


@pytest.fixture
def stub(tmp_path):
    """The path of a stub with a probe of each shape."""
    spec = Provider(
        "shop",
        (
            Probe("order_done", (Arg("id", "u64"), Arg("status", "i32"), Arg("customer", "str"))),
            Probe("chunk", (Arg("data", "bytes"), Arg("ratio", "f64"))),
            Probe("wide", tuple(Arg(f"a{i}", "i16") for i in range(8))),
            Probe("tick"),
        ),
    )
    data = build(spec, arch="x86_64", nop="nop5")
    path = tmp_path / file_name(spec, data)
    path.write_bytes(data)
    return path


def test_show_prints_signatures_and_commands(stub, capsys):
    """For each probe its signature, nop kind, and the line to paste."""
    assert main(["show", str(stub)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{stub}: x86_64 stub, 4 probes"
    assert lines[1] == "  shop:order_done(u64 id, i32 status, str customer)  [nop5]"
    assert lines[2] == (
        f"    bpftrace -e 'usdt:{stub}:shop:order_done "
        r'{ printf("id=%llu status=%lld customer=%s\n", arg0, arg1, str(arg2)); }'
        "'"
    )
    assert r'"data=%r ratio=0x%llx\n", buf(arg0, arg1), arg2);' in lines[4]
    assert 'arg5, *(int16*)(reg("sp") + 16), *(int16*)(reg("sp") + 24));' in lines[6]
    assert r'{ printf("shop:tick\n"); }' in lines[8]


def test_show_json_says_the_same(stub, capsys):
    """The document has a version, and the values of the lines for people."""
    assert main(["show", str(stub), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["pid"]) == (1, None)
    (file,) = document["files"]
    assert set(file) == {
        "path", "reach", "deleted", "machine", "build_id", "stub", "why", "probes",
    }  # fmt: skip
    assert file["build_id"].startswith(stub.stem.partition("-")[2])
    probe = file["probes"][1]
    assert set(probe) == {
        "provider", "name", "site", "semaphore", "nop", "operands", "args", "bpftrace",
    }  # fmt: skip
    assert probe["args"] == [
        {"name": "data", "type": "bytes", "operand": 0},
        {"name": "ratio", "type": "f64", "operand": 2},
    ]
    assert shlex.split(probe["bpftrace"])[:2] == ["bpftrace", "-e"]


def test_show_of_a_path_with_a_blank_and_a_quote(stub, capsys):
    """The command survives the shell: bpftrace gets the path in double quotes."""
    odd = stub.rename(stub.with_name("it's odd.so"))
    assert main(["show", str(odd)]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "order_done {" in x)
    assert shlex.split(line)[2].startswith(f'usdt:"{odd}":shop:order_done {{ printf(')


def test_show_pid_says_who_is_listened_to(stub, capsys):
    """The semaphores of a live process, probe by probe."""
    if HERE != "x86_64":
        pytest.skip("the stub is for x86_64")
    library = ctypes.CDLL(str(stub))
    ctypes.c_uint16.in_dll(library, "shop_chunk_semaphore").value = 1
    assert main(["show", "--pid", str(os.getpid())]) == 0
    out = capsys.readouterr().out
    assert "  shop:chunk(bytes data, f64 ratio)  [nop5, listening]\n" in out
    assert "  shop:tick()  [nop5, not listening]\n" in out
    assert main(["show", "--pid", str(os.getpid()), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (file,) = [file for file in document["files"] if file["path"] == str(stub)]
    assert document["pid"] == os.getpid()
    assert [probe["semaphore_value"] for probe in file["probes"]] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show", "/nowhere"], "no such file"),
        (["show", "/dev/zero"], "not a regular file"),
        (["show", str(ROOT / "pyproject.toml")], "not an ELF file"),
        (["show", sys.executable + "/"], "cannot read it"),
        (["check", "/nowhere"], "no such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(args, message, capsys):
    """A ReadError becomes one line on stderr and status 1."""
    assert main(args) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in one_line(captured.err)


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_file_without_probes_is_status_1(command, tmp_path, capsys):
    """An ELF file without notes says so, with what to look at instead."""
    data = build(Provider("p", (Probe("a"),))).replace(b"stapsdt\0", b"nothing\0")
    (tmp_path / "plain.so").write_bytes(data)
    assert main([command, str(tmp_path / "plain.so")]) == 1
    assert "has no USDT probes" in one_line(capsys.readouterr().err)


# --- check


def test_check_passes_our_own_stub(stub, capsys):
    """No tracer refuses a stub; what 0.17 cannot name is a warning."""
    assert main(["check", str(stub)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^bpftrace 0\.17 +warns +shop:wide: its last arguments", out, re.MULTILINE)
    assert re.search(r"^libbpf +ok$", out, re.MULTILINE)
    assert "refuses" not in out


def test_check_json_has_every_tracer(stub, capsys):
    """One list of findings for each tracer, empty where all is well."""
    assert main(["check", str(stub), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["version"] == 1
    assert tuple(document["tracers"]) == TRACERS
    assert document["tracers"]["gdb"] == []
    (finding,) = document["tracers"]["bpftrace 0.23"]
    assert set(finding) == {"severity", "probe", "what", "todo"}


BROKEN = [
    ("floats", lambda d: d.replace(b"8@%rdi -4@%esi", b"8f@%xmm0 8@%di"), "bpftrace 0.17"),
    ("symbols", lambda d: d.replace(b"8@%rdi -4@%esi 8@%rdx", b"8@a+4(%rip) 8@%rsi\0\0\0"), "bcc"),
    ("no .probes", lambda d: d.replace(b"\0.probes\0", b"\0.plobes\0"), "libbpf"),
    ("no base", lambda d: d.replace(b"\0.stapsdt.base\0", b"\0.stapsdt.bass\0"), "gdb"),
    (
        "no build id",
        lambda d: d.replace(b"\x14\0\0\0\3\0\0\0GNU", b"\x14\0\0\0\3\0\0\0GNV"),
        "perf",
    ),
]


@pytest.mark.parametrize(
    ("change", "tracer"), [row[1:] for row in BROKEN], ids=[r[0] for r in BROKEN]
)
def test_check_finds_what_a_tracer_refuses(stub, tmp_path, change, tracer, capsys):
    """Each rule that refuses: status 1, and the tracer that refuses it is named."""
    data = change(stub.read_bytes())
    assert data != stub.read_bytes()
    (tmp_path / "broken.so").write_bytes(data)
    assert main(["check", str(tmp_path / "broken.so"), "--json"]) == 1
    tracers = json.loads(capsys.readouterr().out)["tracers"]
    assert "refuses" in {finding["severity"] for finding in tracers[tracer]}


def test_every_rule_speaks_of_known_tracers(stub):
    """Findings come in the order of TRACERS, and none is of a tracer without a row."""
    findings = check(read_elf(stub.read_bytes(), path="/memfd:x (deleted)", functions=True))
    order = [TRACERS.index(finding.tracer) for finding in findings]
    assert order == sorted(order)
    assert {"perf", "gdb"} <= {finding.tracer for finding in findings}


# --- the command itself


@pytest.mark.parametrize(
    "line",
    [
        "", "build", "build a", "show", "show --pid -1", "show --pid x", "show f --pid 1", "check",
        "build a -o s --arch vax", "build a -o s --nop nop10", "frob",
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2(line, capsys):
    """argparse's own message and status."""
    with pytest.raises(SystemExit) as left:
        main(line.split())
    assert left.value.code == 2
    assert "usage: usdt-stubgen" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--help"], ["build", "-h"], ["show", "-h"], ["check", "-h"]])
def test_help_has_examples(args, capsys):
    """Every help text ends in examples that begin with the command's name."""
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 0
    assert "examples:\n  usdt-stubgen " in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(shell, capsys):
    """The script comes from the parser."""
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", shell])
    assert left.value.code == 0
    assert "build" in capsys.readouterr().out
    assert parser().prog == "usdt-stubgen"


@pytest.mark.parametrize(
    ("missing", "args"),
    [
        ("shtab", ["--print-completion", "bash"]),
        ("elftools", ["show", "/bin/sh"]),
        ("elftools", ["check", "/bin/sh"]),
    ],
)
def test_a_missing_tool_is_status_3(tmp_path, missing, args):
    """Without the optional packages: the pip command."""
    (tmp_path / f"{missing}.py").write_text("raise ImportError('hidden')\n")
    status, _, err = run(*args, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert status == 3
    assert "pip install 'usdt-toolkit[tools]'" in one_line(err)


def test_build_needs_no_third_party_package(project):
    """Building stubs works where neither pyelftools nor shtab is installed."""
    for name in ("elftools", "shtab"):
        (project / f"{name}.py").write_text("raise ImportError('hidden')\n")
    assert run("build", "app.probes:shop", "-o", "s", cwd=project)[0] == 0


def test_a_closed_pipe_is_no_traceback(stub):
    """`usdt-stubgen show ... | head -0` ends quietly."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "stubgen.cli", "show", str(stub)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_full_output_is_one_line(stub, command):
    """What cannot be written to stdout is status 1 and one line, and a closed stdout none."""
    argv = [sys.executable, "-m", "stubgen.cli", command, stub]
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == (
        "usdt-stubgen: cannot write to stdout: No space left on device: see what is full: df -h\n"
    )
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *argv], capture_output=True, text=True, cwd=ROOT
    )
    assert (closed.returncode, closed.stderr) == (0, "")
