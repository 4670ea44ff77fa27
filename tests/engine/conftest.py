from pathlib import Path

import pytest

from tests.data.factories import make_cityscapes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with labels for val alone, and a picture of the toy."""
    root = tmp_path_factory.mktemp("data")
    make_cityscapes(root, (128, 64), val=3, train=2, labelled=("val",))
    make_cityscapes(root, (128, 64), folder="toy/cityscapes", val=1)
    return root
