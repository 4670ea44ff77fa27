"""What this machine has and what will be used of it: python -m dida.doctor --data-root data"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import torch
import tyro

import dida_kernels
from dida.data import domains
from dida.data.classes import CITYSCAPES_CLASSES
from dida.options.doctor import DoctorOptions
from dida_kernels import extension
from dida_kernels.dispatch import SWITCH

PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy", "pillow", "imagecodecs", "tensorboard")
SPLITS = ("train", "val", "test")
WIDTH = 24  # of the left column


def diagnosis(data_root: Path) -> Iterator[str]:
    """The whole report, line by line."""
    for title, lines in (
        ("versions", _versions()),
        ("hardware", _hardware()),
        ("building kernels", _building()),
        ("backend of each operation", _backends()),
        (f"data sets in {data_root}", _data_sets(data_root)),
    ):
        yield title
        yield from (f"  {line}" for line in lines)
        yield ""


def _versions() -> Iterator[str]:
    yield _row("python", platform.python_version())
    for package in PACKAGES:
        try:
            yield _row(package, version(package))
        except PackageNotFoundError:
            yield _row(package, "not installed")
    yield _row("opencv", cv2.__version__)  # published as several packages
    yield _row("CUDA of PyTorch", torch.version.cuda or "none: this PyTorch is for CPUs")


def _hardware() -> Iterator[str]:
    yield _row("platform", platform.platform())
    yield _row("CPU", f"{os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield _row("GPU", "none")
        return
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(i))
        yield _row(f"GPU cuda:{i}", f"{card.name}, sm_{card.major}{card.minor}, {free:.1f} of {total:.1f} GiB free")
    yield _row("GPU driver", _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))


def _building() -> Iterator[str]:
    yield _row("C++ compiler", _answer(*shlex.split(os.environ.get("CXX", "c++")), "--version"))
    yield _row("nvcc", _answer("nvcc", "--version", line="release"))
    try:
        built = ", ".join(f"{what} {value}" for what, value in extension.load_extension().items())
    except ImportError as error:
        built = str(error)
    yield _row("extension (cpp, cuda)", built)


def _backends() -> Iterator[str]:
    yield _row(SWITCH, os.environ.get(SWITCH, "auto"))
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        yield from dida_kernels.choice_lines(torch.device(device), classes=len(CITYSCAPES_CLASSES))


def _data_sets(root: Path) -> Iterator[str]:
    for name in domains.DOMAINS:
        if name.endswith("PATH"):
            continue
        found = [counted for split in SPLITS if (counted := _counted(name, root, split))]
        yield _row(name, "; ".join(found) or "not there")


def _counted(name: str, root: Path, split: str) -> str | None:
    """Images and labels of one split, None if there are none."""
    try:
        images = len(domains.unlabelled(name, root, split).images)
    except FileNotFoundError:
        return None
    except ValueError as error:  # a domain need not have every split; what is wrong with its files is worth knowing
        return None if "no split" in str(error) else f"{split}: {error}"
    try:
        labels = len(domains.survey(name, root, split).domain.labels)
    except (FileNotFoundError, ValueError):
        labels = 0
    return f"{split} {images} images, {labels} labelled" if labels else f"{split} {images} images, no labels"


def _row(left: str, right: str) -> str:
    return f"{left:{WIDTH}} {right}".rstrip()


def _answer(*command: str, line: str = "") -> str:
    """The first line with `line` in it that a program prints, or that the program is not there."""
    program = shutil.which(command[0])
    if program is None:
        return f"{command[0]} is not on the PATH"
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:
        return f"{program} does not answer"
    said = (done.stdout or done.stderr).splitlines()
    return next((text.strip() for text in said if line in text), f"{program} says nothing of it")


def main(options: DoctorOptions) -> None:
    """Print the report. It describes; nothing that is missing makes it fail."""
    try:
        for line in diagnosis(options.data_root):
            print(line)
    except BrokenPipeError:
        raise
    except OSError as error:  # a name that no file system takes, or nowhere to print to
        sys.exit(f"dida doctor: {error}")


if __name__ == "__main__":
    main(tyro.cli(DoctorOptions, prog="python -m dida.doctor"))
