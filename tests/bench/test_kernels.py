"""The kernel bench on tiny inputs: every row has its numbers or says why not, and what is wrong is not timed."""

import pytest
import torch

import dida_kernels
from bench import clocks, kernels
from tests.cases import MAIN, SCENES, call, resized

TINY = resized(MAIN, C=5, D=8, K=12, hw=(4, 4), HW=(16, 16))


def agrees(op, backend, dtype):
    return None


@pytest.fixture
def tiny(monkeypatch):
    """Small inputs, few rounds, and no compiler."""
    monkeypatch.setattr(kernels, "CPU_SCENES", dict.fromkeys(dida_kernels.OPS, TINY))
    monkeypatch.setattr(clocks, "ROUNDS", 2)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def test_a_row_for_every_way_size_and_dtype(tiny):
    dtypes = [torch.float32, torch.bfloat16]
    rows = kernels.survey_ops(["instance_loss", "boundary_mask"], dtypes, [12, 20], "cpu", agrees, 0)
    keys = {(row["op"], row["dtype"], row["K"], row["way"]) for row in rows}
    assert len(keys) == len(rows)
    for dtype in ("float32", "bfloat16"):
        for slots in (12, 20):
            for way in ("equation", "torch.compile", "chunked"):
                assert ("instance_loss", dtype, slots, way) in keys
    assert {row["K"] for row in rows if row["op"] == "boundary_mask"} == {12}  # it knows no bank
    for row in rows:
        assert row["low"] <= row["median"] <= row["high"]
        assert row["why"] is None
        assert row["speedup"] == 1 if row["way"] == "equation" else row["speedup"] > 0
        assert (row["peak_bytes"] is None) == (row["way"] == "torch.compile")


def test_a_backend_that_is_wrong_is_not_timed(tiny):
    with pytest.raises(RuntimeError, match=r"(?s)instance_loss on chunked is not timed.*it is red"):
        kernels.survey_ops(["instance_loss"], [torch.float32], [12], "cpu", lambda *_: "it is red", 0)


@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_a_call_is_forward_and_backward(op):
    x = kernels.prepared(op, TINY, torch.float32, "cpu")
    found = kernels.run(dida_kernels.OPS[op].reference, x)
    assert len(found) == (1 if x.argument is None else 2)
    if x.argument is not None:
        leaf = x.made.args[x.argument]
        assert leaf.grad is None
        out = dida_kernels.OPS[op].reference(*x.made.args, **x.made.options)
        out.backward(x.arriving)
        torch.testing.assert_close(found[1], leaf.grad)


def test_what_does_not_fit_is_a_row_without_numbers(monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(kernels, "peak_of_call", full)
    rows = kernels._rows_cuda("gather", torch.float32, SCENES["ordinary"], "triton", lambda: None)
    assert [(row["how"], row["why"], row["median"]) for row in rows] == [
        ("launched", "does not fit", None),
        ("replayed", "does not fit", None),
    ]
    kernels.add_speedups(rows)
    result = {"header": {"device": "cuda"}, "rows": rows, "counted": []}
    assert "does not fit" in kernels.kernel_report(result)


def test_torch_compile_comes_last_and_may_fail_or_come_too_late(monkeypatch):
    calls = []

    def bench_cuda(op, dtype, slots, wrong, compiled=False):
        calls.append((slots, compiled))
        if compiled and slots == 300:
            raise SyntaxError("generated code")
        way = "torch.compile" if compiled else "triton"
        return [kernels.empty_row(op, dtype, kernels.scene_of(op, slots, "cuda"), way, "launched")]

    monkeypatch.setattr(kernels, "bench_cuda", bench_cuda)
    rows = kernels.survey_ops(["gather"], [torch.float32], [300, 3000, 30_000], "cuda", agrees, 60)
    assert calls == [(300, False), (3000, False), (30_000, False), (300, True), (3000, True)]
    whys = {row["K"]: row["why"] for row in rows if row["way"] == "torch.compile"}
    assert whys == {300: "torch.compile failed: SyntaxError: generated code", 3000: None}
    rows = kernels.survey_ops(["gather"], [torch.float32], [300], "cuda", agrees, 0)
    assert rows[-1]["why"] == "not tried, the time was up"


def test_the_report_takes_its_numbers_from_the_result():
    row = kernels.empty_row("gather", torch.float32, MAIN, "triton", "replayed")
    row |= {"median": 0.5, "low": 0.4, "high": 0.6, "peak_bytes": 7_000_000, "speedup": 3.25}
    counted = {"op": "gather", "dtype": "float32", "K": 300, "device": "H200", "bytes": 8_000_000, "flops": 0}
    result = {
        "header": {"device": "cuda"},
        "rows": [row],
        "counted": [counted | {"floor_ms": 0.2}],
    }
    (line,) = [line for line in kernels.kernel_report(result).splitlines() if "replayed" in line]
    assert [cell.strip() for cell in line.split("|")[4:-1]] == [
        "triton", "replayed", "0.500", "0.400 - 0.600", "3.25", "7.0", "40",
    ]  # fmt: skip


@pytest.mark.parametrize("op", ["scatter", "gather"])
def test_the_instance_level_at_image_resolution_is_no_larger_with_more_slots(op):
    pixels = [
        scene.HW[0] * scene.HW[1] * scene.K for scene in (kernels.scene_of(op, k, "cuda") for k in (300, 100_000))
    ]
    assert 0.9 * pixels[0] < pixels[1] <= pixels[0]
    assert kernels.scene_of(op, 300, "cuda") is MAIN


def test_floors_are_those_of_the_gpu_that_is_there():
    device_of = kernels.roofline.rates_of
    assert device_of("NVIDIA H200").name == "H200"
    assert device_of("NVIDIA H100 80GB HBM3").bandwidth < device_of("NVIDIA H200").bandwidth
    assert device_of("NVIDIA H100 PCIe") is None
    small, large = (
        kernels.count_op("instance_loss", torch.bfloat16, k, 90, device_of("NVIDIA H200")) for k in (300, 3000)
    )
    assert 5 < large["floor_ms"] / small["floor_ms"] < 10.5
    assert kernels.count_op("bank_update", torch.bfloat16, 300, 90, device_of("NVIDIA H200")) is None


def test_inputs_of_the_tests_and_of_the_benches_are_the_same():
    x = kernels.prepared("gather", TINY, torch.float32, "cpu")
    torch.testing.assert_close(x.made.args[0].detach(), call("gather", TINY).args[0])
