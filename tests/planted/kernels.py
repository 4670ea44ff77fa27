"""Mistakes in the equations, the dispatcher and every backend. No Triton kernel, chunk or C++ loop is without one."""

from tests.planted import Plant

FUSED, CHUNKED, CSRC = "dida_kernels/fused", "dida_kernels/chunked", "csrc"
CELLS, ROWS = f"{FUSED}/cells", f"{FUSED}/rows"
TESTS = "tests/kernels"
AGREEMENT = f"{TESTS}/test_agreement.py"


def agreement(op: str, backend: str, scene: str = "", dtype: str = "float32") -> str:
    """The scenes of an op on a backend, or one of them."""
    return f"{AGREEMENT} -k 'test_agrees and {op}-{backend}-{scene} and {dtype}'"


PLANTS = [
    # ---- equations and choice ----
    Plant(
        "dida_kernels/equations.py",
        "the scaled distribution is not normalised again",
        "product_NK / total_N1.where(defined_N1, 1.0)",
        "product_NK",
        f"{TESTS}/test_equations.py -k eq_8",
    ),
    Plant(
        "dida_kernels/equations.py",
        "a boundary needs one class too many",
        "(distinct_BHW >= threshold)",
        "(distinct_BHW > threshold)",
        f"{TESTS}/test_equations.py -k algorithm_1",
    ),
    Plant(
        "dida_kernels/equations.py",
        "a mean of one set is halved",
        "exists_2C.sum(0).clamp(min=1)",
        "exists_2C.sum(0).clamp(min=2)",
        f"{TESTS}/test_equations.py -k eq_11",
    ),
    Plant(
        "dida_kernels/equations.py",
        "invalid pixels count",
        "counts_N = valid_BHW.flatten() & defined_N",
        "counts_N = defined_N",
        f"{TESTS}/test_equations.py -k eq_6",
    ),
    Plant(
        "dida_kernels/dispatch.py",
        "a forced backend holds in all threads",
        "class _Forced(threading.local):",
        "class _Forced:",
        f"{TESTS}/test_dispatch.py -k thread",
    ),
    Plant(
        "dida_kernels/dispatch.py",
        "a forced backend that cannot run falls back",
        'for name in ORDER if wish == "auto" else (wish,):',
        'for name in ORDER if wish == "auto" else (wish, *ORDER):',
        f"{TESTS}/test_dispatch.py",
    ),
    Plant(
        "dida_kernels/checks.py",
        "a negative momentum is let in",
        "if not 0 <= momentum <= 1:",
        "if not momentum <= 1:",
        f"{TESTS}/test_checks.py -k momentum",
    ),
    Plant(
        f"{FUSED}/launch.py",
        "the interpreter is a free choice",
        'if asked_for() != "triton":',
        'if asked_for() == "equation":',
        f"{TESTS}/test_dispatch.py",
    ),
    # ---- chunked ----
    Plant(
        f"{CHUNKED}/tiles.py",
        "pixels are half a pixel off",
        "+ 0.5) * (nodes / pixels) - 0.5\n        distance",
        "+ 0.0) * (nodes / pixels) - 0.5\n        distance",
        agreement("class_similarity", "chunked"),
    ),
    Plant(
        f"{CHUNKED}/tiles.py",
        "the pixels left out are kept",
        "argsort(dim=1, descending=True, stable=True)",
        "argsort(dim=1, descending=False, stable=True)",
        agreement("instance_loss", "chunked"),
    ),
    Plant(
        f"{CHUNKED}/tiles.py",
        "the last node of a tile is missing",
        "(nodes / pixels) - 0.5, 0)) + 1, nodes - 1)",
        "(nodes / pixels) - 0.5, 0)), nodes - 1)",
        f"{TESTS}/test_chunked.py -k agrees",
    ),
    Plant(
        f"{CHUNKED}/instance_loss.py",
        "pixels that do not count have a gradient",
        "weight_P1 = self.inverse_P1 * counts_P[:, None]",
        "weight_P1 = self.inverse_P1",
        agreement("instance_loss", "chunked"),
    ),
    Plant(
        f"{CHUNKED}/instance_loss.py",
        "the part along the embedding has the wrong sign",
        ".sub_(self.tile.adjoint(along_PD))",
        ".add_(self.tile.adjoint(along_PD))",
        agreement("instance_loss", "chunked", dtype="bfloat16"),
    ),
    Plant(
        f"{CHUNKED}/instance_loss.py",
        "the logits of another chunk are used again",
        "if len(bank.chunks) == 1 else None",
        "if bank.chunks else None",
        f"{TESTS}/test_chunked.py -k 'agrees and instance_loss'",
    ),
    Plant(
        f"{CHUNKED}/class_similarity.py",
        "sums are not scaled down to a new maximum",
        "sum_PC.mul_((peak_P1 - higher_P1).exp_()).addmm_(",
        "sum_PC.addmm_(",
        f"{TESTS}/test_chunked.py -k 'agrees and class_similarity'",
    ),
    Plant(
        f"{CHUNKED}/bank_update.py",
        "boundary and interior are one set",
        "label_P + classes * boundary_BHW[b]",
        "label_P + 0 * boundary_BHW[b]",
        agreement("bank_update", "chunked"),
    ),
    Plant(
        f"{CHUNKED}/banks.py",
        "slots keep their length",
        ".mul_(self.inverse_norm_K[chunk])\n        return",
        "\n        return",
        agreement("class_similarity", "chunked", dtype="float16"),
    ),
    Plant(
        f"{CHUNKED}/boundary_mask.py",
        "a window has two rows",
        "bits_BHW[:, :-2] | bits_BHW[:, 1:-1] | bits_BHW[:, 2:]",
        "bits_BHW[:, :-2] | bits_BHW[:, 1:-1] | bits_BHW[:, 1:-1]",
        agreement("boundary_mask", "chunked"),
    ),
    # ---- cells: enlarged inside the kernel ----
    Plant(
        f"{CELLS}/instance_loss.py",
        "the weight of the lower nodes is that of the row above",
        "b_wy = (i_row + j + 0.5) / S",
        "b_wy = (i_row + j - 0.5) / S",
        agreement("instance_loss", "triton", "ordinary"),
    ),
    Plant(
        f"{CELLS}/instance_loss.py",
        "pixels outside of the image are read",
        "b_z = tl.load(p_zn, mask=m_pixel[n], other=0.0)",
        "b_z = tl.load(p_zn, mask=m_cell, other=0.0)",
        f"{TESTS}/test_memory_safety.py -k touched",
    ),
    Plant(
        f"{CELLS}/instance_loss.py",
        "a pixel without mass on slots counts",
        "m_counts = (b_valid != 0) & (b_D > 0)",
        "m_counts = b_valid != 0",
        agreement("instance_loss", "triton", "slotless_prior"),
    ),
    Plant(
        f"{CELLS}/instance_loss.py",
        "sums of half precision leave its range",
        "UNITS_PER_SCALE = tl.constexpr(256.0)",
        "UNITS_PER_SCALE = tl.constexpr(256.0 * 4096)",
        agreement("instance_loss", "triton", "ordinary", "float16"),
    ),
    Plant(
        f"{CELLS}/instance_gradient.py",
        "the prior is that of the first class",
        "p_zn = p_z + c * tl.cast",
        "p_zn = p_z + c_first * tl.cast",
        agreement("instance_loss", "triton", "ordinary"),
    ),
    Plant(
        f"{CELLS}/instance_gradient.py",
        "the last slot of a group is left out",
        "i_hi = tl.minimum(i_lo + group_slots, i_stop)",
        "i_hi = tl.minimum(i_lo + group_slots - 1, i_stop)",
        agreement("instance_loss", "triton", "ordinary"),
    ),
    Plant(
        f"{CELLS}/adjoint.py",
        "the edges between programs are forgotten",
        " + b_edge * (b_next[c] * b_inverse)",
        "",
        agreement("instance_loss", "triton", "ordinary"),
    ),
    Plant(
        f"{CELLS}/adjoint.py",
        "the node above is taken for the one below",
        "(DY == 0 or DY == 2 * y - 1)",
        "(DY == 0 or DY == 1 - 2 * y)",
        agreement("instance_loss", "triton", "ordinary"),
    ),
    Plant(
        f"{CELLS}/node_logits.py",
        "the products of another chunk are used again",
        "if self.held != (start, stop):",
        "if self.held is None:",
        f"{TESTS}/test_triton_class_similarity.py -k chunks",
    ),
    Plant(
        f"{FUSED}/banks.py",
        "rows are rounded before they are normalised",
        "return unit(rows).to(dtype)",
        "return unit(rows.to(dtype))",
        agreement("instance_loss", "triton", "ordinary", "bfloat16"),
    ),
    Plant(
        f"{CELLS}/interpolation.py",
        "an embedding without a direction has one",
        "b_r = tl.where(b_total <= 1e-24, 0.0, 1.0 / tl.sqrt",
        "b_r = tl.where(b_total < 0.0, 0.0, 1.0 / tl.sqrt",
        agreement("instance_loss", "triton", "zero_embedding"),
    ),
    Plant(
        f"{CELLS}/interpolation.py",
        "the maximum is that of the last chunk",
        "*(cells.S, streams, MAX_CELLS, start > 0),",
        "*(cells.S, streams, MAX_CELLS, start < 0),",
        f"{TESTS}/test_triton_instance_loss.py -k 'chunks or as_shipped'",
    ),
    Plant(
        f"{CELLS}/class_similarity.py",
        "classes without slots are summed",
        "b_total += tl.load(p_pixel + c * tl.cast(plane, tl.int64), mask=m_class, other=0.0)",
        "b_total += tl.load(p_pixel + c * tl.cast(plane, tl.int64), mask=m, other=0.0)",
        f"{TESTS}/test_triton_class_similarity.py -k classes_without_slots",
    ),
    Plant(
        f"{CELLS}/class_similarity.py",
        "a class that begins with a chunk was begun before",
        "m_begun = tl.broadcast_to(k_start, (CX,)) < i_first",
        "m_begun = tl.broadcast_to(k_start, (CX,)) <= i_first",
        agreement("class_similarity", "triton", "ordinary"),
    ),
    Plant(
        f"{CELLS}/geometry.py",
        "the right node is the left one",
        "o_right = tl.minimum(o_cx, w - 1)",
        "o_right = o_left",
        agreement("class_similarity", "triton", "ordinary"),
    ),
    # ---- rows: a row of the embedding for every pixel ----
    Plant(
        f"{ROWS}/bank_similarity.py",
        "the sum is not scaled down to a new maximum",
        "b_sum = b_sum * tl.exp2(b_max - b_higher) + tl.exp2(b_s - b_higher)",
        "b_sum = b_sum + tl.exp2(b_s - b_higher)",
        f"{TESTS}/test_triton_bank_similarity.py -k wide_and_coldest",
    ),
    Plant(
        f"{ROWS}/bank_similarity.py",
        "the gradient keeps the direction of the embedding",
        "b_de = (b_de - b_along[:, None] * b_e)",
        "b_de = b_de",
        agreement("bank_similarity", "triton", "ordinary"),
    ),
    Plant(
        f"{ROWS}/bank_similarity.py",
        "a half-precision gradient is not scaled back",
        "(b_r * b_row_peak * inverse_t)",
        "(b_r * inverse_t)",
        agreement("bank_similarity", "triton", "ordinary", "float16"),
    ),
    Plant(
        f"{ROWS}/instance_loss.py",
        "a pixel without mass on slots counts",
        "m_counts = m_valid & (b_sum_U >= TINY)",
        "m_counts = m_valid",
        f"{TESTS}/test_triton_rows_instance_loss.py -k agrees",
    ),
    Plant(
        f"{ROWS}/instance_loss.py",
        "the two distributions are added",
        "* b_per_L[:, None] - tl.exp2(b_w) * b_z",
        "* b_per_L[:, None] + tl.exp2(b_w) * b_z",
        agreement("instance_loss", "triton", "same_grid"),
    ),
    Plant(
        f"{ROWS}/packed_bank.py",
        "a row of padding is a slot",
        "tl.where(o_k < stop, 0.0, float",
        "tl.where(o_k <= stop, 0.0, float",
        agreement("instance_loss", "triton", "same_grid"),
    ),
    Plant(
        f"{ROWS}/blocks.py",
        "channels beyond the row are read",
        "return tl.load(p_rows, mask=(o_row < rows)[:, None] & (o_d < D)[None, :], other=0.0)",
        "return tl.load(p_rows, mask=(o_row < rows)[:, None], other=0.0)",
        agreement("bank_similarity", "triton", "odd_channels"),
    ),
    # ---- both families, and ops without embeddings ----
    Plant(
        f"{FUSED}/scaled.py",
        "the incoming gradient is forgotten",
        "(tl.load(p_a) * tl.load(p_b))",
        "tl.load(p_b)",
        agreement("instance_loss", "triton", "ordinary"),
    ),
    Plant(
        f"{FUSED}/scatter_gather.py",
        "slots of the next class are summed",
        "mask=m_n[:, None] & (o_k < end)[None, :]",
        "mask=m_n[:, None] & (o_k <= end)[None, :]",
        agreement("gather", "triton"),
    ),
    Plant(
        f"{FUSED}/scatter_gather.py",
        "a slot reads the class of its number",
        "b_label * stride_c, mask=m_nk & m_class",
        "(o_k % C) * stride_c, mask=m_nk & m_class",
        agreement("scatter", "triton"),
    ),
    Plant(
        f"{FUSED}/boundary_mask.py",
        "the window lies to the right",
        "o_wx = o_x + (window % 3 - 1)",
        "o_wx = o_x + (window % 3)",
        agreement("boundary_mask", "triton"),
    ),
    # ---- C++ and CUDA ----
    Plant(
        f"{CSRC}/bank_update_cpu.cpp",
        "the left node gets the weight of the right one",
        "static_cast<float>(horizontal.unit() - beyond));",
        "static_cast<float>(beyond));",
        agreement("bank_update", "cpp"),
    ),
    Plant(
        f"{CSRC}/bank_update_cpu.cpp",
        "ignored pixels belong to a class",
        "const bool valid = label != IGNORE && 0 <= label && label < classes;",
        "const bool valid = 0 <= label;",
        f"{TESTS}/test_bank_update_sanitized.py -k cpu_kernel",
    ),
    Plant(
        f"{CSRC}/bank_update_cuda.cu",
        "the carry of a weight is lost",
        "if (before + weight < weight) atomicAdd(&tile.carry_Sn[set][node], 1u);",
        "",
        f"{TESTS}/test_bank_update_sanitized.py -k 'cuda and address'",
    ),
    Plant(
        f"{CSRC}/bank_update_cuda.cu",
        "a mean of two is not halved",
        "means == 2 ? average / 2.0 : average",
        "average",
        f"{TESTS}/test_bank_update_sanitized.py -k 'cuda and address'",
    ),
]
