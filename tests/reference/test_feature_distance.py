"""The feature distance, its cells and its gradient, on features drawn by name and labels with and without things."""

import numpy as np
import pytest
import torch

from . import engine
from .named import normal, record

RECORD = record("fd")
CASES = sum(name.endswith(".label") for name in RECORD)


@pytest.mark.parametrize("case", range(CASES))
def test_value_cells_and_gradient(case):
    cells, value, gradient = (RECORD[f"{case}.{part}"] for part in ("mask", "value", "grad"))
    student = torch.from_numpy(normal(f"fd/a/{case}", gradient.shape)).requires_grad_()
    imagenet = torch.from_numpy(normal(f"fd/b/{case}", gradient.shape))
    label = torch.from_numpy(RECORD[f"{case}.label"]).long()

    distance, ours = engine.feature_distance(student, imagenet, label)
    distance.backward()

    assert np.array_equal(ours.numpy(), cells)
    if cells.any():
        assert distance.item() == pytest.approx(float(value), abs=1e-15)
    else:  # a mean over nothing: NaN there, and nothing here
        assert np.isnan(value)
        assert distance.item() == 0
    assert np.abs(student.grad.numpy() - gradient).max() <= 1e-17


def test_the_record_has_labels_with_and_without_things_at_several_sizes():
    assert len({RECORD[f"{case}.label"].shape for case in range(CASES)}) >= 3
    assert {RECORD[f"{case}.mask"].any() for case in range(CASES)} == {False, True}
