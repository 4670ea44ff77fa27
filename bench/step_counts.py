"""What a training step asks of a GPU, counted without one: launches, bytes moved, memory at its peak, option by option;
and what it asks of the host, measured without one.

    python bench/step_counts.py [--json FILE]

The project's own step runs on tensors that have shapes and lifetimes but no memory: MiT-B5, 2 + 2 crops of 512 x 512.
The branch of the instance level, whose kernels have counts of their own (bench/bank_memory.py), is taken out.
Attention is one kernel forward and two backward, as PyTorch's fused ones are, and the optimizer is the fused one.
Launches are those of PyTorch's operations: what cuDNN and cuBLAS add to them, to convert a layout or to add up parts of
a product, only a GPU can tell. What is compiled is not counted: what the compiler fuses only it can tell. In TF32 a
step is that of fp32, with factors rounded on their way into products.

A floor is calculated: operations one behind the other, each as long as its bytes or its products take at the rates of
bench/compiled/roofline.py. No step reaches it; a step that takes twice as long has something to look for.

Time of the host is that of its processor for a step on such tensors: to compare rows of one run roughly. It is not that
of a GPU's host, to which launching itself comes, and which does not compute shapes in Python.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

if not __package__:  # python bench/step_counts.py
    from by_path import start_again

    start_again(__file__)

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import record
from bench.arguments import output_file
from bench.compiled.roofline import DEVICES, H100, Device
from bench.counted_step import build_step, count_second_step, shapes_of_a_batch, without_branch
from bench.meter import CUDA_BLOCK, Operation, TensorMeter, span
from dida.step import train_step
from tests.cases import MAIN, Scene

OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp32, AdamW by lists": {"precision": "fp32", "fused": False},
    "bf16": {"precision": "bf16"},
    "fp32, checkpoint-activations": {"precision": "fp32", "checkpoint_activations": True},
    "bf16, checkpoint-activations": {"precision": "bf16", "checkpoint_activations": True},
    "fp32, accumulate 2": {"precision": "fp32", "accumulate": 2},
}
LISTED = 12  # operations that launch most
GPUS = (DEVICES[86], H100)


def count_step(scene: Scene, backbone: str, *, fused: bool = True, **options: Any) -> dict[str, Any]:
    """Launches, by operation too, bytes moved and at the peak, and the host's seconds, of a step with these options of
    train.py. `fused`: AdamW is PyTorch's fused one, as it is on a GPU; else it works through lists.
    """
    state, method = build_step(scene, backbone, **options)
    method, batch = without_branch(method), shapes_of_a_batch(scene)
    for group in state.optimizer.param_groups:
        group["fused"], group["foreach"] = fused, not fused
    meter = TensorMeter(block=CUDA_BLOCK)
    with as_on_a_gpu(meter):
        count_second_step(state, method, scene, meter)
        launches = Counter[str]()
        for operation in meter.operations:
            launches[operation.name] += operation.launches
        found: dict[str, Any] = {"launches": launches.total(), "moved": meter.moved, "peak": meter.peak}
        found |= {f"floor, {'TF32' if tf32 else 'as it is'}": floors(meter.operations, tf32) for tf32 in (False, True)}
        start = time.process_time()
        train_step(state, batch, method)
        found["host"] = time.process_time() - start
    return found | {"most": launches.most_common(LISTED)}


@contextmanager
def as_on_a_gpu(meter: TensorMeter) -> Iterator[None]:
    """What PyTorch does on a GPU and not without memory: attention, norms of lists and AdamW are fused."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *qkv: Tensor) -> Tensor:
            ctx.save_for_backward(*qkv)
            meter.operations.append(_attention(2, *qkv, qkv[0], launches=1))
            return torch.empty_like(qkv[0])

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
            qkv = ctx.saved_tensors
            meter.operations.append(_attention(5, *qkv, gradient, *qkv, launches=2))
            return tuple(torch.empty_like(x) for x in qkv)

    def supported(*tensors: Tensor) -> bool:  # a Mock would keep the gradients that it is called with
        return True

    with (
        mock.patch.object(F, "scaled_dot_product_attention", Attention.apply),
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", supported),
        mock.patch("torch.optim.adam._device_dtype_check_for_fused", supported),
    ):
        yield


def floors(operations: Sequence[Operation], tf32: bool) -> dict[str, float]:
    """Seconds by GPU. `tf32`: products of float32 are made in it, at half the rate of bfloat16."""

    def products(device: Device, dtype: torch.dtype | None) -> float:
        return device.tensor / 2 if tf32 and dtype == torch.float32 else device.products(dtype)

    return {
        gpu.name: sum(max(x.bytes / gpu.bandwidth, x.flops / products(gpu, x.dtype)) for x in operations)
        for gpu in GPUS
    }


def _attention(products: int, *tensors: Tensor, launches: int) -> Operation:
    query, key = tensors[:2]
    flops = products * 2 * query.numel() * key.shape[-2]
    return Operation("attention", sum(map(span, tensors)), flops, query.dtype, launches)


def counts_report(result: dict[str, Any]) -> str:
    """The report in markdown; every number in it comes from `result`."""
    rows = result["rows"]
    table = counts_table(rows)
    times = ("floor, as it is", "floor, TF32")
    heads = [f"{gpu.name}, ms{', TF32' * (name == times[1])}" for gpu in GPUS for name in times]
    least = record.table(
        ["floor, calculated", *heads],
        [[r["options"], *(f"{1e3 * r[name][gpu.name]:.0f}" for gpu in GPUS for name in times)] for r in rows],
    )
    most = record.table(["launches of fp32 by operation", ""], rows[0]["most"])
    setting = f"{result['backbone']}, 2 + 2 crops of 512 x 512, without the branch of the instance level"
    return "\n\n".join(["# The step, counted", setting, record.render_header(result["header"]), table, least, most])


def counts_table(rows: Sequence[dict[str, Any]]) -> str:
    """A row for all options: what they come to, and as shares of the first row."""
    units = {"launches": (1, ",.0f"), "moved": (1e9, ",.1f"), "peak": (2**20, ",.0f"), "host": (1, ".2f")}
    body = []
    for row in rows:
        cells = [f"{row[name] / unit:{form}}" for name, (unit, form) in units.items()]
        shares = [f"{100 * row[name] / rows[0][name]:.0f}" for name in units]
        body.append([row["options"], *(cell for pair in zip(cells, shares, strict=True) for cell in pair)])
    head = ["launches", "moved, GB", "peak, MiB", "host, s"]
    return record.table(["options", *(cell for name in head for cell in (name, "%"))], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=output_file)
    parser.add_argument("--backbone", default="mit_b5")
    options = parser.parse_args()
    rows = [{"options": name, **count_step(MAIN, options.backbone, **speed)} for name, speed in OPTIONS.items()]
    result = {"header": record.header("counted"), "backbone": options.backbone, "rows": rows}
    path = options.json or record.RESULTS_FOLDER / "counted" / "step.json"
    record.write(path, result)
    record.write(path.with_suffix(".md"), counts_report(result) + "\n")
    print(counts_report(result))


if __name__ == "__main__":
    main()
