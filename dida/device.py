"""The device that is asked for."""

import torch

from dida.distributed import place, processes


def find_device(name: str) -> torch.device:
    """auto is the GPU if there is one; of several processes each takes the one with its number on its machine.

    Raises ValueError for a device that is not there, or one GPU that all processes would share.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if processes() > 1 and name.startswith("cuda:"):
        raise ValueError(f"--device {name}: {processes()} processes cannot share one GPU; with cuda each has one")
    if processes() > 1 and name == "cuda":
        name = f"cuda:{place()}"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    if processes() > 1 and device.type == "cuda":
        torch.cuda.set_device(device)  # what NCCL joins
    return device
