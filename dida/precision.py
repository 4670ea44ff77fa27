"""In what numbers the networks of a step compute. What is trained, averaged, saved and summed up is float32 always.

fp32   every product in float32, convolutions included, which PyTorch by itself lets a GPU round
tf32   a GPU rounds the factors of products and convolutions to 10 bits; sums and all else are float32
bf16   the networks' weights and maps are bfloat16, batch norms, softmax, losses and the bank are not
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dida.machine.distributed import ALONE, World
from dida.models.in_parts import InParts
from dida.models.mit import compile_blocks, recompute_blocks
from dida.models.renormalise import Renormalise

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TENSOR_CORES = (8, 0)  # compute capability from which GPUs multiply in TF32 and bfloat16


@dataclass(frozen=True)
class Arithmetic:
    """How the networks of a step compute."""

    precision: Precision
    why: str = "as asked for"
    compiled: bool = False  # the blocks of encoders
    recomputed: bool = False  # in backward, the maps within the blocks of the student's encoder
    parts: int = 1  # of a batch, one after another

    def said(self) -> str:
        """In words, for who runs it."""
        words = [f"{self.precision}, {self.why}"]
        words += ["blocks compiled"] if self.compiled else []
        words += ["maps of blocks made again in backward"] if self.recomputed else []
        words += [f"a batch in {self.parts} parts"] if self.parts > 1 else []
        return "; ".join(words)

    def working(self, student: nn.Module, teacher: nn.Module, world: World = ALONE) -> "Networks":
        """What the passes of a step call to train `student` and to ask `teacher`.

        Raises ValueError for an encoder that cannot be compiled, recomputed or asked in parts.
        """
        made = (Bfloat16Networks if self.precision == "bf16" else Networks)(student, teacher)
        if self.recomputed:
            recompute_blocks(made.student)
        self._compile(made.student, made.teacher)
        if self.parts > 1:
            made.called = (InParts(made.student, self.parts, world), InParts(made.teacher, self.parts, world))
        return made

    def frozen(self, network: nn.Module) -> nn.Module:
        """What computes for a network that never changes."""
        made = in_bfloat16(network) if self.precision == "bf16" else network
        self._compile(made)
        return made

    def _compile(self, *networks: nn.Module) -> None:
        if self.compiled:
            for network in networks:
                compile_blocks(network)


def choose_precision(name: str, device: torch.device) -> tuple[Precision, str]:
    """What `--precision` NAME stands for on a device, and why. Raises ValueError for what the device does not have.

    auto never takes bf16, whose rounding is eight times as coarse as that of TF32 and reaches every map.
    """
    on_gpu = device.type == "cuda"
    fast = on_gpu and torch.cuda.get_device_capability(device) >= TENSOR_CORES
    where = torch.cuda.get_device_name(device) if on_gpu else "the CPU"
    if name == "auto":
        return ("tf32", f"auto: {where} has it") if fast else ("fp32", f"auto: {where} has no TF32")
    if (name == "tf32" and not fast) or (name == "bf16" and on_gpu and not fast):
        raise ValueError(f"--precision {name}: {where} has none, take fp32")
    return next(known for known in PRECISIONS if known == name), "as asked for"


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Products and convolutions of float32 that go to a GPU: rounded, or for fp32 not. As it was behind.

    By PyTorch's older switches, which set the newer ones as well: with the newer ones alone torch.compile raises.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


class Networks:
    """What the passes of a step call: here, in fp32 and tf32, the networks themselves."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self.student, self.teacher = student, teacher
        self.called = (student, teacher)  # or those that ask them part by part

    def refreshed(self) -> tuple[nn.Module, nn.Module]:
        """Student and teacher, to be called, with the weights that the last step left."""
        return self.called

    def collect(self) -> None:
        """Once they have passed: the gradient is with the parameters that are trained."""


class Bfloat16Networks(Networks):
    """Copies whose weights are bfloat16, cast once a step; the gradient comes back once, as float32.

    Batch norms are shared with the networks themselves: their weights, averages and statistics are float32.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(in_bfloat16(student), in_bfloat16(teacher))
        pairs = [_casts(own, cast) for own, cast in ((student, self.student), (teacher, self.teacher))]
        self._own, self._cast = ([tensor for pair in pairs for tensor in pair[side]] for side in (0, 1))
        self._trained = [(own, cast) for own, cast in zip(*pairs[0], strict=True) if own.requires_grad]
        self._gradients: list[Tensor] = []  # float32, kept from step to step

    @torch.no_grad()
    def refreshed(self) -> tuple[nn.Module, nn.Module]:
        torch._foreach_copy_(self._cast, self._own)
        return super().refreshed()

    @torch.no_grad()
    def collect(self) -> None:
        if not self._gradients:
            self._gradients = [torch.empty_like(own) for own, _ in self._trained]
        found = [
            (own, cast, float32, cast.grad)
            for (own, cast), float32 in zip(self._trained, self._gradients, strict=True)
            if cast.grad is not None
        ]
        torch._foreach_copy_([float32 for _, _, float32, _ in found], [gradient for *_, gradient in found])
        for own, cast, float32, _ in found:
            own.grad, cast.grad = float32, None


def in_bfloat16(network: nn.Module) -> nn.Module:
    """A copy with weights in bfloat16, and what normalises in float32: the very modules of the network."""
    norms = {id(m): m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | Renormalise)}
    cast = copy.deepcopy(network, norms)
    with torch.no_grad():
        for module in cast.modules():
            if id(module) not in norms:
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if tensor.dtype == torch.float32:
                        tensor.data = tensor.bfloat16()
    return cast


def _casts(network: nn.Module, cast: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a network that its copy has in bfloat16, and those."""
    mine, theirs = ((*each.parameters(), *each.buffers()) for each in (network, cast))
    pairs = [(own, other) for own, other in zip(mine, theirs, strict=True) if own.dtype != other.dtype]
    return [own for own, _ in pairs], [other for _, other in pairs]
