"""Which implementation runs: free choice, forced choice, and the errors of a choice that cannot be honoured."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
    with dida_kernels.backend("equation"):
        assert op(1) == "equation 2"
    with dida_kernels.backend("cpp"), pytest.raises(RuntimeError, match=r"double: .*'cpp'.*-1 is not positive"):
        op(-1)
    with dida_kernels.backend("triton"), pytest.raises(RuntimeError, match="never today"):
        op(1)
    with dida_kernels.backend("cuda"), pytest.raises(RuntimeError, match="not implemented for this op"):
        op(1)


@pytest.mark.parametrize("backend", ["auto", *ORDER])
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
    with dida_kernels.backend("equation"):
        with dida_kernels.backend("auto"):
            assert op(1) == "cpp 2"
        assert op(1) == "equation 2"
    with pytest.raises(ZeroDivisionError), dida_kernels.backend("equation"):
        raise ZeroDivisionError
    assert op(1) == "cpp 2"


def test_an_unknown_backend_is_an_error_at_once(op):
    with pytest.raises(ValueError, match="unknown backend 'cudnn'"), dida_kernels.backend("cudnn"):
        pass
    with pytest.raises(ValueError, match="double: no backend 'cudnn' can be added"):
        op.implement("cudnn")


def test_the_equation_cannot_be_replaced(op):
    with pytest.raises(ValueError, match="double: no backend 'equation' can be added"):
        op.implement("equation")


def test_the_reference_is_made_of_equations_all_the_way(op):
    op.implement("chunked")(lambda x: "chunked")

    @dispatch.op(check=lambda x: None)
    def around(x: float) -> str:
        return f"around {op(x)}"

    assert op(-1) == "chunked"
    assert around(1) == "around cpp 2"
    with dida_kernels.backend("equation"):
        assert around(1) == "around equation 2"
    assert around.reference(1) == "around equation 2"
    with dida_kernels.backend("cpp"):
        assert around.reference(1) == "around equation 2"


def test_an_op_carries_the_equation_s_name_and_docstring(op):
    assert (op.name, op.__name__, op.__doc__) == ("double", "double", "The equation's docstring.")


def in_another_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_block_holds_in_its_own_thread_only(op):
    def inside() -> str:
        with dida_kernels.backend("cpp"):
            return op(1) + in_another_thread(lambda: op(1))

    op.implement("cuda")(lambda x: "cuda")
    assert inside() == "cpp 2cuda"
    with dida_kernels.backend("equation"):
        assert in_another_thread(inside) == "cpp 2cuda"
        assert op(1) == "equation 2"


@pytest.fixture
def tensor_op(op) -> Op:
    """Something that torch.compile can trace: the backends differ in what they return."""

    @dispatch.op(check=lambda x: None)
    def added(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    added.implement("chunked")(lambda x: x + 2)
    added.implement("cpp")(lambda x: x + 3)
    return added


def test_compiled_code_obeys_the_block_that_it_is_called_in(tensor_op):
    """Compiled once, in one graph; the guards see the block of the calling thread."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: tensor_op(x), fullgraph=True, backend="eager")

    def at_zero() -> float:
        return compiled(torch.zeros(())).item()

    assert at_zero() == 3
    with dida_kernels.backend("equation"):
        assert at_zero() == 1
        assert in_another_thread(at_zero) == 3
    with dida_kernels.backend("chunked"):
        assert at_zero() == 2
    assert at_zero() == 3


def test_a_block_can_be_compiled(tensor_op):
    def function(x: torch.Tensor) -> torch.Tensor:
        with dida_kernels.backend("chunked"):
            inside = tensor_op(x)
        return 10 * inside + tensor_op(x)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())).item() == 23
    with dida_kernels.backend("equation"):
        assert compiled(torch.zeros(())).item() == 21
    assert in_another_thread(lambda: compiled(torch.zeros(())).item()) == 23


def test_the_switch_chooses_the_equation_for_a_whole_run(op, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "equation")
    assert op(1) == "equation 2"
    with dida_kernels.backend("cpp"):  # the block is closer than the environment
        assert op(1) == "cpp 2"
    monkeypatch.setenv(dispatch.SWITCH, "auto")
    assert op(1) == "cpp 2"


@pytest.mark.parametrize("value", ["triton", "cpp", "torch", ""])
def test_a_switch_that_no_run_can_honour_is_refused(value, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, value)
    with pytest.raises(ValueError, match=f"{dispatch.SWITCH}={value!r}"):
        dispatch.check_switch()
    for fine in ("auto", "equation"):
        monkeypatch.setenv(dispatch.SWITCH, fine)
        dispatch.check_switch()


def test_the_switch_is_checked_at_import():
    environment = os.environ | {dispatch.SWITCH: "triton"}
    command = [sys.executable, "-c", "import dida_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{dispatch.SWITCH}='triton'" in done.stderr


def test_public_ops_are_the_registered_ones():
    assert set(dida_kernels.OPS) <= set(dida_kernels.__all__)
    assert all(getattr(dida_kernels, name) is op for name, op in dida_kernels.OPS.items())


def test_triton_in_the_interpreter_is_never_a_free_choice():
    if torch.cuda.is_available():
        pytest.skip("Triton kernels compile here")
    label_BHW = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert dida_kernels.boundary_mask.why_not("triton", label_BHW, classes=2) is not None
