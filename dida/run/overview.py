"""What stands at the top of a run: what was chosen, what it will need, and what may have been chosen badly."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from dida.assemble import Parts
from dida.config import Config, changed
from dida.data.image_file import image_size
from dida.data.pairs import View
from dida.data.transforms import keep_ratio_size
from dida.precision import products_in
from dida.run.meter import peak_memory

LONG = 6 * 3600  # seconds from which a run is worth a hint
# From which the least time is said. It is that of products alone, at their best: of small pictures most goes elsewhere,
# and how fast a short run is its own first lines say.
TOLD = 3600
_LOOKED_AT = 9  # pictures of a domain, evenly spaced, whose headers are read
_PADDING = 0.25  # mean share of a crop from which padding is worth a hint
_SIDE = 1024  # of the matrices that a device is tried with
_GIB = 2**30


class Need(NamedTuple):
    """What a step costs; an estimate from shapes, made without doing it."""

    flops: float  # of matrix products and convolutions
    memory: int  # bytes of weights, optimizer and what a pass keeps for its gradient


def overview(config: Config, parts: Parts) -> Iterator[str]:
    """The lines. Raises ImageFileError for a picture whose header cannot be read."""
    state, pairs, device = parts.state, parts.pairs, parts.device
    data, optim, inst = config.data, config.optim, config.instance
    student = state.student
    computing = state.working.student
    of_this_process = changed(config, batch_size=data.batch_size // state.world.size)
    need = step_need(of_this_process, student, computing, target_passes=len(parts.method.target_passes))
    left = optim.steps - state.step
    with products_in(parts.arithmetic.precision):
        seconds = left * need.flops / flops_a_second(device, next(computing.parameters()).dtype)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    yield f"device    {device} ({where})"
    hints = []
    for name, domain, view in (
        ("source", pairs.source, pairs.source_view),
        ("target", pairs.target, pairs.target_view),
    ):
        sizes = [image_size(path) for path in _some(domain.images)]
        seen = [_seen(size, view) for size in sizes]
        yield f"{name}    {len(domain.images)} pictures of {_range(sizes)}, seen at {_range(seen)}"
        hints += _padding_hint(name, seen, data.crop)
    yield f"a step    {data.batch_size} + {data.batch_size} crops of {data.crop}x{data.crop}"
    names = ", ".join(parts.class_set.names)
    yield f"classes   {len(parts.class_set)}: {names if len(names) < 90 else names[:86] + ' ...'}"
    yield f"numbers   {parts.arithmetic.said()}"
    millions = sum(p.numel() for p in student.parameters()) / 1e6
    yield f"network   {config.model.backbone}, {millions:.1f} million parameters"
    bank = f"; bank of {inst.bank_size} used from step {inst.bank_start}" if inst.selecting != "off" else ""
    yield f"schedule  {optim.steps} steps, warm-up {optim.warmup}{bank}"
    least = f", and at least {_duration(seconds)} on this device" if seconds >= TOLD else ""
    yield f"needs     {_memory(need, device)}{least}"
    if seconds > LONG:
        hints.append("that is long: fewer --steps, a smaller --crop or --backbone (mit_b0), or a GPU")
    yield from (f"hint      {hint}" for hint in hints)


def _memory(need: Need, device: torch.device) -> str:
    """As `mem` counts it: allocated on a GPU; on a CPU resident, so that what the process holds by now is added."""
    if device.type == "cuda":
        return f"about {need.memory / _GIB:.1f} GiB beside PyTorch itself"
    return f"about {(peak_memory(device) + need.memory) / _GIB:.1f} GiB, with PyTorch itself"


def step_need(config: Config, student: nn.Module, computing: nn.Module, *, target_passes: int) -> Need:
    """What a step costs, from one forward pass of shapes without numbers.

    `computing`: what passes call for the student, itself or a copy in another dtype. `target_passes`: how often a step
    trains on the target, each time on as many crops as the source has.
    """
    data, teach, speed = config.data, config.teach, config.speed
    seen = data.batch_size // speed.accumulate  # at once
    image = torch.empty(seen, 3, data.crop, data.crop, device="meta")
    tensors = (*computing.named_parameters(), *computing.named_buffers())
    weights = {name: _shape_of(tensor) for name, tensor in tensors}
    own = {tensor.untyped_storage()._cdata for tensor in weights.values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor  # kept alive, so that no other takes its place
        return tensor

    with (
        torch.random.fork_rng(devices=[]),
        torch.compiler.set_stance("force_eager"),
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        _norms_by_their_averages(computing),
    ):
        functional_call(computing, weights, (image,))
    trainings = 1 + target_passes
    others = (1 if teach.self_training else 0) + (1 if teach.feature_weight > 0 else 0)  # the teacher, and ImageNet's
    # Weights, gradient and two moments of the student, and the weights of the others; of copies, weights and gradient
    # of the student's and weights of the teacher's.
    copies = 0 if computing is student else 3 * _bytes_of(computing)
    memory = (4 + others) * _bytes_of(student) + copies + sum(x.untyped_storage().nbytes() for x in kept.values())
    # A backward costs two forwards, and each time that maps are computed again one more.
    forwards = 3 + speed.checkpoint_activations + (speed.accumulate > 1)
    flops = speed.accumulate * counter.get_total_flops()
    return Need(flops=(forwards * trainings + others) * flops, memory=memory)


@contextmanager
def _norms_by_their_averages(network: nn.Module) -> Iterator[None]:
    """Maps of the same size are kept, and no other process is asked for the statistics of its images."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def flops_a_second(device: torch.device, dtype: torch.dtype) -> float:
    """What a device does in a matrix product: no training on it is faster."""
    a = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    best = min(_seconds_of_product(a) for _ in range(3))
    return 2 * _SIDE**3 / best


def _seconds_of_product(a: Tensor) -> float:
    start = time.perf_counter()
    float((a @ a)[0, 0])  # waits for the device
    return time.perf_counter() - start


def _bytes_of(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _shape_of(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)


def _some(items: tuple) -> tuple:
    return items[:: -(-len(items) // _LOOKED_AT)]


def _seen(size: tuple[int, int], view: View) -> tuple[int, int]:
    scaled = keep_ratio_size(size, view.scale)
    return scaled if view.enlarge or scaled < size else size


def _range(sizes: list[tuple[int, int]]) -> str:
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    names = [f"{width}x{height}" for width, height in (by_area[0], by_area[-1])]
    return names[0] if len(set(sizes)) == 1 else f"{names[0]} to {names[1]}"


def _padding_hint(name: str, seen: list[tuple[int, int]], crop: int) -> list[str]:
    shares = [1 - min(width, crop) * min(height, crop) / crop**2 for width, height in seen]
    padding = statistics.mean(shares)
    if padding <= _PADDING:
        return []
    fits = max(int(statistics.median(min(size) for size in seen)) // 32 * 32, 32)
    return [f"--crop {crop} is larger than pictures of the {name}: {padding:.0%} is padding; --crop {fits} fits"]


def _duration(seconds: float) -> str:
    for unit, length in (("days", 24 * 3600), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
