# SPDX-License-Identifier: MIT
"""The bpftrace text that finds the current thread's Python frames and prints what is new of them.

One text for every version of CPython and of bpftrace: what differs is a row of numbers per
process. Must not know how processes are found, nor what the records mean to a reader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ustack.walk.cpython.layout import Layout

__all__ = [
    "END_CUT", "END_NO_THREAD", "END_NOT_PYTHON", "END_UNREADABLE", "PARTS", "PIECES_START",
    "Limits", "fragment", "identity", "row", "rows",
]  # fmt: skip

#: What a `P` record is a piece of: the function's name, its file's, its table of lines.
PARTS = "nfl"

#: Pieces begin here in their objects, where the sizes are.
PIECES_START = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """How much work one program may be. The verifier follows each turn of a loop: 1 000 000
    instructions, 8192 branches on the way, and bpftrace's versions differ in what they make.

    frames:  that are hashed. A third of them is printed for one sample, so that a deep stack
             is out after three samples
    named:   frames whose code objects are printed for one sample
    threads: thread states that are tried, of all interpreters
    chunk:   bytes in one `P` record; pieces: how many records for each of PARTS; what is longer
             is read from the process while it lives
    """

    frames: int
    named: int
    threads: int
    chunk: int
    pieces: tuple[int, int, int]


#: What a key says that is not the name of a frame.
END_CUT, END_UNREADABLE, END_NO_THREAD, END_NOT_PYTHON = 1, 2, 3, 4

# A stack's key is the sum over its frames of mix(frame) * _STEP**i, i counted from the leaf,
# modulo 2**64. Without its first frame, times the inverse of _STEP, it is the key of the frames
# below: so that each frame with its callers is printed once, and a new leaf costs one record.
# All are odd, and below 2**63 as bpftrace's literals are.
_STEP = 0x64B1E7F0AFAE5A3B
_BACK = pow(_STEP, -1, 1 << 64)
_CODE = 0x5645F3EB42840D2B
_NAME = 0x6CB72D6FA2BEEE31
_LINES = 0x73E5218792AC3D43
_INSTR = 0x3410109669599355

# From 3.14 on two bits of a frame's pointers say how they are counted (pycore_stackref.h).
_POINTER = (1 << 63) - 4

_TEMPLATE = """\
  $o = @py[(uint64)pid];
  $space = (uint64)curtask->group_leader->start_time + (uint64)curtask->self_exec_id;
  $space = $space * 4194304 + (uint64)pid;
  $key = (uint64)END_NOT_PYTHON;
  if ($o.0 != 0) {
    $fs = THREAD;
    $h = READ($o.0);
    $f = @thread[CACHED];
    $x = (uint64)0;
    if ($f != 0) { $x = READ($f + T_ID); }
    $a = READ($h + $o.1);
    if ($x != $fs) { $a = (uint64)1; }
    if ($a != 0) {
      $f = (uint64)0;
      $a = READ($h + $o.2);
      $i = (uint64)0;
      while ($i < THREADS && $h != 0) {
        if ($a == 0) {
          $h = READ($h + $o.1);
          $a = READ($h + $o.2);
        } else {
          $x = READ($a + T_ID);
          if ($x == $fs) {
            $f = $a;
            $x = $a + T_FRAME;
            $x = READ($x + (READ($x) - $x) * T_INDIRECT + T_CFRAME);
            if ($x != 0) {
              if ($x != READ($a + T_BASE)) { break; }
            }
          }
          $a = READ($a + T_NEXT);
        }
        $i++;
      }
      @thread[CACHED] = $f;
    }
    $key = (uint64)END_NO_THREAD;
    if ($f != 0) {
      $x = $f + T_FRAME;
      $f = READ($x + (READ($x) - $x) * T_INDIRECT + T_CFRAME);
      $key = (uint64)0;
      $w = (uint64)1;
      $c = (uint64)1;
      $a = $f;
      $a1 = (uint64)0;
      $a2 = (uint64)0;
      $k1 = (uint64)0;
      $k2 = (uint64)0;
      $i = (uint64)0;
      while ($i < DEEPEST && $a != 0) {
        if ($i == FIRST_CUT) { $a1 = $a; $k1 = $key; }
        if ($i == SECOND_CUT) { $a2 = $a; $k2 = $key; }
        $c = READ($a + F_CODE) & POINTER;
        $x = IDENTITY ^ (READ($a + F_INSTR) * INSTR);
        $key = $key + ($x ^ ($x >> 32)) * $w;
        $w = $w * STEP;
        $a = READ($a + F_BACK);
        $i++;
      }
      if ($a != 0) { $key = $key + $w; }
      if ($c == 0) { $key = $key + 2 * $w; }
      if (@seen[$space, $key] != 2) {
        $h = $key;
        $a = $f;
        $w = (uint64)2;
        $x = ($key - $k1) * BACK_ONCE;
        if ($a1 != 0) {
          if (@seen[$space, $x] == 0) { $a = $a1; $h = $x; $w = (uint64)0; }
        }
        $x = ($key - $k2) * BACK_TWICE;
        if ($a2 != 0) {
          if (@seen[$space, $x] == 0) { $a = $a2; $h = $x; $w = (uint64)0; }
        }
        $i = (uint64)0;
        while ($i < PRINTED && $a != 0) {
          if (@seen[$space, $h] != 0) {
            $a = (uint64)0;
          } else {
            @seen[$space, $h] = (uint64)1;
            $c = READ($a + F_CODE) & POINTER;
            $k1 = READ($a + F_INSTR);
            $k2 = IDENTITY;
            $x = $k2 ^ ($k1 * INSTR);
            $x = ($h - ($x ^ ($x >> 32))) * BACK;
            printf("N %lx %lx %lx %lx %lx %lx %lx\\n", $space, $h, $x, $k2, $c, $k1,
              READ($a + F_MARK));
            $h = $x;
            $a = READ($a + F_BACK);
          }
          $i++;
        }
        @seen[$space, $key] = $w;
        $a = $f;
        $i = (uint64)0;
        while ($i < NAMED && $a != 0) {
          $c = READ($a + F_CODE) & POINTER;
          $k2 = IDENTITY;
          if (@named[$space, $k2] == 0) {
            @named[$space, $k2] = (uint64)1;
            $x = READ($c + C_FILE);
            printf("C %lx %lx %d %lx %lx %lx %lx %lx\\n", $space, $k2, pid, $c,
              READ($c + C_NAME), READ($c + C_LINES), $x, READ($c + C_FIRST));
PIECES
          }
          $a = READ($a + F_BACK);
          $i++;
        }
      }
    }
  }
"""

# Four offsets of 16 bits per number: bpftrace 0.17 has 512 bytes for all variables.
_PACKED = {
    3: ("tstate_next", "tstate_thread_id", "tstate_frame", "indirect"),
    4: ("cframe_frame", "tstate_base"),
    5: ("frame_back", "frame_code", "frame_instr", "frame_mark"),
    6: ("code_name", "code_lines", "code_file", "code_first"),
}
_WORD_OF = {
    "tstate_next": "T_NEXT", "tstate_thread_id": "T_ID", "tstate_frame": "T_FRAME",
    "indirect": "T_INDIRECT", "cframe_frame": "T_CFRAME", "tstate_base": "T_BASE",
    "frame_back": "F_BACK", "frame_code": "F_CODE", "frame_instr": "F_INSTR",
    "frame_mark": "F_MARK",
    "code_name": "C_NAME", "code_lines": "C_LINES", "code_file": "C_FILE", "code_first": "C_FIRST",
}  # fmt: skip


def _literal(value: int) -> str:
    """Any 64-bit number in terms of literals below 2**63."""
    return f"({value >> 1} * (uint64)2 + {value & 1})"


def _words(limits: Limits) -> dict[str, str]:
    printed = limits.frames // 3
    words = {
        "END_NOT_PYTHON": str(END_NOT_PYTHON), "END_NO_THREAD": str(END_NO_THREAD),
        "THREADS": str(limits.threads), "DEEPEST": str(limits.frames), "PRINTED": str(printed),
        "NAMED": str(limits.named), "FIRST_CUT": str(printed), "SECOND_CUT": str(2 * printed),
        "INSTR": str(_INSTR), "STEP": str(_STEP), "BACK": _literal(_BACK),
        "BACK_ONCE": _literal(pow(_BACK, printed, 1 << 64)),
        "BACK_TWICE": _literal(pow(_BACK, 2 * printed, 1 << 64)),
        "IDENTITY":
            f"($c * {_CODE} + READ($c + C_NAME) * {_NAME} + READ($c + C_LINES) * {_LINES})",
        "PIECES": "\n".join(_pieces(limits)),
        "POINTER": str(_POINTER), "READ": "*(uint64*)uptr",
    }  # fmt: skip
    for number, names in _PACKED.items():
        for place, name in enumerate(names):
            shifted = f"($o.{number} >> {16 * place})" if place else f"$o.{number}"
            words[_WORD_OF[name]] = f"({shifted} & 65535)"
    return words


def _pieces(limits: Limits) -> list[str]:
    where = {"n": "READ($c + C_NAME)", "f": "READ($c + C_FILE)", "l": "READ($c + C_LINES)"}
    lines = []
    for part, count in zip(PARTS, limits.pieces, strict=True):
        lines.append(f"            $x = {where[part]};")
        lines += [
            f'            printf("P %lx %lx {part} {i} %rx\\n", $space, $k2, '
            f"buf(uptr($x + {PIECES_START + limits.chunk * i}), {limits.chunk}));"
            for i in range(count)
        ]
    return lines


_WORD = re.compile(r"\b[A-Z][A-Z_0-9]+\b")


def fragment(limits: Limits, *, of: str = "") -> str:
    """Statements for the inside of a probe: sets $space and $key, prints records of what is new.

    $space names the process between two execs, $key its stack: print both with each sample.
    Needs `rows` in BEGIN. of: a variable with the address of a thread state of the process, for
    the stack of another thread than the current one: it may run, so its stack may be torn.
    """
    text, words = _TEMPLATE, _words(limits)
    words["THREAD"] = f"READ({of} + T_ID)" if of else "(uint64)curtask->thread.fsbase"
    words["CACHED"] = of or "(uint64)tid"
    while True:
        before = text
        text = _WORD.sub(lambda match: words.get(match[0], match[0]), text)
        if text == before:
            return text


def identity(code: int, name: int, lines: int) -> int:
    """What the script calls a code object: its address alone comes again."""
    return (code * _CODE + name * _NAME + lines * _LINES) & (1 << 64) - 1


def row(runtime: int, layout: Layout) -> tuple[int, ...]:
    """The numbers of one process; runtime: the address of its _PyRuntime."""
    packed = {
        number: sum(getattr(layout, name) << 16 * place for place, name in enumerate(names))
        for number, names in _PACKED.items()
    }
    return (
        runtime + layout.interpreters_head,
        layout.interp_next,
        layout.interp_threads,
        packed[3],
        packed[4],
        packed[5],
        packed[6],
    )


def rows(table: Mapping[int, tuple[int, ...]]) -> str:
    """Statements for BEGIN: pid -> its row. One at least: it gives the map its type."""
    return "".join(
        f"  @py[(uint64){pid}] = ({', '.join(f'(uint64){number}' for number in numbers)});\n"
        for pid, numbers in table.items()
    )
