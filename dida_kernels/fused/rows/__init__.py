"""One row of an embedding for every pixel: blocks of rows stay on chip while the bank streams past them.

`blocks.py` is what these kernels share, `packed_bank.py` the bank where a class prior is read with it. The other
family, `cells/`, is for embeddings on a coarser grid than the pixels.
"""
