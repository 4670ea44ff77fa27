"""The C++/CUDA extension and the backends "cpp" and "cuda" that it brings.

`setup.py` compiles csrc/ into `dida_kernels._C`. Importing that registers its operators under `torch.ops.dida`; here
they get what only Python can give them: the shape function that torch.compile needs, and their place among the
implementations of an op. Without the extension a forced "cpp" or "cuda" says why it is missing.
"""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from dida_kernels import equations
from dida_kernels.dispatch import absent

HOW_TO_BUILD = "python setup.py build_ext --inplace (needs a C++ compiler; also nvcc for CUDA)"
EMBEDDINGS = (torch.float32, torch.float16, torch.bfloat16)
COUNTABLE = 2**28  # see upsampling.h


def load_extension() -> dict[str, str]:
    """Import the extension and return what it knows of its build. Raises ImportError with the reason and the cure."""
    try:
        info = import_module("dida_kernels._C").build_info()
    except ModuleNotFoundError as error:
        if error.name != "dida_kernels._C":
            raise
        raise ImportError(f"the extension is not built: {HOW_TO_BUILD}") from None
    except ImportError as error:  # as a rule a symbol that another torch does not have
        raise ImportError(f"the extension does not load ({error}); build it again: {HOW_TO_BUILD}") from error
    if info["torch"] != torch.__version__:
        built, here = info["torch"], torch.__version__
        raise ImportError(f"the extension was built against torch {built}, this is {here}: {HOW_TO_BUILD}")
    return info


def refuses(device: str) -> Callable[..., str | None]:
    """Why the kernel for `device` would not run `bank_update` on these inputs, or None if it would."""

    def refuses_inputs(
        bank_KD: Tensor,
        label_K: Tensor,
        embed_BDhw: Tensor,
        label_BHW: Tensor,
        boundary_BHW: Tensor,
        *,
        classes: int,
        momentum: float,
    ) -> str | None:
        if embed_BDhw.device.type != device:
            return f"needs tensors on a {device} device, got {embed_BDhw.device}"
        if embed_BDhw.dtype not in EMBEDDINGS:
            return f"takes float32, float16 and bfloat16 embeddings, got {embed_BDhw.dtype}"
        if bank_KD.dtype != torch.float32:
            return f"takes a float32 bank, got {bank_KD.dtype}"
        if embed_BDhw.dim() != 4 or label_BHW.dim() != 3 or embed_BDhw.numel() == 0:
            return None  # wrong inputs: running raises the error that says so
        (h, w), (H, W) = embed_BDhw.shape[-2:], label_BHW.shape[-2:]
        if max(H * W, h * w) >= COUNTABLE or ((H % h or W % w) and max(h * H, w * W) >= COUNTABLE):
            return f"upsampling {h}x{w} to {H}x{W} needs more than 32 bits to count in"
        return None

    return refuses_inputs


def _bank_update(
    bank_KD: Tensor,
    label_K: Tensor,
    embed_BDhw: Tensor,
    label_BHW: Tensor,
    boundary_BHW: Tensor,
    *,
    classes: int,
    momentum: float,
) -> Tensor:
    """See `equations.bank_update`. Runs on the device of its inputs; what is not checked here is checked in csrc."""
    return torch.ops.dida.bank_update(
        bank_KD, label_K, embed_BDhw, label_BHW, boundary_BHW, classes=classes, momentum=momentum
    )


def register(info: dict[str, str]) -> None:
    """Give the operators their shape function and their place among the backends."""

    @torch.library.register_fake("dida::bank_update")
    def _(
        bank_KD: Tensor,
        label_K: Tensor,
        embed_BDhw: Tensor,
        label_BHW: Tensor,
        boundary_BHW: Tensor,
        *,
        classes: int,
        momentum: float,
    ) -> Tensor:
        return torch.empty_like(bank_KD, memory_format=torch.contiguous_format)

    equations.bank_update.implement("cpp", refuses=refuses("cpu"))(_bank_update)
    if info["cuda"]:
        equations.bank_update.implement("cuda", refuses=refuses("cuda"))(_bank_update)
    else:
        absent("cuda", f"the extension was built without CUDA kernels: {HOW_TO_BUILD}")


try:
    register(load_extension())
except ImportError as error:
    absent("cpp", str(error))
    absent("cuda", str(error))
