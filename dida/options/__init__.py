"""What an option may be, and how options are read: ranges, saved values, command lines.

An option is a field of a frozen dataclass. A number carries its range in its type, `steps: Annotated[int, AtLeast(1)]`,
and `check_values` holds every field of any such dataclass, nested ones included, to its type, choices and range: one
place for command lines, saved configs, scripts and benches. Only the standard library and tyro are imported here, so
that `--help` answers at once.
"""

import ast
import dataclasses
import inspect
import os
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

Options = TypeVar("Options")
NARROWEST = 40  # columns of a terminal that help is written for
LARGEST = 1e18  # that a number without an end of its own may be: the product of two is finite in single precision


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, the ends included unless they are open."""

    low: float
    high: float = LARGEST
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below  # NaN is neither, and no infinity is both

    def __str__(self) -> str:
        if self.high == LARGEST:
            return f"a number {'above' if self.low_open else 'of at least'} {self.low:g} and at most {LARGEST:g}"
        return f"a number in {'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


def AtLeast(low: float) -> Range:
    """Numbers from `low` up to LARGEST."""
    return Range(low)


def Above(low: float) -> Range:
    """Numbers above `low` up to LARGEST."""
    return Range(low, low_open=True)


SHARE = Range(0, 1)
DIVISOR = AtLeast(1 / LARGEST)  # what others are divided by
COUNT = Range(1, 10**9)  # of steps, slots, pixels: at least one, and what an index of 32 bits can count
COUNT_OR_NONE = Range(0, 10**9)


def flag(name: str) -> str:
    """A field's name as the command line has it."""
    return "--" + name.replace("_", "-")


def check_values(options: Any) -> None:
    """Hold every field of a dataclass, nested ones included, to its type, its choices and its range.

    Raises ValueError that names the option, what it may be and what it is.
    """
    for name, value, kind in _fields(options):
        if dataclasses.is_dataclass(value):
            check_values(value)
        elif problem := _problem(value, kind):
            raise ValueError(f"{flag(name)}: expected {problem}, got {value!r}")


def _fields(options: Any) -> Iterator[tuple[str, Any, Any]]:
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        yield field.name, getattr(options, field.name), hints[field.name]


def _problem(value: Any, kind: Any) -> str | None:
    """What was expected instead of `value`, or None if it is what its field's type says."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        ranges = [part for part in arguments[1:] if isinstance(part, Range)]
        problem = _problem(value, arguments[0])
        return problem or next((str(r) for r in ranges if value is not None and not r.holds(value)), None)
    if origin is Literal:
        return None if value in arguments else f"one of {', '.join(map(str, arguments))}"
    if origin in (types.UnionType, typing.Union):
        problems = [_problem(value, part) for part in arguments]
        return None if None in problems else problems[0]
    if kind is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if kind is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if origin is tuple:
        if not isinstance(value, tuple):
            return "several values"
        return next((found for part in value if (found := _problem(part, arguments[0]))), None)
    if kind is types.NoneType:
        return None if value is None else "nothing"
    names = {bool: "true or false", str: "text", Path: "a path"}
    return None if isinstance(value, kind) else names.get(kind, kind.__name__)


def parse_size(text: str, *, option: str) -> tuple[int, int]:
    """ "1280x720" -> (1280, 720), width first. Raises ValueError that names the option."""
    width, x, height = text.partition("x")
    if not (x and _is_side(width) and _is_side(height)):
        raise ValueError(
            f"{option}: expected WIDTHxHEIGHT in pixels such as 1280x720, each at most {LARGEST_SIDE}, got {text!r}"
        )
    return int(width), int(height)


LARGEST_SIDE = 1 << 16  # of a picture, in pixels


def _is_side(text: str) -> bool:
    # isdecimal alone would let other scripts' digits through, and a long number is slow to read at all
    return text.isascii() and text.isdecimal() and len(text) < 7 and 0 < int(text) <= LARGEST_SIDE


def given(args: list[str], name: str, default: str) -> str:
    """The value of `--name` in a raw command line, read before the parser runs because it selects the defaults."""
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option.replace("_", "-") == f"--{name}":  # the parser takes both spellings
            default = value if equals else args[i + 1] if i + 1 < len(args) else default
    return default


def read_command_line(kind: type[Options], args: list[str], program: str, default: Options | None = None) -> Options:
    """Parse a command line over `default`, and check what it says.

    An unknown option, a choice that does not exist or a value that nothing could mean ends the program with a message.
    `kind.check()`, where it has one, raises ValueError for values that do not go together. --help shows the options
    that `kind.EVERYDAY` names, if it does, and --help-all all of them.
    """
    if "--help-all" in args:
        args = ["--help"]
    elif hasattr(kind, "EVERYDAY") and ("--help" in args or "-h" in args):
        print(everyday_help(kind, program, default))
        sys.exit(0)
    import tyro  # takes a while, and only a command line needs it

    columns = shutil.get_terminal_size().columns
    os.environ["COLUMNS"] = str(max(columns, NARROWEST))  # where a column is a letter wide, tyro writes for ever

    start: dict[str, Any] = {} if default is None else {"default": default}
    options = tyro.cli(kind, prog=program, args=args, config=(tyro.conf.OmitArgPrefixes,), **start)
    try:
        check_values(options)
        if hasattr(options, "check"):
            options.check()
    except ValueError as error:
        sys.exit(f"{program}: {error}")
    return options


def everyday_help(kind: type[Any], program: str, default: Any = None) -> str:
    """The options that `kind.EVERYDAY` names, in its order, with what is said of them below their fields."""
    known = {option.name: option for option in _described(kind, default)}
    chosen = [known[name] for name in kind.EVERYDAY]
    usage = " ".join([program, *(option.shown for option in chosen if option.required), "[OPTIONS]"])
    lines = [f"usage: {usage}", "", *_paragraphs(kind.__doc__ or ""), ""]
    for option in chosen:
        lines += [f"  {option.shown}", _filled(option.said, indent=8)]
    lines += [f"  --help-all{'':12}these and the other {len(known) - len(chosen)} options"]
    return "\n".join(lines)


class _Described(NamedTuple):
    name: str
    shown: str  # as it is typed
    said: str
    required: bool


def _described(kind: type[Any], default: Any) -> Iterator[_Described]:
    """Every field of a dataclass, those of nested ones in their place."""
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = {name: text for part in kind.__mro__ if dataclasses.is_dataclass(part) for name, text in _texts(part)}
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        value = getattr(default, field.name, field.default)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _described(hints[field.name], None if default is None else value)
            continue
        said = texts[field.name] + ("" if required or value is None or value is False else f" (default: {value})")
        form = _form(hints[field.name])
        shown = field.name.upper() if required else f"{flag(field.name)} {form}".rstrip()
        yield _Described(field.name, shown, said, required)


def _texts(kind: type[Any]) -> Iterator[tuple[str, str]]:
    """What is said below each field of a dataclass itself, not of those that it inherits."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            yield field.target.id, " ".join(str(below.value.value).split())


def _form(kind: Any) -> str:
    """What a value of a type looks like."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Annotated, types.UnionType, typing.Union):
        return _form(arguments[0])
    return {bool: "", int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")


def _paragraphs(text: str) -> Iterator[str]:
    return (_filled(paragraph) for paragraph in inspect.cleandoc(text).split("\n\n"))


def _filled(text: str, indent: int = 0) -> str:
    space = " " * indent
    return textwrap.fill(text, 100, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)
