"""The boundary mask as a Triton kernel: equal to Algorithm 1 for every dtype, class count, threshold and layout."""

import pytest
import torch
from torch import Tensor

import dida_kernels

pytest.importorskip("triton", reason="Triton is published for Linux")

from dida_kernels.fused import boundary_mask as fused
from tests.cases import IGNORE
from tests.interpreter import looking_for_overflow
from tests.kernels.agreement import device_of

DEVICE = device_of("triton")
DTYPES = (torch.uint8, torch.int32, torch.int64)


def labels(B: int, H: int, W: int, classes: int, dtype: torch.dtype) -> Tensor:
    """Blocks of 3 x 4 pixels, so that there are interiors, edges and points where many classes meet; some ignored."""
    rng = torch.Generator().manual_seed(H * W)
    label_BHW = torch.randint(classes, (B, -(-H // 3), -(-W // 4)), generator=rng)
    label_BHW = label_BHW.repeat_interleave(3, 1).repeat_interleave(4, 2)[:, :H, :W].contiguous()
    label_BHW[torch.rand(B, H, W, generator=rng) < 0.1] = IGNORE
    return label_BHW.to(DEVICE, dtype)


def assert_equal_to_the_equation(label_BHW: Tensor, **options: int) -> None:
    with dida_kernels.backend("triton"):
        got = dida_kernels.boundary_mask(label_BHW, **options)
    assert got.dtype == torch.bool
    assert torch.equal(got, dida_kernels.boundary_mask.reference(label_BHW, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(2, 17, 33), (1, 1, 1), (2, 1, 5), (1, 5, 1), (1, 9, 150)], ids=str)
def test_sizes_and_dtypes(size, dtype):
    assert_equal_to_the_equation(labels(*size, 19, dtype), classes=19)


@pytest.mark.parametrize("classes", [1, 2, 31, 32, 33, 63, 64])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_every_bit_of_the_word(classes, dtype):
    label_BHW = labels(1, 8, 9, classes, dtype)
    label_BHW[0, :2, :2] = torch.tensor([[classes - 1, 0], [max(classes - 2, 0), classes - 1]], device=DEVICE)
    assert_equal_to_the_equation(label_BHW, classes=classes)


@pytest.mark.parametrize("threshold", [1, 2, 3, 4, 9, 10, 1000])
def test_thresholds(threshold):
    label_BHW = labels(1, 12, 13, 19, torch.uint8)
    label_BHW[0, 3:6, 3:6] = torch.arange(9, device=DEVICE).view(3, 3)  # a window with nine classes
    assert_equal_to_the_equation(label_BHW, classes=19, threshold=threshold)


def test_nothing_valid():
    assert_equal_to_the_equation(torch.full((2, 5, 6), IGNORE, dtype=torch.uint8, device=DEVICE), classes=19)


def test_strides():
    label_BHW = labels(2, 10, 12, 19, torch.int32)
    for view in (label_BHW.transpose(1, 2), label_BHW[:, ::2, 1::3], label_BHW.flip(0)[:1].expand(3, -1, -1)):
        assert_equal_to_the_equation(view, classes=19)


def test_offsets_beyond_two_to_the_31(monkeypatch):
    """Images of a view 2^31 bytes apart, in memory that is never touched in between."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    memory = torch.empty(2**31 + 4096, dtype=torch.uint8, device=DEVICE)
    far_BHW = memory.as_strided((2, 6, 7), (2**31 + 128, 7, 1))
    far_BHW.copy_(labels(2, 6, 7, 19, torch.uint8))
    with looking_for_overflow():
        assert_equal_to_the_equation(far_BHW, classes=19)


def test_refuses():
    label_BHW = torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert "65 classes" in dida_kernels.boundary_mask.why_not("triton", label_BHW, classes=65)
    with dida_kernels.backend("triton"):
        with pytest.raises(ValueError, match="threshold"):
            dida_kernels.boundary_mask(label_BHW, classes=19, threshold=0)
        with pytest.raises(ValueError, match="label"):
            dida_kernels.boundary_mask(label_BHW + 20, classes=19)
        with pytest.raises(TypeError, match="label"):
            dida_kernels.boundary_mask(label_BHW.float(), classes=19)


def test_opcheck_and_compile():
    label_BHW = labels(1, 5, 6, 19, torch.uint8)
    torch.library.opcheck(fused._mask, (label_BHW, 19, 2))
    torch._dynamo.reset()
    with dida_kernels.backend("triton"):
        compiled = torch.compile(
            lambda x: dida_kernels.boundary_mask(x, classes=19), fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(compiled(label_BHW), dida_kernels.boundary_mask(label_BHW, classes=19))
