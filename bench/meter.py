"""Count what tensors cost: bytes alive and their peak, bytes moved, matrix FLOPs, launches of a GPU.

A `TensorMeter` watches every PyTorch operation in its scope and every storage until it is freed. It needs shapes only,
so it works on fake tensors of a GPU that is not there as well as on real ones.
"""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CUDA_BLOCK = 512  # bytes; the caching allocator hands out multiples of it
# Allocate or look at a shape, and move nothing.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"}
# Change their first argument without a look at it.
_OVERWRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_"}


class Operation(NamedTuple):
    """One operation: what it had to read and write at least, and its matrix FLOPs."""

    name: str
    bytes: int
    flops: int
    dtype: torch.dtype | None  # of the factors of a matrix product
    launches: int = 1  # of kernels on a GPU, as PyTorch has them: what libraries launch besides is not known here


class TensorMeter(TorchDispatchMode):
    """`with TensorMeter() as meter:` then meter.live, meter.peak (bytes) and meter.operations.

    An op of this project that is opaque to PyTorch (a custom_op) is opened: its body runs under the meter, so that its
    temporaries count. Storages that exist already count from the moment they are passed to `know`.

    Args:
        block: an allocation takes a multiple of this many bytes.
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.block = block
        self.live = self.peak = 0
        self.operations: list[Operation] = []
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        definition = OPDEFS.get(func._schema.name) if func.namespace == "dida" else None
        if definition is not None:
            with self:
                return definition._init_fn(*args, **kwargs)
        if func._overloadpacket not in flop_registry and func.namespace == "aten":
            with self:
                parts = func.decompose(*args, **kwargs)  # below autograd, `matmul` has not been taken apart yet
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        self.know(out)
        name = func._schema.name.removeprefix("aten::")
        if func.namespace == "aten" and not func.is_view and name not in _FREE:
            self.operations.append(_step(func, name, args, kwargs, out))
        return out

    def know(self, tensors: Any) -> None:
        """Count these storages as alive, until they are freed."""
        for x in tree_leaves(tensors):
            if not isinstance(x, Tensor) or x.untyped_storage()._cdata in self._sizes:
                continue
            storage = x.untyped_storage()
            size = -(-storage.nbytes() // self.block) * self.block
            self._sizes[storage._cdata] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, storage._cdata)

    @contextmanager
    def extra(self) -> Iterator[Callable[[], int]]:
        """`with meter.extra() as peak:` then peak() is what the block needed on top of what was alive before it."""
        before, highest = self.live, self.peak
        self.peak = self.live
        result: list[int] = []
        yield lambda: result[0]
        result.append(self.peak - before)
        self.peak = max(self.peak, highest)

    @property
    def moved(self) -> int:
        return sum(step.bytes for step in self.operations)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def span(x: Tensor) -> int:
    """Bytes of memory behind the elements of `x`: an expanded tensor holds no more than its storage."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _step(func: Any, name: str, args: tuple, kwargs: dict, out: Any) -> Operation:
    """What is changed in place is read and written, what is returned or is an `out=` only written."""
    inputs = args[1:] if name in _OVERWRITE else args
    named = {key: x for key, x in kwargs.items() if key != "out"}
    read = {id(x): x for x in tree_leaves((inputs, named)) if isinstance(x, Tensor)}
    written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    flops, dtype = 0, None
    if func._overloadpacket in flop_registry:
        flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        dtype = next(iter(read.values())).dtype
    if name == "convolution_backward":  # which PyTorch's registry counts as if it had one group
        flops = sum(args[-1][:2]) * 2 * args[0].numel() * math.prod(args[2].shape[1:])
    moved = sum(map(span, read.values())) + sum(map(span, written))
    return Operation(name, moved, flops, dtype, _launches(name, args, out))


def _launches(name: str, args: tuple, out: Any) -> int:
    if all(x.device.type == "cpu" for x in tree_leaves((args, out)) if isinstance(x, Tensor)):
        return 0
    if name.startswith("_foreach_") or name.startswith("_fused_"):
        lists = [x for x in (*args, out) if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor)]
        return list_launches([x.numel() for x in lists[0]], len({id(x) for x in lists}))
    if name == "convolution_backward":
        return sum(args[-1])  # the gradients that are asked for: of input, weight, bias
    if name == "native_layer_norm_backward":
        return 1 + any(args[-1][1:])
    return 1


def list_launches(sizes: list[int], depth: int) -> int:
    """Launches of an operation on `depth` lists of tensors with so many elements each.

    A launch takes 320 chunks of 65 536 elements, of not more tensors than their addresses fit into its arguments
    (ATen/native/cuda/MultiTensorApply.cuh).
    """
    limit = _TENSORS[min(depth, max(_TENSORS))]
    launches = tensors = chunks = 0
    for size in sizes:
        tensors += 1
        for left in reversed(range(-(-size // _CHUNK))):
            chunks += 1
            if chunks == _CHUNKS or (tensors == limit and not left):
                launches, chunks, tensors = launches + 1, 0, int(left > 0)
    return launches + (chunks > 0)


_CHUNK, _CHUNKS = 65_536, 320
_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # of one launch, by the depth of its lists
