"""When a backend agrees with the equation: one law for every op, dtype and device, and all tolerances of the kernels.

Every backend computes in float32 whatever the dtype of its inputs, so it is held to what the equation itself loses in
float32:

    error <= 2 * error of the equation in float32 + a floor + the roundings to half precision that the backend must do

The truth is the equation in float64 on the inputs as they are: rounded, where they come in half precision. Kernels on
a matrix unit also round the unit rows of the bank, once, and those rows then are the truth's bank. What remains to be
allowed in half precision is one rounding of what is returned, and one more of a gradient before its product with the
bank. So a mistake of one in ten thousand is seen in bfloat16 as it is in float32.
"""

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

import dida_kernels
from dida_kernels.equations import unit
from tests.cases import GRADIENT, Call, cast

EQUATION_FACTOR = 2.0  # times the error of the equation in float32: sums in another order
OUTPUT_FLOOR = 2e-6  # of the largest value, or of 1: the equation can be right by luck
GRADIENT_FLOOR = 4e-6  # of the gradient's norm, or of CANCELLED of its terms
USUAL_TEMPERATURE = 0.1  # a logit is cos / t, so below this its rounding, and both floors, grow with 1 / t
CANCELLED = (
    0.3  # of the terms: a kernel rounds log(sum) / t once, which is 1e-6 of each of them at the usual temperature
)
NO_GRADIENT = 1e-9  # of what is propagated: below, the exact gradient is 0, and the limit is a share of that instead

BANK = {"bank_similarity": 1, "instance_loss": 4, "class_similarity": 1}  # op -> the argument multiplied as unit rows
EMBEDDINGS = {"bank_similarity": (0,), "instance_loss": (0, 1), "class_similarity": (0,)}  # op -> what with
HALF = (torch.bfloat16, torch.float16)
CUT = torch.bfloat16  # to this the interpreter cuts off what does not fit; a GPU rounds


class Truth(NamedTuple):
    """What is right for backend `name`, in float64, and how far off it may be beside its last rounding."""

    name: str
    output: Tensor
    gradient: Tensor | None
    scale: float  # the norm that errors of the gradient are shares of
    output_limit: float
    gradient_limit: float


def device_of(name: str) -> str:
    """Where backend `name` is tested."""
    return "cuda" if name in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def interpreted(name: str) -> bool:
    return name == "triton" and device_of(name) == "cpu"


def run(op: Callable[..., Tensor], made: Call, gradient: int | None, name: str | None) -> tuple[Tensor, Tensor | None]:
    """The output, and the gradient of a fixed random combination of it for the differentiable argument, on the CPU."""
    args = [x.detach() if isinstance(x, Tensor) else x for x in made.args]
    if gradient is not None:
        args[gradient].requires_grad_()
    with dida_kernels.backend(name) if name else nullcontext():
        output = op(*args, **made.options)
    if gradient is None:
        return output.detach().cpu(), None
    (got,) = torch.autograd.grad(output, args[gradient], direction(output.shape).to(output))
    return output.detach().cpu(), got.cpu()


def direction(shape: torch.Size) -> Tensor:
    """The gradient that arrives: numbers that every dtype holds, so that it is the same for the truth and in half
    precision."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().double()


def output_error(output: Tensor, truth: Tensor) -> float:
    if not truth.is_floating_point():
        return float((output != truth).sum())  # of integers none may differ, and every limit is below 1
    return float((output.double() - truth).abs().max() / truth.abs().max().clamp(min=1))


def gradient_error(gradient: Tensor, truth: Tensor, scale: float) -> float:
    return float((gradient.double() - truth).norm()) / scale


def gradient_scale(truth: Tensor, propagated: float, terms: float = 0.0) -> float:
    """The norm of the exact gradient. Where that is next to nothing, a share of what it is the rest of."""
    norm = float(truth.norm())
    return max(norm if norm > NO_GRADIENT * propagated else propagated, CANCELLED * terms)


def terms(op: str, made: Call, propagated: float) -> float:
    """About how long the gradient would be if the two softmaxes of a pixel did not cancel: what a pixel that is sure
    adds is the small difference of two numbers next to 1, and they are rounded as such."""
    if "temperature" not in made.options:
        return 0.0
    tiny = torch.finfo(torch.float64).tiny
    lengths_BHW = made.args[0].double().norm(dim=1)
    if op == "instance_loss":
        weight_BHW = made.args[3].double()
        propagated *= float(weight_BHW.norm() / weight_BHW.sum().clamp(min=tiny))
    return propagated / made.options["temperature"] / float(lengths_BHW.mean().clamp(min=tiny))


def truth_of(op: str, name: str, made: Call, part: Callable[[Tensor], Tensor] = lambda x: x) -> Truth:
    """The truth for what backend `name` makes of this call, of the `part` of its output that will be compared."""
    reference, gradient = dida_kernels.OPS[op].reference, GRADIENT.get(op)
    seen = with_rounded_rows(op, name, made)
    (output, true_gradient), (near, near_gradient) = (
        run(reference, cast(seen, dtype), gradient, None) for dtype in (torch.float64, torch.float32)
    )
    propagated = float(direction(output.shape).norm())
    output, near = part(output), part(near)
    output_limit = EQUATION_FACTOR * output_error(near, output) + OUTPUT_FLOOR * coldness(made)
    if gradient is None:
        return Truth(name, output, None, math.nan, output_limit, math.nan)
    channels = slice(made.args[gradient].shape[1])
    true_gradient, near_gradient = true_gradient[:, channels], near_gradient[:, channels]
    scale = gradient_scale(true_gradient, propagated, terms(op, made, propagated))
    error = gradient_error(near_gradient, true_gradient, scale)
    before_product = rounding(multiplied_in(op, made), name)
    gradient_limit = EQUATION_FACTOR * error + GRADIENT_FLOOR * coldness(made) + before_product
    return Truth(name, output, true_gradient, scale, output_limit, gradient_limit)


def coldness(made: Call) -> float:
    """By how much rounding counts more than at the usual temperature."""
    return max(1.0, USUAL_TEMPERATURE / made.options.get("temperature", USUAL_TEMPERATURE))


def rounding(dtype: torch.dtype, name: str) -> float:
    """The largest relative error of one rounding to half precision."""
    if dtype not in HALF:
        return 0.0
    return torch.finfo(dtype).eps / (1 if interpreted(name) and dtype == CUT else 2)


def multiplied_in(op: str, made: Call) -> torch.dtype:
    """The dtype in which a Triton kernel multiplies embeddings by the bank; float32 where it does not."""
    dtypes = [made.args[i].dtype for i in EMBEDDINGS.get(op, ())]
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def unit_rows(op: str, made: Call, dtype: torch.dtype) -> Tensor:
    """The rows of the bank as the kernels multiply by them, [K, D] in `dtype`.

    PyTorch makes them for `bank_similarity`, kernels for the others: a last bit may differ there, and they are read
    back. In float32 nothing is, and rows that are wrong show.
    """
    bank_KD = made.args[BANK[op]]
    if op == "bank_similarity":
        return unit(bank_KD.float()).to(dtype)
    from dida_kernels.fused.banks import log2_prior, sort_bank  # needs Triton, which is there only on Linux
    from dida_kernels.fused.rows.packed_bank import pack_bank

    label_K = made.args[BANK[op] + 1]
    classes = made.args[2].shape[1] if op == "instance_loss" else made.options["classes"]
    bank, rows_KD = sort_bank(bank_KD, label_K, classes), bank_KD.to(dtype)
    rows_KD[bank.order_K] = bank.unit_rows(0, len(label_K), dtype)
    if op == "instance_loss" and made.args[0].shape[-2:] == made.args[2].shape[-2:]:  # the family of rows has its own
        packed = pack_bank(bank, log2_prior(None, label_K, classes), dtype, multiple=1)
        rows_KD[bank.order_K] = packed.rows_PD[packed.bias_P == 0][:, : bank_KD.shape[1]]
    return rows_KD


def with_rounded_rows(op: str, name: str, made: Call) -> Call:
    """The call whose float64 equation is the truth: its bank is the unit rows that a kernel multiplies by.

    Rounded rows are no longer of length 1, and the equation would scale them again. One more channel, in which the
    embeddings are 0, makes them all equally long, which a temperature takes back: no logit changes.
    """
    dtype = multiplied_in(op, made)
    if name != "triton" or dtype not in HALF:
        return made
    rows_KD = unit_rows(op, made, dtype).double()
    square_K1 = rows_KD.square().sum(1, keepdim=True)
    length = float(square_K1.max().sqrt()) * (1 + 2**-10)  # above all, so that no root is of a negative number
    args = list(made.args)
    args[BANK[op]] = torch.cat([rows_KD, (length**2 - square_K1).sqrt()], 1)
    for i in EMBEDDINGS[op]:
        args[i] = torch.cat([args[i], torch.zeros_like(args[i][:, :1])], 1)
    return Call(tuple(args), made.options | {"temperature": made.options["temperature"] / length})


def compare(truth: Truth, output: Tensor, gradient: Tensor | None, *, slack: float = 1) -> None:
    """NaN fails: it compares false with everything."""
    limit = slack * (truth.output_limit + rounding(output.dtype, truth.name))
    check("output", output_error(output, truth.output), limit)
    if gradient is not None:
        error = gradient_error(gradient, truth.gradient, truth.scale)
        check("gradient", error, slack * (truth.gradient_limit + rounding(gradient.dtype, truth.name)))


def check(what: str, error: float, allowed: float) -> None:
    assert error <= allowed, f"{what}: off by {error:.2e}, allowed {allowed:.2e}"


def assert_agrees(op: str, name: str, made: Call, *, slack: float = 1) -> None:
    """Backend `name` returns what the equation does, in its dtypes and shapes, and leaves the arguments alone.

    `made` is on the device of the backend, which must take it. `slack`: a factor on the law's limits.
    """
    operation, gradient = dida_kernels.OPS[op], GRADIENT.get(op)
    before = [x.clone() if isinstance(x, Tensor) else x for x in made.args]
    truth = truth_of(op, name, made)
    output, got_gradient = run(operation, made, gradient, name)
    expected = operation.reference(*made.args, **made.options)
    assert (output.dtype, output.shape) == (expected.dtype, expected.shape)
    compare(truth, output, got_gradient, slack=slack)
    if gradient is not None:
        assert (got_gradient.dtype, got_gradient.shape) == (made.args[gradient].dtype, made.args[gradient].shape)
    for x, kept in zip(made.args, before, strict=True):
        assert not isinstance(x, Tensor) or torch.equal(x.detach(), kept), "an argument was changed in place"


def refusal(op: str, name: str, made: Call) -> str | None:
    """Why backend `name`, though asked for, does not run on this call."""
    with dida_kernels.backend(name):
        return dida_kernels.OPS[op].why_not(name, *made.args, **made.options)
