"""Inputs that are functions of their names, so that no record has to store them (see data/README.md)."""

import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


def record(name: str) -> dict[str, np.ndarray]:
    """What is in data/NAME.npz."""
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal draws of a stream of numpy that is frozen for ever."""
    return _stream(name).standard_normal(shape)


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws from [0, 1) of the same streams."""
    return _stream(name).random_sample(shape)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The start value of a parameter or buffer, by its name in DAFormer's state dict."""
    drawn = normal(key, shape)
    if key.endswith("running_var"):
        return np.abs(drawn) + 0.5
    if len(shape) <= 1:
        return (1 if key.endswith("weight") else 0) + 0.1 * drawn
    return drawn / np.sqrt(np.prod(shape[1:]))


def sketch(key: str, tensor: np.ndarray) -> np.ndarray:
    """[3] norm, product with a direction that is drawn by name, and sum of absolute values of a tensor."""
    return np.array([np.linalg.norm(tensor), (tensor * normal(f"sketch/{key}", tensor.shape)).sum(), abs(tensor).sum()])


def _stream(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))
