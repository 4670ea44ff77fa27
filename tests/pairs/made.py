"""Every domain in made files of its layout."""

from pathlib import Path

import numpy as np

from dida.data.layouts import LAYOUTS, Layout
from tests.data.factories import make_folder, save_ids, save_image, save_synthia_label

SIZE = (320, 192)  # of pictures; every class has more pixels than a rare one needs
FOLDER_OF_ANY = "some"  # what stands for the * of a layout


def make_domains(root: Path) -> tuple[list[str], list[str]]:
    """Files of every domain below `root`: those that can be a source, and those that can be a target."""
    for name, layouts in LAYOUTS.items():
        for split in layouts[0].splits:
            make(root, layouts[0], split, seed=len(name))
    own = f"folder:{make_folder(root / 'own', 2, SIZE)}"
    trains = [name for name, layouts in LAYOUTS.items() if "train" in layouts[0].splits]
    return [*trains, own], [*trains, own]


def make(root: Path, layout: Layout, split: str, *, seed: int) -> None:
    """Two pictures of stripes, one for each class, and their label maps."""
    classes, (width, height) = np.flatnonzero(layout.raw.ids.train != 255), SIZE
    for i in range(2):
        stripes = np.resize(np.repeat(np.roll(classes, i + seed), width // len(classes) + 1)[:width], (height, width))
        ids = stripes.astype(np.uint8)
        image, label = (
            root / layout.folders[0] / part.format(split=layout.splits[split]).replace("*", FOLDER_OF_ANY)
            for part in (layout.images, layout.labels)
        )
        stem = f"{seed}{split}{i}"
        picture = np.stack([ids * 5, 255 - ids * 4, ids * 3], -1).astype(np.uint8)
        save_image(image / f"{layout.image_start}{stem}{layout.image_ending}.png", picture)
        save = save_synthia_label if layout.raw.red_of_16_bit else save_ids
        save(label / f"{layout.label_start}{stem}{layout.raw_endings[0]}", ids)
