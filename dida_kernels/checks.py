"""Argument checks shared by the equations and the kernels: one TypeError or ValueError that names argument and value.

Checks look at shapes, dtypes and devices, which cost nothing. Values are looked at where that costs no synchronisation
(tensors on the CPU) and, for tensors on a GPU, only under DIDA_DEBUG=1.
"""

import math
import os

import torch
from torch import Tensor

LABEL_DTYPES = (torch.uint8, torch.int32, torch.int64)


def check_temperature(temperature: float) -> None:
    """t must be a finite number above zero."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: expected a finite number > 0, got {temperature}")


def check_embed(*embeds: Tensor) -> None:
    """Embeddings are floating [B, D, h, w], non-empty, and agree with each other in shape and device."""
    for x in embeds:
        if not x.is_floating_point():
            raise TypeError(f"embedding: expected a floating dtype, got {x.dtype}")
        if x.dim() != 4 or x.numel() == 0:
            raise ValueError(f"embedding: expected a non-empty [B, D, h, w], got {list(x.shape)}")
        _same_device("embedding", x, embeds[0])
        if x.shape != embeds[0].shape:
            raise ValueError(
                f"teacher embedding: expected {list(embeds[0].shape)} as the student's, got {list(x.shape)}"
            )


def check_pixels(prior_BCHW: Tensor, valid_BHW: Tensor, embed_BDhw: Tensor) -> None:
    """The class prior is floating [B, C, H, W] with H >= h, W >= w, the mask bool [B, H, W]."""
    B, _, h, w = embed_BDhw.shape
    if not prior_BCHW.is_floating_point():
        raise TypeError(f"prior: expected a floating dtype, got {prior_BCHW.dtype}")
    if prior_BCHW.dim() != 4 or prior_BCHW.shape[0] != B or prior_BCHW.shape[1] == 0:
        raise ValueError(f"prior: expected [B={B}, C, H, W], got {list(prior_BCHW.shape)}")
    if prior_BCHW.shape[2] < h or prior_BCHW.shape[3] < w:
        raise ValueError(f"prior: expected a grid of at least {h}x{w} (the embedding's), got {list(prior_BCHW.shape)}")
    if valid_BHW.dtype != torch.bool:
        raise TypeError(f"valid: expected bool, got {valid_BHW.dtype}")
    expected = (B, *prior_BCHW.shape[2:])
    if tuple(valid_BHW.shape) != expected:
        raise ValueError(f"valid: expected [B, H, W] = {list(expected)}, got {list(valid_BHW.shape)}")
    _same_device("prior", prior_BCHW, embed_BDhw)
    _same_device("valid", valid_BHW, embed_BDhw)


def check_bank(bank_KD: Tensor, label_K: Tensor | None, embed: Tensor, *, classes: int = 0) -> None:
    """The bank is floating [K >= 1, D] with the embedding's D (its dim 1), without gradient; labels are its classes."""
    if not embed.is_floating_point():
        raise TypeError(f"embedding: expected a floating dtype, got {embed.dtype}")
    if not bank_KD.is_floating_point():
        raise TypeError(f"bank: expected a floating dtype, got {bank_KD.dtype}")
    if embed.dim() < 2 or bank_KD.dim() != 2 or len(bank_KD) == 0 or bank_KD.shape[1] != embed.shape[1]:
        raise ValueError(
            f"bank: expected [K >= 1, D] with D as in the embedding {list(embed.shape)}, got {list(bank_KD.shape)}"
        )
    _same_device("bank", bank_KD, embed)
    check_no_gradient(bank=bank_KD)
    if label_K is not None:
        check_labels(label_K, bank_KD, classes=classes, slots=len(bank_KD))


def check_labels(
    label: Tensor,
    like: Tensor,
    *,
    classes: int,
    slots: int | None = None,
    ignore: int | None = None,
    dims: int = 1,
) -> None:
    """Labels are integers in 0 .. classes-1 (or `ignore`), with `dims` dimensions, on the device of `like`."""
    if classes < 1:
        raise ValueError(f"classes: expected at least 1, got {classes}")
    if label.dtype not in (LABEL_DTYPES if dims == 3 else (torch.int64,)):
        raise TypeError(f"label: expected {'uint8, int32 or int64' if dims == 3 else 'int64'}, got {label.dtype}")
    if label.dim() != dims or (slots is not None and len(label) != slots):
        expected = f"{dims} dimensions" if slots is None else f"[{slots}]"
        raise ValueError(f"label: expected {expected}, got shape {list(label.shape)}")
    _same_device("label", label, like)
    if label.device.type == "cpu" or os.environ.get("DIDA_DEBUG") == "1":
        _check_range(label, classes, ignore)


def check_no_gradient(**tensors: Tensor) -> None:
    """Bank, prior and teacher are pseudo-labels or state: a gradient for them is a mistake of the caller."""
    if torch.is_grad_enabled():
        for name, x in tensors.items():
            if x.requires_grad:
                raise ValueError(f"{name}: no gradient is defined for it, pass {name}.detach()")


def _check_range(label: Tensor, classes: int, ignore: int | None) -> None:
    if torch.compiler.is_compiling() or type(label) is not Tensor or label.is_meta or label.numel() == 0:
        return  # no values to look at
    wrong = (label < 0) | (label >= classes)
    if ignore is not None:
        wrong &= label != ignore
    if wrong.any():
        allowed = f"0 .. {classes - 1}" + ("" if ignore is None else f" or {ignore}")
        raise ValueError(f"label: expected values in {allowed}, found {label[wrong].unique().tolist()[:8]}")


def _same_device(name: str, x: Tensor, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{name}: expected it on {like.device}, got {x.device}")
