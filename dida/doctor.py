"""What this machine has and what will be used of it: python -m dida.doctor --data-root data"""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
import tyro

import dida_kernels
from dida.data import domains
from dida.data.classes import CLASSES
from dida_kernels import extension
from dida_kernels.dispatch import ORDER, SWITCH

PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy", "pillow", "tensorboard")
SPLITS = ("train", "val", "test")
WIDTH = 24  # of the left column


@dataclass(frozen=True)
class Options:
    """Report versions, hardware, the backend of every operation, and the data sets that are there."""

    data_root: Path = Path("data")
    """Folder that holds the data sets."""


class Example(NamedTuple):
    """Small inputs of an op, of the kinds and ratios that training has."""

    args: tuple[Any, ...]
    options: dict[str, Any]


def report(data_root: Path) -> Iterator[str]:
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


def examples(device: torch.device) -> dict[str, Example]:
    """Inputs of every op on a device, float32 as in training: 2 images of 32x32 pixels, 256 channels, 300 slots."""
    B, D, K, h, H = 2, 256, 300, 8, 32
    label_K = torch.arange(K, device=device) % CLASSES
    bank_KD = torch.ones(K, D, device=device)
    embed_BDhw = torch.ones(B, D, h, h, device=device)
    embed_ND = torch.ones(B * H * H, D, device=device)
    prior_BCHW = torch.full((B, CLASSES, H, H), 1 / CLASSES, device=device)
    label_BHW = torch.zeros(B, H, H, dtype=torch.int64, device=device)
    mask_BHW = torch.ones(B, H, H, dtype=torch.bool, device=device)
    class_count = {"classes": CLASSES}
    temperature = {"temperature": 0.1}
    return {
        "bank_similarity": Example((embed_ND, bank_KD), temperature),
        "instance_loss": Example((embed_BDhw, embed_BDhw, prior_BCHW, mask_BHW, bank_KD, label_K), temperature),
        "scatter": Example((embed_ND[:, :CLASSES], label_K), {}),
        "gather": Example((torch.ones(B * H * H, K, device=device), label_K), class_count),
        "class_similarity": Example((embed_BDhw, bank_KD, label_K), class_count | temperature | {"size": (H, H)}),
        "boundary_mask": Example((label_BHW,), class_count),
        "bank_update": Example((bank_KD, label_K, embed_BDhw, label_BHW, mask_BHW), class_count | {"momentum": 0.9}),
    }


def chosen_backend(op: str, example: Example) -> tuple[str, dict[str, str]]:
    """Which backend runs, and for each faster one why it does not."""
    if os.environ.get(SWITCH) == "torch":
        return "torch", {}
    passed_over = {}
    for name in ORDER:
        reason = dida_kernels.OPS[op].why_not(name, *example.args, **example.options)
        if reason is None:
            return name, passed_over
        passed_over[name] = reason
    raise RuntimeError(f"{op}: no backend runs on {example.args[0].device}: {passed_over}")


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
    yield _row("C++ compiler", _answer(os.environ.get("CXX", "c++"), "--version"))
    yield _row("nvcc", _answer("nvcc", "--version", line="release"))
    try:
        built = ", ".join(f"{what} {value}" for what, value in extension.load().items())
    except ImportError as error:
        built = str(error)
    yield _row("extension (cpp, cuda)", built)


def _backends() -> Iterator[str]:
    yield _row(SWITCH, os.environ.get(SWITCH, "auto"))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    choices = {name: {op: chosen_backend(op, e) for op, e in examples(torch.device(name)).items()} for name in devices}
    yield _row("", "".join(f"{'on ' + name:10}" for name in devices))
    for op in dida_kernels.OPS:
        yield _row(op, "".join(f"{choices[name][op][0]:10}" for name in devices))
    for name in devices:
        refused: dict[str, list[str]] = {}  # by reason, because most ops share theirs
        for op, (_, reasons) in choices[name].items():
            for backend, reason in reasons.items():
                if backend in dida_kernels.OPS[op].backends or backend in _unavailable():
                    refused.setdefault(f"on {name} not {backend}: {reason}", []).append(op)
        for reason, ops in refused.items():
            yield f"{reason} ({', '.join(ops)})"


def _unavailable() -> set[str]:
    """Backends that no op has here."""
    return {name for name in ORDER if not any(name in op.backends for op in dida_kernels.OPS.values())}


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
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=30)
    said = (done.stdout or done.stderr).splitlines()
    return next((text.strip() for text in said if line in text), f"{program} says nothing of it")


def main(options: Options) -> None:
    """Print the report. It describes; nothing that is missing makes it fail."""
    for line in report(options.data_root):
        print(line)


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m dida.doctor"))
