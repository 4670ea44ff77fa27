"""Triton kernels that agree with the equations, in two families.

`cells/` takes embeddings on a coarser grid than the pixels and enlarges them inside the kernel; `rows/` takes one row a
pixel. `instance_loss.py` chooses between the two; ops of one family register themselves there, and ops without
embeddings (`boundary_mask.py`, `scatter_gather.py`) here.
"""

from importlib.util import find_spec

from dida_kernels.dispatch import absent

if find_spec("triton") is None:
    absent("triton", "the package triton is not installed (it is published for Linux)")
else:
    from dida_kernels.fused import boundary_mask, instance_loss, scatter_gather  # noqa: F401
    from dida_kernels.fused.cells import class_similarity  # noqa: F401
    from dida_kernels.fused.rows import bank_similarity  # noqa: F401
