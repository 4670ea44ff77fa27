"""Matrix products of float32 in TF32, for as long as a block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def products_in_tf32(on: bool) -> Iterator[None]:
    """On or off inside, as it was behind.

    By PyTorch's older switch, which sets the newer one as well: with the newer one alone torch.compile raises.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
