"""Embeddings on a coarser grid than the pixels, enlarged inside the kernel: no [N, D] tensor is ever built.

A cell is what lies between four neighbouring nodes of the feature grid (`geometry.py`). Products with the bank are
taken at the nodes (`node_logits.py`), interpolated in registers (`interpolation.py`), and gradients go the same way
back (`adjoint.py`). The other family, `rows/`, is for grids that are equal.
"""
