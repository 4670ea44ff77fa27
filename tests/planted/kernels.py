"""Mistakes in the equations, the dispatcher and the backends but Triton's. No chunk or C++ loop is without one."""

from tests.planted import Plant

FUSED, CHUNKED, CSRC = "dida_kernels/fused", "dida_kernels/chunked", "csrc"
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
        "all pixels weigh alike",
        "weight_N = weight_BHW.flatten().to(dtype) * on_slots",
        "weight_N = torch.ones_like(z_NC[:, 0]) * on_slots",
        f"{TESTS}/test_equations.py -k 'eq_6 or weights'",
    ),
    Plant(
        "dida_kernels/equations.py",
        "a pixel without mass on slots counts",
        "return ~((on_N <= 0) | (on_N < MASS * z_NC.sum(1)))",
        "return ~(on_N <= 0)",
        f"{TESTS}/test_equations.py -k eq_6",
    ),
    Plant(
        "dida_kernels/equations.py",
        "the class prior divides",
        "s_NK = s_NK + log_prior_C",
        "s_NK = s_NK - log_prior_C",
        f"{TESTS}/test_equations.py -k class_prior",
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
        "not 0 <= momentum <= 1:",
        "not momentum <= 1:",
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
        "all pixels have the same gradient",
        "factor_P1 = self.inverse_P1 * weight_P[:, None]",
        "factor_P1 = self.inverse_P1 * (weight_P[:, None] > 0)",
        agreement("instance_loss", "chunked"),
    ),
    Plant(
        f"{CHUNKED}/instance_loss.py",
        "the normaliser of q has no prior",
        "adjusted_PK = s_PK if log_prior_K is None else s_PK + log_prior_K[chunk]",
        "adjusted_PK = s_PK",
        agreement("instance_loss", "chunked", "with_prior"),
    ),
    Plant(
        f"{CHUNKED}/class_similarity.py",
        "what the bank says has no prior",
        "sum_PC *= log_prior_C.to(dtype).softmax(0)",
        "sum_PC *= 1",
        agreement("class_similarity", "chunked", "with_prior"),
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
