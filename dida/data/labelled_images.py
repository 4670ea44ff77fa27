"""Whole labelled images, as evaluation wants them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dida.data.domains import LabelledDomain
from dida.data.image_file import read_ids, read_image, require_same_size
from dida.data.statistics import unknown_ids
from dida.data.transforms import scaled_image


class LabelledImage(NamedTuple):
    """An image as the network sees it, and its label as it is scored."""

    image: Tensor  # [3, h, w] uint8 RGB, scaled
    label: Tensor  # [H, W] uint8 train ids, native resolution
    path: str  # of the image
    label_path: str  # "" where no file has labels
    unknown: dict[int, int]  # pixels by raw id, of those that the label's format does not define


class LabelledImages(Dataset[LabelledImage]):
    """Whole images of a labelled domain with full-resolution labels, in order, for evaluation."""

    def __init__(self, domain: LabelledDomain, scale: tuple[int, int], *, enlarge: bool = True) -> None:
        """`scale` (width, height): each image is scaled to fit into it, keeping its ratio; see `scaled_image`."""
        self.domain = domain
        self.scale = scale
        self.enlarge = enlarge

    def __len__(self) -> int:
        return len(self.domain.images)

    def __getitem__(self, index: int) -> LabelledImage:
        """Raises ImageFileError if a file is unreadable or a label's size is not that of its image."""
        image_path, label_path = self.domain.images[index], self.domain.labels[index]
        encoding = self.domain.encoding(index)
        ids = read_ids(label_path, encoding)
        image = read_image(image_path)
        require_same_size(image_path, image.shape, label_path, ids.shape)
        scaled = scaled_image(image, self.scale, enlarge=self.enlarge)
        return LabelledImage(
            torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1))),
            torch.from_numpy(encoding.ids.apply(ids)),
            str(image_path),
            str(label_path),
            unknown_ids(ids, encoding),
        )
