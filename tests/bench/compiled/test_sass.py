"""The budget's reader, on a listing as cuobjdump writes it: two nested loops, a spill in the outer one."""

from collections import Counter

import pytest

from bench.compiled import sass

LISTING = """
	code for sm_86
		Function : _kernel
	.headerflags	@"EF_CUDA_SM86 EF_CUDA_PTX_SM(EF_CUDA_SM86)"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;                /* 0x00000a00ff017624 */
                                                                                         /* 0x000fe400078e00ff */
        /*0010*/                   MUFU.RSQ R2, R3 ;                                      /* 0x0000000300027308 */
        /*0020*/                   STL [R1], R4 ;                                         /* 0x0000000401007387 */
        /*0030*/                   LDG.E.64 R6, [R8.64] ;                                 /* 0x0000000408067981 */
        /*0040*/                   FFMA R9, R6, R7, R9 ;                                  /* 0x0000000706097223 */
        /*0050*/                   MUFU.EX2 R10, R9 ;                                     /* 0x00000009000a7308 */
        /*0060*/                   SHFL.BFLY PT, R11, R10, 0x1, 0x1f ;                    /* 0x0c201f000a0b7f89 */
        /*0070*/              @!P0 BRA 0x30 ;                                             /* 0xffffffb000008947 */
        /*0080*/                   LDL R4, [R1] ;                                         /* 0x0000000001047983 */
        /*0090*/              @P1  BRA 0x20 ;                                             /* 0xffffff8000001947 */
        /*00a0*/                   RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R9 ;          /* 0x000000090200798e */
        /*00b0*/                   EXIT ;                                                 /* 0x000000000000794d */
        /*00c0*/                   BRA 0xc0;                                              /* 0xfffffff000007947 */
        /*00d0*/                   NOP;                                                   /* 0x0000000000007918 */
"""


def test_loops_end_at_backward_branches_and_the_padding_is_none():
    found = sass.loops(sass.parse(LISTING))
    assert [(loop.start, loop.stop) for loop in found] == [(2, 9), (3, 7)]


def test_counts_are_those_of_the_innermost_loop():
    found = sass.of_code(sass.parse(LISTING))
    assert found["hot_loop"] == 5
    assert found["ex2_in_hot_loop"] == 1
    assert found["fma_in_hot_loop"] == 1
    assert found["shuffles_in_hot_loop"] == 1
    assert found["spills_in_loops"] == 2
    assert found["spills_in_inner_loops"] == 0
    assert found["float_atomics"] == 1


def test_the_hot_loop_is_the_one_with_the_exponentials_even_if_another_is_longer():
    code = sass.parse(
        LISTING.replace("EXIT ;", "NOP ;").replace(
            "BRA 0xc0;", "FADD R1, R1, R1 ;\n" + "".join(f"/*{0xD0 + 16 * i:04x}*/ NOP ;\n" for i in range(9))
        )
    )
    assert sass.hot_loop(code).opcodes["MUFU.EX2"] == 1


def test_a_kernel_without_a_loop_has_no_hot_loop():
    assert sass.hot_loop([sass.Instruction(0, "EXIT", "")]) is None
    assert sass.of_code([sass.Instruction(0, "EXIT", "")])["hot_loop"] == 0


@pytest.mark.parametrize(
    "capability, registers, shared, warps, ctas",
    [
        (86, 128, 0, 4, 4),  # by registers: 65536 / (128 * 128)
        (86, 32, 0, 4, 12),  # by warps: 48 / 4
        (86, 64, 60_000, 4, 1),  # by shared memory
        (90, 168, 0, 4, 3),
        (86, 64, 150_000, 8, 0),  # does not fit at all
    ],
)
def test_occupancy(capability, registers, shared, warps, ctas):
    assert sass.ctas_per_sm(capability, registers, shared, warps) == ctas


def test_atomics_are_not_warp_reductions():
    assert sass.count_opcodes(Counter({"REDUX.SUM": 2, "RED.E.ADD": 1}), "RED.") == 1
