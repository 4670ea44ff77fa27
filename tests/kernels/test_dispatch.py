"""Which implementation runs: free choice, forced choice, and the errors of a choice that cannot be honoured."""

import os
import subprocess
import sys

import pytest
import torch

import dida_kernels
from dida_kernels import dispatch
from dida_kernels.dispatch import ORDER, Op


def finite(x: float) -> None:
    if x != x:
        raise ValueError(f"x: expected a number, got {x}")


@pytest.fixture
def op(monkeypatch) -> Op:
    """An op with two fast backends: one that takes positive numbers only, and one that refuses everything."""
    monkeypatch.setattr(dispatch, "OPS", {})
    monkeypatch.setattr(dispatch, "_missing", {})
    monkeypatch.delenv(dispatch.SWITCH, raising=False)

    @dispatch.op(check=finite)
    def double(x: float) -> str:
        """The equation's docstring."""
        return f"equation {2 * x}"

    @double.implement("cpp", refuses=lambda x: None if x > 0 else f"{x} is not positive")
    def _(x: float) -> str:
        return f"cpp {2 * x}"

    @double.implement("triton", refuses=lambda x: "never today")
    def _(x: float) -> str:
        raise AssertionError("a backend that refuses must not run")

    return double


def test_the_first_backend_that_accepts_runs(op):
    assert op(1) == "cpp 2"
    assert op(-1) == "equation -2"


def test_a_forced_backend_runs_or_raises_with_the_reason(op):
    with dida_kernels.backend("torch"):
        assert op(1) == "equation 2"
    with dida_kernels.backend("cpp"), pytest.raises(RuntimeError, match=r"double: .*'cpp'.*-1 is not positive"):
        op(-1)
    with dida_kernels.backend("triton"), pytest.raises(RuntimeError, match="never today"):
        op(1)
    with dida_kernels.backend("cuda"), pytest.raises(RuntimeError, match="not implemented for this op"):
        op(1)


@pytest.mark.parametrize("backend", ["auto", "torch", "cpp", "triton", "cuda", "equation"])
def test_every_backend_has_the_same_door(op, backend):
    with dida_kernels.backend(backend), pytest.raises(ValueError, match="x: expected a number, got nan"):
        op(float("nan"))
    with pytest.raises(ValueError, match="x: expected a number"):
        op.reference(float("nan"))


def test_a_backend_that_could_not_be_loaded_says_why(op):
    dispatch.absent("cuda", "no compiler was found")
    assert op.why_not("cuda", 1) == "no compiler was found"
    with dida_kernels.backend("cuda"), pytest.raises(RuntimeError, match="no compiler was found"):
        op(1)


def test_an_error_inside_the_chosen_backend_is_not_a_reason_to_try_the_next(op):
    @op.implement("cuda", refuses=lambda x: None)
    def _(x: float) -> str:
        raise FloatingPointError("broken kernel")

    with pytest.raises(FloatingPointError, match="broken kernel"):
        op(1)


def test_forcing_nests_and_ends_with_its_block(op):
    with dida_kernels.backend("torch"):
        with dida_kernels.backend("auto"):
            assert op(1) == "cpp 2"
        assert op(1) == "equation 2"
    with pytest.raises(ZeroDivisionError), dida_kernels.backend("torch"):
        raise ZeroDivisionError
    assert op(1) == "cpp 2"


def test_an_unknown_backend_is_an_error_at_once(op):
    with pytest.raises(ValueError, match="unknown backend 'cudnn'"), dida_kernels.backend("cudnn"):
        pass
    with pytest.raises(ValueError, match="unknown backend 'cudnn'"):
        op.implement("cudnn", refuses=lambda x: None)


def test_the_reference_is_made_of_equations_all_the_way(op):
    op.implement("torch", refuses=lambda x: None)(lambda x: "fast torch")

    @dispatch.op(check=lambda x: None)
    def around(x: float) -> str:
        return f"around {op(x)}"

    assert op(-1) == "fast torch"
    assert around(1) == "around cpp 2"
    assert around.reference(1) == "around equation 2"
    with dida_kernels.backend("cpp"):
        assert around.reference(1) == "around equation 2"


def test_an_op_carries_the_equation_s_name_and_docstring(op):
    assert (op.name, op.__name__, op.__doc__) == ("double", "double", "The equation's docstring.")


def test_the_switch_chooses_torch_for_a_whole_run(op, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "torch")
    assert op(1) == "equation 2"
    with dida_kernels.backend("cpp"):  # the block is closer than the environment
        assert op(1) == "cpp 2"
    monkeypatch.setenv(dispatch.SWITCH, "auto")
    assert op(1) == "cpp 2"


@pytest.mark.parametrize("value", ["triton", "cpp", ""])
def test_a_switch_that_no_run_can_honour_is_refused(value, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, value)
    with pytest.raises(ValueError, match=f"{dispatch.SWITCH}={value!r}"):
        dispatch.check_switch()
    for fine in ("auto", "torch"):
        monkeypatch.setenv(dispatch.SWITCH, fine)
        dispatch.check_switch()


def test_the_switch_is_checked_at_import():
    environment = os.environ | {dispatch.SWITCH: "triton"}
    command = [sys.executable, "-c", "import dida_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{dispatch.SWITCH}='triton'" in done.stderr


def test_the_report_names_every_op_and_backend():
    report = dida_kernels.report()
    assert list(report) == sorted(dida_kernels.OPS)
    assert {
        "bank_similarity",
        "bank_update",
        "boundary_mask",
        "class_similarity",
        "gather",
        "instance_loss",
        "scatter",
    } == set(report)
    for backends in report.values():
        assert tuple(backends) == ORDER
        assert backends["torch"] == "yes"
        assert all(isinstance(why, str) and why for why in backends.values())


def test_public_ops_are_the_registered_ones():
    assert set(dida_kernels.OPS) <= set(dida_kernels.__all__)
    assert all(getattr(dida_kernels, name) is op for name, op in dida_kernels.OPS.items())


def test_triton_in_the_interpreter_is_never_a_free_choice():
    if torch.cuda.is_available():
        pytest.skip("Triton kernels compile here")
    label_BHW = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert dida_kernels.boundary_mask.why_not("triton", label_BHW, classes=2) is not None
