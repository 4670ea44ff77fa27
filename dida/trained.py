"""A trained network, from what a run left on disk to label maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dida.assemble import build_student
from dida.config import Config
from dida.data.classes import ClassSet
from dida.data.transforms import Normalise, scaled_image
from dida.evaluate import WHOLE_IMAGE, Inference, evaluating, predict
from dida.paper import Printed
from dida.state import load_weights
from dida.stored import read_stored


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
    inference: Inference = WHOLE_IMAGE  # how its paper asks it
    printed: tuple[Printed, ...] = ()  # what papers print of its like on Cityscapes val

    def require(self, network: str) -> nn.Module:
        """One of the networks. Raises ValueError for one that is not there."""
        if network not in self.networks:
            raise ValueError(f"--network {network}: {self.path} holds {' and '.join(self.networks)} alone")
        return self.networks[network]

    @contextmanager
    def labeller(self, network: str, size: tuple[int, int], inference: Inference = WHOLE_IMAGE) -> "Iterator[Labeller]":
        """A function from pictures to label maps, for as long as the block lasts.

        `network`: one of NETWORKS. `size` (width, height): each picture is scaled to fit into it, its ratio kept.
        """
        model = self.require(network)
        normalise = Normalise().to(next(model.parameters()).device)
        with evaluating(model):
            yield Labeller(model, normalise, size, inference, self.config.data.enlarge)


@dataclass(frozen=True)
class Labeller:
    """[H, W, 3] uint8 RGB -> [H, W] uint8 train ids, at the picture's own size."""

    network: nn.Module
    normalise: Normalise
    size: tuple[int, int]
    inference: Inference
    enlarge: bool  # pictures that are smaller than the size

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        picture_hw3 = scaled_image(picture, self.size, enlarge=self.enlarge)
        scaled = torch.tensor(picture_hw3, device=self.normalise.mean.device).permute(2, 0, 1)
        shape = (picture.shape[0], picture.shape[1])
        return predict(self.network, self.normalise(scaled)[None], shape, self.inference)[0].cpu().numpy()


def load_trained(path: Path, device: torch.device, **hub: Any) -> Trained:
    """The networks of whatever `read_stored` reads, on `device`: a run, a checkpoint, a published file, the hub.

    Raises FileNotFoundError or ValueError for what is none of these.
    """
    stored = read_stored(path, **hub)
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
