"""Made once for all tests of this room."""

from pathlib import Path

import pytest

from tests.report.scenes import make_runs, report_of


@pytest.fixture(scope="package")
def runs(tmp_path_factory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="package")
def report(runs) -> str:
    """DIDA beside the source alone."""
    return report_of(*runs)
