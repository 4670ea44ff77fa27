"""What ptxas made of a kernel: registers, shared memory, and the instructions of its hot loop, read from the cubin."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)([^;]*);", re.M)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class Instruction(NamedTuple):
    address: int
    opcode: str
    operands: str


class Loop(NamedTuple):
    """The instructions from the target of a backward branch to the branch."""

    start: int
    stop: int
    opcodes: Counter[str]

    def count(self, *prefixes: str) -> int:
        return count_opcodes(self.opcodes, *prefixes)

    @property
    def instructions(self) -> int:
        return self.opcodes.total()


class Limits(NamedTuple):
    """One SM of an arch."""

    shared: int  # bytes
    warps: int
    ctas: int


LIMITS = {80: Limits(164 << 10, 64, 32), 86: Limits(100 << 10, 48, 16), 90: Limits(228 << 10, 64, 32)}
REGISTERS = 65536  # of an SM, handed to warps in units of 8 a thread
SYSTEM_SHARED = 1024  # bytes of shared memory that the driver takes for every CTA


def count_opcodes(opcodes: Counter[str], *prefixes: str) -> int:
    return sum(n for opcode, n in opcodes.items() if opcode.startswith(prefixes))


def parse(sass: str) -> list[Instruction]:
    """The instructions of a cuobjdump listing."""
    return [Instruction(int(m[1], 16), m[2], m[3].strip()) for m in _INSTRUCTION.finditer(sass)]


def loops(code: list[Instruction]) -> list[Loop]:
    """All loops, from the outermost inwards. The branch to itself that pads the end of a kernel is none."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    found = []
    for i, (address, opcode, operands) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            start = place[int(target[1], 16)]
            found.append(Loop(start, i, Counter(x.opcode for x in code[start : i + 1])))
    return sorted(found, key=lambda loop: -loop.instructions)


def innermost_loops(code: list[Instruction]) -> list[Loop]:
    """The loops that hold no other loop."""
    found = loops(code)
    return [a for a in found if not any(a.start <= b.start and b.stop <= a.stop for b in found if b is not a)]


def hot_loop(code: list[Instruction]) -> Loop | None:
    """The innermost loop with most exponentials, else matrix instructions, else instructions.

    ptxas may put a short copy of a loop behind it for the last iterations; this prefers the long one.
    """
    work = ("MUFU.EX2",), ("HMMA", "HGMMA"), ("",)
    return max(innermost_loops(code), key=lambda loop: [loop.count(*prefixes) for prefixes in work], default=None)


def ctas_per_sm(capability: int, registers: int, shared: int, warps: int) -> int:
    """How many thread blocks fit on an SM at once: 0 if one alone does not."""
    limit = LIMITS[capability]
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // warps
    return min(by_registers, limit.shared // (shared + SYSTEM_SHARED), limit.warps // warps, limit.ctas)


def measure(cubin: bytes, shared: int, warps: int, capability: int) -> dict[str, int]:
    """The numbers that a budget holds. `shared` is what the launch asks for, in bytes."""
    listing = _dump(cubin)
    resources = _RESOURCES.search(listing)
    registers, stack = int(resources[1]), int(resources[2])
    return {
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": shared,
        "ctas_per_sm": ctas_per_sm(capability, registers, shared, warps),
        **of_code(parse(listing)),
    }


def of_code(code: list[Instruction]) -> dict[str, int]:
    """The part of `measure` that is in the instructions."""
    whole = Counter(x.opcode for x in code)
    hot = hot_loop(code) or Loop(0, 0, Counter())
    return {
        "instructions": len(code),
        "spills_in_loops": max((loop.count("LDL", "STL") for loop in loops(code)), default=0),
        "spills_in_inner_loops": max((loop.count("LDL", "STL") for loop in innermost_loops(code)), default=0),
        "hot_loop": hot.instructions,
        "ex2_in_hot_loop": hot.count("MUFU.EX2"),
        "fma_in_hot_loop": hot.count("FFMA"),
        "shuffles_in_hot_loop": hot.count("SHFL"),
        "barriers_in_hot_loop": hot.count("BAR"),
        "hmma": count_opcodes(whole, "HMMA"),
        "hgmma": count_opcodes(whole, "HGMMA"),
        "float_atomics": sum(n for opcode, n in whole.items() if _is_atomic(opcode)),
        "fp64": count_opcodes(whole, "DADD", "DMUL", "DFMA", "DMMA"),
    }


def _is_atomic(opcode: str) -> bool:
    """Global atomics, the source of an order that changes from run to run. REDUX is a reduction within a warp."""
    return opcode.startswith(("ATOM", "RED.", "REDG"))


def _dump(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path  # comes with Triton
        options = ["--dump-resource-usage", "--dump-sass"]
        return "".join(
            subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout
            for option in options
        )
