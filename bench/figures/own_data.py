"""The pictures of docs/own_data.md: what one has at first, and what a trained network makes of it.

    python -m bench.figures.warehouse DIR
    python -m bench.figures.own_data docs DIR RUN        RUN was trained on these two folders

Writes own_data_before.png, own_data_after.png, and beside them what they were drawn from.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench.arguments import described, output_folder
from bench.figures.runs import load_runs, save_facts
from bench.figures.strips import draw_strips
from dida.command import USER_ERRORS_OF_READING, told_in_one_line
from dida.data import domains
from dida.data.image_file import read_image, read_label, save_png
from dida.options import parse_size
from dida.use.evaluate import WHOLE_IMAGE
from dida.use.labelling import label_pictures

ROWS = 2  # pictures in each, of one camera and of the other


def main(out: Path, folder: Path, run: Path) -> None:
    """Draw both. Raises OSError or ValueError for data or a run that cannot be used."""
    (trained,) = load_runs([run], "auto")
    class_set = trained.class_set
    source = domains.labelled(f"folder:{folder / 'warehouse_sim'}", folder, "train")
    chosen = _first_of_each_camera(source.images)
    labels = [read_label(source.labels[source.images.index(path)], source.raw) for path in chosen]
    before = [
        ("rendered", [read_image(path) for path in chosen]),
        ("its label map", [class_set.colourise(label) for label in labels]),
    ]
    photos = folder / "warehouse_real"
    chosen = _first_of_each_camera(sorted(photos.rglob("*.jpg")))
    with tempfile.TemporaryDirectory() as drawn:
        size = parse_size(trained.config.data.tgt_size, option="--tgt-size")
        label_pictures(trained, [photos], Path(drawn), network="student", size=size, inference=WHOLE_IMAGE)
        overlays = [read_image(Path(drawn) / "overlay" / _png(path.relative_to(photos))) for path in chosen]
        maps = [read_image(Path(drawn) / "colour" / _png(path.relative_to(photos))) for path in chosen]
    after = [("photographed", [read_image(path) for path in chosen]), ("overlay/", overlays), ("colour/", maps)]
    for name, columns in (("before", before), ("after", after)):
        picture = out / f"own_data_{name}.png"
        save_facts(picture, [trained], {"columns": [caption for caption, _ in columns]})
        save_png(picture, draw_strips(columns, class_set))


def _first_of_each_camera(paths: Iterable[Path]) -> list[Path]:
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(path.parent.name, path)
    return [first[camera] for camera in sorted(first)][:ROWS]


def _png(path: Path) -> Path:
    return path.with_suffix(".png")


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("out", type=output_folder, help="where the pictures go")
    parser.add_argument("folder", type=Path, help="DIR of bench.figures.warehouse")
    parser.add_argument("run", type=Path, help="RUN")
    with told_in_one_line("bench.figures.own_data", *USER_ERRORS_OF_READING):
        main(**vars(parser.parse_args()))
