# SPDX-License-Identifier: MIT
"""Where a stub lies: which directories and files are trusted, and what happens when none is.

Every rule of docs/security.md on what may be mapped has its test here; probes do not matter.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forced import mappings

import stubgen
import usdt
from stubgen.arch import MACHINES
from stubgen.image import file_name
from usdt import stubfile
from usdt.stubfile import LoadError, open_directory, open_stub

MACHINE = os.uname().machine
SHOP = stubgen.Provider("shop", (stubgen.Probe("order", (stubgen.Arg("id", "u64"),)),))
IMAGE = stubgen.build(SHOP, arch=MACHINE)
NAME = file_name(SHOP, IMAGE)

LOAD = """
import usdt
shop = usdt.Provider("shop")
shop.add_probe("order", id=usdt.u64)
"""


def mapped_path(built: list[str] | None = None) -> str:
    """Map the stub of SHOP and say where it lies."""
    return open_stub(SHOP, built=built or [])[1]


@pytest.fixture
def next_dir(stub_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that is tried after `stub_dir`; the machine's own ones are not."""
    path = tmp_path / "next"
    monkeypatch.setattr(stubfile, "directories", lambda: [str(stub_dir), str(path)])
    return path


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a tmpfs with the given options; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mounted = []

    def at(path: Path, options: str) -> Path:
        path.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:  # root in a container may have no CAP_SYS_ADMIN
            pytest.skip(f"this machine mounts no tmpfs: {done.stderr.strip()}")
        mounted.append(path)
        path.chmod(0o755)
        return path

    yield at
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


def disown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file or directory somebody else's."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)


# --- directories


def test_directories_go_from_shared_to_private(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's choice, the system's, the session's, the user's own in /tmp."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("USDT_STUB_DIR", "/srv/stubs/")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert stubfile.directories() == [
        "/srv/stubs", "/run/usdt", "/run/user/1234/usdt", "/tmp/usdt-1234"
    ]  # fmt: skip
    monkeypatch.setenv("USDT_STUB_DIR", "")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert stubfile.directories() == ["/run/usdt", "/tmp/usdt-1234"]


def test_a_relative_directory_is_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracers elsewhere need the whole path."""
    monkeypatch.setenv("USDT_STUB_DIR", "stubs")
    assert stubfile.directories()[0] == os.path.abspath("stubs")


def test_a_working_directory_that_is_gone_is_no_error(python: Callable[..., str]) -> None:
    """What was relative to it is left out."""
    program = """
import os, tempfile
from usdt import stubfile
os.environ["USDT_STUB_DIR"] = "stubs"
gone = tempfile.mkdtemp()
os.chdir(gone)
os.rmdir(gone)
print(*stubfile.directories())
"""
    assert python(program).split() == ["/run/usdt", f"/tmp/usdt-{os.geteuid()}"]


def symlinked(path: Path, tmp_path: Path, _: object) -> None:
    path.rmdir()
    (tmp_path / "real").mkdir()
    path.symlink_to(tmp_path / "real")


def foreign(path: Path, _: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disown(path, monkeypatch)


def group_writable(path: Path, *_: object) -> None:
    path.chmod(0o775)


def world_writable(path: Path, *_: object) -> None:
    path.chmod(0o707)


def sticky(path: Path, *_: object) -> None:
    path.chmod(0o1777)


def a_file(path: Path, *_: object) -> None:
    path.rmdir()
    path.write_bytes(b"not a directory")


def a_fifo(path: Path, *_: object) -> None:
    path.rmdir()
    os.mkfifo(path)


def dangling(path: Path, tmp_path: Path, _: object) -> None:
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")


REFUSED = {
    symlinked: "Not a directory",
    foreign: "belongs to uid",
    group_writable: "is writable by others (chmod go-w it)",
    world_writable: "is writable by others (chmod go-w it)",
    sticky: "is writable by others (chmod go-w it)",
    a_file: "Not a directory",
    a_fifo: "Not a directory",
    dangling: "Not a directory",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_a_directory_that_is_not_ours_alone_is_refused(
    stub_dir: Path, next_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[..., None],
) -> None:  # fmt: skip
    """It is left untouched and the next directory is used; alone, its reason is told."""
    monkeypatch.setenv("USDT_STUB_DIR", f"{stub_dir}/")  # a slash must not follow a symlink
    spoil(stub_dir, tmp_path, monkeypatch)
    if os.geteuid() == os.stat(tmp_path).st_uid:
        assert mapped_path() == f"{next_dir}/{NAME}"
    assert [path for path in tmp_path.rglob("*.so*") if path.parent != next_dir] == []

    monkeypatch.setattr(stubfile, "directories", lambda: [str(stub_dir)])
    monkeypatch.setattr(stubfile, "_open_memfd", no_memfd)
    with pytest.raises(LoadError) as raised:
        mapped_path()
    assert f"{stub_dir}: {REFUSED[spoil]}" in str(raised.value)
    assert "\n" not in str(raised.value)


def no_memfd(name: str, image: bytes) -> None:
    """A machine without memfd_create(2)."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_the_reason_has_every_place(
    stub_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing works, the one line names each directory once, with its own reason."""
    stub_dir.chmod(0o777)
    missing = tmp_path / "no" / "parent"
    monkeypatch.setattr(stubfile, "directories", lambda: [str(stub_dir), str(missing)])
    monkeypatch.setattr(stubfile, "_open_memfd", no_memfd)
    with pytest.raises(LoadError) as raised:
        mapped_path()
    assert str(raised.value) == (
        "provider 'shop' has no place for its stub "
        f"({stub_dir}: is writable by others (chmod go-w it); "
        f"{missing}: No such file or directory; memfd: Function not implemented): "
        "run `usdt doctor`"
    )


def test_a_noexec_directory_is_passed_over(
    stub_dir: Path, next_dir: Path, mount: Callable[..., Path]
) -> None:
    """Nothing is written where nothing can be mapped."""
    mount(stub_dir, "size=1m,noexec")
    assert mapped_path() == f"{next_dir}/{NAME}"
    assert list(stub_dir.iterdir()) == []


def test_a_directory_the_loader_refuses_is_passed_over(
    stub_dir: Path, next_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A security module may forbid the mapping without a mount flag: dlopen's word counts."""
    real = stubfile.Stub

    def stub(path: str, fd: int = -1) -> object:
        if path.startswith(f"{stub_dir}/"):
            raise OSError(f"{path}: failed to map segment from shared object")
        return real(path, fd)

    monkeypatch.setattr(stubfile, "Stub", stub)
    assert mapped_path() == f"{next_dir}/{NAME}"


def test_a_read_only_directory_serves_what_it_has(
    stub_dir: Path, next_dir: Path, mount: Callable[..., Path]
) -> None:
    """Without the stub it is passed over; with the stub it is used."""
    mount(stub_dir, "size=1m")

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", stub_dir], check=True)

    remount("ro")
    assert mapped_path() == f"{next_dir}/{NAME}"
    remount("rw")
    (stub_dir / NAME).write_bytes(IMAGE)
    remount("ro")
    assert mapped_path() == f"{stub_dir}/{NAME}"


def test_a_full_disk_is_passed_over(
    stub_dir: Path, next_dir: Path, mount: Callable[..., Path]
) -> None:
    """A file system without room gets no half a stub and keeps no temporary file."""
    mount(stub_dir, "size=4k")
    assert mapped_path() == f"{next_dir}/{NAME}"
    assert list(stub_dir.iterdir()) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_write_that_fails_half_way_leaves_nothing(
    stub_dir: Path, next_dir: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """The next directory is used, and no file descriptor stays open."""
    real = os.write
    calls = []

    def write(fd: int, data: memoryview) -> int:
        calls.append(fd)
        if len(calls) == 1:
            return real(fd, data[:100])
        if len(calls) == 2:
            raise OSError(error, os.strerror(error))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    before = len(os.listdir("/proc/self/fd"))
    stub, path = open_stub(SHOP, built=[])
    assert path == f"{next_dir}/{NAME}"
    assert list(stub_dir.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
    del stub


def test_short_writes_are_continued(stub_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) may take less than it is given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:1000]))
    assert mapped_path() == f"{stub_dir}/{NAME}"
    assert (stub_dir / NAME).read_bytes() == IMAGE


def test_no_file_may_be_written_at_all(python: Callable[..., str]) -> None:
    """With RLIMIT_FSIZE 0 not even a memfd takes a byte: load() says so and leaks nothing."""
    program = f"""
import logging, os, resource
logging.disable()
from usdt import stubfile
stubfile.directories = lambda: [os.environ["USDT_STUB_DIR"]]
{LOAD}
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
before = os.listdir("/proc/self/fd")
for _ in range(20):
    assert shop.load() is False
assert "memfd: File too large" in shop.why_not, shop.why_not
assert os.listdir("/proc/self/fd") == before
assert os.listdir(os.environ["USDT_STUB_DIR"]) == []
"""
    python(program)


def test_a_missing_directory_is_made_for_all_to_read(
    stub_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directory 0755 and file 0444, whatever the umask: other users' processes share them."""
    for umask in (0o077, 0o000, 0o027):
        path = stub_dir / f"made-{umask:o}"
        monkeypatch.setattr(stubfile, "directories", lambda path=path: [str(path)])
        old = os.umask(umask)
        try:
            mapped_path()
        finally:
            os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert stat.S_IMODE((path / NAME).stat().st_mode) == 0o444


def test_a_directory_that_is_there_keeps_its_mode(stub_dir: Path) -> None:
    """What the administrator has set is not changed."""
    assert mapped_path() == f"{stub_dir}/{NAME}"
    assert stat.S_IMODE(stub_dir.stat().st_mode) == 0o700


def test_open_directory_closes_what_it_refuses(stub_dir: Path) -> None:
    """A refused directory costs no file descriptor."""
    stub_dir.chmod(0o777)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(PermissionError):
            open_directory(str(stub_dir), create=True)
    assert os.listdir("/proc/self/fd") == before


# --- the file


def test_a_file_with_our_bytes_is_used_as_it_is(stub_dir: Path) -> None:
    """A second load writes nothing: same inode, nothing else in the directory."""
    mapped_path()
    inode = (stub_dir / NAME).stat().st_ino
    assert mapped_path() == f"{stub_dir}/{NAME}"
    assert (stub_dir / NAME).stat().st_ino == inode
    assert [path.name for path in stub_dir.iterdir()] == [NAME]


def flipped(path: Path, *_: object) -> None:
    path.write_bytes(IMAGE[:5000] + bytes([IMAGE[5000] ^ 1]) + IMAGE[5001:])


def truncated(path: Path, *_: object) -> None:
    path.write_bytes(IMAGE[:-1])


def longer(path: Path, *_: object) -> None:
    path.write_bytes(IMAGE + b"\0")


def empty(path: Path, *_: object) -> None:
    path.write_bytes(b"")


def writable(path: Path, *_: object) -> None:
    path.write_bytes(IMAGE)
    path.chmod(0o664)


def foreign_file(path: Path, _: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    path.write_bytes(IMAGE)
    os.chown(path, 65534, 65534)


def link_to_our_bytes(path: Path, tmp_path: Path, _: object) -> None:
    (tmp_path / "elsewhere").write_bytes(IMAGE)
    path.symlink_to(tmp_path / "elsewhere")


def link_to_nothing(path: Path, tmp_path: Path, _: object) -> None:
    path.symlink_to(tmp_path / "elsewhere")


def fifo(path: Path, *_: object) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        flipped, truncated, longer, empty, writable, foreign_file, link_to_our_bytes,
        link_to_nothing, fifo,
    ],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_a_file_that_is_not_ours_is_replaced(
    stub_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None]
) -> None:
    """It is replaced by rename, never opened for writing, and what it pointed to is untouched."""
    path = stub_dir / NAME
    spoil(path, tmp_path, monkeypatch)
    before = path.lstat().st_ino
    assert mapped_path() == str(path)
    after = path.lstat()
    assert stat.S_ISREG(after.st_mode)
    assert (after.st_ino != before, stat.S_IMODE(after.st_mode)) == (True, 0o444)
    assert path.read_bytes() == IMAGE
    assert [entry.name for entry in stub_dir.iterdir()] == [NAME]
    elsewhere = tmp_path / "elsewhere"
    assert not elsewhere.exists() or elsewhere.read_bytes() == IMAGE


def test_a_directory_at_the_files_name_is_passed_over(stub_dir: Path, next_dir: Path) -> None:
    """It cannot be replaced by rename; nothing is left beside it."""
    (stub_dir / NAME).mkdir()
    assert mapped_path() == f"{next_dir}/{NAME}"
    assert [path.name for path in stub_dir.iterdir()] == [NAME]


def test_who_maps_the_old_file_keeps_it(stub_dir: Path) -> None:
    """Replacing a damaged file changes nothing under a process that has it mapped."""
    path = stub_dir / NAME
    flipped(path)
    damaged = path.read_bytes()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as old:
        mapped_path()
        assert bytes(old) == damaged
    assert path.read_bytes() == IMAGE


def test_a_file_removed_before_dlopen_is_written_again(
    stub_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`usdt clean` may come between our look at the file and the loader's."""
    real = stubfile.Stub
    raced = []

    def stub(path: str, fd: int = -1) -> object:
        if not raced:
            raced.append(path)
            os.unlink(path)
        return real(path, fd)

    monkeypatch.setattr(stubfile, "Stub", stub)
    assert mapped_path() == f"{stub_dir}/{NAME}"
    assert raced == [f"{stub_dir}/{NAME}"]


def test_a_file_system_without_hard_links_is_served(
    stub_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where link(2) is refused the file gets its name by rename."""

    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    assert mapped_path() == f"{stub_dir}/{NAME}"
    assert [path.name for path in stub_dir.iterdir()] == [NAME]


RACE = f"""
import os, sys
{LOAD}
ready, go = os.pipe()
children = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(ready, 1)  # all start when the pipe is closed
        status = 0 if shop.load() and shop.paths[0].startswith(os.environ["USDT_STUB_DIR"]) else 1
        maps = open("/proc/self/maps").read()
        inodes = {{line.split()[4] for line in maps.splitlines() if shop.paths[0] in line}}
        os.write(1, (" ".join(inodes) + "\\n").encode())
        os._exit(status)
    children.append(pid)
os.close(go)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
print(os.stat(os.environ["USDT_STUB_DIR"] + "/" + os.listdir(os.environ["USDT_STUB_DIR"])[0]).st_ino)
"""  # noqa: E501


def test_processes_that_start_at_once_share_one_inode(
    python: Callable[..., str], stub_dir: Path
) -> None:
    """Eight writers race; all map the same file, and no temporary one is left."""
    for _ in range(5):
        inodes = python(RACE).split()
        assert len(inodes) == 9
        assert len(set(inodes)) == 1
        assert [path.name for path in stub_dir.iterdir()] == [NAME]
        (stub_dir / NAME).unlink()


def test_a_damaged_file_is_mended_under_a_race(python: Callable[..., str], stub_dir: Path) -> None:
    """Eight writers replace one damaged file: each has the right bytes, nothing else is left."""
    flipped(stub_dir / NAME)
    assert len(python(RACE).split()) == 9
    assert [path.name for path in stub_dir.iterdir()] == [NAME]
    assert (stub_dir / NAME).read_bytes() == IMAGE


@pytest.mark.parametrize("call", ["write", "link", "fchmod"])
def test_a_writer_that_is_killed_leaves_no_half_file(
    python: Callable[..., str], stub_dir: Path, call: str
) -> None:
    """The final name appears with the whole file or not at all; the next process is served."""
    program = f"""
import os, signal
pid = os.fork()
if pid == 0:
    real = os.{call}
    def killed(*args, **kwargs):
        if "{call}" == "write":
            real(args[0], args[1][:100])
        os.kill(os.getpid(), signal.SIGKILL)
    os.{call} = killed
    {LOAD.strip().replace(chr(10), chr(10) + "    ")}
    shop.load()
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""
    python(program)
    left = [path.name for path in stub_dir.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(f".{NAME}.")
    assert mapped_path() == f"{stub_dir}/{NAME}"
    assert (stub_dir / NAME).read_bytes() == IMAGE


def test_every_process_comes_to_the_same_path(python: Callable[..., str]) -> None:
    """Hash seed, umask, argv and environment change nothing of the name."""
    program = f"{LOAD}\nshop.load(); print(shop.paths[0])"
    paths = {
        python(program),
        python(program, "-O", PYTHONHASHSEED="1"),
        python("import os; os.umask(0o777)" + program, PYTHONHASHSEED="2", LC_ALL="C"),
    }
    assert len(paths) == 1


# --- memfd


@pytest.fixture
def only_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no directory is usable."""
    monkeypatch.setattr(stubfile, "directories", lambda: ["/proc/usdt"])


@pytest.mark.usefixtures("only_memory")
def test_a_memfd_is_the_last_place() -> None:
    """Its path can be read by others, and mapping and descriptor end with the stub."""
    before = os.listdir("/proc/self/fd")
    stub, path = open_stub(SHOP, built=[])
    fd = int(path.rpartition("/")[2])
    assert path == f"/proc/{os.getpid()}/fd/{fd}"
    assert Path(path).read_bytes() == IMAGE
    assert os.get_inheritable(fd) is False
    assert mappings(f"memfd:usdt:{NAME}") != []
    del stub
    assert mappings(f"memfd:usdt:{NAME}") == []
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.usefixtures("only_memory")
def test_memory_stubs_of_two_providers_are_two() -> None:
    """Each provider has its own probes, loaded in turn and at once."""
    one, two = usdt.Provider("one"), usdt.Provider("two")
    probes = [one.add_probe("a"), two.add_probe("b")]
    assert one.load()
    assert two.load()
    assert len({*one.paths, *two.paths}) == 2
    one.unload()
    two.unload()
    for provider in (two, one, two):
        assert provider.load()
    assert [probe.loaded for probe in probes] == [True, True]


@pytest.mark.usefixtures("only_memory")
def test_a_memory_stub_is_its_own_where_a_descriptor_was_closed() -> None:
    """A program that closes descriptors it does not know gets no earlier stub for a later one."""
    one, two = usdt.Provider("one"), usdt.Provider("two")
    one.add_probe("a")
    b = two.add_probe("b")
    assert one.load()
    os.close(int(one.paths[0].rpartition("/")[2]))
    assert two.load()
    assert two.paths == one.paths
    assert b.loaded
    one.unload()
    assert Path(two.paths[0]).exists()  # one's descriptor was gone; two's has its number


def test_a_descriptor_closed_behind_a_memory_stub_is_nobodys(python: Callable[..., str]) -> None:
    """A program that becomes a daemon closes all: later loads and files are their own."""
    program = """
import os
import usdt
from usdt import stubfile
stubfile.directories = list
def provider(name):
    made = usdt.Provider(name)
    made.add_probe("event", value=usdt.u64)
    assert made.load(), made.why_not
    return made
for _ in range(5):
    first = provider("first")
    fd = int(first.paths[0].rpartition("/")[2])
    os.closerange(3, 256)
    second = provider("second")
    assert second.paths == first.paths
    first.probes[0](1)
    second.probes[0](1)
    second.unload()
    mine = os.open("/etc/passwd", os.O_RDONLY)
    assert mine == fd
    first.unload()
    assert os.read(mine, 1)
    os.close(mine)
"""
    python(program)


@pytest.mark.usefixtures("only_memory")
def test_a_memory_stub_the_loader_refuses_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memfd that cannot be mapped (vm.memfd_noexec) costs no file descriptor."""
    monkeypatch.setattr(stubgen, "build", lambda *args, **kwargs: b"\x7fELF no stub")
    monkeypatch.setattr(stubfile, "file_name", lambda *args: "shop-0.so")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(LoadError, match="memfd: /proc/self/fd/"):
        open_stub(SHOP, built=[])
    assert os.listdir("/proc/self/fd") == before


# --- stubs made ahead


def built(directory: Path, *, nop: str | None = None, provider: stubgen.Provider = SHOP) -> Path:
    """Put a stub where `usdt-stubgen build -o` would."""
    directory.mkdir(exist_ok=True)
    image = stubgen.build(provider, arch=MACHINE, nop=nop)
    path = directory / file_name(provider, image)
    path.write_bytes(image)
    return path


def test_a_stub_made_ahead_is_used(stub_dir: Path, tmp_path: Path) -> None:
    """Given as stubs=, nothing is written anywhere."""
    path = built(tmp_path / "ahead")
    provider = usdt.Provider("shop", stubs=tmp_path / "ahead")
    provider.add_probe("order", id=usdt.u64)
    assert provider.load()
    assert provider.paths == (str(path),)
    assert list(stub_dir.iterdir()) == []


def test_stub_path_lists_directories(
    stub_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$USDT_STUB_PATH may have empty and missing entries; the first that matches is used."""
    path = built(tmp_path / "b")
    built(tmp_path / "c")
    monkeypatch.setenv("USDT_STUB_PATH", f":{tmp_path}/a::{tmp_path}/b:{tmp_path}/c:")
    provider = usdt.Provider("shop")
    provider.add_probe("order", id=usdt.u64)
    assert provider.load()
    assert provider.paths == (str(path),)


def test_a_stub_beside_the_module_is_found(python: Callable[..., str], tmp_path: Path) -> None:
    """`stubs/` in the directory of the module that makes the provider needs no setting."""
    path = built(tmp_path / "stubs")
    assert python(f"{LOAD}\nassert shop.load(); print(shop.paths[0])").strip() == str(path)


def test_a_stub_made_ahead_has_the_nop_kind_that_is_asked_for(
    stub_dir: Path, tmp_path: Path
) -> None:
    """Of the kinds in one directory each provider takes its own, and no other will do."""
    ahead = tmp_path / "ahead"
    for kind in MACHINES[MACHINE].nops:
        path = built(ahead, nop=kind)
        assert open_stub(SHOP, built=[str(ahead)], nop=kind)[1] == str(path)
    assert list(stub_dir.iterdir()) == []
    (ahead / NAME).unlink()
    assert mapped_path([str(ahead)]) == f"{stub_dir}/{NAME}"


@pytest.mark.parametrize("spoil", [flipped, truncated, longer, empty])
def test_a_stub_made_ahead_that_does_not_match_is_ignored(
    stub_dir: Path, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    """Damaged or stale: the program makes its own, and the file is left alone."""
    path = built(tmp_path / "ahead")
    spoil(path)
    before = path.read_bytes()
    assert mapped_path([str(tmp_path / "ahead")]) == f"{stub_dir}/{NAME}"
    assert path.read_bytes() == before


def test_a_stub_of_other_declarations_is_ignored(stub_dir: Path, tmp_path: Path) -> None:
    """An older version of the provider, even under this one's name."""
    stale = stubgen.Provider("shop", (stubgen.Probe("order", (stubgen.Arg("id", "u32"),)),))
    path = built(tmp_path / "ahead", provider=stale)
    (tmp_path / "ahead" / NAME).write_bytes(path.read_bytes())
    assert mapped_path([str(tmp_path / "ahead")]) == f"{stub_dir}/{NAME}"


# --- nothing executable is written


@pytest.mark.parametrize("value", ["1", "yes", "true"])
def test_no_runtime_stubs_writes_nothing(
    stub_dir: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Neither a file, nor a directory, nor a memfd; the reason says what to ship."""
    stub_dir.rmdir()
    monkeypatch.setenv("USDT_NO_RUNTIME_STUBS", value)
    monkeypatch.setattr(stubfile, "directories", lambda: [str(stub_dir)])
    with pytest.raises(LoadError) as raised:
        mapped_path()
    assert "USDT_NO_RUNTIME_STUBS is set: ship stubs made by `usdt-stubgen build`" in str(
        raised.value
    )
    assert not stub_dir.exists()
    assert mappings(NAME) == []


def test_no_runtime_stubs_uses_what_is_placed(
    stub_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stub made ahead or already in a directory is mapped; a damaged one is left as it is."""
    monkeypatch.setattr(stubfile, "directories", lambda: [str(stub_dir)])
    (stub_dir / NAME).write_bytes(IMAGE)
    monkeypatch.setenv("USDT_NO_RUNTIME_STUBS", "1")
    assert mapped_path() == f"{stub_dir}/{NAME}"
    path = built(tmp_path / "ahead")
    assert mapped_path([str(tmp_path / "ahead")]) == str(path)
    flipped(stub_dir / NAME)
    damaged = (stub_dir / NAME).read_bytes()
    with pytest.raises(LoadError):
        mapped_path()
    assert (stub_dir / NAME).read_bytes() == damaged


@pytest.mark.parametrize("value", ["", "0"])
def test_no_runtime_stubs_can_be_off(
    stub_dir: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Unset, empty and 0 mean the same."""
    monkeypatch.setenv("USDT_NO_RUNTIME_STUBS", value)
    assert mapped_path() == f"{stub_dir}/{NAME}"
