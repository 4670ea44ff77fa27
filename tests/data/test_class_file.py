"""classes.json in both forms: what it declares, how label maps are read by it, and what is refused by entry."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dida.batch import IGNORE
from dida.data import domains
from dida.data.class_file import read_class_file
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.image_file import ImageFileError, read_label

from .factories import save_ids, save_image

FARM = [
    {"id": 10, "name": "soil", "color": [120, 80, 40]},
    {"id": 20, "name": "wheat", "color": "#e0c040", "thing": False},
    {"id": 30, "name": "cow", "color": [250, 250, 250], "thing": True},
    {"id": 0, "name": "ignore", "color": [0, 0, 0]},
]


def written(folder: Path, content: object) -> Path:
    """classes.json with a value, or with these very bytes."""
    path = folder / "classes.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize("C", [2, 5, 7, 11, 150])
def test_any_number_of_classes_with_colours_of_their_own(tmp_path, C):
    names = [f"kind {i}" for i in range(C)]
    class_set, raw = read_class_file(written(tmp_path, {str(10 * (i + 1)): name for i, name in enumerate(names)}))
    assert class_set.names == tuple(names)
    assert class_set.label_ids == tuple(10 * (i + 1) for i in range(C))
    assert len(set(class_set.colours)) == C
    assert class_set.subsets == {C: tuple(range(C))}  # no published means
    assert class_set.things == ()
    assert raw.ids.train[list(class_set.label_ids)].tolist() == list(range(C))
    ids = class_set.to_label_ids(np.arange(C, dtype=np.uint8)[None])
    assert ids.dtype == (np.uint16 if 10 * C > 255 else np.uint8)
    assert ids[0].tolist() == list(class_set.label_ids)


def test_names_of_cityscapes_bring_its_colours_and_things(tmp_path):
    class_set, _ = read_class_file(written(tmp_path, {"3": "Car", "1": "road", "9": "tractor", "4": "traffic_light"}))
    assert class_set.names == ("Car", "road", "tractor", "traffic_light")
    of = dict(zip(CITYSCAPES_CLASSES.names, CITYSCAPES_CLASSES.colours, strict=True))
    colours = class_set.colours
    assert (colours[0], colours[1], colours[3]) == (of["car"], of["road"], of["traffic light"])
    assert colours[2] not in of.values()
    assert class_set.things == (0, 3)


def test_all_of_cityscapes_in_any_order_have_its_published_means(tmp_path):
    names = CITYSCAPES_CLASSES.names[::-1]
    class_set, _ = read_class_file(written(tmp_path, {str(i): name for i, name in enumerate(names)}))
    assert {n: {class_set.names[c] for c in ids} for n, ids in class_set.subsets.items()} == {
        n: {CITYSCAPES_CLASSES.names[c] for c in ids} for n, ids in CITYSCAPES_CLASSES.subsets.items()
    }


def test_the_list_says_colours_and_things(tmp_path):
    class_set, raw = read_class_file(written(tmp_path, FARM))
    assert class_set.names == ("soil", "wheat", "cow")
    assert class_set.colours == ((120, 80, 40), (0xE0, 0xC0, 0x40), (250, 250, 250))
    assert (class_set.things, class_set.label_ids) == ((2,), (10, 20, 30))
    assert raw.ids.known[[0, 10, 20, 30, 1]].tolist() == [True, True, True, True, False]


def test_several_ids_may_be_one_class(tmp_path):
    class_set, raw = read_class_file(written(tmp_path, {"7": "lane", "8": "lane", "9": "grass"}))
    assert (class_set.names, class_set.label_ids) == (("lane", "grass"), (7, 9))
    assert raw.ids.train[[7, 8, 9]].tolist() == [0, 0, 1]


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("channels", [3, 4])
def test_label_maps_in_colours_are_read_where_colours_are_declared(tmp_path, with_ids, channels):
    entries = [{k: v for k, v in entry.items() if with_ids or k != "id"} for entry in FARM]
    class_set, raw = read_class_file(written(tmp_path, entries))
    assert class_set.label_ids == ((10, 20, 30) if with_ids else (0, 1, 2))
    drawn = np.array([[(120, 80, 40), (224, 192, 64), (250, 250, 250), (0, 0, 0), (120, 80, 41)]], dtype=np.uint8)
    drawn = np.concatenate([drawn, np.full((1, 5, channels - 3), 255, np.uint8)], 2)
    label = read_label(save_image(tmp_path / "a.png", drawn), raw)
    assert label.tolist() == [[0, 1, 2, IGNORE, IGNORE]]
    ids = save_ids(tmp_path / "b.png", np.array([list(class_set.label_ids)], dtype=np.uint8))
    assert (read_label(ids, raw).tolist() == [[0, 1, 2]]) == with_ids  # where there are any, ids are still ids


def as_palette(order: list[int]) -> Image.Image:
    """The colours of FARM in another order, as programs that count colours store them."""
    image = Image.fromarray(np.array([[order.index(i) for i in (0, 1, 2, 3)]], dtype=np.uint8), "P")
    colours = {0: (120, 80, 40), 1: (224, 192, 64), 2: (250, 250, 250), 3: (0, 0, 0), 4: (1, 2, 3)}
    image.putpalette([level for i in order for level in colours[i]])
    return image


GREYS = [{"name": "hole", "color": "#ffffff"}, {"name": "sheet", "color": "#000000"}]


@pytest.mark.parametrize(
    "entries, label, read",
    [
        (FARM, as_palette([0, 1, 2, 3]), [0, 1, 2, IGNORE]),
        (FARM, as_palette([3, 2, 4, 1, 0]), [0, 1, 2, IGNORE]),  # and a colour more than there are classes
        (FARM, as_palette([3, 2, 1, 0]).convert("RGBA"), [0, 1, 2, IGNORE]),
        (GREYS, Image.fromarray(np.array([[255, 0, 7]], dtype=np.uint8)), [0, 1, IGNORE]),
        (GREYS, Image.fromarray(np.array([[255, 0, 255]], dtype=np.uint8)).convert("1"), [0, 1, 0]),
        (GREYS, Image.fromarray(np.array([[255, 0]], dtype=np.uint8)).convert("LA"), [0, 1]),
    ],
)
def test_where_classes_have_colours_and_no_ids_every_label_map_is_read_by_colour(tmp_path, entries, label, read):
    """K2: the numbers behind the colours are what the program that stored them counted in."""
    without_ids = [{k: v for k, v in entry.items() if k != "id"} for entry in entries]
    _, raw = read_class_file(written(tmp_path, without_ids))
    label.save(tmp_path / "a.png")
    assert read_label(tmp_path / "a.png", raw).tolist() == [read]


def test_numbers_of_16_bits_are_no_colours(tmp_path):
    _, raw = read_class_file(written(tmp_path, GREYS))
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match=r"a\.png: holds numbers .* colours and no ids"):
        read_label(tmp_path / "a.png", raw)


def test_a_colour_of_no_class_is_said(tmp_path, caplog):
    from dida.data.statistics import class_statistics

    save_image(tmp_path / "images" / "a.png", np.ones((4, 4, 3), dtype=np.uint8))
    save_image(tmp_path / "labels" / "a.png", np.full((4, 4, 3), 120, dtype=np.uint8))
    written(tmp_path, FARM)
    class_statistics(domains.labelled(f"folder:{tmp_path}", tmp_path, "train"))
    assert "colours that classes.json does not have: not defined, 16 pixels" in caplog.text


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b'{"0": "road", "0": "car"}', "raw id 0 is there twice, as road and car"),
        (b'{"7": "road", "07": "car"}', "raw id 7 is there twice"),
        (b'{"7": "road", "07": "road"}', "raw id 7 is there twice"),
        (b'[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "raw id 1 is there twice, as a and b"),
        (b'[{"id": 1, "id": 2, "name": "a"}]', "entry 0: expected one object"),
        ({"19": True}, "entry '19': True"),
        ({"19": False, "1": "road"}, "entry '19': False"),
        ([{"id": True, "name": "a"}], "a raw id is a number from 0 to 65535, not True"),
        ([{"id": 1, "name": "a", "thing": 1}], '"thing" must be true or false, not 1'),
        ([{"id": 1, "name": "a", "color": [1, 2, True]}], '"color" must be'),
        ([{"id": 1, "name": "a", "color": [1, 2, 256]}], '"color" must be'),
        ([{"id": 1, "name": "a", "colour": [1, 2, 3]}], "'colour' is none of id, name, color, thing"),
        ([{"name": "a"}], '"id" or "color" must say'),
        ([{"id": 1}], '"name" must be'),
        ([{"id": 1, "name": "a", "color": "#010203"}, {"id": 2, "name": "b", "color": [1, 2, 3]}], "a and b have the"),
        ({"1": "car", "2": "Car"}, "'Car' differs from another class of the set by case"),
        ({"1": "traffic light", "2": "traffic-light"}, "'traffic-light' differs from another class"),
        ({"1": 3, "2": "tractor"}, "a number is a train id of Cityscapes, and 'tractor' is none"),
        ({"1": 19}, "entry '1': 19"),
        ({"1": ""}, "entry '1': ''"),
        ({"1": "a\nb", "2": "c"}, r"'a\nb': the name of a class has characters that cannot be printed"),
        ({"1": "a\tb", "2": "c"}, "the name of a class has characters"),
        ({"1": "\ud800", "2": "c"}, "the name of a class has characters"),
        ([{"id": 1, "name": "a\x00b"}], "the name of a class has characters"),
        ({"1": 1.0}, "entry '1': 1.0"),
        ({"²": "road"}, "entry '²'"),
        ({"-1": "road"}, "entry '-1'"),
        ({"65536": "road"}, "0 to 65535"),
        ({"9" * 5000: "road"}, "0 to 65535"),
        ({"0": "ignore"}, "names no class"),
        ({}, "names no class"),
        ([], "names no class"),
        ("road", "an object"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"1": "r\xffd"}', "not UTF-8 text"),
        ('{"1": "road"}'.encode("utf-16"), "written in UTF-16 or UTF-32; save it as UTF-8"),
        ('{"1": "road"}'.encode("utf-16-le"), "written in UTF-16 or UTF-32; save it as UTF-8"),
        ('{"1": "road"}'.encode("utf-16-be"), "written in UTF-16 or UTF-32; save it as UTF-8"),
        ('{"1": "road"}'.encode("utf-32"), "written in UTF-16 or UTF-32; save it as UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        ({str(i): f"class {i}" for i in range(256)}, "256 classes do not fit"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, content, complaint):
    path = written(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        read_class_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_read_over(tmp_path, encoding):
    class_set, _ = read_class_file(written(tmp_path, '{"1": "Straße", "2": "Wiese"}'.encode(encoding)))
    assert class_set.names == ("Straße", "Wiese")


# ---- another class set than the run's ------------------------------------------------------------------------------


def one_label(folder: Path, ids: list[int], classes: object) -> domains.LabelledDomain:
    save_image(folder / "images" / "a.png", np.ones((1, len(ids), 3), dtype=np.uint8))
    save_ids(folder / "labels" / "a.png", np.array([ids], dtype=np.uint8))
    written(folder, classes)
    return domains.labelled(f"folder:{folder}", folder, "val")


@pytest.mark.parametrize(
    "classes, ids, read, declared",
    [
        ({"1": "road", "2": "car"}, [1, 2, 3], [0, 13, IGNORE], (0, 13)),
        ({"1": "Road", "2": "tractor", "3": "sky"}, [1, 2, 3], [0, IGNORE, 10], (0, 10)),
        ({"9": "bicycle"}, [9, 0], [18, IGNORE], (18,)),
        ([{"id": 4, "name": "traffic_sign"}, {"id": 0, "name": "ignore"}], [4, 0], [7, IGNORE], (7,)),
    ],
)
def test_labels_are_matched_by_name(tmp_path, caplog, classes, ids, read, declared):
    with caplog.at_level("INFO"):
        domain = one_label(tmp_path, ids, classes).seen_as(CITYSCAPES_CLASSES)
    assert read_label(domain.labels[0], domain.encoding(0)).tolist() == [read]
    assert (domain.declared, domain.class_set) == (declared, CITYSCAPES_CLASSES)
    assert ("tractor ignored" in caplog.text) == ("tractor" in str(classes))


def test_two_sets_without_a_common_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has the classes cow, barn, of which the network knows none.*road"):
        one_label(tmp_path, [1], {"1": "cow", "2": "barn"}).seen_as(CITYSCAPES_CLASSES)


def test_train_ids_of_cityscapes_are_matched_by_name_too(tmp_path):
    save_ids(tmp_path / "labels" / "b_labelTrainIds.png", np.array([[13, 0, 1, IGNORE]], dtype=np.uint8))
    save_image(tmp_path / "images" / "b.png", np.ones((1, 4, 3), dtype=np.uint8))
    domain = one_label(tmp_path, [5], {"5": "road", "6": "cow", "7": "car"})
    assert read_label(domain.labels[1], domain.encoding(1)).tolist() == [[2, 0, IGNORE, IGNORE]]
    with pytest.raises(ValueError, match=r"b_labelTrainIds\.png holds train ids of Cityscapes"):
        one_label(tmp_path, [5], {"5": "barn", "6": "cow"})
