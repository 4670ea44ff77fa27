"""Data sets with files that are damaged, cut, of other kinds, at wrong places, or badly described."""

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dida.data.classes import CITYSCAPES_CLASSES, train_id_map
from dida.data.image_file import Encoding, read_image, read_label
from tests.faults.places import Places
from tests.faults.programs import training
from tests.faults.trial import Case, told

SIDE = 64


def data_cases(places: Places) -> Iterator[Case]:
    """`folder:` data sets of 3 pictures with something wrong in them."""
    yield from _files(places)
    for name, text in _CLASSES.items():
        word = "declares one class" if name == "one class" else "classes.json"
        yield _refused(f"classes.json: {name}", lambda root, t=text: (root / "classes.json").write_bytes(t), word)
    for name, (change, words) in _TREES.items():
        yield _refused(name, change, *words)


def _files(places: Places) -> Iterator[Case]:
    """Each kind of file cut and with bits flipped: read, or refused by its name."""
    drawn = random.Random(3)
    rgb, ids = _picture(), _ids()
    kinds = {
        "png": (_encoded(rgb, "PNG"), read_image),
        "jpg": (_encoded(rgb, "JPEG"), read_image),
        "webp": (_encoded(rgb, "WEBP"), read_image),
        "tif": (_encoded(rgb, "TIFF"), read_image),
        "bmp": (_encoded(rgb, "BMP"), read_image),
        "label.png": (_encoded(ids, "PNG"), _label),
        "label.tif": (_encoded(ids, "TIFF"), _label),
    }
    for name, (whole, read) in kinds.items():
        for size in (0, 1, 8, 20, 30, len(whole) // 2, len(whole) - 30, len(whole) - 5):
            yield Case("data", f"{name} cut to {size} bytes", _read(name, whole[:size], read), None, (name,))
        for _ in range(16):
            at, bit = drawn.randrange(len(whole)), drawn.randrange(8)
            damaged = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
            yield Case("data", f"{name}: bit {bit} of byte {at} flipped", _read(name, damaged, read), None, (name,))
        for what, content in {"text": b"picture", "zeros": bytes(900), "a page": b"<!doctype html>"}.items():
            yield Case("data", f"{name} is {what}", _read(name, content, read), True, (name,))


def _label(path: Path) -> object:
    return read_label(path, Encoding(train_id_map(CITYSCAPES_CLASSES)))


def _read(name: str, content: bytes, read: Callable[[Path], object]) -> Callable[[], object]:
    def does() -> None:
        Path(name).write_bytes(content)
        read(Path(name))

    return told(does, ValueError)


def _refused(name: str, change: Callable[[Path], object], *words: str) -> Case:
    def does() -> None:
        root = _folder(Path("own"))
        change(root)
        domain = f"folder:{root.absolute()}"
        sizes = {"crop": 32, "src_size": "64x64", "tgt_size": "64x64"}
        training(root, src=domain, tgt=domain, backbone="mit_b0", weights="none", steps=2, **sizes)()

    return Case("data", name, does, words=words)


def _folder(root: Path) -> Path:
    for number in range(3):
        for kind, pixels in (("images", _picture(number)), ("labels", _ids())):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"{number:03}.png")
    (root / "classes.json").write_text('{"0": "soil", "1": "wheat"}')
    return root


def _picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def _ids(low: int = 0, high: int = 1) -> np.ndarray:
    return np.where(np.arange(SIDE) < SIDE // 2, low, high).astype(np.uint8)[None].repeat(SIDE, 0)


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


_CLASSES: dict[str, bytes] = {
    name: text if isinstance(text, bytes) else text.encode()
    for name, text in {
        "empty": "",
        "cut": '{"0": "soil"',
        "null": "null",
        "number": "7",
        "text": '"soil"',
        "an empty object": "{}",
        "an empty list": "[]",
        "true": '{"0": "soil", "19": true}',
        "7 and 07": '{"7": "soil", "07": "wheat"}',
        "0 twice": '{"0": "soil", "0": "wheat"}',
        "a negative id": '{"-1": "soil"}',
        "id 65536": '{"65536": "soil"}',
        "id 1.5": '{"1.5": "soil"}',
        "id text": '{"soil": "0"}',
        "id empty": '{"": "soil"}',
        "name empty": '{"0": ""}',
        "name blank": '{"0": " "}',
        "name null": '{"0": null}',
        "name a list": '{"0": ["soil"]}',
        "name NaN": '{"0": NaN}',
        "name 1e400": '{"0": 1e400}',
        "number 19": '{"0": 19}',
        "number -1": '{"0": -1}',
        "number 1.0": '{"0": 1.0}',
        "only ignore": '{"0": "ignore"}',
        "one class": '{"0": "soil", "1": "ignore"}',
        "numbers and names": '{"0": 1, "1": "wheat"}',
        "deep": "[" * 100_000,
        "deep objects": '{"a":' * 100_000,
        "UTF-16": '{"0": "soil"}'.encode("utf-16"),
        "Latin-1": '{"0": "Straße"}'.encode("latin-1"),
        "noise": random.Random(4).randbytes(400),
        "zeros": bytes(64),
        "a list of names": '["soil", "wheat"]',
        "no name": '[{"id": 0}]',
        "no id": '[{"name": "soil"}]',
        "an unknown field": '[{"id": 0, "name": "soil", "kind": 1}]',
        "a colour of two": '[{"id": 0, "name": "a", "color": [1, 2]}]',
        "a colour of 256": '[{"id": 0, "name": "a", "color": [1, 2, 256]}]',
        "a colour of text": '[{"id": 0, "name": "a", "color": "red"}]',
        "thing a number": '[{"id": 0, "name": "a", "thing": 1}]',
        "id true": '[{"id": true, "name": "a"}]',
        "ids twice": '[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]',
        "one colour twice": '[{"id": 0, "name": "a", "color": "#000000"}, {"id": 1, "name": "b", "color": "#000000"}]',
        "trailing comma": '{"0": "soil",}',
        "comments": '{"0": "soil"} // x',
        "two documents": "{} {}",
        "ids of other labels": '{"5": "soil", "6": "wheat"}',
        "300 classes": json.dumps({str(n): f"class {n}" for n in range(300)}),
    }.items()
}


def _each(folder: str, write: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [write(path) for path in sorted((root / folder).iterdir())]


def _saved(pixels: np.ndarray, **how: Any) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(pixels).save(path, **how)


_TREES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no images": (lambda root: shutil.rmtree(root / "images"), ("images",)),
    "no labels": (lambda root: shutil.rmtree(root / "labels"), ("labels",)),
    "no classes.json": (lambda root: (root / "classes.json").unlink(), ("classes.json",)),
    "images a file": (lambda root: (shutil.rmtree(root / "images"), (root / "images").touch()), ("images",)),
    "classes.json a folder": (
        lambda root: ((root / "classes.json").unlink(), (root / "classes.json").mkdir()),
        ("classes.json",),
    ),
    "classes.json a pipe": (
        lambda root: ((root / "classes.json").unlink(), os.mkfifo(root / "classes.json")),
        ("classes.json",),
    ),
    "an empty folder of labels": (_each("labels", Path.unlink), ("labels",)),
    "an empty folder of images": (_each("images", Path.unlink), ("images",)),
    "a label is missing": (lambda root: (root / "labels/001.png").unlink(), ("001",)),
    "a pipe among images": (lambda root: os.mkfifo(root / "images/zz.png"), ("zz.png",)),
    "a pipe among labels": (lambda root: os.mkfifo(root / "labels/zz.png"), ("zz.png",)),
    "a link to nothing": (
        lambda root: ((root / "images/001.png").unlink(), (root / "images/001.png").symlink_to("/nope")),
        ("001.png",),
    ),
    "a link to itself": (
        lambda root: ((root / "images/001.png").unlink(), (root / "images/001.png").symlink_to("001.png")),
        ("001.png",),
    ),
    "a link to a device": (
        lambda root: ((root / "images/001.png").unlink(), (root / "images/001.png").symlink_to("/dev/zero")),
        ("001.png",),
    ),
    "an empty picture": (lambda root: (root / "images/001.png").write_bytes(b""), ("001.png",)),
    "a cut picture": (
        lambda root: (root / "images/001.png").write_bytes(_encoded(_picture(), "PNG")[:500]),
        ("001.png",),
    ),
    "every picture is text": (_each("images", lambda path: path.write_text("x")), ("000.png",)),
    "a label of another size": (
        lambda root: _saved(_ids()[:32])(root / "labels/001.png"),
        ("001.png", "64x64", "64x32"),
    ),
    "a label in colours": (lambda root: _saved(_picture())(root / "labels/001.png"), ("001.png",)),
    "labels in JPEG by another name": (_each("labels", _saved(_ids(), format="JPEG")), ("000.png", "JPEG")),
    "a label of 32 bits": (
        lambda root: _saved(_ids().astype(np.int32) * 70000, format="TIFF")(root / "labels/001.png"),
        ("001.png",),
    ),
    "a label of floats": (
        lambda root: _saved(_ids().astype(np.float32), format="TIFF")(root / "labels/001.png"),
        ("001.png",),
    ),
    "a picture of 16 bits": (
        lambda root: _saved(np.zeros((SIDE, SIDE), np.uint16))(root / "images/001.png"),
        ("001.png",),
    ),
    "a huge header of a picture": (
        lambda root: (root / "images/001.png").write_bytes(_png_header(40000, 40000)),
        ("001.png",),
    ),
    "a huge header of a label": (
        lambda root: (root / "labels/001.png").write_bytes(_png_header(40000, 40000)),
        ("001.png",),
    ),
    "a header of no size": (lambda root: (root / "labels/001.png").write_bytes(_png_header(0, 0)), ("001.png",)),
    "no pixel of a class": (_each("labels", _saved(_ids(100, 200))), ("raw id 100", "raw id 200")),
    "a name that is not UTF-8": (
        lambda root: shutil.copy(root / "labels/001.png", os.fsencode(root) + b"/labels/\xff.png"),
        ("UTF-8",),
    ),
    "two images of one name": (lambda root: shutil.copy(root / "images/001.png", root / "images/001.jpg"), ("001",)),
    "nearly a split": (
        lambda root: [(root / kind / "trainset").mkdir() for kind in ("images", "labels")],
        ("trainset",),
    ),
    "two splits of one kind": (
        lambda root: [(root / "images" / n).mkdir() for n in ("val", "validation")],
        ("validation",),
    ),
    "labels in JPEG": (_each("labels", lambda path: path.rename(path.with_suffix(".jpg"))), ("labels",)),
    "labels with other names": (_each("labels", lambda path: path.rename(path.with_name(f"x{path.name}"))), ("label",)),
}
