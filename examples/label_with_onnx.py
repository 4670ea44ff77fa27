"""Label a folder of pictures with nothing of dida: onnxruntime and NumPy, and Pillow to read and write files.

    dida export RUN --format onnx
    python examples/label_with_onnx.py RUN/network.onnx PICTURES OUT

OUT/NAME.png holds a class a pixel, a place in the list that is printed; OUT/NAME_colour.png shows it. Pictures are
scaled as the network was trained, and label maps are brought back to the picture's size by nearest neighbours: along
borders `dida label`, which enlarges scores, is finer.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

LEAST = 64  # pixels a side that the exported network takes


def main(model: Path, pictures: Path, out: Path) -> None:
    """Label every picture right in a folder."""
    session = onnxruntime.InferenceSession(model)
    kept = session.get_modelmeta().custom_metadata_map
    colours = np.array(json.loads(kept["colours"]), np.uint8)
    size = tuple(map(int, kept["size"].split("x")))
    print("classes:", ", ".join(f"{i} {name}" for i, name in enumerate(json.loads(kept["classes"]))))
    out.mkdir(parents=True, exist_ok=True)
    found = [path for path in sorted(pictures.iterdir()) if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    for path in found:
        picture = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        seen = resized(picture, fitting(picture.shape[1::-1], size, enlarge=json.loads(kept.get("enlarge", "true"))))
        (labels,) = session.run(None, {"pictures": seen.transpose(2, 0, 1)[None]})[0]
        height, width = picture.shape[:2]
        rows = np.arange(height) * labels.shape[0] // height
        columns = np.arange(width) * labels.shape[1] // width
        labels = labels[rows[:, None], columns]
        Image.fromarray(labels).save(out / f"{path.stem}.png")
        Image.fromarray(colours[labels]).save(out / f"{path.stem}_colour.png")
    print(f"{len(found)} pictures labelled: {out}")


def fitting(size: tuple[int, int], into: tuple[int, int], *, enlarge: bool) -> tuple[int, int]:
    """The largest (width, height) of the same ratio that fits, whichever way `into` is turned."""
    factor = min(max(into) / max(size), min(into) / min(size))
    factor = factor if enlarge else min(factor, 1)
    return max(round(size[0] * factor), LEAST), max(round(size[1] * factor), LEAST)


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8, bilinear between the two nearest pixels, which does not smooth what it shrinks."""
    for axis, length in enumerate(size[::-1]):
        old = picture.shape[axis]
        if old == length:
            continue
        at = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        low = at.astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, old - 1)
        picture = picture.take(low, axis) * (1 - share) + picture.take(high, axis) * share
    return np.rint(picture).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} network.onnx PICTURES OUT")
    main(*map(Path, sys.argv[1:]))
