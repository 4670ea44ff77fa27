"""Triton kernels, one file per op, each named as the equation it agrees with."""

from importlib.util import find_spec

from dida_kernels.dispatch import absent

if find_spec("triton") is None:
    absent("triton", "the package triton is not installed (it is published for Linux)")
else:
    from dida_kernels.fused import bank_similarity, boundary_mask, scatter_gather  # noqa: F401
    from dida_kernels.fused import class_similarity, instance_loss  # noqa: F401  isort:skip
