"""Algorithm 1, `equations.boundary_mask`, in one pass over the label map.

    seen(x) = OR over the 3x3 window of x of  1 << label          (255 and positions outside the image add no bit)
    out(x)  = popcount(seen(x)) >= threshold  and  label(x) != 255

A set of classes is a machine word, so a union is one OR and "at least tau members" is: clear the lowest set bit tau - 1
times (s & (s - 1)) and see whether one is left. Up to 32 classes fit an int32, up to 64 an int64.

    symbol            name        shape
    label             label_BHW   [B, H, W] uint8, int32 or int64, any strides
    seen              b_seen      [BLOCK_Y, BLOCK_X] int32 or int64, in registers only

Not materialised: the [B, C, H, W] one-hot map and its max-pooled copy, 4 * C bytes a pixel each. What is left to move
is one label in (its eight other reads hit the L1 cache) and one byte out: at crop size the launch is what costs.
No input gets a gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.equations import boundary_mask
from dida_kernels.fused.launch import LAUNCH, refuses_device

MAX_CLASSES = 64  # one bit each
BLOCK_Y, BLOCK_X = 4, 128  # rows long enough that one warp reads whole 128-byte lines even of uint8 labels
WARPS = 4


@triton.jit
def _boundary_mask(
    p_label,
    p_out,
    H,
    W,
    stride_b,
    stride_y,
    stride_x,
    CLASSES: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    i_b = tl.program_id(2).to(tl.int64)
    o_y = tl.program_id(1) * BLOCK_Y + tl.arange(0, BLOCK_Y)[:, None]
    o_x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
    p_image = p_label + i_b * stride_b

    SET: tl.constexpr = tl.int64 if CLASSES > 32 else tl.int32
    b_seen = tl.zeros((BLOCK_Y, BLOCK_X), SET)
    for window in tl.static_range(9):
        o_wy = o_y + (window // 3 - 1)
        o_wx = o_x + (window % 3 - 1)
        m_inside = (o_wy >= 0) & (o_wy < H) & (o_wx >= 0) & (o_wx < W)
        p_window = p_image + o_wy.to(tl.int64) * stride_y + o_wx.to(tl.int64) * stride_x
        b_label = tl.load(p_window, mask=m_inside, other=CLASSES).to(tl.int32)
        m_class = (b_label >= 0) & (b_label < CLASSES)
        # Shifting by the label of an ignored pixel would be undefined: it shifts by 0 and its bit is dropped.
        b_bit = tl.full((BLOCK_Y, BLOCK_X), 1, SET) << tl.where(m_class, b_label, 0).to(SET)
        b_seen |= tl.where(m_class, b_bit, 0)
        if window == 4:
            m_centre = m_class
    for _ in tl.static_range(THRESHOLD - 1):
        b_seen &= b_seen - 1
    p_pixel = p_out + (i_b * H + o_y) * W + o_x
    tl.store(p_pixel, ((b_seen != 0) & m_centre).to(tl.uint8), mask=(o_y < H) & (o_x < W))


@torch.library.custom_op("dida::boundary_mask", mutates_args=())
def _mask(label_BHW: Tensor, classes: int, threshold: int) -> Tensor:
    B, H, W = label_BHW.shape
    out_BHW = torch.empty((B, H, W), dtype=torch.bool, device=label_BHW.device)
    if out_BHW.numel() == 0:
        return out_BHW
    grid = (triton.cdiv(W, BLOCK_X), triton.cdiv(H, BLOCK_Y), B)
    with torch.cuda.device_of(label_BHW):  # Triton launches on the current device, wherever the tensors are
        _boundary_mask[grid](
            label_BHW,
            out_BHW.view(torch.uint8),
            H,
            W,
            *label_BHW.stride(),
            CLASSES=classes,
            THRESHOLD=min(threshold, 10),  # a window has 9 pixels: every larger threshold is as unreachable as 10
            BLOCK_Y=BLOCK_Y,
            BLOCK_X=BLOCK_X,
            num_warps=WARPS,
            **LAUNCH,
        )
    return out_BHW


@_mask.register_fake
def _(label_BHW: Tensor, classes: int, threshold: int) -> Tensor:
    return torch.empty(label_BHW.shape, dtype=torch.bool, device=label_BHW.device)


def _refuses(label_BHW: Tensor, *, classes: int, threshold: int = 2) -> str | None:
    if classes > MAX_CLASSES:
        return f"{classes} classes do not fit the {MAX_CLASSES} bits of a set"
    return refuses_device(label_BHW)


@boundary_mask.implement("triton", refuses=_refuses)
def _run(label_BHW: Tensor, *, classes: int, threshold: int = 2) -> Tensor:
    return _mask(label_BHW, classes, threshold)
