# SPDX-License-Identifier: MIT
"""Who waits for the GIL, and for whom: where the GILs of a process are, and text for bpftrace.

A thread that wants the GIL sleeps in a futex inside of it. Must not know what is done with the
records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ustack.walk.cpython.script import Limits, fragment
from ustack.walk.cpython.target import Target
from ustack.walk.errors import WalkError

__all__ = ["futex_words", "gil_probes"]

# Include/internal: a GIL is in _PyRuntime (pycore_runtime.h) until 3.11; later, an interpreter
# points at its own or the shared one (pycore_interp.h).
_IN_RUNTIME = {(3, 10): 352, (3, 11): 360}
_IN_INTERPRETER = {(3, 12): 384}

# Numbers of the words of _Py_DebugOffsets that have that offset.
_WORD = {(3, 13): 14}

# struct _gil_runtime_state (pycore_gil.h): the condition, a pthread_cond_t of glibc, sleeps at
# words of its own, the mutex at its first.
_HOLDER, _COND, _MUTEX = 8, 32, 80

_MAX_INTERPRETERS = 256


def futex_words(target: Target, read: Callable[[int, int, int], bytes]) -> dict[int, int]:
    """The words a thread sleeps at -> where that GIL says who has it.

    Raises WalkError for a version whose GIL is not known, OSError for memory that is not there.
    N.B. Subinterpreters that start later with a GIL of their own are not in it.
    """

    def word(address: int) -> int:
        data = read(target.pid, address, 8)
        if len(data) != 8:
            raise OSError(f"nothing to read at {address:#x}")
        return int.from_bytes(data, "little")

    gils = set()
    if target.version in _IN_RUNTIME:
        gils.add(target.runtime + _IN_RUNTIME[target.version])
    else:
        if target.version in _WORD:
            offset = word(target.runtime + 8 * _WORD[target.version])
        elif target.version in _IN_INTERPRETER:
            offset = _IN_INTERPRETER[target.version]
        else:
            shown = ".".join(map(str, target.version))
            raise WalkError(
                f"the GIL of CPython {shown} is not supported (supported: 3.10 to 3.13)"
            )
        interpreter = word(target.runtime + target.layout.interpreters_head)
        for _ in range(_MAX_INTERPRETERS):
            if not interpreter:
                break
            gils.add(word(interpreter + offset))
            interpreter = word(interpreter + target.layout.interp_next)
    return {
        gil + sleep: gil + _HOLDER for gil in gils for sleep in (*range(_COND, _MUTEX, 4), _MUTEX)
    }


# The waiter's stack is taken when it wakes: it has not changed, and one program holds one walk.
# Operations 0 and 9 are FUTEX_WAIT and FUTEX_WAIT_BITSET, -110 is -ETIMEDOUT: then the thread asks
# for the GIL and sleeps again, which is the same wait. What the walk takes, the thread waits too.
_PROBES = """\
tracepoint:sched:sched_switch{and_filter} {{
  $o = @py[(uint64)pid];
  if ($o.0 != 0) {{ @tid[(uint64)pid, (uint64)curtask->thread.fsbase] = (uint64)tid; }}
}}
tracepoint:syscalls:sys_enter_futex /@gil[(uint64)pid, (uint64)args->uaddr] != 0/ {{
  $x = (uint64)args->op & 127;
  if ($x == 0 || $x == 9) {{
    $now = nsecs;
    $x = @woke[(uint64)tid];
    @again[(uint64)tid] = (uint64)($now - $x < 1000000);
    if ($now - $x < 1000000) {{ $now = $x; }}
    @since[(uint64)tid] = $now;
    $x = @gil[(uint64)pid, (uint64)args->uaddr];
    $holder = *(uint64*)uptr($x);
{holder}
    @held[(uint64)tid] = ($key, $fs);
  }}
}}
tracepoint:syscalls:sys_exit_futex /@since[(uint64)tid] != 0/ {{
  $again = (uint64)(args->ret == -110);
{waiter}
  $now = nsecs;
  @woke[(uint64)tid] = $now * $again;
  $d = @held[(uint64)tid];
  printf("G %llx %d %d %lx %lx %llx %d %lx %lx %d\\n", $now, pid, tid, $space, $key,
    @since[(uint64)tid], @again[(uint64)tid], $d.0, $d.1, @tid[(uint64)pid, $d.1]);
  delete(@since[(uint64)tid]);
}}
"""


def gil_probes(
    limits: Limits, words: Mapping[int, Mapping[int, int]], pid: int | None
) -> tuple[str, str]:
    """Statements for BEGIN, after those of `rows`, and the probes; words: `futex_words` by pid.

    Each time a thread slept, at most the switch interval, is one record `G`: time, pid, tid, space
    and key, time of its beginning, 1 if the wait had begun before, the holder's key and thread id
    (the one of pthread_self), and the kernel's number for it or 0.
    """
    begin = "".join(
        f"  @gil[(uint64){owner}, (uint64){word}] = (uint64){holder};\n"
        for owner, gil in words.items()
        for word, holder in gil.items()
    )
    text = _PROBES.format(
        and_filter="" if pid is None else f" /pid == {pid}/",
        holder=fragment(limits, of="$holder"),
        waiter=fragment(limits),
    )
    return f"{begin}  @woke[(uint64)0] = (uint64)0;\n", text
