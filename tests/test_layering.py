"""The house: imports point down only, a name means one thing, a function fits a screen.

csrc <- dida_kernels <- dida <- train.py, eval.py <- tests, bench. Within the packages every module is in the table
below with all that it may import of them; a module that is not in it has no place yet, and a test says so.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dida_kernels", "dida")
SCRIPTS = ("train.py", "eval.py")  # setup.py builds; it is no part of the house
LONGEST = 60  # lines of a function

# Module -> what it may import of dida, without that package's name. "data" stands for all below it.
_DATA = ("batch", "data", "errors", "machine.distributed", "machine.files", "machine.progress", "machine.signals")
_METHOD = ("batch", "kernels", "machine.distributed", "method")
DIDA = {
    "batch": (),
    "machine.checksums": (),
    "errors": (),
    "options": (),
    "machine.files": (),
    "machine.distributed": ("errors",),
    "machine.device": ("machine.distributed",),
    "machine.progress": (),
    "machine.provenance": ("kernels",),
    "run.terms": (),
    "run.progress": ("run.terms",),
    "machine.signals": (),
    "machine.streams": (),
    "options.program": (),
    "options.doctor": (),
    "run.claim": ("errors",),
    "run.events": ("machine.files",),
    "config": ("options",),
    "options.evaluation": ("options",),
    "options.export": ("options",),
    "options.report": ("options",),
    "options.toy": ("options",),
    "data": _DATA,
    "models": ("batch", "machine", "models"),
    "method": _METHOD,
    "optim": (),
    "precision": ("machine.distributed", "models.in_parts", "models.mit", "models.renormalise"),
    "state": ("errors", "machine", "method.bank", "method.prior", "method.views", "precision"),
    "recipes": ("config", "machine.files", "options", "state"),
    "step": ("batch", "method.passes", "optim", "state"),
    "use.evaluate": ("batch", "data", "errors", "machine.distributed", "machine.progress"),
    "use.predictions": ("data.classes", "data.image_file"),
    "run.panel": ("batch", "data.classes", "data.drawing", "data.image_file", "kernels", "method.bank"),
    "use.paper": ("data.classes",),
    "use.stored": ("config", "data", "machine.files", "models", "state", "use.evaluate", "use.paper"),
    "run.meter": ("batch", "data.loader", "errors", "machine", "run.terms"),
    "run.trackers": ("errors", "machine.files", "run.events"),
    "run.folder": (
        "config", "data.classes", "errors", "machine.files", "machine.provenance", "run.claim", "run.trackers", "state",
    ),
    "run.resume": ("config", "data.classes", "data.pairs", "optim", "state"),
    "run.transfer": ("batch", "config", "data.classes", "options", "state", "use.stored"),
    "run.watch": ("config", "data", "kernels", "options", "run.terms", "use.evaluate"),
    "assemble": (
        "batch", "config", "data", "machine", "method", "models", "optim", "options", "precision", "run.panel",
        "run.resume", "run.transfer", "run.watch", "state",
    ),
    "run.overview": ("assemble", "config", "data", "models", "precision", "run.meter"),
    "use.trained": ("assemble", "config", "data", "state", "use.evaluate", "use.paper", "use.stored"),
    "use.labelling": ("data", "machine.progress", "use.evaluate", "use.predictions", "use.trained"),
    "use.scoring": (
        "batch", "data", "machine.distributed", "use.evaluate", "use.paper", "use.predictions", "use.stored",
        "use.trained",
    ),
    "use.sharing": (
        "config", "data.sources", "machine.files", "machine.provenance", "models", "state", "use.evaluate",
        "use.stored", "use.trained",
    ),
    "use.network": ("data", "machine.device", "options", "use.evaluate", "use.sharing", "use.trained"),
    "use.export": ("batch", "data", "machine.files", "use.evaluate", "use.trained"),
    "report": (
        "batch", "config", "data", "machine.files", "machine.progress", "options", "report", "run.terms", "state",
        "use.evaluate", "use.trained",
    ),
    "loop": (
        "assemble", "batch", "config", "data", "errors", "kernels", "machine", "optim", "options.program",
        "precision", "run.folder", "run.meter", "run.overview", "run.progress", "run.watch", "state", "step",
    ),
    "command": (
        "assemble", "config", "data", "errors", "loop", "machine", "options", "report", "run.folder", "state",
        "use.evaluate", "use.export", "use.labelling", "use.network", "use.scoring", "use.trained",
    ),
    "doctor": ("data", "kernels", "machine.provenance", "options.doctor"),
    "cli": ("command", "doctor", "machine.signals", "machine.streams", "options", "recipes"),
    "__main__": ("cli",),
    "data.toy.__main__": ("cli",),
}  # fmt: skip
# Module -> what it may import of dida_kernels.
KERNELS = {
    "checks": (),
    "dispatch": (),
    "equations": ("checks", "dispatch"),
    "extension": ("dispatch", "equations"),
    "chunked": ("chunked", "equations", "dispatch"),
    "fused": ("fused", "equations", "dispatch"),
    "choices": ("dispatch", "equations"),
    "__init__": ("checks", "choices", "chunked", "dispatch", "equations", "extension", "fused"),
}
# Libraries that only some may import: so that the engine runs without them, or --help answers at once.
ONLY = {
    "triton": ("dida_kernels.fused",),
    "timm": ("dida.models",),
    "tyro": ("dida.options", "dida.doctor"),
    "torch": ("dida_kernels", *(f"dida.{name}" for name in DIDA if name not in (
        "__main__", "cli", "config", "data.classes", "errors", "machine.files", "machine.progress", "machine.signals",
        "machine.streams", "options", "recipes", "run.claim", "run.events", "run.progress", "run.terms", "use.paper",
    ))),
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the packages; a package's own file counts as NAME.__init__."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


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


def is_below(name: str, top: str) -> bool:
    return name == top or name.startswith(top + ".")


def place(name: str, table: dict[str, tuple[str, ...]]) -> str | None:
    """The entry of the table for a module: the longest that it is, or is below."""
    found = [entry for entry in table if is_below(name, entry)]
    return max(found, key=len) if found else None


def violations(module: str, source: str) -> list[str]:
    """What a module imports and may not, by the tables."""
    package, _, name = module.partition(".")
    table = {"dida": DIDA, "dida_kernels": KERNELS}[package]
    if package == "dida" and name == "__init__":
        allowed: tuple[str, ...] = ("data.classes", "use.network")  # what is public, imported when it is asked for
    elif entry := place(name, table):
        allowed = table[entry]
    elif name.endswith(".__init__"):
        allowed = ()  # of a room whose modules have their own places
    else:
        return [f"{module} has no place in the table"]
    allowed = tuple("dida_kernels" if x == "kernels" else f"{package}.{x}" for x in allowed)
    wrong = []
    for imported in dict.fromkeys(imports(source, module.rpartition(".")[0])):
        top = imported.partition(".")[0]
        if top in ("train", "eval", "tests", "bench", "setup"):
            wrong.append(imported)
        # A bare package, or a name of it that is no module, says nothing about layers: its modules do.
        elif top in PACKAGES and imported not in PACKAGES and _is_module(imported):
            if not any(is_below(imported, x) or is_below(x, imported) for x in allowed):
                wrong.append(imported)
        elif top == "dida_kernels" and package == "dida" and "dida_kernels" not in allowed:
            wrong.append(imported)
        elif top in ONLY and not any(is_below(module, x) for x in ONLY[top]):
            wrong.append(imported)
    return [f"{module} imports {name}" for name in wrong]


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def test_imports_point_down():
    found = modules()
    assert len(found) > 60
    assert [v for name, path in found.items() for v in violations(name, path.read_text())] == []


def test_nothing_imports_a_script():
    files = [path for top in (*PACKAGES, "tests", "bench") for path in (ROOT / top).rglob("*.py")]
    wrong = {
        path.relative_to(ROOT).as_posix()
        for path in files
        for name in imports(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))
        if name.partition(".")[0] in ("train", "eval")
    }
    assert wrong == set()


def test_the_tables_have_no_circle():
    """Each module may only import what comes before it, so the tables can be read from top to bottom."""
    for table in (DIDA, KERNELS):
        before: list[str] = []
        for entry, allowed in table.items():
            for name in allowed:
                inside = is_below(name, entry) or name == "kernels"
                assert inside or any(is_below(name, x) or is_below(x, name) for x in before), (entry, name)
            before.append(entry)


def test_csrc_knows_nothing_of_python():
    sources = [f for f in (ROOT / "csrc").rglob("*") if f.suffix in (".cpp", ".cu", ".h", ".cuh")]
    assert len(sources) > 5
    assert [f.name for f in sources if "PyObject" in f.read_text() or "py::object" in f.read_text()] == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("dida_kernels.fused.a", "import dida.batch"),
        ("dida_kernels.fused.a", "from dida import batch"),
        ("dida_kernels.equations", "def f():\n    import triton.language as tl"),
        ("dida_kernels.equations", "from dida_kernels import fused"),
        ("dida_kernels.equations", "from . import fused"),
        ("dida_kernels.chunked.a", "from dida_kernels import extension"),
        ("dida.config", "import torch.nn as nn"),
        ("dida.recipes", "from dida.method import bank"),
        ("dida.data.pairs", "from dida.models import mit"),
        ("dida.data.toy.street", "from ...method import bank"),
        ("dida.models.mit", "import dida_kernels"),
        ("dida.method.bank", "from dida.config import InstanceConfig"),
        ("dida.method.passes", "from dida.state import TrainState"),
        ("dida.step", "import dida.config"),
        ("dida.use.evaluate", "import dida.run.folder"),
        ("dida.use.predictions", "from dida.run.panel import heat"),
        ("dida.doctor", "from dida import loop"),
        ("dida.command", "import eval"),
        ("dida.machine.signals", "import torch"),
        ("dida.run.panel", "from tests import cases"),
        ("dida.loop", "import bench.step"),
        ("dida.a_new_module", "import math"),
    ],
)
def test_a_planted_violation_is_found(module, source):
    assert violations(module, source) != []


@pytest.mark.parametrize(
    "module, source",
    [
        ("dida_kernels.fused.a", "import triton\nfrom dida_kernels.equations import scatter"),
        ("dida_kernels.equations", "from dida_kernels.checks import IGNORE"),
        ("dida.data.pairs", "from dida.batch import Batch\nfrom . import domains"),
        ("dida.method.passes", "from dida.method.bank import InstanceBank\nimport dida_kernels"),
        ("dida.recipes", "from dida.config import Config"),
    ],
)
def test_what_is_allowed_is_not_reported(module, source):
    assert violations(module, source) == []


# ---- one meaning per name ------------------------------------------------------------------------------------------

MANY = {"main"}  # what every program calls its start


def public_names(source: str) -> list[str]:
    """Functions and classes at the top of a module whose names do not begin with an underscore."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(source).body if isinstance(node, kinds) and not node.name.startswith("_")]


def test_no_two_public_names_are_equal():
    files = [path for top in (*PACKAGES, "bench") for path in sorted((ROOT / top).rglob("*.py"))]
    homes = defaultdict(set)
    for path in files:
        for name in public_names(path.read_text()):
            homes[name].add(path.relative_to(ROOT).as_posix())
    assert {name: sorted(found) for name, found in homes.items() if len(found) > 1 and name not in MANY} == {}


def test_spelling_does_not_tell_two_things_apart():
    """Labeled and Labelled, Color and Colour: one spelling, so that one search finds all."""
    american = ("labeled", "color", "neighbor", "center")
    files = [path for top in PACKAGES for path in (ROOT / top).rglob("*.py")]
    found = {(path.name, name) for path in files for name in public_names(path.read_text())
             for word in american if word in name.lower()}  # fmt: skip
    assert found == set()


def test_no_module_is_named_like_one_of_the_standard_library():
    import sys

    files = [path for top in (*PACKAGES, "bench", "tests") for path in (ROOT / top).rglob("*.py")]
    # Inside dida/data/ a name cannot be mistaken: nothing there is started by its path.
    assert {p.relative_to(ROOT).as_posix() for p in files if p.stem in sys.stdlib_module_names} <= {
        "dida/data/statistics.py"
    }


# ---- a function fits a screen --------------------------------------------------------------------------------------


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and lines of every function, docstring included, decorators apart."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def test_no_function_of_the_engine_is_longer_than_a_screen():
    files = [*modules().items(), *((name, ROOT / name) for name in SCRIPTS)]
    long = {f"{name}.{f}": n for name, path in files for f, n in functions(path.read_text()) if n > LONGEST}
    assert long == {}
