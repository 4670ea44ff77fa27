"""Single operations of the network, forward and backward: what decides which kernel is worth writing next."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.clocks import time_cpu, time_cuda
from bench.gpu.program import begin, stage_parser

DTYPES = (torch.float32, torch.bfloat16)
DEPTHWISE = ((256, 128), (512, 64), (1280, 32), (2048, 16))  # channels and side of MiT-B5's stages at 512 x 512
LEAST = 3.0  # seconds without which nothing more is begun


class NetworkPart(NamedTuple):
    """A function of one tensor that wants a gradient."""

    name: str
    call: Callable[[Tensor], Tensor]
    x: Tensor


def network_parts(device: str, scale: int, dtype: torch.dtype) -> Iterator[NetworkPart]:
    """At training size divided by `scale`, each made when it is its turn."""

    def made(*shape: int) -> Tensor:
        return torch.randn([max(1, size) for size in shape], device=device, dtype=dtype)

    for C, side in DEPTHWISE:
        x = made(2, C // scale, side // scale, side // scale)
        conv = nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1, groups=x.shape[1]).to(device, dtype)
        yield NetworkPart(f"depthwise {C} at {side}, channels last", conv, x.to(memory_format=torch.channels_last))
        yield NetworkPart(f"depthwise {C} at {side}, contiguous", conv, x)
    x = made(2, 1024 // scale, 128 // scale, 128 // scale)
    bottleneck = nn.Conv2d(x.shape[1], x.shape[1] // 4, 3, padding=1, bias=False).to(device, dtype)
    yield NetworkPart("3x3 convolution of the head", bottleneck, x)
    key = made(2, 1, 256 // scale, 64)
    query = made(2, 1, 16_384 // scale**2, 64)
    yield NetworkPart("attention of stage 1", lambda q: F.scaled_dot_product_attention(q, key, key), query)
    size = (512 // scale, 512 // scale)
    small, large = made(2, 19, 128 // scale, 128 // scale), made(2, 19, *size)
    yield NetworkPart("logits enlarged", lambda x: F.interpolate(x, size=size, mode="bilinear"), small)
    label = torch.randint(19, (2, *size), device=device)
    yield NetworkPart("cross entropy", lambda x: F.cross_entropy(x, label, reduction="none"), large)


def timed_part(part: NetworkPart) -> dict[str, Any]:
    """Milliseconds forward and backward, launched."""
    leaf = part.x.detach().requires_grad_()
    out = part.call(leaf)
    arriving = torch.randn_like(out)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: part.call(leaf),
        "backward": lambda: torch.autograd.grad(out, leaf, arriving, retain_graph=True),
    }
    if leaf.device.type == "cuda":
        return {name: time_cuda(call, replayed=False).median for name, call in calls.items()}
    return {name: timing.median for name, timing in time_cpu(calls).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    rows: list[dict[str, Any]] = []
    scale = 1 if program.device == "cuda" else 32
    for dtype in DTYPES:
        for part in network_parts(program.device, scale, dtype):
            if program.left() < LEAST:
                print("the time is up")
                return 1
            rows.append({"name": part.name, "dtype": str(dtype).removeprefix("torch."), **timed_part(part)})
            program.keep(rows=rows)
            print(rows[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
