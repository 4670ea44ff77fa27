"""The same step in other precisions, optimizers, layouts and as graphs: what would make it shorter.

Per variant: milliseconds of a step alone (wall), until the host has launched it (where that is as long, the host is the
limit), of one in a row of steps (stream), of its kernels on the device (by the profiler), launches, and the peak of
memory. Precision is the engine's own option; what it does not do is done to it here. Compiled: `step_cost`.
"""

import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType

from bench.gpu.program import Program, begin, stage_parser
from bench.gpu.step_parts import WORKLOADS, batch_on, contenders_of, precisions_on, settings_of
from bench.gpu.watching import profiled, said_of
from bench.step import Contender, computing
from dida.batch import Batch
from dida.models.mit import MixFFN
from dida.precision import Precision, in_bfloat16, products_in
from dida.step import train_step

LEAST = 12.0  # seconds without which nothing more is begun


@dataclass(frozen=True)
class Variant:
    """A way to run the step: options of train.py, and what there is no option for, taken back behind the block."""

    name: str
    precision: Precision = "fp32"
    foreach: bool = False  # AdamW by operations on lists of tensors, as where it is not fused
    contiguous: bool = False  # maps in front of the depthwise convolutions, which are channels-last views of tokens
    benchmark: bool = False  # cuDNN tries all its algorithms

    @contextmanager
    def applied(self, contender: Contender) -> Iterator[Contender]:
        (contender,) = computing([contender], precision=self.precision)
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.benchmark
        hooks = [ffn.dwconv.register_forward_pre_hook(_contiguous) for ffn in self._feed_forwards(contender)]
        groups = contender.state.optimizer.param_groups
        own = [{"fused": group["fused"], "foreach": group["foreach"]} for group in groups]
        for group in groups if self.foreach else ():
            group.update(fused=None, foreach=True)
        try:
            with products_in(self.precision):
                yield contender
        finally:
            torch.backends.cudnn.benchmark = before
            for hook in hooks:
                hook.remove()
            for group, was in zip(groups, own, strict=True):
                group.update(was)

    def _feed_forwards(self, contender: Contender) -> list[MixFFN]:
        return [m for m in modules_of(contender) if isinstance(m, MixFFN)] if self.contiguous else []


VARIANTS = (
    Variant("float32"),
    Variant("TF32", "tf32"),
    Variant("bfloat16", "bf16"),
    Variant("TF32, AdamW not fused", "tf32", foreach=True),
    Variant("TF32, contiguous depthwise", "tf32", contiguous=True),
    Variant("bfloat16, contiguous depthwise", "bf16", contiguous=True),
    Variant("TF32, cuDNN benchmark", "tf32", benchmark=True),
    Variant("bfloat16, cuDNN benchmark", "bf16", benchmark=True),
)
GRAPHS = {"encoder as a CUDA graph, TF32": torch.float32, "encoder as a CUDA graph, bfloat16": torch.bfloat16}


def _contiguous(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)


def modules_of(contender: Contender) -> Iterator[nn.Module]:
    """Of the three networks that compute in a step."""
    working = contender.state.working
    for network in (working.student, working.teacher, contender.method.source_pass.feature_distance.encoder):
        yield from network.modules()


# ---- one variant ---------------------------------------------------------------------------------------------------


class Stopwatch:
    """Waits for the device where there is one to wait for."""

    def __init__(self, device: torch.device) -> None:
        self.wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def times(self, call: Callable[[], Any], count: int) -> dict[str, float]:
        """Milliseconds of a call alone, until it has returned, and of one in a row of `count`."""
        wall, host = [], []
        for _ in range(count):
            self.wait()
            start = time.perf_counter()
            call()
            host.append(time.perf_counter() - start)
            self.wait()
            wall.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(count):
            call()
        self.wait()
        in_a_row = (time.perf_counter() - start) / count
        seconds = {"wall_ms": statistics.median(wall), "host_ms": statistics.median(host), "stream_ms": in_a_row}
        return {name: round(1e3 * value, 3) for name, value in seconds.items()}


def timed_variant(
    variant: Variant, contender: Contender, batch: Batch, device: torch.device, *, steps: int, warm_up: int
) -> dict[str, Any]:
    """The row of a variant."""

    with variant.applied(contender) as applied:

        def call() -> None:
            train_step(applied.state, batch, applied.method)

        for _ in range(warm_up):
            call()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row: dict[str, Any] = Stopwatch(device).times(call, steps)
        row["images_per_second"] = round(2e3 * len(batch.target) / row["stream_ms"], 2)
        if device.type == "cuda":
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
            row |= profiled(call, DeviceType.CUDA)
    return row


# ---- graphs ---------------------------------------------------------------------------------------


class Maps(nn.Module):
    """An encoder of images in float32 whose maps are float32, whatever its own weights are: what a graph is made of."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.dtype = encoder, dtype

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map_.float() for map_ in self.encoder(image.to(self.dtype)))


def graphed(contender: Contender, image: Tensor, dtype: torch.dtype, steps: int, as_graph: Callable) -> dict[str, Any]:
    """The encoder forward and backward, eager and as a CUDA graph: what is left when the host does not count.

    Without stochastic depth, which the host draws.
    """
    stopwatch = Stopwatch(image.device)
    own = contender.state.student.backbone
    encoder = Maps(in_bfloat16(own) if dtype == torch.bfloat16 else copy.deepcopy(own), dtype).train()
    encoder.encoder.stochastic_depth.eval()

    def call() -> None:
        sum(map_.mean() for map_ in encoder(image)).backward()

    with products_in("tf32"):
        for _ in range(2):
            call()
        eager = stopwatch.times(call, steps)
        encoder = as_graph(encoder, (image,))  # which replaces the module's own forward: eager had to come first
        for _ in range(2):
            call()
        graph = stopwatch.times(call, steps)
    return {f"{name}_{what}": ms for name, times in (("eager", eager), ("graph", graph)) for what, ms in times.items()}


# ---- all of them ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    workload, device = WORKLOADS[program.device], torch.device(program.device)
    contender = contenders_of(workload._replace(slots=workload.slots[:1]), device)[1]
    batch = batch_on(device, workload.crop)
    rows = Rows(program, settings_of(workload))
    times = {"steps": workload.steps, "warm_up": workload.warm_up}
    for variant in (variant for variant in VARIANTS if variant.precision in precisions_on(device)):
        rows.add(variant.name, lambda v=variant: timed_variant(v, contender, batch, device, **times))
    if program.device == "cuda":
        image, as_graph = batch.source.image, torch.cuda.make_graphed_callables
        for name, dtype in GRAPHS.items():
            rows.add(name, lambda dtype=dtype: graphed(contender, image, dtype, workload.steps, as_graph))
    return rows.status()


class Rows:
    """The rows so far, each with its numbers or with why it has none; one that fails costs no other."""

    def __init__(self, program: Program, setting: dict[str, Any]) -> None:
        self.program, self.rows = program, []
        program.keep(setting=setting, rows=self.rows)

    def add(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        row: dict[str, Any] = {"name": name, "why": None}
        if self.program.left() < LEAST:
            row["why"] = "not tried, the time was up"
        else:
            start = time.monotonic()
            try:
                row |= measure()
            except Exception as error:
                row["why"] = said_of(error)
            row["seconds"] = round(time.monotonic() - start, 1)  # with all that had to be compiled
        self.rows.append(row)
        self.program.keep(rows=self.rows)
        print({key: value for key, value in row.items() if key != "kernels"}, flush=True)
        gc.collect()

    def status(self) -> int:
        return 1 if any(row["why"] for row in self.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
