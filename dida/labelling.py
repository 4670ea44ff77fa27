"""Pictures without labels, labelled by a trained network: overlays for people, label maps for programs."""

from pathlib import Path

from dida.data.image_file import read_image, save_png
from dida.evaluate import Inference
from dida.panel import legend, overlay
from dida.predictions import require_distinct_stems, save_prediction
from dida.trained import Trained

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def label_pictures(
    trained: Trained, images: Path, out: Path, *, network: str, size: tuple[int, int], inference: Inference
) -> int:
    """Label a picture, or all below a folder, each at its own size; their number.

    OUT/overlay/NAME.png, OUT/legend.png and what `save_prediction` writes. Raises FileNotFoundError where there is no
    picture, ValueError for two of one name, ImageFileError for one that cannot be read, OSError.
    """
    paths = find_pictures(images)
    require_distinct_stems(paths)
    class_set = trained.class_set
    with trained.labeller(network, size, inference) as label:
        for path in paths:
            picture = read_image(path)
            train_ids = label(picture)
            save_png(out / "overlay" / f"{path.stem}.png", overlay(picture, train_ids, class_set))
            save_prediction(out, path.stem, train_ids, class_set)
    save_png(out / "legend.png", legend(class_set))
    return len(paths)


def find_pictures(path: Path) -> list[Path]:
    """The picture itself, or all below a folder. Raises FileNotFoundError."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"--images {path}: no picture there (looked for {', '.join(PICTURES)})")
    return found
