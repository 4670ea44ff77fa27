"""What an op refuses at its door: each mistake alone, one TypeError or ValueError that names the argument.

The same list is held against every backend: what is refused must not depend on who would have run.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import dida_kernels
from tests.cases import SCENES, Call, call

ARGUMENTS = {
    "bank_similarity": ("embed", "bank"),
    "instance_loss": ("student", "teacher", "z", "weight", "bank", "label_K"),
    "scatter": ("semantic", "label_K"),
    "gather": ("q", "label_K"),
    "class_similarity": ("embed", "bank", "label_K"),
    "boundary_mask": ("label_BHW",),
    "bank_update": ("bank", "label_K", "embed", "label_BHW", "boundary"),
}


ORDINARY = replace(SCENES["ordinary"], log_prior="uneven")


def replaced(op: str, name: str, change: Callable) -> Call:
    """The ordinary call, with a prior, with one argument or option changed."""
    made = call(op, ORDINARY)
    if name in made.options:
        return Call(made.args, made.options | {name: change(made.options[name])})
    return Call(
        tuple(change(x) if n == name else x for n, x in zip(ARGUMENTS[op], made.args, strict=True)), made.options
    )


def first_set_to(value: float) -> Callable[[Tensor], Tensor]:
    return lambda label: torch.cat([label.new_tensor([value]), label.flatten()[1:]]).view(label.shape)


def integers(x: Tensor) -> Tensor:
    return x.to(torch.int32)


def of_8_bits(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn)


def on_meta(x: Tensor) -> Tensor:
    return x.to("meta")


def wanting_gradient(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def without_last_channel(x: Tensor) -> Tensor:
    return x[:, :-1]


# (argument, what is done to it, the error, what its message says); each holds for every op that has the argument.
MISTAKES = {
    "integer_embed": ("embed", integers, TypeError, "embedding: expected a floating dtype, got torch.int32"),
    "embed_of_8_bits": ("embed", of_8_bits, TypeError, "embedding: expected a floating dtype, got torch.float8"),
    "z_of_8_bits": ("z", of_8_bits, TypeError, "z: expected a floating dtype, got torch.float8"),
    "bank_of_8_bits": ("bank", of_8_bits, TypeError, "bank: expected a floating dtype, got torch.float8"),
    "q_of_8_bits": ("q", of_8_bits, TypeError, "q: expected a floating dtype, got torch.float8"),
    "integer_student": ("student", integers, TypeError, "embedding: expected a floating dtype"),
    "integer_teacher": ("teacher", integers, TypeError, "embedding: expected a floating dtype"),
    "integer_bank": ("bank", integers, TypeError, "bank: expected a floating dtype, got torch.int32"),
    "integer_z": ("z", integers, TypeError, "z: expected a floating dtype, got torch.int32"),
    "bool_weight": ("weight", Tensor.bool, TypeError, "weight: expected a floating dtype, got torch.bool"),
    "integer_prior_of_classes": ("log_prior_C", integers, TypeError, "log_prior: expected a floating dtype"),
    "int32_slots": ("label_K", integers, TypeError, "label: expected int64, got torch.int32"),
    "float_labels": ("label_BHW", Tensor.float, TypeError, "label: expected uint8, int32 or int64, got torch.float32"),
    "flat_student": ("student", lambda x: x[0], ValueError, r"embedding: expected a non-empty \[B, D, h, w\]"),
    "no_images": ("student", lambda x: x[:0], ValueError, r"embedding: expected a non-empty \[B, D, h, w\]"),
    "teacher_grid": ("teacher", lambda x: x[..., 1:], ValueError, "teacher embedding: expected .* as the student's"),
    "teacher_channels": ("teacher", without_last_channel, ValueError, "teacher embedding: expected"),
    "flat_z": ("z", lambda x: x[0], ValueError, r"z: expected \[B=2, C, H, W\]"),
    "z_of_one_image": ("z", lambda x: x[:1], ValueError, r"z: expected \[B=2, C, H, W\], got \[1,"),
    "z_without_classes": ("z", lambda x: x[:, :0], ValueError, r"z: expected \[B=2, C, H, W\]"),
    "coarse_z": ("z", lambda x: x[:, :, :2], ValueError, "z: expected a grid of at least 3x4"),
    "weight_grid": ("weight", lambda x: x[:, 1:], ValueError, r"weight: expected \[B, H, W\] = \[2, 6, 8\]"),
    "negative_weight": (
        "weight",
        first_set_to(-1),
        ValueError,
        r"weight: expected finite .* at least 0, found \[-1.0\]",
    ),
    "nan_weight": ("weight", first_set_to(float("nan")), ValueError, r"weight: expected finite .* found \[nan\]"),
    "infinite_weight": ("weight", first_set_to(float("inf")), ValueError, r"weight: expected finite .* found \[inf\]"),
    "prior_of_too_few": ("log_prior_C", lambda x: x[1:], ValueError, r"log_prior: expected \[C\] = \[5\]"),
    "log_of_0": ("log_prior_C", first_set_to(-float("inf")), ValueError, r"log_prior: expected finite .* a floor"),
    "flat_bank": ("bank", lambda x: x[0], ValueError, r"bank: expected \[K >= 1, D\]"),
    "empty_bank": ("bank", lambda x: x[:0], ValueError, r"bank: expected \[K >= 1, D\] .* got \[0, 8\]"),
    "bank_channels": ("bank", without_last_channel, ValueError, r"bank: expected \[K >= 1, D\] .* got \[13, 7\]"),
    "slots_as_matrix": ("label_K", lambda x: x[:, None], ValueError, "label: expected"),
    "slot_beyond": ("label_K", first_set_to(5), ValueError, r"label: expected values in 0 .. 4, found \[5\]"),
    "slot_below": ("label_K", first_set_to(-1), ValueError, r"label: expected values in 0 .. 4, found \[-1\]"),
    "slot_ignored": ("label_K", first_set_to(255), ValueError, r"label: expected values in 0 .. 4, found \[255\]"),
    "label_beyond": ("label_BHW", first_set_to(5), ValueError, r"label: expected values in 0 .. 4 or 255, found \[5\]"),
    "label_of_one_image": ("label_BHW", lambda x: x[0], ValueError, "label: expected 3 dimensions"),
    "zero_temperature": (
        "temperature",
        lambda t: 0.0,
        ValueError,
        r"temperature: expected a finite number > 0, of at least 1e-18, got 0.0",
    ),
    "temperature_without_inverse": ("temperature", lambda t: 1e-320, ValueError, "temperature: expected .* got 1e-320"),
    "negative_temperature": ("temperature", lambda t: -t, ValueError, "temperature: expected"),
    "nan_temperature": ("temperature", lambda t: float("nan"), ValueError, "temperature: expected .* got nan"),
    "infinite_temperature": ("temperature", lambda t: float("inf"), ValueError, "temperature: expected .* got inf"),
    "float_boundary": ("boundary", Tensor.float, TypeError, "boundary: expected bool, got torch.float32"),
    "boundary_grid": ("boundary", lambda x: x[:, 1:], ValueError, r"boundary: expected \[B, H, W\]"),
    "no_threshold": ("threshold", lambda t: 0, ValueError, "threshold: expected a whole number of at least 1"),
    "no_classes": ("classes", lambda c: 0, ValueError, "classes: expected a whole number of at least 1"),
    "momentum_above_one": ("momentum", lambda m: 1.5, ValueError, r"momentum: expected a number in \[0, 1\], got 1.5"),
    "negative_momentum": ("momentum", lambda m: -0.1, ValueError, "momentum: expected"),
    "meta_teacher": ("teacher", on_meta, ValueError, "embedding: expected it on cpu, got meta"),
    "meta_z": ("z", on_meta, ValueError, "z: expected it on cpu, got meta"),
    "meta_weight": ("weight", on_meta, ValueError, "weight: expected it on cpu, got meta"),
    "meta_log_prior": ("log_prior_C", on_meta, ValueError, "log_prior: expected it on cpu, got meta"),
    "meta_bank": ("bank", on_meta, ValueError, "(bank|embedding|label): expected it on"),
    "meta_slots": ("label_K", on_meta, ValueError, "label: expected it on cpu, got meta"),
    "gradient_of_the_bank": ("bank", wanting_gradient, ValueError, r"bank: no gradient .* pass bank.detach\(\)"),
    "gradient_of_z": ("z", wanting_gradient, ValueError, "z: no gradient"),
    "gradient_of_the_weight": ("weight", wanting_gradient, ValueError, "weight: no gradient"),
    "gradient_of_the_log_prior": ("log_prior_C", wanting_gradient, ValueError, "log_prior: no gradient"),
    "gradient_of_the_teacher": ("teacher", wanting_gradient, ValueError, "teacher: no gradient"),
}
NOT_DIFFERENTIABLE = ("class_similarity", "bank_update")
BOTH_LENGTHS = ("instance_loss", "class_similarity", "bank_update", "gather")  # ops that know how many slots there are


def affected(name: str) -> list[str]:
    return [op for op, names in ARGUMENTS.items() if name in names or name in call(op, ORDINARY).options]


def doors() -> list:
    """Every (op, backend on this machine, mistake)."""
    return [
        pytest.param(op, backend, mistake, id=f"{op}-{backend}-{mistake}")
        for mistake, (name, *_) in MISTAKES.items()
        for op in affected(name)
        for backend in ("auto", "equation", *dida_kernels.OPS[op].backends)
    ]


def test_every_op_says_what_it_refuses():
    assert set(ARGUMENTS) == set(dida_kernels.OPS)
    assert [name for name, op in dida_kernels.OPS.items() if "Raises TypeError or ValueError" not in op.__doc__] == []


@pytest.mark.parametrize("op, backend, mistake", doors())
def test_a_mistake_is_named(op, backend, mistake):
    name, change, error, message = MISTAKES[mistake]
    made = replaced(op, name, change)
    with dida_kernels.backend(backend), pytest.raises(error, match=message):
        dida_kernels.OPS[op](*made.args, **made.options)


@pytest.mark.parametrize("op", BOTH_LENGTHS)
def test_slots_and_their_classes_are_equally_many(op):
    made = replaced(op, "label_K", lambda x: x[1:])
    with pytest.raises(ValueError, match=r"label: expected \[13\], got shape \[12\]"):
        dida_kernels.OPS[op](*made.args, **made.options)


@pytest.mark.parametrize("op", NOT_DIFFERENTIABLE)
def test_a_gradient_that_does_not_exist_cannot_be_asked_for(op):
    made = replaced(op, "embed", wanting_gradient)
    with pytest.raises(ValueError, match="embed: no gradient is defined for it"):
        dida_kernels.OPS[op](*made.args, **made.options)
    with torch.no_grad():
        dida_kernels.OPS[op](*made.args, **made.options)


@pytest.mark.parametrize("name", ["teacher", "z", "bank"])
def test_without_autograd_nothing_is_asked_for(name):
    made = replaced("instance_loss", name, wanting_gradient)
    with torch.no_grad():
        assert dida_kernels.instance_loss(*made.args, **made.options) > 0


NO_TENSORS = {
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "a numpy array": lambda x: x.numpy(),
    "a number": lambda x: 1.0,
    "text": lambda x: "x",
    "sparse": lambda x: x.to_sparse(),
}


@pytest.mark.parametrize("what", NO_TENSORS)
@pytest.mark.parametrize("op", ARGUMENTS)
def test_what_is_no_dense_tensor_is_named(op, what):
    made = call(op, SCENES["ordinary"])
    names = list(inspect.signature(dida_kernels.OPS[op].equation).parameters)
    for place, name in enumerate(names[: len(made.args)]):
        args = [NO_TENSORS[what](x) if i == place else x for i, x in enumerate(made.args)]
        with pytest.raises(TypeError, match=f"{op}, {name}: expected a (dense )?tensor, got "):
            dida_kernels.OPS[op](*args, **made.options)
        by_name = dict(zip(names, args, strict=False))
        with pytest.raises(TypeError, match=f"{op}, {name}: expected a (dense )?tensor, got "):
            dida_kernels.OPS[op](**by_name, **made.options)


NO_OPTIONS = {
    "temperature": (0, -1.0, float("nan"), float("inf"), "0.1", None, [0.1], 1j, True),
    "classes": (0, -1, 2.5, "5", None, float("nan"), [5], 10**30, True),
    "momentum": (-0.1, 1.1, float("nan"), "0.9", None, [0.9]),
    "threshold": (0, -1, 2.5, "2", None, float("nan")),
    "size": ((16,), (), None, 5, (0, 8), (-6, 8), (6.5, 8), ("6", "8"), (6, 8, 1), (2, 3), [6, None]),
}


@pytest.mark.parametrize("option", NO_OPTIONS)
def test_an_option_that_is_no_such_number_is_named(option):
    for op in affected(option):
        for value in NO_OPTIONS[option]:
            made = replaced(op, option, lambda _, value=value: value)
            with pytest.raises((TypeError, ValueError), match=f"^{option}: expected "):
                dida_kernels.OPS[op](*made.args, **made.options)


@pytest.mark.parametrize("op", ARGUMENTS)
def test_shapes_that_change_compile(op):
    made = call(op, SCENES["ordinary"])
    compiled = torch.compile(
        lambda *args: dida_kernels.OPS[op](*args, **made.options), dynamic=True, fullgraph=True, backend="aot_eager"
    )
    with dida_kernels.backend("equation"):
        for scene in ("ordinary", "few_valid"):
            args = call(op, SCENES[scene]).args
            if "size" in made.options and args[0].shape[2:] > made.options["size"]:
                continue
            torch.testing.assert_close(compiled(*args), dida_kernels.OPS[op](*args, **made.options))
