"""The data sets that are known by name, as they are downloaded. A new one is one entry of LAYOUTS.

A name may have several layouts, which are tried in order: archives have changed over the years.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from dida.data.classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_TO_TRAIN,
    SYNTHIA_TO_TRAIN,
    ClassSet,
    IdMap,
    id_map,
    train_id_map,
)
from dida.data.image_file import Encoding

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class Layout(NamedTuple):
    """Where images and labels lie. Paths are below the data set's folder and may contain {split}, and one * for the
    folders of one level (their name is then part of what an image and its label share)."""

    folders: tuple[str, ...]  # under the data root; the first that holds images is taken
    splits: Mapping[str, str]  # split -> what {split} stands for
    images: str  # folder of images
    labels: str  # folder of labels
    origin: str  # where the data comes from, may contain {root}
    raw: Encoding
    image_start: str = ""  # what every image's name begins with
    image_ending: str = ""  # what every image's stem ends in
    label_start: str = ""  # what replaces the image's start
    raw_endings: tuple[str, ...] = (".png",)  # what replaces the image's ending and suffix in the name of its label
    train_ending: str = "_labelTrainIds.png"
    broken: frozenset[str] = frozenset()  # stems of images that do not match their label as published
    class_set: ClassSet = CITYSCAPES_CLASSES
    published_mean: int | None = None  # number of classes that published means over this source have; None: all


def _splits(**names: str) -> Mapping[str, str]:
    return MappingProxyType(names)


def _cityscapes_train_ids(name: str, void: tuple[int, ...]) -> IdMap:
    return id_map(name, {c: c for c in range(len(CITYSCAPES_CLASSES))}, void)


_TRAIN = _splits(train="train")
_THREE = _splits(train="train", val="val", test="test")
_TRAIN_IDS = Encoding(train_id_map(CITYSCAPES_CLASSES))

# Raw ids of Mapillary Vistas 1.2 (the order of its config_v1.2.json) that are a class of Cityscapes by the definitions
# of that one, where markings, lanes of any kind and holes are road; the rest of the 66 has no counterpart there.
_VISTAS = {
    # bike lane, plain crosswalk, road, service lane, zebra crossing, general lane marking, manhole, pothole
    "road": (7, 8, 13, 14, 23, 24, 41, 43),
    "sidewalk": (2, 9, 11, 15),  # curb, curb cut, pedestrian area, sidewalk
    "building": (17,),
    "wall": (6,),
    "fence": (3,),
    "pole": (45, 47),  # pole, utility pole
    "traffic light": (48,),
    "traffic sign": (50,),  # its front
    "vegetation": (30,),
    "terrain": (29,),
    "sky": (27,),
    "person": (19,),
    "rider": (20, 21, 22),  # bicyclist, motorcyclist, other rider
    "car": (55,),
    "truck": (61,),
    "bus": (54,),
    "train": (58,),  # on rails
    "motorcycle": (57,),
    "bicycle": (52,),
}
_VISTAS_IDS = {raw: CITYSCAPES_CLASSES.names.index(name) for name, ids in _VISTAS.items() for raw in ids}
_LOVEDA_CLASSES = ClassSet(
    names=("background", "building", "road", "water", "barren", "forest", "agriculture"),
    colours=((255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)),
    things=(),
    label_ids=(1, 2, 3, 4, 5, 6, 7),
)
_LOVEDA_IDS = id_map("LoveDA", {raw: c for c, raw in enumerate(_LOVEDA_CLASSES.label_ids)}, void=(0,))

_GTA5 = Layout(
    folders=("gta", "gta5"),
    splits=_TRAIN,
    images="images",
    labels="labels",
    origin="published at https://download.visinf.tu-darmstadt.de/data/from_games/",
    raw=Encoding(CITYSCAPES_TO_TRAIN),
    broken=frozenset({"15188", "17705"}),
)
_CITYSCAPES = Layout(
    folders=("cityscapes",),
    splits=_THREE,
    images="leftImg8bit/{split}",
    labels="gtFine/{split}",
    origin="published at https://www.cityscapes-dataset.com",
    raw=Encoding(CITYSCAPES_TO_TRAIN),
    image_ending="_leftImg8bit",
    raw_endings=("_gtFine_labelIds.png",),
    train_ending="_gtFine_labelTrainIds.png",
)
_SYNTHIA = Layout(
    folders=("synthia",),
    splits=_TRAIN,
    images="RGB",
    labels="GT/LABELS",
    origin="published at https://synthia-dataset.net (SYNTHIA-RAND-CITYSCAPES)",
    raw=Encoding(SYNTHIA_TO_TRAIN, red_of_16_bit=True),
    published_mean=16,  # it lacks three of the classes
)
_URBANSYN = Layout(
    folders=("urbansyn", "UrbanSyn"),
    splits=_TRAIN,
    images="rgb",
    labels="ss",
    origin="published at https://www.urbansyn.org",
    raw=Encoding(_cityscapes_train_ids("UrbanSyn", void=(19, 255))),
    image_start="rgb_",
    label_start="ss_",
)
_ACDC = Layout(
    folders=("acdc", "ACDC"),
    splits=_THREE,
    images="rgb_anon/*/{split}",  # fog, night, rain, snow
    labels="gt/*/{split}",
    origin="published at https://acdc.vision.ee.ethz.ch (rgb_anon_trainvaltest.zip and gt_trainval.zip)",
    raw=Encoding(CITYSCAPES_TO_TRAIN),
    image_ending="_rgb_anon",
    raw_endings=("_gt_labelIds.png",),
    train_ending="_gt_labelTrainIds.png",
)
_DARK_ZURICH = _ACDC._replace(
    folders=("dark_zurich", "dark-zurich", "Dark_Zurich"),
    images="rgb_anon/{split}/night",
    labels="gt/{split}/night",
    origin="published at https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/",
)
_BDD100K = Layout(
    folders=("bdd100k",),
    splits=_THREE,
    images="images/10k/{split}",
    labels="labels/sem_seg/masks/{split}",
    origin="published at https://www.vis.xyz/bdd100k/ (10K images and semantic segmentation)",
    raw=_TRAIN_IDS,
)
_MAPILLARY = Layout(
    folders=("mapillary", "mapillary_vistas"),
    splits=_splits(train="training", val="validation", test="testing"),
    images="{split}/images",
    labels="{split}/v1.2/labels",
    origin="published at https://www.mapillary.com/dataset/vistas",
    raw=Encoding(id_map("Mapillary Vistas", _VISTAS_IDS, void=set(range(66)) - set(_VISTAS_IDS))),
)
_LOVEDA = Layout(
    folders=("loveda", "LoveDA", "2021LoveDA"),
    splits=_splits(train="Train", val="Val", test="Test"),
    images="{split}/*/images_png",  # Urban and Rural
    labels="{split}/*/masks_png",
    origin="published at https://zenodo.org/records/5706578",
    raw=Encoding(_LOVEDA_IDS),
    class_set=_LOVEDA_CLASSES,
)
_TOY = "made by: python -m dida.data.toy --data-root {root}"
_TOY_WEATHER = f"{_TOY} --weather night fog"

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "gta5": (_GTA5,),
    "synthia": (
        _SYNTHIA,
        _SYNTHIA._replace(labels="GT/parsed_LABELS", raw=Encoding(SYNTHIA_TO_TRAIN)),  # the same ids in 8 bits
        _SYNTHIA._replace(labels="parsed_LABELS", raw=Encoding(SYNTHIA_TO_TRAIN)),
    ),
    "urbansyn": (_URBANSYN,),
    "cityscapes": (_CITYSCAPES,),
    "foggy-cityscapes": (
        _CITYSCAPES._replace(
            folders=("cityscapes", "foggy_cityscapes", "foggy-cityscapes"),
            images="leftImg8bit_foggy/{split}",
            image_ending="_leftImg8bit_foggy_beta_0.02",  # the densest of its three fogs
        ),
    ),
    "acdc": (_ACDC,),
    "dark-zurich": (_DARK_ZURICH,),
    "bdd100k": (
        _BDD100K,
        _BDD100K._replace(images="seg/images/{split}", labels="seg/labels/{split}", raw_endings=("_train_id.png",)),
    ),
    "mapillary": (_MAPILLARY, _MAPILLARY._replace(labels="{split}/labels")),
    "loveda": (_LOVEDA,),
    "loveda-urban": (_LOVEDA._replace(images="{split}/Urban/images_png", labels="{split}/Urban/masks_png"),),
    "loveda-rural": (_LOVEDA._replace(images="{split}/Rural/images_png", labels="{split}/Rural/masks_png"),),
    "toy-gta5": (_GTA5._replace(folders=("toy/gta",), origin=_TOY, broken=frozenset()),),
    "toy-gta5-val": (
        _GTA5._replace(folders=("toy/gta-val",), splits=_splits(val="val"), origin=_TOY, broken=frozenset()),
    ),
    "toy-cityscapes": (_CITYSCAPES._replace(folders=("toy/cityscapes",), origin=_TOY),),
    "toy-cityscapes-oracle": (_CITYSCAPES._replace(folders=("toy/cityscapes-oracle",), origin=_TOY),),
    "toy-night": (_CITYSCAPES._replace(folders=("toy/night",), origin=_TOY_WEATHER),),
    "toy-night-oracle": (_CITYSCAPES._replace(folders=("toy/night-oracle",), origin=_TOY_WEATHER),),
    "toy-fog": (_CITYSCAPES._replace(folders=("toy/fog",), origin=_TOY_WEATHER),),
    "toy-fog-oracle": (_CITYSCAPES._replace(folders=("toy/fog-oracle",), origin=_TOY_WEATHER),),
}
ALIASES = {"gta": "gta5", "toy-gta": "toy-gta5"}
