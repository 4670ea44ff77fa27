"""A trained network, from what a run left on disk to label maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dida.assemble import build_student
from dida.config import Config, from_dict
from dida.data.classes import ClassSet
from dida.data.transforms import Normalise, scaled_image
from dida.evaluate import WHOLE_IMAGE, Inference, evaluating, predict
from dida.state import latest, load_checkpoint, load_weights

NETWORKS = ("student", "teacher")


@dataclass(frozen=True)
class Trained:
    """A checkpoint, ready to be asked."""

    path: Path
    step: int
    config: Config
    class_set: ClassSet
    networks: dict[str, nn.Module]  # by name, see NETWORKS

    @contextmanager
    def labeller(self, network: str, size: tuple[int, int], inference: Inference = WHOLE_IMAGE) -> "Iterator[Labeller]":
        """A function from pictures to label maps, for as long as the block lasts.

        `network`: one of NETWORKS. `size` (width, height): each picture is scaled to fit into it, its ratio kept.
        """
        model = self.networks[network]
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


def load_trained(path: Path, device: torch.device) -> Trained:
    """Student and teacher of a run folder's newest checkpoint, or of a checkpoint file, on `device`.

    Raises FileNotFoundError or ValueError for what is no run, or no checkpoint of ours.
    """
    path = latest(path)
    checkpoint = load_checkpoint(path, needs=("step", "config", "classes", *NETWORKS))
    try:
        config, class_set = from_dict(checkpoint["config"]), ClassSet.from_dict(checkpoint["classes"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    networks: dict[str, nn.Module] = {}
    for name in NETWORKS:
        network = build_student(config, class_set)
        expected = f"the network of its own config, {config.model.backbone} with embed_dim {config.model.embed_dim}"
        load_weights(network, checkpoint[name], source=f"{path}, {name}", expected=expected)
        networks[name] = network.to(device)
    return Trained(path, checkpoint["step"], config, class_set, networks)
