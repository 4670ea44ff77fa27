"""Eq. (6), `equations.instance_loss`: which family of kernels runs, by the grids of embedding and pixels.

Embeddings on a coarser grid are enlarged inside the kernels of `cells/`. Where the grids are equal, every pixel has a
row of its own and nothing can be saved by interpolating: `rows/` streams the bank past blocks of pixels.
"""

import torch

from dida_kernels.equations import instance_loss, pixels
from dida_kernels.fused.cells.geometry import refuses_scale
from dida_kernels.fused.cells.instance_loss import instance_loss_cells
from dida_kernels.fused.launch import refuses_device
from dida_kernels.fused.rows.blocks import refuses_rows
from dida_kernels.fused.rows.instance_loss import instance_loss_rows


def _refuses(student_BDhw, teacher_BDhw, z_BCHW, *_, **__) -> str | None:
    size = z_BCHW.shape[-2:]
    if student_BDhw.shape[-2:] == size:
        return refuses_rows(student_BDhw) or refuses_rows(teacher_BDhw)
    return refuses_device(student_BDhw) or refuses_scale(student_BDhw, size) or refuses_scale(teacher_BDhw, size)


@instance_loss.implement("triton", refuses=_refuses)
def _instance_loss(student_BDhw, teacher_BDhw, z_BCHW, weight_BHW, bank_KD, label_K, *, temperature, log_prior_C=None):
    need_grad = torch.is_grad_enabled() and student_BDhw.requires_grad
    bank = (bank_KD, label_K, log_prior_C, temperature, need_grad)
    if student_BDhw.shape[-2:] == z_BCHW.shape[-2:]:
        student_ND, teacher_ND, z_NC = (pixels(x) for x in (student_BDhw, teacher_BDhw, z_BCHW))
        return instance_loss_rows(student_ND, teacher_ND, z_NC, weight_BHW.flatten(), *bank)[0]
    return instance_loss_cells(student_BDhw, teacher_BDhw, z_BCHW, weight_BHW, *bank)[0]
