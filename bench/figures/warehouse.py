"""Made pictures of a warehouse: two folders as somebody may have them, to try everything on that docs/own_data.md says.

    python -m bench.figures.warehouse DIR

DIR/warehouse_sim     rendered: images/, labels/ and classes.json, five classes with ids 10 to 50
DIR/warehouse_real    photographed by two cameras, one of which was held upright: 20 pictures, and a film
"""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bench.arguments import described, output_folder
from dida.data.image_file import save_png
from dida.data.video_file import whole_video

CLASSES = (
    {"id": 10, "name": "floor", "color": [128, 128, 120]},
    {"id": 20, "name": "shelf", "color": [60, 90, 190]},
    {"id": 30, "name": "box", "color": [200, 140, 70], "thing": True},
    {"id": 40, "name": "forklift", "color": [240, 200, 20], "thing": True},
    {"id": 50, "name": "wall", "color": [150, 200, 190]},
    {"id": 0, "name": "ignore", "color": [0, 0, 0]},
)
RENDERED = 24  # pictures
SIZES = ((160, 120), (128, 96), (144, 96), (160, 128))  # of rendered pictures
_PHOTO, _UPRIGHT = (160, 120), (120, 160)
_FLOOR, _SHELF, _BOX, _FORKLIFT, _WALL, _SIGN = (entry["id"] for entry in CLASSES)
# How a class looks, RGB: rendered in clean colours, photographed in those of a dim hall.
_RENDERED = {_FLOOR: (150, 150, 150), _SHELF: (40, 70, 200), _BOX: (205, 150, 90), _FORKLIFT: (250, 210, 0),
             _SIGN: (0, 190, 80), _WALL: (225, 225, 230)}  # fmt: skip
_PHOTOGRAPHED = {_FLOOR: (96, 88, 76), _SHELF: (52, 62, 120), _BOX: (140, 104, 70), _FORKLIFT: (176, 140, 40),
                 _SIGN: (60, 150, 90), _WALL: (150, 142, 120)}  # fmt: skip


def main(folder: Path) -> None:
    """Draw warehouse_sim and warehouse_real in a folder. Raises OSError."""
    sim, real = folder / "warehouse_sim", folder / "warehouse_real"
    for i in range(RENDERED):
        width, height = SIZES[i % len(SIZES)]
        ids = scene(np.random.default_rng(i), width, height)
        _save_photo(sim / "images" / f"cam{i % 2}" / f"{i:03d}.jpg", looks(ids, _RENDERED, np.random.default_rng(i)))
        save_png(sim / "labels" / f"cam{i % 2}" / f"{i:03d}.png", ids)
    (sim / "classes.json").write_text(json.dumps(CLASSES, indent=1))
    for i in range(20):
        rng = np.random.default_rng(1000 + i)
        upright = bool(i % 2)
        photo = looks(scene(rng, *(_UPRIGHT if upright else _PHOTO)), _PHOTOGRAPHED, rng, dim=True)
        _save_photo(real / f"cam{i % 2}" / f"{i:03d}.jpg", photo, on_its_side=upright)
    with whole_video(real / "round.mp4", 5.0) as write:
        wide = scene(np.random.default_rng(2000), 2 * _PHOTO[0], _PHOTO[1])
        for left in range(0, _PHOTO[0], 16):
            ids = wide[:, left : left + _PHOTO[0]]
            write(looks(ids, _PHOTOGRAPHED, np.random.default_rng(left), dim=True))


def scene(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[height, width] uint8 raw ids: a wall, shelves with boxes, a forklift on the floor, a sign that is no class."""
    ids = np.full((height, width), _WALL, dtype=np.uint8)
    horizon = int(height * rng.uniform(0.55, 0.7))
    ids[horizon:] = _FLOOR
    for left in range(int(rng.integers(-20, 10)), width, int(rng.integers(56, 76))):
        _rack(ids, rng, left, horizon)
    side = height // 4
    left, top = int(rng.integers(0, width - side)), int(rng.integers(horizon - side // 2, height - side))
    ids[top : top + side, left : left + side * 3 // 4] = _FORKLIFT
    ids[top + side - side // 5 : top + side, left : left + side * 6 // 5] = _FORKLIFT
    for _ in range(3):
        size = int(rng.integers(height // 12, height // 6))
        left, top = int(rng.integers(0, width - size)), int(rng.integers(horizon, height - size // 2))
        ids[top : top + size, left : left + size] = _BOX
    left = int(rng.integers(0, width - 20))
    ids[4 : 4 + height // 12, left : left + width // 8] = _SIGN
    return ids


def _rack(ids: np.ndarray, rng: np.random.Generator, left: int, bottom: int) -> None:
    """A shelf of three boards, most of their places taken by boxes."""
    right, top = left + 46, bottom - int(ids.shape[0] * 0.48)
    step = (bottom - top) // 3
    for board in range(top + step, bottom + 1, step):
        for place in range(left + 4, right - 8, 13):
            if rng.random() < 0.7:
                high = int(rng.integers(step // 2, step - 4))
                ids[max(board - high, 0) : board, max(place, 0) : max(place + 11, 0)] = _BOX
        ids[board : board + 4, max(left, 0) : max(right, 0)] = _SHELF
    for post in (left, right - 4):
        ids[max(top, 0) : bottom + 4, max(post, 0) : max(post + 4, 0)] = _SHELF


def looks(
    ids: np.ndarray, colours: dict[int, tuple[int, int, int]], rng: np.random.Generator, *, dim: bool = False
) -> np.ndarray:
    """[H, W, 3] uint8 RGB of a scene; `dim`: as a camera sees it, blurred, noisy, and darker to one side."""
    table = np.zeros((256, 3), dtype=np.float32)
    for raw, colour in colours.items():
        table[raw] = colour
    picture = table[ids] + rng.normal(0, 4, (*ids.shape, 1))
    if dim:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.8)
        picture *= np.linspace(*rng.uniform(0.6, 1.15, 2), ids.shape[1])[None, :, None]
        picture += rng.normal(0, 7, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def _save_photo(path: Path, rgb: np.ndarray, *, on_its_side: bool = False) -> None:
    """A JPEG; on its side as phones store what was held upright, with the EXIF entry that says so."""
    exif = Image.Exif()
    if on_its_side:
        rgb, exif[0x0112] = np.ascontiguousarray(np.rot90(rgb)), 6
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, quality=92, exif=exif)


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("folder", type=output_folder, help="DIR, that both are written to")
    main(parser.parse_args().folder)
