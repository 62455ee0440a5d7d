# SPDX-License-Identifier: MIT
"""One attach by path, many processes: pre-fork servers, containers over one layer, other users.

Counts per process; every count is exact, workers born after the attach included.
"""

from __future__ import annotations

import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import (
    Service,
    StartBpftrace,
    StartService,
    need_mount_namespaces,
    wait_until,
)

import stubgen
from stubgen.image import file_name

# A pre-fork server: the parent listens, four workers accept, and one that ends is replaced.
# GET /PID answers with the worker's pid and its number of requests; /exit ends that worker.
SERVER = """\
import os, signal, socket, usdt
LOAD_IN = {load_in!r}
shop = usdt.Provider("shop")
start = shop.add_probe("request_start", pid=usdt.u64)
done_ = shop.add_probe("request_done", path=str, served=usdt.i32)
if LOAD_IN == "parent": shop.load()
door = socket.create_server(("127.0.0.1", 0), backlog=64)

def work():
    if LOAD_IN == "worker": shop.load()
    served = 0
    while True:
        client, _ = door.accept()
        with client:
            path = client.recv(4096).decode().split()[1]
            start(os.getpid())
            served += 1
            body = f"{{os.getpid()}} {{served}}"
            client.sendall(f"HTTP/1.0 200 OK\\r\\n\\r\\n{{body}}".encode())
            done_(path, served)  # before the client sees the end of its answer
        if path == "/exit": os._exit(0)

def born():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try: work()
        finally: os._exit(1)
    workers.add(pid)

def stop(*_):
    for pid in workers: os.kill(pid, signal.SIGKILL)
    os._exit(0)

workers = set()
signal.signal(signal.SIGTERM, stop)
for _ in range(4): born()
print("PORT", door.getsockname()[1]); started()
while True:
    pid, status = os.wait()
    workers.discard(pid)
    print("ENDED", pid, os.waitstatus_to_exitcode(status), flush=True)
    born()
"""


def get(port: int, path: str) -> int:
    """The pid of the worker that answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as door:
        door.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: door.recv(4096), b""))
    return int(answer.partition(b"\r\n\r\n")[2].split()[0])


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def server(service: StartService) -> Iterator[Callable[[str], Service]]:
    """server(load_in) -> a Service that serves; its workers end with it."""
    servers: list[Service] = []

    def start(load_in: str) -> Service:
        servers.append(service(SERVER.format(load_in=load_in)))
        return servers[-1]

    yield start
    for svc in servers:
        svc.process.send_signal(signal.SIGTERM)
        svc.wait()


@pytest.mark.parametrize("load_in", ["parent", "worker"])
def test_pre_fork_server(
    server: Callable[[str], Service], bpftrace: StartBpftrace, load_in: str
) -> None:
    """One attach counts each request of each worker, also of those born after it."""
    svc = server(load_in)
    port = int(re.search(r"PORT (\d+)", svc.text)[1])  # type: ignore[index]
    first_worker = get(port, "/untraced")
    wait_until(lambda: len(svc.semaphores()) == (load_in == "parent"), "the parent's maps")
    stub = next(
        line.split()[-1]
        for line in Path(f"/proc/{first_worker}/maps").read_text().splitlines()
        if "/shop-" in line
    )
    tracer = bpftrace(
        f"usdt:{stub}:shop:request_start {{ @start[pid, arg0] = count(); }}\n"
        f"usdt:{stub}:shop:request_done {{ @done[pid, str(arg0)] = count(); }}"
    )
    served: Counter[str] = Counter()
    for _ in range(3):
        for path in ["/", "/orders/ö"] * 25 + ["/exit"] * 3:
            served[f"{get(port, path)}, {path}"] += 1
        wait_until(lambda: len(children(svc.pid)) == 4, "four workers")
    wait_until(lambda: svc.text.count("ENDED") == 9, "the ends of nine workers")
    text = tracer.stop()
    done = {key: int(n) for key, n in re.findall(r"^@done\[(.*)\]: (\d+)$", text, re.M)}
    start = {key: int(n) for key, n in re.findall(r"^@start\[(.*)\]: (\d+)$", text, re.M)}
    assert done == served
    per_worker: Counter[str] = Counter()
    for key, n in served.items():
        pid = key.partition(",")[0]
        per_worker[f"{pid}, {pid}"] += n
    assert start == per_worker
    assert sum(start.values()) == 3 * 53
    assert svc.text.count(" 0\n") >= 9, "workers ended as they should"
    assert len(per_worker) > 4, "workers born after the attach took part"


# A container as the kernel sees it: a mount namespace, an overlay over the image's layer. With
# CHANGED it has written to the stub once, so that it has a copy of its own in its upper layer.
CONTAINER = """\
import ctypes, os, subprocess, usdt
CLONE_NEWNS = 0x00020000
assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
def mount(*args): subprocess.run(["mount", *args], check=True)
mount("--make-rprivate", "/")
own = {own!r}
mount("-t", "tmpfs", "tmpfs", own)
for name in ("upper", "work", "root"): os.mkdir(f"{{own}}/{{name}}")
layers = f"lowerdir={image},upperdir={{own}}/upper,workdir={{own}}/work"
mount("-t", "overlay", "overlay", "-o", layers, f"{{own}}/root")
if {changed}: os.chmod(f"{{own}}/root/app/stubs/{name}", 0o444)
if {chroot}:
    os.chroot(f"{{own}}/root")
    os.chdir("/")
    os.environ["USDT_STUB_PATH"] = "/app/stubs"
else:
    os.environ["USDT_STUB_PATH"] = f"{{own}}/root/app/stubs"
shop = usdt.Provider("shop")
order = shop.add_probe("order", id=usdt.u64)
print("LOADED", shop.load(), *shop.paths); started(); wait()
for i in range({times}): order(i)
print("ENABLED", int(bool(order))); done(); wait()
"""


def test_containers_over_one_layer(
    service: StartService, bpftrace: StartBpftrace, stubs: Path
) -> None:
    """A stub built into an image layer: one attach counts its containers, and no private copy."""
    need_mount_namespaces()
    shop = stubgen.Provider("shop", (stubgen.Probe("order", (stubgen.Arg("id", "u64"),)),))
    built = stubgen.build(shop)
    name = file_name(shop, built)
    image = stubs / "image"
    (image / "app" / "stubs").mkdir(parents=True)
    (image / "app" / "stubs" / name).write_bytes(built)

    def container(
        label: str, times: int, *, chroot: bool = False, changed: bool = False
    ) -> Service:
        own = stubs / label
        own.mkdir()
        source = CONTAINER.format(
            own=str(own), image=image, name=name, times=times, chroot=chroot, changed=changed
        )
        return service(source, env={"USDT_NO_RUNTIME_STUBS": "1", "USDT_STUB_DIR": ""})

    one = container("one", 296)
    two = container("two", 297, chroot=True)
    apart = container("apart", 298, changed=True)
    assert f"LOADED True {stubs}/one/root/app/stubs/{name}" in one.text
    assert f"LOADED True /app/stubs/{name}" in two.text
    assert f"LOADED True {stubs}/apart/root/app/stubs/{name}" in apart.text
    tracer = bpftrace(f"usdt:{image}/app/stubs/{name}:shop:order {{ @[pid] = count(); }}")
    for svc in (one, two, apart):
        svc.go()
        svc.done()
    assert [svc.text.rpartition("ENABLED ")[2][0] for svc in (one, two, apart)] == ["1", "1", "0"]
    counted = dict(re.findall(r"^@\[(\d+)\]: (\d+)$", tracer.stop(), re.M))
    assert counted == {str(one.pid): "296", str(two.pid): "297"}
    assert [path.name for path in image.rglob("*.so")] == [name]
