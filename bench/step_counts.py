"""What a training step asks of a GPU, counted without one: launches, bytes moved, memory at its peak, option by option.

    python bench/step_counts.py [--json FILE]

The project's own step runs on tensors that have shapes and lifetimes but no memory: MiT-B5, 2 + 2 crops of 512 x 512.
The branch of the instance level, whose kernels have counts of their own (bench/bank_memory.py), is taken out.
Attention is one kernel forward and two backward, as PyTorch's fused ones are, and the optimizer is the fused one.
Launches are those of PyTorch's operations: what cuDNN and cuBLAS add to them, to convert a layout or to add up parts of
a product, only a GPU can tell. What is compiled is not counted: what the compiler fuses only it can tell.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
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
from bench.counted_step import build_step, count_second_step, without_branch
from bench.meter import CUDA_BLOCK, Operation, TensorMeter, span
from tests.cases import MAIN, Scene

OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp32, checkpoint-activations": {"precision": "fp32", "checkpoint_activations": True},
    "bf16, checkpoint-activations": {"precision": "bf16", "checkpoint_activations": True},
    "fp32, accumulate 2": {"precision": "fp32", "accumulate": 2},
}
LISTED = 12  # operations that launch most


def count_step(scene: Scene, backbone: str, **speed: Any) -> dict[str, Any]:
    """Launches, by operation too, bytes moved and bytes at the peak of a step with these options of train.py."""
    state, method = build_step(scene, backbone, **speed)
    for group in state.optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
    meter = TensorMeter(block=CUDA_BLOCK)
    with as_on_a_gpu(meter):
        count_second_step(state, without_branch(method), scene, meter)
    launches = Counter[str]()
    for operation in meter.operations:
        launches[operation.name] += operation.launches
    return {
        "launches": launches.total(),
        "moved": meter.moved,
        "peak": meter.peak,
        "most": launches.most_common(LISTED),
    }


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


def _attention(products: int, *tensors: Tensor, launches: int) -> Operation:
    query, key = tensors[:2]
    flops = products * 2 * query.numel() * key.shape[-2]
    return Operation("attention", sum(map(span, tensors)), flops, query.dtype, launches)


def counts_report(result: dict[str, Any]) -> str:
    """The report in markdown; every number in it comes from `result`."""
    rows = result["rows"]
    table = record.table(
        ["options", "launches", "moved, GB", "peak, MiB"],
        [[r["options"], f"{r['launches']:,}", f"{r['moved'] / 1e9:.1f}", f"{r['peak'] / 2**20:,.0f}"] for r in rows],
    )
    most = record.table(["launches of fp32 by operation", ""], rows[0]["most"])
    setting = f"{result['backbone']}, 2 + 2 crops of 512 x 512, without the branch of the instance level"
    return "\n\n".join(["# The step, counted", setting, record.render_header(result["header"]), table, most])


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
