"""Triton's interpreter in half of its time: without what it does thousands of times for nothing."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import FunctionType
from typing import Any

__all__ = ["looking_for_overflow", "quicken"]


def quicken() -> None:
    """Adapt Triton's language to the interpreter once a launch, and not for every call of a function within it; and do
    not look for overflow in sums of integers, which scenes of a few pixels cannot have. To be called once."""
    _adapt_once_a_launch()
    _look_for_overflow(False)


@contextmanager
def looking_for_overflow() -> Iterator[None]:
    """For a scene whose offsets are beyond 32 bits."""
    _look_for_overflow(True)
    try:
        yield
    finally:
        _look_for_overflow(False)


def _look_for_overflow(on: bool) -> None:
    if find_spec("triton") is None:
        return
    from triton.runtime.interpreter import interpreter_builder

    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=on)


def _adapt_once_a_launch() -> None:
    from triton import language
    from triton.runtime import interpreter

    adapt: Callable[[FunctionType], Any] = interpreter._patch_lang
    adapted: set[str] = set()  # within the launch that runs

    @cache
    def modules_of(function: FunctionType) -> frozenset[str]:
        seen = (value for value in function.__globals__.values() if inspect.ismodule(value))
        return frozenset(module.__name__ for module in seen if module in (language, language.core))

    def adapt_once(function: FunctionType) -> Any:
        if adapted >= modules_of(function):
            return None  # a function within a launch, which does nothing with it
        outermost = not adapted
        scope = adapt(function)
        adapted.update(modules_of(function))
        if outermost:
            restore = scope.restore

            def end() -> None:
                adapted.clear()
                restore()

            scope.restore = end
        return scope

    interpreter._patch_lang = adapt_once
