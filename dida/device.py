"""The device that is asked for."""

import torch


def find_device(name: str) -> torch.device:
    """auto is the GPU if there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
