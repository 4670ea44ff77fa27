"""The toy's table of methods, without a record and with some."""

import pytest

from bench.tables import __main__ as tables
from bench.tables.__main__ import TablesOptions
from bench.tables.rows import DACS, DAFORMER, SOURCE_ONLY, WARM
from bench.tables.trainings import Setting
from tests.bench.tables.records import put


@pytest.fixture
def setting(tmp_path) -> Setting:
    return tables.setting(TablesOptions(split="test", work=tmp_path / "runs", results=tmp_path / "results"), "methods")


@pytest.fixture
def measured(setting) -> Setting:
    """Three seeds: DACS gains 1 to 1.2 on source-only, DAFormer 1, 2 and 3 on DACS; no DIDA yet."""
    for seed, base, gain, unsure in ((0, 30.0, 1.0, 1.0), (1, 50.0, 1.2, 2.0), (2, 70.0, 1.1, 3.0)):
        put(setting, SOURCE_ONLY, seed, base)
        put(setting, DACS, seed, base + gain)
        put(setting, DAFORMER, seed, base + gain + unsure, iou={"truck": 10.0, "bus": 30.0, "train": None})
        put(setting, WARM, seed, 80.0)
    return setting
