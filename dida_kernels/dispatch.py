"""One operation, several backends: which one runs is decided per call, by the inputs, and never by the caller.

An `Op` is an equation (plain PyTorch, see equations.py) plus the faster implementations that agree with it. Without a
wish, the first backend of `ORDER` that accepts the inputs runs; the last, the equation, accepts them all. Inside
`with backend("triton"):` that backend must run; if it cannot, the call raises and says why. There is no fallback after
an implementation was chosen.
"""

import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

ORDER = ("cuda", "triton", "cpp", "chunked", "equation")
SWITCH = "DIDA_BACKEND"
SWITCHES = ("auto", "equation")  # what every op can honour for a whole run
NOT_IMPLEMENTED = "not implemented for this op"

OPS: dict[str, "Op"] = {}
_missing: dict[str, str] = {}  # backend -> why none of its implementations could be loaded


class _Forced(threading.local):
    """The `with backend(...)` blocks around this line, each thread its own. torch.compile can guard on the list."""

    def __init__(self) -> None:
        self.names: list[str] = []


_forced = _Forced()


class Implementation(NamedTuple):
    run: Callable[..., Any]
    refuses: Callable[..., str | None]  # called with the op's arguments: the reason not to run, or None


def _never_refuses(*args: Any, **options: Any) -> None:
    return None


class Op:
    """A function of tensors with a plain-PyTorch truth (`equation`) and zero or more faster backends.

    `check` is the one door of all backends: it raises TypeError or ValueError for arguments that no backend could mean.
    """

    def __init__(self, equation: Callable[..., Any], check: Callable[..., None]):
        functools.update_wrapper(self, equation)
        self.name = equation.__name__
        self.equation = equation
        self.check = check
        parameters = list(enumerate(inspect.signature(equation).parameters.values()))
        self._tensors = [(place, p.name) for place, p in parameters if p.annotation is Tensor]
        self._optional = [p.name for _, p in parameters if p.annotation == Tensor | None]  # by name only
        self.backends: dict[str, Implementation] = {"equation": Implementation(equation, _never_refuses)}
        OPS[self.name] = self

    def __repr__(self) -> str:
        """What `help` shows of an op above its equation's words."""
        return f"<op {self.name}{inspect.signature(self.equation)}>"

    def implement(
        self, name: str, refuses: Callable[..., str | None] = _never_refuses
    ) -> Callable[[Callable], Callable]:
        """Decorator: add a faster backend. Raises ValueError for an unknown one; the equation is there already."""
        if name not in ORDER[:-1]:
            raise ValueError(f"{self.name}: no backend {name!r} can be added; choose from {ORDER[:-1]}")

        def add(run: Callable[..., Any]) -> Callable[..., Any]:
            self.backends[name] = Implementation(run, refuses)
            return run

        return add

    def reference(self, *args: Any, **options: Any) -> Any:
        """The equation itself, with every op that it calls also in its equation form."""
        with backend("equation"):
            return self(*args, **options)

    def why_not(self, name: str, *args: Any, **options: Any) -> str | None:
        """The reason why backend `name` would not run on these inputs, or None if it would."""
        return self.why_missing(name) or self.backends[name].refuses(*args, **options)

    def why_missing(self, name: str) -> str | None:
        """The reason why this op has no backend `name` on this machine, or None if it has."""
        return None if name in self.backends else _missing.get(name, NOT_IMPLEMENTED)

    def choose(self, *args: Any, **options: Any) -> str:
        """The backend that runs on these inputs. Raises RuntimeError where one is forced that cannot."""
        wish = asked_for()
        for name in ORDER if wish == "auto" else (wish,):
            reason = self.why_not(name, *args, **options)
            if reason is None:
                return name
        raise RuntimeError(f"{self.name}: backend {wish!r} was asked for but cannot run: {reason}")

    def __call__(self, *args: Any, **options: Any) -> Any:
        for place, name in self._tensors:
            _require_tensor(f"{self.name}, {name}", args[place] if place < len(args) else options.get(name))
        for name in self._optional:
            if options.get(name) is not None:
                _require_tensor(f"{self.name}, {name}", options[name])
        self.check(*args, **options)
        return self.backends[self.choose(*args, **options)].run(*args, **options)


def _require_tensor(name: str, value: Any) -> None:
    """Raise TypeError for what is no tensor, or one whose values do not lie in order; a check may ask for its shape."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")


def op(check: Callable[..., None]) -> Callable[[Callable[..., Any]], Op]:
    """Decorator: make an equation dispatchable behind `check`, which takes the same arguments."""
    return functools.partial(Op, check=check)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend for every op called inside, by this thread (tests, benches, debugging).

    "auto" restores the free choice; "equation" holds for the ops that an equation calls, too. What a backward computes
    again on another thread (checkpointing on a GPU) is outside of the block. Raises ValueError for an unknown name. The
    op itself raises RuntimeError where the backend cannot run.
    """
    if name not in (*ORDER, "auto"):
        raise ValueError(f"unknown backend {name!r}; choose from {('auto', *ORDER)}")
    _forced.names.append(name)
    try:
        yield
    finally:
        _forced.names.pop()


def asked_for() -> str:
    """The backend that must run here, or "auto": the innermost `backend` block of this thread, else DIDA_BACKEND."""
    return _forced.names[-1] if _forced.names else os.environ.get(SWITCH, "auto")


def absent(name: str, why: str) -> None:
    """Record why a whole backend could not be loaded: `Op.why_not` will say so."""
    _missing[name] = why


def check_switch() -> None:
    """Refuse a DIDA_BACKEND that not every op could honour. Called once, at import."""
    if os.environ.get(SWITCH, "auto") not in SWITCHES:
        raise ValueError(
            f"{SWITCH}={os.environ[SWITCH]!r}: only {' and '.join(map(repr, SWITCHES))} hold for a whole run; "
            "force another backend around one call with dida_kernels.backend(...)"
        )
