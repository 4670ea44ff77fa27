"""Random scenes: any grids, slots, classes, masks, temperatures and layouts, held against the equation in float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dida_kernels
from dida_kernels.chunked import tiles
from tests.cases import GRADIENT, Scene, call, cast
from tests.kernels.test_agreement import (
    FLOAT32_GRADIENT,
    FLOAT32_OUTPUT,
    check,
    device_of,
    direction,
    gradient_error,
    output_error,
    pairs,
    run,
)

ROUNDING = 1e-11  # float64: what two orders of summation may differ by
# The fixtures of the directory hold for all examples alike.
FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def scenes(draw: st.DrawFn, largest: int) -> Scene:
    """Scenes with at most `largest` nodes along an axis; pixels are some integer or broken multiple of them."""
    hw = draw(st.tuples(st.integers(1, largest), st.integers(1, largest)))
    if draw(st.booleans()):
        stride = draw(st.sampled_from([1, 2, 4]))
        HW = (hw[0] * stride, hw[1] * stride)
    else:
        HW = (hw[0] + draw(st.integers(0, 5)), hw[1] + draw(st.integers(0, 5)))
    return Scene(
        name=f"fuzz-{draw(st.integers(0, 999))}",
        B=draw(st.integers(1, 2)),
        C=draw(st.integers(1, 7)),
        D=draw(st.integers(1, 12)),
        K=draw(st.integers(1, 24)),
        hw=hw,
        HW=HW,
        temperature=draw(st.sampled_from([1.0, 0.3, 0.1, 0.05])),
        slots=draw(st.sampled_from(["shuffled", "some_empty"])),
        prior=draw(st.sampled_from(["soft", "hard", "ones", "slotless"])),
        valid=draw(st.sampled_from(["most", "none", "one_image", "all"])),
        layout=draw(st.sampled_from(["plain", "channels_last", "strided", "misaligned"])),
        threshold=draw(st.integers(1, 3)),
        momentum=draw(st.sampled_from([0.0, 0.9, 0.999, 1.0])),
    )


@pytest.mark.parametrize("op", dida_kernels.OPS)
@settings(FUZZ, max_examples=40)
@given(scene=scenes(largest=6), tile_bytes=st.sampled_from([tiles.TILE_BYTES, 20_000, 3_000]))
def test_torch_in_float64(op, scene, tile_bytes):
    made, operation, gradient = call(op, scene, dtype=torch.float64), dida_kernels.OPS[op], GRADIENT.get(op)
    truth, true_gradient = run(operation.reference, made, gradient, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_BYTES", tile_bytes)
        output, got_gradient = run(operation, made, gradient, "torch")
    assert output_error(output, truth) <= ROUNDING
    if gradient is not None:
        assert gradient_error(got_gradient, true_gradient, float(direction(truth.shape).norm())) <= ROUNDING


def compare_in_float32(op: str, name: str, scene: Scene) -> None:
    made, operation, gradient = call(op, scene, device=device_of(name)), dida_kernels.OPS[op], GRADIENT.get(op)
    with dida_kernels.backend(name):
        if operation.why_not(name, *made.args, **made.options) is not None:
            return
    truth, true_gradient = run(operation.reference, cast(call(op, scene), torch.float64), gradient, None)
    equation, equation_gradient = run(operation.reference, made, gradient, None)
    output, got_gradient = run(operation, made, gradient, name)
    check("output", output_error(output, truth), output_error(equation, truth), FLOAT32_OUTPUT, scene, torch.float32)
    if gradient is not None:
        propagated = float(direction(truth.shape).norm())
        errors = (gradient_error(g, true_gradient, propagated) for g in (got_gradient, equation_gradient))
        check("gradient", *errors, FLOAT32_GRADIENT, scene, torch.float32)


@pytest.mark.parametrize("op, name", [p for p in pairs(registered=True) if p.values[1] in ("cpp", "cuda")])
@settings(FUZZ, max_examples=60)
@given(scene=scenes(largest=6))
def test_extension_in_float32(op, name, scene):
    compare_in_float32(op, name, scene)


@pytest.mark.parametrize("op, name", [p for p in pairs(registered=True) if p.values[1] == "triton"])
@settings(FUZZ, max_examples=20 if torch.cuda.is_available() else 4)  # every grid of its own is compiled anew
@given(scene=scenes(largest=3))
def test_triton_in_float32(op, name, scene):
    compare_in_float32(op, name, scene)
