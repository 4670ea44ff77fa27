"""Each equation of the paper is implemented exactly once and says so: "Implements Eq. (n)."; others say "see"."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAPER = {*(f"Eq. ({n})" for n in range(1, 12)), "Algorithm 1"}
NAME = r"(?:Eq\. \(\d+\)|Algorithm \d+)"


def implemented(docstring: str) -> list[str]:
    """What a docstring claims: "Implements Eq. (4) and Eq. (5)" names two."""
    return [
        name
        for claim in re.findall(rf"Implements ({NAME}(?:(?:, | and ){NAME})*)", docstring)
        for name in re.findall(NAME, claim)
    ]


def claims() -> Iterator[tuple[str, str]]:
    """(equation, where) for every docstring of a function, class or module."""
    for file in sorted([*(ROOT / "dida_kernels").rglob("*.py"), *(ROOT / "dida").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for name in implemented(ast.get_docstring(node) or ""):
                    yield name, f"{file.relative_to(ROOT)}:{getattr(node, 'name', 'module')}"


def test_every_equation_is_implemented_exactly_once():
    homes: dict[str, list[str]] = {name: [] for name in PAPER}
    for name, where in claims():
        homes.setdefault(name, []).append(where)
    assert set(homes) == PAPER
    assert {name: where for name, where in homes.items() if len(where) != 1} == {}


def test_the_reader_of_docstrings_reads_them():
    assert implemented("Softmax over the bank. Implements Eq. (4) and Eq. (5).\n\nMore.") == ["Eq. (4)", "Eq. (5)"]
    assert implemented("Implements Eq. (7), Eq. (8) and Eq. (11). See Eq. (4).") == ["Eq. (7)", "Eq. (8)", "Eq. (11)"]
    assert implemented("The windows. Implements Algorithm 1.") == ["Algorithm 1"]
    assert implemented("Scales as in Eq. (8). See Eq. (4) and Algorithm 1.") == []
