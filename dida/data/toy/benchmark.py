"""The frozen benchmark: which pictures there are, in which files they lie, and the hash that proves them.

    <root>/toy/gta/images/00001.png                 RGB, 400 source pictures
    <root>/toy/gta/labels/00001.png                 palette, the index is the Cityscapes label id
    <root>/toy/gta-val/{images,labels}/             60 more: can the network learn the source at all?
    <root>/toy/cityscapes/leftImg8bit/{train,val,test}/CITY/CITY_000000_000019_leftImg8bit.png
    <root>/toy/cityscapes/gtFine/{val,test}/CITY/CITY_000000_000019_gtFine_labelIds.png    8-bit grey
    <root>/toy/cityscapes-oracle/                   the same pictures again, and gtFine/train as well

There is no cityscapes/gtFine/train: a run that ends has not read the target's training labels, for there are none to
read. The oracle, the upper bound that trains on them, finds them under another name, so that nothing can reach them
without asking for the oracle.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dida.data.classes import CITYSCAPES_TO_TRAIN, PALETTE, TRAIN_TO_CITYSCAPES
from dida.data.image_file import Encoding, ImageFileError, read_ids, read_image

from .camera import photograph
from .canvas import Canvas, Look
from .dice import Dice
from .scene import hood, street

SHIFT = 0.8  # the dial, frozen: what source-only loses is steep in it
SEED = 2023  # frozen too

# Whoever changes one pixel makes another benchmark, and every toy number measured before is void.
DIGEST = "2b8a5aef276ee3b7a3be5fcedf9ea4d026c462061bee92fd276222bc2481a43b"


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


class Picture(NamedTuple):
    """One scene and the files that hold it, relative to the toy folder. Several files hold identical copies."""

    split: int  # part of the seed, so no two splits share a scene and a split's scenes do not depend on its size
    index: int
    shift: float
    images: tuple[str, ...]
    labels: tuple[str, ...]


def pictures(counts: Counts) -> list[Picture]:
    """All pictures in the order of the fingerprint."""
    found = []
    for split, folder, count in ((0, "gta", counts.source), (1, "gta-val", counts.source_val)):
        for i in range(count):
            name = f"{i + 1:05d}.png"
            found.append(Picture(split, i, 0.0, (f"{folder}/images/{name}",), (f"{folder}/labels/{name}",)))
    target = ("train", "toyburg", counts.target), ("val", "toyhaven", counts.val), ("test", "toymouth", counts.test)
    for split, (part, city, count) in enumerate(target, start=2):
        for i in range(count):
            name = f"{part}/{city}/{city}_{i:06d}_000019"
            images, labels = (
                tuple(f"{home}/{kind}/{name}_{ending}.png" for home in ("cityscapes", "cityscapes-oracle"))
                for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"))
            )
            found.append(Picture(split, i, SHIFT, images, labels[1:] if part == "train" else labels))
    return found


def draw(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 RGB [H, W, 3], and its label, uint8 Cityscapes label ids [H, W]."""
    canvas = Canvas.blank(Look(picture.shift), Dice(SEED, picture.split, picture.index))
    street(canvas)
    if picture.shift > 0:
        hood(canvas)
    return photograph(canvas), canvas.label


def generate(
    root: Path,
    *,
    jobs: int = 1,
    counts: Counts = BENCHMARK,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Make <root>/toy hold the benchmark. What is there and right stays as it is; missing or wrong files are written.

    `jobs` processes draw; the pixels do not depend on it. `progress` is told (pictures done, pictures in all).
    Raises ValueError if the folder holds pictures of some other set, since they would be trained on unnoticed, and
    RuntimeError if this machine draws other pixels than the frozen ones.
    """
    toy, wanted = Path(root) / "toy", pictures(counts)
    _refuse_strays(toy, wanted)
    frozen = counts == BENCHMARK
    if frozen and _fingerprint(_digest_on_disk(toy, picture) for picture in wanted) == DIGEST:
        return Outcome(toy, DIGEST, len(wanted), written=0)
    digests, written = [], 0
    for digest, is_new in _each(partial(_settle, toy), wanted, jobs):
        digests.append(digest)
        written += is_new
        progress(len(digests), len(wanted))
    digest = _fingerprint(iter(digests))
    if frozen and digest != DIGEST:
        raise RuntimeError(
            f"the pictures in {toy} have the hash {digest}, the benchmark has {DIGEST}: toy numbers from them "
            "compare with nobody else's"
        )
    return Outcome(toy, digest, len(wanted), written)


def _fingerprint(digests: Iterator[bytes]) -> str:
    """sha256 over the sha256 of every picture in order, which is over the image's pixels and then the label's ids.

    Pixels and not files, since PNG compression differs between releases of zlib.
    """
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(image: np.ndarray, label: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes() + label.tobytes()).digest()


def _digest_on_disk(toy: Path, picture: Picture) -> bytes:
    """The digest of the picture that the files hold; empty if one is missing or damaged, or if copies differ."""
    if not all((toy / name).is_file() for name in picture.images + picture.labels):
        return b""
    try:
        images = [read_image(toy / name) for name in picture.images]
        labels = [read_ids(toy / name, Encoding(CITYSCAPES_TO_TRAIN)) for name in picture.labels]
    except ImageFileError:
        return b""
    digests = {_digest(image, label) for image in images for label in labels}
    return digests.pop() if len(digests) == 1 else b""


def _settle(toy: Path, picture: Picture) -> tuple[bytes, bool]:
    """Draw a picture and see to it that its files hold it. Returns its digest and whether they were written."""
    image, label = draw(picture)
    digest = _digest(image, label)
    if _digest_on_disk(toy, picture) == digest:
        return digest, False
    for name in picture.images:
        _save(Image.fromarray(image), toy / name)
    for name in picture.labels:
        _save(_palette_image(label) if name.startswith("gta") else Image.fromarray(label), toy / name)
    if _digest_on_disk(toy, picture) != digest:
        raise OSError(f"{toy / picture.images[0]} or a file of the same picture does not hold what was written")
    return digest, True


def _palette_image(label: np.ndarray) -> Image.Image:
    """GTA5's encoding: one byte of label id per pixel, and a palette so that viewers show the class colours."""
    colours = np.zeros((256, 3), np.uint8)
    colours[TRAIN_TO_CITYSCAPES[: len(PALETTE)]] = PALETTE
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


def _refuse_strays(toy: Path, wanted: list[Picture]) -> None:
    """Pictures that are not of this set, or target-train labels, would silently become part of an experiment."""
    known = {name for picture in wanted for name in picture.images + picture.labels}
    for path in sorted(toy.rglob("*.png")):
        name = path.relative_to(toy).as_posix()
        if name not in known and not name.endswith("_labelTrainIds.png"):  # those a converter may have added
            raise ValueError(f"{path} is not of this set of toy pictures: remove {toy} or choose another data root")


def _each(task: Callable[[Picture], tuple], items: list[Picture], jobs: int) -> Iterator[tuple]:
    """task(item) for every item in order, computed by `jobs` processes."""
    if jobs == 1:
        yield from map(task, items)
        return
    # Spawned, not forked: the caller may hold threads (torch does), and a fork would copy their locks.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(task, items, chunksize=8)
