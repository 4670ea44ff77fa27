"""Plain PyTorch where the equation itself would need too much memory or time: tile by tile, chunk by chunk.

Three facts carry this folder (letters as in equations.py; R, W: pixel rows and columns of a tile, P = R*W; r, c: the
rows and columns of nodes, points of the feature grid, that these pixels lie between):

- Interpolation is linear, so it commutes with the dot product: <enlarge(e), b_k> = enlarge(<e, b_k>). The matrix
  product with the bank is done at the nodes, and logits are enlarged instead of embeddings.
- Bilinear interpolation of a tile is two small matrices, Y [R, r] and X [W, c]. Its adjoint is their transposes: exact
  for every ratio of the grids, borders included, and free of atomics, so two runs agree bit for bit.
- Softmax over K needs one number per pixel from a first sweep over the slots, the log of its denominator. A second
  sweep then has the probabilities, the loss and its gradient, one chunk of slots at a time.

Memory beyond inputs and outputs: at most TILE_BYTES for the buffers of a tile, 4*K bytes for the norms of the bank, and
4*B*D*h*w for the gradient that `instance_loss` keeps, whatever the image size and K (8 instead of 4 in float64). The
blend at the end of `bank_update` is the equation's and holds up to two more banks.

`tiles.py` cuts images, `banks.py` the bank; then one file per op, each named as the equation it agrees with.
"""

from dida_kernels.chunked import bank_update, boundary_mask, class_similarity, instance_loss  # noqa: F401
