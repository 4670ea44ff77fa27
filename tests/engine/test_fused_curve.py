"""Six steps of DIDA with the Triton kernels in the interpreter follow the same six on plain PyTorch."""

import dataclasses

import pytest
import torch

import dida_kernels
from dida.step import train_step
from tests.engine.scenes import batch, build, tiny

STEPS = 6  # the interpreter takes seconds for each
# Relative, of every loss of every step: single precision differs in the 7th digit and training amplifies it.
BAND = 1e-3


def forced(backend: str, function):
    """The same strategy with every op in it on one backend."""

    def run(*args, **options):
        with dida_kernels.backend(backend):
            return function(*args, **options)

    return run


def curve(backend: str) -> torch.Tensor:
    """Losses of every step, [STEPS, terms]."""
    # One crop of 32 pixels and one slot per class: the interpreter pays for every slot of every block of pixels.
    # All pixels alike: weights of classes turn on single labels, and the last digit may turn a label.
    state, method = build(tiny(steps=STEPS, crop=32, bank_size=19, instance_weights="all", instance_prior="both"))
    believe, (mixed_pass,) = method.believe, method.target_passes
    method = dataclasses.replace(
        method,
        believe=dataclasses.replace(believe, regenerate=forced(backend, believe.regenerate)),
        target_passes=(dataclasses.replace(mixed_pass, instance_loss=forced(backend, mixed_pass.instance_loss)),),
    )
    traces = [train_step(state, batch(i, size=32, images=1), method) for i in range(STEPS)]
    assert state.bank.features.abs().sum() > 0
    return torch.stack([torch.stack(list(trace.losses.values())) for trace in traces])


def test_training_with_the_kernels_is_the_same_training():
    if "triton" not in dida_kernels.instance_loss.backends:
        pytest.skip(dida_kernels.report()["instance_loss"]["triton"])
    equation = curve("chunked")
    fused = curve("triton")
    assert equation[:, 3].sum() > 0
    assert ((fused - equation).abs() <= BAND * equation.abs() + 1e-6).all(), (fused - equation).abs().max(0)
