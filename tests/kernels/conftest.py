"""Uninitialised memory is NaN (or the largest integer) in every kernel test, so an unwritten output cannot pass."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    """torch's own switch: it also reaches `at::empty` in C++ extensions, where patching `torch.empty` would not."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)
