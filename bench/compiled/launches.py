"""What an op launches on a GPU, taken down on a machine that need not have one.

The host code of every op runs as it is, on fake CUDA tensors: they have shapes, dtypes and lifetimes but no memory.
Kernels are taken down instead of launched. So whatever is compiled, counted or predicted from a `Launch` is what a
GPU of that capability would be given: the tiles chosen for it, the dtypes, the alignment of every pointer and integer.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from bench.meter import CUDA_BLOCK, TensorMeter, span
from tests import cases
from tests.cases import Scene


@dataclass(frozen=True)
class Pointer:
    """What Triton specialises on of a tensor, and what the tensor costs to read."""

    dtype: torch.dtype
    offset: int  # bytes from the start of its storage, which is aligned
    storage: int  # which tensors share memory
    bytes: int

    def data_ptr(self) -> int:
        return self.offset


class Launch(NamedTuple):
    """`module.name[grid](*args, **options)`, in values that can be sent to another process."""

    module: str
    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    grid: tuple[int, ...]

    @property
    def kernel(self) -> JITFunction:
        return getattr(import_module(self.module), self.name)

    def bound(self) -> dict[str, Any]:
        """Arguments by the names of the kernel's parameters."""
        parameters = inspect.signature(self.kernel.fn).parameters
        named = dict(zip(parameters, self.args, strict=False))
        return named | {name: value for name, value in self.options.items() if name in parameters}

    def bytes(self) -> int:
        """Every tensor moved once, those that are updated in place twice."""
        arguments = self.bound()
        sizes = {(x.storage, x.offset): x.bytes for x in arguments.values() if isinstance(x, Pointer)}
        whole = sum(sizes.values()) + sum(arguments[name].bytes for name in self.updated())
        return whole - self.unread()

    def unread(self) -> int:
        """Of z [B, C, H, W], the planes of classes that the launch's slots [i_first, i_stop) do not have.

        Of the bank, the rows that are not asked for.
        Slots are sorted by class, so the launches that share a bank see C classes in all and one more for each cut. A
        launch is charged its share of the C and one cut, which for the whole bank is enough whatever its labels are.
        """
        arguments = self.bound()
        if {"p_bank", "p_order", "count"} <= arguments.keys():  # rows of a range of the sorted bank
            slots = arguments["p_order"].bytes // 8
            return round((arguments["p_bank"].bytes + arguments["p_order"].bytes) * (1 - arguments["count"] / slots))
        if not {"p_z_map", "p_label", "i_first", "i_stop", "n_class"} <= arguments.keys():
            return 0
        slots, classes = arguments["p_label"].bytes // 8, arguments["n_class"]
        planes = classes * (arguments["i_stop"] - arguments["i_first"]) / slots + 1
        return round(arguments["p_z_map"].bytes * max(0.0, 1 - planes / classes))

    def updated(self) -> list[str]:
        """Pointers that this launch both reads and writes."""
        resumes = self.bound().get("RESUME") or self.bound().get("ADD")
        resumed = ["p_sum", "p_s", "p_max"] if resumes else []
        return [name for name in (*resumed, *_UPDATED.get(self.name, ())) if name in self.bound()]

    def key(self) -> tuple:
        """Two launches with equal keys run the same machine code (on one arch)."""
        return self.module, self.name, *map(_specialised, self.bound().items()), *map(repr, self.options.items())


# Passes over a tensor beyond the first: `_normalise` sums its classes, reads them again and writes them.
_UPDATED = {"_project": ("p_grad",), "_normalise": ("p_out", "p_out")}


class Recording(NamedTuple):
    """A call taken down: its launches, and the meter that watched its tensors."""

    launches: list[Launch]
    meter: TensorMeter

    @property
    def moved(self) -> int:
        """Bytes: of PyTorch's operations and of the kernels."""
        return self.meter.moved + sum(launch.bytes() for launch in self.launches)


@contextmanager
def recording(capability: int) -> Iterator[Recording]:
    """Inside, tensors on "cuda" are fake, those of a GPU of this capability (86: sm_86); kernels are taken down."""
    record = Recording([], TensorMeter(block=CUDA_BLOCK))

    def take_down(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        values = tuple(_described(x) for x in args)
        named = {name: _described(x) for name, x in options.items()}
        record.launches.append(Launch(kernel.fn.__module__, kernel.fn.__name__, values, named, tuple(grid)))

    with (
        mock.patch.object(JITFunction, "run", take_down),
        mock.patch.object(InterpretedFunction, "run", take_down),  # what kernels are where tests set TRITON_INTERPRET
        mock.patch("torch.cuda.device_of", return_value=nullcontext()),
        mock.patch("torch.cuda.get_device_capability", return_value=divmod(capability, 10)),
        FakeTensorMode(allow_non_fake_inputs=True),
        record.meter,
    ):
        yield record


def record_call(op: str, scene: Scene, dtype: torch.dtype, capability: int) -> Recording:
    """Forward, and backward if the op has one, of the call that tests/cases.py makes of this scene.

    The meter starts behind the inputs: they are alive, but making them is not part of the op.
    """
    import dida_kernels

    with recording(capability) as record:
        made = cases.call(op, scene, dtype=dtype, device="cuda")
        if op in cases.GRADIENT:
            made.args[cases.GRADIENT[op]].requires_grad_()
        record.meter.operations.clear()
        out = getattr(dida_kernels, op)(*made.args, **made.options)
        if op in cases.GRADIENT:
            backward(out)
    return record


@torch.no_grad()
def backward(out: Tensor) -> Tensor:
    """The gradient of `out.sum()`, along one chain of nodes, as it arrives at the leaf.

    PyTorch's engine would ask the driver of the GPU that is not there.
    """
    node, gradient = out.grad_fn, torch.ones_like(out)
    while node is not None and node.name() != "torch::autograd::AccumulateGrad":
        apply = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
        unused = [None] * (len(node._input_metadata) - 1)  # gradients of further outputs
        gradients = apply(gradient, *unused)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        followed = zip(node.next_functions, gradients, strict=False)
        node, gradient = next(((follow, g) for (follow, _), g in followed if follow is not None and g is not None))
    return gradient


class Offline:
    """As much of a Triton driver as it takes to compile: the GPU to compile for."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled per device

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel as Triton itself would compile it for this launch; the process then has no other driver."""
    triton.runtime.driver.set_active(Offline(capability))
    return launch.kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.options)


def _described(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return Pointer(x.dtype, x.storage_offset() * x.element_size(), x.untyped_storage()._cdata, span(x))


def _specialised(argument: tuple[str, Any]) -> tuple:
    name, x = argument
    if isinstance(x, Pointer):
        return name, x.dtype, x.offset % 16 == 0
    if isinstance(x, int) and not name.isupper():
        return name, x == 1, x % 16 == 0, abs(x) < 2**31
    return name, None if isinstance(x, float) and not name.isupper() else x
