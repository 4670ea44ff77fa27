from pathlib import Path

import pytest

from tests.data.factories import make_val


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_val(tmp_path_factory.mktemp("data"))
