"""A change of the code that means to change no result changes none: twenty steps of every method, bit for bit."""

import json
from pathlib import Path

import pytest
import torch

from tests.golden.curves import CURVES, FILE, curve, machine, make_files

GOLDEN = json.loads(FILE.read_text())
FIRST = 3  # steps whose losses another machine must have too; later ones drift apart, as all training does
BAND = 1e-3  # relative


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("golden")
    make_files(made)
    return made


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_what_it_was(name, folder):
    was, now = GOLDEN["curves"][name], curve(name, folder)
    if machine() == GOLDEN["machine"]:
        assert now == was
        return
    assert now["losses"].keys() == was["losses"].keys()
    for term, losses in was["losses"].items():
        before, after = ([float.fromhex(x) for x in values[:FIRST]] for values in (losses, now["losses"][term]))
        assert after == pytest.approx(before, rel=BAND, abs=1e-6), term


def test_the_curves_say_something():
    """Every term of DIDA's loss is above 0 at some step, and no two methods are the same run."""
    for name, found in GOLDEN["curves"].items():
        above_0 = {term for term, losses in found["losses"].items() if any(float.fromhex(x) > 0 for x in losses)}
        expected = {"source", "feature", "target", "instance"} if name.startswith("dida") else {"source"}
        assert above_0 >= expected, name
    assert len({found["student"] for found in GOLDEN["curves"].values()}) == len(CURVES)
