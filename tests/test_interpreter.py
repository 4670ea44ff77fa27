"""Triton's interpreter, made quicker, says what it said."""

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime import interpreter

import dida_kernels
from tests.cases import SCENES, call
from tests.interpreter import looking_for_overflow
from tests.kernels.agreement import run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted on a GPU")


@pytest.mark.parametrize("op, gradient", [("instance_loss", 0), ("class_similarity", None), ("scatter", 0)])
def test_it_says_what_it_said(op, gradient, monkeypatch):
    operation, made = dida_kernels.OPS[op], call(op, SCENES["with_prior"])
    quick = run(operation, made, gradient, "triton")
    adapted, adapt = [], interpreter._patch_lang.__closure__
    original = next(
        cell.cell_contents for cell in adapt if getattr(cell.cell_contents, "__name__", "") == "_patch_lang"
    )
    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: adapted.append(function) or original(function))
    with looking_for_overflow():
        slow = run(operation, made, gradient, "triton")
    assert adapted
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(quick, slow, strict=True))


def test_nothing_stays_adapted():
    before = vars(interpreter.tl).copy()
    run(dida_kernels.instance_loss, call("instance_loss", SCENES["ordinary"]), 0, "triton")
    assert {name for name, value in vars(interpreter.tl).items() if value is not before.get(name)} == set()
