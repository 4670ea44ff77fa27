"""The device that is asked for."""

import torch

from dida.machine.distributed import place, processes

KNOWN = ("cpu", "cuda")  # Apple's has no float64, which sums over tiles are in


def find_device(name: str) -> torch.device:
    """auto is the GPU if there is one; of several processes each takes the one with its number on its machine.

    Raises ValueError for a device that is not there, or that nothing here runs on, such as a GPU older than the code in
    this PyTorch; and for one GPU that all processes would share.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in KNOWN:
        raise ValueError(f"device {name}: expected auto, cpu, cuda or cuda:N; on a Mac that is cpu")
    if processes() > 1 and name.startswith("cuda:"):
        raise ValueError(f"device {name}: {processes()} processes cannot share one GPU; with cuda each has one")
    if processes() > 1 and name == "cuda":
        name = f"cuda:{place()}"
    try:
        device = (torch.zeros(1, device=name) + 1).device  # runs something, so that what cannot run is told now
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
        raise ValueError(f"device {name}: {str(error).splitlines()[0]}") from error
    if processes() > 1 and device.type == "cuda":
        torch.cuda.set_device(device)  # what NCCL joins
    return device
