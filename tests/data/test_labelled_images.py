"""Whole images for evaluation: the image is scaled, the label is not."""

import numpy as np
import torch

from dida.data import domains
from dida.data.labelled_images import LabelledImages

from .factories import scene


def test_labelled_images_scale_the_image_but_not_the_label(root):
    data = LabelledImages(domains.labelled("cityscapes", root, "val"), scale=(64, 32))
    assert len(data) == 2
    image, label, path, label_path, _ = data[1]
    assert (image.shape, image.dtype) == ((3, 32, 64), torch.uint8)
    assert np.array_equal(label.numpy(), scene(1001 + sum(b"val"), (128, 64)))
    assert path.endswith("zurich_000001_000019_leftImg8bit.png")
    assert label_path.endswith("zurich_000001_000019_gtFine_labelIds.png")
    (batch,) = list(torch.utils.data.DataLoader(data, batch_size=1))[1:]
    assert batch.image.shape == (1, 3, 32, 64)
    assert batch.label.shape == (1, 64, 128)
    assert list(batch.path) == [path]
