"""The lists of planted mistakes fit the sources that they are planted in."""

import shlex
from importlib import import_module

import pytest

from tests.planted.__main__ import ROOMS, ROOT

PLANTS = [plant for room in ROOMS for plant in import_module(f"tests.planted.{room}").PLANTS]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.file}: {plant.mistake}")
def test_a_plant_has_its_place_and_its_tests(plant):
    assert (ROOT / plant.file).read_text().count(plant.old) == 1
    assert plant.new != plant.old
    files = [word.partition("::")[0] for word in shlex.split(plant.red) if word.startswith("tests/")]
    assert files
    assert all((ROOT / file).is_file() for file in files)
