"""Cells: the S x S pixels between four neighbouring nodes of the feature grid, the tile of every interpolating kernel.

Bilinear enlargement by an integer S (align_corners=False) gives all pixels of a cell the same four nodes and gives
pixel (j, i) of every cell the same weights, the constants (j + 1/2) / S and (i + 1/2) / S. A [B, h, w] grid has
B (h+1) (w+1) cells; those on the border have clamped, hence coinciding, nodes and reach half a cell out of the image.

    node (cy-1, cx-1) o . . . . o node (cy-1, cx)        pixel (j, i) of cell (cy, cx) lies in the image at
                      .  cell   .                        Y = cy S - S/2 + j,  X = cx S - S/2 + i
      node (cy, cx-1) o . . . . o node (cy, cx)

Kernels run over the flat cell index, so no lane is lost at the end of each grid row, and keep what they know of a pixel
*cell-major*, [S*S, cells]: neighbouring lanes are neighbouring cells, and loads need no mask for the image's border.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

SCALES = (2, 4, 8)


@dataclass(frozen=True)
class Cells:
    """The geometry of one call: B feature maps of h x w nodes, enlarged S times."""

    B: int
    h: int
    w: int
    S: int

    @property
    def count(self) -> int:
        return self.B * (self.h + 1) * (self.w + 1)

    @property
    def nodes(self) -> int:
        return self.B * self.h * self.w


def refuses_scale(embed_BDhw: Tensor, size: tuple[int, int]) -> str | None:
    """Why the interpolating kernels do not enlarge this embedding to `size`, or None."""
    (h, w), (H, W) = embed_BDhw.shape[-2:], size
    if embed_BDhw.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"kernels take float32, bfloat16 and float16 embeddings, got {embed_BDhw.dtype}"
    if any((H, W) == (S * h, S * w) for S in SCALES):
        return None
    return f"the pixel grid must be the feature grid times one of {SCALES}, got {h}x{w} -> {H}x{W}"


def scratch(*shape: int, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory: every output and temporary of the interpolating kernels."""
    return torch.empty(shape, dtype=dtype, device=like.device)


@triton.jit
def cell_position(o_cell, h, w):
    """Flat cell index -> image, cell row, cell column."""
    per_image = (h + 1) * (w + 1)
    o_b = o_cell // per_image
    o_cy = (o_cell - o_b * per_image) // (w + 1)
    return o_b, o_cy, o_cell - o_b * per_image - o_cy * (w + 1)


@triton.jit
def cell_nodes(o_b, o_cy, o_cx, h, w):
    """Flat indices of the four nodes of a cell, clamped to the grid: top left, top right, bottom left, bottom right."""
    o_top = (o_b * h + tl.maximum(o_cy - 1, 0)) * w
    o_bottom = (o_b * h + tl.minimum(o_cy, h - 1)) * w
    o_left = tl.maximum(o_cx - 1, 0)
    o_right = tl.minimum(o_cx, w - 1)
    return o_top + o_left, o_top + o_right, o_bottom + o_left, o_bottom + o_right


@triton.jit
def node_share(o_cell_axis, nodes_axis, weight):
    """The weight of a cell's lower (right) node at a pixel, when gradients are *gathered* from the pixels.

    In a border cell both nodes are the same one; all weight goes to the side from which that node looks at the cell,
    so that a node can sum its four cells without asking where the border is.
    """
    return tl.where(o_cell_axis == 0, 1.0, tl.where(o_cell_axis == nodes_axis, 0.0, weight))


@triton.jit
def image_pixels(p_image, o_b, o_cy, o_cx, i_row, stride_b, stride_y, stride_x, S: tl.constexpr):
    """Where the first pixel of row `i_row` of a cell lies in an image of any strides; it may lie outside."""
    o_y = (o_cy * S - S // 2 + i_row).to(tl.int64)
    o_x = (o_cx * S - S // 2).to(tl.int64)
    return p_image + o_b.to(tl.int64) * stride_b + o_y * stride_y + o_x * stride_x


@triton.jit
def inside_image(m_cell, o_cy, o_cx, i_row, h, w, S: tl.constexpr, PIXELS: tl.constexpr):
    """For PIXELS pixels from row `i_row` of a cell on: is it one of the image? A tuple, as all that is kept per pixel.

    A thread's pixels are separate 1-D blocks over the cells, never one 2-D block: the compiler then has nothing to lay
    out across threads, and sums over slots or over pixels stay in the thread's registers.
    """
    m_pixels = ()
    for n in tl.static_range(PIXELS):
        o_y = o_cy * S - S // 2 + i_row + n // S
        o_x = o_cx * S - S // 2 + n % S
        m_pixels += (m_cell & (o_y >= 0) & (o_y < S * h) & (o_x >= 0) & (o_x < S * w),)
    return m_pixels


@triton.jit
def load_image(p_first, m_pixel, stride_y, stride_x, S: tl.constexpr, PIXELS: tl.constexpr):
    """PIXELS blocks of an image, from the pixels at `p_first` on, in float32; 0 outside of it."""
    b_pixels = ()
    for n in tl.static_range(PIXELS):
        p_pixel = p_first + n // S * stride_y + n % S * stride_x
        b_pixels += (tl.load(p_pixel, mask=m_pixel[n], other=0.0).to(tl.float32),)
    return b_pixels


@triton.jit
def load_pixels(p_first, stride, m_cell, PIXELS: tl.constexpr):
    """PIXELS blocks, `stride` apart, of cell-major numbers."""
    b_pixels = ()
    for n in tl.static_range(PIXELS):
        b_pixels += (tl.load(p_first + n * stride, mask=m_cell, other=0.0),)
    return b_pixels


@triton.jit
def store_pixels(p_first, stride, b_pixels, m_cell, PIXELS: tl.constexpr, ADD: tl.constexpr):
    """Store, or with ADD add to what an earlier launch has stored.

    Adding here, and not by starting from the stored sums, keeps their addresses out of the registers of the hot loop.
    """
    for n in tl.static_range(PIXELS):
        if ADD:
            b_sum = tl.load(p_first + n * stride, mask=m_cell, other=0.0) + b_pixels[n]
            tl.store(p_first + n * stride, b_sum, mask=m_cell)
        else:
            tl.store(p_first + n * stride, b_pixels[n], mask=m_cell)


@triton.jit
def full_pixels(value, CX: tl.constexpr, PIXELS: tl.constexpr):
    b_pixels = ()
    for _ in tl.static_range(PIXELS):
        b_pixels += (tl.full((CX,), value, tl.float32),)
    return b_pixels


@triton.jit
def less_log2_prior(b_shift, p_log2_prior, PIXELS: tl.constexpr, ADJUSTED: tl.constexpr):
    """Shifts that multiply exponentials by the class prior, if there is one."""
    b_less = b_shift
    if ADJUSTED:
        log2_prior = tl.load(p_log2_prior)
        b_less = ()
        for n in tl.static_range(PIXELS):
            b_less += (b_shift[n] - log2_prior,)
    return b_less


@triton.jit
def less_log2(b_shift, b_z, PIXELS: tl.constexpr):
    """Shifts that multiply exponentials by z: those of z = 0 are 0, however large they would be."""
    b_less = ()
    for n in tl.static_range(PIXELS):
        b_less += (b_shift[n] - tl.log2(b_z[n]),)
    return b_less


@triton.jit
def load_nodes(p_slot, o_00, o_01, o_10, o_11, m_cell):
    """The four nodes of a slot's logits [M, 2], teacher then student: one 8-byte load each."""
    o_two = tl.arange(0, 2)[None, :]
    b_d00, b_c00 = tl.split(tl.load(p_slot + (2 * o_00)[:, None] + o_two, mask=m_cell[:, None], other=0.0))
    b_d01, b_c01 = tl.split(tl.load(p_slot + (2 * o_01)[:, None] + o_two, mask=m_cell[:, None], other=0.0))
    b_d10, b_c10 = tl.split(tl.load(p_slot + (2 * o_10)[:, None] + o_two, mask=m_cell[:, None], other=0.0))
    b_d11, b_c11 = tl.split(tl.load(p_slot + (2 * o_11)[:, None] + o_two, mask=m_cell[:, None], other=0.0))
    return b_d00, b_d01, b_d10, b_d11, b_c00, b_c01, b_c10, b_c11


@triton.jit
def enlarge_row(b_00, b_01, b_10, b_11, weight):
    """One row of a cell's pixels as its left end and the difference to its right end."""
    b_left = b_00 + weight * (b_10 - b_00)
    return b_left, b_01 + weight * (b_11 - b_01) - b_left


@triton.jit
def load_streams(
    p_r, p_max, i_first, stride, o_cell, m_cell, to_log2,
    S: tl.constexpr, PIXELS: tl.constexpr, PIXEL_SHIFT: tl.constexpr,
):  # fmt: skip
    """Of teacher and student, what turns an enlarged dot product into an exponent of 2: a factor, then a shift.

    From the pixels' norms r [2, S*S, cells], and from their maxima [2, S*S, cells] or the constant 1/t.
    """
    # Scalars are added before lanes: a 64-bit offset per lane would stay in registers through the loop.
    i_student = i_first + S * S * stride
    b_rd = load_pixels(p_r + i_first + o_cell, stride, m_cell, PIXELS)
    b_rc = load_pixels(p_r + i_student + o_cell, stride, m_cell, PIXELS)
    b_factor_d, b_factor_c, b_shift_d, b_shift_c = (), (), (), ()
    for n in tl.static_range(PIXELS):
        b_factor_d += (b_rd[n] * to_log2,)
        b_factor_c += (b_rc[n] * to_log2,)
    if PIXEL_SHIFT:
        b_shift_d = load_pixels(p_max + i_first + o_cell, stride, m_cell, PIXELS)
        b_shift_c = load_pixels(p_max + i_student + o_cell, stride, m_cell, PIXELS)
    else:
        for _ in tl.static_range(PIXELS):
            b_shift_d += (to_log2,)
            b_shift_c += (to_log2,)
    return b_factor_d, b_factor_c, b_shift_d, b_shift_c
