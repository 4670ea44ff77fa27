import numpy as np
import pytest

from dida.data import classes

from .factories import CITYSCAPES_IDS, SYNTHIA_IDS


def test_the_tables_agree_with_the_published_ids():
    assert classes.CLASSES == len(classes.NAMES) == len(classes.PALETTE) == 19
    for id_map, ids in (
        (classes.CITYSCAPES_TO_TRAIN, CITYSCAPES_IDS),
        (classes.SYNTHIA_TO_TRAIN, SYNTHIA_IDS),
        (classes.TRAIN_TO_TRAIN, range(19)),
    ):
        assert id_map.train[list(ids)].tolist() == list(range(19))
        assert np.count_nonzero(id_map.train != 255) == 19


@pytest.mark.parametrize(
    "id_map, known",
    [
        (classes.CITYSCAPES_TO_TRAIN, set(range(35))),
        (classes.SYNTHIA_TO_TRAIN, set(range(23))),
        (classes.TRAIN_TO_TRAIN, {*range(19), 255}),
    ],
)
def test_void_ids_are_known_and_others_are_not(id_map, known):
    assert set(np.flatnonzero(id_map.known)) == known


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_apply_maps_any_value_of_the_type(dtype):
    top = np.iinfo(dtype).max
    ids = np.array([[7, 33, 0, top]], dtype=dtype)
    mapped = classes.CITYSCAPES_TO_TRAIN.apply(ids)
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[0, 18, 255, 255]]


def test_export_inverts_the_map():
    ids = classes.TRAIN_TO_CITYSCAPES[: classes.CLASSES]
    assert classes.CITYSCAPES_TO_TRAIN.train[ids].tolist() == list(range(19))
    assert classes.TRAIN_TO_CITYSCAPES[255] == 0


def test_subsets_and_things():
    assert {n: len(ids) for n, ids in classes.SUBSETS.items()} == {19: 19, 16: 16, 13: 13}
    assert classes.SUBSETS[16] == (*range(9), 10, 11, 12, 13, 15, 17, 18)
    assert set(classes.SUBSETS[16]) - set(classes.SUBSETS[13]) == {3, 4, 5}
    assert classes.THINGS == (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)


def test_colourise():
    rgb = classes.colourise(np.array([[0, 13, 255]], dtype=np.uint8))
    assert rgb.tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]
