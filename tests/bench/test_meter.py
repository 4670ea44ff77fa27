"""The meter against PyTorch's own allocator, and our counted launches against a real run in the interpreter."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import _disable_current_modes

import dida_kernels
from bench.meter import TensorMeter, list_launches
from tests import cases
from tests.cases import MAIN, resized

SMALL = resized(MAIN, D=32, K=64, hw=(8, 8), HW=(32, 32))
TINY = resized(MAIN, C=5, D=16, K=20, hw=(3, 3), HW=(12, 12))  # for the interpreter


def paper_form() -> tuple[int, int]:
    """Peak bytes of the equation on real tensors on top of its inputs: by the meter, and by the CPU's allocator."""
    made = cases.call("instance_loss", SMALL)
    made.args[0].requires_grad_()

    def step() -> None:
        dida_kernels.instance_loss.reference(*made.args, **made.options).backward()
        made.args[0].grad = None

    with TensorMeter() as meter:
        meter.know(made.args)
        with meter.extra() as peak:
            step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return peak(), highest


def test_counted_peak_is_the_allocators():
    counted, real = paper_form()
    assert real > 4 * 4 * MAIN.B * 32 * 32 * SMALL.K  # several [N, K]: something was measured
    assert counted == pytest.approx(real, rel=0.02)


def test_bytes_of_in_place_and_out_operations():
    a, b = torch.ones(1000), torch.ones(1000)
    with TensorMeter() as meter:
        a.add_(b)
        torch.add(a, b, out=b)
        b.copy_(a)
        a[:10].view(2, 5).t()
    assert [(step.name, step.bytes) for step in meter.operations] == [("add_", 12000), ("add", 12000), ("copy_", 8000)]


def test_launches_of_an_operation_on_lists():
    """320 chunks of 65 536 elements a launch, of 110 tensors in one list and 64 in two."""
    assert list_launches([1] * 110, 1) == 1
    assert list_launches([1] * 111, 1) == 2
    assert list_launches([1] * 110, 2) == 2
    assert list_launches([65_536 * 320], 1) == 1
    assert list_launches([65_536 * 320 + 1], 1) == 2
    assert list_launches([65_536 * 319 + 1, 1, 1], 1) == 2


def test_launches_of_what_is_more_than_one_kernel():
    image, weight, bias = (torch.ones(shape, device="meta") for shape in ((1, 2, 8, 8), (3, 2, 3, 3), (3,)))
    with TensorMeter() as meter:
        out = F.conv2d(image, weight.requires_grad_(), bias.requires_grad_())
        torch.ones(3).add_(1)  # of the host
        torch._foreach_add([image] * 65, [image] * 65)
        out.sum().backward()
    found = {step.name: step.launches for step in meter.operations}
    assert found["convolution"] == 1
    assert found["add_"] == 0
    assert found["_foreach_add"] == 2
    assert found["convolution_backward"] == 2  # the image has no gradient


def test_matrix_flops_and_temporaries_that_died():
    with TensorMeter() as meter:
        a = torch.ones(20, 30)
        for _ in range(3):
            (a @ a.T).sum()
    assert sum(step.flops for step in meter.operations) == 3 * 2 * 20 * 30 * 20
    assert meter.peak == 4 * (600 + 400 + 1)
    assert meter.live == 4 * 600


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_flops_of_a_convolution_and_its_two_gradients_are_those_of_its_groups(groups):
    """PyTorch's own formula of the gradients takes every convolution for a dense one: a depthwise one for hundreds."""
    image, weight = (torch.ones(shape, device="meta") for shape in ((2, 6, 8, 8), (6, 6 // groups, 3, 3)))
    with TensorMeter() as meter:
        F.conv2d(image.requires_grad_(), weight.requires_grad_(), padding=1, groups=groups).sum().backward()
    found = {step.name: step.flops for step in meter.operations}
    once = 2 * (2 * 6 * 8 * 8) * (6 // groups) * 9
    assert (found["convolution"], found["convolution_backward"]) == (once, 2 * once)


def test_bodies_of_opaque_ops_are_opened():
    made = cases.call("instance_loss", SMALL)
    with TensorMeter() as meter, torch.no_grad(), dida_kernels.backend("chunked"):
        dida_kernels.instance_loss(*made.args, **made.options)
    assert {"bmm", "logsumexp"} <= {step.name for step in meter.operations}


def test_launches_taken_down_allocate_what_the_interpreter_allocates(monkeypatch):
    """Forward and backward, on a fake GPU and on a CPU with numbers: the same peaks."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    from bench import bank_memory
    from bench.compiled import launches
    from dida_kernels.fused.launch import INTERPRETED

    if not INTERPRETED:
        pytest.skip("kernels were bound to the GPU when they were imported")
    with launches.recording(86) as taken:
        taken.meter.block = 1
        x = bank_memory.make_inputs(TINY, torch.float32, "cuda")
        counted = bank_memory.count_phases("ours", x, TINY.temperature, taken.meter, launches.backward)

    grid = interpreter.GridExecutor.__call__

    def unmetered(*args, **kwargs):
        with _disable_current_modes():  # the interpreter copies what a kernel is given; a GPU does not
            grid(*args, **kwargs)
        gc.collect()  # and it keeps it in reference cycles

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", unmetered)
    x = bank_memory.make_inputs(TINY, torch.float32, "cpu")
    with dida_kernels.backend("triton"), TensorMeter() as meter:
        real = bank_memory.count_phases("ours", x, TINY.temperature, meter, launches.backward)
    assert counted == real
