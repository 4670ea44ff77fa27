"""Calls of the ops that nobody could mean, and numbers that are not finite, in every backend that runs here."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import dida_kernels
from dida_kernels.dispatch import OPS
from tests.cases import CALLS, GRADIENT, SCENES, Call, call
from tests.faults.places import Places
from tests.faults.trial import Case, told

Change = Callable[[Any], Any]
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
NO_TENSORS: dict[str, Change] = {
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "a numpy array": lambda x: x.numpy(),
    "a number": lambda x: 1.0,
    "text": lambda x: "x",
    "a tuple": lambda x: (x,),
    "sparse": lambda x: x.to_sparse(),
    "on meta": lambda x: x.to("meta"),
    "complex": lambda x: x.to(torch.complex64),
    "one dimension more": lambda x: x[None],
    "one dimension less": lambda x: x[0],
    "empty": lambda x: x[..., :0],
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
}
NO_OPTIONS: dict[str, tuple[Any, ...]] = {
    "temperature": (0, -1.0, float("nan"), float("inf"), "0.1", None, [0.1], 1j, torch.tensor([0.1, 0.1])),
    "classes": (0, -1, 2.5, "5", None, float("nan"), [5], 10**30),
    "momentum": (-0.1, 1.1, float("nan"), "0.9", None, [0.9], float("inf")),
    "threshold": (0, -1, 2.5, "2", None, float("nan")),
    "size": (
        (16,),
        (),
        None,
        5,
        (0, 8),
        (-6, 8),
        (6.5, 8),
        ("6", "8"),
        (6, 8, 1),
        (2, 3),
        (float("nan"), 8),
        [6, None],
    ),
}


def operation_cases(places: Places) -> Iterator[Case]:
    """Every argument of every op, of another kind, dtype, shape or device; and numbers that are not finite."""
    for name in CALLS:
        made = call(name, SCENES["ordinary"])
        for place, argument in enumerate(made.args):
            for what, change in (NO_TENSORS | _dtypes(argument)).items():
                if name != "boundary_mask" or what not in ("on meta", "empty"):  # which mean something there
                    yield _refused(name, f"argument {place} {what}", _with(made, place, change))
        for option, values in NO_OPTIONS.items():
            if option in made.options:
                for value in values:
                    yield _refused(
                        name,
                        f"{option} = {value!r}",
                        lambda m=made, o=option, v=value: m._replace(options=m.options | {o: v}),
                        option,
                    )
        yield _refused(name, "no arguments", lambda: Call((), {}))
        yield _refused(
            name, "an option that does not exist", lambda m=made: m._replace(options=m.options | {"nope": 1})
        )
        for place, argument in enumerate(made.args):
            if not argument.is_floating_point():
                continue
            for value in NOT_FINITE:
                what = f"{value} in argument {place}"
                if (name, place) == ("instance_loss", 3):  # the weight: nobody could mean it
                    yield _refused(name, what, _with(made, place, lambda x, v=value: x.fill_(v)), "weight")
                    continue
                for backend in OPS[name].backends:
                    if not OPS[name].why_not(backend, *made.args, **made.options):
                        yield Case("ops", f"{name}, {backend}: {what}", _agrees(name, backend, place, value), False)


def _dtypes(argument: Tensor) -> dict[str, Change]:
    if argument.is_floating_point():
        return {"int64": lambda x: x.long(), "bool": lambda x: x.bool(), "uint8": lambda x: x.to(torch.uint8)}
    return {
        "float32": lambda x: x.float() + 0.5,
        "int16": lambda x: x.to(torch.int16),
        "beyond the range": lambda x: x.long() + 1000,
    }


def _with(made: Call, place: int, change: Change) -> Callable[[], Call]:
    return lambda: made._replace(args=(*made.args[:place], change(made.args[place]), *made.args[place + 1 :]))


def _refused(name: str, what: str, make: Callable[[], Call], *words: str) -> Case:
    def does() -> None:
        args, options = make()
        told(lambda: OPS[name](*args, **options), TypeError, ValueError)()

    return Case("ops", f"{name}: {what}", does, words=words)


def _agrees(name: str, backend: str, place: int, value: float) -> Callable[[], object]:
    def does() -> None:
        made = call(name, SCENES["ordinary"])
        x = made.args[place]
        x.view(-1)[x.numel() // 2] = value
        expected, found = (_outcome(name, which, made) for which in ("equation", backend))
        for what, a, b in zip(("result", "gradient"), found, expected, strict=True):
            assert torch.equal(a.isfinite(), b.isfinite()), (
                f"{what}: {int((a.isfinite() != b.isfinite()).sum())} differ"
            )
            torch.testing.assert_close(a[a.isfinite()], b[b.isfinite()], rtol=1e-3, atol=1e-4)

    return does


def _outcome(name: str, backend: str, made: Call) -> tuple[Tensor, Tensor]:
    """Result and gradient, the latter all NaN where the result is not finite, since nobody takes that step."""
    wanted = GRADIENT.get(name)
    args = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(made.args)]
    with dida_kernels.backend(backend):
        result = OPS[name](*args, **made.options)
        if wanted is None:
            return result.detach(), torch.zeros(1)
        (gradient,) = torch.autograd.grad(result.sum(), args[wanted])
    lost = result.dim() == 0 and not math.isfinite(float(result.detach()))
    return result.detach(), torch.full_like(gradient, math.nan) if lost else gradient
