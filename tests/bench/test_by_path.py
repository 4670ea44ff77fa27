"""Scripts of bench/ started by their path, such as `python bench/bank_memory.py`: from anywhere, of their checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
COMMANDS = ("bank_memory", "bank_update", "kernels", "step")

SCRIPT = """
import sys
if not __package__:
    from by_path import start_again

    start_again(__file__)
import bench, statistics
print(bench.__file__, statistics.__file__, __name__, sys.flags.optimize, *sys.argv[1:])
"""


def test_it_runs_as_a_module_of_the_checkout_it_lies_in(tmp_path):
    """Although the interpreter of the tests has this project installed, and whatever the working directory is."""
    here, checkout = tmp_path / "here", tmp_path / "checkout" / "bench"
    here.mkdir()
    checkout.mkdir(parents=True)
    (checkout / "__init__.py").touch()
    (checkout / "script.py").write_text(SCRIPT)
    shutil.copy(BENCH / "by_path.py", checkout)
    command = [sys.executable, "-O", str(checkout / "script.py"), "--json", "a b"]
    said = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    of_bench, of_python, *rest = said.split(" ", 2)
    assert of_bench == str(checkout / "__init__.py")
    assert Path(of_python).parent != checkout
    assert rest == ["__main__ 1 --json a b"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_asks_for_it_before_it_imports_anything_of_ours(name):
    before, asked, _ = (BENCH / f"{name}.py").read_text().partition("\n    start_again(__file__)\n")
    assert asked
    assert "if not __package__:" in before
    assert not [line for line in before.splitlines() if line.startswith(("from bench", "from dida", "from tests"))]


def test_the_command_of_the_readme():
    command = [sys.executable, str(BENCH / "bank_memory.py"), "--help"]
    assert "as the bank grows" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_nothing_is_named_like_a_module_of_the_standard_library():
    """By its path a script sees its neighbours first, and so would whatever it imports."""
    names = {path.stem for path in BENCH.rglob("*.py")} | {path.name for path in BENCH.rglob("*") if path.is_dir()}
    assert names & sys.stdlib_module_names == set()
