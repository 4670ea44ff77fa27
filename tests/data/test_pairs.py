"""Samples as pure functions of (seed, index), one decode per file, and targets whose labels nobody opens."""

import contextlib
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dida.batch import MEAN
from dida.data import domains, pairs, scaled_files
from dida.data.image_file import ImageFileError
from dida.data.pairs import Pairs, View

from .factories import make_cityscapes, make_gta, scene
from .samples import SOURCE_VIEW, TARGET_VIEW, make_pairs, same


def test_a_sample_has_the_crops_shapes_and_types(root):
    sample = make_pairs(root)[0]
    assert sample.source_image.shape == sample.target_image.shape == (3, 40, 48)
    assert sample.source_label.shape == (40, 48)
    assert {part.dtype for part in sample[:3]} == {torch.uint8}


@pytest.mark.parametrize("rare", [False, True])
def test_a_sample_is_a_function_of_seed_and_index(root, rare):
    first, second = make_pairs(root, rare=rare), make_pairs(root, rare=rare)
    backwards = {i: second[i] for i in reversed(range(8))}
    assert all(same(first[i], backwards[i]) for i in range(8))
    other = make_pairs(root, rare=rare, seed=1)
    assert not any(same(first[i], other[i]) for i in range(8))
    assert not any(same(first[i], first[i + 1]) for i in range(8))


def test_the_target_does_not_see_how_the_source_is_drawn(root):
    rare, uniform = make_pairs(root, rare=True), make_pairs(root, rare=False)
    synthia = make_pairs(root, rare=False, source="synthia")
    for i in range(8):
        assert torch.equal(rare[i].target_image, uniform[i].target_image)
        assert torch.equal(rare[i].target_image, synthia[i].target_image)
        assert rare[i].target_index == uniform[i].target_index
    assert any(rare[i].source_index != uniform[i].source_index for i in range(8))


def test_distorted_colours_change_nothing_but_the_source_image(root):
    plain, distorting = make_pairs(root), make_pairs(root)
    distorting.source_view = SOURCE_VIEW._replace(distort_colours=True)
    samples = [(plain[i], distorting[i]) for i in range(12)]
    assert all(same(a[1:], b[1:]) for a, b in samples)
    changed = [not torch.equal(a.source_image, b.source_image) for a, b in samples]
    assert sum(changed) >= 9  # 1 of 16 pictures is left as it is
    assert all(same(b, distorting[i]) for i, (_, b) in enumerate(samples))
    levels = {float((b.source_image.float() - a.source_image.float()).mean()) for a, b in samples}
    assert len(levels) >= 9  # each picture in its own way


def test_padding_keeps_the_mean_colour_when_colours_are_distorted(root):
    larger = View(scale=(96, 48), crop=(112, 56), distort_colours=True)
    data = make_pairs(root, rare=False)
    data.source_view = larger
    data.target_view = larger._replace(distort_colours=False)
    for i in range(6):
        assert (data[i].source_image[:, 50:] == torch.tensor(MEAN).round()[:, None, None]).all()


def test_very_late_samples_are_as_cheap_as_the_first(root):
    assert make_pairs(root)[10**15].source_label.shape == (40, 48)


def test_every_file_is_drawn(root):
    data = make_pairs(root, rare=False)
    samples = [data[i] for i in range(60)]
    assert {sample.source_index for sample in samples} == set(range(6))
    assert {sample.target_index for sample in samples} == set(range(5))


def test_half_of_all_crops_are_mirrored(root):
    data = make_pairs(root, rare=False)
    whole = View(scale=(174, 96), crop=(174, 96))
    data.source_view = data.target_view = whole
    samples = [data[i] for i in range(60)]
    mirrored = [not np.array_equal(sample.source_label.numpy(), scene(sample.source_index)) for sample in samples]
    assert 15 <= sum(mirrored) <= 45


@pytest.mark.parametrize("chance, mirrored", [(0.0, False), (1.0, True)])
def test_image_and_label_are_cut_and_mirrored_together(root, chance, mirrored):
    """At native size with a crop of the whole image, a sample is the file itself, or its mirror image."""
    view = View(scale=(174, 96), crop=(174, 96), flip_chance=chance)
    source = domains.labelled("gta5", root, "train")
    data = Pairs(source, domains.unlabelled("gta5", root, "train"), seed=0, source_view=view, target_view=view)
    sample = data[3]
    step = -1 if mirrored else 1
    image = np.asarray(Image.open(source.images[sample.source_index]))[:, ::step].transpose(2, 0, 1)
    assert np.array_equal(sample.source_image.numpy(), image)
    assert np.array_equal(sample.source_label.numpy(), scene(sample.source_index)[:, ::step])
    target = np.asarray(Image.open(data.target.images[sample.target_index]))[:, ::step].transpose(2, 0, 1)
    assert np.array_equal(sample.target_image.numpy(), target)


def test_rare_class_crops_show_the_class_they_were_drawn_for(root):
    data = make_pairs(root)
    sampler = data.rare_classes
    hits = 0
    for i in range(40):
        rng = data._rng(i, pairs._Stream.SOURCE_FILE)
        draw = sampler.draw(rng)
        assert data[i].source_index == draw.file
        hits += int((data[i].source_label == draw.train_id).sum() > sampler.min_crop_pixels)
    assert hits >= 36  # ten tries nearly always find it


def test_each_file_is_decoded_once_however_many_crops_are_rejected(root, monkeypatch):
    opened, real = [], scaled_files.encoded_file
    monkeypatch.setattr(scaled_files, "encoded_file", lambda path, kind: opened.append(path) or real(path, kind))
    for source in ("gta5", "synthia"):
        data = make_pairs(root, source=source)
        data.rare_classes = data.rare_classes._replace(min_crop_pixels=1e9)  # refuses every crop
        opened.clear()
        sample = data[0]
        wanted = [
            data.source.labels[sample.source_index],
            data.source.images[sample.source_index],
            data.target.images[sample.target_index],
        ]
        assert opened == wanted


_recorders: list[list[str]] = []


def _record(event: str, arguments: tuple) -> None:
    if _recorders and event in ("open", "os.listdir", "os.scandir"):
        _recorders[-1].append(str(arguments[0]))


@contextlib.contextmanager
def recorded_file_access():
    """Every path that Python opens or lists meanwhile. Audit hooks cannot be removed, so one is kept for good."""
    if not getattr(_record, "installed", False):
        sys.addaudithook(_record)
        _record.installed = True
    _recorders.append([])
    try:
        yield _recorders[-1]
    finally:
        _recorders.pop()


def test_target_labels_are_neither_opened_nor_listed(tmp_path):
    make_gta(tmp_path, 2)
    make_cityscapes(tmp_path, labelled=("train",), train=3)
    with recorded_file_access() as paths:
        data = make_pairs(tmp_path)
        for i in range(10):
            data[i]
    assert any("leftImg8bit" in path for path in paths)
    assert not [path for path in paths if "gtFine" in path]


def test_the_recorder_would_notice(tmp_path):
    make_cityscapes(tmp_path, train=1)
    with recorded_file_access() as paths:
        os.listdir(tmp_path / "cityscapes" / "gtFine")
        domains.labelled("cityscapes", tmp_path, "train")
    assert [path for path in paths if "gtFine" in path]


def test_target_labels_need_not_exist(tmp_path):
    make_gta(tmp_path, 2)
    make_cityscapes(tmp_path, train=3)
    before = make_pairs(tmp_path)
    shutil.rmtree(tmp_path / "cityscapes" / "gtFine")
    after = make_pairs(tmp_path)
    assert all(same(before[i], after[i]) for i in range(4))
    assert not hasattr(after.target, "labels")


def test_a_labelled_target_is_refused(root):
    labelled = domains.labelled("cityscapes", root, "val")
    with pytest.raises(TypeError, match="unlabelled domain, not LabelledDomain"):
        Pairs(labelled, labelled, seed=0, source_view=SOURCE_VIEW, target_view=TARGET_VIEW)


def test_the_oracle_has_the_target_domain_as_labelled_source(tmp_path):
    make_cityscapes(tmp_path, train=3)
    data = make_pairs(tmp_path, rare=False, source="cityscapes")
    assert data[0].source_label.shape == (40, 48)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"target_view": View((96, 48), (40, 40))}, "differ"),
        ({"target_view": View((96, 48), (48, 40), 0.75)}, "no label"),
        ({"target_view": TARGET_VIEW._replace(distort_colours=True)}, "the target's colours are not distorted"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_views_and_seeds_that_make_no_sense_are_refused(root, change, complaint):
    data = make_pairs(root)
    arguments = {"seed": 0, "source_view": SOURCE_VIEW, "target_view": TARGET_VIEW} | change
    with pytest.raises(ValueError, match=complaint):
        Pairs(data.source, data.target, **arguments)


def test_a_label_of_another_size_stops_the_run_and_both_are_named(tmp_path):
    make_gta(tmp_path, 1)
    make_cityscapes(tmp_path, train=1)
    data = make_pairs(tmp_path, rare=False)
    Image.new("L", (100, 100)).save(data.source.labels[0])
    with pytest.raises(ImageFileError, match=r"images/00001\.png is 174x96, but its label .*labels/00001\.png"):
        data[0]


@pytest.mark.parametrize("size", [(96, 24), (30, 48), (120, 20), (96, 48)])
def test_padding_of_the_target_is_known_and_carries_no_picture(tmp_path, size):
    """FAULTS 10: pictures that are smaller than the crop, whichever way, and one that is not."""
    make_gta(tmp_path, 1)
    make_cityscapes(tmp_path, size, train=2)
    data = make_pairs(tmp_path, rare=False)
    data.target_view = View(scale=size, crop=(48, 40))
    for i in range(4):
        sample = data[i]
        assert sample.target_real.shape == (40, 48)
        assert sample.target_real.sum() == min(size[0], 48) * min(size[1], 40)
        filled = sample.target_image[:, ~sample.target_real]
        assert (filled == torch.tensor(MEAN).round()[:, None]).all()
        assert sample.target_real[: min(size[1], 40), : min(size[0], 48)].all()
