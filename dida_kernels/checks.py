"""What the ops refuse at their door, whatever backend runs: one TypeError or ValueError that names argument and value.

One function per op, check_<op> with the op's own arguments, over a few checks of one kind of tensor each. A docstring
says what must hold: TypeError is raised for another dtype, ValueError for everything else.

Checks look at shapes, dtypes and devices, which cost nothing. Values are looked at where that costs no synchronisation
(tensors on the CPU) and, for tensors on a GPU, only under DIDA_DEBUG=1.
"""

import math
import os

import torch
from torch import Tensor

IGNORE = 255  # the label of a pixel that belongs to no class
LABEL_DTYPES = (torch.uint8, torch.int32, torch.int64)
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # 8 bits are to keep, not to compute in
LEAST_TEMPERATURE = 1e-18  # its inverse has room in single precision


def check_bank_similarity(embed_ND: Tensor, bank_KD: Tensor, *, temperature: float) -> None:
    check_bank(bank_KD, None, embed_ND)
    check_temperature(temperature)


def check_instance_loss(
    student_BDhw: Tensor,
    teacher_BDhw: Tensor,
    z_BCHW: Tensor,
    weight_BHW: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    *,
    temperature: float,
    log_prior_C: Tensor | None = None,
) -> None:
    check_embed(student_BDhw, teacher_BDhw)
    check_pixels(z_BCHW, weight_BHW, student_BDhw)
    check_bank(bank_KD, label_K, student_BDhw, classes=z_BCHW.shape[1])
    check_temperature(temperature)
    check_log_prior(log_prior_C, bank_KD, classes=z_BCHW.shape[1])
    check_no_gradient(teacher=teacher_BDhw, z=z_BCHW, weight=weight_BHW)


def check_scatter(semantic_NC: Tensor, label_K: Tensor) -> None:
    check_rows("semantic", semantic_NC)
    check_labels(label_K, semantic_NC, classes=semantic_NC.shape[1])


def check_gather(q_NK: Tensor, label_K: Tensor, *, classes: int) -> None:
    check_rows("q", q_NK)
    check_labels(label_K, q_NK, classes=classes, slots=q_NK.shape[1])


def check_class_similarity(
    embed_BDhw: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    *,
    classes: int,
    temperature: float,
    size: tuple[int, int],
    log_prior_C: Tensor | None = None,
) -> None:
    check_embed(embed_BDhw)
    check_bank(bank_KD, label_K, embed_BDhw, classes=classes)
    check_temperature(temperature)
    check_log_prior(log_prior_C, bank_KD, classes=classes)
    check_size(size, embed_BDhw)
    check_no_gradient(embed=embed_BDhw)


def check_boundary_mask(label_BHW: Tensor, *, classes: int, threshold: int = 2) -> None:
    check_labels(label_BHW, label_BHW, classes=classes, ignore=IGNORE, dims=3)
    if not _is_whole(threshold) or threshold < 1:
        raise ValueError(f"threshold: expected a whole number of at least 1 distinct class, got {threshold!r}")


def check_bank_update(
    bank_KD: Tensor,
    label_K: Tensor,
    embed_BDhw: Tensor,
    label_BHW: Tensor,
    boundary_BHW: Tensor,
    *,
    classes: int,
    momentum: float,
) -> None:
    check_embed(embed_BDhw)
    check_bank(bank_KD, label_K, embed_BDhw, classes=classes)
    check_labels(label_BHW, embed_BDhw, classes=classes, ignore=IGNORE, dims=3)
    if len(label_BHW) != len(embed_BDhw):
        raise ValueError(f"label: expected {len(embed_BDhw)} images, as the embedding has, got {len(label_BHW)}")
    check_mask("boundary", boundary_BHW, label_BHW)
    check_no_gradient(embed=embed_BDhw)
    if not _is_number(momentum) or not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum!r}")


def check_temperature(temperature: float) -> None:
    """t must be a finite number above zero, with an inverse."""
    if not (_is_number(temperature) and LEAST_TEMPERATURE <= temperature < math.inf):  # isfinite: not for compilers
        raise ValueError(f"temperature: expected a finite number > 0, of at least 1e-18, got {temperature!r}")


def check_size(size: tuple[int, int], embed_BDhw: Tensor) -> None:
    """The grid that an embedding is enlarged to: (H, W), two whole numbers, none less than the embedding's."""
    h, w = embed_BDhw.shape[2:]
    pair = isinstance(size, tuple | list) and len(size) == 2 and all(map(_is_whole, size))
    if not pair or size[0] < h or size[1] < w:
        raise ValueError(f"size: expected (H, W) of at least {(h, w)}, the embedding's, got {size!r}")


def check_floating(name: str, x: Tensor) -> None:
    """A type that every backend computes in."""
    if x.dtype not in FLOATING:
        raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}")


def check_rows(name: str, x_NX: Tensor) -> None:
    """One row a pixel: floating, two dimensions."""
    check_floating(name, x_NX)
    if x_NX.dim() != 2:
        raise ValueError(f"{name}: expected two dimensions, one row a pixel, got {list(x_NX.shape)}")


def check_embed(*embeds: Tensor) -> None:
    """Embeddings are floating [B, D, h, w], non-empty, and agree with each other in shape and device."""
    for x in embeds:
        check_floating("embedding", x)
        if x.dim() != 4 or x.numel() == 0:
            raise ValueError(f"embedding: expected a non-empty [B, D, h, w], got {list(x.shape)}")
        _same_device("embedding", x, embeds[0])
        if x.shape != embeds[0].shape:
            raise ValueError(
                f"teacher embedding: expected {list(embeds[0].shape)} as the student's, got {list(x.shape)}"
            )


def check_pixels(z_BCHW: Tensor, weight_BHW: Tensor, embed_BDhw: Tensor) -> None:
    """z is floating [B, C, H, W] with H >= h, W >= w, the weight floating [B, H, W], finite and >= 0."""
    B, _, h, w = embed_BDhw.shape
    check_floating("z", z_BCHW)
    if z_BCHW.dim() != 4 or z_BCHW.shape[0] != B or z_BCHW.shape[1] == 0:
        raise ValueError(f"z: expected [B={B}, C, H, W], got {list(z_BCHW.shape)}")
    if z_BCHW.shape[2] < h or z_BCHW.shape[3] < w:
        raise ValueError(f"z: expected a grid of at least {h}x{w} (the embedding's), got {list(z_BCHW.shape)}")
    _same_device("z", z_BCHW, embed_BDhw)
    check_floating("weight", weight_BHW)
    _same_grid("weight", weight_BHW, z_BCHW[:, 0])
    if _looked_at(weight_BHW):
        wrong = ~(weight_BHW.isfinite() & (weight_BHW >= 0))
        if wrong.any():
            raise ValueError(f"weight: expected finite values of at least 0, found {weight_BHW[wrong].tolist()[:8]}")


def check_log_prior(log_prior_C: Tensor | None, like: Tensor, *, classes: int) -> None:
    """A class prior, where there is one, is floating [C], finite, without gradient, on the device of `like`."""
    if log_prior_C is None:
        return
    check_floating("log_prior", log_prior_C)
    if log_prior_C.shape != (classes,):
        raise ValueError(f"log_prior: expected [C] = [{classes}], got {list(log_prior_C.shape)}")
    _same_device("log_prior", log_prior_C, like)
    check_no_gradient(log_prior=log_prior_C)
    if _looked_at(log_prior_C) and not log_prior_C.isfinite().all():
        raise ValueError(f"log_prior: expected finite values, found {log_prior_C.tolist()}; give shares a floor")


def check_mask(name: str, mask_BHW: Tensor, like_BHW: Tensor) -> None:
    """A mask is bool, of the shape and on the device of `like_BHW`."""
    if mask_BHW.dtype != torch.bool:
        raise TypeError(f"{name}: expected bool, got {mask_BHW.dtype}")
    _same_grid(name, mask_BHW, like_BHW)


def check_bank(bank_KD: Tensor, label_K: Tensor | None, embed: Tensor, *, classes: int = 0) -> None:
    """The bank is floating [K >= 1, D] with the embedding's D (its dim 1), without gradient; labels are its classes."""
    check_floating("embedding", embed)
    check_floating("bank", bank_KD)
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
    if not _is_whole(classes) or not 1 <= classes < 2**31:
        raise ValueError(f"classes: expected a whole number of at least 1, got {classes!r}")
    if label.dtype not in (LABEL_DTYPES if dims == 3 else (torch.int64,)):
        raise TypeError(f"label: expected {'uint8, int32 or int64' if dims == 3 else 'int64'}, got {label.dtype}")
    if dims == 1 and label.numel() == 0:
        raise ValueError("label: expected at least one slot, got none")
    if label.dim() != dims or (slots is not None and len(label) != slots):
        expected = f"{dims} dimensions" if slots is None else f"[{slots}]"
        raise ValueError(f"label: expected {expected}, got shape {list(label.shape)}")
    _same_device("label", label, like)
    if _looked_at(label):
        _check_range(label, classes, ignore)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | torch.SymInt | torch.SymFloat) and not isinstance(value, bool)


def check_no_gradient(**tensors: Tensor) -> None:
    """Bank, z and teacher are pseudo-labels or state: a gradient for them is a mistake of the caller."""
    if torch.is_grad_enabled():
        for name, x in tensors.items():
            if x.requires_grad:
                raise ValueError(f"{name}: no gradient is defined for it, pass {name}.detach()")


def _looked_at(x: Tensor) -> bool:
    """Are there values, and may they be looked at?"""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.is_meta or x.numel() == 0:
        return False
    return x.device.type == "cpu" or os.environ.get("DIDA_DEBUG") == "1"


def _check_range(label: Tensor, classes: int, ignore: int | None) -> None:
    wrong = (label < 0) | (label >= classes)
    if ignore is not None:
        wrong &= label != ignore
    if wrong.any():
        allowed = f"0 .. {classes - 1}" + ("" if ignore is None else f" or {ignore}")
        raise ValueError(f"label: expected values in {allowed}, found {label[wrong].unique().tolist()[:8]}")


def _same_grid(name: str, x_BHW: Tensor, like_BHW: Tensor) -> None:
    if x_BHW.shape != like_BHW.shape:
        raise ValueError(f"{name}: expected [B, H, W] = {list(like_BHW.shape)}, got {list(x_BHW.shape)}")
    _same_device(name, x_BHW, like_BHW)


def _same_device(name: str, x: Tensor, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{name}: expected it on {like.device}, got {x.device}")
