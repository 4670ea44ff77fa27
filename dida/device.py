"""The device that is asked for."""

import torch

KNOWN = ("cpu", "cuda", "mps")


def find_device(name: str) -> torch.device:
    """auto is the GPU if there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        name = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in KNOWN:
            raise ValueError(f"--device {name}: expected one of auto, {', '.join(KNOWN)}")
        return (torch.zeros(1, device=device) + 1).device  # a PyTorch without code for this GPU fails here, not later
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
