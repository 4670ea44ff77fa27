"""Operations on pixels and an instance bank: Sec. III as equations, and kernels that agree with them.

Each op runs on the fastest backend that accepts its inputs; see dispatch.py for how to force one and
`python -m dida.doctor` for what this machine has.
"""

from dida_kernels import chunked, extension, fused  # noqa: F401  (importing them registers their backends)
from dida_kernels.choices import choice_lines, chosen_backends, report
from dida_kernels.dispatch import OPS, backend, check_switch
from dida_kernels.equations import (
    bank_similarity,
    bank_update,
    boundary_mask,
    class_similarity,
    gather,
    instance_loss,
    scatter,
)

__all__ = [
    "OPS",
    "backend",
    "bank_similarity",
    "bank_update",
    "boundary_mask",
    "choice_lines",
    "chosen_backends",
    "class_similarity",
    "gather",
    "instance_loss",
    "report",
    "scatter",
]

check_switch()
