"""The frozen benchmark: which pictures there are, in which files they lie, and the hash that proves them.

    <root>/toy/gta/images/00001.png                 RGB, 400 source pictures
    <root>/toy/gta/labels/00001.png                 palette, the index is the Cityscapes label id
    <root>/toy/gta-val/{images,labels}/             60 more: can the network learn the source at all?
    <root>/toy/cityscapes/leftImg8bit/{train,val,test}/CITY/CITY_000000_000019_leftImg8bit.png
    <root>/toy/cityscapes/gtFine/{val,test}/CITY/CITY_000000_000019_gtFine_labelIds.png    8-bit grey
    <root>/toy/cityscapes-oracle/                   the same pictures again, and gtFine/train as well
    <root>/toy/{night,fog}{,-oracle}/               the target's streets in other weather, likewise: drawn on request

There is no cityscapes/gtFine/train: a run that ends has not read the target's training labels, for there are
none to read. The oracle, the upper bound that trains on them, finds them under another name, so that nothing
can reach them without asking for the oracle.
"""

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dida.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_TO_TRAIN
from dida.data.image_file import Encoding, ImageFileError, read_ids, read_image
from dida.data.sweep import sweep

from .camera import photograph
from .canvas import Canvas, Look
from .dice import Dice
from .scene import hood, street
from .weather import WEATHER, Weather

# The dial, frozen. Source-only training (which has no colour augmentation) falls about 30 points of mIoU behind that on
# the target's own labels here; where it is set higher the gap no longer tells methods apart.
SHIFT = 0.6
SEED = 2023  # frozen too

# Whoever changes one pixel makes another benchmark, and every toy number measured before is void.
DIGEST: dict[Weather, str] = {
    "day": "4c89005a1faf6742d2174c8c506b2dba0b69fe20687bafda2a2892b9969796a5",
    "night": "9b80f531851b0b6cd2fe88a7435dc75c958bc6dac350f6a8b5224a82ebaafa07",
    "fog": "88f0af3f077f5b4760083fff92cd17eea6d19ead1edfb37f7cd7ce739ed6c940",
}


class Counts(NamedTuple):
    """Pictures per split. The defaults are the benchmark; anything else is a miniature for tests."""

    source: int = 400
    source_val: int = 60
    target: int = 400
    val: int = 100
    test: int = 100


BENCHMARK = Counts()


class Outcome(NamedTuple):
    """What `generate` did."""

    folder: Path  # <root>/toy
    digest: str  # sha256 over the pictures, see `fingerprint`
    pictures: int  # in the set
    written: int  # of these, now; the others were there and right


@dataclass(frozen=True)
class Picture:
    """One scene and the files that hold it."""

    split: int  # part of the seed: no two splits share a scene, nor do a split's scenes depend on its size
    index: int
    shift: float
    images: tuple[str, ...]  # relative to the toy folder; several are identical copies
    labels: tuple[str, ...]
    weather: Weather = "day"


def planned_pictures(counts: Counts, weather: Weather = "day") -> list[Picture]:
    """All pictures in the order of the fingerprint: both domains by day, the target alone in other weather."""
    found = []
    for split, folder, count in ((0, "gta", counts.source), (1, "gta-val", counts.source_val)):
        for i in range(count if weather == "day" else 0):
            name = f"{i + 1:05d}.png"
            found.append(Picture(split, i, 0.0, (f"{folder}/images/{name}",), (f"{folder}/labels/{name}",)))
    target = (
        (2, "train", "toyburg", counts.target),
        (3, "val", "toyhaven", counts.val),
        (4, "test", "toymouth", counts.test),
    )
    # Scenes of a split are seeded alike in any weather: they are the same streets.
    home = "cityscapes" if weather == "day" else weather
    for split, part, city, count in target:
        for i in range(count):
            name = f"{part}/{city}/{city}_{i:06d}_000019"
            images, labels = (
                tuple(f"{folder}/{kind}/{name}_{ending}.png" for folder in (home, f"{home}-oracle"))
                for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"))
            )
            found.append(Picture(split, i, SHIFT, images, labels[1:] if part == "train" else labels, weather))
    return found


def draw_picture(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 RGB [H, W, 3], and its label, uint8 Cityscapes label ids [H, W]."""
    canvas = Canvas.blank(Look(picture.shift), Dice(SEED, picture.split, picture.index))
    street(canvas)
    if picture.shift > 0:
        hood(canvas)
    if picture.weather in WEATHER:
        # Dice of its own, so that the camera's draws are those of the day.
        WEATHER[picture.weather](canvas, Dice(SEED, picture.split, picture.index, *picture.weather.encode()))
    return photograph(canvas, sun=picture.weather == "day"), canvas.label


def digest(image: np.ndarray, label: np.ndarray) -> bytes:
    """sha256 of a picture's pixels and then its label ids; not of the files, whose bytes vary with zlib."""
    return hashlib.sha256(image.tobytes() + label.tobytes()).digest()


def fingerprint(digests: Iterable[bytes]) -> str:
    """sha256 over the digests of all pictures in order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def generate(
    root: Path,
    *,
    weather: Weather = "day",
    jobs: int = 1,
    counts: Counts = BENCHMARK,
) -> Outcome:
    """Make <root>/toy hold the benchmark: what is there and right stays, what is missing or wrong is written.

    `weather` is the part that is drawn: both domains by day, or the target again at night or in fog. `jobs` processes
    draw; the pixels do not depend on it.

    Raises ValueError if the folder holds pictures of some other set: they would be trained on unnoticed.
    Raises RuntimeError if this machine draws other pixels than the frozen ones, and as `sweep`.
    """
    toy, wanted = Path(root) / "toy", planned_pictures(counts, weather)
    _refuse_strays(toy, [picture for name in DIGEST for picture in planned_pictures(counts, name)])
    frozen = counts == BENCHMARK
    if frozen and fingerprint(_digest_on_disk(toy, picture) for picture in wanted) == DIGEST[weather]:
        return Outcome(toy, DIGEST[weather], len(wanted), written=0)
    settled = sweep(partial(_settle, toy), wanted, title="drawing", workers=jobs if jobs > 1 else 0)
    found = fingerprint(one for one, _ in settled)
    if frozen and found != DIGEST[weather]:
        raise RuntimeError(
            f"the pictures in {toy} have the hash {found}, the benchmark has {DIGEST[weather]}: toy numbers from them "
            "compare with nobody else's"
        )
    return Outcome(toy, found, len(wanted), written=sum(is_new for _, is_new in settled))


def _digest_on_disk(toy: Path, picture: Picture) -> bytes:
    """The digest of what the files hold; empty if one is missing or damaged, or if copies differ."""
    if not all((toy / name).is_file() for name in picture.images + picture.labels):
        return b""
    try:
        images = [read_image(toy / name) for name in picture.images]
        labels = [read_ids(toy / name, Encoding(CITYSCAPES_TO_TRAIN)) for name in picture.labels]
    except ImageFileError:
        return b""
    digests = {digest(image, label) for image in images for label in labels}
    return digests.pop() if len(digests) == 1 else b""


def _settle(toy: Path, picture: Picture) -> tuple[bytes, bool]:
    """Draw a picture and see to it that its files hold it. Returns its digest and whether it was written."""
    image, label = draw_picture(picture)
    drawn = digest(image, label)
    if _digest_on_disk(toy, picture) == drawn:
        return drawn, False
    for name in picture.images:
        _save(Image.fromarray(image), toy / name)
    for name in picture.labels:
        _save(_palette_image(label) if name.startswith("gta") else Image.fromarray(label), toy / name)
    if _digest_on_disk(toy, picture) != drawn:
        raise OSError(f"{toy / picture.images[0]} or its label or copy does not hold what was written")
    return drawn, True


def _palette_image(label: np.ndarray) -> Image.Image:
    """GTA5's encoding: a label id per pixel, and a palette so that viewers show the class colours."""
    colours = np.zeros((256, 3), np.uint8)
    colours[list(CITYSCAPES_CLASSES.label_ids)] = CITYSCAPES_CLASSES.palette
    image = Image.fromarray(label).convert("P")
    image.putpalette(colours.tobytes())
    return image


def _save(image: Image.Image, path: Path) -> None:
    """Under its name there is a whole file or none, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(buffer.getvalue())
    part.replace(path)


def _refuse_strays(toy: Path, known_pictures: list[Picture]) -> None:
    """Pictures that are not of this set, or target-train labels, would silently become part of a run."""
    known = {name for picture in known_pictures for name in picture.images + picture.labels}
    for path in sorted(toy.rglob("*.png")):
        # A converter may have put a map of train ids beside a label of ours.
        name = path.relative_to(toy).as_posix()
        name = name.replace("_gtFine_labelTrainIds", "_gtFine_labelIds").replace("_labelTrainIds", "")
        if name not in known:
            raise ValueError(f"{path} is not of this set: remove {toy} or choose another data root")
