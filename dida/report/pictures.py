"""Pictures of a report: a street, its truth, what each run says of it, and where two of them differ."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dida.batch import IGNORE
from dida.data.classes import ClassSet
from dida.data.domains import LabelledDomain
from dida.data.image_file import read_image, read_label
from dida.report.gather import Story, size_of

LONGEST = 480  # pixels of a picture's longer side in the report
_QUALITY = 80  # of JPEG

# What the map of differences says, by its colour (Okabe and Ito: told apart with any kind of colour vision).
GAINED, LOST, OTHERWISE = (0, 114, 178), (213, 94, 0), (204, 121, 167)


class Drawn(NamedTuple):
    """One picture with its caption."""

    caption: str
    source: str  # a data: address


class Shown(NamedTuple):
    """A picture of the domain and all that is drawn of it."""

    name: str  # of its file
    tiles: list[Drawn]


def draw_pictures(story: Story, indices: Iterable[int]) -> Iterator[tuple[int, Shown]]:
    """The tiles of every picture in `indices`, each drawn once. Raises ImageFileError."""
    with ExitStack() as open_labellers:
        ask = [
            open_labellers.enter_context(run.labeller(story.network, size_of(run), run.inference))
            for run in (subject.trained for subject in story.subjects)
        ]
        for index in dict.fromkeys(indices):
            picture = read_image(story.domain.images[index])
            said = [label(picture) for label in ask]
            yield index, Shown(story.domain.images[index].name, list(_tiles(story, index, picture, said)))


def _tiles(story: Story, index: int, picture: np.ndarray, said: Sequence[np.ndarray]) -> Iterator[Drawn]:
    class_set, names = story.class_set, story.names
    truth = _truth(story, index)
    yield Drawn("picture", _photo(picture))
    if truth is not None:
        yield Drawn("truth", _label_map(truth, class_set))
    for name, train_ids in zip(names[1:], said[1:], strict=True):
        yield Drawn(f"before: {name}", _label_map(train_ids, class_set))
    yield Drawn(f"after: {names[0]}" if len(names) > 1 else names[0], _label_map(said[0], class_set))
    for name, train_ids in zip(names[1:], said[1:], strict=True):
        yield Drawn(f"{names[0]} against {name}", _photo(differences(picture, train_ids, said[0], truth)))
    if len(names) == 1 and truth is not None:
        yield Drawn("where it is wrong", _photo(mistakes(picture, said[0], truth)))


def _truth(story: Story, index: int) -> np.ndarray | None:
    domain = story.domain
    if not isinstance(domain, LabelledDomain):
        return None
    return read_label(domain.labels[index], domain.encoding(index))


def differences(picture: np.ndarray, before: np.ndarray, after: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """[H, W, 3] RGB: the picture, pale, and on it where two label maps [H, W] differ: GAINED where only `after` is
    right, LOST where only `before` is, OTHERWISE where neither is or it is not known."""
    differ = before != after
    drawn = _pale(picture)
    drawn[differ] = OTHERWISE
    if truth is not None:
        drawn[differ & (after == truth)] = GAINED
        drawn[differ & (before == truth)] = LOST
    return drawn


def mistakes(picture: np.ndarray, said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[H, W, 3] RGB: the picture, pale, and on it LOST where a labelled pixel is wrong."""
    drawn = _pale(picture)
    drawn[(said != truth) & (truth != IGNORE)] = LOST
    return drawn


def _pale(picture: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.repeat((170 + grey // 3)[:, :, None], 3, axis=2).astype(np.uint8)


def _photo(pixels: np.ndarray) -> str:
    factor = _factor(pixels)
    if factor < 1:
        pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return _address(Image.fromarray(pixels), "JPEG", quality=_QUALITY, optimize=True)


def _label_map(train_ids: np.ndarray, class_set: ClassSet) -> str:
    """Colours of classes are never mixed, so no pixel shows a class that was not said. 255 is black."""
    factor = _factor(train_ids)
    if factor < 1:
        train_ids = cv2.resize(train_ids, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    image = Image.fromarray(np.where(train_ids == IGNORE, len(class_set), train_ids).astype(np.uint8), mode="L")
    image.putpalette([*class_set.palette.flatten().tolist(), 0, 0, 0])
    return _address(image, "PNG", optimize=True)


def _factor(pixels: np.ndarray) -> float:
    return LONGEST / max(pixels.shape[:2])


def _address(image: Image.Image, form: str, **how: object) -> str:
    file = io.BytesIO()
    image.save(file, form, **how)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
