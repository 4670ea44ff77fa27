"""Every backend of every op against the equation in float64: outputs and gradients, on every scene, in every dtype.

Backends are found in the registry, so a new one is tested from the day it registers. The truth is the equation in
float64 on the rounded inputs; a backend may be off by a fixed share in float32 and, in half precision, by twice what
the equation itself loses there.
"""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import dida_kernels
from dida_kernels.dispatch import ORDER
from tests.cases import GRADIENT, SCENES, Call, Scene, call, cast

# All tolerances of the kernels.
FLOAT32_OUTPUT = 1e-6  # of the largest value, or of 1
FLOAT32_GRADIENT = 1e-5  # of the gradient's norm
HALF_FACTOR = 2.0  # times the equation's own error in that dtype ...
HALF_FLOOR = 1 / 8  # ... plus this share of the dtype's epsilon, because the equation can be right by luck
USUAL_TEMPERATURE = 0.1  # a logit is cos / t, so below this its rounding, and every limit in float32, grows with 1 / t
NO_GRADIENT = 1e-9  # of what is propagated: below, the exact gradient is 0, and the limit is a share of that instead

INTEGERS_ONLY = ("boundary_mask",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter runs one element at a time: half precision, where only loads and stores differ, gets the scenes that
# vary these.
INTERPRETED_HALF = ("ordinary", "same_grid", "misaligned", "hard_prior")


def pairs(*, registered: bool) -> list:
    return [
        pytest.param(op, name, id=f"{op}-{name}", marks=[pytest.mark.gpu] if name == "cuda" else [])
        for op, backends in dida_kernels.report().items()
        for name in ORDER
        if (backends[name] == "yes") == registered
    ]


def device_of(name: str) -> str:
    return "cuda" if name in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def run(op: Callable[..., Tensor], made: Call, gradient: int | None, name: str | None) -> tuple[Tensor, Tensor | None]:
    """The output, and the gradient of a fixed random combination of it for the differentiable argument."""
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
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def output_error(output: Tensor, truth: Tensor) -> float:
    if not truth.is_floating_point():
        return float((output != truth).sum())
    return float((output.double() - truth).abs().max() / truth.abs().max().clamp(min=1))


def gradient_error(gradient: Tensor, truth: Tensor, propagated: float) -> float:
    scale = truth.norm() if truth.norm() > NO_GRADIENT * propagated else propagated
    return float((gradient.double() - truth).norm() / scale)


def check(what: str, error: float, equation_error: float, limit: float, scene: Scene, dtype: torch.dtype) -> None:
    """NaN fails: it compares false with everything."""
    if dtype == torch.float32:
        allowed = limit * max(1.0, USUAL_TEMPERATURE / scene.temperature)
    else:
        allowed = HALF_FACTOR * equation_error + HALF_FLOOR * torch.finfo(dtype).eps
    assert error <= allowed, f"{what}: off by {error:.2e}, allowed {allowed:.2e}, equation {equation_error:.2e}"


def cases() -> list:
    return [
        pytest.param(*pair.values, scene, dtype, id=f"{pair.id}-{scene.name}-{dtype}", marks=pair.marks)
        for pair in pairs(registered=True)
        for scene in SCENES.values()
        for dtype in DTYPES
        if dtype == torch.float32 or worth_in_half(*pair.values, scene)
    ]


def worth_in_half(op: str, name: str, scene: Scene) -> bool:
    interpreted = name == "triton" and device_of(name) == "cpu"
    return op not in INTEGERS_ONLY and (scene.name in INTERPRETED_HALF or not interpreted)


@pytest.mark.parametrize("op, name, scene, dtype", cases())
def test_agrees_with_the_equation(op, name, scene, dtype):
    made, operation = call(op, scene, dtype=dtype, device=device_of(name)), dida_kernels.OPS[op]
    with dida_kernels.backend(name):
        reason = operation.why_not(name, *made.args, **made.options)
    if reason is not None:
        pytest.skip(f"{op}: {name} refuses: {reason}")
    before = [x.clone() if isinstance(x, Tensor) else x for x in made.args]
    gradient = GRADIENT.get(op)

    truth, true_gradient = run(operation.reference, cast(call(op, scene, dtype=dtype), torch.float64), gradient, None)
    equation, equation_gradient = run(operation.reference, made, gradient, None)
    output, got_gradient = run(operation, made, gradient, name)

    assert (output.dtype, output.shape) == (equation.dtype, equation.shape)
    check("output", output_error(output, truth), output_error(equation, truth), FLOAT32_OUTPUT, scene, dtype)
    if gradient is not None:
        assert (got_gradient.dtype, got_gradient.shape) == (dtype, made.args[gradient].shape)
        propagated = float(direction(truth.shape).norm())
        errors = (gradient_error(g, true_gradient, propagated) for g in (got_gradient, equation_gradient))
        check("gradient", *errors, FLOAT32_GRADIENT, scene, dtype)
    for x, kept in zip(made.args, before, strict=True):
        assert not isinstance(x, Tensor) or torch.equal(x.detach(), kept), "an argument was changed in place"


@pytest.mark.parametrize("op, name", pairs(registered=False))
def test_missing_backends_are_counted(op, name):
    pytest.skip(f"{name} cannot run on this machine: {dida_kernels.OPS[op].why_not(name)}")


@pytest.mark.parametrize("op, name", pairs(registered=True))
def test_two_runs_agree_bit_for_bit(op, name):
    made, operation = call(op, SCENES["ordinary"], device=device_of(name)), dida_kernels.OPS[op]
    first, second = (run(operation, made, GRADIENT.get(op), name) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert x is y is None or torch.equal(x, y)
