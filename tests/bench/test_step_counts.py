"""The counted step: its budget of launches, and what precision and recomputing do to launches, bytes and memory."""

import pytest

from bench.step_counts import OPTIONS, count_step, counts_report
from tests.cases import MAIN, resized

SMALL = resized(MAIN, HW=(64, 64), hw=(16, 16))
BUDGET = 1803  # launches of a step of mit_b0 in float32: one more is a decision


@pytest.fixture(scope="module")
def fp32() -> dict:
    return count_step(SMALL, "mit_b0", precision="fp32")


def test_a_step_launches_no_more_than_it_did(fp32):
    assert fp32["launches"] <= BUDGET


def test_bfloat16_casts_its_weights_by_the_list(fp32):
    """Autocast would launch a kernel for each of 1 000 weights, and more for maps."""
    bf16 = count_step(SMALL, "mit_b0", precision="bf16")
    assert fp32["launches"] <= bf16["launches"] < 1.02 * fp32["launches"]
    assert bf16["moved"] < 0.8 * fp32["moved"]


def test_the_report_has_a_row_for_all_options(fp32):
    result = {
        "header": {"commit": "abc"}, "backbone": "mit_b0", "rows": [{"options": name, **fp32} for name in OPTIONS],
    }  # fmt: skip
    text = counts_report(result)
    assert text.count(f"{fp32['launches']:,}") == len(OPTIONS)
    assert all(name in text for name in (*OPTIONS, "convolution_backward"))
