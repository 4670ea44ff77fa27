"""The step on a GPU: every op on its kernel, no waiting for the device, and the losses of the CPU."""

import pytest
import torch

import dida_kernels
from dida.batch import Batch, LabelledCrops
from dida.method.passes import Method
from dida.precision import PRECISIONS, products_in
from dida.state import PARTS, TrainState
from dida.step import train_step
from tests.engine.scenes import batch, build, tiny

STEPS = 24  # so many that colour jitter and blur, which are drawn by chance, both were and were not there
GPU = "cuda"


def on_gpu(x: Batch) -> Batch:
    return Batch(LabelledCrops(x.source.image.to(GPU), x.source.label.to(GPU)), x.target.to(GPU))


def parts(precision: str = "auto") -> tuple[TrainState, Method]:
    return build(tiny(feature_weight=0.005, steps=1000, precision=precision), imagenet=True, device=GPU)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_waits_for_the_device(precision):
    """From the second round of draws on: constants have been copied, kernels compiled, cuDNN has chosen."""
    state, method = parts(precision)
    stream = [on_gpu(batch(i)) for i in range(STEPS)]
    for waiting in ("default", "error"):
        torch.cuda.set_sync_debug_mode(waiting)
        try:
            for x in stream:
                with products_in(precision):
                    trace = train_step(state, x, method)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(loss.isfinite() for loss in trace.losses.values())
    assert trace.losses["instance"] > 0


@pytest.mark.gpu
def test_the_first_loss_is_that_of_the_cpu():
    """Until the first update both see the same numbers, but for rounding and for what is drawn on the device."""
    losses: list[torch.Tensor] = []
    for device, x in (("cpu", batch(0)), ("cuda", on_gpu(batch(0)))):
        state, method = build(tiny(drop_path=0.0), device=device)
        for module in state.student.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p = 0.0
        with products_in("fp32"):
            losses.append(train_step(state, x, method).losses["source"].cpu())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.gpu
def test_the_optimizer_is_one_kernel_and_goes_on_from_a_checkpoint_of_a_cpu(tmp_path):
    state, method = parts()
    train_step(state, on_gpu(batch(0)), method)
    assert all(group["fused"] for group in state.optimizer.param_groups)
    assert all(moments["step"].is_cuda for moments in state.optimizer.state.values())
    other, its_method = build(tiny(feature_weight=0.005, steps=1000), imagenet=True)
    train_step(other, batch(0), its_method)
    saved = {part: getattr(other, part).state_dict() for part in PARTS} | {"step": 1}
    state.load(saved)
    assert all(group["fused"] for group in state.optimizer.param_groups)
    assert train_step(state, on_gpu(batch(1)), method).gradient_norm.isfinite()


@pytest.mark.gpu
def test_every_op_of_the_step_runs_on_its_kernel(monkeypatch):
    def not_here(*args, **options):
        raise AssertionError("plain PyTorch ran on a GPU")

    ops = ("class_similarity", "instance_loss", "boundary_mask", "bank_update")
    for op in ops:
        backends = dida_kernels.OPS[op].backends
        for name in ("chunked", "equation"):
            monkeypatch.setitem(backends, name, backends[name]._replace(run=not_here))
    state, method = parts()
    for i in range(3):
        trace = train_step(state, on_gpu(batch(i)), method)
    assert trace.losses["instance"] > 0
