"""A trained network, from what a run left on disk to label maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dida.assemble import build_student
from dida.config import Config
from dida.data.classes import ClassSet
from dida.data.transforms import Normalise, scaled_image
from dida.state import load_weights
from dida.use.evaluate import WHOLE_IMAGE, Inference, class_scores, enlarged, evaluating
from dida.use.paper import Printed
from dida.use.stored import read_stored


@dataclass(frozen=True)
class Trained:
    """One or two networks, ready to be asked."""

    path: Path
    step: int
    config: Config
    class_set: ClassSet
    networks: dict[str, nn.Module]  # by name, see NETWORKS; one or both
    family: str | None = None  # of a network that others published; None: of a run
    source: str | None = None  # of such a one: what it says it was trained on
    inference: Inference = WHOLE_IMAGE  # how its paper asks it, or the folder that it was shared in
    printed: tuple[Printed, ...] = ()  # what papers print of its like on Cityscapes val

    def require(self, network: str) -> nn.Module:
        """One of the networks. Raises ValueError for one that is not there."""
        if network not in self.networks:
            raise ValueError(f"network {network}: {self.path} holds {' and '.join(self.networks)} alone")
        return self.networks[network]

    def asked(self, window: int | None, stride: int, *, flip: bool) -> Inference:
        """Through the windows that are asked for, a stride of 0 being half of one; where `window` is None, as its paper
        asks it, but for a stride that is given. `flip` adds the mirror image.

        Raises ValueError for a stride without windows, and for one that would leave pixels unseen.
        """
        asked = self.inference if window is None else Inference(window, stride or max(window // 2, 1))
        if stride and not asked.window:
            raise ValueError(f"stride {stride}: the way from one window to the next, and no window was asked for")
        return replace(asked, stride=stride or asked.stride, flip=flip or asked.flip)

    @contextmanager
    def labeller(self, network: str, size: tuple[int, int], inference: Inference = WHOLE_IMAGE) -> "Iterator[Labeller]":
        """A function from pictures to label maps, for as long as the block lasts.

        `network`: one of NETWORKS. `size` (width, height): each picture is scaled to fit into it, its ratio kept.
        """
        model = self.require(network)
        normalise = Normalise().to(next(model.parameters()).device)
        with evaluating(model):
            yield Labeller(model, normalise, size, inference, self.config.data.enlarge)


class Labelled(NamedTuple):
    """What a network says of a picture."""

    train_ids: np.ndarray  # [H, W] uint8
    confidence: np.ndarray  # [H, W] float32, the probability that it gives to that class


@dataclass(frozen=True)
class Labeller:
    """[H, W, 3] uint8 RGB -> [H, W] uint8 train ids, at the picture's own size."""

    network: nn.Module
    normalise: Normalise
    size: tuple[int, int]
    inference: Inference
    enlarge: bool  # pictures that are smaller than the size

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        scaled = torch.tensor(scaled_image(picture, self.size, enlarge=self.enlarge)).permute(2, 0, 1)
        (labelled,) = self.many(scaled[None], (picture.shape[0], picture.shape[1]))
        return labelled.train_ids

    def many(self, scaled: Tensor, shape: tuple[int, int]) -> "Iterator[Labelled]":
        """What is said of pictures [B, 3, h, w] uint8 RGB that were scaled already, each at their own size (H, W)."""
        seen = self.normalise(scaled.to(self.normalise.mean.device))
        for scores in class_scores(self.network, seen, self.inference):
            scores_CHW = enlarged(scores[None], shape)[0]  # one by one: at the size of a camera they are large
            best_HW, train_ids = scores_CHW.max(0)
            confidence = (best_HW - scores_CHW.logsumexp(0)).exp()
            yield Labelled(train_ids.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy())


def load_trained(place: Path | str, device: torch.device, **hub: Any) -> Trained:
    """The networks of whatever `read_stored` reads, on `device`: a run, a checkpoint, a published file, the hub.

    Raises FileNotFoundError or ValueError for what is none of these.
    """
    stored = read_stored(place, **hub)
    model = stored.config.model
    networks: dict[str, nn.Module] = {}
    for name, weights in stored.weights.items():
        network = build_student(stored.config, stored.class_set)
        expected = f"the network of its own config, {model.backbone} with embed_dim {model.embed_dim}"
        load_weights(network, weights, source=f"{stored.path}, {name}", expected=expected)
        networks[name] = network.to(device)
    return Trained(
        stored.path,
        stored.step,
        stored.config,
        stored.class_set,
        networks,
        stored.family,
        stored.source,
        stored.inference,
        stored.printed,
    )
