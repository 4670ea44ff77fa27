from pathlib import Path

import pytest

from .factories import make_cityscapes, make_gta, make_synthia


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with both sources and the target, whose labels are there for val alone."""
    root = tmp_path_factory.mktemp("data")
    make_gta(root, 6)
    make_synthia(root, 2)
    make_cityscapes(root, labelled=("val",), train=5, val=2)
    return root
