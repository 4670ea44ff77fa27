"""What the networks of a run say of a domain: overlaps, calibration, and what needs no label, in one pass."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dida.batch import IGNORE
from dida.data.domains import UnlabelledDomain
from dida.data.image_file import read_image
from dida.data.labelled_images import LabelledImage
from dida.data.transforms import Normalise, scaled_image
from dida.data.workers import ReadAhead
from dida.machine.progress import Progress
from dida.use.evaluate import Inference, boundary_band, class_scores, confusion, enlarged, evaluating, score
from dida.use.trained import Trained

BINS = 15  # of confidence, of equal width; as Guo et al., On Calibration of Modern Neural Networks, ICML 2017, Sec. 4


@dataclass(frozen=True)
class Measured:
    """What one network says of a domain, counted over its pixels."""

    pixels_CC: np.ndarray  # [C, C] int64: by (label, prediction)
    band_CC: np.ndarray  # [C, C] int64: the same near boundaries of classes alone
    bins: np.ndarray  # [3, BINS] labelled pixels by their confidence: how many, the sum of it, how many are right
    said_C: np.ndarray  # [C] int64: pixels by prediction, labelled or not
    entropy: float  # mean over all pixels, as a share of the most there can be, log C
    confident: float  # share of all pixels that are surer than the run's threshold
    picture_iou: np.ndarray  # [N] mean IoU of each picture over the classes labelled in it; NaN without any

    @property
    def calibration_error(self) -> float:
        """ECE in [0, 1]: how far confidence is from accuracy, bin by bin, weighted by pixels; NaN without labels."""
        pixels, confidence, right = self.bins
        return float(np.abs(confidence - right).sum() / pixels.sum()) if pixels.any() else math.nan


@dataclass(frozen=True)
class Measurement:
    """What the networks of one run say of the pictures of a domain."""

    networks: dict[str, Measured]
    agreement: float | None  # share of all pixels where student and teacher say the same; None of one network


class WithoutLabels(Dataset[LabelledImage]):
    """The pictures of a domain, every pixel of them labelled 255, so that what needs no label can be measured."""

    def __init__(self, domain: UnlabelledDomain, scale: tuple[int, int], *, enlarge: bool) -> None:
        """`scale` (width, height): each picture is scaled to fit into it, see `scaled_image`."""
        self._domain, self._scale, self._enlarge = domain, scale, enlarge

    def __len__(self) -> int:
        return len(self._domain.images)

    def __getitem__(self, index: int) -> LabelledImage:
        """Raises ImageFileError."""
        path = self._domain.images[index]
        picture = read_image(path)
        scaled = scaled_image(picture, self._scale, enlarge=self._enlarge)
        nothing = torch.full(picture.shape[:2], IGNORE, dtype=torch.uint8)
        image = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
        return LabelledImage(image, nothing, str(path), "", {})


def measure_run(
    trained: Trained, images: Dataset[LabelledImage], *, inference: Inference, workers: int, title: str
) -> Measurement:
    """Look at every picture once with every network. Raises ImageFileError for a file that cannot be used."""
    device = next(next(iter(trained.networks.values())).parameters()).device
    normalise = Normalise().to(device)
    threshold = trained.config.teach.threshold
    tallies = {name: _Tally(len(trained.class_set), threshold, device) for name in trained.networks}
    agreed, seen = torch.zeros((), dtype=torch.int64, device=device), 0
    order = range(len(images))  # type: ignore[arg-type]
    with (
        ReadAhead(images, order, batch_size=None, workers=workers, pin_memory=device.type == "cuda") as samples,
        evaluating(*trained.networks.values()),
        Progress(len(order), title, "picture") as progress,
    ):
        for sample in samples:
            image = normalise(sample.image.to(device, non_blocking=True))[None]
            label, size = sample.label, tuple(sample.label.shape)
            near = label.where(torch.from_numpy(boundary_band(label.numpy())), IGNORE)
            said = []
            for name, network in trained.networks.items():
                scores = enlarged(class_scores(network, image, inference), size)
                said.append(tallies[name].add(scores[0].float(), label, near))
            agreed += (said[0] == said[-1]).sum()
            seen += label.numel()
            progress.advance()
    agreement = float(agreed) / seen if len(trained.networks) > 1 else None
    return Measurement({name: tally.done() for name, tally in tallies.items()}, agreement)


class _Tally:
    """Counts of one network: those by label on the CPU, the others on its device."""

    def __init__(self, classes: int, threshold: float, device: torch.device) -> None:
        self._classes, self._threshold, self._device = classes, threshold, device
        self._pixels, self._band = (torch.zeros(classes, classes, dtype=torch.int64) for _ in range(2))
        self._said = self._zeros(classes, dtype=torch.int64)
        self._bins = self._zeros(3, BINS, dtype=torch.float64)
        self._sums = self._zeros(2, dtype=torch.float64)  # of entropy, and of confident pixels
        self._picture_iou: list[float] = []

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def add(self, scores_CHW: Tensor, label: Tensor, near: Tensor) -> Tensor:
        """Count a picture; its predicted train ids [H, W], on the device of its scores.

        `label` and `near`, that is the label in the boundary band alone, are [H, W] uint8 on the CPU.
        """
        C = self._classes
        log_CHW = scores_CHW.log_softmax(0)
        highest, predicted = log_CHW.max(0)
        confidence = highest.exp()
        train_ids = predicted.to(torch.uint8).cpu()
        one = confusion(label, train_ids, C)
        self._pixels += one
        self._band += confusion(near, train_ids, C)
        self._said += torch.bincount(predicted.flatten(), minlength=C)
        entropy = -(log_CHW.exp() * log_CHW).sum(dtype=torch.float64) / math.log(max(C, 2))
        self._sums += torch.stack([entropy, (confidence > self._threshold).sum().double()])
        label = label.to(self._device, non_blocking=True)
        self._bin(confidence, predicted == label, label < C)
        self._picture_iou.append(score(one, {C: tuple(range(C))}).mean_iou[C])
        return predicted

    def _bin(self, confidence: Tensor, right: Tensor, labelled: Tensor) -> None:
        sure = confidence[labelled].double()
        index = (sure * BINS).ceil().long().clamp(1, BINS) - 1  # (i / BINS, (i + 1) / BINS]
        parts = (torch.ones_like(sure), sure, right[labelled].double())
        self._bins += torch.stack([torch.bincount(index, part, minlength=BINS) for part in parts])

    def done(self) -> Measured:
        """On the host."""
        pixels, band, said, bins = (t.cpu().numpy() for t in (self._pixels, self._band, self._said, self._bins))
        entropy, confident = (self._sums / max(int(said.sum()), 1)).tolist()
        return Measured(pixels, band, bins, said, entropy, confident, np.array(self._picture_iou))
