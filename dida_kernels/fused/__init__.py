"""Triton kernels, one file per op, each named as the equation it agrees with."""

from importlib.util import find_spec

from dida_kernels.dispatch import absent

if find_spec("triton") is None:
    absent("triton", "the package triton is not installed (it is published for Linux)")
