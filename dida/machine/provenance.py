"""What a number depends on besides the options: the source, its commit, the versions, the machine."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dida_kernels

TREE = Path(__file__).resolve().parents[2]  # the checkout, or the folder of the installed packages
SOURCE = ("dida", "dida_kernels", "csrc", "train.py", "eval.py")  # what trains and scores a network
SUFFIXES = (".py", ".cpp", ".cu", ".h")
RESULTS = ":(exclude)bench/results"  # as git names all but them


def source_digest(tree: Path = TREE, source: Sequence[str] = SOURCE) -> str:
    """16 hex digits that change with any byte or name of the source, by default the one that trains and scores.

    Two runs of one digest and equal options were made by the same code, whatever their commits are called.
    """
    digest = hashlib.sha256()
    for name in source:
        top = tree / name
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.suffix in SUFFIXES):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(tree).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def source_commit(tree: Path = TREE) -> dict[str, Any] | None:
    """{"commit": sha, "dirty": tracked files differ from it}; None where `tree` is no git checkout.

    Results are no source: a table's records change while its runs go on, and no run reads them.
    A copy that travelled without git is of the commit that DIDA_COMMIT names, if it names one.
    """
    git = shutil.which("git")
    if git is None or not (tree / ".git").exists():
        named = os.environ.get("DIDA_COMMIT")
        return {"commit": named, "dirty": False} if named else None
    # Without its lock, which a Ctrl-C would leave in the user's repository.
    quietly = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    answers = [
        subprocess.run([git, "-C", str(tree), *command], capture_output=True, text=True, check=False, env=quietly)
        for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", ".", RESULTS])
    ]
    if any(answer.returncode for answer in answers):  # a repository without commits, or one that git does not trust
        return None
    return {"commit": answers[0].stdout.strip(), "dirty": bool(answers[1].stdout.strip())}


def environment() -> dict[str, Any]:
    """What a run folder keeps of the program, its versions and its machine."""
    return {
        "digest": source_digest(),
        "git": source_commit(),
        "argv": sys.argv,
        **machine(),
        "platform": platform.platform(),
        "backend": os.environ.get("DIDA_BACKEND", "auto"),
        "kernels": dida_kernels.report(),
    }


def machine() -> dict[str, Any]:
    """Versions and hardware, and how busy the machine was."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": package_version("triton"),
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "clocks": _clocks() if cuda else None,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(x, 1) for x in os.getloadavg()],  # processes that wanted a core, over 1, 5 and 15 minutes
    }


def package_version(name: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _clocks() -> str | None:
    """Clocks of the first GPU now and at most, as nvidia-smi says them; None where it is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return next(iter(done.stdout.splitlines()), None) if done.returncode == 0 else None
