"""Imports point down only: csrc <- dida_kernels <- dida <- train, eval <- tests, bench. See the table below."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = (
    "dida_kernels",
    "dida",
    "train.py",
    "eval.py",
)  # what is held against the table; setup.py builds, it is no part
SCRIPTS = ("train", "eval", "tests", "bench", "setup")
KERNELS_NEED = ("triton", "dida_kernels._C", "dida_kernels.fused", "dida_kernels.extension", "dida_kernels.chunked")
ENGINE = tuple(
    f"dida.{part}"
    for part in ("config", "recipes", "state", "step", "optim", "evaluate", "panel", "run", "data", "models", "method")
)


def all_but(*allowed: str) -> tuple[str, ...]:
    return tuple(part for part in ENGINE if part not in allowed)


# What the files below a path may not import. Every line that fits a file holds for it.
FORBIDDEN = {
    "": ("tests", "bench"),
    "dida_kernels": ("dida", *SCRIPTS),
    "dida_kernels/equations.py": KERNELS_NEED,
    "dida_kernels/dispatch.py": (*KERNELS_NEED, "dida_kernels.equations", "dida_kernels.checks"),
    "dida_kernels/checks.py": (*KERNELS_NEED, "dida_kernels.equations", "dida_kernels.dispatch"),
    "dida_kernels/chunked": ("triton", "dida_kernels._C", "dida_kernels.fused", "dida_kernels.extension"),
    "dida_kernels/fused": ("dida_kernels._C", "dida_kernels.extension"),
    "dida": SCRIPTS,
    "dida/batch.py": ("dida_kernels", *ENGINE),
    "dida/config.py": ("torch", "numpy", "dida_kernels", *all_but("dida.config")),
    "dida/recipes.py": ("torch", "numpy", "dida_kernels", *all_but("dida.config", "dida.recipes")),
    "dida/data": ("dida_kernels", *all_but("dida.data")),
    "dida/models": ("dida_kernels", *all_but("dida.models")),
    "dida/method": all_but("dida.method", "dida.config"),
    "dida/state.py": all_but("dida.method", "dida.state"),
    "dida/step.py": all_but("dida.method", "dida.state", "dida.step"),
}
# dida/method may see the config, but only where names become functions.
CONFIG_ONLY_IN = "dida/method/__init__.py"


def imports(source: str, package: str) -> Iterator[str]:
    """Every dotted name that a module of `package` imports, at any depth; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """The imports of the file at `path` (relative to the root) that the table forbids."""
    forbidden = {name for below, names in FORBIDDEN.items() if _is_below(path, below) for name in names}
    if path.startswith("dida/method/") and path != CONFIG_ONLY_IN:
        forbidden.add("dida.config")
    package = ".".join(Path(path).parent.parts)
    return [
        f"{path} imports {name}"
        for name in dict.fromkeys(imports(source, package))
        if any(_is_below(name.replace(".", "/"), prefix.replace(".", "/")) for prefix in forbidden)
    ]


def _is_below(path: str, top: str) -> bool:
    return not top or path == top or path.startswith(top + "/")


def test_imports_point_down():
    files = [f for part in PARTS for f in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))]
    files = [f for f in files if f.exists()]
    assert len(files) > 10
    assert [v for f in files for v in violations(f.relative_to(ROOT).as_posix(), f.read_text())] == []


def test_csrc_knows_nothing_of_python():
    sources = [f for f in (ROOT / "csrc").rglob("*") if f.suffix in (".cpp", ".cu", ".h", ".cuh")]
    assert [f.name for f in sources if "PyObject" in f.read_text() or "py::object" in f.read_text()] == []


@pytest.mark.parametrize(
    "path, source",
    [
        ("dida_kernels/fused/a.py", "import dida.batch"),
        ("dida_kernels/fused/a.py", "from dida import batch"),
        ("dida_kernels/equations.py", "def f():\n    import triton.language as tl"),
        ("dida_kernels/equations.py", "from dida_kernels import fused"),
        ("dida_kernels/equations.py", "from . import fused"),
        ("dida_kernels/equations.py", "from .fused.launch import LAUNCH"),
        ("dida/config.py", "import torch.nn as nn"),
        ("dida/recipes.py", "from dida.method import bank"),
        ("dida/data/pairs.py", "from dida.models import mit"),
        ("dida/data/toy/street.py", "from ...method import bank"),
        ("dida/models/mit.py", "import dida_kernels"),
        ("dida/method/bank.py", "from dida.config import MethodConfig"),
        ("dida/method/__init__.py", "from dida.step import train_step"),
        ("dida/step.py", "import dida.config"),
        ("dida/panel.py", "from tests import cases"),
        ("train.py", "import bench.step"),
    ],
)
def test_a_planted_violation_is_found(path, source):
    assert violations(path, source) != []


@pytest.mark.parametrize(
    "path, source",
    [
        ("dida_kernels/fused/a.py", "import triton\nfrom dida_kernels.equations import scatter"),
        ("dida_kernels/equations.py", "from dida_kernels.checks import check_bank"),
        (
            "dida/data/pairs.py",
            "from dida.batch import Batch\nfrom dida.data.domains import gta\nfrom . import domains",
        ),
        ("dida/method/__init__.py", "from dida.config import MethodConfig\nimport dida_kernels"),
        ("dida/recipes.py", "from dida.config import Config"),
        ("train.py", "from dida.recipes import gta2cs\nimport evaluation"),
    ],
)
def test_what_is_allowed_is_not_reported(path, source):
    assert violations(path, source) == []
