"""The bank a chunk of slots at a time, and its logits at the pixels of a tile."""

from typing import NamedTuple

import torch
from torch import Tensor

from dida_kernels.chunked.tiles import Tile


class Bank(NamedTuple):
    """The bank in chunks of slots. Rows are scaled to unit length after the product, so no copy of the bank is made."""

    bank_KD: Tensor
    label_K: Tensor
    inverse_norm_K: Tensor
    chunks: list[slice]

    @staticmethod
    def of(bank_KD: Tensor, label_K: Tensor, chunks: list[slice], dtype: torch.dtype) -> "Bank":
        inverse_norm_K = torch.cat([inverse_norm(bank_KD[chunk].to(dtype)).squeeze(1) for chunk in chunks])
        return Bank(bank_KD, label_K, inverse_norm_K, chunks)

    def rows(self, chunk: slice, dtype: torch.dtype) -> Tensor:
        return self.bank_KD[chunk].to(dtype)

    def logits(self, chunk: slice, tile: Tile, embed_rcD: Tensor, scale_P1: Tensor) -> Tensor:
        """scale * <e, b_k / |b_k|> for the pixels of the tile, [P, slots of the chunk]. See Eq. (4) and (5)."""
        dot_rcK = (embed_rcD @ self.rows(chunk, embed_rcD.dtype).T).mul_(self.inverse_norm_K[chunk])
        return tile.enlarge(dot_rcK).mul_(scale_P1)


def inverse_norm(x_XD: Tensor) -> Tensor:
    """1 / |x| of each row, [X, 1]; 0 for a row without a direction (see `equations.unit`), whose cosines are then 0."""
    length_X1 = torch.linalg.vector_norm(x_XD, dim=1, keepdim=True)
    return length_X1.reciprocal().masked_fill_(length_X1 <= 1e-12, 0.0)
