"""Batches on a device: the same whoever loads them and wherever a run resumes; a file at fault is named."""

import time

import pytest
import torch

from dida.batch import MEAN, STD
from dida.data.image_file import ImageFileError
from dida.data.loader import batches
from dida.data.pairs import Pairs

from .factories import make_cityscapes, make_gta
from .samples import SOURCE_VIEW, TARGET_VIEW, make_pairs, same

CPU = torch.device("cpu")


def run(data: Pairs, start: int, stop: int, workers: int = 0) -> list[tuple]:
    steps = batches(data, batch_size=2, start=start, stop=stop, workers=workers, device=CPU)
    return [(*batch.source, batch.target, *ids) for batch, ids in steps]


def test_batches_do_not_depend_on_the_workers(root):
    data = make_pairs(root)
    alone, two = run(data, 0, 4), run(data, 0, 4, workers=2)
    assert len(alone) == len(two) == 4
    assert all(same(a, b) for a, b in zip(alone, two, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_same_batches(root, workers):
    data = make_pairs(root)
    assert all(same(a, b) for a, b in zip(run(data, 0, 5)[3:], run(data, 3, 5, workers), strict=True))


def test_a_batch_holds_its_samples_normalised(root):
    data = make_pairs(root)
    steps = batches(data, batch_size=2, start=1, stop=2, workers=0, device=CPU)
    (batch, ids), *rest = steps
    assert rest == []
    assert steps.waited >= 0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    for row, index in enumerate((2, 3)):
        sample = data[index]
        assert torch.allclose(batch.source.image[row] * std + mean, sample.source_image.float(), atol=1e-3)
        assert torch.allclose(batch.target[row] * std + mean, sample.target_image.float(), atol=1e-3)
        assert torch.equal(batch.source.label[row], sample.source_label.long())
        assert torch.equal(batch.real[row], sample.target_real)
        assert (ids.source[row], ids.target[row]) == (sample.source_index, sample.target_index)
    assert batch.source.label.dtype == torch.int64
    assert batch.source.image.dtype == batch.target.dtype == torch.float32


def test_waiting_is_timed(root):
    class Slow(Pairs):
        def __getitem__(self, index):
            time.sleep(0.05)
            return super().__getitem__(index)

    data = make_pairs(root)
    slow = Slow(data.source, data.target, seed=0, source_view=SOURCE_VIEW, target_view=TARGET_VIEW)
    steps = batches(slow, batch_size=2, start=0, stop=1, workers=0, device=CPU)
    next(steps)
    assert steps.waited > 0.09


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_stops_the_run_and_is_named(tmp_path, workers):
    make_gta(tmp_path, 1)
    make_cityscapes(tmp_path, train=1)
    data = make_pairs(tmp_path, rare=False)
    data.target.images[0].write_bytes(b"damaged")
    with pytest.raises(ImageFileError, match=r"aachen_000000_000019_leftImg8bit\.png: not a readable image"):
        run(data, 0, 1, workers)


@pytest.mark.gpu
def test_batches_arrive_on_the_device(root):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    data = make_pairs(root)
    on_device = batches(data, batch_size=2, start=0, stop=3, workers=2, device=device)
    for (batch, _), expected in zip(on_device, run(data, 0, 3), strict=True):
        assert batch.target.device.type == batch.source.label.device.type == "cuda"
        assert torch.allclose(batch.source.image.cpu(), expected[0], atol=1e-6)
        assert torch.equal(batch.source.label.cpu(), expected[1])
        assert torch.allclose(batch.target.cpu(), expected[2], atol=1e-6)
