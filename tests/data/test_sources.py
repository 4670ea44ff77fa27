"""Several sources as one: which files, which classes, how often each is drawn."""

import json

import numpy as np
import pytest

from dida.data import domains
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.image_file import read_label
from dida.data.pairs import Pairs
from dida.data.rare_class import rare_classes
from dida.data.sources import labelled_sources, published_mean_of_all, source_surveys
from dida.data.statistics import class_statistics

from .factories import save_ids, save_image
from .samples import SOURCE_VIEW, TARGET_VIEW


@pytest.fixture
def mine(tmp_path):
    """Two pictures of road and tractor, in a folder whose path holds a +."""
    folder = tmp_path / "my+data"
    for i in range(2):
        save_image(folder / "images" / f"{i}.png", np.ones((40, 48, 3), dtype=np.uint8))
        save_ids(folder / "labels" / f"{i}.png", np.repeat(np.array([[5, 6]], dtype=np.uint8), 24, 1).repeat(40, 0))
    (folder / "classes.json").write_text(json.dumps({"5": "road", "6": "tractor"}))
    return folder


def test_the_first_ones_classes_are_those_of_all(root, mine, caplog):
    joined = labelled_sources(f"gta5+synthia+folder:{mine}", root, "train")
    assert (len(joined.images), len(joined.labels)) == (6 + 2 + 2, 10)
    assert joined.class_set == CITYSCAPES_CLASSES
    assert "tractor ignored" in caplog.text
    assert set(np.unique(read_label(joined.labels[9], joined.encoding(9)))) == {0, 255}
    for part, start in (("gta5", 0), ("synthia", 6)):
        alone = domains.labelled(part, root, "train")
        for i in range(2):
            expected = read_label(alone.labels[i], alone.encoding(i))
            assert np.array_equal(read_label(joined.labels[start + i], joined.encoding(start + i)), expected)
    own = labelled_sources(f"folder:{mine}+gta5", root, "train")
    assert own.class_set.names == ("road", "tractor")


def test_statistics_are_those_of_all_files_in_order(root, mine):
    joined = labelled_sources(f"gta5+folder:{mine}", root, "train").statistics()
    alone = class_statistics(domains.labelled("gta5", root, "train"))
    assert np.array_equal(joined.pixels[:6], alone.pixels)
    assert joined.pixels[6:].sum(1).tolist() == [960, 960]
    assert joined.total[6:].tolist() == [1920, 1920]


@pytest.mark.parametrize(
    "text, weights",
    [("gta5", (1,)), ("gta5+synthia", (1, 1)), ("gta5*2+synthia", (2, 1)), ("gta+synthia*0.5", (1, 0.5))],
)
def test_weights_are_read(root, text, weights):
    assert labelled_sources(text, root, "train").weights == weights
    assert len(source_surveys(text, root, "train")) == len(weights)


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("gta5+nowhere", ValueError, "no domain is called 'gta5[+]nowhere'"),
        ("gta5*0+synthia", ValueError, "a weight must be above 0"),
        ("gta5+folder:/nowhere", FileNotFoundError, "/nowhere"),
        ("gta5*x", ValueError, "no domain is called"),
    ],
)
def test_what_is_no_source_is_said(root, text, error, message):
    with pytest.raises(error, match=message):
        labelled_sources(text, root, "train")


@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("weight, share", [("", 2 / 8), ("*9", 18 / 24)])
def test_a_source_counts_as_often_as_its_weight(root, rare, weight, share):
    joined = labelled_sources(f"gta5+synthia{weight}", root, "train")
    statistics = joined.statistics()
    sampler = None
    if rare:  # of one class alone, whose candidates are all files
        road = np.zeros_like(statistics.pixels)
        road[:, 0] = 100
        sampler = rare_classes(road, joined.class_set.names, min_pixels=10, weight_F=joined.weight_F)
    data = Pairs(joined, domains.unlabelled("cityscapes", root, "train"), seed=0, source_view=SOURCE_VIEW,
                 target_view=TARGET_VIEW, rare_classes=sampler)  # fmt: skip
    drawn = np.array([data[i].source_index for i in range(150)])
    assert np.mean(drawn >= 6) == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize("text, mean", [("synthia", 16), ("gta5", None), ("gta5+synthia", None), ("folder:/x", None)])
def test_the_published_mean_is_that_of_all(text, mean):
    assert published_mean_of_all(text) == mean
