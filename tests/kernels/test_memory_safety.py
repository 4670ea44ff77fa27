"""Reads and writes outside a tensor, and offsets that need 64 bits: mistakes that give right answers until they do not.

Every input, and every tensor that Python allocates inside an op, lies flush against a page that may not be touched,
after its end or before its start. One step too far kills the process, so the ops run in a child: this file as a script.
"""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dida_kernels
from tests.cases import GRADIENT, SCENES, Scene, call
from tests.interpreter import looking_for_overflow

ROOT = Path(__file__).parents[2]
CHECKED = ("triton", "cpp")  # the backends whose code computes addresses; on a GPU compute-sanitizer does this work
AT_THE_EDGE = ("odd_channels", "one_pixel", "stride_4", "one_node_row", "fewer_slots_than_classes")
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named from Python 3.13 on

# op -> the argument that gets a stride of more than 2^31 elements, and a scene in which its first dimension is 2
TWO_PIXELS = Scene("two_pixels", B=1, hw=(1, 2), HW=(1, 2))
FAR_APART = {
    "bank_similarity": (0, TWO_PIXELS),
    "instance_loss": (0, SCENES["ordinary"]),
    "scatter": (0, TWO_PIXELS),
    "gather": (0, TWO_PIXELS),
    "class_similarity": (0, SCENES["ordinary"]),
    "boundary_mask": (0, SCENES["ordinary"]),
    "bank_update": (2, SCENES["ordinary"]),
}


def checked_pairs() -> list[tuple[str, str]]:
    return [(op, name) for op in dida_kernels.OPS for name in CHECKED if name in dida_kernels.OPS[op].backends]


def in_child(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.kernels.test_memory_safety", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("place", ["end", "start"])
def test_nothing_outside_a_tensor_is_touched(place):
    done = in_child("guarded", place)
    assert done.returncode == 0, f"died in {done.stdout.splitlines()[-1:]}\n{done.stderr[-2000:]}"
    ran = {line.split()[0] for line in done.stdout.splitlines()}
    assert ran == {f"{op}:{name}" for op, name in checked_pairs()}


@pytest.mark.parametrize("place, beyond", [("end", 100), ("start", -1)])
def test_the_guard_kills(place, beyond):
    done = in_child("trespass", place, str(beyond))
    assert (done.stdout, done.returncode) == ("inside\n", -signal.SIGSEGV)


@pytest.mark.parametrize("op, name", checked_pairs())
def test_offsets_beyond_32_bits(op, name):
    """Two images (or rows) that lie more than 2^31 elements apart, in memory of which almost nothing exists."""
    if torch.cuda.is_available() and name == "triton":
        pytest.skip("the memory of a GPU cannot be reserved without being there")
    index, scene = FAR_APART[op]
    made = call(op, scene)
    near = made.args[index].to(torch.uint8) if op == "boundary_mask" else made.args[index]
    assert len(near) == 2
    stride = 2**31 + 128
    reserved = mmap.mmap(
        -1, (stride + near[0].numel()) * near.element_size(), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    )
    far = torch.frombuffer(reserved, dtype=near.dtype).as_strided(near.shape, (stride, *near.stride()[1:]))
    far.copy_(near)

    def run(x: Tensor) -> Tensor:
        return dida_kernels.OPS[op](*made.args[:index], x, *made.args[index + 1 :], **made.options)

    with looking_for_overflow(), dida_kernels.backend(name):
        assert torch.equal(run(far), run(near))


@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_ops_without_such_a_backend_are_counted(op):
    if not {*CHECKED} & {*dida_kernels.OPS[op].backends}:
        pytest.skip(f"{op}: {', '.join(f'{name}: {dida_kernels.OPS[op].why_not(name)}' for name in CHECKED)}")


# ---- the child -----------------------------------------------------------------------------------------------------


def guarded(x: Tensor, place: str) -> Tensor:
    """A copy of `x` whose last (or first) byte is neighbour to a page that may be neither read nor written."""
    count = x.untyped_storage().nbytes() // x.element_size()
    if count == 0 or x.device.type != "cpu":
        return x
    pages = -(-count * x.element_size() // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        forbidden = ctypes.c_void_p(address + page * mmap.PAGESIZE)
        assert ctypes.CDLL(None).mprotect(forbidden, mmap.PAGESIZE, 0) == 0
    offset = mmap.PAGESIZE if place == "start" else (pages + 1) * mmap.PAGESIZE - count * x.element_size()
    copy = torch.frombuffer(memory, dtype=x.dtype, count=count, offset=offset).as_strided(x.shape, x.stride())
    return copy.copy_(x)


def guard_allocations(place: str) -> None:
    """Outputs and scratch of a launcher come from these; what C++ allocates inside an extension stays as it is."""

    def with_guard(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: guarded(allocate(*args, **options), place)

    for owner, names in ((torch, ("empty", "zeros", "empty_like", "zeros_like")), (Tensor, ("new_empty", "new_zeros"))):
        for name in names:
            setattr(owner, name, with_guard(getattr(owner, name)))


def run_guarded(op: str, name: str, scene: Scene, place: str) -> None:
    made, operation = call(op, scene), dida_kernels.OPS[op]
    args: list[Any] = [guarded(x, place) for x in made.args]
    if op in GRADIENT:
        args[GRADIENT[op]].requires_grad_()
    expected = operation.reference(*made.args, **made.options)
    with dida_kernels.backend(name):
        if operation.why_not(name, *args, **made.options) is not None:
            return
        output = operation(*args, **made.options)
    if op in GRADIENT:
        output.sum().backward()
    torch.testing.assert_close(output.detach(), expected, rtol=1e-4, atol=1e-5)


def main(task: str, place: str, index: str = "") -> None:
    if task == "trespass":
        kept = guarded(torch.zeros(100, dtype=torch.uint8), place)
        ctypes.string_at(kept.data_ptr(), len(kept))
        print("inside", flush=True)
        ctypes.string_at(kept.data_ptr() + int(index), 1)
        return
    guard_allocations(place)
    for op, name in checked_pairs():
        for scene in AT_THE_EDGE:
            print(f"{op}:{name} {scene}", flush=True)
            run_guarded(op, name, SCENES[scene], place)


if __name__ == "__main__":
    main(*sys.argv[1:])
