from pathlib import Path

import pytest

from dida.data.toy import Counts, generate
from tests.data.factories import make_val


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_val(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a toy of a few pictures."""
    root = tmp_path_factory.mktemp("data")
    generate(root, counts=Counts(source=4, source_val=1, target=3, val=1, test=1))
    return root
