"""How good a network is: intersection over union on whole labelled images, scored at the labels' own resolution.

The protocol is that of the DAFormer family: the image is scaled to the evaluation size, the network's scores are
enlarged bilinearly to the size of the label, and one confusion matrix is summed over all images. Pixels labelled 255
are left out; pixels of classes outside a subset are not. A second matrix counts the pixels near class boundaries alone.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from dida.batch import IGNORE
from dida.data.classes import ClassSet
from dida.data.labelled_images import LabelledImage
from dida.data.statistics import UnknownId, pixels_by_value, tally_unknown
from dida.data.transforms import Normalise
from dida.data.workers import ReadAhead
from dida.errors import UserError
from dida.machine.distributed import ALONE, World
from dida.machine.progress import Progress

LEAST = 32  # pixels a side that an encoder can look at
BAND = 3  # pixels that the boundary band reaches to either side of a class boundary

_COUNTERS = 2  # threads that count and write beside the networks
_BEHIND = 4  # pictures that may wait for them; more would only take memory

OnPrediction = Callable[[str, str, np.ndarray], None]  # (network, path of the image, [H, W] uint8 train ids)


@dataclass(frozen=True)
class Inference:
    """How a network is asked about an image: all at once, or through a sliding window."""

    window: int = 0  # side of the square window in pixels of the scaled image; 0: the whole image at once
    stride: int = 0  # pixels from one window to the next; at most `window`
    flip: bool = False  # average with what it says of the mirror image

    def __post_init__(self) -> None:
        """Raises ValueError for a stride that would leave pixels unseen."""
        if self.window < 0 or (self.window and not 0 < self.stride <= self.window):
            raise ValueError(
                f"window {self.window} and stride {self.stride}: the window is at least 1 pixel, and the stride is 1 "
                "to the size of the window, or pixels between two windows would never be seen"
            )


WHOLE_IMAGE = Inference()


class NothingToScore(UserError):
    """No pixel of the labels belongs to a class."""


class Scores(NamedTuple):
    """Shares in [0, 1]. NaN where nothing can be said: of a class that occurs neither in labels nor predictions.

    Means are over classes with labelled pixels: which these are is up to the labels alone, so that networks scored on
    them are comparable. A class that is only predicted counts where its pixels were to be found.
    """

    iou: np.ndarray  # [C] intersection over union
    accuracy: np.ndarray  # [C] share of the class's labelled pixels that were found (recall); NaN if there are none
    mean_iou: dict[int, float]  # over all declared classes, and the fewer ones of published tables, by their number
    all_accuracy: float  # aAcc: share of all labelled pixels that are right
    mean_accuracy: float  # mAcc: mean of `accuracy` over the classes that are labelled


class Evaluation(NamedTuple):
    """What `evaluate` found."""

    scores: dict[str, Scores]  # by network
    band: dict[str, Scores]  # the same of the pixels in the boundary band alone
    images: int
    sizes: dict[tuple[int, int], int]  # images by the (width, height) that they were scored at
    share: float  # of all pixels, those that are labelled with a class: the only ones that scores are of
    unknown: dict[int, UnknownId]  # raw ids that the format of the labels does not define


def confusion(label: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """[C, C] int64: pixels by (label, prediction). `label` holds 0 .. C-1 or 255 (left out), `predicted` 0 .. C-1.

    Both are on the CPU and have the same shape and any integer type.
    """
    pair = label.numpy().astype(np.uint16) << 8 | predicted.numpy().astype(np.uint16)
    return torch.from_numpy(pixels_by_value(pair).reshape(256, 256)[:classes, :classes].copy())


def boundary_band(label: np.ndarray, width: int = BAND) -> np.ndarray:
    """[H, W] bool: pixels of a class that have a pixel of another class within `width` rows and columns of them.

    That is a Chebyshev distance of at most `width` pixels, in a window of 2 width + 1 pixels a side. 255 is no class:
    such a pixel is never in the band, and its edge is no boundary. `label` is [H, W] uint8, train ids or 255.
    """
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    valid = label != IGNORE
    # Around a pixel of a class, 255 can be neither the smallest label nor, once it is a 0, the largest.
    largest, smallest = cv2.dilate(np.where(valid, label, 0), window), cv2.erode(label, window)
    return valid & (largest != smallest)


def score(confusion_CC: Tensor, subsets: Mapping[int, tuple[int, ...]]) -> Scores:
    """Scores of a confusion matrix [C, C] (rows are labels). `subsets`: the train ids of each mean, by their number."""
    pixels_CC = confusion_CC.cpu().numpy().astype(np.float64)
    hit_C, labelled_C, predicted_C = np.diag(pixels_CC), pixels_CC.sum(1), pixels_CC.sum(0)
    iou_C = _share(hit_C, labelled_C + predicted_C - hit_C)
    accuracy_C = _share(hit_C, labelled_C)
    return Scores(
        iou=iou_C,
        accuracy=accuracy_C,
        mean_iou={
            n: mean_of_known(np.where(labelled_C > 0, iou_C, np.nan)[np.array(ids)]) for n, ids in subsets.items()
        },
        all_accuracy=float(_share(hit_C.sum(), labelled_C.sum())),
        mean_accuracy=mean_of_known(accuracy_C),
    )


def mean_of_known(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def class_scores(model: nn.Module, image: Tensor, inference: Inference) -> Tensor:
    """Class scores (logits) [B, C, H, W] of normalised images [B, 3, H, W]; `model` returns a `Prediction`.

    Windows that overlap, and the mirror image, are averaged as logits.
    """
    scores = _seen(model, image, inference)
    if inference.flip:
        scores = (scores + _seen(model, image.flip(3), inference).flip(3)) / 2
    return scores


def predict(model: nn.Module, image: Tensor, size: tuple[int, int], inference: Inference) -> Tensor:
    """Train ids [B, H, W] uint8 at `size` = (H, W) of normalised images [B, 3, h, w], scores enlarged bilinearly."""
    # The same as argmax, in a quarter of its time on a CPU.
    return enlarged(class_scores(model, image, inference), size).max(1).indices.to(torch.uint8)


def enlarged(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Class scores [B, C, h, w] at `size` = (H, W), bilinearly: [B, C, H, W]."""
    if scores.shape[2:] == size:
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module is left in the mode it was in.

    Module by module, because a teacher keeps dropout off and batch norm on while it trains.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    networks: Mapping[str, nn.Module],
    images: Dataset[LabelledImage],
    class_set: ClassSet,
    *,
    declared: Iterable[int] | None = None,
    inference: Inference = WHOLE_IMAGE,
    workers: int = 0,
    on_prediction: OnPrediction | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Score networks of these classes, all on one device, in one pass over the images (`LabelledImages`).

    `declared`: train ids of the classes that the labels can spell, which means are over; by default all.
    `on_prediction` is handed every predicted label map, by several threads. Several processes of a `world` share the
    pictures, and what is found is of all. Raises ImageFileError for a file that cannot be used, and NothingToScore if
    no pixel of the labels belongs to a class.
    """
    device = next(next(iter(networks.values())).parameters()).device
    normalise = Normalise().to(device)
    tally = _Tally(networks, len(class_set))
    order = range(world.rank, len(images), world.size)  # type: ignore[arg-type]
    pin = device.type == "cuda"
    # One by one: sizes differ within a data set.
    with (
        world.together(),
        ReadAhead(images, order, batch_size=None, workers=workers, pin_memory=pin) as samples,
        evaluating(*networks.values()),
        Progress(len(order), "scoring", "image") as progress,
        ThreadPoolExecutor(_COUNTERS) as counters,
    ):
        behind: deque[Future[_Picture]] = deque()
        for sample in samples:
            image, size = normalise(sample.image.to(device, non_blocking=True))[None], tuple(sample.label.shape)
            predicted = {name: predict(network, image, size, inference)[0] for name, network in networks.items()}
            behind.append(counters.submit(_count, sample, predicted, len(class_set), on_prediction))
            while len(behind) > _BEHIND:
                tally.add(behind.popleft().result())
            progress.advance()
        for picture in behind:
            tally.add(picture.result())
    tally = tally.over(world)
    total, in_band, sizes = tally.total, tally.in_band, tally.sizes
    _require_labels(total, sum(sizes.values()))
    subsets = class_set.subsets if declared is None else class_set.subsets_among(declared)
    scores, band = ({name: score(matrix, subsets) for name, matrix in counted.items()} for counted in (total, in_band))
    pixels = sum(width * height * count for (width, height), count in sizes.items())
    share = int(next(iter(total.values())).sum()) / pixels
    unknown = tally_unknown([ids for _, ids in tally.unknown], [Path(label) for label, _ in tally.unknown])
    return Evaluation(scores, band, sum(sizes.values()), dict(sizes), share, unknown)


def _require_labels(total: dict[str, Tensor], images: int) -> None:
    if not any(matrix.any() for matrix in total.values()):
        raise NothingToScore(
            f"none of the {images} labels holds a pixel of a class, so there is nothing to score: "
            "benchmarks publish their test split without labels"
        )


class _Picture(NamedTuple):
    """What was counted of one picture."""

    label_path: str
    unknown: dict[int, int]  # pixels by raw id that the format of the labels does not define
    size: tuple[int, int]  # (width, height) of its label
    total: dict[str, Tensor]  # [C, C] int64 by network
    in_band: dict[str, Tensor]


class _Tally:
    """Sums over pictures."""

    def __init__(self, networks: Iterable[str], classes: int) -> None:
        self.total, self.in_band = (
            {name: torch.zeros(classes, classes, dtype=torch.int64) for name in networks} for _ in range(2)
        )
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.unknown: list[tuple[str, dict[int, int]]] = []  # label files that hold some, and what they hold

    def add(self, picture: _Picture) -> None:
        self.sizes[picture.size] += 1
        if picture.unknown:
            self.unknown.append((picture.label_path, picture.unknown))
        for name in self.total:
            self.total[name] += picture.total[name]
            self.in_band[name] += picture.in_band[name]

    def over(self, world: World) -> "_Tally":
        """The sum of what all processes have counted."""
        whole = _Tally(self.total, len(next(iter(self.total.values()))))
        whole.total, whole.in_band = (
            {name: world.sum(matrix) for name, matrix in own.items()} for own in (self.total, self.in_band)
        )
        whole.sizes = sum(world.values(self.sizes), Counter())
        whole.unknown = [file for found in world.values(self.unknown) for file in found]
        return whole


def _count(
    sample: LabelledImage, predicted: Mapping[str, Tensor], classes: int, on_prediction: OnPrediction | None
) -> _Picture:
    """Beside the thread that launches the networks: only this one waits for the device."""
    label = sample.label
    near = label.where(torch.from_numpy(boundary_band(label.numpy())), IGNORE)
    found = {name: train_ids.cpu() for name, train_ids in predicted.items()}
    if on_prediction is not None:
        for name, train_ids in found.items():
            on_prediction(name, sample.path, train_ids.numpy())
    return _Picture(
        sample.label_path,
        sample.unknown,
        (label.shape[1], label.shape[0]),
        {name: confusion(label, train_ids, classes) for name, train_ids in found.items()},
        {name: confusion(near, train_ids, classes) for name, train_ids in found.items()},
    )


def _seen(model: nn.Module, image: Tensor, inference: Inference) -> Tensor:
    """Scores of the whole image at once, or the mean over the windows that show a pixel."""
    if not inference.window:
        return _logits(model, image)
    height, width = image.shape[2:]
    total: Tensor | None = None  # made once a window has said how many classes there are
    windows_HW = image.new_zeros(height, width)
    for top in _starts(height, inference):
        for left in _starts(width, inference):
            place = (..., slice(top, top + inference.window), slice(left, left + inference.window))
            scores = _logits(model, image[place])
            if total is None:
                total = scores.new_zeros(len(image), scores.shape[1], height, width)
            total[place] += scores
            windows_HW[place] += 1
    assert total is not None  # there is a window at (0, 0)
    return total / windows_HW


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    """Class scores of an image of any size: encoders divide by 32, so less than that is continued by its edge."""
    height, width = image.shape[2:]
    right, bottom = max(LEAST - width, 0), max(LEAST - height, 0)
    if right or bottom:
        image = F.pad(image, (0, right, 0, bottom), mode="replicate")
    return model(image).logits[:, :, :height, :width]


def _starts(length: int, inference: Inference) -> list[int]:
    """Where windows start along one side: every stride, and the last one flush with the end."""
    last = max(length - inference.window, 0)
    return [*range(0, last, inference.stride), last]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        return part / whole
