"""classes.json of a `folder:` domain: which classes its label maps hold, and how they spell them.

Two forms, both in the order in which the classes are counted (train ids 0, 1, ...):

    {"10": "soil", "20": "wheat", "0": "ignore"}             raw id -> name; several ids may have one name
    [{"id": 10, "name": "soil", "color": [120, 80, 40], "thing": false}, ...]

Of an entry of the second form, "name" is needed, and "id" or "color" ("#785028" will do as well). With colours, label
maps that are drawn in them are read; without ids, these are the only ones, and label maps that are written hold the
place in the list. Names are any; those of Cityscapes bring its colours and know which are things, others take the
colours of `classes.distinct_colours` in order and are stuff unless "thing" is true. "ignore" is no class.

A number in place of a name is a train id of Cityscapes (255: ignore).
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from dida.batch import IGNORE
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet, distinct_colours, id_map, plain
from dida.data.image_file import NO_COLOUR, Encoding

_IGNORE_NAMES = {"ignore"}
_LARGEST_ID = 0xFFFF


class Declared(NamedTuple):
    """What a classes.json says."""

    class_set: ClassSet
    raw: Encoding


class _Entry(NamedTuple):
    raw: int  # id in label maps; where it is not given, the place in the list
    name: str | None  # None: no class
    colour: tuple[int, int, int] | None = None
    thing: bool | None = None  # None: as Cityscapes has it, where it knows the name
    has_id: bool = True


def read_class_file(path: Path) -> Declared:
    """Raises FileNotFoundError where there is none, ValueError that names the file and the entry at fault."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} is missing: it maps each raw label id to a class, e.g. {{"7": "road", "0": "ignore"}}'
        )
    try:
        return _declared(_entries(_json(path.read_bytes())))
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path}: {what}") from error


# ---- the two forms -------------------------------------------------------------------------------------------------


class _Object(list):
    """The (key, value) pairs of a JSON object, doubled keys and all: json would silently keep the last."""


def _json(content: bytes) -> Any:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:  # with its mark, or without one
        raise ValueError("written in UTF-16 or UTF-32; save it as UTF-8")
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_Object)  # sig: with a byte order mark, or not
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error


def _entries(values: Any) -> list[_Entry]:
    if isinstance(values, _Object):
        entries = [_of_pair(key, value) for key, value in values]
        _refuse_numbers_beside_other_names(values)
    elif isinstance(values, list):
        entries = [_of_object(place, value) for place, value in enumerate(values)]
    else:
        raise ValueError('an object {"raw id": class} or a list of {"id", "name", "color", "thing"} is needed')
    _refuse_doubles(entries)
    return entries


def _of_pair(key: str, value: Any) -> _Entry:
    if isinstance(value, int) and not isinstance(value, bool) and value in (*range(len(CITYSCAPES_CLASSES)), IGNORE):
        value = "ignore" if value == IGNORE else CITYSCAPES_CLASSES.names[value]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"entry {key!r}: {value!r} is neither the name of a class nor 'ignore' nor a train id of Cityscapes "
            f"(0 to {len(CITYSCAPES_CLASSES) - 1}, or 255)"
        )
    return _Entry(_raw_id(key, f"entry {key!r}"), _name(value))


def _refuse_numbers_beside_other_names(values: _Object) -> None:
    numbers = [key for key, value in values if isinstance(value, int)]
    known = {plain(name) for name in CITYSCAPES_CLASSES.names} | _IGNORE_NAMES
    others = [value for _, value in values if isinstance(value, str) and plain(value) not in known]
    if numbers and others:
        raise ValueError(
            f"entry {numbers[0]!r}: a number is a train id of Cityscapes, and {others[0]!r} is none of its classes; "
            "give every class by its name"
        )


def _of_object(place: int, value: Any) -> _Entry:
    at = f"entry {place}"
    fields = dict(value) if isinstance(value, _Object) else None
    if fields is None or len(fields) != len(value):
        raise ValueError(f'{at}: expected one object with "id", "name", "color" and "thing", each once')
    if unknown := set(fields) - {"id", "name", "color", "thing"}:
        raise ValueError(f"{at}: {sorted(unknown)[0]!r} is none of id, name, color, thing")
    name = fields.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{at}: \"name\" must be the name of a class or 'ignore', not {name!r}")
    if "id" not in fields and "color" not in fields:
        raise ValueError(f'{at} ({name}): "id" or "color" must say how label maps spell it')
    thing = fields.get("thing")
    if thing is not None and not isinstance(thing, bool):
        raise ValueError(f'{at} ({name}): "thing" must be true or false, not {thing!r}')
    raw = _raw_id(fields["id"], at) if "id" in fields else place
    colour = _colour(fields["color"], f"{at} ({name})") if "color" in fields else None
    return _Entry(raw, _name(name), colour, thing, "id" in fields)


def _raw_id(value: Any, at: str) -> int:
    """From the text of a key, or from a number."""
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > _LARGEST_ID:
        raise ValueError(f"{at}: a raw id is a number from 0 to {_LARGEST_ID}, not {value!r}")
    return int(text)


def _colour(value: Any, at: str) -> tuple[int, int, int]:
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        r, g, b = bytes.fromhex(value[1:])
        return r, g, b
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        r, g, b = value
        return r, g, b
    raise ValueError(f'{at}: "color" must be [red, green, blue], each 0 to 255, or "#rrggbb", not {value!r}')


def _name(text: str) -> str | None:
    if not text.strip().isprintable():  # tables, curves and pages have a line for each
        raise ValueError(f"{text!r}: the name of a class has characters that cannot be printed, or more than one line")
    return None if plain(text) in _IGNORE_NAMES else text.strip()


def _refuse_doubles(entries: list[_Entry]) -> None:
    ids: dict[int, str | None] = {}
    colours: dict[tuple[int, int, int], str | None] = {}
    for entry in entries:
        if entry.raw in ids:
            names = " and ".join(str(name or "ignore") for name in (ids[entry.raw], entry.name))
            raise ValueError(f"raw id {entry.raw} is there twice, as {names}")
        ids[entry.raw] = entry.name
        if entry.colour is not None and colours.setdefault(entry.colour, entry.name) != entry.name:
            raise ValueError(f"{colours[entry.colour] or 'ignore'} and {entry.name or 'ignore'} have the same colour")


# ---- the class set -------------------------------------------------------------------------------------------------


def _declared(entries: list[_Entry]) -> Declared:
    first: dict[str, _Entry] = {}  # of each class: its id and its colour are those of the set
    for entry in entries:
        if entry.name is not None:
            first.setdefault(entry.name, entry)
    if not first:
        raise ValueError("names no class")
    names = tuple(first)
    class_set = ClassSet(
        names,
        colours=_colours(first),
        things=tuple(c for c, entry in enumerate(first.values()) if _is_thing(entry)),
        label_ids=tuple(entry.raw for entry in first.values()),
    )
    if (
        len(class_set) == len(CITYSCAPES_CLASSES)
        and IGNORE not in class_set.translation(CITYSCAPES_CLASSES)[: len(names)]
    ):
        place = class_set.translation(CITYSCAPES_CLASSES)
        means = {n: tuple(sorted(int(place[c]) for c in ids)) for n, ids in CITYSCAPES_CLASSES.means.items()}
        class_set = ClassSet(names, class_set.colours, class_set.things, class_set.label_ids, means)
    place_of = {name: c for c, name in enumerate(names)}
    ids = id_map(
        "classes.json",
        {entry.raw: place_of[entry.name] for entry in entries if entry.name is not None},
        void=[entry.raw for entry in entries if entry.name is None],
    )
    by_colour_alone = not any(entry.has_id for entry in entries)
    return Declared(class_set, Encoding(ids, colours=_spelling(entries), by_colour_alone=by_colour_alone))


def _is_thing(entry: _Entry) -> bool:
    if entry.thing is not None:
        return entry.thing
    known = _cityscapes_id(entry.name)
    return known is not None and known in CITYSCAPES_CLASSES.things


def _cityscapes_id(name: str | None) -> int | None:
    return next((c for c, other in enumerate(CITYSCAPES_CLASSES.names) if plain(other) == plain(name or "")), None)


def _colours(first: dict[str, _Entry]) -> tuple[tuple[int, int, int], ...]:
    """Given ones, then those of Cityscapes, then distinct ones that no class has yet."""
    of: dict[str, tuple[int, int, int]] = {n: entry.colour for n, entry in first.items() if entry.colour is not None}
    for name in first:
        known = _cityscapes_id(name)
        if name not in of and known is not None:
            of[name] = CITYSCAPES_CLASSES.colours[known]
    free = (colour for colour in distinct_colours() if colour not in set(of.values()))
    return tuple(of[name] if name in of else of.setdefault(name, next(free)) for name in first)


def _spelling(entries: list[_Entry]) -> tuple[tuple[int, int], ...]:
    """(0xRRGGBB, raw id) of each entry with a colour. Raises ValueError where raw ids leave no room for the others."""
    coloured = [entry for entry in entries if entry.colour is not None]
    if coloured and any(entry.raw == NO_COLOUR for entry in entries):
        raise ValueError(f"raw id {NO_COLOUR} stands for colours of no class and cannot be one of the ids")
    return tuple((e.colour[0] << 16 | e.colour[1] << 8 | e.colour[2], e.raw) for e in coloured if e.colour is not None)
