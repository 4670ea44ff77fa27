"""The examples run, and agree with their plain form on a CPU, as docs/kernels.md says."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
AGREED = 1e-5  # relative, of losses, gradients and banks
SIZES = {"simmatch": 640, "pixel_contrast": 1900, "prototypes": 3}  # slots, or prototypes a class


def test_every_worked_example_is_run():
    worked = {path.stem for path in EXAMPLES.glob("*.py") if "def plain(" in path.read_text()}
    assert worked == SIZES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_an_example_agrees_with_its_plain_form(name, capsys):
    assert runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](SIZES[name]) < AGREED
    assert "differs from the plain form by" in capsys.readouterr().out
