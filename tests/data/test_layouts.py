"""The built-in data sets as they are downloaded, in made files: which label belongs to an image, and what it says."""

import inspect
from pathlib import Path

import numpy as np
import pytest

from dida.batch import IGNORE
from dida.config import DataConfig
from dida.data import domains
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.image_file import read_label
from dida.data.layouts import LAYOUTS

from .factories import SYNTHIA_IDS, save_ids, save_image

ROOT = Path(__file__).parents[2]
STREET = {name: c for c, name in enumerate(CITYSCAPES_CLASSES.names)}
ROAD, SIDEWALK, CAR, RIDER, SKY = (STREET[name] for name in ("road", "sidewalk", "car", "rider", "sky"))
LAND = ("background", "building", "road", "water", "barren", "forest", "agriculture")

# domain, split, images with their label, and raw ids -> train ids of those labels
MADE = [
    ("urbansyn", "train", {"urbansyn/rgb/rgb_0001.png": "urbansyn/ss/ss_0001.png",
                           "urbansyn/rgb/rgb_0012.png": "urbansyn/ss/ss_0012.png"},
     {0: ROAD, 13: CAR, 18: 18, 19: IGNORE}),
    ("acdc", "train", {"acdc/rgb_anon/fog/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png":
                       "acdc/gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelIds.png",
                       "acdc/rgb_anon/night/train/GP010376/GP010376_frame_000107_rgb_anon.png":
                       "acdc/gt/night/train/GP010376/GP010376_frame_000107_gt_labelIds.png"},
     {7: ROAD, 26: CAR, 0: IGNORE}),
    ("acdc", "val", {"acdc/rgb_anon/snow/val/GOPR1/x_rgb_anon.png": "acdc/gt/snow/val/GOPR1/x_gt_labelTrainIds.png"},
     {0: ROAD, 13: CAR, 255: IGNORE}),
    ("dark-zurich", "val", {"dark_zurich/rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png":
                            "dark_zurich/gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png"},
     {0: ROAD, 13: CAR, 255: IGNORE}),
    ("bdd100k", "val", {"bdd100k/images/10k/val/7d2f7975-e0c1c5a7.jpg":
                        "bdd100k/labels/sem_seg/masks/val/7d2f7975-e0c1c5a7.png"}, {0: ROAD, 12: RIDER, 255: IGNORE}),
    ("bdd100k", "train", {"bdd100k/seg/images/train/0004a4c0-d4dff0ad.jpg":
                          "bdd100k/seg/labels/train/0004a4c0-d4dff0ad_train_id.png"}, {0: ROAD, 13: CAR, 255: IGNORE}),
    ("mapillary", "train", {"mapillary/training/images/a-_b.jpg": "mapillary/training/v1.2/labels/a-_b.png"},
     {13: ROAD, 24: ROAD, 8: ROAD, 11: SIDEWALK, 55: CAR, 20: RIDER, 21: RIDER, 27: SKY, 65: IGNORE, 0: IGNORE}),
    ("mapillary", "val", {"mapillary/validation/images/c.jpg": "mapillary/validation/labels/c.png"}, {13: ROAD}),
    ("foggy-cityscapes", "val",
     {"cityscapes/leftImg8bit_foggy/val/munster/munster_000000_000019_leftImg8bit_foggy_beta_0.02.png":
      "cityscapes/gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png"}, {7: ROAD, 26: CAR, 3: IGNORE}),
    ("loveda", "train", {"loveda/Train/Rural/images_png/0.png": "loveda/Train/Rural/masks_png/0.png",
                         "loveda/Train/Urban/images_png/0.png": "loveda/Train/Urban/masks_png/0.png"},
     {0: IGNORE, 1: 0, 3: 2, 7: 6}),
    ("loveda-urban", "train", {"LoveDA/Train/Urban/images_png/1366.png": "LoveDA/Train/Urban/masks_png/1366.png"},
     {0: IGNORE, 2: 1, 4: 3}),
    ("loveda-rural", "val", {"LoveDA/Val/Rural/images_png/2522.png": "LoveDA/Val/Rural/masks_png/2522.png"}, {7: 6}),
    ("synthia", "train", {"synthia/RGB/0000000.png": "synthia/parsed_LABELS/0000000.png"},
     {0: IGNORE, SYNTHIA_IDS[0]: ROAD, SYNTHIA_IDS[13]: CAR}),
    ("synthia", "train", {"synthia/RGB/0000000.png": "synthia/GT/parsed_LABELS/0000000.png"}, {SYNTHIA_IDS[10]: SKY}),
]  # fmt: skip
BESIDE = {  # files that lie beside and must not be taken for images or labels
    "acdc": ("rgb_anon/fog/train_ref/GOPR0475/GOPR0475_frame_000041_ref_rgb_anon.png",
             "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelColor.png"),
    "cityscapes": ("leftImg8bit_foggy/val/munster/munster_000000_000019_leftImg8bit_foggy_beta_0.01.png",),
    "urbansyn": ("ss_color/ss_color_0001.png",),
    "mapillary": ("training/v1.2/instances/a-_b.png",),
}  # fmt: skip


@pytest.mark.parametrize("name, split, pairs, ids", MADE, ids=lambda x: x if isinstance(x, str) else "")
def test_a_data_set_is_read_as_it_is_downloaded(tmp_path, name, split, pairs, ids):
    raw = np.array([list(ids)], dtype=np.uint8)
    for image, label in pairs.items():
        save_image(tmp_path / image, np.ones((1, len(ids), 3), dtype=np.uint8))
        save_ids(tmp_path / label, raw)
        for other in BESIDE.get(Path(image).parts[0], ()):
            save_image(tmp_path / Path(image).parts[0] / other, np.ones((1, len(ids), 3), dtype=np.uint8))
    domain = domains.labelled(name, tmp_path, split)
    found = {
        image.relative_to(tmp_path).as_posix(): label.relative_to(tmp_path).as_posix()
        for image, label in zip(domain.images, domain.labels, strict=True)
    }
    assert found == pairs
    assert read_label(domain.labels[0], domain.encoding(0)).tolist() == [list(ids.values())]
    assert len(domains.unlabelled(name, tmp_path, split).images) == len(pairs)
    assert domain.class_set.names == (LAND if name.startswith("loveda") else CITYSCAPES_CLASSES.names)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_missing_says_what_where_and_whence(tmp_path, name):
    split = next(iter(LAYOUTS[name][0].splits))
    with pytest.raises(FileNotFoundError) as caught:
        domains.labelled(name, tmp_path, split)
    message = str(caught.value)
    assert str(tmp_path / LAYOUTS[name][0].folders[0]) in message
    assert "files that end in" in message
    assert "  the data: " in message


# All classes of Mapillary Vistas 1.2 in the order of its config_v1.2.json, and those that are one of Cityscapes.
VISTAS = """bird, ground animal, curb, fence, guard rail, barrier, wall, bike lane, crosswalk - plain, curb cut,
parking, pedestrian area, rail track, road, service lane, sidewalk, bridge, building, tunnel,
person, bicyclist, motorcyclist, other rider, lane marking - crosswalk, lane marking - general,
mountain, sand, sky, snow, terrain, vegetation, water, banner, bench, bike rack, billboard, catch
basin, cctv camera, fire hydrant, junction box, mailbox, manhole, phone booth, pothole, street
light, pole, traffic sign frame, utility pole, traffic light, traffic sign (back), traffic sign
(front), trash can, bicycle, boat, bus, car, caravan, motorcycle, on rails, other vehicle, trailer,
truck, wheeled slow, car mount, ego vehicle, unlabeled""".replace("\n", " ").split(", ")
ALIKE = {
    "bike lane": "road", "crosswalk - plain": "road", "service lane": "road", "lane marking - crosswalk": "road",
    "lane marking - general": "road", "manhole": "road", "pothole": "road", "curb": "sidewalk", "curb cut": "sidewalk",
    "pedestrian area": "sidewalk", "utility pole": "pole", "traffic sign (front)": "traffic sign", "bicyclist": "rider",
    "motorcyclist": "rider", "other rider": "rider", "on rails": "train",
}  # fmt: skip


def test_of_mapillarys_classes_each_has_its_own_or_none(tmp_path):
    assert len(VISTAS) == 66
    expected = {
        raw: STREET[ALIKE.get(name, name)] for raw, name in enumerate(VISTAS) if ALIKE.get(name, name) in STREET
    }
    save_ids(tmp_path / "all.png", np.arange(66, dtype=np.uint8)[None])
    for layout in LAYOUTS["mapillary"]:
        (train_ids,) = read_label(tmp_path / "all.png", layout.raw).tolist()
        assert {raw: train_id for raw, train_id in enumerate(train_ids) if train_id != IGNORE} == expected


@pytest.mark.parametrize(
    "words, apart",
    [
        (domains.__doc__, ("loveda-",)),
        (inspect.getsource(DataConfig), ("loveda-", "toy-")),  # the help of --src and --tgt
        ((ROOT / "README.md").read_text(), ("loveda-", "toy-")),
    ],
    ids=["domains.py", "help", "README.md"],
)
def test_every_list_of_domains_in_words_has_every_name(words, apart):
    assert [name for name in LAYOUTS if name not in words and not name.startswith(apart)] == []
