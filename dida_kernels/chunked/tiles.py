"""Tiles of pixels, the nodes around them, and how large both may be."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TILE_BYTES = 16 << 20  # on a CPU: a few MB per buffer stay near the cache
TILE_BYTES_GPU = 128 << 20  # elsewhere: a tile is some sixty launches, so it has to be worth them
_BUFFERS = 6  # tensors [P, max(D, slots of a chunk)] that are alive at once in a tile
_COLUMNS = 64  # X costs as many multiplications per pixel and slot as it has nodes, so tiles are narrow ...
_MIN_ROWS = 16  # ... and tall enough that few nodes are shared with a neighbour and computed twice


class Tile(NamedTuple):
    """A rectangle of pixels, the rectangle of nodes around it, and the two matrices that interpolate between them.

    Its P pixels are M in each of its R rows: all W columns, or those that `only` took.
    """

    pixels: tuple[slice, slice]
    nodes: tuple[slice, slice]
    Y_Rr: Tensor
    X_Mc: Tensor  # one matrix for all rows, or [R, M, c]
    column_RM: Tensor | None = None  # where the M pixels of a row are; None: at 0 .. W - 1

    def only(self, valid_RW: Tensor) -> "Tile | None":
        """The part of a tile with its valid pixels: of each row as many as the fullest one has, the valid ones first.

        None where nothing is valid. Looks at values, so a GPU would have to be waited for.
        """
        most = int(valid_RW.sum(1).amax())
        if most == 0:
            return None
        column_RM = valid_RW.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return self._replace(X_Mc=self.X_Mc[column_RM], column_RM=column_RM)

    def enlarge(self, x_rcX: Tensor) -> Tensor:
        """Node values to pixel values, [P, X]."""
        x_RcX = (self.Y_Rr @ x_rcX.flatten(1)).unflatten(1, x_rcX.shape[1:])
        return (self.X_Mc @ x_RcX).flatten(0, 1)

    def adjoint(self, x_PX: Tensor) -> Tensor:
        """The transpose of `enlarge`: pixel values to node values, [r, c, X]."""
        x_RcX = self.X_Mc.mT @ x_PX.unflatten(0, (len(self.Y_Rr), -1))
        return (self.Y_Rr.T @ x_RcX.flatten(1)).unflatten(1, x_RcX.shape[1:])

    def nodes_of(self, x_Xhw: Tensor, dtype: torch.dtype) -> Tensor:
        """One image's map at the tile's nodes, channels last: [r, c, X]."""
        return x_Xhw[(slice(None), *self.nodes)].permute(1, 2, 0).to(dtype).contiguous()

    def pixels_of(self, x_XHW: Tensor, dtype: torch.dtype) -> Tensor:
        """One image's map at the tile's pixels, channels last: [P, X]."""
        x_RMX = x_XHW[(slice(None), *self.pixels)].permute(1, 2, 0)
        if self.column_RM is not None:
            x_RMX = x_RMX.take_along_dim(self.column_RM[:, :, None], dim=1)
        return x_RMX.flatten(0, 1).to(dtype)


class Axis(NamedTuple):
    """Bilinear interpolation along one axis (align_corners=False) as a matrix [pixels, nodes], read in slices."""

    weight: Tensor

    @staticmethod
    def between(pixels: int, nodes: int, like: Tensor, dtype: torch.dtype) -> "Axis":
        """In float64 until the last step: torch's own float32 positions are less exact than what is computed here."""
        position = (torch.arange(pixels, dtype=torch.float64, device=like.device) + 0.5) * (nodes / pixels) - 0.5
        distance = position.clamp(0, nodes - 1)[:, None] - torch.arange(nodes, device=like.device)
        return Axis((1 - distance.abs()).clamp(min=0).to(dtype))

    def cut(self, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Every `step` pixels, the nodes that they lie between, and that part of the matrix."""
        pixels, nodes = self.weight.shape
        for start in range(0, pixels, step):
            stop = min(start + step, pixels)
            first = math.floor(max((start + 0.5) * (nodes / pixels) - 0.5, 0))
            last = min(math.floor(max((stop - 0.5) * (nodes / pixels) - 0.5, 0)) + 1, nodes - 1)
            yield slice(start, stop), slice(first, last + 1), self.weight[start:stop, first : last + 1]


class Plan(NamedTuple):
    """How an image is cut into tiles and a bank into chunks, so that the buffers of a tile fit the budget."""

    rows: int
    columns: int
    chunks: list[slice]

    @staticmethod
    def of(size: Sequence[int], bank_KD: Tensor, dtype: torch.dtype) -> "Plan":
        slots, channels = bank_KD.shape
        columns = min(size[1], _COLUMNS)
        budget = TILE_BYTES if bank_KD.device.type == "cpu" else TILE_BYTES_GPU
        values = budget // (_BUFFERS * dtype.itemsize)  # in one buffer
        chunk = max(1, min(slots, values // (columns * min(size[0], _MIN_ROWS))))
        rows = max(1, min(size[0], values // (columns * max(chunk, channels))))
        return Plan(rows, columns, [slice(k, min(k + chunk, slots)) for k in range(0, slots, chunk)])

    def tiles(self, size: Sequence[int], embed_BDhw: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tile]]:
        """Every tile of every image, with the image's index."""
        y, x = (Axis.between(*ends, embed_BDhw, dtype) for ends in zip(size, embed_BDhw.shape[2:], strict=True))
        for rows, node_rows, Y_Rr in y.cut(self.rows):
            for columns, node_columns, X_Wc in x.cut(self.columns):
                tile = Tile((rows, columns), (node_rows, node_columns), Y_Rr, X_Wc)
                yield from ((b, tile) for b in range(len(embed_BDhw)))
