"""What the options of a program are, read off the dataclass that has them."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any


def option_types(kind: type) -> Iterator[tuple[str, Any]]:
    """Name and type, with its range, of every field of a dataclass and of those in it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        yield from option_types(hint) if dataclasses.is_dataclass(hint) else [(field.name, hint)]
