"""A class set as a value, and the id tables of the label formats."""

import dataclasses
import json

import numpy as np
import pytest

from dida.batch import IGNORE
from dida.data import classes
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet, train_id_map

from .factories import CITYSCAPES_IDS, SYNTHIA_IDS

SMALL = ClassSet(
    names=("field", "barn", "cow"),
    colours=((0, 200, 0), (120, 60, 0), (250, 250, 250)),
    things=(2,),
    label_ids=(10, 20, 30),
    means={2: (0, 2)},
)


def test_the_tables_agree_with_the_published_ids():
    assert len(CITYSCAPES_CLASSES) == len(CITYSCAPES_CLASSES.names) == len(CITYSCAPES_CLASSES.palette) == 19
    for id_map, ids in (
        (classes.CITYSCAPES_TO_TRAIN, CITYSCAPES_IDS),
        (classes.SYNTHIA_TO_TRAIN, SYNTHIA_IDS),
        (train_id_map(CITYSCAPES_CLASSES), range(19)),
    ):
        assert id_map.train[list(ids)].tolist() == list(range(19))
        assert np.count_nonzero(id_map.train != IGNORE) == 19


@pytest.mark.parametrize(
    "id_map, known",
    [
        (classes.CITYSCAPES_TO_TRAIN, set(range(35))),
        (classes.SYNTHIA_TO_TRAIN, set(range(23))),
        (train_id_map(CITYSCAPES_CLASSES), {*range(19), IGNORE}),
        (train_id_map(SMALL), {0, 1, 2, IGNORE}),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_void_ids_are_known_and_others_are_not(id_map, known):
    assert set(np.flatnonzero(id_map.known)) == known


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_apply_maps_any_value_of_the_type(dtype):
    top = np.iinfo(dtype).max
    ids = np.array([[7, 33, 0, top]], dtype=dtype)
    mapped = classes.CITYSCAPES_TO_TRAIN.apply(ids)
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[0, 18, IGNORE, IGNORE]]


def test_label_files_that_are_written_invert_the_map():
    train_ids = np.array([[*range(19), IGNORE]], dtype=np.uint8)
    ids = CITYSCAPES_CLASSES.to_label_ids(train_ids)
    assert ids.dtype == np.uint8
    assert ids.tolist() == [[*CITYSCAPES_IDS, 0]]
    assert np.array_equal(classes.CITYSCAPES_TO_TRAIN.apply(ids), train_ids)


@pytest.mark.parametrize("largest, dtype", [(255, np.uint8), (256, np.uint16), (60000, np.uint16)])
def test_label_ids_take_16_bits_where_they_need_them(largest, dtype):
    wide = dataclasses.replace(SMALL, label_ids=(10, largest, 30))
    ids = wide.to_label_ids(np.array([[0, 1, 2, IGNORE]], dtype=np.uint8))
    assert ids.dtype == dtype
    assert ids.tolist() == [[10, largest, 30, 0]]


def test_subsets_and_things():
    subsets = CITYSCAPES_CLASSES.subsets
    assert {n: len(ids) for n, ids in subsets.items()} == {19: 19, 16: 16, 13: 13}
    assert next(iter(subsets)) == 19  # all of them first
    assert subsets[16] == (*range(9), 10, 11, 12, 13, 15, 17, 18)
    assert set(subsets[16]) - set(subsets[13]) == {3, 4, 5}
    assert CITYSCAPES_CLASSES.things == (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
    assert SMALL.subsets == {3: (0, 1, 2), 2: (0, 2)}
    assert dataclasses.replace(SMALL, means={}).subsets == {3: (0, 1, 2)}


def test_colourise():
    rgb = CITYSCAPES_CLASSES.colourise(np.array([[0, 13, IGNORE]], dtype=np.uint8))
    assert rgb.tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]
    stack = SMALL.colourise(np.array([[[2]], [[3]]], dtype=np.uint8))  # 3 is no class of these
    assert stack.dtype == np.uint8
    assert stack.tolist() == [[[[250, 250, 250]]], [[[0, 0, 0]]]]


def test_the_colours_are_those_that_cityscapes_publishes():
    published = (
        "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 "
        "4682b4 dc143c ff0000 00008e 000046 003c64 005064 0000e6 770b20"
    )
    assert " ".join(bytes(colour).hex() for colour in CITYSCAPES_CLASSES.colours) == published


def test_the_palette_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        CITYSCAPES_CLASSES.palette[0] = 0


@pytest.mark.parametrize("class_set", [CITYSCAPES_CLASSES, SMALL, dataclasses.replace(SMALL, means={}, things=())])
def test_a_class_set_survives_json(class_set):
    values = class_set.to_dict()
    assert ClassSet.from_dict(values) == class_set  # as a checkpoint has it
    assert ClassSet.from_dict(json.loads(json.dumps(values))) == class_set


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": (), "colours": (), "label_ids": ()}, "for each class, got 0, 0 and 0"),
        ({"names": ("field", "barn", "field")}, "two classes of one set are called 'field'"),
        ({"names": ("field", "barn")}, "for each class, got 2, 3 and 3"),
        ({"colours": SMALL.colours[:2]}, "for each class, got 3, 2 and 3"),
        ({"label_ids": (1, 2, 3, 4)}, "for each class, got 3, 3 and 4"),
        ({"things": (2, 3)}, r"train ids 0 to 2, not \[3\]"),
        ({"things": (-1,)}, r"train ids 0 to 2, not \[-1\]"),
        ({"means": {2: (0, 9)}}, r"train ids 0 to 2, not \[9\]"),
        ({"label_ids": (1, 2, 65536)}, "label ids are of 16 bits"),
        ({"label_ids": (1, -2, 3)}, "label ids are of 16 bits"),
        ({"colours": ((0, 0, 0), (0, 0, 256), (0, 0, 0))}, "colours are RGB"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match=message):
        ClassSet.from_dict(SMALL.to_dict() | change)


def of_size(n: int) -> ClassSet:
    return ClassSet(tuple(map(str, range(n))), ((0, 0, 0),) * n, (), tuple(range(n)))


def test_a_label_of_bytes_has_room_for_255_classes():
    assert len(of_size(255)) == 255
    with pytest.raises(ValueError, match="256 classes do not fit"):
        of_size(256)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "classes",
        {},
        *({k: v for k, v in SMALL.to_dict().items() if k != left_out} for left_out in SMALL.to_dict()),
        SMALL.to_dict() | {"names": 3},
        SMALL.to_dict() | {"colours": [[1, 2]] * 3},
        SMALL.to_dict() | {"colours": [0, 0, 0]},
        SMALL.to_dict() | {"things": ["cow"]},
        SMALL.to_dict() | {"label_ids": [None, None, None]},
        SMALL.to_dict() | {"means": [2]},
        SMALL.to_dict() | {"means": {"two": [0, 2]}},
    ],
)
def test_what_is_no_class_set_is_refused(values):
    with pytest.raises(ValueError):
        ClassSet.from_dict(values)
