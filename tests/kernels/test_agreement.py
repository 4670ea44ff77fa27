"""Every backend of every op against the equation: outputs and gradients, on every scene, in every dtype.

Backends are found in the registry, so a new one is tested from the day it registers. What agreement means, and all
tolerances, are in agreement.py.
"""

import math
from dataclasses import replace

import pytest
import torch

import dida_kernels
from dida_kernels.dispatch import ORDER
from tests.cases import GRADIENT, SCENES, Call, Scene, call, cast
from tests.kernels.agreement import (
    BANK,
    EMBEDDINGS,
    HALF,
    assert_agrees,
    coldness,
    device_of,
    direction,
    gradient_error,
    interpreted,
    output_error,
    refusal,
    run,
)

INTEGERS_ONLY = ("boundary_mask",)
DTYPES = (torch.float32, *HALF)
# The interpreter runs one element at a time: half precision, where only loads and stores differ, gets the scenes that
# vary these.
INTERPRETED_HALF = ("ordinary", "same_grid", "misaligned", "hard_z")


def pairs(*, registered: bool) -> list:
    return [
        pytest.param(op, name, id=f"{op}-{name}", marks=[pytest.mark.gpu] if name == "cuda" else [])
        for op, backends in dida_kernels.report().items()
        for name in ORDER[:-1]
        if (backends[name] == "yes") == registered
    ]


def cases() -> list:
    return [
        pytest.param(*pair.values, scene, dtype, id=f"{pair.id}-{scene.name}-{dtype}", marks=pair.marks)
        for pair in pairs(registered=True)
        for scene in SCENES.values()
        for dtype in DTYPES
        if dtype == torch.float32 or worth_in_half(*pair.values, scene)
    ]


def worth_in_half(op: str, name: str, scene: Scene) -> bool:
    return op not in INTEGERS_ONLY and (scene.name in INTERPRETED_HALF or not interpreted(name))


@pytest.mark.parametrize("op, name, scene, dtype", cases())
def test_agrees_with_the_equation(op, name, scene, dtype):
    made = call(op, scene, dtype=dtype, device=device_of(name))
    reason = refusal(op, name, made)
    if reason is not None:
        pytest.skip(f"{op}: {name} refuses: {reason}")
    assert_agrees(op, name, made)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_the_equation_is_a_yardstick(op, scene):
    """Every limit is twice what the equation loses in float32: that must be little."""
    made, reference, gradient = call(op, scene), dida_kernels.OPS[op].reference, GRADIENT.get(op)
    (truth, true_gradient), (output, got_gradient) = (
        run(reference, cast(made, dtype), gradient, None) for dtype in (torch.float64, torch.float32)
    )
    assert output_error(output, truth) <= 1e-6 * coldness(made)
    if gradient is not None:
        propagated = float(direction(truth.shape).norm())
        assert gradient_error(got_gradient, true_gradient, propagated) <= 3e-6 * coldness(made)


@pytest.mark.parametrize("op, name", pairs(registered=False))
def test_missing_backends_are_counted(op, name):
    pytest.skip(f"{name} cannot run on this machine: {dida_kernels.OPS[op].why_not(name)}")


@pytest.mark.parametrize("op, name", pairs(registered=True))
def test_two_runs_agree_bit_for_bit(op, name):
    made, operation = call(op, SCENES["ordinary"], device=device_of(name)), dida_kernels.OPS[op]
    first, second = (run(operation, made, GRADIENT.get(op), name) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert x is y is None or torch.equal(x, y)


def scaled(op: str, made: Call, factor: float, *, bank: float = 1.0) -> Call:
    """The same call with embeddings, and the rows of the bank, so many times as long."""
    args = list(made.args)
    for i in EMBEDDINGS[op]:
        args[i] = args[i] * factor
    args[BANK[op]] = args[BANK[op]] * bank
    return Call(tuple(args), made.options)


def of_directions() -> list:
    return [
        pytest.param(*pair.values, scene, id=f"{pair.id}-{scene}", marks=pair.marks)
        for pair in pairs(registered=True)
        for scene in ("ordinary", "same_grid")
        if pair.values[0] in BANK
    ]


def made_for(op: str, name: str, scene: str) -> Call:
    made = call(op, SCENES[scene], device=device_of(name))
    if (reason := refusal(op, name, made)) is not None:
        pytest.skip(f"{op}: {name} refuses: {reason}")
    return made


@pytest.mark.parametrize("factor", [2.0**-33, 2.0**33], ids=["short", "long"])
@pytest.mark.parametrize("op, name, scene", of_directions())
def test_lengths_say_nothing(op, name, scene, factor):
    """Of embeddings of a length of 1e-10, or 1e10, cosines are those of any other length, and so is their gradient."""
    made, gradient = made_for(op, name, scene), GRADIENT.get(op)
    compute = getattr(dida_kernels, op)
    output, slope = run(compute, made, gradient, name)
    got, got_slope = run(compute, scaled(op, made, factor, bank=factor), gradient, name)
    torch.testing.assert_close(got, output, rtol=1e-6, atol=1e-7)
    if gradient is not None:
        torch.testing.assert_close(got_slope * factor, slope, rtol=1e-5, atol=1e-6 * float(slope.abs().max()))


@pytest.mark.parametrize("op, name, scene", of_directions())
def test_what_is_shorter_than_the_shortest_has_no_direction(op, name, scene):
    """See `equations.unit`: a length of 1e-14 is none, in embeddings and in the bank."""
    made, gradient = made_for(op, name, scene), GRADIENT.get(op)
    compute = getattr(dida_kernels, op)
    for factors in ({"factor": 2.0**-50}, {"factor": 1.0, "bank": 2.0**-50}):
        none = {key: 0.0 if factor < 1 else factor for key, factor in factors.items()}
        output, slope = run(compute, scaled(op, made, **none), gradient, name)
        got, got_slope = run(compute, scaled(op, made, **factors), gradient, name)
        torch.testing.assert_close(got, output, rtol=0, atol=0)
        if gradient is not None:
            torch.testing.assert_close(got_slope, slope, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2, 4], ids=["student", "teacher", "z", "bank"])
@pytest.mark.parametrize("t", [0.1, 0.01])
@pytest.mark.parametrize("scene", ["ordinary", "same_grid"])
@pytest.mark.parametrize("op, name", [pair for pair in pairs(registered=True) if pair.values[0] == "instance_loss"])
def test_one_number_that_is_not_finite_is_seen_in_the_loss(op, name, scene, t, place, value):
    """A run stops at a loss that is not finite: a backend that leaves such pixels out would hide a broken model."""
    made = call(op, replace(SCENES[scene], temperature=t, valid="all"), device=device_of(name))
    x = made.args[place]
    x.view(-1)[x.numel() // 2] = value
    assert run(dida_kernels.OPS[op].reference, made, None, None)[0].isnan()
    assert run(dida_kernels.OPS[op], made, None, name)[0].isnan()
