"""What this machine is, what it reaches when it only copies or multiplies, and why nothing could be measured on it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu.program import Program, begin, stage_parser

NEEDED = {  # module -> package
    "torch": "torch", "triton": "triton", "numpy": "numpy", "timm": "timm", "cv2": "opencv-python-headless",
    "PIL": "pillow", "imagecodecs": "imagecodecs", "safetensors": "safetensors", "tqdm": "tqdm", "tyro": "tyro",
    "pytest": "pytest", "setuptools": "setuptools",
}  # fmt: skip
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "g++", "make", "git")
LOOK = (["nvidia-smi"], ["free", "-g"], ["df", "-h", "/tmp", "/dev/shm"])


def missing_packages(present: Callable[[str], Any] = find_spec) -> list[str]:
    return [package for module, package in NEEDED.items() if not present(module)]


def obstacles_here(device: str, packages: Sequence[str], commit: str, has_cuda: bool) -> list[str]:
    """Why nothing can be measured, each with its cure; empty if all is well."""
    found = []
    if packages:
        found.append(f"these packages are missing: {' '.join(packages)}; let their wheels travel (--wheels DIR)")
    elif device == "cuda" and not has_cuda:
        found.append("there is no CUDA device that this PyTorch can use; --device cpu tries the command without one")
    if commit == "unknown":
        found.append("nothing here says which commit this is, and a record must: set DIDA_COMMIT to its hash")
    return found


def describe(program: Program) -> None:
    """The machine as its own tools describe it, into the log."""
    for command in LOOK:
        if shutil.which(command[0]):
            subprocess.run(command, check=False)
    program.keep(
        cores=os.cpu_count(),
        python_headers=Path(sysconfig.get_path("include"), "Python.h").exists(),
        tools={tool: shutil.which(tool) or shutil.which(f"/usr/local/cuda/bin/{tool}") for tool in TOOLS},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    describe(program)
    packages = missing_packages()
    if packages:  # then nothing of ours can be imported that would know more
        commit = os.environ.get("DIDA_COMMIT", "unknown")
        program.keep(obstacles=obstacles_here(program.device, packages, commit, has_cuda=False))
    else:
        know(program)
    print("\n".join(program.found["obstacles"]))
    return 1 if program.found["obstacles"] else 0


def know(program: Program) -> None:
    """The header that every number travels with, the card, and its ceilings."""
    import torch

    from bench import record

    on_gpu = program.device == "cuda" and torch.cuda.is_available()
    header = record.header(program.device)
    program.keep(header=header, obstacles=obstacles_here(program.device, [], header["commit"], on_gpu))
    print(record.render_header(header), flush=True)
    if on_gpu:
        from bench.kernels import ceilings

        card = torch.cuda.get_device_properties(0)
        capability = 10 * card.major + card.minor
        program.keep(capability=capability, memory_bytes=card.total_memory, multiprocessors=card.multi_processor_count)
        program.keep(ceilings=ceilings())
        program.keep(header=record.header(program.device))  # now with the clocks that were run at
        print(program.found["ceilings"])


if __name__ == "__main__":
    sys.exit(main())
