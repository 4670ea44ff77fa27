"""One operation, several backends: which one runs is decided per call, by the inputs, and never by the caller.

An `Op` is an equation (plain PyTorch, see equations.py) plus the faster implementations that agree with it. Without a
wish, the first backend of `ORDER` that accepts the inputs runs. Inside `with backend("triton"):` that backend must run;
if it cannot, the call raises and says why. There is no fallback after an implementation was chosen.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

ORDER = ("cuda", "triton", "cpp", "torch")
SWITCH = "DIDA_BACKEND"  # auto | torch: the only two that every op can honour for a whole run

OPS: dict[str, "Op"] = {}
_missing: dict[str, str] = {}  # backend -> why none of its implementations could be loaded
_forced: list[str] = []  # a stack; a plain list because torch.compile can guard on it


class Implementation(NamedTuple):
    run: Callable[..., Any]
    refuses: Callable[..., str | None]  # called with the op's arguments: the reason not to run, or None


def _never_refuses(*args: Any, **options: Any) -> None:
    return None


class Op:
    """A function of tensors with a plain-PyTorch truth (`reference`) and zero or more faster backends.

    `check` is the one door of all backends: it raises TypeError or ValueError for arguments that no backend could mean.
    """

    def __init__(self, equation: Callable[..., Any], check: Callable[..., None]):
        functools.update_wrapper(self, equation)
        self.name = equation.__name__
        self.equation = equation
        self.check = check
        self.backends: dict[str, Implementation] = {"torch": Implementation(equation, _never_refuses)}
        OPS[self.name] = self

    def implement(
        self, name: str, refuses: Callable[..., str | None] = _never_refuses
    ) -> Callable[[Callable], Callable]:
        """Decorator: add a backend. Under "torch" it replaces the equation as what runs, not as what is true."""
        if name not in ORDER:
            raise ValueError(f"{self.name}: unknown backend {name!r}; choose from {ORDER}")

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
        if name not in self.backends:
            return _missing.get(name, "not implemented for this op")
        return self.backends[name].refuses(*args, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.check(*args, **options)
        forced = _forced[-1] if _forced else ("torch" if os.environ.get(SWITCH) == "torch" else "auto")
        if forced == "equation":
            return self.equation(*args, **options)
        if forced == "auto":
            for name in ORDER:
                if self.why_not(name, *args, **options) is None:
                    return self.backends[name].run(*args, **options)
        reason = self.why_not(forced, *args, **options)
        if reason is not None:
            raise RuntimeError(f"{self.name}: backend {forced!r} was asked for but cannot run: {reason}")
        return self.backends[forced].run(*args, **options)


def op(check: Callable[..., None]) -> Callable[[Callable[..., Any]], Op]:
    """Decorator: make an equation dispatchable behind `check`, which takes the same arguments."""
    return functools.partial(Op, check=check)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend for every op called inside (tests, benches, debugging). "auto" restores the free choice.

    Raises ValueError for an unknown name. The op itself raises RuntimeError where the backend cannot run.
    """
    if name not in (*ORDER, "auto", "equation"):
        raise ValueError(f"unknown backend {name!r}; choose from {('auto', 'equation', *ORDER)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def absent(name: str, why: str) -> None:
    """Record why a whole backend could not be loaded, for `report` and for the error of a forced call."""
    _missing[name] = why


def report() -> dict[str, dict[str, str]]:
    """For each op and backend "yes", or the reason why it is not there on this machine."""
    return {
        name: {b: "yes" if b in o.backends else _missing.get(b, "not implemented for this op") for b in ORDER}
        for name, o in sorted(OPS.items())
    }


def check_switch() -> None:
    """Refuse a DIDA_BACKEND that not every op could honour. Called once, at import."""
    if os.environ.get(SWITCH, "auto") not in ("auto", "torch"):
        raise ValueError(
            f"{SWITCH}={os.environ[SWITCH]!r}: only 'auto' and 'torch' hold for a whole run; "
            "force another backend around one call with dida_kernels.backend(...)"
        )
